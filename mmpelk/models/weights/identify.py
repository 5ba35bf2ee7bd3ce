"""What network a public checkpoint is, by the names and shapes of its tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmpelk.errors import UserError

from ..architectures import ARCHITECTURES
from .downloads import Normalisation, read_public
from .key_maps import SOURCES, Layout, detect_source, from_source, layout_of, prefix_of

_OPENCLIP = 'visual.trunk.'
_CLIP = Normalisation.of_unit_values((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# OpenCLIP's ConvNeXt-XXL, whose norms have another epsilon.
_XXLARGE = ((3, 4, 30, 3), (384, 768, 1536, 3072))


class Reading:
    """A public checkpoint, read: its tensors by our names, and what network it is.

    Args:
        weights: State dict with the names of one of :data:`~mmpelk.models.weights.key_maps.SOURCES`.
        name: What to call the weights in messages.

    Raises:
        UserError: If the names are of none, or the network is a variant that PeLK has no blocks for.
    """

    def __init__(self, weights: Mapping[str, Tensor], name: str = 'the checkpoint') -> None:
        self.name = name
        try:
            source = detect_source(weights)
            self.prefix = prefix_of(weights, source)
            renamed = from_source(weights, source)
            self.tensors = {renamed[key].removeprefix('backbone.'): value for key, value in weights.items()}
            self.layout = layout_of(self.tensors)
        except UserError as error:
            raise UserError(f'{name}: {error}') from error
        self.title = SOURCES[source].title
        #: Whether the last norm comes before pooling: timm's ``_hnf``.
        self.norm_first = any(key.startswith(f'{self.prefix}norm_pre.') for key in weights)
        if reason := self._why_unsupported():
            raise UserError(f'{name} is {self}: {reason}')

    def _why_unsupported(self) -> str:
        """Why no PeLK computes the network; empty where one does."""
        layout = self.layout
        if not layout.patch_stem:
            return "its stem is several overlapping convolutions (timm's _ols), PeLK's is one on patches"
        if not layout.shifted_norms:
            return "its norms have no shift (timm's _rms), PeLK's are layer norms"
        if (layout.depths, layout.channels) == _XXLARGE:
            return "its norms have an epsilon of 1e-5, PeLK's 1e-6"
        return ''

    def __str__(self) -> str:
        if self.title.startswith('SLaK'):
            return f'a {self.title} of {_shape(self.layout)}'
        tower = 'the picture tower of a CLIP model, ' * (self.prefix == _OPENCLIP)
        return f'{tower}a {describe(self.layout)} by the names of {"OpenCLIP" if tower else self.title}'

    @property
    def normalisation(self) -> Normalisation | None:
        """What the network expects of pictures, if its names tell: those of CLIP do."""
        return _CLIP if self.prefix == _OPENCLIP else None


def describe(layout: Layout) -> str:
    """A network in words: ``ConvNeXt-tiny (3-3-9-3 blocks, 96-192-384-768 channels)``."""
    sizes = {(arch['depths'], arch['channels']): name for name, arch in ARCHITECTURES.items() if 'convnext-' in name}
    sizes[_XXLARGE] = 'convnext-xxlarge'
    size = sizes.get((layout.depths, layout.channels), '').removeprefix('convnext')
    return f'ConvNeXt{" V2" * layout.use_grn}{size} ({_shape(layout)})'


def _shape(layout: Layout) -> str:
    return ', '.join(
        f'{"-".join(map(str, values))} {unit}'
        for values, unit in ((layout.depths, 'blocks'), (layout.channels, 'channels'))
    )


def arch_of(init_cfg: Any) -> tuple[dict[str, Any], bool]:
    """What ``PeLK(arch='inflated')`` is: the ConvNeXt of ``init_cfg``'s checkpoint, with the kernels of ``convnext-*``.

    Returns:
        The architecture, and whether the blocks have a layer scale.

    Raises:
        UserError: If no ``mmpelk.Inflated`` is in ``init_cfg``, or its checkpoint is no ConvNeXt.
    """
    cfgs = init_cfg if isinstance(init_cfg, Sequence) else [init_cfg]
    types = [cfg.get('type') if isinstance(cfg, Mapping) else None for cfg in cfgs]
    names = [getattr(kind, '__name__', kind) for kind in types]  # a config may hold the class itself
    found = [cfg for cfg, name in zip(cfgs, names, strict=True) if name in ('mmpelk.Inflated', 'Inflated')]
    if not found:
        raise UserError(
            "arch='inflated' takes the form of a checkpoint: give init_cfg=dict(type='mmpelk.Inflated', "
            "checkpoint=...), or an arch such as 'convnext-tiny'"
        )
    checkpoint, key = found[-1]['checkpoint'], found[-1].get('key')
    layout = Reading(read_public(checkpoint, key).state, f"'{checkpoint}'").layout
    size = dict(depths=layout.depths, channels=layout.channels, use_grn=layout.use_grn)
    return ARCHITECTURES['convnext-tiny'] | size, layout.layer_scale


def without_checkpoint(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that build a backbone of the same form without ``init_cfg``: the one in ``arch='inflated'``, too.

    Raises:
        UserError: As :func:`arch_of`.
    """
    arguments = {**backbone, 'init_cfg': None}
    if backbone.get('arch') == 'inflated':
        arguments['arch'], has_layer_scale = arch_of(backbone.get('init_cfg'))
        if not has_layer_scale:
            arguments['layer_scale_init_value'] = 0
    return arguments
