"""The operations that a backend really executes, counted from its own code."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # as torch.utils.flop_counter: there is no public alias

from mmpelk.ops.backends import BACKENDS, fastest_backend

__all__ = ['backend_on_cpu', 'executed_operations']


def backend_on_cpu(shape: Sequence[int], grid: Sequence[int]) -> str:
    """The backend that is chosen on a CPU, in float32, for ``(N, C, H, W)`` and a sharing grid."""
    return fastest_backend(torch.empty(1).expand(*shape), grid)


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
    counts = [_operations(name, tuple(shape), tuple(grid)) for name, shape, grid in calls]
    return None if None in counts else sum(filter(None, counts))


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
        with torch.no_grad(), counter:
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


def _transform(real: Tensor | None, complex_side: Tensor, dims: Sequence[int]) -> float:
    """``5 n log2 n`` for a complex transform of all ``n`` points, half for a real one."""
    signal = complex_side if real is None else real
    length = math.prod(signal.shape[dim] for dim in dims)
    return (5.0 if real is None else 2.5) * signal.numel() * math.log2(max(length, 2))


def _complex(out: Tensor, operations: int) -> int:
    """The real operations of one complex operation, and 1 for a real one."""
    return operations if out.is_complex() else 1


_FORMULAS: dict[str, Callable[[Sequence[Any], Tensor], float]] = {
    **dict.fromkeys(('mm', 'bmm'), lambda args, out: out.numel() * args[0].shape[-1] * _complex(out, 4)),
    **dict.fromkeys(('addmm', 'baddbmm'), lambda args, out: out.numel() * args[1].shape[-1] * _complex(out, 4)),
    'convolution': lambda args, out: out.numel() * args[1][0].numel(),
    'mul': lambda args, out: out.numel() * _complex(out, 4),
    **dict.fromkeys(('add', 'sub', 'cumsum'), lambda args, out: out.numel() * _complex(out, 2)),
    'sum': lambda args, out: args[0].numel() * _complex(out, 2),
    '_fft_r2c': lambda args, out: _transform(args[0], out, args[1]),
    '_fft_c2r': lambda args, out: _transform(out, args[0], args[1]),
    '_fft_c2c': lambda args, out: _transform(None, out, args[1]),
}
