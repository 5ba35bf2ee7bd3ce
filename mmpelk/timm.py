"""PeLK in timm's registry: ``import mmpelk.timm``, then ``timm.create_model('pelk_tiny', ...)``. It needs timm.

    import timm, mmpelk.timm

    timm.list_models('pelk*')
    classifier = timm.create_model('pelk_tiny', num_classes=10, drop_path_rate=0.1)
    backbone = timm.create_model('pelk_tiny', features_only=True, out_indices=(1, 2, 3))

One model for each of :data:`mmpelk.models.ARCHITECTURES`. Arguments that timm does not know are :class:`PeLK`'s;
timm leaves out those that are ``None``, so that a network without embeddings is ``positional_embedding='none'``.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from mmengine.model import initialize
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.models import ARCHITECTURES, PeLK
from mmpelk.models.weights.checkpoint import state_dict_of
from mmpelk.models.weights.key_maps import from_source
from mmpelk.sparsity import fold_masks

try:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.layers import NormMlpClassifierHead
    from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._features import FeatureGetterNet  # the class that features_only takes; not exported
except ImportError as error:
    raise ImportError("PeLK in timm's registry takes the package timm: pip install 'mmpelk[timm]'") from error

NAMES = {f'pelk_{arch.replace("-", "_")}': arch for arch in ARCHITECTURES}
"""timm's name of each architecture."""


