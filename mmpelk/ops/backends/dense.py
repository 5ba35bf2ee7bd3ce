"""The dense backend: expand the kernel and convolve, as the paper computes it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ..layout import is_channels_last
from ..sharing_grid import expand_kernel, reduce_kernel

__all__ = ['NCHW_UP_TO', 'forward', 'reach', 'weight_grad']

NCHW_UP_TO = 13
"""Largest kernel that torch convolves fast on a CPU in NCHW; larger ones run far faster channels last."""

_BLOCK = 16  # channels that torch's depthwise kernels take at a time; a rest costs more than filling up


def reach(kernel_size: int, extent: int) -> int:
    """Taps on either side of the middle that read inside a map of ``extent`` for some output."""
    return min(kernel_size // 2, max(extent - 1, 0))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], out: Tensor | None = None) -> Tensor:
    """``F.conv2d`` with the expanded kernel, cut to what the map's size can reach.

    Shapes as in :func:`mmpelk.ops.peripheral_conv2d`.
    """
    kernel_size, channels = sum(grid), x.shape[1]
    padding = reach(kernel_size, x.shape[-2]), reach(kernel_size, x.shape[-1])
    kernel = _crop(expand_kernel(weight, grid), padding)
    channel_bias = bias if bias is not None and bias.dim() == 1 else None
    if x.device.type == 'cpu' and x.dtype == torch.float32 and (is_channels_last(x) or kernel_size > NCHW_UP_TO):
        fill = -channels % _BLOCK if channels > _BLOCK else 0
        x = F.pad(x, (0, 0, 0, 0, 0, fill)) if fill else x
        x = x.contiguous(memory_format=torch.channels_last)
        kernel = F.pad(kernel, (0, 0, 0, 0, 0, 0, 0, fill))
        channel_bias = None if channel_bias is None else F.pad(channel_bias, (0, fill))
    result = F.conv2d(x, kernel, channel_bias, padding=padding, groups=x.shape[1])[:, :channels]
    if bias is not None and bias.dim() == 3:
        return torch.add(result, bias, out=out) if out is not None else result + bias
    return result if out is None else out.copy_(result)


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``."""
    channels, kernel_size = x.shape[1], sum(grid)
    rows, columns = (reach(kernel_size, extent) for extent in x.shape[-2:])
    size = (channels, 1, 2 * rows + 1, 2 * columns + 1)
    dense = conv2d_weight(x, size, grad_out, padding=(rows, columns), groups=channels)
    margins = [margin for taken in (columns, rows) for margin in [kernel_size // 2 - taken] * 2]
    return reduce_kernel(F.pad(dense, margins), grid)


def _crop(kernel: Tensor, taken: tuple[int, int]) -> Tensor:
    rows, columns = (
        slice(size // 2 - side, size // 2 + side + 1) for size, side in zip(kernel.shape[-2:], taken, strict=True)
    )
    return kernel[..., rows, columns]
