"""Tiles, tables and launches of the kernels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...layout import empty_as
from ...sharing_grid import reachable_rings
from . import kernels
from .kernels import ROWS

__all__ = ['PAIR_FROM', 'PROGRAMS', 'WORKSPACE', 'forward', 'weight_grad']

WORKSPACE = 64 << 20
"""Bytes of Toeplitz matrices at a time; more channels than fit are worked through in chunks."""

PAIR_FROM = 1024
"""A program multiplies two tiles by each Toeplitz matrix once there are this many tiles, enough to fill a large GPU.

Only in 16 bits: the parts of float32 leave no registers for a second tile."""

PROGRAMS = 2048
"""The sum of a weight gradient is split over programs until there are about this many: several waves on a large GPU."""


@dataclass(frozen=True)
class Plan:
    """How a grid is laid over a map: everything that depends on neither the batch nor the tensors.

    Attributes:
        row_rings: ``(rings, 3)`` int32: for each ring of rows that meets the map its index in the grid, its first row
            relative to the output, its number of rows. Rings wider than one row come first.
        wide: Number of rings wider than one row.
        scales: ``(rings,)`` float32 powers of two that bring a ring's box sums to the size of one input.
        ring_of_tap: ``(taps,)`` int32: ring of each column of the kernel that meets the map.
        first_tap: Column of the first of them relative to the output.
        cols: Side of a Toeplitz matrix, and columns of a tile.
        left: Columns by which the first input tile lies to the left of its output tile; a multiple of 16, so that loads
            stay aligned.
        in_tiles: Input tiles that an output tile needs.
        tail: Rows past ``ROWS`` that a window needs for the widest ring, if the map is higher than ``ROWS``.
        images: Images whose rows share a tile; 1 if the map is higher than half a tile.
        row_tiles: Tiles from top to bottom of the map.
        col_tiles: Tiles from left to right of the map.
    """

    row_rings: Tensor
    wide: int
    scales: Tensor
    ring_of_tap: Tensor
    first_tap: int
    cols: int
    left: int
    in_tiles: int
    tail: int
    images: int
    row_tiles: int
    col_tiles: int

    @property
    def rings(self) -> int:
        return len(self.row_rings)

    def tile_options(self) -> dict[str, Any]:
        """The compile-time constants that describe a tile."""
        whole = self.row_tiles == 1
        return dict(ROWS=ROWS, COLS=self.cols, TAIL=self.tail, IMAGES=self.images, WHOLE=whole)


@lru_cache(maxsize=256)
def make_plan(grid: tuple[int, ...], height: int, width: int, device: torch.device) -> Plan:
    """Lay a grid over a map. The tables are small and stay on the device."""
    kept_rows, row_edges = reachable_rings(grid, height)
    rows = [
        (ring, low, high - low)
        for ring, low, high in zip(range(kept_rows.start, kept_rows.stop), row_edges[:-1], row_edges[1:], strict=True)
    ]
    rows.sort(key=lambda row: row[2] == 1)
    widest = max(ring_width for *_, ring_width in rows)

    kept_cols, col_edges = reachable_rings(grid, width)
    taps = [
        ring
        for ring, low, high in zip(range(kept_cols.start, kept_cols.stop), col_edges[:-1], col_edges[1:], strict=True)
        for _ in range(high - low)
    ]
    if width <= ROWS:
        cols, left, in_tiles = max(16, _power_of_two(width)), 0, 1
    else:
        cols, left = ROWS, math.ceil(-col_edges[0] / 16) * 16
        in_tiles = math.ceil((left + cols + col_edges[-1] - 1) / cols)

    with torch.inference_mode(False):  # the tables outlive the call
        return Plan(
            row_rings=torch.tensor(rows, dtype=torch.int32, device=device),
            wide=sum(ring_width > 1 for *_, ring_width in rows),
            scales=torch.tensor(
                [0.5 ** (ring_width.bit_length() - 1) for *_, ring_width in rows], dtype=torch.float32, device=device
            ),
            ring_of_tap=torch.tensor(taps, dtype=torch.int32, device=device),
            first_tap=col_edges[0],
            cols=cols,
            left=left,
            in_tiles=in_tiles,
            tail=max(16, _power_of_two(widest - 1)),
            images=ROWS // _power_of_two(height) if height <= ROWS else 1,
            row_tiles=math.ceil(height / ROWS),
            col_tiles=math.ceil(width / cols),
        )


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``."""
    return 1 << max(number - 1, 0).bit_length()


