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

from ..layout import empty_as
from ..prefix import prefix_sum
from ..sharing_grid import reachable_rings
from ..workspace import channel_chunks, image_chunks

__all__ = ['forward', 'weight_grad']

_TILE = 64  # output columns that share one Toeplitz matrix of 64 x (K + 63)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], out: Tensor | None = None) -> Tensor:
    """Sum of box-filtered maps times Toeplitz matrices. Shapes as in :func:`mmpelk.ops.peripheral_conv2d`."""
    (row_rings, row_edges), columns = reachable_rings(grid, x.shape[-2]), _Columns(grid, x, torch.float32)
    out = empty_as(x) if out is None else out
    for channels, images in _pieces(x):
        boxes = _VerticalBoxes(x[images, channels], row_edges, columns.dtype)
        rows = weight[channels, 0, row_rings, columns.rings].to(columns.dtype)
        planes = torch.zeros(boxes.shape, dtype=columns.dtype, device=x.device)
        for a, box in enumerate(boxes):
            toeplitz = columns.toeplitz(rows[:, a])
            for source, target, band in columns.tiles():
                planes[..., target].baddbmm_(box[..., source], toeplitz[:, band, : target.stop - target.start])
        result = boxes.unfold(planes)
        if bias is not None:
            result = result + (bias[channels] if bias.dim() == 3 else bias[channels, None, None])
        out[images, channels] = result
    return out


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``."""
    # In float64: a sum over all positions, which dense accumulates to the last bit of float32.
    (row_rings, row_edges), columns = reachable_rings(grid, x.shape[-2]), _Columns(grid, x, torch.float64)
    grad = torch.zeros(x.shape[1], 1, len(grid), len(grid), dtype=columns.dtype, device=x.device)
    for channels, images in _pieces(x):
        boxes = _VerticalBoxes(x[images, channels], row_edges, columns.dtype)
        planes = grad_out[images, channels].transpose(0, 1).reshape(boxes.shape).to(columns.dtype)
        sums = []
        for box in boxes:
            toeplitz = torch.zeros(boxes.shape[0], columns.span, columns.tile, dtype=columns.dtype, device=x.device)
            for source, target, band in columns.tiles():
                toeplitz[:, band, : target.stop - target.start].baddbmm_(box[..., source].mT, planes[..., target])
            sums.append(columns.ring_sums(toeplitz))
        grad[channels, 0, row_rings, columns.rings] += torch.stack(sums, 1)
    return grad.to(x.dtype)


def _pieces(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Channels and images to work on at a time."""
    # In the working precision the box-filtered map, the output and its gradient; in float64 the prefix sums with their
    # margins. The Toeplitz matrix of a channel is smaller than a map, or at most 64 rows of one.
    plane_bytes = 7 * x.shape[-2] * x.shape[-1] * max(4, x.element_size())
    for channels in channel_chunks(x, plane_bytes):
        for images in image_chunks(x[:, channels], plane_bytes):
            yield channels, images


class _VerticalBoxes:
    """Iterates over the vertical box sums of ``(N, c, H, W)``, one ``(c, N * H, W)`` for every reachable ring."""

    def __init__(self, x: Tensor, edges: tuple[int, ...], dtype: torch.dtype) -> None:
        batch, channels, self.height, self.width = x.shape
        self.shape = (channels, batch * self.height, self.width)
        self.dtype = dtype
        self.edges, self.low = edges, edges[0]
        first = 1 - self.low  # rows above the map that some box starts in, and the empty sum
        total = self.height + edges[-1] - self.low
        # In float64: a box is a small difference of sums over whole columns.
        self.prefix = torch.zeros(channels, batch, total, self.width, dtype=torch.float64, device=x.device)
        inside = min(self.height, total - first)
        sums = prefix_sum(x.transpose(0, 1).double(), -2)
        self.prefix[:, :, first : first + inside] = sums[:, :, :inside]
        self.prefix[:, :, first + inside :] = sums[:, :, -1:]

    def __iter__(self) -> Iterator[Tensor]:
        for low, high in pairwise(self.edges):
            start, stop = low - self.low, high - self.low
            box = self.prefix[:, :, stop : stop + self.height] - self.prefix[:, :, start : start + self.height]
            yield box.to(self.dtype).view(self.shape)

    def unfold(self, planes: Tensor) -> Tensor:
        """``(c, N * H, W)`` as ``(N, c, H, W)``."""
        return planes.view(self.shape[0], -1, self.height, self.width).transpose(0, 1)


class _Columns:
    """The Toeplitz side: tiles of output columns, the input columns that they read, the rings along the rows."""

    def __init__(self, grid: Sequence[int], x: Tensor, dtype: torch.dtype) -> None:
        self.width = x.shape[-1]
        self.rings, self.edges = reachable_rings(grid, self.width)
        self.tile = min(_TILE, self.width)
        self.span = self.tile + self.edges[-1] - 1 - self.edges[0]
        self.dtype = torch.promote_types(x.dtype, dtype)
        self.basis = _toeplitz_basis(self.edges, self.tile, self.dtype, x.device)

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
