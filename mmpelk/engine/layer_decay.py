"""Learning rates that decay with depth, for any backbone with ``get_layer_depth``."""

import json

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIMIZERS
from torch import nn

from mmpelk.registry import OPTIM_WRAPPER_CONSTRUCTORS

_PREFIX = 'backbone.'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Parameter groups of ConvNeXt's downstream recipes, with the same rates as mmseg's and mmdet's constructor.

    Those two refuse any backbone whose class is not called ConvNeXt; this one asks the backbone's
    ``get_layer_depth(name, prefix)`` instead. ``paramwise_cfg`` takes

    - ``decay_rate``: factor per layer, in (0, 1];
    - ``decay_type``: ``'layer_wise'`` or ``'stage_wise'``. Stage-wise, the stem and all downsampling layers are
      layer 0, stage ``i`` is layer ``i + 1``, and everything else trains at the full rate;
    - ``num_layers``: stage-wise only, the depth that the exponent counts from, 6 in ConvNeXt-T's recipe and 12 in the
      deeper ones. By default it follows from the backbone's depth.

    Norms, biases and other one-dimensional parameters have no weight decay, nor has the positional embedding.

    Raises:
        ValueError: If ``paramwise_cfg`` holds unknown keys or values, or the backbone has no ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        cfg = self.paramwise_cfg
        known = {'decay_rate', 'decay_type', 'num_layers'}
        if 'decay_rate' not in cfg or set(cfg) - known:
            raise ValueError(f'paramwise_cfg needs decay_rate and may have {sorted(known)}; got {sorted(cfg)}')
        if not 0 < cfg['decay_rate'] <= 1:
            raise ValueError(f'decay_rate is in (0, 1], got {cfg["decay_rate"]}')
        if cfg.get('decay_type', 'layer_wise') not in ('layer_wise', 'stage_wise'):
            raise ValueError(f"decay_type is 'layer_wise' or 'stage_wise', got {cfg['decay_type']!r}")
        kind = self.optimizer_cfg.get('type')
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            if isinstance(kind, str) and registry.get(kind) is None:
                raise ValueError(
                    f'optim_wrapper.optimizer.type: {kind} is not in torch.optim or the registry; check it'
                )
        if not isinstance(self.base_lr, int | float | None):
            raise ValueError(f'optim_wrapper.optimizer.lr has to be a number, but is {self.base_lr!r}')

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: object) -> None:
        """Add the model's parameters to ``params``, one group per layer and per weight decay."""
        groups: dict[str, dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer, last = self._layer(module, name)
            decays = parameter.dim() > 1 and not name.endswith(('.bias', '.positional_embedding'))
            group_name = f'layer_{layer}_{"decay" if decays else "no_decay"}'
            if group_name not in groups:
                scale = self.paramwise_cfg['decay_rate'] ** (last - layer)
                groups[group_name] = {
                    'params': [],
                    'param_names': [],
                    'group_name': group_name,
                    'lr_scale': scale,
                    'lr': scale * self.base_lr,
                }
                if not decays:
                    groups[group_name]['weight_decay'] = 0.0
                elif self.base_wd is not None:  # else the optimizer's own default
                    groups[group_name]['weight_decay'] = self.base_wd
            groups[group_name]['params'].append(parameter)
            groups[group_name]['param_names'].append(name)
        table = {name: {key: group.get(key) for key in ('lr', 'weight_decay')} for name, group in groups.items()}
        MMLogger.get_current_instance().debug('parameter groups: %s', json.dumps(table, indent=2))
        params.extend(groups.values())

    def _layer(self, model: nn.Module, name: str) -> tuple[int, int]:
        """Layer of a parameter, and the layer that trains at the full rate."""
        backbone = getattr(model, 'backbone', None)
        if backbone is None or not hasattr(backbone, 'get_layer_depth'):
            raise ValueError(
                f'{type(self).__name__} needs a model whose backbone has get_layer_depth(name, prefix), as PeLK and '
                f"mmpretrain's backbones have; got {type(backbone).__name__}"
            )
        layer, num_layers = backbone.get_layer_depth(name, _PREFIX)
        last = num_layers - 1
        if self.paramwise_cfg.get('decay_type', 'layer_wise') == 'stage_wise':
            last = self.paramwise_cfg.get('num_layers', num_layers - 2) + 1
            part, *index = name.removeprefix(_PREFIX).split('.')
            if not name.startswith(_PREFIX) or part not in ('downsample_layers', 'stages'):
                layer = last
            else:
                layer = 0 if part == 'downsample_layers' else int(index[0]) + 1
        return layer, last
