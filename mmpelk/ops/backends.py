"""The table of ways to compute a peripheral convolution, and the choice between them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from . import dense

__all__ = ['BACKENDS', 'Backend', 'available_backends', 'choose_backend', 'force_backend']

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
    backend.name: backend for backend in (Backend('dense', dense.forward, dense.weight_grad),)
}

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


def choose_backend(x: Tensor, weight: Tensor, grid: Sequence[int], backend: str | None = None) -> str:
    """Name of the backend that computes this call: the named one, the forced one, or the fastest for the inputs.

    Raises:
        ValueError: If the named or forced backend is unknown or cannot take the inputs.
        RuntimeError: If it cannot run on this machine.
    """
    name = backend or _forced
    if name is None:
        return 'dense'
    if (why := _get(name).refusal(x, weight, grid)) is not None:
        raise ValueError(f'backend {name!r} cannot compute this call: {why}')
    return name
