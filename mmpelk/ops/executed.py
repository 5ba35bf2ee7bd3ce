"""The operations that a backend really executes, counted from its own code."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # as torch.utils.flop_counter: there is no public alias

from .backends import BACKENDS, REFERENCE_PROCESSOR, fastest_backend


def backend_on_cpu(shape: Sequence[int], grid: Sequence[int], processor: str = REFERENCE_PROCESSOR) -> str:
    """The backend that is chosen in float32 for ``(N, C, H, W)`` and a sharing grid, on a class of processors."""
    return fastest_backend(torch.empty(1).expand(*shape), grid, processor=processor)


def executed_operations(calls: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> int | None:
    """Operations of the forward of a number of calls of the operator.

    The backend's Python code runs on meta tensors, and every aten operator that it calls is counted: a multiply-add as
    one, a lone addition or multiplication as one, a complex multiply-add as four, a complex transform of length ``n``
    as ``5 n log2 n`` and a real one as half of that. Copies, padding and indexing count nothing. The bias is left out.

    Args:
        calls: Backend, ``(N, C, H, W)`` and sharing grid of each.

    Returns:
        Their operations; ``None`` if one's backend is missing on this machine, refuses it, or hides its work in
        kernels of its own (Triton's).
    """
    total = 0
    for name, shape, grid in calls:
        operations = _operations(name, tuple(shape), tuple(grid))
        if operations is None:
            return None
        total += operations
    return total


@lru_cache(maxsize=256)
def _operations(name: str, shape: tuple[int, ...], grid: tuple[int, ...]) -> int | None:
    backend = BACKENDS[name]
    if backend.unavailable_reason() is not None:
        return None
    x = torch.empty(shape, device='meta')
    weight = torch.empty(shape[1], 1, len(grid), len(grid), device='meta')
    if backend.unsupported_reason(x, weight, grid) is not None:
        return None
    counter = _OperationCounter()
    try:
        with torch.no_grad():
            backend.forward(x, weight, None, grid)  # makes what calls of this size share, which counts for none
            with counter:
                backend.forward(x, weight, None, grid)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):  # a kernel of its own, that wants real memory
        return None
    return counter.operations or None


class _OperationCounter(TorchDispatchMode):
    operations: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func.__name__.partition('.')[0].rstrip('_'))
        if formula is not None and isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex()):
            self.operations += round(formula(args, out))
        return out


def _product_of(position: int) -> Callable[[Sequence[Any], Tensor], float]:
    """A matrix product whose left factor is argument ``position``."""

    def formula(args: Sequence[Any], out: Tensor) -> float:
        return out.numel() * args[position].shape[-1] * (4 if out.is_complex() else 1)

    return formula


def _convolution(args: Sequence[Any], out: Tensor) -> float:
    return out.numel() * args[1][0].numel()


def _multiplication(args: Sequence[Any], out: Tensor) -> float:
    return out.numel() * (4 if out.is_complex() else 1)


def _addition(args: Sequence[Any], out: Tensor) -> float:
    return out.numel() * (2 if out.is_complex() else 1)


def _transform(real: Tensor | None, complex_side: Tensor, dims: Sequence[int]) -> float:
    """``5 n log2 n`` for a complex transform of all ``n`` points, half for a real one."""
    signal = complex_side if real is None else real
    length = math.prod(signal.shape[dim] for dim in dims)
    return (5.0 if real is None else 2.5) * signal.numel() * math.log2(max(length, 2))


_FORMULAS: dict[str, Callable[[Sequence[Any], Tensor], float]] = {
    'mm': _product_of(0),
    'bmm': _product_of(0),
    'addmm': _product_of(1),
    'baddbmm': _product_of(1),
    'convolution': _convolution,
    'mul': _multiplication,
    'addcmul': _multiplication,
    'add': _addition,
    'sub': _addition,
    'cumsum': _addition,
    '_fft_r2c': lambda args, out: _transform(args[0], out, args[1]),
    '_fft_c2r': lambda args, out: _transform(out, args[0], args[1]),
    '_fft_c2c': lambda args, out: _transform(None, out, args[1]),
}
