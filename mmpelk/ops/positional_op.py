"""The positional term of a network in training, as one operator with one for its gradients.

``M = R (W * h) C^T``, where row ``y`` of the 0/1 matrix ``R`` says which rows of the kernel read inside the map for the
outputs of row ``y``, and ``C`` the same of the columns; and ``W = E w E^T`` with the expansion ``E`` of the grid. What
:mod:`.positional` says by look-ups, in two operators instead of some twenty.

An embedding may be the central part alone, beyond which it counts as zero: :func:`central_embedding` takes what a map
reads of it. The results have the embedding's memory format, fastest channels last. The weight may have the
channels of several kernels that share the embedding, one kernel after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .autocast import without_autocast
from .custom_op import register
from .positional import inside
from .sharing_grid import reachable_positions


@dataclass(frozen=True)
class _Axis:
    """The 0/1 matrices along one axis of an embedding of ``size`` positions in the middle of the kernel's.

    Attributes:
        reads: Whether a position reads inside the map for an output, ``(extent, size)``.
        expansion: Whether it belongs to a ring, ``(size, k')``.
        rings: The ring that it belongs to, ``(size,)``.
    """

    reads: Tensor
    expansion: Tensor
    rings: Tensor


@lru_cache(maxsize=256)
def _axis(grid: tuple[int, ...], size: int, extent: int, dtype: torch.dtype, device: torch.device) -> _Axis:
    with torch.inference_mode(False):  # it outlives the call
        first, last = inside(extent, sum(grid), device)
        middle = slice((sum(grid) - size) // 2, (sum(grid) + size) // 2)
        position = torch.arange(sum(grid), device=device)[middle]
        reads = (position >= first[:, None]) & (position < last[:, None])
        rings = torch.arange(len(grid)).repeat_interleave(torch.tensor(grid))[middle]
        return _Axis(reads.to(dtype), torch.eye(len(grid), dtype=dtype)[rings].to(device), rings.to(device))


@lru_cache(maxsize=256)
def _taps(grid: tuple[int, ...], height: int, width: int, device: torch.device) -> Tensor:
    """Which of the ``k'^2`` numbers of a weight each of ``height * width`` positions has."""
    with torch.inference_mode(False):
        rows, columns = (_axis(grid, size, size, torch.float32, device).rings for size in (height, width))
        return (rows[:, None] * len(grid) + columns).flatten()


def _expanded(weight: Tensor, embedding: Tensor, grid: Sequence[int], dtype: torch.dtype) -> Tensor:
    """``W`` at the positions of the embedding, ``(a, b, n C)`` without gaps."""
    sides = embedding.shape[1:]
    taps = weight.flatten(1).mT.to(dtype).index_select(0, _taps(tuple(grid), *sides, weight.device))
    return taps.view(*sides, -1)


def _axes(weight: Tensor, embedding: Tensor, grid: Sequence[int], size: Sequence[int]) -> tuple[_Axis, _Axis]:
    height, width = embedding.shape[-2:]
    if any(extent % 2 == 0 or extent > sum(grid) for extent in (height, width)):
        raise ValueError(
            f'an embedding of {height} x {width} positions is neither that of a {sum(grid)} x {sum(grid)} kernel nor '
            'its centre: it has odd sides, at most those of the kernel'
        )
    args = _dtype(weight), weight.device
    return _axis(tuple(grid), height, size[0], *args), _axis(tuple(grid), width, size[1], *args)


def _dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)  # sums over thousands of positions


def central_embedding(embedding: Tensor, size: Sequence[int]) -> Tensor:
    """The crop of an embedding that a map of this size reaches, channels last, for all blocks that share it.

    Args:
        embedding: ``(C, K, K)``.
        size: ``(H, W)`` of the map.

    Returns:
        ``(C, min(K, 2 H - 1), min(K, 2 W - 1))``, dense in the order rows, columns, channels.
    """
    rows, columns = (reachable_positions(embedding.shape[-1], extent) for extent in size)
    return embedding[:, rows, columns].permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _channels_last(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """``(C, a, b)`` as a dense ``(a, b, C)``: passes over memory of one order are several times as fast."""
    return planes.permute(1, 2, 0).to(dtype).contiguous()


def _sandwich(rows: Tensor, planes: Tensor, columns: Tensor) -> Tensor:
    """``rows @ planes @ columns.T`` of every channel of ``(a, b, C)``."""
    half = (rows @ planes.flatten(1)).view(-1, *planes.shape[1:])
    return torch.bmm(columns.expand(len(half), -1, -1), half)


def _times_shared(planes: Tensor, embedding: Tensor) -> Tensor:
    """``(a, b, n C)`` in place times the ``(C, a, b)`` that all kernels share."""
    shared = _channels_last(embedding, planes.dtype).unsqueeze(2)
    return planes.view(*shared.shape[:2], -1, shared.shape[-1]).mul_(shared).view(planes.shape)


def term(weight: Tensor, embedding: Tensor, grid: Sequence[int], height: int, width: int) -> Tensor:
    """:data:`positional_term` without derivatives."""
    dtype = _dtype(weight)
    rows, columns = _axes(weight, embedding, grid, (height, width))
    with without_autocast(weight.device.type):
        kernel = _expanded(weight, embedding, grid, dtype)
        product = _times_shared(kernel, embedding)
        # Channels last, as the map that it is added to.
        return _sandwich(rows.reads, product, columns.reads).permute(2, 0, 1)


def _term_fake(weight: Tensor, embedding: Tensor, grid: Sequence[int], height: int, width: int) -> Tensor:
    return weight.new_empty(height, width, weight.shape[0], dtype=_dtype(weight)).permute(2, 0, 1)


def term_grads(grad: Tensor, weight: Tensor, embedding: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Gradients of weight and embedding from that of the term, ``(C, H, W)``."""
    dtype = _dtype(weight)
    rows, columns = _axes(weight, embedding, grid, grad.shape[1:])
    with without_autocast(weight.device.type):
        product = _sandwich(rows.reads.mT, _channels_last(grad, dtype), columns.reads.mT)
        kernel = _expanded(weight, embedding, grid, dtype)
        of_embedding = kernel.mul_(product)
        if len(embedding) < len(weight):
            of_embedding = of_embedding.view(*of_embedding.shape[:2], -1, len(embedding)).sum(2)
        of_kernel = _times_shared(product, embedding)
        of_weight = _sandwich(rows.expansion.mT, of_kernel, columns.expansion.mT).permute(2, 0, 1).unsqueeze(1)
        return of_weight.to(weight.dtype).contiguous(), _cast_like(of_embedding.permute(2, 0, 1), embedding)


def _cast_like(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in the dtype and the memory format of ``like``."""
    same = value.dtype == like.dtype and value.stride() == like.stride()
    return value if same else torch.empty_like(like).copy_(value)


def _grads_fake(grad: Tensor, weight: Tensor, embedding: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), torch.empty_like(embedding)


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
"""``M`` ``(n C, H, W)`` in at least float32, from weight, embedding ``(C, K, K)`` or its centre, grid, ``H``, ``W``."""
_term_grads = register(
    'positional_term_grads',
    '(Tensor grad, Tensor weight, Tensor embedding, int[] grid) -> (Tensor, Tensor)',
    term_grads,
    _grads_fake,
    _grads_setup,
    _grads_backward,
)
