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

# Largest kernels for which dense is the fastest, measured with torch 2.11 on x86: its depthwise float kernels are
# compiled for sides up to 13 and some fifty times slower beyond; float64 and the gradient of the weight have none.
_DENSE_UP_TO = 13
_DENSE_UP_TO_OTHERWISE = 5
# Below this many positions a map is cheaper to multiply by Toeplitz matrices than to transform.
_MATMUL_BELOW = 16 * 16

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
    has_fast_dense = x.dtype != torch.float64 and not weight_grad
    if kernel_size <= (_DENSE_UP_TO if has_fast_dense else _DENSE_UP_TO_OTHERWISE):
        return 'dense'
    if not weight_grad and x.shape[-2] * x.shape[-1] < _MATMUL_BELOW:
        return 'matmul'
    return 'fft'


def _fastest_on_cuda(x: Tensor, grid: Sequence[int], kernel_size: int) -> str:
    """Triton wherever it runs; reasoned from memory traffic and operation counts, not measured."""
    if kernel_size <= _DENSE_UP_TO_OTHERWISE:
        return 'dense'
    kernels = BACKENDS['triton']
    return 'triton' if kernels.missing() is None and kernels.refusal(x, x, grid) is None else 'fft'
