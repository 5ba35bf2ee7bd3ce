"""The table of ways to compute a peripheral convolution."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from . import dense, dft, fft, triton

_refusals: dict[tuple[str, torch.device, torch.dtype, bool], str] = {}


def _no_reason(*_: object) -> None:
    return None


def _of_triton(module: str, name: str) -> Callable[..., Any]:
    """A function of a module of the Triton backends, which imports Triton at the first call."""

    function: Callable[..., Any] | None = None

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal function
        if function is None:
            function = getattr(import_module(f'mmpelk.ops.backends.triton.{module}'), name)
        return function(*args, **kwargs)

    return call


def _triton_dft_reason(x: Tensor, weight: Tensor, grid: Sequence[int]) -> str | None:
    return triton.unsupported_reason(x, weight, grid) or triton.dft_unsupported_reason(x, grid)


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
        kernel_key: ``(x, grid)``; tells the compiled kernels apart that calls run. A backend that has it is compiled
            where it runs, and trusted only after its first result with each: see :mod:`.calls`.
        input_grad: ``(grad_out, weight, grid, out, planes) -> out``, with the grid flipped but not the weight, for what
            can read that backwards. Into the list ``planes`` go copies of ``grad_out`` of which ``weight_grad``, which
            takes them last, has use. ``None``: it is ``forward`` with the kernel flipped.
        by_plane: Its errors are relative to the numbers of a whole plane, as those of transforms are.
    """

    name: str
    forward: Callable[..., Tensor]
    weight_grad: Callable[..., Tensor]
    unavailable_reason: Callable[[], str | None] = _no_reason
    unsupported_reason: Callable[[Tensor, Tensor, Sequence[int]], str | None] = _no_reason
    prepare: Callable[[Tensor, Sequence[int], Tensor], Tensor] | None = None
    kernel_key: Callable[[Tensor, Sequence[int]], Hashable] | None = None
    input_grad: Callable[..., Tensor] | None = None
    by_plane: bool = False


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend('dense', dense.forward, dense.weight_grad, prepare=dense.prepare),
        Backend('dft', dft.forward, dft.weight_grad, prepare=dft.prepare),
        Backend('fft', fft.forward, fft.weight_grad),
        *(
            Backend(
                name,
                _of_triton(module, 'forward'),
                _of_triton(module, 'weight_grad'),
                # Cached: every call asks, and the answer takes longer than a kernel.
                cache(triton.unavailable_reason),
                unsupported_reason,
                _of_triton(module, 'prepare'),
                _of_triton(module, 'kernel_key'),
                _of_triton(module, 'input_grad'),
                by_plane=module == 'dft',
            )
            for name, module, unsupported_reason in (
                ('triton', 'launch', triton.unsupported_reason),
                ('triton_dft', 'dft', _triton_dft_reason),
            )
        ),
    )
}


def available_backends() -> list[str]:
    """Names of the backends that run on this machine."""
    return [name for name, backend in BACKENDS.items() if backend.unavailable_reason() is None]


def get_backend(name: str) -> Backend:
    """A backend that runs on this machine.

    Raises:
        ValueError: If none has that name.
        RuntimeError: If it does not run here.
    """
    if name not in BACKENDS:
        raise ValueError(f'unknown backend {name!r}; known: {", ".join(BACKENDS)}')
    backend = BACKENDS[name]
    if (why := backend.unavailable_reason()) is not None:
        raise RuntimeError(f'backend {name!r} does not run here: {why}; available: {", ".join(available_backends())}')
    return backend


def refuse(name: str, x: Tensor, weight_grad: bool, reason: str) -> None:
    """Do not choose a backend again for inputs of the dtype and on the device of ``x``, in this process."""
    _refusals[name, x.device, x.dtype, weight_grad] = reason


def refusal(name: str, x: Tensor, weight_grad: bool) -> str | None:
    """Why :func:`refuse` was called, or ``None``."""
    return _refusals.get((name, x.device, x.dtype, weight_grad)) if _refusals else None
