"""Names of public checkpoints that have ConvNeXt's shape, beside ours: one table of rules."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from mmpelk.errors import UserError

from ..mixers import ConvNeXtMixer

_Rules = tuple[tuple[str, str], ...]

_FACEBOOK: _Rules = (
    (r'^norm\.', 'norm3.'),
    (r'^head\.', 'head.fc.'),
    (r'\.pwconv([12])\.', r'.pointwise_conv\1.'),
    (r'\.dwconv\.', '.mixer.large.'),
)
# Stripes are called Decom in today's code and LoRA in the first; lkb_origin is RepLKNet's dense kernel.
_SLAK: _Rules = (
    *_FACEBOOK[:3],
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
# `features_only=True` has an underscore for the first dot.
_TIMM: _Rules = (
    (r'^(stem|stages)_', r'\1.'),
    (r'^stem\.', 'downsample_layers.0.'),
    (r'^stages\.(\d+)\.downsample\.', r'downsample_layers.\1.'),
    (r'^stages\.(\d+)\.blocks\.(\d+)\.', r'stages.\1.\2.'),
    (r'\.conv_dw\.', '.mixer.large.'),
    (r'\.mlp\.fc([12])\.', r'.pointwise_conv\1.'),
    (r'\.mlp\.grn\.weight$', '.grn.gamma'),
    (r'\.mlp\.grn\.bias$', '.grn.beta'),
    (r'^(head\.norm|norm_pre)\.', 'norm3.'),
)
_TORCHVISION: _Rules = (
    *((rf'^features\.{2 * stage}\.', f'downsample_layers.{stage}.') for stage in range(4)),
    *((rf'^features\.{2 * stage + 1}\.', f'stages.{stage}.') for stage in range(4)),
    (r'\.block\.0\.', '.mixer.large.'),
    (r'\.block\.2\.', '.norm.'),
    (r'\.block\.3\.', '.pointwise_conv1.'),
    (r'\.block\.5\.', '.pointwise_conv2.'),
    (r'\.layer_scale$', '.gamma'),
    (r'^classifier\.0\.', 'norm3.'),
    (r'^classifier\.2\.', 'head.fc.'),
)
_TRANSFORMERS: _Rules = (
    (r'^embeddings\.patch_embeddings\.', 'downsample_layers.0.0.'),
    (r'^embeddings\.layernorm\.', 'downsample_layers.0.1.'),
    (r'^encoder\.stages\.(\d+)\.downsampling_layer\.', r'downsample_layers.\1.'),
    (r'^encoder\.stages\.(\d+)\.layers\.(\d+)\.', r'stages.\1.\2.'),
    (r'\.dwconv\.', '.mixer.large.'),
    (r'\.pwconv([12])\.', r'.pointwise_conv\1.'),
    (r'\.layernorm\.', '.norm.'),
    (r'\.layer_scale_parameter$', '.gamma'),
    (r'\.grn\.weight$', '.grn.gamma'),
    (r'\.grn\.bias$', '.grn.beta'),
    (r'^layernorm\.', 'norm3.'),
    *((rf'^hidden_states_norms\.stage{stage + 1}\.', f'norm{stage}.') for stage in range(4)),
    (r'^classifier\.', 'head.fc.'),
)
_TRANSFORMERS_DINOV3: _Rules = (
    (r'^stages\.(\d+)\.downsample_layers\.', r'downsample_layers.\1.'),
    (r'^stages\.(\d+)\.layers\.(\d+)\.', r'stages.\1.\2.'),
    (r'\.depthwise_conv\.', '.mixer.large.'),
    (r'\.layer_norm\.', '.norm.'),
    (r'^layer_norm\.', 'norm3.'),
)
_TO_TIMM: _Rules = (
    (r'^backbone\.downsample_layers\.0\.', 'stem.'),
    (r'^backbone\.downsample_layers\.(\d+)\.', r'stages.\1.downsample.'),
    (r'^backbone\.stages\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
    (r'^backbone\.stages\.', 'stages.'),
    (r'\.pointwise_conv([12])\.', r'.mlp.fc\1.'),
    (r'\.grn\.gamma$', '.mlp.grn.weight'),
    (r'\.grn\.beta$', '.mlp.grn.bias'),
    (r'^backbone\.norm3\.', 'head.norm.'),
)


class Source(NamedTuple):
    """A project whose checkpoints have ConvNeXt's shape.

    Attributes:
        title: What to call it in messages.
        mark: Pattern of a name that every block has and no other source. What stands in front is a prefix, of a
            classifier, a CLIP model or a detector around the network.
        rules: Patterns and replacements, in order, from the names behind the prefix to those of our backbone.
    """

    title: str
    mark: str
    rules: _Rules


#: Where checkpoints come from.
SOURCES: dict[str, Source] = {
    'slak': Source('SLaK or RepLKNet', r'stages\.\d+\.\d+\.large_kernel\.', _SLAK),
    'convnext': Source("ConvNeXt's authors", r'stages\.\d+\.\d+\.dwconv\.weight', _FACEBOOK),
    'mmpretrain': Source('mmpretrain', r'stages\.\d+\.\d+\.depthwise_conv\.', _MMPRETRAIN),
    'timm': Source('timm', r'stages[._]\d+\.blocks\.\d+\.mlp\.fc1\.', _TIMM),
    'torchvision': Source('torchvision', r'features\.\d+\.\d+\.block\.0\.', _TORCHVISION),
    'transformers': Source('transformers', r'encoder\.stages\.\d+\.layers\.\d+\.dwconv\.', _TRANSFORMERS),
    'transformers-dinov3': Source('transformers', r'stages\.\d+\.layers\.\d+\.depthwise_conv\.', _TRANSFORMERS_DINOV3),
}

# What else people try: a pattern of its names, what it is, and what to do.
_OTHERS = (
    (r'\.mixer\.', 'a network of this project', "load it with init_cfg=dict(type='Pretrained', ...)"),
    (
        r'\.dwconv\.kernel$',
        "ConvNeXt V2 with MinkowskiEngine's sparse layers",
        'take the converted file of its authors',
    ),
    (r'\battn\b|attention|self_attn', 'a transformer', 'it has no depthwise kernels to inflate'),
    (r'layer1\.0\.conv1', 'a ResNet', 'it has no depthwise kernels to inflate'),
)


def _rename(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _prefixes(state_dict: Mapping[str, Tensor], source: Source) -> set[str]:
    mark = re.compile(rf'^(|.*?\.){source.mark}')
    return {found[1] for found in map(mark.match, state_dict) if found}


def detect_source(state_dict: Mapping[str, Tensor]) -> str:
    """Where a state dict comes from, by its names.

    Returns:
        A name of :data:`SOURCES`.

    Raises:
        UserError: If no source has such names.
    """
    for name, source in SOURCES.items():
        if _prefixes(state_dict, source):
            return name
    for pattern, what, remedy in _OTHERS:
        if any(re.search(pattern, name) for name in state_dict):
            raise UserError(f'this is {what}, not a ConvNeXt under the name of another project: {remedy}')
    titles = dict.fromkeys(source.title for source in SOURCES.values())
    raise UserError(
        f'these are not the names of {", ".join(titles)}: {", ".join(list(state_dict)[:4])}, ... A checkpoint of this '
        'project needs no conversion'
    )


def prefix_of(state_dict: Mapping[str, Tensor], source: str) -> str:
    """What stands in front of the network's names in a checkpoint, such as ``'visual.trunk.'`` in OpenCLIP's.

    Raises:
        UserError: If there are several networks.
    """
    prefixes = sorted(_prefixes(state_dict, SOURCES[source]))
    if len(prefixes) > 1:
        raise UserError(
            f'there are {len(prefixes)} networks in it, whose names begin with {", ".join(map(repr, prefixes))}: save '
            'the weights of one of them'
        )
    return prefixes[0] if prefixes else ''


def from_source(state_dict: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """The names of a public checkpoint, and ours.

    Returns:
        From each name to ours, which begin with ``backbone.`` or ``head.``. What is not of the network keeps its name.

    Raises:
        UserError: If the source is unknown, or there are several networks in it.
    """
    if source not in SOURCES:
        raise UserError(f'unknown source {source!r}; known: {", ".join(SOURCES)}')
    prefix = prefix_of(state_dict, source)
    rules = (*SOURCES[source].rules, (r'^(downsample_layers|stages|norm\d)\.', r'backbone.\1.'))
    return {name: _rename(name.removeprefix(prefix), rules) for name in state_dict}


def fit_shape(value: Tensor, own: Tensor) -> Tensor:
    """A published tensor in the shape of ours, if they differ in dimensions of one alone.

    Others write 1 x 1 convolutions for linear layers, and ``(1, 1, 1, C)`` or ``(C, 1, 1)`` for ``(C,)``.
    """
    shapes = [[size for size in tensor.shape if size != 1] for tensor in (value, own)]
    return value.reshape(own.shape) if shapes[0] == shapes[1] else value


class Layout(NamedTuple):
    """What the shapes of a checkpoint say of its network.

    Attributes:
        depths: Blocks of each stage.
        channels: Width of each stage.
        use_grn: Whether the blocks have a global response norm: ConvNeXt V2.
        layer_scale: Whether they have a layer scale.
        patch_stem: Whether the stem is one convolution on patches, and no more.
        shifted_norms: Whether the norms have a bias.
    """

    depths: tuple[int, ...]
    channels: tuple[int, ...]
    use_grn: bool
    layer_scale: bool
    patch_stem: bool
    shifted_norms: bool


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """Read the layout from a state dict with our names, those of a backbone.

    Raises:
        UserError: If a stage lacks a layer that says how wide it is.
    """
    blocks = {
        (int(found[1]), int(found[2])) for found in map(re.compile(r'stages\.(\d+)\.(\d+)\.').match, state) if found
    }
    stages = sorted({stage for stage, _ in blocks})
    widths = {stage: f'stages.{stage}.0.pointwise_conv2.weight' for stage in stages}
    if lacking := [name for name in widths.values() if name not in state]:
        raise UserError(f'the file is incomplete: it has no {lacking[0]}')
    stem = {name: state[name].dim() for name in state if name.startswith('downsample_layers.0.') and 'weight' in name}
    return Layout(
        depths=tuple(sum(stage == each for each, _ in blocks) for stage in stages),
        channels=tuple(len(state[name]) for name in widths.values()),
        use_grn=any('.grn.' in name for name in state),
        layer_scale=any(
            name.startswith('stages.') and name.count('.') == 3 and name.endswith('.gamma') for name in state
        ),
        patch_stem=stem == {'downsample_layers.0.0.weight': 4, 'downsample_layers.0.1.weight': 1},
        shifted_norms='stages.0.0.norm.bias' in state,
    )


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
