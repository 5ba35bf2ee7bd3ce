"""Tiling and launches of the kernels for the norms of a mixer's branches in training."""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from . import training_norm_kernels
from .launch import current, kept, layout
from .norm import Launch, pixel_step

__all__ = ['PROGRAMS', 'backward', 'forward', 'kernel_key', 'takes']

PROGRAMS = 512
"""Sums over pixels are split over about this many programs: several for each multiprocessor of a large GPU."""
_ROWS, _COLUMNS = 16, 64  # of a program's tile: more rows take registers that a second program wants
_TOGETHER = 2  # numbers that are moved at a time, where their count allows: 4 bytes at least
_ENTRIES, _CHANNELS = 32, 16  # of sums that are added up at a time


def takes(maps: Sequence[Tensor], parameters: Sequence[Tensor], running: Sequence[Tensor]) -> bool:
    """Whether the kernels read these maps and update these running statistics where they are.

    Args:
        maps: Outputs of both kernels, ``(N, g, H, W)``, without gaps in channels last, and the map ``(N, C, H, W)``
            with the other channels.
        parameters: Weight and bias of both norms.
        running: Mean, variance and number of batches of both.
    """
    large, small, x = maps
    vectors = [*parameters, *(tensor for tensor in running if tensor.dim())]
    return (
        all(pixel_step(each) == each.shape[1] for each in (large, small))
        and pixel_step(x) is not None
        and large.dtype == small.dtype
        and all(tensor.dtype in (torch.float32, large.dtype) for tensor in vectors)
        and all(tensor.dtype == parameters[0].dtype for tensor in parameters)
        and all(tensor.shape == large.shape[1:2] and tensor.is_contiguous() for tensor in vectors)
        and all(tensor.dtype == torch.int64 for tensor in running[2::3])
        and all(tensor.device == large.device for tensor in (*maps, *parameters, *running))
    )


def kernel_key(maps: Sequence[Tensor], *others: Tensor | torch.dtype) -> Hashable:
    """What tells compiled kernels apart, beside the device."""
    of_maps = [(each.dtype, each.shape[1], pixel_step(each), each.data_ptr() % 16) for each in maps]
    return *of_maps, maps[0].numel() % 2, *(each.dtype if isinstance(each, Tensor) else each for each in others)


