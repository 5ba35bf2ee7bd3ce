"""Tiling and launches of the kernels for the norms of a mixer's branches in training."""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from . import training_norm_kernels
from .launch import current, kept, layout
from .norm import Launch, pixel_step, pixels_at_a_time

__all__ = ['PROGRAMS', 'backward', 'forward', 'kernel_key', 'takes']

PROGRAMS = 512
"""Sums over pixels are split over about this many programs: several for each multiprocessor of a large GPU."""
_PIXELS, _CHANNELS = 32, 64  # of a program that does not hold all channels of a pixel
_WRITTEN = 16  # pixels of such a program that writes gradients: more spill registers
_ROWS, _COLUMNS = 32, 16  # of such sums that are added up at a time


def takes(maps: Sequence[Tensor], parameters: Sequence[Tensor], running: Sequence[Tensor]) -> bool:
    """Whether the kernels read these maps and update these running statistics where they are.

    Args:
        maps: Outputs of both kernels, ``(N, g, H, W)``, and the map ``(N, C, H, W)`` with the other channels.
        parameters: Weight and bias of both norms.
        running: Mean, variance and number of batches of both.
    """
    large, small, _ = maps
    vectors = [*parameters, *(tensor for tensor in running if tensor.dim())]
    return (
        all(pixel_step(each) is not None for each in maps)
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
    return *of_maps, *(each.dtype if isinstance(each, Tensor) else each for each in others)


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


class _Sums:
    """Sums over all pixels: how they are split over programs, and how those are added up."""

    def __init__(self, large: Tensor) -> None:
        images, self.mixed, height, width = large.shape
        self.pixels = images * height * width
        block = min(_CHANNELS, 1 << (self.mixed - 1).bit_length())
        blocks = math.ceil(self.mixed / block)
        steps = math.ceil(self.pixels / (_PIXELS * max(1, PROGRAMS // blocks)))
        self.run = steps * _PIXELS
        self.rows = math.ceil(self.pixels / self.run)
        self.of_maps = dict(MIXED=self.mixed, PIXELS=_PIXELS, BLOCK=block)
        self.programs, self.numbers = (self.rows, blocks), (self.pixels, steps)
        self.of_rows = dict(MIXED=self.mixed, ROWS=_ROWS, BLOCK=_COLUMNS)
        self.adding = (math.ceil(self.mixed / _COLUMNS),)
        self.covering = math.ceil(self.pixels / _WRITTEN), blocks


class _Forward:
    """The launches for maps of one shape and layout."""

    def __init__(self, maps: Sequence[Tensor], numbers: Sequence[float]) -> None:
        large, small, x = maps
        kernels, sums, channels = training_norm_kernels, _Sums(large), x.shape[1]
        steps = dict(LARGE_STEP=pixel_step(large), SMALL_STEP=pixel_step(small))
        self._size = sums.rows, 4, sums.mixed
        self._moments = Launch(kernels.moments_kernel, sums.programs, sums.numbers, **sums.of_maps, **steps)
        settings = *numbers, sums.pixels, sums.rows, sums.run
        self._statistics = Launch(kernels.statistics_kernel, sums.adding, settings, **sums.of_rows)
        pixels, block = pixels_at_a_time(channels)
        self._apply = Launch(
            kernels.apply_kernel,
            (math.ceil(sums.pixels / pixels),),
            (sums.pixels,),
            **steps,
            MIXED=sums.mixed,
            CHANNELS=channels,
            X_STEP=pixel_step(x),
            PIXELS=pixels,
            BLOCK=block,
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
        kernels, sums = training_norm_kernels, _Sums(maps[1])
        self._size = sums.rows, 3, sums.mixed
        options = dict(zip(('GRAD_STEP', 'LARGE_STEP', 'SMALL_STEP'), map(pixel_step, maps), strict=True))
        self._products = Launch(kernels.products_kernel, sums.programs, sums.numbers, **sums.of_maps, **options)
        self._sums = Launch(kernels.sums_kernel, sums.adding, (sums.pixels, sums.rows), **sums.of_rows)
        options |= sums.of_maps | dict(PIXELS=_WRITTEN)
        self._grads = Launch(kernels.grads_kernel, sums.covering, (sums.pixels,), **options)

    def __call__(
        self,
        maps: Sequence[Tensor],
        stats: Tensor,
        weights: Sequence[Tensor],
        of_maps: Sequence[Tensor],
        of_parameters: Sequence[Tensor],
    ) -> None:
        products = stats.new_empty(self._size, dtype=torch.float64)
        factors = stats.new_empty((3, self._size[2]))
        self._products(*maps, stats, products)
        self._sums(products, stats, factors, *of_parameters)
        self._grads(*maps, stats, factors, *weights, *of_maps)
