"""Calls of the backends. What is compiled on the user's machine may fail there; then the next backend goes on.

A call that names its backend gets that one or its error. A call that names none also survives it: the first result of
every compiled kernel is compared with an exact one, and a kernel that raises or is wrong is not used again in this
process. The logger ``mmpelk.ops`` warns once, with the reason.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from . import fft
from .choice import fastest_backend
from .first_results import attempt, largest_part
from .measured import measured_backend
from .table import BACKENDS, refusal, refuse

_LOGGER = logging.getLogger('mmpelk.ops')
_trusted: set[Hashable] = set()
# Beside rounding the result twice: what sums in float32 that round or cut off, and factors of 16 bits in two parts, may
# be off relative to the sum of the absolute products. A kernel that leaves out one tap of K = 51 is off by more.
_OF_SUM = 2.0**-13
# Of a plane's root mean square: ten times the standard deviation of what factors of 11 bits leave (2**-11.8); five were
# seen for a map of single points.
_OF_PLANE = 2.0**-8
# Of the largest sum of absolute products in a plane: what transforms in float64 leave where the exact result is zero.
_OF_EXACT = 2.0**-40


def convolve(
    name: str | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: Sequence[int],
    out: Tensor | None = None,
    **kernel: Tensor,
) -> Tensor:
    """The convolution by a backend, or for ``None`` by the fastest that works: :attr:`Backend.forward`.

    A compiled backend that a ``kernel`` is prepared for was chosen, not named: where it fails, the next one goes on.
    """
    if name is not None and not (kernel and BACKENDS[name].kernel_key):
        return BACKENDS[name].forward(x, weight, bias, grid, out, **kernel)
    prepared_for = name
    return _by_the_fastest(
        False,
        [x] if out is None else [x, out],
        0 if bias is None else bias.dim(),
        grid,
        lambda name: BACKENDS[name].forward(x, weight, bias, grid, out, **(kernel if name == prepared_for else {})),
        lambda name, result: _forward_error(result, x, weight, bias, grid, BACKENDS[name].by_plane),
        prepared_for,
    )


def input_gradient(
    name: str | None, grad_out: Tensor, weight: Tensor, grid: Sequence[int], out: Tensor, planes: list[Tensor]
) -> Tensor:
    """The gradient of the input by a backend, or for ``None`` by the fastest that works: :attr:`Backend.input_grad`."""
    grid = list(reversed(grid))

    def run(name: str) -> Tensor:
        planes.clear()  # of a backend that failed
        backend = BACKENDS[name]
        if backend.input_grad is not None:
            return backend.input_grad(grad_out, weight, grid, out, planes)
        return backend.forward(grad_out, weight.flip(-1, -2), None, grid, out)

    if name is not None:
        return run(name)

    def error_of(name: str, result: Tensor) -> float | None:
        return _forward_error(result, grad_out, weight.flip(-1, -2), None, grid, BACKENDS[name].by_plane)

    return _by_the_fastest(False, [grad_out, out], 0, grid, run, error_of)


def weight_gradient(
    name: str | None, x: Tensor, grad_out: Tensor, grid: Sequence[int], planes: Sequence[Tensor] = ()
) -> Tensor:
    """The gradient of the weight by a backend, or for ``None`` by the fastest that works.

    ``planes`` is what :func:`input_gradient` has kept of ``grad_out``.
    """

    def run(name: str) -> Tensor:
        backend = BACKENDS[name]
        if backend.input_grad is None:
            return backend.weight_grad(x, grad_out, grid)
        return backend.weight_grad(x, grad_out, grid, planes)

    if name is not None:
        return run(name)
    return _by_the_fastest(
        True,
        [x, grad_out],
        0,
        grid,
        run,
        lambda name, result: _weight_grad_error(result, x, grad_out, grid, BACKENDS[name].by_plane),
    )


def _by_the_fastest(
    weight_grad: bool,
    maps: Sequence[Tensor],
    bias_dims: int,
    grid: Sequence[int],
    run: Callable[[str], Tensor],
    error_of: Callable[[str, Tensor], float | None],
    chosen: str | None = None,
) -> Tensor:
    x = maps[0]
    skip: set[str] = set()
    while True:
        name = None if skip or (chosen and refusal(chosen, x, weight_grad)) else chosen
        name = name or (None if skip else measured_backend(x, grid, run, 'weight_grad' if weight_grad else 'forward'))
        name = name or fastest_backend(x, grid, weight_grad=weight_grad, skip=skip)
        if BACKENDS[name].kernel_key is None or x.numel() == 0:
            return run(name)
        result, reason = attempt(
            _trusted,
            partial(_key, name, weight_grad, bias_dims, maps, grid),
            x,
            partial(run, name),
            partial(error_of, name),
        )
        if result is not None:
            return result
        if reason is None:
            _LOGGER.warning(
                'backend %r is not used in a CUDA graph before its first call outside of one: warm up first', name
            )
            skip.add(name)
            continue
        refuse(name, x, weight_grad, reason)
        _LOGGER.warning(
            'backend %r fails for the %s in %s on %s, which others compute from now on. Reason: %s',
            name,
            'gradient of the weight' if weight_grad else 'convolution',
            x.dtype,
            x.device,
            reason,
        )


def _key(name: str, weight_grad: bool, bias_dims: int, maps: Sequence[Tensor], grid: Sequence[int]) -> Hashable:
    """What tells the compiled kernels of all backends apart."""
    kernel_key = cast('Callable[..., Hashable]', BACKENDS[name].kernel_key)  # every call asks: no types are built
    x, *others = maps
    like = x.shape, x.stride(), x.data_ptr() % 16
    # Most often they are alike: one key in the place of two saves the host as much as a launch.
    maps = [x, *(each for each in others if (each.shape, each.stride(), each.data_ptr() % 16) != like)]
    return name, weight_grad, bias_dims, x.device, x.dtype, *[kernel_key(each, grid) for each in maps]


@torch.no_grad()
def _forward_error(
    result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], by_plane: bool
) -> float | None:
    """Of the first and last channel of the first and last image: see :func:`_largest_error`."""
    images, channels = (slice(None, None, max(1, size - 1)) for size in x.shape[:2])
    planes, taps = x[images, channels].double(), weight[channels].double()
    exact = fft.forward(planes, taps, None, grid)
    size = fft.forward(planes.abs(), taps.abs(), None, grid)
    spread, tells = exact.square().mean((-2, -1), keepdim=True).sqrt() if by_plane else None, exact.any()
    if bias is not None:
        added = (bias if bias.dim() == 3 else bias[:, None, None])[channels].double()
        exact, size = exact + added, size + added.abs()
    return _largest_error(result[images, channels], exact, size, spread, tells)


@torch.no_grad()
def _weight_grad_error(
    result: Tensor, x: Tensor, grad_out: Tensor, grid: Sequence[int], by_plane: bool
) -> float | None:
    """Of the first and the last channel."""
    channels = slice(None, None, max(1, x.shape[1] - 1))
    planes, grads = x[:, channels].double(), grad_out[:, channels].double()
    exact = fft.weight_grad(planes, grads, grid)
    spread = exact.square().mean((-2, -1), keepdim=True).sqrt() if by_plane else None
    size = fft.weight_grad(planes.abs(), grads.abs(), grid)
    return _largest_error(result[channels], exact, size, spread, exact.any())


def _largest_error(got: Tensor, exact: Tensor, size: Tensor, spread: Tensor | None, tells: Tensor) -> float | None:
    """Largest error as a part of what is allowed; ``None`` if the exact result does not fit the dtype or tells nothing.

    Args:
        got: The result of a kernel.
        exact: The result in float64.
        size: The sum of the absolute values of what was summed.
        spread: The root mean square of each plane or channel, if its errors are spread over all of its numbers.
        tells: Whether what is right tells something: not if the convolution is zero.
    """
    limits = torch.finfo(got.dtype)
    allowed = 2 * limits.eps * exact.abs() + _OF_SUM * size + limits.tiny
    allowed = allowed + _OF_EXACT * size.amax((-2, -1), keepdim=True)
    if spread is not None:
        allowed = allowed + _OF_PLANE * spread
    return largest_part(got, exact, allowed, size < limits.max, tells)
