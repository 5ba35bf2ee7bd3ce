"""The table of ways to compute a peripheral convolution, and the choice between them."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from ..sharing_grid import reach
from . import dense, dft, fft, triton

__all__ = [
    'BACKENDS',
    'Backend',
    'available_backends',
    'fastest_backend',
    'force_backend',
    'forced_backend',
    'requested_backend',
]

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
        Backend('dense', dense.forward, dense.weight_grad, prepare=dense.prepare),
        Backend('dft', dft.forward, dft.weight_grad, prepare=dft.prepare),
        Backend('fft', fft.forward, fft.weight_grad),
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


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of the parts of a call in float32 on a CPU, fitted to one run of every stage of PeLK-T and PeLK-B.

    Attributes:
        dense_tap: A multiply-add of the dense kernel, channels last.
        dft_product: A multiply-add of the transforms' matrix products.
        dft_number: A number of the real spectrum through the kernel's product and the passes over it.
        fft_number: A complex number of the half spectrum through both transforms and the product.
        calls: Bookkeeping of a call: dense, dft, fft.
    """

    dense_tap: float
    dft_product: float
    dft_number: float
    fft_number: float
    calls: tuple[float, float, float] = (1e5, 2e5, 3e5)


# Two cores of an AMD EPYC (Zen 3), torch 2.11. Those with AVX-512 have faster depthwise kernels: dense as measured on
# one for release 0.1.0, dft and fft as much faster there as fft was, which is a guess. The gradient of the weight, in
# float64 and of two maps, but without a way back, takes about twice as long by dft and 1.5 times by fft.
AVX2 = Costs(dense_tap=0.060, dft_product=0.025, dft_number=4.0, fft_number=14.0)
AVX512 = Costs(dense_tap=1 / 88, dft_product=0.0076, dft_number=1.2, fft_number=4.3)
COSTS = AVX512 if torch.backends.cpu.get_cpu_capability() == 'AVX512' else AVX2


class _Forced(threading.local):
    """The forced backend of each thread. torch.compile guards an attribute of this kind, but no ``ContextVar``."""

    def __init__(self) -> None:  # a class attribute would be taken for a constant by torch.compile
        self.name: str | None = os.environ.get(_ENVIRONMENT_VARIABLE) or None


_FORCED = _Forced()


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
    """Use one backend for every call of this thread inside the ``with`` block that does not name its own.

    The environment variable ``MMPELK_BACKEND`` does the same for a whole run, in every thread; ``None`` gives the
    choice back.

    Raises:
        ValueError: If no backend has that name.
        RuntimeError: If it cannot run on this machine.
    """
    if name is not None:
        _get(name)
    before, _FORCED.name = _FORCED.name, name
    try:
        yield
    finally:
        _FORCED.name = before


def forced_backend() -> str | None:
    """The name that :func:`force_backend` or the environment gives in this thread."""
    return _FORCED.name


def requested_backend(x: Tensor, weight: Tensor, grid: Sequence[int], backend: str | None) -> str | None:
    """The backend that a call names or that is forced, after checking that it can compute the call; or ``None``.

    Raises:
        ValueError: If it is unknown or cannot take the inputs.
        RuntimeError: If it cannot run on this machine.
    """
    name = backend or _FORCED.name
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
    if kernel_size <= _DENSE_UP_TO and (x.dtype == torch.float64 or weight_grad):
        return 'dense'
    size, planes = (int(x.shape[-2]), int(x.shape[-1])), int(x.shape[0] * x.shape[1])
    costs = {
        'dft': COSTS.calls[1] + planes * dft_ns(*size, kernel_size) * (2 if weight_grad else 1),
        'fft': COSTS.calls[2] + planes * fft_ns(*size, kernel_size) * (1.5 if weight_grad else 1),
    }
    if x.dtype != torch.float64 and not weight_grad and (x.dtype == torch.float32 or kernel_size <= dense.NCHW_UP_TO):
        costs['dense'] = COSTS.calls[0] + planes * dense_ns(*size, kernel_size)
    return min(costs, key=lambda name: costs[name])


def dense_ns(height: int, width: int, kernel_size: int) -> float:
    """Cost of the dense kernel on a plane: kernel rows outside the map are skipped, columns where none is inside."""
    radius = reach(kernel_size, height)
    rows = height + 2 * radius * height - radius * (radius + 1)  # inside the map, summed over the output rows
    return COSTS.dense_tap * rows * width * (2 * reach(kernel_size, width) + 1)


def dft_ns(height: int, width: int, kernel_size: int) -> float:
    """Cost of the matrix products of a plane and of the passes over its spectrum."""
    rows, columns = ((extent + reach(kernel_size, extent) + 1) // 2 for extent in (height, width))
    products = 2 * height * columns * (width + 2 * rows)
    return COSTS.dft_product * products + COSTS.dft_number * 4 * rows * columns


def fft_ns(height: int, width: int, kernel_size: int) -> float:
    """Cost of the transforms of a plane."""
    rows, columns = (fft.fast_length(extent + reach(kernel_size, extent)) for extent in (height, width))
    return COSTS.fft_number * rows * (columns // 2 + 1)


def _fastest_on_cuda(x: Tensor, grid: Sequence[int]) -> str:
    """Triton wherever it runs; reasoned from memory traffic and operation counts, not measured."""
    if sum(grid) <= _DENSE_UP_TO:
        return 'dense'
    kernels = BACKENDS['triton']
    return (
        'triton' if kernels.unavailable_reason() is None and kernels.unsupported_reason(x, x, grid) is None else 'fft'
    )
