"""The dense backend: expand the kernel and convolve, as the paper computes it."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ..layout import is_channels_last
from ..sharing_grid import expand_kernel, reach, reachable_positions, reduce_kernel

NCHW_UP_TO = 13
"""Largest kernel that torch convolves fast on a CPU in NCHW; larger ones run far faster channels last."""

_BLOCK = 16  # channels that torch's depthwise kernels take at a time; a rest costs more than filling up


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: Sequence[int],
    out: Tensor | None = None,
    kernel: Tensor | None = None,
) -> Tensor:
    """``F.conv2d`` with the expanded kernel, cut to what the map's size can reach.

    Shapes as in :func:`mmpelk.ops.peripheral_conv2d`; ``kernel`` is what :func:`prepare` made of ``weight``.
    """
    channels, fill = x.shape[1], _fill(x, grid)
    kernel = _expand(weight, grid, x) if kernel is None else kernel
    channel_bias = bias if bias is not None and bias.dim() == 1 else None
    if fill is not None:
        x = F.pad(x, (0, 0, 0, 0, 0, fill)) if fill else x
        x = x.contiguous(memory_format=torch.channels_last)
        channel_bias = None if channel_bias is None else F.pad(channel_bias, (0, fill))
    padding = (kernel.shape[-2] // 2, kernel.shape[-1] // 2)
    result = F.conv2d(x, kernel, channel_bias, padding=padding, groups=x.shape[1])[:, :channels]
    if bias is not None and bias.dim() == 3:
        return torch.add(result, bias, out=out) if out is not None else result + bias
    return result if out is None else out.copy_(result)


def prepare(weight: Tensor, grid: Sequence[int], x: Tensor) -> Tensor:
    """The kernel that :func:`forward` convolves maps of the size of ``x`` with: of use while ``weight`` stays."""
    return _expand(weight, grid, x).contiguous()


def _expand(weight: Tensor, grid: Sequence[int], x: Tensor) -> Tensor:
    """The positions of the expanded kernel that reach a map, with channels filled up; not contiguous on a CPU."""
    rows, columns = (reachable_positions(sum(grid), extent) for extent in x.shape[-2:])
    if weight.device.type != 'cpu':
        return expand_kernel(weight, grid)[..., rows, columns]
    # One gather of whole rows of channels: index_select along an axis that is not the first takes twenty times as long.
    taps = F.pad(weight.flatten(1).mT, (0, _fill(x, grid) or 0)).index_select(0, _regions(tuple(grid), rows, columns))
    return taps.view(rows.stop - rows.start, columns.stop - columns.start, -1).permute(2, 0, 1).unsqueeze(1)


def _regions(grid: tuple[int, ...], rows: slice, columns: slice) -> Tensor:
    """Index in the flat ``(k', k')`` weight of each of the kernel's positions, row by row."""
    return _cached_regions(grid, rows.start, rows.stop, columns.start, columns.stop)


@lru_cache(maxsize=256)
def _cached_regions(grid: tuple[int, ...], top: int, bottom: int, left: int, right: int) -> Tensor:
    with torch.inference_mode(False):  # it outlives the call
        index = torch.arange(len(grid) ** 2).view(len(grid), len(grid))
        return expand_kernel(index, grid)[top:bottom, left:right].flatten()


def _fill(x: Tensor, grid: Sequence[int]) -> int | None:
    """Channels to add where torch's fast kernels for channels last are used; ``None`` where they are not."""
    in_float32_on_cpu = x.device.type == 'cpu' and x.dtype == torch.float32
    if not in_float32_on_cpu or not (is_channels_last(x) or sum(grid) > NCHW_UP_TO):
        return None
    return -x.shape[1] % _BLOCK if x.shape[1] > _BLOCK else 0


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``."""
    channels, kernel_size = x.shape[1], sum(grid)
    rows, columns = (reach(kernel_size, extent) for extent in x.shape[-2:])
    size = (channels, 1, 2 * rows + 1, 2 * columns + 1)
    dense = conv2d_weight(x, size, grad_out, padding=(rows, columns), groups=channels)
    margins = [margin for taken in (columns, rows) for margin in [kernel_size // 2 - taken] * 2]
    return reduce_kernel(F.pad(dense, margins), grid)
