"""Inference throughput (Table 8): PeLK-T, PeLK-101-T, SLaK-T, RepLK-51-T and ConvNeXt-T taking turns, in every setting.

python tools/analysis/throughput.py --quick                      # float32, eager, batch 1 and 8: for the report
python tools/analysis/throughput.py --plot throughput.png        # everything that a CPU can do
python tools/analysis/throughput.py --device cuda --resume       # goes on where a stopped run was
python tools/analysis/throughput.py --show --plot throughput.png # measures nothing: tables and figure of the file

Deployed models with their classifier on random images; each in two memory layouts, of which the faster one counts.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter
from rich.console import Console
from rich.table import Table
from torch import nn

from mmpelk.analysis.inference import InferenceForm, build_model
from mmpelk.analysis.throughput import (
    LAYOUTS,
    PRECISIONS,
    Candidate,
    Measurement,
    Run,
    Setting,
    find_run,
    load_runs,
    measure_throughput,
    paper_ratio,
    save_runs,
    with_run,
)
from mmpelk.engine.command_line import exit_on_user_error, load_config

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {
    'PeLK-T': 'pelk_t_in1k.py',
    'PeLK-101-T': 'ablations/table7_101_224.py',
    'SLaK-T': 'slak_t_in1k.py',
    'RepLK-51-T': 'replk_51_t_in1k.py',
    'ConvNeXt-T': 'convnext_t_in1k.py',
}
DENSE = ', dense kernels'  # as the paper computes the first model
PRECISIONS_OF = {'cpu': ['float32', 'bfloat16'], 'cuda': list(PRECISIONS)}
BATCHES_OF = {'cpu': [1, 8], 'cuda': [1, 8, 32, 64, 128]}
ROUNDS_OF = {'cpu': 5, 'cuda': 20}
# One per model, by position: each of the three alone tells the curves apart.
STYLES = [
    dict(color='tab:red', linestyle='-', marker='o'),
    dict(color='0.0', linestyle='--', marker='s'),
    dict(color='0.35', linestyle='-', marker='^'),
    dict(color='0.35', linestyle=':', marker='D'),
    dict(color='0.0', linestyle='-.', marker='x'),
    dict(color='tab:red', linestyle=':', marker='v'),
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--size', type=int, default=224, help='height and width of the images; 224 by default')
    parser.add_argument(
        '--batch', type=int, nargs='+', metavar='N', help='1 8 on a CPU, 1 8 32 64 128 on a GPU by default'
    )
    parser.add_argument('--precision', nargs='+', choices=PRECISIONS, help='all that the device knows by default')
    parser.add_argument('--mode', nargs='+', choices=['eager', 'compiled'], default=['eager', 'compiled'])
    parser.add_argument('--layout', nargs='+', choices=list(LAYOUTS), default=list(LAYOUTS), help='both by default')
    parser.add_argument(
        '--rounds',
        type=int,
        help=f'calls per model at least; {ROUNDS_OF["cpu"]} on a CPU, {ROUNDS_OF["cuda"]} on a GPU',
    )
    parser.add_argument(
        '--models',
        nargs='+',
        metavar='NAME[=CONFIG]',
        help=f'some of {", ".join(RECIPES)}, or recipes of classifiers; ratios refer to the first',
    )
    parser.add_argument('--no-dense-kernels', action='store_true', help='leave out the row of the dense backend')
    parser.add_argument('--quick', action='store_true', help='float32, eager, batch 1 and 8: about two minutes')
    parser.add_argument('--resume', action='store_true', help='skip what the file has from this machine and versions')
    parser.add_argument('--show', action='store_true', help='measure nothing, show what the file has')
    parser.add_argument(
        '--out',
        type=Path,
        help='JSON, in which the measured settings replace their earlier figures; by default '
        'benchmarks/results/throughput_DEVICE.json, and with --models nothing',
    )
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw throughput against batch')
    args = parser.parse_args()
    if args.out is None and args.models is None:
        args.out = ROOT / 'benchmarks' / 'results' / f'throughput_{args.device}.json'
    if args.out is None and (args.resume or args.show):
        parser.error('with --models, --resume and --show need --out')
    if args.rounds is not None and args.rounds < 1:
        parser.error('--rounds is at least 1')
    return args


def settings(args: argparse.Namespace) -> list[Setting]:
    """All combinations that the options ask for."""
    if args.quick:
        args.precision, args.mode, args.batch = ['float32'], ['eager'], args.batch or [1, 8]
    precisions = args.precision or PRECISIONS_OF[args.device]
    if unknown := set(precisions) - set(PRECISIONS_OF[args.device]):
        raise ValueError(f'{args.device} has no {", ".join(unknown)}; take {", ".join(PRECISIONS_OF[args.device])}')
    batches = args.batch or BATCHES_OF[args.device]
    return [
        Setting(precision, mode == 'compiled', batch, args.size)
        for mode, precision, batch in itertools.product(args.mode, precisions, batches)
    ]


def recipes(args: argparse.Namespace) -> Iterator[tuple[str, str, str | None]]:
    """Name, config and forced backend of each network."""
    for index, text in enumerate(args.models or RECIPES):
        name, _, config = text.partition('=')
        if not config and name not in RECIPES:
            raise ValueError(f"unknown model '{name}'; known: {', '.join(RECIPES)}; of others give NAME=CONFIG")
        config = config or str(ROOT / 'configs' / 'cls' / RECIPES[name])
        yield name, config, None
        if index == 0 and not args.no_dense_kernels:
            yield name + DENSE, config, 'dense'


def build(config: str) -> nn.Module:
    """A recipe's classifier up to the logits, deployed, with random weights."""
    options = argparse.Namespace(config=config, launcher='none', work_dir=None, cfg_options=None)
    model: Any = build_model(load_config(options)).eval()
    if hasattr(model.backbone, 'switch_to_deploy'):
        model.backbone.switch_to_deploy()
    return InferenceForm(model)


