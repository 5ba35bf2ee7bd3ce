"""The matrix backend: vertical box sums times banded Toeplitz matrices.

With ``E`` the 0/1 expansion of the grid the dense kernel is ``E w E^T``. Ring ``a`` of the rows turns the map into its
vertical box sums, differences of prefix sums; row ``a`` of ``w`` turns those into outputs by a ``W x W`` Toeplitz
matrix that is constant on the rings of the columns. No K x K kernel appears.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from .prefix import prefix_sum
from .sharing_grid import reachable_rings
from .workspace import channel_chunks

__all__ = ['forward', 'weight_grad']

_TILE = 64  # output columns that share one Toeplitz matrix of 64 x (K + 63)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int]) -> Tensor:
    """Sum of box-filtered maps times Toeplitz matrices. Shapes as in :func:`mmpelk.ops.peripheral_conv2d`."""
    batch, _, height, width = x.shape
    (row_rings, row_edges), columns = reachable_rings(grid, height), _Columns(grid, x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for channels in channel_chunks(x, _plane_bytes(x)):
        boxes = _VerticalBoxes(x[:, channels], row_edges)
        rows = weight[channels, 0, row_rings, columns.rings].to(boxes.dtype)
        planes = torch.zeros(boxes.channels, batch * height, width, dtype=boxes.dtype, device=x.device)
        for a, box in enumerate(boxes):
            toeplitz = columns.toeplitz(rows[:, a])
            for source, target, band in columns.tiles():
                planes[..., target].baddbmm_(box[..., source], toeplitz[:, band, : target.stop - target.start])
        result = planes.view(boxes.channels, batch, height, width).transpose(0, 1)
        if bias is not None:
            result = result + (bias[channels] if bias.dim() == 3 else bias[channels, None, None])
        out[:, channels] = result
    return out


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``."""
    batch, _, height, width = x.shape
    (row_rings, row_edges), columns = reachable_rings(grid, height), _Columns(grid, x)
    grad = torch.zeros(x.shape[1], 1, len(grid), len(grid), dtype=x.dtype, device=x.device)
    for channels in channel_chunks(x, _plane_bytes(x)):
        boxes = _VerticalBoxes(x[:, channels], row_edges)
        planes = grad_out[:, channels].transpose(0, 1).reshape(boxes.channels, batch * height, width).to(boxes.dtype)
        sums = []
        for box in boxes:
            toeplitz = torch.zeros(boxes.channels, columns.span, columns.tile, dtype=boxes.dtype, device=x.device)
            for source, target, band in columns.tiles():
                toeplitz[:, band, : target.stop - target.start].baddbmm_(box[..., source].mT, planes[..., target])
            sums.append(columns.ring_sums(toeplitz))
        grad[channels, 0, row_rings, columns.rings] = torch.stack(sums, 1).to(x.dtype)
    return grad


def _plane_bytes(x: Tensor) -> int:
    """Prefix sums with their margins, one box-filtered map, the output: about five maps in the working precision."""
    return 5 * x.shape[-2] * x.shape[-1] * max(4, x.element_size())


class _VerticalBoxes:
    """Iterates over the vertical box sums of a map, ``(c, N * H, W)`` for every reachable ring of the rows."""

    def __init__(self, x: Tensor, edges: tuple[int, ...]) -> None:
        self.dtype = torch.promote_types(x.dtype, torch.float32)  # prefix sums must not be rounded to half precision
        self.batch, self.channels, self.height, self.width = x.shape
        self.edges, self.low = edges, edges[0]
        first = 1 - self.low  # rows above the map that some box starts in, and the empty sum
        total = self.height + edges[-1] - self.low
        self.prefix = torch.zeros(self.channels, self.batch, total, self.width, dtype=self.dtype, device=x.device)
        inside = min(self.height, total - first)
        sums = prefix_sum(x.transpose(0, 1).to(self.dtype), -2)
        self.prefix[:, :, first : first + inside] = sums[:, :, :inside]
        self.prefix[:, :, first + inside :] = sums[:, :, -1:]

    def __iter__(self) -> Iterator[Tensor]:
        for low, high in pairwise(self.edges):
            start, stop = low - self.low, high - self.low
            box = self.prefix[:, :, stop : stop + self.height] - self.prefix[:, :, start : start + self.height]
            yield box.view(self.channels, self.batch * self.height, self.width)


class _Columns:
    """The Toeplitz side: tiles of output columns, the input columns that they read, the rings along the rows."""

    def __init__(self, grid: Sequence[int], x: Tensor) -> None:
        self.width = x.shape[-1]
        self.rings, self.edges = reachable_rings(grid, self.width)
        self.tile = min(_TILE, self.width)
        self.span = self.tile + self.edges[-1] - 1 - self.edges[0]
        dtype = torch.promote_types(x.dtype, torch.float32)
        self.basis = _toeplitz_basis(self.edges, self.tile, dtype, x.device)

    def toeplitz(self, row: Tensor) -> Tensor:
        """Banded matrices ``(c, span, tile)`` of one kernel row ``(c, k')``."""
        return (row @ self.basis).view(-1, self.span, self.tile)

    def ring_sums(self, toeplitz: Tensor) -> Tensor:
        """Adjoint of :meth:`toeplitz`: ``(c, span, tile)`` to ``(c, k')``."""
        return toeplitz.flatten(1) @ self.basis.T

    def tiles(self) -> Iterator[tuple[slice, slice, slice]]:
        """Input columns, output columns, and the rows of the Toeplitz matrix that the input columns meet."""
        for start in range(0, self.width, self.tile):
            stop = min(start + self.tile, self.width)
            first = start + self.edges[0]
            low, high = max(0, first), min(self.width, stop + self.edges[-1] - 1)
            yield slice(low, high), slice(start, stop), slice(low - first, high - first)


@lru_cache(maxsize=64)
def _toeplitz_basis(edges: tuple[int, ...], tile: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0/1 matrices of the column rings, ``(rings, span * tile)``: which ring input column i is for output column j."""
    span = tile + edges[-1] - 1 - edges[0]
    tap = torch.arange(span)[:, None] + edges[0] - torch.arange(tile)
    rings = [(tap >= low) & (tap < high) for low, high in pairwise(edges)]
    return torch.stack(rings).flatten(1).to(device=device, dtype=dtype)
