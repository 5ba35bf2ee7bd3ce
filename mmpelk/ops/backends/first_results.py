"""First results of compiled kernels: compared with exact ones before a kernel is trusted."""

import logging
from collections.abc import Callable, Hashable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

_Result = TypeVar('_Result')


@cache
def import_kernels(module: str) -> ModuleType | None:
    """A module of :mod:`.triton` with kernels for norms; ``None`` where it, or Triton, cannot be imported."""
    try:
        return import_module(f'mmpelk.ops.backends.triton.{module}')
    except Exception as failure:  # of whatever a package that is not whole may raise
        logging.getLogger('mmpelk.ops').warning(
            'the kernels for the norms of a block cannot be imported; torch computes them in this process. Reason: %s',
            f'{type(failure).__name__}: {failure}',
        )
        return None


def attempt(
    trusted: set[Hashable],
    key: Callable[[], Hashable],
    x: Tensor,
    run: Callable[[], _Result],
    error_of: Callable[[Any], float | None],
    first: Callable[[], _Result] | None = None,
) -> tuple[_Result | None, str | None]:
    """A kernel's result, or the reason why it is not to be used again.

    Args:
        trusted: Keys of kernels whose first result was right; this adds to it.
        key: Gives what tells compiled kernels apart.
        x: A tensor on the kernel's device.
        run: Calls the kernel.
        error_of: Largest error as a part of what is allowed; ``None`` if the result's numbers tell nothing: those that
            are not finite, and zeros.
        first: Calls it in the place of ``run`` where it is not trusted yet.

    Returns:
        Result and reason, of which one is ``None``. Both are in the capture of a CUDA graph: nothing can be compared.

    Raises:
        torch.cuda.OutOfMemoryError: As the kernel raises it.
    """
    try:
        known = key()
        if known in trusted:
            return run(), None
        if is_capturing(x):
            return None, None
        result = (first or run)()
        error = error_of(result)
        if error is not None and not error <= 1:
            return None, f'its result is wrong, by {error:.3g} times what is allowed'
        if error is not None:
            trusted.add(known)
        return result, None
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as failure:  # of the compiler, the driver, the launcher: any that a machine may come up with
        return None, f'{type(failure).__name__}: {str(failure).strip()[:500] or "no message"}'


def is_capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured on the tensor's device."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def largest_part(
    got: Tensor, exact: Tensor, allowed: Tensor, fits: Tensor, tells: Tensor | None = None
) -> float | None:
    """Largest error of ``got`` as a part of ``allowed``. Waits for the device once.

    ``None`` unless all of ``fits``; or if nothing is wrong, but that does not tell, as by default zeros do not: memory
    to which no kernel has written has them, and the first gradients of a network whose last layer begins with zeros.
    """
    error = ((got.double() - exact).abs() / allowed).nan_to_num(float('inf'), float('inf')).max()
    flags = fits.all(), exact.any() if tells is None else tells
    part, all_fit, does_tell = torch.stack([error, *(flag.to(error.dtype) for flag in flags)]).tolist()
    return part if all_fit and (does_tell or part > 1) else None
