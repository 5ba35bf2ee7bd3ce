"""The table of ways to compute a peripheral convolution, and the choice between them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from . import dense, fft, matmul, triton

__all__ = ['BACKENDS', 'Backend', 'available_backends', 'fastest_backend', 'force_backend', 'requested_backend']

_ENVIRONMENT_VARIABLE = 'MMPELK_BACKEND'


def _never(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Backend:
    """One way to compute the convolution.

    Attributes:
        name: What ``backend=`` takes.
        forward: ``(x, weight, bias, grid) -> out``; shapes as in :func:`mmpelk.ops.peripheral_conv2d`. The gradient of
            the input is the same function of the output's gradient with the kernel flipped.
        weight_grad: ``(x, grad_out, grid) -> (C, 1, k', k')``.
        missing: Says what this machine lacks to run it, or ``None``.
        refusal: ``(x, weight, grid)``; says why it cannot take these inputs, or ``None``.
    """

    name: str
    forward: Callable[[Tensor, Tensor, Tensor | None, Sequence[int]], Tensor]
    weight_grad: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    missing: Callable[[], str | None] = _never
    refusal: Callable[[Tensor, Tensor, Sequence[int]], str | None] = _never


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend('dense', dense.forward, dense.weight_grad),
        Backend('fft', fft.forward, fft.weight_grad),
        Backend('matmul', matmul.forward, matmul.weight_grad),
        # Cached: every call asks, and the answer takes longer than a kernel.
        Backend('triton', triton.forward, triton.weight_grad, cache(triton.missing), triton.refusal),
    )
}

# Largest kernel for which dense is the fastest where torch has no fast depthwise kernels of its own: in float64, for
# the gradient of the weight, on CUDA.
_DENSE_UP_TO = 5
# Below this many positions a map is cheaper to multiply by Toeplitz matrices than to transform.
_MATMUL_BELOW = 16 * 16
# Nanoseconds on two x86 cores with torch 2.11, of which only the ratio matters: a tap of the dense kernel in float32,
# and a number of the spectrum through both transforms and the product.
_DENSE_TAP_NS = 1 / 88
_SPECTRUM_NS = 5.5

_forced: str | None = os.environ.get(_ENVIRONMENT_VARIABLE) or None


def available_backends() -> list[str]:
    """Names of the backends that run on this machine."""
    return [name for name, backend in BACKENDS.items() if backend.missing() is None]


def _get(name: str) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f'unknown backend {name!r}; known: {", ".join(BACKENDS)}')
    backend = BACKENDS[name]
    if (why := backend.missing()) is not None:
        raise RuntimeError(f'backend {name!r} does not run here: {why}; available: {", ".join(available_backends())}')
    return backend


@contextmanager
def force_backend(name: str | None) -> Iterator[None]:
    """Use one backend for every call inside the ``with`` block that does not name its own.

    The environment variable ``MMPELK_BACKEND`` does the same for a whole run; ``None`` gives the choice back.

    Raises:
        ValueError: If no backend has that name.
        RuntimeError: If it cannot run on this machine.
    """
    global _forced
    if name is not None:
        _get(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def requested_backend(x: Tensor, weight: Tensor, grid: Sequence[int], backend: str | None) -> str | None:
    """The backend that a call names or that is forced, after checking that it can compute the call; or ``None``.

    Raises:
        ValueError: If it is unknown or cannot take the inputs.
        RuntimeError: If it cannot run on this machine.
    """
    name = backend or _forced
    if name is not None and (why := _get(name).refusal(x, weight, grid)) is not None:
        raise ValueError(f'backend {name!r} cannot compute this call: {why}')
    return name


def fastest_backend(x: Tensor, grid: Sequence[int], *, weight_grad: bool = False) -> str:
    """The backend expected to be the fastest for the inputs, by a rule on kernel size, map size, dtype and device.

    The output (and the gradient of the input, which is the same computation) and the gradient of the weight are chosen
    separately.
    """
    kernel_size = sum(grid)
    if x.is_cuda:
        return _fastest_on_cuda(x, grid, kernel_size)
    height, width = x.shape[-2:]
    if x.dtype == torch.float64 or weight_grad:
        if kernel_size <= _DENSE_UP_TO:
            return 'dense'
        return 'matmul' if not weight_grad and height * width < _MATMUL_BELOW else 'fft'
    if kernel_size <= dense.NCHW_UP_TO:
        return 'dense'
    if x.dtype == torch.float32 and _dense_ns(height, width, kernel_size) < _fft_ns(height, width, kernel_size):
        return 'dense'
    return 'matmul' if x.dtype != torch.float32 and height * width < _MATMUL_BELOW else 'fft'


def _dense_ns(height: int, width: int, kernel_size: int) -> float:
    """Cost of the dense kernel on a plane: kernel rows outside the map are skipped, columns are not."""
    radius = min(kernel_size // 2, height - 1)
    rows = height + 2 * radius * height - radius * (radius + 1)  # inside the map, summed over the output rows
    return _DENSE_TAP_NS * rows * width * kernel_size


def _fft_ns(height: int, width: int, kernel_size: int) -> float:
    """Cost of the transforms of a plane."""
    rows, columns = (extent + min(kernel_size // 2, extent - 1) for extent in (height, width))
    return _SPECTRUM_NS * rows * (columns // 2 + 1)


def _fastest_on_cuda(x: Tensor, grid: Sequence[int], kernel_size: int) -> str:
    """Triton wherever it runs; reasoned from memory traffic and operation counts, not measured."""
    if kernel_size <= _DENSE_UP_TO:
        return 'dense'
    kernels = BACKENDS['triton']
    return 'triton' if kernels.missing() is None and kernels.refusal(x, x, grid) is None else 'fft'