def forward(
    maps: Sequence[Tensor],
    parameters: Sequence[Tensor],
    running: Sequence[Tensor],
    momenta: Sequence[float],
    epsilons: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Of what the kernels :func:`takes`; updates ``running``.

    Returns:
        The map ``(N, C, H, W)`` of ``dtype``, and statistics for :func:`backward`.
    """
    large, _, x = maps
    numbers = momenta[0], epsilons[0], momenta[1], epsilons[1]
    key = 'norms', x.device, dtype, *map(layout, maps), *[t.dtype for t in (*maps, *parameters, *running)], numbers
    with current(x.device):
        out = x.new_empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=dtype)
        stats = x.new_empty((6, large.shape[1]), dtype=torch.float32)
        kept(key, lambda: _Forward(maps, numbers))(maps, parameters, running, stats, out)
    return out.permute(0, 3, 1, 2), stats


def backward(
    grad: Tensor, large: Tensor, small: Tensor, stats: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients from that of the mixed channels.

    Returns:
        Those of both maps, and of weight and bias of their norms.
    """
    maps = grad, large, small
    key = 'norms_backward', grad.device, *map(layout, maps), *[tensor.dtype for tensor in (*maps, *weights)]
    images, mixed, height, width = large.shape
    with current(grad.device):
        of_maps = [each.new_empty(images, height, width, mixed) for each in (large, small)]
        of_parameters = [torch.empty_like(weights[0]) for _ in range(4)]
        kept(key, lambda: _Backward(maps))(maps, stats, weights, of_maps, of_parameters)
    of_large, of_small = (each.permute(0, 3, 1, 2) for each in of_maps)
    of_weight, of_bias, of_small_weight, of_small_bias = of_parameters
    return of_large, of_small, of_weight, of_bias, of_small_weight, of_small_bias


class _Rows:
    """The mixed channels in rows, and how sums over the pixels are split over programs and added up.

    Attributes:
        align: How many numbers are moved at a time.
        pixels_a_row: Pixels whose channels make a row.
    """

    def __init__(self, large: Tensor) -> None:
        images, self.mixed, height, width = large.shape
        self.pixels = images * height * width
        numbers = self.pixels * self.mixed
        self.align = math.gcd(_TOGETHER, numbers)
        self.pixels_a_row = self.align // math.gcd(self.align, self.mixed)
        self.length = self.pixels_a_row * self.mixed
        self.numbers = numbers, self.length
        self.tiles = math.ceil(self.pixels / self.pixels_a_row / _ROWS)
        self.blocks = math.ceil(self.length / _COLUMNS)
        self.steps = math.ceil(self.tiles / max(1, PROGRAMS // self.blocks))
        self.run = self.steps * _ROWS
        self.runs = math.ceil(self.tiles / self.steps)
        self.programs = self.runs, self.blocks
        self.tile = dict(ALIGN=self.align, ROWS=_ROWS, BLOCK=_COLUMNS)
        self.added = dict(ENTRIES=_ENTRIES, BLOCK=_CHANNELS)
        self.adding = (math.ceil(self.mixed / _CHANNELS),)


class _Forward:
    """The launches for maps of one shape and layout."""

    def __init__(self, maps: Sequence[Tensor], numbers: Sequence[float]) -> None:
        (large, _, x), kernels = maps, training_norm_kernels
        rows, channels, step = _Rows(large), x.shape[1], pixel_step(x) or 1
        self._size = rows.runs, 4, rows.length
        self._moments = Launch(kernels.moments_kernel, rows.programs, (*rows.numbers, rows.steps), **rows.tile)
        settings = *numbers, rows.pixels, rows.runs, rows.run, rows.mixed, rows.pixels_a_row
        self._statistics = Launch(kernels.statistics_kernel, rows.adding, settings, **rows.added)
        numbers_fit = rows.align > 1 and rows.pixels * channels % _TOGETHER == 0
        align = _TOGETHER if numbers_fit and step == channels and (channels - rows.mixed) % _TOGETHER == 0 else 1
        pixels_a_row = align // math.gcd(align, channels)
        length = pixels_a_row * channels
        self._apply = Launch(
            kernels.apply_kernel,
            (math.ceil(rows.pixels / pixels_a_row / _ROWS), math.ceil(length / _COLUMNS)),
            (rows.pixels * channels, length, rows.mixed, channels, step),
            **rows.tile | dict(ALIGN=align),
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

    def __init__(self, maps: Sequence[Tensor]) -> None:
        (grad, large, _), kernels = maps, training_norm_kernels
        rows, step = _Rows(large), pixel_step(grad) or 1
        self._size = rows.runs, 3, rows.length
        options = rows.tile | dict(STEP_ALIGN=rows.align if (step - rows.mixed) % _TOGETHER == 0 else 1)
        numbers = *rows.numbers, rows.mixed, step
        self._products = Launch(kernels.products_kernel, rows.programs, (*numbers, rows.steps), **options)
        sizes = rows.pixels, rows.runs, rows.mixed, rows.pixels_a_row
        self._sums = Launch(kernels.sums_kernel, rows.adding, sizes, **rows.added)
        self._grads = Launch(kernels.grads_kernel, (rows.tiles, rows.blocks), numbers, **options)

    def __call__(
        self,
        maps: Sequence[Tensor],
        stats: Tensor,
        weights: Sequence[Tensor],
        of_maps: Sequence[Tensor],
        of_parameters: Sequence[Tensor],
    ) -> None:
        products = stats.new_empty(self._size, dtype=torch.float64)
        factors = stats.new_empty((3, maps[1].shape[1]))
        self._products(*maps, stats, products)
        self._sums(products, stats, factors, *of_parameters)
        self._grads(*maps, stats, factors, *weights, *of_maps)
