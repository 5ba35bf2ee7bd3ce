"""The positional term of a network in training, as one operator with one for its gradients.

``M = R (W * h) C^T``, where row ``y`` of the 0/1 matrix ``R`` says which rows of the kernel read inside the map for the
outputs of row ``y``, and ``C`` the same of the columns; and ``W = E w E^T`` with the expansion ``E`` of the grid. What
:mod:`.positional` says by look-ups, in two operators instead of some twenty.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .autocast import without_autocast
from .custom_op import register
from .positional import inside

__all__ = ['positional_term', 'term', 'term_grads']


@lru_cache(maxsize=256)
def _reads(extent: int, kernel_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Whether position ``i`` of the kernel reads inside the map for output ``y``: 0 or 1, ``(extent, K)``."""
    with torch.inference_mode(False):  # it outlives the call
        first, last = inside(extent, kernel_size, device)
        position = torch.arange(kernel_size, device=device)
        return ((position >= first[:, None]) & (position < last[:, None])).to(dtype)


@lru_cache(maxsize=256)
def _expansion(grid: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Whether position ``i`` of the kernel belongs to a ring: 0 or 1, ``(K, k')``."""
    with torch.inference_mode(False):  # it outlives the call
        return torch.eye(len(grid), dtype=dtype).repeat_interleave(torch.tensor(grid), 0).to(device)


def _dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)  # sums over thousands of positions


def _channels_last(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """``(C, a, b)`` as a dense ``(a, b, C)``: passes over memory of one order are several times as fast."""
    return planes.permute(1, 2, 0).to(dtype).contiguous()


def _sandwich(rows: Tensor, planes: Tensor, columns: Tensor) -> Tensor:
    """``rows @ planes @ columns.T`` of every channel of ``(a, b, C)``."""
    half = (rows @ planes.flatten(1)).view(-1, *planes.shape[1:])
    return torch.bmm(columns.expand(len(half), -1, -1), half)


def _expanded(weight: Tensor, grid: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The dense kernel ``(K, K, C)``, and the matrix that expands."""
    expansion = _expansion(tuple(grid), dtype, weight.device)
    return _sandwich(expansion, _channels_last(weight[:, 0], dtype), expansion), expansion


def term(weight: Tensor, embedding: Tensor, grid: Sequence[int], height: int, width: int) -> Tensor:
    """:data:`positional_term` without derivatives."""
    dtype, kernel_size = _dtype(weight), embedding.shape[-1]
    rows, columns = (_reads(extent, kernel_size, dtype, weight.device) for extent in (height, width))
    with without_autocast(weight.device.type):
        product = _expanded(weight, grid, dtype)[0].mul_(_channels_last(embedding, dtype))
        # Channels last, as the map that it is added to.
        return _sandwich(rows, product, columns).permute(2, 0, 1)


def _term_fake(weight: Tensor, embedding: Tensor, grid: Sequence[int], height: int, width: int) -> Tensor:
    return weight.new_empty(height, width, weight.shape[0], dtype=_dtype(weight)).permute(2, 0, 1)


def term_grads(grad: Tensor, weight: Tensor, embedding: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Gradients of weight and embedding from that of the term, ``(C, H, W)``."""
    dtype, kernel_size = _dtype(weight), embedding.shape[-1]
    rows, columns = (_reads(extent, kernel_size, dtype, weight.device) for extent in grad.shape[1:])
    with without_autocast(weight.device.type):
        product = _sandwich(rows.mT, _channels_last(grad, dtype), columns.mT)  # (K, K, C)
        kernel, expansion = _expanded(weight, grid, dtype)
        of_embedding = kernel.mul_(product).permute(2, 0, 1)
        of_kernel = product.mul_(_channels_last(embedding, dtype))
        of_weight = _sandwich(expansion.mT, of_kernel, expansion.mT).permute(2, 0, 1).unsqueeze(1)
        return of_weight.to(weight.dtype).contiguous(), of_embedding.to(embedding.dtype).contiguous()


def _grads_fake(grad: Tensor, weight: Tensor, embedding: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), embedding.new_empty(embedding.shape)


def _term_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, embedding, ctx.grid, *_ = inputs
    ctx.save_for_backward(weight, embedding)


def _term_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_term_grads(grad, *ctx.saved_tensors, ctx.grid), None, None, None


def _grads_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.grid = inputs
    ctx.save_for_backward(*tensors)


def _grads_backward(ctx: Any, of_weight: Tensor, of_embedding: Tensor) -> tuple[Tensor | None, ...]:
    """The term is linear in weight and embedding, and its gradients in the gradient and the other."""
    grad, weight, embedding = ctx.saved_tensors
    size = grad.shape[1:]
    of_grad = positional_term(of_weight, embedding, ctx.grid, *size) + positional_term(
        weight, of_embedding, ctx.grid, *size
    )
    second_weight, _ = _term_grads(grad, weight, of_embedding, ctx.grid)
    _, second_embedding = _term_grads(grad, of_weight, embedding, ctx.grid)
    return of_grad.to(grad.dtype), second_weight, second_embedding, None


positional_term = register(
    'positional_term',
    '(Tensor weight, Tensor embedding, int[] grid, SymInt height, SymInt width) -> Tensor',
    term,
    _term_fake,
    _term_setup,
    _term_backward,
)
"""``M`` ``(C, H, W)`` in at least float32, from weight, embedding ``(C, K, K)``, grid, ``H`` and ``W``."""
_term_grads = register(
    'positional_term_grads',
    '(Tensor grad, Tensor weight, Tensor embedding, int[] grid) -> (Tensor, Tensor)',
    term_grads,
    _grads_fake,
    _grads_setup,
    _grads_backward,
)
