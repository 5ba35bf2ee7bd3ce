"""Pictures of sharing grids, learnt kernels and positional embeddings (Fig. 1 and 3).

python tools/analysis/plot_kernels.py grid --grid 2 1 2 --kernel-size 31 --center-size 5
python tools/analysis/plot_kernels.py kernel CHECKPOINT --config CONFIG --stage 0 --block 0 --channels 0 1 2
python tools/analysis/plot_kernels.py kernel CHECKPOINT --key stages.0.0.mixer.large.weight --kernel-size 51
python tools/analysis/plot_kernels.py embedding CHECKPOINT --config CONFIG --stage 0 --map-size 32 32
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from mmengine.config import DictAction
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmpelk.analysis.kernels import (
    LearntEmbedding,
    LearntKernel,
    Region,
    backbone_tensors,
    kernel_from_key,
    learnt_embedding,
    learnt_kernel,
    regions,
)
from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import exit_on_user_error, load_config, parse_options
from mmpelk.models import PeLK
from mmpelk.models.deploy import deploy_state_dict
from mmpelk.ops.sharing_grid import check_sharing_grid, sharing_grid

PANEL = 5.4  # inches of a grid's picture
SIGNED = 'cividis'  # from dark to light all the way, so that grey prints keep the order; zero is in the middle
SMALLEST = 4.5  # points below which an index is left out


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    grid = commands.add_parser('grid', help='which positions of a kernel share a parameter')
    grid.add_argument(
        '--grid', nargs='+', type=int, action='append', metavar='S', help='ring widths of a grid; may be repeated'
    )
    grid.add_argument('--kernel-size', nargs='+', type=int, default=[], metavar='K', help="sides of Eq. 2's grids")
    grid.add_argument('--center-size', type=int, default=5, help='side of their fine-grained centre; 5 by default')

    kernel = commands.add_parser('kernel', help='learnt kernels, as parameters and expanded')
    kernel.add_argument('--key', help='name of the kernel in the checkpoint, instead of --config, --stage and --block')
    kernel.add_argument('--grid', nargs='+', type=int, metavar='S', help='with --key: its sharing grid')
    kernel.add_argument('--kernel-size', type=int, metavar='K', help='with --key: side of the kernel, for the rule')
    kernel.add_argument('--center-size', type=int, default=5, help='with --key and --kernel-size: side of the centre')

    embedding = commands.add_parser('embedding', help='h of a stage, and what it adds to a map')
    embedding.add_argument(
        '--map-size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='of the feature map; as large as the kernel by default',
    )
    for command, name in ((kernel, 'learnt_kernels'), (embedding, 'positional_embedding')):
        command.add_argument('checkpoint', help='trained or deployed')
        command.add_argument('--config', help='path of the config that it was trained with')
        command.add_argument('--stage', type=int, default=0, help='counted from 0, the default')
        command.add_argument('--block', type=int, default=0, help='of the stage, counted from 0, the default')
        command.add_argument(
            '--channels', nargs='+', type=int, metavar='C', help='which ones; the first four by default'
        )
        command.add_argument(
            '--deploy', action='store_true', help='merge norms and small kernels of a trained checkpoint first'
        )
        command.add_argument(
            '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
        )
        command.set_defaults(name=name)
    grid.set_defaults(name='sharing_grids')
    for command in (grid, kernel, embedding):
        command.add_argument('--out', type=Path, help='the figure; in work_dirs/analysis by default')
    parser.set_defaults(launcher='none', work_dir=None, local_rank=0)  # what load_config and parse_options look for
    return parse_options(parser)


def draw_grids(grids: Sequence[Sequence[int]]) -> Figure:
    """Fig. 1: the positions of each kernel, cut into the regions that share a parameter.

    Args:
        grids: Ring widths, one panel each.
    """
    figure = Figure(figsize=(PANEL * len(grids) + 1, PANEL + 0.6), layout='constrained')
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
    position = 0.88 * PANEL * 72 / side  # points
    _number(axes, cut, position, norm)
    ticks = dict(_ring_ticks(grid, position))
    axes.set_xticks(list(ticks), ticks.values(), fontsize=8)
    axes.set_yticks(list(ticks), ticks.values(), fontsize=8)
    title = f'{side} x {side} positions by {len(grid)} x {len(grid)} parameters'
    axes.set(title=title, xlabel='ring widths $s_b$, positions', ylabel='ring widths $s_a$, positions')


def _number(axes: Axes, cut: Sequence[Region], position: float, norm: LogNorm) -> None:
    """Write its index into every region that has room for it, upright where that is larger."""
    for region in cut:
        width, height, digits = region.width * position, region.height * position, len(str(region.index))
        lying, standing = (
            min(12.0, 0.7 * tall, 1.3 * wide / digits) for wide, tall in ((width, height), (height, width))
        )
        upright = standing > 1.3 * lying
        if max(lying, standing) < SMALLEST:
            continue
        axes.text(
            region.left + region.width / 2,
            region.top + region.height / 2,
            str(region.index),
            size=standing if upright else lying,
            rotation=90 if upright else 0,
            color='white' if norm(region.height * region.width) > 0.55 else 'black',
            ha='center',
            va='center',
        )


def _ring_ticks(grid: tuple[int, ...], position: float) -> Iterator[tuple[float, str]]:
    """Where the rings of a grid are and how wide; those too narrow for a label share one if they are the centre."""
    edges = list(accumulate(grid, initial=0))
    ones = 2 * len(list(takewhile(lambda width: width == 1, grid[len(grid) // 2 :]))) - 1
    for edge, width in zip(edges, grid, strict=False):
        if width * position >= 7:
            yield edge + width / 2, str(width)
    if position < 7 <= ones * position:
        yield sum(grid) / 2, f'{ones} of 1'


def _outline(axes: Axes, grid: Sequence[int], **style: Any) -> None:
    for region in regions(grid):
        axes.add_patch(Rectangle((region.left, region.top), region.width, region.height, fill=False, **style))


def draw_kernel(kernel: LearntKernel, channels: Sequence[int] | None = None) -> Figure:
    """Parameters of some channels of a kernel, and the dense kernels that they stand for, outlined by region.

    Args:
        kernel: From a checkpoint.
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
        learnt: From a checkpoint.
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
        raise ValueError(f'--channels {" ".join(map(str, channels))}: the kernel has the channels 0 to {count - 1}')
    # Compressed: constrained, for panels of a fixed aspect.
    figure = Figure(figsize=(3.0 * len(channels), 2.5 * len(rows) + 0.5), layout='compressed')
    figure.suptitle(title)
    panels = figure.subplots(len(rows), len(channels), squeeze=False)
    for line, (name, what, values) in zip(panels, rows, strict=True):
        for axes, channel in zip(line, channels, strict=True):
            array = values[channel].numpy()
            limit = float(abs(array).max()) or 1.0
            height, width = array.shape
            image = axes.imshow(array, SIGNED, vmin=-limit, vmax=limit, extent=(0, width, height, 0))
            figure.colorbar(image, ax=axes, label=unit if axes is line[-1] else '')
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set(title=f'channel {channel}', xlabel=f'column, {what}s', ylabel=f'row, {what}s')
        line[0].set_ylabel(f'{name}\n\nrow, {what}s')
    return figure, [list(line) for line in panels]


