"""Tiles and launches of the kernels."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from ...layout import empty_as
from ...sharing_grid import reachable_rings
from . import interpreted, kernels
from .kernels import ROWS

__all__ = ['PACK_FROM', 'PAIR_FROM', 'PROGRAMS', 'WORKSPACE', 'forward', 'kernel_key', 'weight_grad']

WORKSPACE = 64 << 20
"""Bytes of Toeplitz matrices at a time; more channels than fit are worked through in chunks."""

PAIR_FROM = 1024
"""A program multiplies two tiles by each Toeplitz matrix once there are this many tiles, enough to fill a large GPU.

Only in 16 bits on Hopper: the parts of float32, and older tensor cores, leave no registers for a second tile. And
only from ``PACK_FROM`` images on, so that a small batch of many sizes needs one kernel."""

PACK_FROM = 8
"""Images of a batch from which on several low maps share a tile. Fewer images do not fill a GPU either way, and then
every height would be another kernel to compile: detection has batches of two and hundreds of sizes."""

PROGRAMS = 2048
"""The sum of a weight gradient is split over programs until there are about this many: several waves on a large GPU."""


@dataclass(frozen=True)
class Plan:
    """How a grid is laid over a map: everything that depends on neither the batch nor the tensors.

    The rings are compile-time constants of the kernels, so nothing of a plan lies on the device: no copies, and no
    pointers that a captured CUDA graph could outlive. Maps larger than the kernel have the same rings at every size.

    Attributes:
        row_rings: Index in the grid of each ring of rows that meets the map. Rings wider than one row come first.
        row_lows: First row of each of them relative to the output.
        row_widths: Rows of each of them.
        first_col_ring: Index in the grid of the first ring of columns that meets the map.
        col_edges: Edges of these rings relative to the output: one more than there are rings.
        cols: Side of a Toeplitz matrix, and columns of a tile.
        left: Columns by which the first input tile lies to the left of its output tile; a multiple of 16, so that loads
            stay aligned.
        in_tiles: Input tiles that an output tile needs.
        tail: Rows past ``ROWS`` that a window needs for the widest ring, if the map is higher than ``ROWS``.
        most_images_per_tile: Images whose rows fit into a tile; 1 if the map is higher than half a tile.
        row_tiles: Tiles from top to bottom of the map.
        col_tiles: Tiles from left to right of the map.
    """

    row_rings: tuple[int, ...]
    row_lows: tuple[int, ...]
    row_widths: tuple[int, ...]
    first_col_ring: int
    col_edges: tuple[int, ...]
    cols: int
    left: int
    in_tiles: int
    tail: int
    most_images_per_tile: int
    row_tiles: int
    col_tiles: int

    @property
    def constants(self) -> Hashable:
        """What of a plan the kernels are compiled for."""
        return self.row_rings, self.row_lows, self.row_widths, self.col_edges, self.cols, self.tail, self.row_tiles == 1

    @property
    def wide(self) -> int:
        """Number of rings wider than one row."""
        return sum(width > 1 for width in self.row_widths)

    def images_per_tile(self, images: int) -> int:
        """Images whose rows share a tile, for a batch of ``images``."""
        return self.most_images_per_tile if images >= PACK_FROM else 1

    def tile_options(self, images: int) -> dict[str, Any]:
        """The compile-time constants that describe a tile, for a batch of ``images``."""
        whole = self.row_tiles == 1
        return dict(ROWS=ROWS, COLS=self.cols, TAIL=self.tail, IMAGES=self.images_per_tile(images), WHOLE=whole)


@lru_cache(maxsize=4096)
def make_plan(grid: tuple[int, ...], height: int, width: int) -> Plan:
    """Lay a grid over a map."""
    kept_rows, row_edges = reachable_rings(grid, height)
    rows = [
        (ring, low, high - low)
        for ring, low, high in zip(range(kept_rows.start, kept_rows.stop), row_edges[:-1], row_edges[1:], strict=True)
    ]
    rows.sort(key=lambda row: row[2] == 1)
    row_rings, row_lows, row_widths = zip(*rows, strict=True)
    kept_cols, col_edges = reachable_rings(grid, width)
    if width <= ROWS:
        cols, left, in_tiles = max(16, _power_of_two(width)), 0, 1
    else:
        cols, left = ROWS, math.ceil(-col_edges[0] / 16) * 16
        in_tiles = math.ceil((left + cols + col_edges[-1] - 1) / cols)
    return Plan(
        row_rings=row_rings,
        row_lows=row_lows,
        row_widths=row_widths,
        first_col_ring=kept_cols.start,
        col_edges=col_edges,
        cols=cols,
        left=left,
        in_tiles=in_tiles,
        tail=max(16, _power_of_two(max(row_widths) - 1)),
        most_images_per_tile=ROWS // _power_of_two(height) if height <= ROWS else 1,
        row_tiles=math.ceil(height / ROWS),
        col_tiles=math.ceil(width / cols),
    )


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``."""
    return 1 << max(number - 1, 0).bit_length()


