"""Model size against kernel size (Fig. 6): peripheral, stripe and dense kernels in all stages of ConvNeXt-T.

python tools/analysis/plot_scaling.py --out model_size.png
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from mmpelk.analysis.scaling import KERNEL_SIZES, Growth, ScalingRow, kernel_growth, scaling_table
from mmpelk.engine.command_line import exit_on_user_error

# Label, line, marker and grey of every curve: each of the three alone tells them apart.
STYLES = {
    'dense': dict(label='dense $K \\times K$', linestyle='-', marker='s', color='0.0'),
    'stripe': dict(label='stripe $K \\times 5 + 5 \\times K$', linestyle='--', marker='^', color='0.3'),
    'peripheral': dict(label='peripheral', linestyle='-', marker='o', color='tab:red'),
    'peripheral_embedding': dict(
        label='peripheral, with the embeddings $h$ of Eq. 3', linestyle=':', marker='x', color='0.3'
    ),
}
ORDERS = dict(dense='$K^2$', stripe='$10\\,K$', peripheral="$k'^2 = O(\\log^2 K)$")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--kernel-sizes',
        nargs='+',
        type=int,
        default=KERNEL_SIZES,
        metavar='K',
        help='odd sides of the kernels; 7 to 151 by default',
    )
    parser.add_argument('--center-size', type=int, default=5, help='side of the fine-grained centre; 5 by default')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/analysis/model_size.png'), help='the figure')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the rows of both tables there, too')
    return parser.parse_args()


def size_table(rows: Sequence[ScalingRow]) -> Table:
    """Fig. 6 in numbers."""
    table = Table(title='ConvNeXt-T, kernels replaced in all stages: parameters in M, and per kernel and channel')
    for column in ('K', "rings k'", 'peripheral', 'stripe', 'dense', 'peripheral + h', "k'²", 'stripes', 'K²'):
        table.add_column(column, justify='right')
    for row in rows:
        sizes = (row.peripheral, row.stripe, row.dense, row.peripheral_embedding)
        kernels = (row.kernel[mixer] for mixer in ('peripheral', 'stripe', 'dense'))
        table.add_row(
            str(row.kernel_size), str(row.rings), *(f'{size / 1e6:.2f}' for size in sizes), *map(str, kernels)
        )
    return table


def growth_table(rows: Sequence[Growth]) -> Table:
    """The multiples that Section 3 states."""
    table = Table(title='Parameters of large kernels, from 7 to 51: by what factor they grow')
    table.add_column('mixer')
    for column in ('one kernel', 'paper', '51-49-47-13 against 7-7-7-7'):
        table.add_column(column, justify='right')
    for row in rows:
        paper = 'not stated' if row.paper is None else str(row.paper)
        table.add_row(row.mixer, f'{row.kernel:.1f}', paper, f'{row.network:.1f}')
    return table


def draw(kernel_sizes: Sequence[int], center_size: int) -> Figure:
    """Fig. 6, and beside it what it rests on: the parameters of one kernel.

    Args:
        kernel_sizes: Where the curves have markers; between them every odd size counts.
        center_size: Side of the fine-grained centre.
    """
    every = range(min(kernel_sizes), max(kernel_sizes) + 1, 2)
    rows = scaling_table(every, center_size)
    markers = [every.index(side) for side in kernel_sizes]
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    networks, kernels = figure.subplots(1, 2)
    for name, style in STYLES.items():
        networks.plot(every, [getattr(row, name) / 1e6 for row in rows], markevery=markers, markersize=5, **style)
    networks.set(title='(a) ConvNeXt-T, kernels replaced in all stages', ylabel='parameters, M')
    networks.set_ylim(bottom=0)
    for name, order in ORDERS.items():
        style = STYLES[name] | dict(label=f'{STYLES[name]["label"]}: {order}')
        kernels.plot(every, [row.kernel[name] for row in rows], markevery=markers, markersize=5, **style)
    kernels.set(title='(b) One kernel', ylabel='parameters per channel', xscale='log', yscale='log')
    _label_sizes(kernels, every)
    for axes in (networks, kernels):
        axes.set_xlabel('kernel size $K$, positions')
        axes.grid(alpha=0.3)
        axes.legend(loc='upper left')
    return figure


def _label_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    """Plain numbers on a logarithmic axis."""
    ticks = [side for side in (7, 13, 31, 51, 101, 151) if sizes[0] <= side <= sizes[-1]] or [sizes[0], sizes[-1]]
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_xticks([], minor=True)


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        sides = sorted(set(args.kernel_sizes))
        rows, growth = scaling_table(sides, args.center_size), kernel_growth(center_size=args.center_size)
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(size_table(rows))
        console.print(growth_table(growth))
        console.print(
            "O(log K) is the number of rings k' along an axis; a kernel has k' x k' parameters. The embedding h of "
            "Eq. 3 has K x K per channel and stage; the paper's parameter columns come out without it."
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        draw(sides, args.center_size).savefig(args.out, dpi=110)
        console.print(str(args.out))
        if args.json:
            report = dict(rows=[asdict(row) for row in rows], growth=[asdict(row) for row in growth])
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
