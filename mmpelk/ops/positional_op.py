"""The positional term of a network in training, as one operator with one for its gradients.

``M = R (W * h) C^T``, where row ``y`` of the 0/1 matrix ``R`` says which rows of the kernel read inside the map for the
outputs of row ``y``, and ``C`` the same of the columns. What :mod:`.positional` says by look-ups, in two operators
instead of some twenty.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .custom_op import register
from .positional import inside
from .sharing_grid import expand_kernel, reduce_kernel

__all__ = ['positional_term']


@lru_cache(maxsize=256)
def _reads(extent: int, kernel_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Whether position ``i`` of the kernel reads inside the map for output ``y``: 0 or 1, ``(extent, K)``."""
    with torch.inference_mode(False):  # it outlives the call
        first, last = inside(extent, kernel_size, device)
        position = torch.arange(kernel_size, device=device)
        return ((position >= first[:, None]) & (position < last[:, None])).to(dtype)


def _matrices(size: Sequence[int], embedding: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, columns = (_reads(extent, embedding.shape[-1], dtype, embedding.device) for extent in size)
    return rows, columns


def _dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)  # sums over thousands of positions


def _term(weight: Tensor, embedding: Tensor, grid: Sequence[int], height: int, width: int) -> Tensor:
    dtype = _dtype(weight)
    rows, columns = _matrices((height, width), embedding, dtype)
    # Channels last, as the map that it is added to.
    product = (expand_kernel(weight[:, 0].to(dtype), grid) * embedding).to(dtype).permute(1, 2, 0)
    half = (rows @ product.flatten(1)).view(height, *product.shape[1:])
    return torch.matmul(columns, half).permute(2, 0, 1)


def _term_fake(weight: Tensor, embedding: Tensor, grid: Sequence[int], height: int, width: int) -> Tensor:
    return weight.new_empty(height, width, weight.shape[0], dtype=_dtype(weight)).permute(2, 0, 1)


def _grads(grad: Tensor, weight: Tensor, embedding: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    dtype = _dtype(weight)
    rows, columns = _matrices(grad.shape[1:], embedding, dtype)
    half = (rows.mT @ grad.to(dtype).permute(1, 2, 0).flatten(1)).view(-1, grad.shape[2], grad.shape[0])
    product = torch.matmul(columns.mT, half).permute(2, 0, 1)  # (C, K, K)
    of_weight = reduce_kernel(product * embedding, grid).unsqueeze(1)
    of_embedding = product * expand_kernel(weight[:, 0].to(dtype), grid)
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
    _term,
    _term_fake,
    _term_setup,
    _term_backward,
)
"""``M`` ``(C, H, W)`` in at least float32, from weight, embedding ``(C, K, K)``, grid, ``H`` and ``W``."""
_term_grads = register(
    'positional_term_grads',
    '(Tensor grad, Tensor weight, Tensor embedding, int[] grid) -> (Tensor, Tensor)',
    _grads,
    _grads_fake,
    _grads_setup,
    _grads_backward,
)