def _alignment(tensor: Tensor) -> int:
    """How many elements, up to 16 bytes, every row of a map can be read at a time."""
    if tensor.stride(-1) != 1:
        return 1
    size = tensor.element_size()
    return math.gcd(16 // size, tensor.data_ptr() // size, tensor.shape[-1], *tensor.stride()[:-1])


def _parts(dtype: torch.dtype) -> int:
    """bfloat16 parts that a number is split into for a product: see the kernels."""
    if dtype != torch.float32:
        return 1
    matmul = torch.backends.cuda.matmul
    # ``fp32_precision`` (torch 2.9) reflects ``allow_tf32`` too, and reading that one raises once the new name was set.
    tf32 = matmul.fp32_precision == 'tf32' if hasattr(matmul, 'fp32_precision') else matmul.allow_tf32
    return 2 if tf32 else 3


def _launch_options(dtype: torch.dtype) -> dict[str, int]:
    """One warp group, and as many stages of the load pipeline as leave room for several programs per multiprocessor."""
    return dict(num_warps=4, num_stages=2 if dtype == torch.float32 else 3)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], out: Tensor | None = None) -> Tensor:
    """The convolution. Shapes as in :func:`mmpelk.ops.peripheral_conv2d`; any strides.

    float32 keeps its precision, unless ``torch.backends.cuda.matmul.allow_tf32`` is set: then products have a relative
    error of 2**-16, better than TF32's own 2**-11, for half the work. That flag, off by default, and not the one of
    cuDNN, on by default, because PyTorch's depthwise kernels never use TF32 either.
    """
    out = empty_as(x) if out is None else out
    if out.numel() == 0:
        return out
    channels, height, width = x.shape[1:]
    plan = make_plan(tuple(grid), height, width, x.device)
    matrix_bytes = 2 * _parts(x.dtype) * plan.rings * plan.in_tiles * plan.cols**2
    chunk = max(1, WORKSPACE // matrix_bytes)
    with torch.cuda.device_of(x):
        for start in range(0, channels, chunk):
            part = slice(start, start + chunk)
            _conv(x[:, part], weight[part], None if bias is None else bias[part], out[:, part], plan)
    return out


def _toeplitz(weight: Tensor, plan: Plan) -> Tensor:
    """The matrices ``T``, ``(C, in_tiles, rings, parts, cols, cols)``."""
    channels, parts = weight.shape[0], _parts(weight.dtype)
    toeplitz = weight.new_empty(
        (channels, plan.in_tiles, plan.rings, parts, plan.cols, plan.cols),
        dtype=torch.bfloat16 if weight.dtype == torch.float32 else weight.dtype,
    )
    kernels.toeplitz_kernel[(channels * plan.in_tiles * plan.rings,)](
        weight,
        toeplitz,
        plan.row_rings,
        plan.scales,
        plan.ring_of_tap,
        *(weight.stride(dim) for dim in (0, 2, 3)),
        plan.rings,
        plan.in_tiles,
        plan.left,
        plan.first_tap,
        len(plan.ring_of_tap),
        COLS=plan.cols,
        PARTS=parts,
    )
    return toeplitz


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, plan: Plan) -> None:
    images, channels, height, width = x.shape
    tiles = channels * plan.row_tiles * plan.col_tiles
    groups = math.ceil(images / plan.images)
    pair = groups > 1 and tiles * groups >= PAIR_FROM and x.dtype != torch.float32
    if pair:
        groups = math.ceil(images / (2 * plan.images))
    bias_strides = (0, 0, 0) if bias is None else (*bias.stride(), 0, 0)[:3]
    align_out = _alignment(out) if bias is None or bias.dim() == 1 else math.gcd(_alignment(out), _alignment(bias))
    kernels.conv_kernel[(tiles * groups,)](
        x,
        _toeplitz(weight, plan),
        x if bias is None else bias,
        out,
        plan.row_rings,
        plan.scales,
        images,
        height,
        width,
        *x.stride(),
        *out.stride(),
        *bias_strides,
        plan.wide,
        plan.rings,
        groups,
        plan.row_tiles,
        plan.col_tiles,
        plan.in_tiles,
        plan.left,
        **plan.tile_options(),
        PARTS=_parts(x.dtype),
        ALIGN=_alignment(x),
        PAIR=pair,
        BIAS=0 if bias is None else 1 if bias.dim() == 1 else 2,
        ALIGN_OUT=align_out,
        **_launch_options(x.dtype),
    )


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``.

    Deterministic: the shares of the sum are added in a fixed order. Precision and strides as in :func:`forward`.
    """
    images, channels, height, width = x.shape
    rings = len(grid)
    if x.numel() == 0:
        return x.new_zeros(channels, 1, rings, rings)
    plan = make_plan(tuple(grid), height, width, x.device)
    steps = math.ceil(images / plan.images) * plan.row_tiles * plan.col_tiles
    splits = min(steps, math.ceil(PROGRAMS / (channels * plan.in_tiles * math.ceil(plan.rings / 2))))
    # Rings that meet no map keep their zeros.
    partial = x.new_zeros(channels, splits, plan.in_tiles, rings, rings, dtype=torch.float32)
    with torch.cuda.device_of(x):
        for first, last, wide in ((0, plan.wide, True), (plan.wide, plan.rings, False)):
            if first == last:
                continue
            kernels.weight_grad_kernel[(channels * splits * plan.in_tiles * math.ceil((last - first) / 2),)](
                x,
                grad_out,
                partial,
                plan.row_rings,
                plan.scales,
                plan.ring_of_tap,
                images,
                height,
                width,
                *x.stride(),
                *grad_out.stride(),
                first,
                last,
                rings,
                plan.row_tiles,
                plan.col_tiles,
                plan.in_tiles,
                plan.left,
                plan.first_tap,
                len(plan.ring_of_tap),
                steps,
                splits,
                **plan.tile_options(),
                PARTS=_parts(x.dtype),
                ALIGN=_alignment(x),
                WIDE=wide,
                ALIGN_GRAD=_alignment(grad_out),
                **_launch_options(x.dtype),
            )
    return partial.sum((1, 2)).to(x.dtype).unsqueeze(1)