def grids_of(args: argparse.Namespace) -> list[tuple[int, ...]]:
    """The grids that the options of ``grid`` name; Fig. 1's without any."""
    grids = [check_sharing_grid(grid) for grid in args.grid or []]
    grids += [sharing_grid(side, args.center_size) for side in args.kernel_size]
    return grids or [(2, 1, 2), sharing_grid(31, args.center_size)]


def backbone_of(args: argparse.Namespace) -> PeLK:
    """The backbone of ``--config``, with no weights loaded."""
    if not args.config:
        raise ValueError('which sharing grid is it? Give --config CONFIG (or, for a kernel, its --key)')
    cfg = load_config(args)
    config = dict(cfg.model.get('backbone', cfg.model), init_cfg=None)
    backbone = MODELS.build(config) if config['type'] == 'mmpelk.PeLK' else None
    if not isinstance(backbone, PeLK):
        raise ValueError(
            f"the backbone of '{args.config}' is {config['type']}; only mmpelk.PeLK has peripheral kernels"
        )
    return backbone


def read(args: argparse.Namespace, backbone: PeLK | None = None) -> dict[str, Tensor]:
    """Tensors of the checkpoint's backbone; with a backbone and ``--deploy``, of its merged form."""
    check_checkpoint(args.checkpoint)
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, map_location='cpu')
    tensors = backbone_tensors(checkpoint.get('state_dict', checkpoint))
    if backbone is None or not args.deploy:
        return tensors
    try:
        return deploy_state_dict(backbone, tensors)
    except RuntimeError as error:
        raise ValueError(
            f"--deploy: '{args.checkpoint}' is no trained checkpoint of '{args.config}' (or has been merged already)"
        ) from error


def kernel_of(args: argparse.Namespace) -> LearntKernel:
    """What the options of ``kernel`` name."""
    if not args.key:
        backbone = backbone_of(args)
        return learnt_kernel(backbone, read(args, backbone), args.stage, args.block)
    if args.deploy:
        raise ValueError('--deploy merges by the config: give --config, --stage and --block instead of --key')
    grid = args.grid or (sharing_grid(args.kernel_size, args.center_size) if args.kernel_size else None)
    return kernel_from_key(read(args), args.key.removeprefix('backbone.'), grid)


def figure_of(args: argparse.Namespace) -> Figure:
    """The figure that a command line asks for."""
    if args.command == 'grid':
        return draw_grids(grids_of(args))
    if args.command == 'kernel':
        return draw_kernel(kernel_of(args), args.channels)
    backbone = backbone_of(args)
    tensors = read(args, backbone)
    side = sum(learnt_kernel(backbone, tensors, args.stage, args.block).grid)
    learnt = learnt_embedding(backbone, tensors, args.stage, args.block, args.map_size or (side, side))
    return draw_embedding(learnt, args.channels)


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        out = args.out or Path('work_dirs/analysis') / f'{args.name}.png'
        figure = figure_of(args)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=100, bbox_inches='tight')
        print(out)


if __name__ == '__main__':
    main()