def measure(args: argparse.Namespace, console: Console) -> list[Run]:
    """Measure what the options ask for, writing after every setting; returns all runs of the file, or the new ones."""
    rounds = args.rounds or ROUNDS_OF[args.device]
    runs = load_runs(args.out) if args.out else []
    networks = list(recipes(args))
    names = [name for name, _, _ in networks]
    wanted = settings(args)
    models: dict[str, Candidate] = {}
    for number, setting in enumerate(wanted, 1):
        if args.resume and find_run(runs, setting, args.device, names, rounds, args.layout):
            console.print(f'[{number}/{len(wanted)}] {setting}: in the file already', markup=False)
            continue
        models = models or {name: Candidate(build(config), backend) for name, config, backend in networks}
        console.print(f'[{number}/{len(wanted)}] {setting} ...', markup=False)
        run = measure_throughput(models, setting, args.device, rounds, args.layout)
        runs = with_run(runs, run)
        if args.out:
            save_runs(args.out, runs)
        console.print(run_table(run))
    return runs


def run_table(run: Run) -> Table:
    """One setting: images per second in every layout, and ratios to the first model beside the paper's."""
    first = run.rows[0].model
    table = Table(title=f'Images per second: {run.setting}', caption=_where(run))
    table.add_column('model')
    for layout in LAYOUTS:
        table.add_column(layout.replace('_', ' '), justify='right')
    for column in (f'to {first}', 'paper', 'peak MB'):
        table.add_column(column, justify='right')
    table.add_column('failure', overflow='fold')
    for row in run.rows:
        ratio, printed, memory = run.ratio(row.model), paper_ratio(row.model, first), row.best.peak_memory
        table.add_row(
            row.model,
            *(_speed(row.in_layout(layout)) for layout in LAYOUTS),
            '-' if ratio is None else f'{ratio:.3f}',
            '-' if printed is None else f'{printed:.3f}',
            '-' if memory is None else f'{memory / 2**20:.0f}',
            '; '.join(dict.fromkeys(one.failure for one in row.measurements if one.failure)),
        )
    return table