def _alignment(*tensors: Tensor) -> int:
    """How many elements every row of these maps can be read at a time: 16 bytes of them, two, or one.

    Not the step between: each would be another kernel to compile.
    """
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        return 1
    size = tensors[0].element_size()
    numbers = [
        number for tensor in tensors for number in (tensor.data_ptr() // size, tensor.shape[-1], *tensor.stride()[:-1])
    ]
    return max(step for step in (16 // size, 2, 1) if math.gcd(step, *numbers) == step)


def _parts(dtype: torch.dtype) -> int:
    """bfloat16 parts that a number is split into for a product: see the kernels."""
    if dtype != torch.float32:
        return 1
    matmul = torch.backends.cuda.matmul
    # ``fp32_precision`` (torch 2.9) reflects ``allow_tf32`` too, and reading that one raises once the new name was set.
    tf32 = matmul.fp32_precision == 'tf32' if hasattr(matmul, 'fp32_precision') else matmul.allow_tf32
    return 2 if tf32 else 3


_HOPPER = 9  # compute capability


@lru_cache(maxsize=64)
def _is_hopper(device: torch.device) -> bool:
    return interpreted() or torch.cuda.get_device_capability(device)[0] == _HOPPER


def _launch_options(dtype: torch.dtype, device: torch.device) -> dict[str, int]:
    """Warps of a program, and stages of its load pipeline that leave room for several programs per multiprocessor.

    On Hopper one warp group. Older tensor cores keep their factors in registers, which takes those of eight warps.
    """
    return dict(num_warps=4 if _is_hopper(device) else 8, num_stages=2 if dtype == torch.float32 else 3)


_stages_that_fit: dict[tuple[Any, ...], int] = {}


def _launch(kernel: Any, programs: int, *args: Any, num_stages: int, **options: Any) -> None:
    """Launch ``kernel``; where a GPU has too little shared memory for the load pipeline, with fewer of its stages."""
    key = (kernel, args[0].device, args[0].dtype, *options.values())
    stages = _stages_that_fit.get(key, num_stages)
    while True:
        try:
            kernel[(programs,)](*args, **options, num_stages=stages)
            return
        except OutOfResources:
            if stages == 1:
                raise
            stages -= 1
            _stages_that_fit[key] = stages


def kernel_key(x: Tensor, grid: Sequence[int]) -> Hashable:
    """What tells the kernels apart that a call on ``x`` and the gradients run, beside device and dtype."""
    plan = make_plan(tuple(grid), *x.shape[-2:])
    images = x.shape[0]
    return plan.constants, plan.images_per_tile(images), _pairs(x, plan), _parts(x.dtype), _alignment(x)


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
    plan = make_plan(tuple(grid), height, width)
    matrix_bytes = 2 * _parts(x.dtype) * len(plan.row_rings) * plan.in_tiles * plan.cols**2
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
        (channels, plan.in_tiles, len(plan.row_rings), parts, plan.cols, plan.cols),
        dtype=torch.bfloat16 if weight.dtype == torch.float32 else weight.dtype,
    )
    kernels.toeplitz_kernel[(channels * plan.in_tiles * len(plan.row_rings),)](
        weight,
        toeplitz,
        *(weight.stride(dim) for dim in (0, 2, 3)),
        plan.in_tiles,
        plan.left,
        ROW_RINGS=plan.row_rings,
        ROW_WIDTHS=plan.row_widths,
        COL_EDGES=plan.col_edges,
        FIRST_COL_RING=plan.first_col_ring,
        COLS=plan.cols,
        PARTS=parts,
    )
    return toeplitz


def _pairs(x: Tensor, plan: Plan) -> bool:
    """Whether a program multiplies two tiles. Not of windowed maps: the windows of two take too many registers."""
    images, channels = x.shape[:2]
    groups = math.ceil(images / plan.images_per_tile(images))
    return (
        images >= PACK_FROM
        and groups > 1
        and plan.row_tiles == 1
        and channels * plan.col_tiles * groups >= PAIR_FROM
        and x.dtype != torch.float32
        and _is_hopper(x.device)
    )


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, plan: Plan) -> None:
    images, channels, height, width = x.shape
    tiles = channels * plan.row_tiles * plan.col_tiles
    groups = math.ceil(images / plan.images_per_tile(images))
    pair = _pairs(x, plan)
    if pair:
        groups = math.ceil(groups / 2)
    bias_strides = (0, 0, 0) if bias is None else (*bias.stride(), 0, 0)[:3]
    align_out = _alignment(out, *([] if bias is None or bias.dim() == 1 else [bias]))
    _launch(
        kernels.conv_kernel,
        tiles * groups,
        x,
        _toeplitz(weight, plan),
        x if bias is None else bias,
        out,
        images,
        height,
        width,
        *x.stride(),
        *out.stride(),
        *bias_strides,
        plan.wide,
        len(plan.row_rings),
        groups,
        plan.row_tiles,
        plan.col_tiles,
        plan.in_tiles,
        plan.left,
        ROW_LOWS=plan.row_lows,
        ROW_WIDTHS=plan.row_widths,
        **plan.tile_options(images),
        PARTS=_parts(x.dtype),
        ALIGN=_alignment(x),
        PAIR=pair,
        BIAS=0 if bias is None else 1 if bias.dim() == 1 else 2,
        ALIGN_OUT=align_out,
        **_launch_options(x.dtype, x.device),
    )


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``.

    Deterministic: the shares of the sum are added in a fixed order. Precision and strides as in :func:`forward`.
    """
    images, channels, height, width = x.shape
    rings = len(grid)
    if x.numel() == 0:
        return x.new_zeros(channels, 1, rings, rings)
    plan = make_plan(tuple(grid), height, width)
    steps = math.ceil(images / plan.images_per_tile(images)) * plan.row_tiles * plan.col_tiles
    # Pairs of rings: those wider than one row first.
    pairs = math.ceil(plan.wide / 2) + math.ceil((len(plan.row_rings) - plan.wide) / 2)
    splits = min(steps, math.ceil(PROGRAMS / (channels * plan.in_tiles * pairs)))
    # Rings that meet no map keep their zeros.
    partial = x.new_zeros(channels, splits, plan.in_tiles, rings, rings, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _launch(
            kernels.weight_grad_kernel,
            channels * splits * plan.in_tiles * pairs,
            x,
            grad_out,
            partial,
            images,
            height,
            width,
            *x.stride(),
            *grad_out.stride(),
            plan.row_tiles,
            plan.col_tiles,
            plan.in_tiles,
            plan.left,
            steps,
            splits,
            ROW_RINGS=plan.row_rings,
            ROW_LOWS=plan.row_lows,
            ROW_WIDTHS=plan.row_widths,
            WIDE_RINGS=plan.wide,
            ALL_RINGS=rings,
            COL_EDGES=plan.col_edges,
            FIRST_COL_RING=plan.first_col_ring,
            **plan.tile_options(images),
            PARTS=_parts(x.dtype),
            ALIGN=_alignment(x),
            ALIGN_GRAD=_alignment(grad_out),
            **_launch_options(x.dtype, x.device),
        )
    return partial.sum((1, 2)).to(x.dtype).unsqueeze(1)
