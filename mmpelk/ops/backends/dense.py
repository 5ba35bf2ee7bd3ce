"""The dense backend: expand the kernel and convolve, as the paper computes it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ..sharing_grid import expand_kernel, reduce_kernel

__all__ = ['NCHW_UP_TO', 'forward', 'weight_grad']

NCHW_UP_TO = 13
"""Largest kernel that torch convolves fast on a CPU in NCHW; larger ones run far faster channels last."""


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int]) -> Tensor:
    """``F.conv2d`` with the expanded kernel. Shapes as in :func:`mmpelk.ops.peripheral_conv2d`."""
    if x.device.type == 'cpu' and x.dtype == torch.float32 and sum(grid) > NCHW_UP_TO:
        x = x.contiguous(memory_format=torch.channels_last)
    channel_bias = bias if bias is not None and bias.dim() == 1 else None
    out = F.conv2d(x, expand_kernel(weight, grid), channel_bias, padding=sum(grid) // 2, groups=x.shape[1])
    return out if bias is None or bias.dim() == 1 else out + bias


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``."""
    channels, kernel_size = x.shape[1], sum(grid)
    dense = conv2d_weight(
        x, (channels, 1, kernel_size, kernel_size), grad_out, padding=kernel_size // 2, groups=channels
    )
    return reduce_kernel(dense, grid)
