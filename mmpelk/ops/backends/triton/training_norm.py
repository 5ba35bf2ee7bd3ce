"""Tiling and launches of the kernels for the norms of a block in training."""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from . import training_norm_kernels
from .launch import current, kept, layout, power_of_two
from .norm import Launch, pixel_step

__all__ = ['PROGRAMS', 'backward', 'forward', 'kernel_key', 'takes']

PROGRAMS = 512
"""Sums over pixels are split over about this many programs: several for each multiprocessor of a large GPU."""
_TOGETHER = 2  # numbers that are moved at a time, where their count allows: 4 bytes at least
_ROWS, _COLUMNS = 16, 64  # of a program's tile: more rows take registers that a second program wants
_IMAGES, _PLACES = 4, 256  # of a tile that is of the same places in every image
_ENTRIES, _CHANNELS = 32, 16  # of moments that are added up at a time
_SUMS = 256, 4  # and of the sums of the backward
_NUMBERS = 1024  # that a program holds of whole pixels, or all of one pixel
_A_WARP = 256, 128  # of these numbers, forward and backward: more take registers that the sums need
_MOST_NUMBERS = 2048  # for which there are warps enough
_MOST_PIXELS = 16  # of a row, one after the other
_LEAST_ROWS = 8  # that a program adds up


def takes(x: Tensor, parameters: Sequence[Tensor], running: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the kernels read this map and update these running statistics where they are.

    Args:
        x: The block's map ``(N, C, H, W)``: without gaps in channels last.
        parameters: Weight and bias of both batch norms, then of the layer norm.
        running: Mean, variance and number of batches of both batch norms.
        dtype: Of both kernels' outputs.
    """
    of_mixed = [*parameters[:4], *(tensor for tensor in running if tensor.dim())]
    return (
        pixel_step(x) == x.shape[1] <= _MOST_NUMBERS
        and all(tensor.dtype in (torch.float32, dtype) for tensor in (*parameters, *of_mixed))
        and all(tensor.dtype == parameters[0].dtype for tensor in parameters)
        and all(tensor.shape == parameters[0].shape and tensor.is_contiguous() for tensor in of_mixed)
        and all(tensor.shape == x.shape[1:2] and tensor.is_contiguous() for tensor in parameters[4:])
        and all(tensor.dtype == torch.int64 for tensor in running[2::3])
        and all(tensor.device == x.device for tensor in (*parameters, *running))
    )


def kernel_key(x: Tensor, parameters: Sequence[Tensor], *others: Hashable) -> Hashable:
    """What tells compiled kernels apart, beside the device.

    Args:
        x: The block's map.
        parameters: As :func:`takes` takes them.
        others: Dtypes of the other tensors, and the alignment of the gradient.
    """
    images, channels, height, width = x.shape
    like = x.dtype, channels, len(parameters[0]), height * width % 2, images * height * width % 2, x.data_ptr() % 16
    return *like, parameters[0].dtype, *others


def forward(
    maps: Sequence[Tensor],
    parameters: Sequence[Tensor],
    running: Sequence[Tensor],
    momenta: Sequence[float],
    epsilons: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Of what the kernels :func:`takes`, and of outputs of both kernels without gaps in channels last.

    Args:
        maps: The outputs of both kernels, ``(N, g, H, W)``, and the block's map.
        parameters: As :func:`takes` takes them.
        running: The same; they are updated.
        momenta: Of both batch norms.
        epsilons: Of both, and of the layer norm.
        dtype: Of the result.

    Returns:
        The map ``(N, H, W, C)``, and statistics for :func:`backward`.
    """
    large, _, x = maps
    numbers = momenta[0], epsilons[0], momenta[1], epsilons[1], epsilons[2]
    key = 'norms', x.device, dtype, *map(layout, maps), *[t.dtype for t in (*maps, *parameters, *running)], numbers
    with current(x.device):
        out = x.new_empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=dtype)
        stats = x.new_empty((6, large.shape[1]), dtype=torch.float32)
        kept(key, lambda: _Forward(maps, numbers))(maps, parameters, running, stats, out)
    return out, stats


def backward(
    grad: Tensor, maps: Sequence[Tensor], stats: Tensor, parameters: Sequence[Tensor], eps: float
) -> tuple[Tensor, ...]:
    """Gradients from that of the result, ``(N, H, W, C)`` without gaps.

    Args:
        grad: The gradient.
        maps: As :func:`forward` took them.
        stats: From :func:`forward`.
        parameters: As :func:`forward` took them.
        eps: Of the layer norm.

    Returns:
        That of the block's map, of whose mixed channels nothing is written; that of their sum, in float32; those of
        both kernels' outputs; the sum over the images of the large one's, ``(g, H, W)``; and those of the parameters.
    """
    large, _, x = maps
    key = 'norms_backward', grad.device, *map(layout, (grad, *maps)), *[t.dtype for t in (grad, *maps, *parameters)]
    images, mixed, height, width = large.shape
    with current(grad.device):
        of_x = grad.new_empty(grad.shape, dtype=x.dtype)
        of_mixed = grad.new_empty((images, height, width, mixed), dtype=torch.float32)
        of_large, of_small = (torch.empty_like(of_mixed, dtype=large.dtype) for _ in range(2))
        of_term = of_large.new_empty((height, width, mixed))
        of_parameters = [torch.empty_like(parameter) for parameter in parameters]
        of_maps = of_x, of_mixed, of_large, of_small, of_term
        kept((*key, eps), lambda: _Backward(maps, eps))(grad, maps, stats, parameters, of_maps, of_parameters)
    return *(each.movedim(-1, -3) for each in of_maps), *of_parameters


