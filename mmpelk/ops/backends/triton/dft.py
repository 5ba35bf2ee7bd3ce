"""Tiles and launches of the kernels that compute through Fourier transforms."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...sharing_grid import reachable_rings
from . import DFT_MARGIN, DFT_TILE, dft_kernels, launch
from .dft_kernels import FREQUENCIES, WIDTH

__all__ = ['PROGRAMS', 'forward', 'kernel_key', 'prepare', 'weight_grad']

# Numbers of a channel below which factors have two parts in bfloat16, too: errors of so few do not average out.
_FEW = 1024

PROGRAMS = 1024
"""Tiles of a channel are shared among programs until there are about this many, so that tables are read once for
several tiles."""


@dataclass(frozen=True)
class Axis:
    """How one axis of a map is cut into tiles and transformed.

    Attributes:
        outputs: Positions of a tile's output, a power of two.
        inputs: Positions that it reads, from ``margin`` before its first output on.
        margin: 0 if one tile holds the whole axis.
        extent: Positions of the map, or 0 if it has several tiles.
        radius: Positions that the kernel reaches to either side.
        edges: Where the rings begin and end, for each ring of the grid; empty rings beyond the map's reach.
    """

    outputs: int
    inputs: int
    margin: int
    extent: int
    radius: int
    edges: tuple[int, ...]

    @property
    def frequencies(self) -> int:
        """So many that nothing wraps around into the outputs."""
        farthest = self.outputs - 1 + 2 * self.radius if self.margin else self.extent - 1 + self.radius
        return farthest // 2 + 1

    def waves(self, first: int, count: int) -> Tensor:
        """Cosines and sines ``(2, frequencies, count)`` at positions from ``first`` on, in float64."""
        odd = 2 * torch.arange(self.frequencies)[:, None] + 1
        angle = math.pi / (2 * self.frequencies) * (odd * torch.arange(first, first + count)).double()
        return torch.stack([angle.cos(), angle.sin()])

    def input_waves(self) -> Tensor:
        """:meth:`waves` of the positions that are read, zero where no kernel reaches from an output."""
        waves = self.waves(-self.margin, self.inputs)
        if self.margin:
            waves[..., : self.margin - self.radius] = 0
            waves[..., self.margin + self.outputs + self.radius :] = 0
        return waves

    def rings(self) -> Tensor:
        """Spectra of the rings, ``(rings, 2, frequencies)``; zero for those that reach no position."""
        return torch.stack([self.waves(low, high - low).sum(-1) for low, high in pairwise(self.edges)])


@lru_cache(maxsize=4096)
def make_axis(grid: tuple[int, ...], extent: int) -> Axis:
    """Cut an axis of ``extent`` positions into tiles.

    Raises:
        ValueError: If it and the kernel are too large for any.
    """
    kept, inner = reachable_rings(grid, extent)
    edges = (inner[0],) * kept.start + inner + (inner[-1],) * (len(grid) - kept.stop)
    radius = -edges[0]
    if extent <= DFT_TILE or (radius > DFT_MARGIN and extent <= 2 * DFT_TILE):
        side = max(16, launch.power_of_two(extent))
        return Axis(side, side, 0, extent, radius, edges)
    if radius > DFT_MARGIN:
        raise ValueError(f'no tile holds {extent} positions and {radius} to either side')
    return Axis(DFT_TILE, 2 * DFT_TILE, DFT_MARGIN, 0, radius, edges)


@dataclass(frozen=True)
class Plan:
    """How a grid is laid over maps.

    Attributes:
        rows: The axis of the rows.
        columns: That of the columns.
        images: Images whose rows share a tile.
        parts: float16 numbers that the factors of products are split into.
        block: Frequencies of a block along the rows.
    """

    rows: Axis
    columns: Axis
    images: int
    parts: int
    block: int

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks of frequencies along the rows and along the columns."""
        rows = math.ceil(self.rows.frequencies * self.images / self.block)
        return rows, math.ceil(self.columns.frequencies / WIDTH)

    @property
    def spectrum_size(self) -> tuple[int, ...]:
        """Of one channel's kernel."""
        return *self.blocks, 4, self.block // self.images, WIDTH

    @property
    def alone(self) -> bool:
        """Whether a program computes one tile of the output."""
        return self.rows.frequencies > FREQUENCIES

    @property
    def high(self) -> int:
        """Rows of a tile that is read, of all its images."""
        return max(self.rows.inputs, FREQUENCIES)

    def options(self) -> dict[str, Any]:
        """The compile-time constants that describe a tile."""
        rows, columns = self.rows, self.columns
        return dict(
            ROWS_IN=self.high,
            COLS_IN=columns.inputs,
            ROWS=rows.outputs if rows.margin else self.high,
            COLS=columns.outputs,
            TOP=rows.margin,
            BLOCK=self.block,
            FREQS=WIDTH,
            IMAGES=self.images,
            PARTS=self.parts,
        )


