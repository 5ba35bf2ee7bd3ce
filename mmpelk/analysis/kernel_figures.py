"""Figures of sharing grids, learnt kernels and positional embeddings: the paper's Fig. 1 and 3."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mmpelk.ops.sharing_grid import check_sharing_grid

from .kernels import LearntEmbedding, LearntKernel, regions

_PANEL = 5.4  # inches of a grid's picture
_SIGNED = 'cividis'  # from dark to light all the way, so that grey prints keep the order; zero is in the middle
_SMALLEST = 4.5  # points below which an index is left out


def draw_grids(grids: Sequence[Sequence[int]]) -> Figure:
    """Fig. 1: the positions of each kernel, cut into the regions that share a parameter."""
    figure = Figure(figsize=(_PANEL * len(grids) + 1, _PANEL + 0.6), layout='constrained')
    panels = figure.subplots(1, len(grids), squeeze=False)[0]
    largest = max(max(grid) ** 2 for grid in grids)
    norm = LogNorm(1, 4 * largest)  # beyond the largest, so that no region is as dark as the outlines
    for axes, grid in zip(panels, grids, strict=True):
        _draw_grid(axes, check_sharing_grid(grid), norm)
    scale = figure.colorbar(panels[-1].images[0], ax=list(panels), label='positions that share the parameter')
    ticks = [4**exponent for exponent in range(12) if 2 * 4**exponent <= largest] + [largest]
    scale.set_ticks(ticks, labels=[str(tick) for tick in ticks])
    scale.set_ticks([], minor=True)
    scale.ax.set_ylim(1, largest if largest > 1 else 4)
    figure.suptitle('Sharing grids: one parameter per outlined region, numbered where there is room')
    return figure


def _draw_grid(axes: Axes, grid: tuple[int, ...], norm: LogNorm) -> None:
    side, cut = sum(grid), regions(grid)
    areas = [[0] * side for _ in range(side)]
    for region in cut:
        for row in areas[region.top : region.top + region.height]:
            row[region.left : region.left + region.width] = [region.height * region.width] * region.width
    axes.imshow(areas, cmap='Greys', norm=norm, extent=(0, side, side, 0))
    _outline(axes, grid, color='black', linewidth=0.8)
    points = 0.88 * _PANEL * 72 / side  # of a position
    for region in cut:
        size = min(12.0, 0.7 * region.height * points, 1.3 * region.width * points / len(str(region.index)))
        if size >= _SMALLEST:
            middle = region.left + region.width / 2, region.top + region.height / 2
            color = 'white' if norm(region.height * region.width) > 0.55 else 'black'
            axes.text(*middle, str(region.index), size=size, color=color, ha='center', va='center')
    ticks = {edge + width / 2: str(width) for edge, width in zip(accumulate(grid, initial=0), grid, strict=False)}
    if points < 7:  # the rings of the centre would cover each other
        ticks = {middle: width for middle, width in ticks.items() if width != '1'} | {side / 2: '1 each'}
    axes.set_xticks(list(ticks), ticks.values(), fontsize=8)
    axes.set_yticks(list(ticks), ticks.values(), fontsize=8)
    title = f'{side} x {side} positions by {len(grid)} x {len(grid)} parameters'
    axes.set(title=title, xlabel='ring widths $s_b$, positions', ylabel='ring widths $s_a$, positions')


def _outline(axes: Axes, grid: Sequence[int], **style: Any) -> None:
    for region in regions(grid):
        axes.add_patch(Rectangle((region.left, region.top), region.width, region.height, fill=False, **style))


def draw_kernel(kernel: LearntKernel, channels: Sequence[int] | None = None) -> Figure:
    """Parameters of some channels of a kernel, and the dense kernels that they stand for, outlined by region.

    Args:
        kernel: Kernel from a checkpoint.
        channels: Which ones, a column each; the first four by default.

    Raises:
        ValueError: If there is no such channel.
    """
    side, rings = sum(kernel.grid), len(kernel.grid)
    rows = [(f'parameters, {rings} x {rings}', 'ring', kernel.weight)]
    rows += [(f'expanded, {side} x {side}', 'position', kernel.dense)] if side > rings else []
    form = 'norms and small kernel merged' if kernel.deployed else 'the branch of the large kernel, before its norm'
    figure, panels = _draw_rows(rows, channels, f'{kernel.name}: {form}', 'weight')
    if side > rings:
        for axes in panels[1]:
            _outline(axes, kernel.grid, color='white', linewidth=0.4)
    return figure


def draw_embedding(learnt: LearntEmbedding, channels: Sequence[int] | None = None) -> Figure:
    """Fig. 3 as it is learnt: ``h``, ``W * h``, and the term that they add to a map.

    Args:
        learnt: Embedding from a checkpoint.
        channels: Which ones, a column each; the first four by default.

    Raises:
        ValueError: If there is no such channel.
    """
    height, width = learnt.map.shape[-2:]
    rows = [] if learnt.embedding is None else [('embedding $h$', 'position', learnt.embedding)]
    rows += [
        ('kernel times embedding, $W \\odot h$', 'position', learnt.weighted),
        (f'term $M$ of a map of {height} x {width}', 'pixel', learnt.map),
    ]
    title = f'{learnt.name}: {"with" if learnt.embedding is None else "before"} the norm of the branch'
    return _draw_rows(rows, channels, title, 'value')[0]


def _draw_rows(
    rows: Sequence[tuple[str, str, Tensor]], channels: Sequence[int] | None, title: str, unit: str
) -> tuple[Figure, list[list[Axes]]]:
    """A row of panels per ``(name, unit of its axes, (C, H, W))`` and a column per channel.

    Each panel has its own scale, zero in the middle.
    """
    count = len(rows[0][2])
    channels = range(min(count, 4)) if channels is None else channels
    if not all(0 <= channel < count for channel in channels):
        raise ValueError(f'channels {" ".join(map(str, channels))}: the kernel has the channels 0 to {count - 1}')
    # Compressed: constrained, for panels of a fixed aspect.
    figure = Figure(figsize=(3.0 * len(channels), 2.5 * len(rows) + 0.5), layout='compressed')
    figure.suptitle(title)
    panels = figure.subplots(len(rows), len(channels), squeeze=False)
    for line, (name, what, values) in zip(panels, rows, strict=True):
        for axes, channel in zip(line, channels, strict=True):
            array = values[channel].numpy()
            limit = float(abs(array).max()) or 1.0
            height, width = array.shape
            image = axes.imshow(array, _SIGNED, vmin=-limit, vmax=limit, extent=(0, width, height, 0))
            figure.colorbar(image, ax=axes, label=unit if axes is line[-1] else '')
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set(title=f'channel {channel}', xlabel=f'column, {what}s', ylabel=f'row, {what}s')
        line[0].set_ylabel(f'{name}\n\nrow, {what}s')
    return figure, [list(line) for line in panels]
