"""Tiles and launches of the kernels."""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from ...autocast import NO_CONTEXT
from ...layout import empty_as
from ...sharing_grid import reachable_rings
from ...workspace import workspace_limit
from . import allows_tf32, capability, interpreted, kernels
from .kernels import ROWS

__all__ = [
    'COPIED',
    'PACK_FROM',
    'PAIR_FROM',
    'PROGRAMS',
    'WORKSPACE',
    'forward',
    'input_grad',
    'kernel_key',
    'prepare',
    'weight_grad',
]

WORKSPACE = 64 << 20
"""Bytes of matrices made of the weight at a time; more channels than fit are worked through in chunks."""

PAIR_FROM = 1024
"""A program multiplies two tiles by each Toeplitz matrix once there are this many tiles, enough to fill a large GPU.

Only in 16 bits on Hopper: the parts of float32, and older tensor cores, leave no registers for a second tile. And
only from ``PACK_FROM`` images on, so that a small batch of many sizes needs one kernel."""

PACK_FROM = 8
"""Images of a batch from which on several low maps share a tile. Fewer images do not fill a GPU either way, and then
every height would be another kernel to compile: detection has batches of two and hundreds of sizes."""

COPIED = 64
"""Positions and channels of the tiles that are copied between layouts."""

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
def make_plan(grid: tuple[int, ...], height: int, width: int, most_cols: int = ROWS) -> Plan:
    """Lay a grid over a map, in tiles of at most ``most_cols`` columns."""
    kept_rows, row_edges = reachable_rings(grid, height)
    rows = [
        (ring, low, high - low)
        for ring, low, high in zip(range(kept_rows.start, kept_rows.stop), row_edges[:-1], row_edges[1:], strict=True)
    ]
    rows.sort(key=lambda row: row[2] == 1)
    row_rings, row_lows, row_widths = zip(*rows, strict=True)
    kept_cols, col_edges = reachable_rings(grid, width)
    if width <= most_cols:
        cols, left, in_tiles = max(16, power_of_two(width)), 0, 1
    else:
        cols, left = most_cols, math.ceil(-col_edges[0] / 16) * 16
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
        tail=max(16, power_of_two(max(row_widths) - 1)),
        most_images_per_tile=ROWS // power_of_two(height) if height <= ROWS else 1,
        row_tiles=math.ceil(height / ROWS),
        col_tiles=math.ceil(width / cols),
    )


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``."""
    return 1 << max(number - 1, 0).bit_length()


def row_length(width: int, dtype: torch.dtype) -> int:
    """Numbers of a plane's row: a multiple of 16 bytes."""
    step = 16 // dtype.itemsize
    return -(-width // step) * step


def are_planes(x: Tensor) -> bool:
    """Whether the kernels can read and write a map where it is: 16 bytes at a time."""
    step = 16 // x.element_size()
    images, channels, rows, columns = x.stride()
    return columns == 1 and not (
        x.shape[-1] % step or rows % step or channels % step or images % step or x.data_ptr() % 16
    )


def _is_padded_bias(bias: Tensor) -> bool:
    """Whether the kernels can read a map ``(C, H, W)`` where it is: its rows go on in memory for 16-byte loads."""
    step = 16 // bias.element_size()
    channels, rows, columns = bias.stride()
    if columns != 1 or rows < row_length(bias.shape[2], bias.dtype) or bias.data_ptr() % 16 or rows % step:
        return False
    end = bias.storage_offset() + (bias.shape[0] - 1) * channels + bias.shape[1] * rows
    return channels % step == 0 and end * bias.element_size() <= bias.untyped_storage().nbytes()


def bias_layout(bias: Tensor | None) -> tuple[bool, tuple[int, int, int]]:
    """Whether the kernels take it as a map, and its channels' and rows' strides and number of rows."""
    if bias is None:
        return True, (0, 0, 0)
    if bias.dim() == 1:
        return False, (bias.stride(0), 0, 0)
    return True, (bias.stride(0), bias.stride(1), bias.shape[1])


def channel_alignment(x: Tensor) -> int:
    """How many channels of a map in channels last can be moved at a time: 16 bytes of them, 4 bytes, or one.

    Not the step between: each would be another kernel to compile.
    """
    size = x.element_size()
    numbers = (x.data_ptr() // size, x.shape[1], x.stride(0), x.stride(2), x.stride(3))
    return max(step for step in (16 // size, 4 // size, 1) if math.gcd(step, *numbers) == step)


def _parts(dtype: torch.dtype) -> int:
    """bfloat16 parts that a number is split into for a product: see the kernels."""
    if dtype != torch.float32:
        return 1
    return 2 if allows_tf32() else 3


_HOPPER = 9  # compute capability
LONG_TAIL = 16  # rows past a tile


def is_hopper(device: torch.device) -> bool:
    """Whether the kernels run in the tiles for Hopper."""
    return interpreted() or capability(device)[0] == _HOPPER


def _plan(x: Tensor, grid: tuple[int, ...]) -> Plan:
    """The plan of a call.

    The parts of float32 leave older tensor cores no registers for tiles of full width, and those of Hopper none for the
    long windows of the widest rings.
    """
    plan = make_plan(grid, *x.shape[-2:])
    narrow = x.dtype == torch.float32 and (plan.tail > LONG_TAIL or not is_hopper(x.device))
    return make_plan(grid, *x.shape[-2:], ROWS // 2) if narrow else plan


def _launch_options(dtype: torch.dtype, device: torch.device, plan: Plan) -> dict[str, int]:
    """Warps of a program, and stages of its load pipeline that leave room for several programs per multiprocessor.

    On Hopper one warp group. Older tensor cores keep their factors in registers, which takes those of eight warps; for
    low and narrow maps four, because of so small a tile eight would move single numbers. The long windows of the widest
    rings leave no registers for as many stages, nor does any window on older tensor cores.
    """
    hopper, long = is_hopper(device), plan.tail > LONG_TAIL
    if dtype == torch.float32:
        stages = 2 if hopper or not long else 1
    else:
        stages = 3 - long - (not hopper and (long or plan.row_tiles > 1))
    small = plan.cols == 16 and plan.row_tiles == 1
    return dict(num_warps=4 if hopper or small else 8, num_stages=stages)


_stages_that_fit: dict[tuple[Any, ...], int] = {}


def start(
    kernel: Any,
    programs: tuple[int, ...],
    tensors: Sequence[Tensor],
    numbers: Sequence[float] = (),
    num_stages: int = 1,
    **options: Any,
) -> Callable[..., Any]:
    """Launch ``kernel``; where a GPU has too little shared memory for the load pipeline, with fewer of its stages.

    Returns:
        The same launch as a function of its tensors, of the same dtypes and alignments. It leaves out what takes Triton
        most of a launch: to find the compiled kernel from the arguments.
    """
    key = (kernel, tensors[0].device, tensors[0].dtype, *options.values())
    stages = _stages_that_fit.get(key, num_stages)
    while True:
        try:
            compiled = kernel[programs](*tensors, *numbers, **options, num_stages=stages)
            break
        except OutOfResources:
            if stages == 1:
                raise
            stages -= 1
            _stages_that_fit[key] = stages
    if compiled is None:  # the interpreter
        return lambda *tensors: kernel[programs](*tensors, *numbers, **options, num_stages=stages)
    run = compiled[(*programs, 1, 1)[:3]]
    rest = *numbers, *(options[name] for name in kernel.arg_names[len(tensors) + len(numbers) :])
    return lambda *tensors: run(*tensors, *rest)


class Copy:
    """A map of one shape and strides into planes whose rows may be longer, with zeros; or ``back``."""

    def __init__(self, x: Tensor, back: bool) -> None:
        images, channels, height, width = x.shape
        padded = row_length(width, x.dtype)
        self.size = images, channels, height, padded
        self.needed = not are_planes(x)
        self._run: Callable[..., Any] | None = None
        by_channels = x.stride(1) == 1
        channel_tiles = math.ceil(channels / COPIED)
        self._programs = channel_tiles * math.ceil(height * padded / COPIED), images
        self._numbers = channels, height, width, padded, *x.stride(), channel_tiles
        self._options = dict(
            PIXELS=COPIED,
            CHANNELS=COPIED,
            BY_CHANNELS=by_channels,
            ALIGN=channel_alignment(x) if by_channels else 1,
            BACK=back,
            num_warps=4,
        )

    def empty(self, x: Tensor) -> Tensor:
        """Planes for a map like ``x``, or ``x`` itself where no copy is needed."""
        return x.new_empty(self.size) if self.needed else x

    def __call__(self, x: Tensor, planes: Tensor) -> Tensor:
        if not self.needed:
            return planes
        if self._run is None:
            self._run = start(kernels.planes_kernel, self._programs, (x, planes), self._numbers, **self._options)
        else:
            self._run(x, planes)
        return planes


_calls: dict[Hashable, Any] = {}
_MOST_CALLS = 4096


def kept(key: Hashable, make: Callable[[], Any]) -> Any:
    """What was made for calls of the same shapes, strides, alignments and settings, or is made now."""
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= _MOST_CALLS:
            _calls.clear()
        call = _calls[key] = make()
    return call


_numbers: dict[Hashable, int] = {}
_next_number = itertools.count()


def numbered(key: Hashable) -> int:
    """A number for a key: nested tuples are slow to hash, and every call does."""
    return _numbers.setdefault(key, next(_next_number))


def layout(x: Tensor) -> tuple[Hashable, ...]:
    return x.shape, x.stride(), x.data_ptr() % 16


def current(device: torch.device) -> AbstractContextManager:
    """Launches go to the current device."""
    if device.type != 'cuda' or device.index == torch.cuda.current_device():
        return NO_CONTEXT
    return torch.cuda.device(device)


def kernel_key(x: Tensor, grid: Sequence[int]) -> Hashable:
    """What tells the kernels apart that a call on ``x`` and the gradients run, beside device and dtype."""

    def make() -> Hashable:
        plan = _plan(x, tuple(grid))
        copy = None if are_planes(x) else (x.stride(1) == 1, channel_alignment(x))
        return numbered((plan.constants, plan.images_per_tile(x.shape[0]), _pairs(x, plan), copy))

    parts = _parts(x.dtype)
    return parts, kept(('key', tuple(grid), x.dtype, x.device, parts, layout(x)), make)


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
        and is_hopper(x.device)
    )


_MOST_IMAGES = 65535  # programs along the second axis of a grid


def images_at_a_time(x: Tensor) -> int:
    """Images whose planes fit their workspace, and that a launch takes."""
    plane_bytes = x.shape[1] * x.shape[2] * row_length(x.shape[3], x.dtype) * x.element_size()
    return max(1, min(_MOST_IMAGES, workspace_limit(x.device.type) // (2 * plane_bytes)))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: Sequence[int],
    out: Tensor | None = None,
    kernel: Tensor | None = None,
) -> Tensor:
    """The convolution. Shapes as in :func:`mmpelk.ops.peripheral_conv2d`; any strides.

    float32 keeps its precision, unless ``torch.backends.cuda.matmul.allow_tf32`` is set: then products have a relative
    error of 2**-16, better than TF32's own 2**-11, for half the work. That flag, off by default, and not the one of
    cuDNN, on by default, because PyTorch's depthwise kernels never use TF32 either.

    Args:
        x: The maps.
        weight: The parameters.
        bias: To be added.
        grid: The sharing grid.
        out: Where the result goes, of the shape of ``x``; ``None`` allocates it.
        kernel: What :func:`prepare` made of ``weight``; made anew for maps of another size.
    """
    return convolve(_ToeplitzConvolution, x, weight, bias, grid, out, kernel)


def input_grad(grad_out: Tensor, weight: Tensor, grid: Sequence[int], out: Tensor, planes: list[Tensor]) -> Tensor:
    """The convolution with the kernel flipped, which is read backwards.

    Args:
        grad_out: The output's gradient.
        weight: The parameters, as they are.
        grid: The sharing grid, flipped.
        out: Where the result goes.
        planes: Takes ``grad_out`` in planes, for :func:`weight_grad`, if all of it is copied at once.
    """
    return convolve(_ToeplitzConvolution, grad_out, weight, None, grid, out, None, planes)


def prepare(weight: Tensor, grid: Sequence[int], x: Tensor) -> Tensor:
    """The Toeplitz matrices of the weight for maps of the size of ``x``: of use while ``weight`` stays."""
    return make(_Toeplitz, weight, grid, x)


def convolve(
    kind: type['Convolution'],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: Sequence[int],
    out: Tensor | None,
    kernel: Tensor | None,
    planes: list[Tensor] | None = None,
) -> Tensor:
    """Launch the convolution of a ``kind``; the other arguments are those of :func:`forward`.

    With ``planes`` it is :func:`input_grad`.
    """
    x, weight, bias = resolved(x), resolved(weight), None if bias is None else resolved(bias)
    out = empty_as(x) if out is None else out
    if out.numel() == 0:
        return out
    of_weight = weight.shape, weight.stride(), weight.dtype
    layouts = layout(x), of_weight, layout(out), None if bias is None else (bias.dtype, layout(bias))
    flipped = planes is not None
    key = kind, *settings(x, grid), flipped, *layouts
    call = kept(key, lambda: kind(x, weight, bias, tuple(grid), out, flipped))
    with current(x.device):
        call(x, weight, bias, out, kernel, planes)
    return out


def make(kind: type['Made'], weight: Tensor, grid: Sequence[int], x: Tensor) -> Tensor:
    """Launch what makes the matrices of a ``kind`` for maps of the size of ``x``."""
    weight = resolved(weight)
    call = kept(
        (kind, *settings(x, grid), layout(x), weight.shape, weight.stride(), weight.dtype),
        lambda: kind(x, weight, tuple(grid)),
    )
    with current(x.device):
        return call(weight)


def resolved(x: Tensor) -> Tensor:
    """Numbers as they lie in memory: the imaginary part of a conjugate has there those of the other sign."""
    return x.resolve_neg() if x.is_neg() else x


def settings(x: Tensor, grid: Sequence[int]) -> tuple[Hashable, ...]:
    """What calls depend on beside shapes and layouts."""
    return tuple(grid), x.dtype, x.device, _parts(x.dtype), workspace_limit(x.device.type)


class Made:
    """What a convolution of maps of one shape computes of the weight, before it reads the maps."""

    size: tuple[int, ...]
    dtype: torch.dtype

    def __init__(self, x: Tensor, weight: Tensor, grid: tuple[int, ...], flipped: bool = False) -> None:
        self._grid, self._channels, self._flipped = grid, weight.shape[0], flipped
        self._run: Callable[..., Any] | None = None
        self.plan(x)

    def plan(self, x: Tensor) -> None:
        """Set ``size``, without the channels, and ``dtype``."""
        raise NotImplementedError

    def first(self, weight: Tensor, made: Tensor) -> Callable[..., Any]:
        """The first launch; returns it as a function of the tensors."""
        raise NotImplementedError

    def strides(self, weight: Tensor) -> tuple[int, int, int]:
        """Of channels, rows and columns; ``weight`` begins at its last tap where it is flipped."""
        sign = -1 if self._flipped else 1
        return weight.stride(0), sign * weight.stride(2), sign * weight.stride(3)

    def __call__(self, weight: Tensor) -> Tensor:
        made = weight.new_empty((self._channels, *self.size), dtype=self.dtype)
        if self._run is None:
            self._run = self.first(weight, made)
        else:
            self._run(weight, made)
        return made


class Convolution:
    """The convolution of maps of one shape and layout."""

    makes: type[Made]

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, grid: tuple[int, ...], out: Tensor, flipped: bool
    ) -> None:
        images, channels = x.shape[:2]
        self._grid, self._flipped = grid, flipped
        self.plan(x)
        self.made = self.makes(x, weight, grid, flipped)
        self._made_as = (channels, *self.made.size), self.made.dtype
        self._images = images_at_a_time(x)
        self._channels = max(1, WORKSPACE // (math.prod(self.made.size) * self.made.dtype.itemsize))
        self._whole = self._images >= images and self._channels >= channels
        self._copy, self._back = Copy(x, back=False), Copy(out, back=True)
        read_in_place = bias is None or bias.dim() == 1 or _is_padded_bias(bias)
        self._copy_bias = None if bias is None or read_in_place else Copy(bias[None], back=False)
        self._run: Callable[..., Any] | None = None

    def plan(self, x: Tensor) -> None:
        """Lay the grid over the maps."""
        raise NotImplementedError

    def first(self, x: Tensor, made: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Callable[..., Any]:
        """The first launch, on planes; returns it as a function of ``x``, ``made``, ``weight``, ``bias``, ``out``."""
        raise NotImplementedError

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
        kernel: Tensor | None,
        kept_planes: list[Tensor] | None,
    ) -> None:
        if not self._whole:
            self._in_pieces(x, weight, bias, out)
            return
        if self._flipped:
            weight = weight[..., -1:, -1:]
        made = self.made(weight) if kernel is None or (kernel.shape, kernel.dtype) != self._made_as else kernel
        planes, result = self._copy(x, self._copy.empty(x)), self._back.empty(out)
        if kept_planes is not None:
            kept_planes.append(planes)
        if bias is not None and self._copy_bias is not None:
            bias = self._copy_bias(bias[None], self._copy_bias.empty(bias[None]))[0]
        if self._run is None:
            self._run = self.first(planes, made, weight, bias, result)
        else:
            self._run(planes, made, weight, planes if bias is None else bias, result)
        self._back(out, result)

    def _in_pieces(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        for image in range(0, x.shape[0], self._images):
            for channel in range(0, x.shape[1], self._channels):
                images, channels = slice(image, image + self._images), slice(channel, channel + self._channels)
                convolve(
                    type(self),
                    x[images, channels],
                    weight[channels],
                    None if bias is None else bias[channels],
                    self._grid,
                    out[images, channels],
                    None,
                    [] if self._flipped else None,
                )


class _Toeplitz(Made):
    """The Toeplitz matrices."""

    def plan(self, x: Tensor) -> None:
        self._plan, self._parts = _plan(x, self._grid), _parts(x.dtype)
        plan = self._plan
        self.size = plan.in_tiles, len(plan.row_rings), self._parts, plan.cols, plan.cols
        self.dtype = torch.bfloat16 if x.dtype == torch.float32 else x.dtype

    def first(self, weight: Tensor, made: Tensor) -> Callable[..., Any]:
        plan = self._plan
        return start(
            kernels.toeplitz_kernel,
            (self._channels * plan.in_tiles * len(plan.row_rings),),
            (weight, made),
            (*self.strides(weight), plan.in_tiles, plan.left),
            ROW_RINGS=plan.row_rings,
            ROW_WIDTHS=plan.row_widths,
            COL_EDGES=plan.col_edges,
            FIRST_COL_RING=plan.first_col_ring,
            COLS=plan.cols,
            PARTS=self._parts,
        )


class _ToeplitzConvolution(Convolution):
    makes = _Toeplitz

    def plan(self, x: Tensor) -> None:
        self._plan = _plan(x, self._grid)

    def first(self, x: Tensor, made: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Callable[..., Any]:
        plan = self._plan
        images, channels, height, width = x.shape
        tiles = channels * plan.row_tiles * plan.col_tiles
        groups = math.ceil(images / plan.images_per_tile(images))
        pair = _pairs(x, plan)
        groups = math.ceil(groups / 2) if pair else groups
        bias_map, bias_numbers = bias_layout(bias)
        tiling = plan.wide, len(plan.row_rings), groups, plan.row_tiles, plan.col_tiles, plan.in_tiles, plan.left
        run = start(
            kernels.conv_kernel,
            (tiles * groups,),
            (x, made, x if bias is None else bias, out),
            (images, height, width, *x.stride()[:3], *out.stride()[:3], *bias_numbers[:2], *tiling, bias_numbers[2]),
            ROW_LOWS=plan.row_lows,
            ROW_WIDTHS=plan.row_widths,
            **plan.tile_options(images),
            PARTS=_parts(x.dtype),
            PAIR=pair,
            BIAS_MAP=bias_map,
            **_launch_options(x.dtype, x.device, plan),
        )
        return lambda x, made, weight, bias, out: run(x, made, bias, out)


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int], planes: Sequence[Tensor] = ()) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``.

    Deterministic: the shares of the sum are added in a fixed order. Precision and strides as in :func:`forward`.
    ``planes`` is what :func:`input_grad` has kept of ``grad_out``.
    """
    return weight_gradient(_ToeplitzWeightGrad, x, grad_out, grid, planes)


def weight_gradient(
    kind: type['WeightGrad'], x: Tensor, grad_out: Tensor, grid: Sequence[int], planes: Sequence[Tensor]
) -> Tensor:
    """Launch the gradient of a ``kind``; the other arguments are those of :func:`weight_grad`."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[1], 1, len(grid), len(grid))
    x, grad_out = resolved(x), resolved(grad_out)
    key = kind, *settings(x, grid), layout(x), layout(grad_out)
    call = kept(key, lambda: kind(x, grad_out, tuple(grid)))
    with current(x.device):
        return call(x, grad_out, x.dtype, planes)


class WeightGrad:
    """The gradient of the weight from maps of one shape and layout."""

    partial_size: tuple[int, ...]

    def __init__(self, x: Tensor, grad_out: Tensor, grid: tuple[int, ...]) -> None:
        self._grid, self._images = grid, images_at_a_time(x)
        self._size = x.shape[1], 1, len(grid), len(grid)
        self._copy, self._copy_grad = Copy(x, back=False), Copy(grad_out, back=False)
        self._run: Callable[..., Any] | None = None
        self._add: Callable[..., Any] | None = None
        self.plan(x)

    def plan(self, x: Tensor) -> None:
        """Lay the grid over the maps; set ``partial_size``, that of the shares in float32."""
        raise NotImplementedError

    def first(self, x: Tensor, grad_out: Tensor, partial: Tensor) -> Callable[..., Any]:
        """The first launch, on planes; returns it as a function of its tensors."""
        raise NotImplementedError

    def add(self, partial: Tensor, out: Tensor) -> Callable[..., Any]:
        """The first launch of what adds up the shares; returns it as a function of its tensors."""
        raise NotImplementedError

    def __call__(self, x: Tensor, grad_out: Tensor, dtype: torch.dtype, kept_planes: Sequence[Tensor]) -> Tensor:
        if self._images < len(x):
            pieces = [slice(start, start + self._images) for start in range(0, len(x), self._images)]
            parts = [type(self)(x[piece], grad_out[piece], self._grid) for piece in pieces]
            shares = [
                part(x[piece], grad_out[piece], torch.float32, ()) for part, piece in zip(parts, pieces, strict=True)
            ]
            return torch.stack(shares).sum(0).to(dtype)
        partial = x.new_empty(self.partial_size, dtype=torch.float32)
        out = x.new_empty(self._size, dtype=dtype)
        planes = self._copy(x, self._copy.empty(x))
        grads = kept_planes[0] if kept_planes else self._copy_grad(grad_out, self._copy_grad.empty(grad_out))
        if self._run is None or self._add is None:
            self._run = self.first(planes, grads, partial)
            self._add = self.add(partial, out)
        else:
            self._run(planes, grads, partial)
            self._add(partial, out)
        return out


class _ToeplitzWeightGrad(WeightGrad):
    def plan(self, x: Tensor) -> None:
        images, channels = x.shape[:2]
        self._plan = plan = _plan(x, self._grid)
        self._steps = math.ceil(images / plan.images_per_tile(images)) * plan.row_tiles * plan.col_tiles
        # Rings in pairs where there are registers for two, or by themselves: those wider than one row first.
        self._pair = x.dtype == torch.bfloat16 or (x.dtype == torch.float16 and is_hopper(x.device))
        self._pairs = sum(math.ceil(rings / (1 + self._pair)) for rings in (plan.wide, len(plan.row_rings) - plan.wide))
        self._splits = min(self._steps, math.ceil(PROGRAMS / (channels * plan.in_tiles * self._pairs)))
        self.partial_size = channels, self._splits * plan.in_tiles, len(self._grid) ** 2

    def first(self, x: Tensor, grad_out: Tensor, partial: Tensor) -> Callable[..., Any]:
        plan = self._plan
        images, channels, height, width = x.shape
        strides = *x.stride()[:3], *grad_out.stride()[:3]
        tiling = plan.row_tiles, plan.col_tiles, plan.in_tiles, plan.left, self._steps, self._splits
        return start(
            kernels.weight_grad_kernel,
            (channels * self._splits * plan.in_tiles * self._pairs,),
            (x, grad_out, partial),
            (images, height, width, *strides, *tiling),
            ROW_RINGS=plan.row_rings,
            ROW_LOWS=plan.row_lows,
            ROW_WIDTHS=plan.row_widths,
            WIDE_RINGS=plan.wide,
            ALL_RINGS=len(self._grid),
            COL_EDGES=plan.col_edges,
            FIRST_COL_RING=plan.first_col_ring,
            **plan.tile_options(images),
            PARTS=_parts(x.dtype),
            PAIR=self._pair,
            **_launch_options(x.dtype, x.device, plan),
        )

    def add(self, partial: Tensor, out: Tensor) -> Callable[..., Any]:
        channels, shares, size = partial.shape
        rows = self._plan.row_rings
        return start(
            kernels.add_shares_kernel,
            (channels,),
            (partial, out),
            (shares, len(self._grid), min(rows), max(rows) + 1),
            BLOCK=max(256, power_of_two(size)),  # the same for all usual grids
            num_warps=4,
        )