def _speed(measurement: Measurement | None) -> str:
    if measurement is None:
        return '-'
    speed = measurement.images_per_second
    return 'failed' if speed is None else f'{speed:.2f}' if speed < 100 else f'{speed:.0f}'


def _where(run: Run) -> str:
    at = run.machine
    threads = f', threads: {at["threads"]}' if run.device == 'cpu' else ''
    return f'{at["device"]}{threads}, torch {at["torch"]}, {at["date"]}, median of {run.rounds} rounds or more'


def draw(runs: Sequence[Run]) -> Figure:
    """Throughput against batch, a panel per precision and mode.

    Args:
        runs: Of one image size.
    """
    panels = sorted(
        {(run.setting.precision, run.setting.compiled) for run in runs},
        key=lambda panel: (panel[1], PRECISIONS.index(panel[0])),
    )
    names = list(dict.fromkeys(row.model for run in runs for row in run.rows))
    batches = sorted({run.setting.batch for run in runs})
    modes = sorted({compiled for _, compiled in panels})
    columns = max(sum(compiled == mode for _, compiled in panels) for mode in modes)
    figure = Figure(figsize=(4.6 * columns + 2.2, 3.9 * len(modes) + 0.6), layout='constrained')
    grid = figure.subplots(len(modes), columns, squeeze=False, sharey=True)
    for mode, line in zip(modes, grid, strict=True):
        in_line = [precision for precision, compiled in panels if compiled == mode]
        for axes, precision in itertools.zip_longest(line, in_line):
            if precision is None:
                axes.set_visible(False)
                continue
            shown = [run for run in runs if (run.setting.precision, run.setting.compiled) == (precision, mode)]
            _draw_panel(axes, sorted(shown, key=lambda run: run.setting.batch), names, batches)
            axes.set_title(f'{precision}, {"compiled" if mode else "eager"}')
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right center')
    where = ' and '.join(dict.fromkeys(_where(run).rpartition(', median')[0] for run in runs))
    side = runs[0].setting.size
    figure.suptitle(f'Inference throughput at {side} x {side}, the faster of two memory layouts\n{where}', fontsize=10)
    return figure


def _draw_panel(axes: Axes, runs: Sequence[Run], names: Sequence[str], batches: Sequence[int]) -> None:
    for name, style in zip(names, itertools.cycle(STYLES)):
        speeds = {
            run.setting.batch: row.images_per_second
            for run in runs
            for row in run.rows
            if row.model == name and row.images_per_second
        }
        axes.plot(list(speeds), list(speeds.values()), label=name, markersize=5, **style)  # type: ignore[arg-type]
    axes.set(xlabel='batch, images', ylabel='throughput, images/s', xscale='log', yscale='log')
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlim(batches[0] / 1.2, batches[-1] * 1.2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def main() -> None:
    args = parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with exit_on_user_error():
        if args.device == 'cuda' and not torch.cuda.is_available() and not args.show:
            raise ValueError('torch sees no GPU here; measure with --device cpu')
        if args.show:
            runs = load_runs(args.out)
            if not runs:
                raise FileNotFoundError(f"nothing measured in '{args.out}'; run this command without --show")
            for run in runs:
                console.print(run_table(run))
        else:
            runs = measure(args, console)
            if args.out:
                console.print(f'results are in {args.out}')
        if args.plot:
            shown = [run for run in runs if run.setting.size == args.size]
            if not shown:
                raise ValueError(f'no results at {args.size} x {args.size} to draw; name their size with --size')
            args.plot.parent.mkdir(parents=True, exist_ok=True)
            draw(shown).savefig(args.plot, dpi=110)
            console.print(f'figure: {args.plot}')


if __name__ == '__main__':
    main()
