"""Architectures of PeLK by name: the paper's, and ConvNeXt's with peripheral kernels."""

from collections.abc import Sequence
from typing import Any

# ConvNeXt's widths times 1.3, cut to integers as SLaK does.
_TINY: dict[str, Any] = dict(
    depths=(3, 3, 9, 3), channels=(124, 249, 499, 998), kernel_sizes=(51, 49, 47, 13), center_size=5
)
_SMALL = _TINY | dict(depths=(3, 3, 27, 3))
_BASE = _SMALL | dict(channels=(166, 332, 665, 1331))
_101 = dict(kernel_sizes=(101, 69, 67, 13), center_size=7)
_151 = dict(kernel_sizes=(151, 89, 87, 13), center_size=7)
# ConvNeXt's network, whose 7 x 7 kernels fit the centre of these, with its one biased kernel per block: see
# :mod:`mmpelk.models.weights.inflation`.
_CONVNEXT: dict[str, Any] = dict(
    kernel_sizes=(51, 49, 47, 13),
    center_size=7,
    conv_ratio=1.0,
    small_kernel_size=0,
    positional_embedding=None,
    branch_norms=False,
)
# Depths and first width of its sizes, of ConvNeXt V2's as well.
_CONVNEXT_SIZES: dict[str, tuple[tuple[int, ...], int]] = {
    'tiny': ((3, 3, 9, 3), 96),
    'small': ((3, 3, 27, 3), 96),
    'base': ((3, 3, 27, 3), 128),
    'large': ((3, 3, 27, 3), 192),
    'xlarge': ((3, 3, 27, 3), 256),
    'huge': ((3, 3, 27, 3), 352),
    'nano': ((2, 2, 8, 2), 80),
    'pico': ((2, 2, 6, 2), 64),
    'femto': ((2, 2, 6, 2), 48),
    'atto': ((2, 2, 6, 2), 40),
}
# What an architecture leaves open: the paper's block.
_BLOCK: dict[str, Any] = dict(
    conv_ratio=3 / 8,
    small_kernel_size=5,
    positional_embedding='in_bounds',
    branch_norms=True,
    center_size=5,
    use_grn=False,
)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    'tiny': _TINY,
    'small': _SMALL,
    'base': _BASE,
    'tiny-101': _TINY | _101,
    'base-101': _BASE | _101,
    'tiny-151': _TINY | _151,
    **{
        f'convnext-{size}': _CONVNEXT | dict(depths=depths, channels=tuple(width * 2**stage for stage in range(4)))
        for size, (depths, width) in _CONVNEXT_SIZES.items()
    },
}


def resolve_arch(arch: str | dict, **overrides: Any) -> dict[str, Any]:
    """The architecture with all its keys, the overrides that are not ``None`` laid over it."""
    if isinstance(arch, str) and arch not in ARCHITECTURES:
        raise ValueError(f'unknown arch {arch!r}; known: {", ".join(ARCHITECTURES)}, inflated')
    overrides = {key: value for key, value in overrides.items() if value is not None}
    given = (ARCHITECTURES[arch] if isinstance(arch, str) else dict(arch)) | overrides
    required, optional = {'depths', 'channels', 'kernel_sizes'}, {'sharing_grids', *_BLOCK}
    if not required <= set(given) <= required | optional:
        raise ValueError(
            f'an arch dict has the keys {sorted(required)} and may have {sorted(optional)}; got {sorted(given)}'
        )
    per_stage = set(given) - set(_BLOCK)
    for key in per_stage:
        if not isinstance(given[key], Sequence) or isinstance(given[key], str):
            raise ValueError(f'arch has {key}={given[key]!r}; give a sequence with a value per stage')
    stages = len(given['depths'])
    for key in per_stage - {'depths'}:
        if len(given[key]) != stages:
            raise ValueError(f'arch has {stages} depths but {len(given[key])} {key}; give one per stage')
    # The centre of a named architecture is cut to kernels that replace its own.
    is_users = 'center_size' in overrides or not isinstance(arch, str)
    if is_users and given.get('center_size', 1) > max(given['kernel_sizes']):
        raise ValueError(
            f'center_size {given["center_size"]} is larger than every kernel of {tuple(given["kernel_sizes"])}; '
            'give a centre of at most the kernel'
        )
    return _BLOCK | dict(sharing_grids=(None,) * stages) | given
