"""A convolution whose weight stays: what depends on the weight and the map's size alone is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .autocast import autocast_dtype, cast_under_autocast
from .backends import BACKENDS, fastest_backend, forced_backend, requested_backend
from .custom_op import conv, conv_prepared
from .functional import check
from .layout import is_channels_last

__all__ = ['Prepared', 'prepare', 'settings_of']


@dataclass(frozen=True)
class Prepared:
    """A partial convolution for inference on maps of one size: the channels beyond the weight's pass unchanged."""

    weight: Tensor
    bias: Tensor | None
    grid: list[int]
    backend: str | None
    kernel: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape and memory format."""
        x, *_ = cast_under_autocast(x, self.weight, None)
        if self.kernel is None:
            return conv(x, self.weight, self.bias, self.grid, self.backend)
        return conv_prepared(x, self.weight, self.bias, self.grid, self.backend, self.kernel)


def settings_of(x: Tensor) -> tuple[Any, ...]:
    """What a prepared convolution depends on beside its weight and bias."""
    return x.shape, x.dtype, x.device, is_channels_last(x), autocast_dtype(x.device.type), forced_backend()


@torch.no_grad()
def prepare(
    x: Tensor, weight: Tensor, sharing_grid: Sequence[int], bias: Tensor | None, backend: str | None = None
) -> Prepared:
    """The convolution that :func:`mmpelk.ops.peripheral_conv2d` computes with ``partial=True``, made ready.

    Args:
        x: A map with the :func:`settings_of` those to come.
        weight: ``(C, 1, k', k')``, whose values must not change any more.
        sharing_grid: ``k'`` ring widths.
        bias: ``(C,)`` or ``(C, H, W)``.
        backend: A name, or ``None`` for the fastest.

    Raises:
        ValueError: As :func:`mmpelk.ops.peripheral_conv2d`.
        RuntimeError: As :func:`mmpelk.ops.peripheral_conv2d`.
    """
    grid = [int(width) for width in sharing_grid]
    x, weight, bias = cast_under_autocast(x, weight.detach(), None if bias is None else bias.detach())
    mixed = x[:, : weight.shape[0]]
    check(mixed, weight, grid, bias)
    requested = requested_backend(mixed, weight, grid, backend)
    name = requested or fastest_backend(mixed, grid)
    make = BACKENDS[name].prepare
    if make is None:
        return Prepared(weight, bias, grid, requested, None)
    return Prepared(weight, bias, grid, name, make(weight, grid, mixed))