class PeLKClassifier(nn.Module):
    """A PeLK backbone and timm's head: global pooling, norm, dropout, linear layer.

    Args:
        num_classes: Outputs of the linear layer; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: A name of timm's; ``''`` for none.
        drop_rate: Dropout in front of the linear layer.
        head_init_scale: Factor of the linear layer's initial values.
        output_stride: Stride of the last map; it can only be the network's own.
        device: Where the parameters are made.
        dtype: Their type.
        **arguments: Arguments of :class:`mmpelk.models.PeLK`, such as ``drop_path_rate``.

    Attributes:
        num_features: Channels of :meth:`forward_features`.
        feature_info: Channels, stride and module of each stage's map.

    Raises:
        UserError: If ``output_stride`` is another than the network's own.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        head_init_scale: float = 1.0,
        output_stride: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        with nullcontext() if device is None else torch.device(device):
            self._build(num_classes, in_chans, global_pool, drop_rate, head_init_scale, arguments)
        if dtype is not None:
            self.to(dtype=dtype)
        own = self.feature_info[-1]['reduction']
        if output_stride not in (None, own):
            raise UserError(
                f'the output_stride of this network is {own}, got {output_stride}: its kernels have no dilation. Take '
                'the map of an earlier stage, features_only=True with out_indices, or a larger image'
            )

    def _build(
        self,
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        head_init_scale: float,
        arguments: dict[str, Any],
    ) -> None:
        self.backbone: Any = PeLK(in_channels=in_chans, out_indices=(), **arguments)
        initialize(self.backbone, self.backbone.init_cfg)  # as init_weights() does, which prints every name
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = self.backbone.channels[-1]
        patch = self.backbone.downsample_layers[0][0].kernel_size[0]
        self.feature_info = [
            dict(num_chs=width, reduction=patch * 2**stage, module=f'backbone.stages.{stage}')
            for stage, width in enumerate(self.backbone.channels)
        ]
        self.head: Any = NormMlpClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
        )
        if num_classes:
            classifier = cast(nn.Linear, self.head.fc)
            nn.init.trunc_normal_(classifier.weight, std=0.02)
            nn.init.zeros_(classifier.bias)
            with torch.no_grad():
                classifier.weight.mul_(head_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the last stage's map, before the norm."""
        for stage in range(len(self.backbone.stages)):
            x = self.backbone.forward_stage(stage, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last stage's map to classes, or to what the linear layer takes."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the stages in ``indices``, and the last one before them unless ``intermediates_only``.

        Args:
            x: ``(N, C, H, W)``.
            indices: Stages; the last so many if it is a number, all if ``None``.
            norm: Without effect: no stage has a norm of its own.
            stop_early: Run no stage behind the last that is wanted.
            output_fmt: ``'NCHW'``.
            intermediates_only: Return the list alone.
        """
        if output_fmt != 'NCHW':
            raise UserError(f"output_fmt is 'NCHW', got {output_fmt!r}")
        wanted, last = self._chosen(indices)
        chosen = []
        for stage in range(last + 1 if stop_early or intermediates_only else len(self.backbone.stages)):
            x = self.backbone.forward_stage(stage, x)
            if stage in wanted:
                chosen.append(x)
        return chosen if intermediates_only else (x, chosen)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last of ``indices``, and the head."""
        wanted, last = self._chosen(indices)
        cut = last + 1 < len(self.backbone.stages)
        self.backbone.stages = self.backbone.stages[: last + 1]
        self.backbone.downsample_layers = self.backbone.downsample_layers[: last + 1]
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]['num_chs']
        if prune_head or prune_norm or cut:
            self.reset_classifier(0, '', reset_other=True)
        return wanted

    def _chosen(self, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
        """Stages that timm's ``indices`` mean, and the last of them."""
        stages = list(range(len(self.backbone.stages)))
        if isinstance(indices, int):
            indices = stages[-indices:] if 0 < indices <= len(stages) else [len(stages)]
        try:
            wanted = stages if indices is None else [stages[index] for index in indices]
        except IndexError as error:
            raise UserError(f'out_indices are of {len(stages)} stages, got {indices}') from error
        return wanted, max(wanted)

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Another linear layer, none for 0 classes; with ``reset_other`` without the norm in front of it."""
        self.num_classes = num_classes
        like = self.backbone.downsample_layers[0][0].weight
        self.head.reset(
            num_classes,
            global_pool,
            reset_other=reset_other,
            in_features=self.num_features,
            device=like.device,
            dtype=like.dtype,
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, for timm's layer-wise learning rates."""
        stem = r'^backbone\.downsample_layers\.0'
        if coarse:
            return dict(stem=stem, blocks=r'^backbone\.(?:stages|downsample_layers)\.(\d+)')
        return dict(
            stem=stem,
            blocks=[
                (r'^backbone\.downsample_layers\.(\d+)', (0,)),
                (r'^backbone\.stages\.(\d+)\.positional_embedding', (0,)),
                (r'^backbone\.stages\.(\d+)\.(\d+)', None),
            ],
        )

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizers leave without decay, besides those of one dimension."""
        return {name for name, _ in self.named_parameters() if name.endswith('positional_embedding')}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        for stage in self.backbone.stages:
            for block in stage:
                block.with_cp = enable


class PeLKFeatures(FeatureGetterNet):
    """Maps of some stages: what ``features_only=True`` makes."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        cast(PeLKClassifier, self.model).set_grad_checkpointing(enable)


def names_of_timm(state: Mapping[str, Any], model: PeLKClassifier) -> dict[str, Tensor]:
    """Weights of a classification recipe, by the names that they have here, masks folded in.

    Weights that ``tools/convert_checkpoint.py export`` has given the names of timm's ConvNeXt are taken, too.
    """
    state = fold_masks(state_dict_of(state))
    if any(key.startswith('stem.') for key in state):
        state = {key: state[name] for name, key in from_source(state, 'timm').items()}
    norm = f'backbone.norm{len(model.backbone.channels) - 1}.'
    return {key.replace(norm, 'head.norm.'): value for key, value in state.items()}


def _entry(name: str, arch: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        given = [arguments.get(key) or {} for key in ('pretrained_cfg', 'pretrained_cfg_overlay')]
        sources = [
            (cfg.to_dict() if isinstance(cfg, PretrainedCfg) else cfg).get(key)
            for cfg in given
            if isinstance(cfg, dict | PretrainedCfg)
            for key in ('file', 'url', 'hf_hub_id', 'state_dict')
        ]
        if pretrained and not any(sources):
            raise UserError(
                f'there are no published weights of {name} yet: leave pretrained out, or give your own with '
                "pretrained=True, pretrained_cfg_overlay=dict(file='FILE.safetensors')"
            )
        if arguments.get('feature_cls') in ('list', 'dict'):
            raise UserError(
                "feature_cls is 'getter', the default, 'hook' or 'fx', not "
                f'{arguments["feature_cls"]!r}: the stages and what is between them do not stand in one row'
            )
        if arguments.get('positional_embedding') == 'none':
            arguments['positional_embedding'] = None
        stages = len(arguments.get('depths') or ARCHITECTURES[arch]['depths'])
        return build_model_with_cfg(
            PeLKClassifier,
            name,
            pretrained,
            pretrained_filter_fn=names_of_timm,
            feature_cfg=dict(feature_cls=PeLKFeatures, out_indices=tuple(range(stages))),
            **dict(arch=arch) | arguments,
        )

    create.__name__ = name
    create.__qualname__ = name
    create.__doc__ = f"PeLK's architecture {arch!r}."
    return create


default_cfgs = generate_default_cfgs(
    {
        name: dict(
            url='',
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=(7, 7),
            crop_pct=0.875,
            interpolation='bicubic',
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            first_conv='backbone.downsample_layers.0.0',
            classifier='head.fc',
            license='apache-2.0',
        )
        for name in NAMES
    }
)
"""timm's description of each model, which it looks for under this name."""

for _name, _arch in NAMES.items():
    register_model(_entry(_name, _arch))
