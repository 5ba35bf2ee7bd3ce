"""Tiling and launch of the kernel that ends a block's mixer in inference."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import norm_kernels
from .launch import current, kept, layout, power_of_two, start

__all__ = ['Launch', 'kernel_key', 'mixed_norm', 'pixel_step', 'pixels_at_a_time', 'takes']

_MOST_PIXELS = 8  # of a program: more spill registers
_NUMBERS = 4096  # that a program of more than one pixel holds at most
_Norm = tuple[Sequence[Tensor], float]


def takes(large: Tensor, small: Tensor | None, x: Tensor, norms: Sequence[_Norm], norm: _Norm) -> bool:
    """Whether the kernel reads these maps and parameters where they are."""
    sizes = [large.shape[1:2]] * len(norms) + [x.shape[1:2]]
    return all(each is None or pixel_step(each) is not None for each in (large, small, x)) and all(
        tensor.shape == size and tensor.is_contiguous()
        for (tensors, _), size in zip((*norms, norm), sizes, strict=True)
        for tensor in tensors
    )


def pixel_step(x: Tensor) -> int | None:
    """How far the pixels of ``(N, C, H, W)`` lie apart in memory, all one after the other; ``None`` if that varies.

    Their channels must lie next to each other. A slice of the channels may be read where it is.
    """
    images, channels, rows, columns = x.shape
    step = x.stride(3 if columns > 1 else 2 if rows > 1 else 0)
    wanted = rows * columns * step, 1, columns * step, step
    is_regular = all(a == b or size == 1 for a, b, size in zip(x.stride(), wanted, x.shape, strict=True))
    return step if is_regular and (step >= channels or images * rows * columns == 1) else None


def kernel_key(
    large: Tensor, small: Tensor | None, x: Tensor, norms: Sequence[_Norm], norm: _Norm, dtype: torch.dtype
) -> Hashable:
    """What tells compiled kernels apart, beside the device."""
    maps = (large, x) if small is None else (large, small, x)
    of_maps = [(each.dtype, each.shape[1], pixel_step(each), each.data_ptr() % 16) for each in maps]
    is_odd = x.shape[0] * x.shape[2] * x.shape[3] % 2
    return *of_maps, is_odd, dtype, *(tensor.dtype for tensors, _ in (*norms, norm) for tensor in tensors)


def mixed_norm(
    large: Tensor, small: Tensor | None, x: Tensor, norms: Sequence[_Norm], norm: _Norm, dtype: torch.dtype
) -> Tensor:
    """As :func:`mmpelk.ops.mixed_norm.mixed_norm`, by the kernel, of what it :func:`takes`."""
    out = x.new_empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=dtype)
    if out.numel() == 0:
        return out
    parameters = [tensor for tensors, _ in norms for tensor in tensors]
    parameters += [out] * (8 - len(parameters))  # in the place of what is not read
    tensors = large, large if small is None else small, x, out, *parameters, *norm[0]
    epsilons = *(eps for _, eps in norms), *[0.0] * (2 - len(norms)), norm[1]
    key = 'mixed_norm', x.device, epsilons, *map(layout, tensors[:3]), *[tensor.dtype for tensor in tensors], len(norms)
    with current(x.device):
        kept(key, lambda: _launch(tensors, epsilons, len(norms)))(*tensors)
    return out


def _launch(tensors: Sequence[Tensor], epsilons: Sequence[float], branches: int) -> 'Launch':
    large, small, x = tensors[:3]
    images, channels, height, width = x.shape
    pixels = images * height * width
    two = pixels % 2 == 0 and all(number % 2 for number in (channels, *(pixel_step(each) or 0 for each in tensors[:3])))
    rows, block = pixels_at_a_time(channels * (1 + two))
    return Launch(
        norm_kernels.mixed_norm_kernel,
        (math.ceil(pixels / (1 + two) / rows),),
        (pixels, *epsilons),
        MIXED=large.shape[1],
        CHANNELS=channels,
        BRANCHES=branches,
        LARGE_STEP=pixel_step(large),
        SMALL_STEP=pixel_step(small),
        X_STEP=pixel_step(x),
        ROWS=rows,
        BLOCK=block,
        TWO=int(two),
    )


def pixels_at_a_time(channels: int) -> tuple[int, int]:
    """Pixels of a program that holds all channels of each, and the power of two that holds the channels."""
    block = power_of_two(channels)
    return max(1, min(_MOST_PIXELS, _NUMBERS // block)), block


class Launch:
    """A kernel's launch for maps of one shape and layout.

    Args:
        kernel: The kernel.
        programs: How many.
        numbers: What it takes after its tensors.
        options: What it is compiled for, 4 warps if they name no other number.
    """

    def __init__(self, kernel: Any, programs: tuple[int, ...], numbers: Sequence[float], **options: Any) -> None:
        self._kernel, self._programs, self._numbers = kernel, programs, numbers
        self._options = dict(num_warps=4) | options
        self._run: Callable[..., Any] | None = None

    def __call__(self, *tensors: Tensor) -> None:
        """Of tensors of the same layouts and dtypes at every call."""
        if self._run is None:
            self._run = start(self._kernel, self._programs, tensors, self._numbers, **self._options)
        else:
            self._run(*tensors)