class _Rows:
    """The mixed channels in rows, and how sums over the pixels are split over programs and added up.

    Attributes:
        pixels_a_row: Pixels whose channels make a row.
    """

    def __init__(self, large: Tensor) -> None:
        images, self.mixed, height, width = large.shape
        self.pixels = images * height * width
        numbers = self.pixels * self.mixed
        align = math.gcd(_TOGETHER, numbers)
        self.pixels_a_row = align // math.gcd(align, self.mixed)
        self.length = self.pixels_a_row * self.mixed
        tiles, blocks = math.ceil(self.pixels / self.pixels_a_row / _ROWS), math.ceil(self.length / _COLUMNS)
        self.steps = math.ceil(tiles / max(1, PROGRAMS // blocks))
        self.runs = math.ceil(tiles / self.steps)
        self.numbers = numbers, self.length, self.steps
        self.programs = self.runs, blocks
        self.tile = dict(ALIGN=align, ROWS=_ROWS, BLOCK=_COLUMNS)


class _Pixels:
    """Whole pixels in rows.

    Attributes:
        rows: How many.
        length: Numbers of a row.
        numbers: What the kernels take of them.
        tile: What they are compiled for.
        warps: Of a program, forward and backward.
    """

    def __init__(self, x: Tensor, mixed: int) -> None:
        images, channels, height, width = x.shape
        pixels = images * height * width
        fits = pixels * channels % _TOGETHER == 0 == (channels - mixed) % _TOGETHER
        align = _TOGETHER if fits else 1
        if power_of_two(align // math.gcd(align, channels) * channels) > _MOST_NUMBERS:
            align = 1
        together = align // math.gcd(align, channels)
        block = max(_NUMBERS, power_of_two(together * channels))
        pixels_a_row = min(_MOST_PIXELS, block // channels) // together * together
        self.rows, self.length = math.ceil(pixels / pixels_a_row), pixels_a_row * channels
        self.numbers = pixels * channels, self.length, mixed, channels, pixels_a_row
        self.tile = dict(ALIGN=align, BLOCK=block)
        self.warps = [block // numbers for numbers in _A_WARP]


class _Forward:
    """The launches for maps of one shape and layout."""

    def __init__(self, maps: Sequence[Tensor], numbers: Sequence[float]) -> None:
        (large, _, x), kernels = maps, training_norm_kernels
        rows, pixels = _Rows(large), _Pixels(x, large.shape[1])
        self._size = rows.runs, 4, rows.length
        self._moments = Launch(kernels.moments_kernel, rows.programs, rows.numbers, **rows.tile)
        settings = *numbers[:4], rows.pixels, rows.runs, rows.steps * _ROWS, rows.mixed, rows.pixels_a_row
        programs = (math.ceil(rows.mixed / _CHANNELS),)
        self._statistics = Launch(kernels.statistics_kernel, programs, settings, ENTRIES=_ENTRIES, BLOCK=_CHANNELS)
        self._apply = Launch(
            kernels.apply_kernel,
            (pixels.rows,),
            (numbers[4], *pixels.numbers),
            **pixels.tile,
            num_warps=pixels.warps[0],
        )

    def __call__(
        self,
        maps: Sequence[Tensor],
        parameters: Sequence[Tensor],
        running: Sequence[Tensor],
        stats: Tensor,
        out: Tensor,
    ) -> None:
        moments = stats.new_empty(self._size, dtype=torch.float64)
        self._moments(*maps[:2], moments)
        self._statistics(moments, stats, *running)
        self._apply(*maps, stats, *parameters, out)


class _Backward:
    """The launches for gradients of one shape and layout."""

    def __init__(self, maps: Sequence[Tensor], eps: float) -> None:
        (large, _, x), kernels = maps, training_norm_kernels
        images, mixed, height, width = large.shape
        pixels, channels = _Pixels(x, mixed), x.shape[1]
        steps = max(_LEAST_ROWS, math.ceil(pixels.rows / PROGRAMS))
        programs = math.ceil(pixels.rows / steps)
        self._size = programs, 5, pixels.length
        numbers = eps, *pixels.numbers, steps
        self._norm_grads = Launch(
            kernels.norm_grads_kernel, (programs,), numbers, **pixels.tile, num_warps=pixels.warps[1], maxnreg=128
        )
        entries, together = _SUMS
        self._sums = Launch(
            kernels.sums_kernel,
            (math.ceil(channels / together),),
            (images * height * width, programs, pixels.length, mixed, channels),
            ENTRIES=entries,
            BLOCK=together,
        )
        length = height * width * mixed
        self._grads = Launch(
            kernels.grads_kernel,
            (math.ceil(length / _PLACES),),
            (images, length, mixed),
            ALIGN=math.gcd(_TOGETHER, length),
            ROWS=_IMAGES,
            BLOCK=_PLACES,
        )

    def __call__(
        self,
        grad: Tensor,
        maps: Sequence[Tensor],
        stats: Tensor,
        parameters: Sequence[Tensor],
        of_maps: Sequence[Tensor],
        of_parameters: Sequence[Tensor],
    ) -> None:
        sums = stats.new_empty(self._size, dtype=torch.float64)
        factors = stats.new_empty((3, maps[0].shape[1]))
        of_x, of_mixed, *of_branches = of_maps
        self._norm_grads(grad, *maps, stats, *parameters[:5], of_x, of_mixed, sums)
        self._sums(sums, stats, factors, *of_parameters)
        self._grads(of_mixed, *maps[:2], stats, factors, *parameters[:4:2], *of_branches)
