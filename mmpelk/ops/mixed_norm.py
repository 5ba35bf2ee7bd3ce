"""The end of a block's mixer in inference: norms of the branches, their sum, the other channels, and layer norm.

On a GPU for which the Triton kernels are, it is one kernel; where that fails or is wrong, torch's operators.
"""

import logging
from collections.abc import Hashable, Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import BACKENDS, forced_backend, triton
from .backends.first_results import attempt, import_kernels, largest_part
from .custom_op import takes_tangents

__all__ = ['Norm', 'is_fused', 'mixed_norm']

Norm = tuple[Sequence[Tensor], float]
"""Tensors ``(C,)`` and epsilon: mean, variance, weight and bias of a batch norm; weight and bias of a layer norm."""

_LOGGER = logging.getLogger('mmpelk.ops')
_trusted: set[Hashable] = set()
_refused: set[tuple[torch.device, torch.dtype]] = set()
# Private: torch has no public way to ask. Such modes, of make_fx for one, see operators but no launches.
_dispatch_modes = torch._C._len_torch_dispatch_stack
# Beside rounding the result twice, what sums in float32 may be off, relative to their largest term.
OF_TERMS = 2.0**-16


def is_fused(x: Tensor, training: bool = False) -> bool:
    """Whether the norms of a block whose map is ``x`` are for kernels: where the Triton kernels run.

    Without gradients :func:`mixed_norm` is meant, unless it failed; in ``training``, with gradients,
    :func:`mmpelk.ops.training_norm.mix_and_norm`. Not where a backend is forced that is not Triton's, or where a
    mode watches torch's operators, or forward-mode derivatives are taken, of whatever tensor.
    """
    if not x.is_cuda or x.is_neg() or torch.is_grad_enabled() != training or x.numel() == 0 or takes_tangents():
        return False
    if not training and (x.device, x.dtype) in _refused:
        return False
    name = forced_backend() or 'triton'
    if _dispatch_modes() or not name.startswith('triton') or BACKENDS[name].unavailable_reason() is not None:
        return False
    return triton.unsupported_reason(x, x, ()) is None


def mixed_norm(
    large: Tensor, small: Tensor | None, x: Tensor, norms: Sequence[Norm], norm: Norm, dtype: torch.dtype
) -> Tensor:
    """``layer_norm(cat(batch_norm(large) + batch_norm(small), x[:, g:]))`` over the channels, where :func:`is_fused`.

    The first result of every compiled kernel is compared with torch's operators in float64. Where it is wrong, or the
    kernel raises, the logger ``mmpelk.ops`` warns once, and this process goes on with torch's operators.

    Args:
        large: ``(N, g, H, W)``.
        small: The same, or ``None`` to leave it out.
        x: ``(N, C, H, W)``, of whose first ``g`` channels only the number counts.
        norms: The batch norms in eval mode, of ``large`` and of ``small``; none where ``large`` is mixed already.
        norm: The layer norm.
        dtype: Of the result.

    Returns:
        ``(N, H, W, C)``.

    Raises:
        torch.cuda.OutOfMemoryError: If the device has no memory for the result.
    """
    inputs = large, small, x, norms, norm
    kernel = _kernel()
    if kernel is None or not kernel.takes(*inputs):
        return _by_operators(*inputs).to(dtype)
    result, reason = attempt(
        _trusted,
        lambda: (x.device, kernel.kernel_key(*inputs, dtype)),
        x,
        lambda: kernel.mixed_norm(*inputs, dtype),
        lambda result: _largest_error(result, *inputs),
    )
    if result is not None:
        return result
    if reason is not None:
        _refuse(x, reason)
    return _by_operators(*inputs).to(dtype)


def _kernel() -> ModuleType | None:
    return import_kernels('norm')


def _refuse(x: Tensor, reason: str) -> None:
    _refused.add((x.device, x.dtype))
    _LOGGER.warning(
        'the kernel for the norms of a block fails in %s on %s, where torch computes them from now on. Reason: %s',
        x.dtype,
        x.device,
        reason,
    )


def _by_operators(large: Tensor, small: Tensor | None, x: Tensor, norms: Sequence[Norm], norm: Norm) -> Tensor:
    mixed, *others = _normed(large, small, norms)
    parts = [sum(others, mixed), x[:, large.shape[1] :]]
    out = torch.cat([part.permute(0, 2, 3, 1) for part in parts], -1)
    (weight, bias), eps = norm
    return F.layer_norm(out, x.shape[1:2], weight, bias, eps)


def _normed(large: Tensor, small: Tensor | None, norms: Sequence[Norm]) -> list[Tensor]:
    if not norms:
        return [large]
    maps = [large] if small is None else [large, small]
    return [
        F.batch_norm(each, mean, var, weight, bias, eps=eps)
        for each, ((mean, var, weight, bias), eps) in zip(maps, norms, strict=True)
    ]


@torch.no_grad()
def _largest_error(
    got: Tensor, large: Tensor, small: Tensor | None, x: Tensor, norms: Sequence[Norm], norm: Norm
) -> float | None:
    """Largest error in the corners of the first and last image, as a part of what is allowed.

    ``None`` if the exact result does not fit the dtype.
    """
    images, rows, columns = (slice(None, None, max(1, x.shape[dim] - 1)) for dim in (0, 2, 3))

    def exact(each: Tensor) -> Tensor:
        return each.double() if each.dim() == 1 else each[images, :, rows, columns].double()

    large, small, x = exact(large), None if small is None else exact(small), exact(x)
    norms = [([exact(tensor) for tensor in tensors], eps) for tensors, eps in norms]
    (weight, bias), eps = [exact(tensor) for tensor in norm[0]], norm[1]
    want = _by_operators(large, small, x, norms, ((weight, bias), eps))  # autocast leaves float64 as it is
    branches = _normed(large, small, norms)
    rest = x[:, large.shape[1] :]
    spread = torch.cat([sum(branches[1:], branches[0]), rest], 1).var(1, unbiased=False).add(eps).sqrt()
    largest = torch.cat([*branches, rest], 1).abs().amax(1) / spread
    limits = torch.finfo(got.dtype)
    of_terms = largest[..., None] * weight.abs() + bias.abs()
    allowed = 2 * limits.eps * want.abs() + OF_TERMS * of_terms + limits.tiny
    return largest_part(got[images, rows, columns], want, allowed, want.abs() < limits.max)
