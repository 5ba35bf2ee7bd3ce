"""The ways to compute a peripheral convolution, and the choice between them."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from .calls import convolve, input_gradient, weight_gradient
from .choice import PROCESSORS, REFERENCE_PROCESSOR, THIS_PROCESSOR, fastest_backend
from .table import BACKENDS, Backend, available_backends, get_backend

__all__ = [
    'BACKENDS',
    'PROCESSORS',
    'REFERENCE_PROCESSOR',
    'THIS_PROCESSOR',
    'Backend',
    'available_backends',
    'convolve',
    'fastest_backend',
    'force_backend',
    'forced_backend',
    'input_gradient',
    'requested_backend',
    'weight_gradient',
]

_ENVIRONMENT_VARIABLE = 'MMPELK_BACKEND'


class _Forced(threading.local):
    """The forced backend of each thread. torch.compile guards an attribute of this kind, but no ``ContextVar``."""

    def __init__(self) -> None:  # a class attribute would be taken for a constant by torch.compile
        self.name: str | None = os.environ.get(_ENVIRONMENT_VARIABLE) or None


_FORCED = _Forced()


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
        get_backend(name)
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
    if name is not None and (why := get_backend(name).unsupported_reason(x, weight, grid)) is not None:
        raise ValueError(f'backend {name!r} cannot compute this call: {why}')
    return name