def _plan(x: Tensor, grid: tuple[int, ...]) -> Plan:
    images, _, height, width = x.shape
    rows, columns = make_axis(grid, height), make_axis(grid, width)
    together = max(1, FREQUENCIES // launch.power_of_two(height)) if images >= launch.PACK_FROM else 1
    parts = 2 if x.dtype == torch.float16 or images * height * width < _FEW else 1
    # Two parts of the larger tables exceed the shared memory.
    double = rows.frequencies > FREQUENCIES and parts == 1 and launch.is_hopper(x.device)
    return Plan(rows, columns, together, parts, 2 * FREQUENCIES if double else FREQUENCIES)


class _Tables:
    """The matrices of one axis on a device. They are kept for good: a captured CUDA graph reads them where they are.

    Attributes:
        waves: Of the positions that a tile reads, cosines, then sines, for each block of frequencies.
        back: Of the positions of its output, transposed.
        grad_waves: The same, as they transform the output's gradient.
        rings: Spectra of the rings, ``(rings, blocks, 2, frequencies of a block)``, in float32.
        grad_rings: Those divided by what a transform there and back multiplies by.
        sizes: Positions of each ring, in float32.
    """

    def __init__(self, axis: Axis, images: int, parts: int, block: int, device: torch.device) -> None:
        is_rows, images = images > 0, max(images, 1)
        width = block // images
        blocks = math.ceil(axis.frequencies / width)
        least = FREQUENCIES if is_rows else 0

        def in_blocks(waves: Tensor, count: int) -> Tensor:
            """``(blocks, 2, frequencies, positions)``; each image of a tile has frequencies of its own."""
            waves = _padded(waves, (blocks * width, max(count, least) // images))
            if images > 1:
                return torch.stack([torch.block_diag(*[half] * images) for half in waves])[None]
            return waves.view(2, blocks, width, -1).transpose(0, 1)

        def put(waves: Tensor) -> Tensor:
            """Both parts of every matrix, the second behind the first."""
            high = waves.half()
            both = [high, (waves - high.double()).half()][:parts]
            return torch.stack(both, 2).contiguous().to(device)

        read = in_blocks(axis.input_waves(), axis.inputs)
        written = in_blocks(axis.waves(0, axis.extent or axis.outputs), axis.outputs)
        if is_rows:  # which are multiplied from the left
            self.waves, self.back, self.grad_waves = put(read), put(written.mT), put(written)
        else:
            self.waves, self.back, self.grad_waves = put(read.mT), put(written), put(written.mT)
        spectra = _padded(axis.rings(), (blocks * width,))
        spectra = spectra.view(len(spectra), 2, blocks, width).transpose(1, 2).contiguous()
        self.rings = spectra.float().to(device)
        self.grad_rings = (spectra / axis.frequencies).float().to(device)
        sizes = [high - low for low, high in pairwise(axis.edges)]
        self.sizes = torch.tensor(sizes, dtype=torch.float32, device=device)


def _padded(waves: Tensor, size: Sequence[int]) -> Tensor:
    """With zeros, or cut, to the last sizes given."""
    out = waves.new_zeros(*waves.shape[: waves.dim() - len(size)], *size)
    kept: tuple[Any, ...] = (..., *(slice(min(a, b)) for a, b in zip(size, waves.shape[-len(size) :], strict=True)))
    out[kept] = waves[kept]
    return out


_tables: dict[Hashable, _Tables] = {}


def _tables_of(plan: Plan, device: torch.device) -> tuple[_Tables, _Tables]:
    """Of the rows and of the columns."""
    found = []
    for axis, images, block in ((plan.rows, plan.images, plan.block), (plan.columns, 0, WIDTH)):
        key = axis, images, plan.parts, block, device
        # Of two threads that make them at a time both take the first's.
        found.append(_tables.get(key) or _tables.setdefault(key, _Tables(*key)))
    return found[0], found[1]


def kernel_key(x: Tensor, grid: Sequence[int]) -> Hashable:
    """What tells the kernels and tables apart that a call on ``x`` and the gradients run, beside device and dtype."""

    def make() -> Hashable:
        copy = None if launch.are_planes(x) else (x.stride(1) == 1, launch.channel_alignment(x))
        return launch.numbered((_plan(x, tuple(grid)), copy))

    return launch.kept(('dft key', tuple(grid), x.dtype, x.device, launch.layout(x)), make)


_SUMS = 4096  # of four warps: more spill registers


def _rings_of_tile(rings: int) -> int:
    return max(16, launch.power_of_two(rings))


class _Spectrum(launch.Made):
    """The kernel's spectrum."""

    def plan(self, x: Tensor) -> None:
        self._plan = _plan(x, self._grid)
        self._tables = _tables_of(self._plan, x.device)
        self.size = self._plan.spectrum_size
        # As exact as the products' factors.
        self.dtype = torch.float16 if self._plan.parts == 1 else torch.float32

    def first(self, weight: Tensor, made: Tensor) -> Callable[..., Any]:
        (rows, columns), (row_blocks, col_blocks) = self._tables, self._plan.blocks
        tables = rows.rings, columns.rings, rows.sizes, columns.sizes
        run = launch.start(
            dft_kernels.dft_spectrum_kernel,
            (self._channels * row_blocks, col_blocks),
            (weight, made, *tables),
            (*self.strides(weight), len(self._grid), row_blocks),
            RINGS=_rings_of_tile(len(self._grid)),
            ROW_FREQS=self._plan.block // self._plan.images,
            FREQS=WIDTH,
        )
        return lambda weight, made: run(weight, made, *tables)


class _Convolution(launch.Convolution):
    makes = _Spectrum

    def plan(self, x: Tensor) -> None:
        self._plan = _plan(x, self._grid)
        self._tables = _tables_of(self._plan, x.device)

    def first(self, x: Tensor, made: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Callable[..., Any]:
        plan, (rows, columns) = self._plan, self._tables
        waves = rows.waves, rows.back, rows.sizes, columns.waves, columns.back, columns.sizes
        norm = 1 / (plan.rows.frequencies * plan.columns.frequencies)
        images, channels, height, width = x.shape
        steps, row_tiles, col_tiles = _steps(x, plan)
        splits = steps if plan.alone else min(steps, math.ceil(PROGRAMS / channels))
        bias_map, bias_numbers = launch.bias_layout(bias)
        tiling = steps, splits, row_tiles, col_tiles, plan.columns.margin, plan.blocks[1], norm
        sizes = images, height, width, *x.stride()[:3], *out.stride()[:3], *bias_numbers, *self.made.strides(weight)
        run = launch.start(
            dft_kernels.dft_conv_kernel,
            (channels * splits,),
            (x, made, weight, x if bias is None else bias, out, *waves),
            (*sizes, len(self._grid), *tiling),
            **plan.options(),
            ROW_BLOCKS=plan.blocks[0],
            RINGS=_rings_of_tile(len(self._grid)),
            ALONE=plan.alone,
            BIAS_MAP=bias_map,
            **_launch_options(x, plan),
        )
        return lambda x, made, weight, bias, out: run(x, made, weight, bias, out, *waves)


def _steps(x: Tensor, plan: Plan) -> tuple[int, int, int]:
    """Tiles of a channel, and how many of them from top to bottom and from left to right."""
    images, _, height, width = x.shape
    row_tiles, col_tiles = math.ceil(height / plan.rows.outputs), math.ceil(width / plan.columns.outputs)
    return math.ceil(images / plan.images) * row_tiles * col_tiles, row_tiles, col_tiles


def _launch_options(x: Tensor, plan: Plan) -> dict[str, int]:
    """One warp group for tiles of 64 rows. Two parts, and the tables of high tiles, leave nothing for more stages.

    Two parts take the registers of eight warps off Hopper, where there is shared memory for a program or two.
    """
    two = plan.parts > 1 and not launch.is_hopper(x.device)
    return dict(
        num_warps=8 if two or plan.high > FREQUENCIES else 4,
        num_stages=2 if plan.parts == 1 and plan.rows.outputs <= FREQUENCIES else 1,
    )


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: Sequence[int],
    out: Tensor | None = None,
    kernel: Tensor | None = None,
) -> Tensor:
    """The convolution; arguments as those of :func:`mmpelk.ops.backends.triton.launch.forward`."""
    return launch.convolve(_Convolution, x, weight, bias, grid, out, kernel)


def input_grad(grad_out: Tensor, weight: Tensor, grid: Sequence[int], out: Tensor, planes: list[Tensor]) -> Tensor:
    """As :func:`mmpelk.ops.backends.triton.launch.input_grad`."""
    return launch.convolve(_Convolution, grad_out, weight, None, grid, out, None, planes)


def prepare(weight: Tensor, grid: Sequence[int], x: Tensor) -> Tensor:
    """The kernel's spectrum for maps of the size of ``x``: of use while ``weight`` stays."""
    return launch.make(_Spectrum, weight, grid, x)


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int], planes: Sequence[Tensor] = ()) -> Tensor:
    """As :func:`mmpelk.ops.backends.triton.launch.weight_grad`."""
    return launch.weight_gradient(_WeightGrad, x, grad_out, grid, planes)


class _WeightGrad(launch.WeightGrad):
    def plan(self, x: Tensor) -> None:
        self._plan = _plan(x, self._grid)
        self._tables = _tables_of(self._plan, x.device)
        self._tiles = _steps(x, self._plan)
        row_blocks, col_blocks = self._plan.blocks
        self._splits = min(self._tiles[0], math.ceil(PROGRAMS / (x.shape[1] * row_blocks * col_blocks)))
        self.partial_size = x.shape[1], self._splits * row_blocks, len(self._grid), 2 * WIDTH * col_blocks

    def first(self, x: Tensor, grad_out: Tensor, partial: Tensor) -> Callable[..., Any]:
        plan, (rows, columns) = self._plan, self._tables
        row_blocks, col_blocks = plan.blocks
        steps, row_tiles, col_tiles = self._tiles
        waves = rows.waves, columns.waves, rows.grad_waves, columns.grad_waves, rows.grad_rings
        tiling = steps, self._splits, row_tiles, col_tiles, plan.columns.margin, col_blocks, row_blocks
        images, channels, height, width = x.shape
        strides = *x.stride()[:3], *grad_out.stride()[:3]
        run = launch.start(
            dft_kernels.dft_weight_grad_kernel,
            (channels * self._splits * row_blocks * col_blocks,),
            (x, grad_out, partial, *waves),
            (images, height, width, *strides, len(self._grid), *tiling),
            **plan.options(),
            **_launch_options(x, plan),
        )
        return lambda x, grad_out, partial: run(x, grad_out, partial, *waves)

    def add(self, partial: Tensor, out: Tensor) -> Callable[..., Any]:
        channels, shares, rings, frequencies = partial.shape
        spectra = self._tables[1].grad_rings
        rows, columns = _rings_of_tile(rings), launch.power_of_two(frequencies)
        run = launch.start(
            dft_kernels.dft_add_shares_kernel,
            (channels,),
            (partial, spectra, out),
            (shares, rings, frequencies),
            RINGS=rows,
            FREQS=columns,
            num_warps=4 if rows * columns <= _SUMS else 8,
        )
        return lambda partial, out: run(partial, spectra, out)
