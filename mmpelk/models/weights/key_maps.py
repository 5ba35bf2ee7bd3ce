"""Names of ConvNeXt's and SLaK's public checkpoints, and of timm's, beside ours."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ..mixers import ConvNeXtMixer

_Rules = tuple[tuple[str, str], ...]

_FACEBOOK: _Rules = (
    (r'^norm\.', 'backbone.norm3.'),
    (r'^head\.', 'head.fc.'),
    (r'^(downsample_layers|stages)\.', r'backbone.\1.'),
    (r'\.pwconv([12])\.', r'.pointwise_conv\1.'),
    (r'\.dwconv\.', '.mixer.large.'),
)
# Stripes are called Decom in today's code and LoRA in the first; lkb_origin is RepLKNet's dense kernel.
_SLAK: _Rules = (
    *_FACEBOOK[:4],
    (r'\.large_kernel\.(?:Decom|LoRA)1\.conv\.', '.mixer.large.0.'),
    (r'\.large_kernel\.(?:Decom|LoRA)1\.bn\.', '.mixer.large_norm.0.'),
    (r'\.large_kernel\.(?:Decom|LoRA)2\.conv\.', '.mixer.large.1.'),
    (r'\.large_kernel\.(?:Decom|LoRA)2\.bn\.', '.mixer.large_norm.1.'),
    (r'\.large_kernel\.lkb_origin\.conv\.', '.mixer.large.'),
    (r'\.large_kernel\.lkb_origin\.bn\.', '.mixer.large_norm.'),
    (r'\.large_kernel\.lkb_reparam\.', '.mixer.large.'),
    (r'\.large_kernel\.small_conv\.conv\.', '.mixer.small.'),
    (r'\.large_kernel\.small_conv\.bn\.', '.mixer.small_norm.'),
)
_MMPRETRAIN: _Rules = ((r'\.depthwise_conv\.', '.mixer.large.'),)
_TIMM: _Rules = (
    (r'^stem\.', 'backbone.downsample_layers.0.'),
    (r'^stages\.(\d+)\.downsample\.', r'backbone.downsample_layers.\1.'),
    (r'^stages\.(\d+)\.blocks\.(\d+)\.', r'backbone.stages.\1.\2.'),
    (r'^stages\.(\d+)\.positional_embedding', r'backbone.stages.\1.positional_embedding'),
    (r'\.conv_dw\.', '.mixer.large.'),
    (r'\.mlp\.fc([12])\.', r'.pointwise_conv\1.'),
    (r'^head\.norm\.', 'backbone.norm3.'),
)
_TO_TIMM: _Rules = (
    (r'^backbone\.downsample_layers\.0\.', 'stem.'),
    (r'^backbone\.downsample_layers\.(\d+)\.', r'stages.\1.downsample.'),
    (r'^backbone\.stages\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
    (r'^backbone\.stages\.', 'stages.'),
    (r'\.pointwise_conv([12])\.', r'.mlp.fc\1.'),
    (r'^backbone\.norm3\.', 'head.norm.'),
)

#: Where checkpoints come from: a piece of a name that only such checkpoints have, and the rules that rename to ours.
SOURCES: dict[str, tuple[str, _Rules]] = {
    'slak': ('.large_kernel.', _SLAK),
    'convnext': ('.dwconv.', _FACEBOOK),
    'mmpretrain': ('.depthwise_conv.', _MMPRETRAIN),
    'timm': ('.mlp.fc1.', _TIMM),
}


def _rename(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def detect_source(state_dict: Mapping[str, Tensor]) -> str:
    """Where a state dict comes from, by its names.

    Returns:
        A name of :data:`SOURCES`.

    Raises:
        ValueError: If no source has such names.
    """
    for source, (mark, _) in SOURCES.items():
        if any(mark in name for name in state_dict):
            return source
    raise ValueError(
        f'these are not the names of {", ".join(SOURCES)}: {", ".join(list(state_dict)[:4])}, ... A checkpoint of this '
        'project needs no conversion'
    )


def from_source(state_dict: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """The names of a public checkpoint, and ours.

    Returns:
        From each name to ours.

    Raises:
        ValueError: If the source is unknown.
    """
    if source not in SOURCES:
        raise ValueError(f'unknown source {source!r}; known: {", ".join(SOURCES)}')
    return {name: _rename(name, SOURCES[source][1]) for name in state_dict}


def to_timm(model: nn.Module) -> dict[str, str]:
    """Our names, and those of timm's ConvNeXt.

    With ``mixer='conv7'`` timm's ``ConvNeXt`` loads the renamed state dict strictly. Other mixers have no counterpart
    there: theirs stay ``stages.i.blocks.j.mixer.*``, and the embedding ``stages.i.positional_embedding``.

    Args:
        model: A classifier with a PeLK backbone of four stages.

    Returns:
        From each name of the model's state dict to timm's.
    """
    plain = tuple(f'{name}.' for name, module in model.named_modules() if isinstance(module, ConvNeXtMixer))
    names = {}
    for name in model.state_dict():
        renamed = _rename(name, _TO_TIMM)
        names[name] = renamed.replace('.mixer.large.', '.conv_dw.') if name.startswith(plain) else renamed
    return names
