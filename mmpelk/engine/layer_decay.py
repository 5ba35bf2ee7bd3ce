"""Learning rates that decay with depth, for any backbone with ``get_layer_depth``."""

import json
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIMIZERS
from torch import nn

from mmpelk.models import PeripheralConv2d
from mmpelk.models.learning_rates import check_factor, peripheral_kernels
from mmpelk.registry import OPTIM_WRAPPER_CONSTRUCTORS

# Keys of mmengine's own constructor.
_MMENGINES = {
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'flat_decay_mult',
    'bypass_duplicate',
}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Parameter groups of ConvNeXt's downstream recipes, with the same rates as mmseg's and mmdet's constructor.

    Those two refuse any backbone whose class is not called ConvNeXt; this one asks the backbone's
    ``get_layer_depth(name, prefix)`` instead. ``paramwise_cfg`` takes

    - ``decay_rate``: factor per layer, in (0, 1];
    - ``decay_type``: ``'layer_wise'`` or ``'stage_wise'``. Stage-wise, the stem and all downsampling layers are
      layer 0, stage ``i`` is layer ``i + 1``, and everything else trains at the full rate;
    - ``num_layers``: stage-wise only, the depth that the exponent counts from, 6 in ConvNeXt-T's recipe and 12 in the
      deeper ones. By default it follows from the backbone's depth;
    - ``peripheral_lr_mult``: a further factor, 1 by default, for kernels in which one number stands for several
      positions, see :class:`PeripheralOptimWrapperConstructor`;
    - the keys of mmengine's ``DefaultOptimWrapperConstructor``, ``custom_keys`` and the others. Their factors of the
      learning rate multiply the layer's; ``dwconv_decay_mult`` is of peripheral convolutions, too.

    Backbones may have any name and lie anywhere in the model. Unless one of those keys says otherwise, norms, biases
    and other one-dimensional parameters have no weight decay, nor has the positional embedding.

    Raises:
        ValueError: If ``paramwise_cfg`` holds unknown keys or values, or the backbone has no ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        cfg = self.paramwise_cfg
        known = {'decay_rate', 'decay_type', 'num_layers', 'peripheral_lr_mult', *_MMENGINES}
        if 'decay_rate' not in cfg or set(cfg) - known:
            raise ValueError(f'paramwise_cfg needs decay_rate and may have {sorted(known)}; got {sorted(cfg)}')
        if not 0 < cfg['decay_rate'] <= 1:
            raise ValueError(f'decay_rate is in (0, 1], got {cfg["decay_rate"]}')
        if cfg.get('decay_type', 'layer_wise') not in ('layer_wise', 'stage_wise'):
            raise ValueError(f"decay_type is 'layer_wise' or 'stage_wise', got {cfg['decay_type']!r}")
        check_factor(cfg.get('peripheral_lr_mult', 1))
        kind = self.optimizer_cfg.get('type')
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            if isinstance(kind, str) and registry.get(kind) is None:
                raise ValueError(
                    f'optim_wrapper.optimizer.type: {kind} is not in torch.optim or the registry; check it'
                )
        if not isinstance(self.base_lr, int | float):
            raise ValueError(f'optim_wrapper.optimizer.lr has to be a number, but is {self.base_lr!r}')

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: object) -> None:
        """Add the model's parameters to ``params``, one group per layer, weight decay and other rule."""
        backbones = self._backbones(module)
        rules = self._rules(module)
        factor_of_kernels = self.paramwise_cfg.get('peripheral_lr_mult', 1)
        kernels = set(peripheral_kernels(module)) if factor_of_kernels != 1 else set()
        groups: dict[str, dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            prefix = next((prefix for prefix in backbones if name.startswith(prefix)), None)
            layer, last = self._layer(backbones, prefix, name)
            rule = dict(rules.get(id(parameter), {}))
            factor = rule.pop('lr', self.base_lr) / self.base_lr if self.base_lr else 1.0
            scale = self.paramwise_cfg['decay_rate'] ** (last - layer) * factor
            decay = rule.pop('weight_decay', self.base_wd)
            if 'weight_decay' not in rules.get(id(parameter), {}) and _is_without_decay(name, parameter):
                decay = 0.0
            whose = f'{prefix}' if prefix and len(backbones) > 1 else ''
            key = f'{whose}layer_{layer}_{"no_decay" if decay == 0 else "decay"}'
            key += ''.join(f'_{what}={value}' for what, value in rules.get(id(parameter), {}).items())
            if parameter in kernels:
                scale *= factor_of_kernels
                key += '_peripheral'
            if key not in groups:
                groups[key] = rule | {
                    'params': [],
                    'param_names': [],
                    'group_name': key,
                    'lr_scale': scale,
                    'lr': scale * self.base_lr,
                }
                if decay is not None:  # else the optimizer's own default
                    groups[key]['weight_decay'] = decay
            groups[key]['params'].append(parameter)
            groups[key]['param_names'].append(name)
        table = {name: {key: group.get(key) for key in ('lr', 'weight_decay')} for name, group in groups.items()}
        MMLogger.get_current_instance().debug('parameter groups: %s', json.dumps(table, indent=2))
        params.extend(groups.values())

    def _backbones(self, model: nn.Module) -> dict[str, Any]:
        """Modules that know the layers of their parameters, by the prefix of their names, wherever they are."""
        found = {f'{name}.' if name else '': part for name, part in model.named_modules() if _knows_layers(part)}
        # Classifiers of mmpretrain pass the question on to their backbone.
        inner = {
            prefix: part
            for prefix, part in found.items()
            if not any(other is not part and _knows_layers(other) for other in part.modules())
        }
        if not inner:
            backbone = getattr(model, 'backbone', None)
            raise ValueError(
                f'{type(self).__name__} needs a model whose backbone has get_layer_depth(name, prefix), as PeLK and '
                f"mmpretrain's backbones have; got {type(backbone).__name__}"
            )
        return inner

    def _rules(self, model: nn.Module) -> dict[int, dict[str, Any]]:
        """Settings that mmengine's own keys give each parameter, by its id: ``lr``, ``weight_decay`` and others."""
        cfg = {key: value for key, value in self.paramwise_cfg.items() if key in _MMENGINES}
        if not cfg:
            return {}
        groups: list[dict] = []
        DefaultOptimWrapperConstructor(dict(optimizer=self.optimizer_cfg), cfg).add_params(groups, model)
        rules: dict[int, dict[str, Any]] = {}
        for group in groups:
            (parameter,) = group.pop('params')
            rules.setdefault(id(parameter), group)
        if (factor := cfg.get('dwconv_decay_mult')) is None:
            return rules
        for prefix, part in model.named_modules():
            if isinstance(part, PeripheralConv2d):  # a depthwise convolution, of a class that mmengine does not know
                for name, parameter in part.named_parameters(recurse=False):
                    is_custom = any(key in f'{prefix}.{name}' for key in cfg.get('custom_keys', {}))
                    if not is_custom and not (name == 'bias' and 'bias_decay_mult' in cfg):
                        rules.setdefault(id(parameter), {})['weight_decay'] = self.base_wd * factor
        return rules

    def _layer(self, backbones: dict[str, Any], prefix: str | None, name: str) -> tuple[int, int]:
        """Layer of a parameter, and the layer that trains at the full rate."""
        if prefix is None:  # heads and necks
            last = max(self._layer(backbones, prefix, f'{prefix}norm.weight')[1] for prefix in backbones)
            return last, last
        layer, num_layers = backbones[prefix].get_layer_depth(name, prefix)
        last = num_layers - 1
        if self.paramwise_cfg.get('decay_type', 'layer_wise') == 'stage_wise':
            last = self.paramwise_cfg.get('num_layers', num_layers - 2) + 1
            if not hasattr(backbones[prefix], 'downsample_layers'):
                raise ValueError(
                    "decay_type='stage_wise' is for backbones with downsample_layers and stages, as ConvNeXt's; "
                    f"{type(backbones[prefix]).__name__} takes 'layer_wise'"
                )
            part, *index = name.removeprefix(prefix).split('.')
            if part not in ('downsample_layers', 'stages'):
                layer = last
            else:
                layer = 0 if part == 'downsample_layers' else int(index[0]) + 1
        return layer, last


def _knows_layers(module: nn.Module) -> bool:
    return hasattr(module, 'get_layer_depth')


def _is_without_decay(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() <= 1 or name.endswith(('.bias', 'positional_embedding'))
