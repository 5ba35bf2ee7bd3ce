"""The term that the kernel-wise positional embedding adds (Eq. 3), by summed-area table.

Eq. 3 splits into the convolution of ``X`` and ``M(c, y, x) = sum W(c, i, j) * h(c, i, j)`` over the kernel positions
that read inside the map. Those positions form a rectangle, so that ``M`` is a rectangle sum of ``W * h``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .sharing_grid import expand_kernel


def _weighted_embedding(weight: Tensor, grid: Sequence[int], embedding: Tensor) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)  # sums over thousands of positions
    return expand_kernel(weight[:, 0], grid).to(dtype) * embedding.to(dtype)


def summed_area_table(weight: Tensor, grid: Sequence[int], embedding: Tensor) -> Tensor:
    """Two-dimensional prefix sums of ``W * h``.

    Args:
        weight: ``(C, 1, k', k')``.
        grid: ``k'`` ring widths that sum to ``K``.
        embedding: ``(C, K, K)``.

    Returns:
        ``(C, K + 1, K + 1)`` in at least float32; entry ``[c, i, j]`` sums the first ``i`` rows and ``j`` columns.
    """
    return prefix_sum(prefix_sum(F.pad(_weighted_embedding(weight, grid, embedding), (1, 0, 1, 0)), -2), -1)


def positional_map(table: Tensor, size: Sequence[int]) -> Tensor:
    """``M`` for a map of ``size``: four look-ups per position.

    Args:
        table: ``(C, K + 1, K + 1)`` from :func:`summed_area_table`.
        size: ``(H, W)`` of the feature map.

    Returns:
        ``(C, H, W)``.
    """
    kernel_size = table.shape[-1] - 1
    (top, bottom), (left, right) = (inside(extent, kernel_size, table.device) for extent in size)
    rows = table.index_select(-2, bottom) - table.index_select(-2, top)
    return rows.index_select(-1, right) - rows.index_select(-1, left)


def inside(extent: int, kernel_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First kernel position inside a map of ``extent`` and the one past the last, for every output along an axis."""
    first = kernel_size // 2 - torch.arange(extent, device=device)
    return first.clamp(0, kernel_size), (first + extent).clamp(0, kernel_size)


def positional_constant(weight: Tensor, grid: Sequence[int], embedding: Tensor) -> Tensor:
    """The term when Eq. 3's sum runs over the whole kernel everywhere: one number per channel, shape ``(C,)``."""
    return _weighted_embedding(weight, grid, embedding).sum((-2, -1))


def prefix_sum(x: Tensor, dim: int) -> Tensor:
    """Inclusive prefix sums of a floating-point tensor along ``dim``.

    ``cumsum`` has no deterministic kernel on CUDA; under ``torch.use_deterministic_algorithms(True)`` the sums are
    taken there as a product with a triangular matrix, in float64 so that TensorFloat-32 cannot round it.
    """
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return x.cumsum(dim)
    length = x.shape[dim]
    triangle = torch.ones(length, length, dtype=torch.float64, device=x.device).triu()
    return (x.movedim(dim, -1).double() @ triangle).movedim(-1, dim).to(x.dtype)
