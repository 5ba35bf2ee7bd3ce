"""The table of ways to compute a peripheral convolution, and the choice between them."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from . import dense, dft, fft, matmul, triton

__all__ = ['BACKENDS', 'Backend', 'available_backends', 'fastest_backend', 'force_backend', 'forced_backend', 'requested_backend']

_ENVIRONMENT_VARIABLE = 'MMPELK_BACKEND'
_LOGGER = logging.getLogger('mmpelk.ops')


def _no_reason(*_: object) -> None:
    return None


def _of_triton(name: str) -> Callable[..., Tensor]:
    """A function of the Triton backend, which imports Triton at the first call."""

    def call(*args: Any) -> Tensor:
        from .triton import launch

        return getattr(launch, name)(*args)

    return call


@dataclass(frozen=True)
class Backend:
    """One way to compute the convolution.

    Attributes:
        name: What ``backend=`` takes.
        forward: ``(x, weight, bias, grid, out) -> out``; shapes as in :func:`mmpelk.ops.peripheral_conv2d`. It writes
            into ``out``, of any strides, or makes it if ``None``. The gradient of the input is the same function of
            the output's gradient with the kernel flipped.
        weight_grad: ``(x, grad_out, grid) -> (C, 1, k', k')``.
        unavailable_reason: Says what this machine lacks to run it, or ``None``.
        unsupported_reason: ``(x, weight, grid)``; says why it cannot take these inputs, or ``None``.
        prepare: ``(weight, grid, x) -> kernel``: what ``forward`` can take as ``kernel`` instead of computing it from
            the weight again, for maps of the size of ``x``; ``None`` if it computes nothing worth keeping.
    """

    name: str
    forward: Callable[..., Tensor]
    weight_grad: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    unavailable_reason: Callable[[], str | None] = _no_reason
    unsupported_reason: Callable[[Tensor, Tensor, Sequence[int]], str | None] = _no_reason
    prepare: Callable[[Tensor, Sequence[int], Tensor], Tensor] | None = None


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend('dense', dense.forward, dense.weight_grad),
        Backend('dft', dft.forward, dft.weight_grad, prepare=dft.prepare),
        Backend('fft', fft.forward, fft.weight_grad),
        Backend('matmul', matmul.forward, matmul.weight_grad),
        # Cached: every call asks, and the answer takes longer than a kernel.
        Backend(
            'triton',
            _of_triton('forward'),
            _of_triton('weight_grad'),
            cache(triton.unavailable_reason),
            triton.unsupported_reason,
        ),
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
    return [name for name, backend in BACKENDS.items() if backend.unavailable_reason() is None]


def _get(name: str) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f'unknown backend {name!r}; known: {", ".join(BACKENDS)}')
    backend = BACKENDS[name]
    if (why := backend.unavailable_reason()) is not None:
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


def forced_backend() -> str | None:
    """The name that :func:`force_backend` or the environment gives."""
    return _forced


def requested_backend(x: Tensor, weight: Tensor, grid: Sequence[int], backend: str | None) -> str | None:
    """The backend that a call names or that is forced, after checking that it can compute the call; or ``None``.

    Raises:
        ValueError: If it is unknown or cannot take the inputs.
        RuntimeError: If it cannot run on this machine.
    """
    name = backend or _forced
    if name is not None and (why := _get(name).unsupported_reason(x, weight, grid)) is not None:
        raise ValueError(f'backend {name!r} cannot compute this call: {why}')
    return name


def fastest_backend(x: Tensor, grid: Sequence[int], *, weight_grad: bool = False) -> str:
    """The backend expected to be the fastest for the inputs, by a rule on kernel size, map size, dtype and device.

    The output (and the gradient of the input, which is the same computation) and the gradient of the weight are chosen
    separately. The logger ``mmpelk.ops`` says each choice once per shape, at debug level.
    """
    name = _fastest_on_cuda(x, grid) if x.is_cuda else _fastest_on_cpu(x, sum(grid), weight_grad)
    if _LOGGER.isEnabledFor(logging.DEBUG):
        _say_choice(
            name, 'gradient of the weight' if weight_grad else 'convolution', x.shape, x.dtype, x.device, sum(grid)
        )
    return name


@lru_cache(maxsize=4096)
def _say_choice(name: str, what: str, shape: torch.Size, dtype: torch.dtype, device: torch.device, size: int) -> None:
    """Log a choice of :func:`fastest_backend`, the first time that it is made."""
    _LOGGER.debug('%s of %s %s on %s with K = %d: backend %r', what, tuple(shape), dtype, device, size, name)


def _fastest_on_cpu(x: Tensor, kernel_size: int, weight_grad: bool) -> str:
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


def _fastest_on_cuda(x: Tensor, grid: Sequence[int]) -> str:
    """Triton wherever it runs; reasoned from memory traffic and operation counts, not measured."""
    if sum(grid) <= _DENSE_UP_TO:
        return 'dense'
    kernels = BACKENDS['triton']
    return (
        'triton' if kernels.unavailable_reason() is None and kernels.unsupported_reason(x, x, grid) is None else 'fft'
    )
