"""The memory format of a result: that of the input, as ``F.conv2d`` keeps it."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of ``(N, C, H, W)`` lie next to each other in memory; also those of a slice of channels."""
    _, channels, _, columns = x.stride()
    return x.shape[1] > 1 and channels == 1 and columns >= x.shape[1] and x.stride(2) >= columns


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def dense(x: Tensor, like: Tensor) -> Tensor:
    """``x``, or a copy, without gaps and in the memory format of ``like``."""
    return x.contiguous(memory_format=_format(like))


def empty_as(x: Tensor) -> Tensor:
    """An uninitialised map of the size and memory format of ``x``, dense."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x)  # keeps the strides, in a quarter of the time
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_format(x))
