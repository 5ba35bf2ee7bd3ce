"""Mixers compared on the demo's set: what ``benchmarks/mixer_comparison.py`` has found, as a table and as curves.

python -m reproduction.mixers --out docs/figures/reproduction/mixer_comparison.png
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmpelk.analysis.table import Table
from mmpelk.analysis.variants import mean_and_deviation
from mmpelk.engine.command_line import exit_on_user_error

from . import RESULTS
from .figures import figure_parser, write_figure
from .marks import NOTHING, Results, computed

__all__ = ['Variant', 'draw', 'mixers_table', 'read_schedules']

_FILE = 'mixer_comparison'
_SOLVED = 95.0  # mIoU in per cent: our line between networks that use the far cue fully and those on their way
# Two questions: which mixer, and which peripheral kernel.
_PANELS = {
    'Mixers at equal parameters': ('peripheral', 'dense', 'stripe', 'conv7'),
    'Peripheral kernels, and dense ones as wide': (
        'peripheral',
        'peripheral with embedding',
        'peripheral, centre 1',
        'peripheral, centre 7',
        'dense, same widths',
    ),
}
_STYLES = (('-', 'o', 'black'), ('--', 's', '0.35'), ('-.', '^', '0.5'), (':', 'D', '0.2'), ('--', 'v', '0.6'))


@dataclass(frozen=True)
class Variant:
    """A network of the comparison, trained by one schedule.

    Attributes:
        name: Its mixer, and what is special about it.
        parameters: Of its backbone.
        widths: Channels of its stages.
        iterations: When it was tested.
        curves: Held-out mIoU in per cent, a curve for each seed.
    """

    name: str
    parameters: int
    widths: list[int]
    iterations: list[int]
    curves: list[list[float]]


def read_schedules(results: Results) -> dict[str, list[Variant]]:
    """The variants of each schedule, by its iterations; nothing before the benchmark has run."""
    data = results.read(_FILE) or dict(schedules={})
    return {
        iterations: [
            Variant(name, one['parameters'], one['widths'], one['iterations'], list(one['curves'].values()))
            for name, one in variants.items()
        ]
        for iterations, variants in data['schedules'].items()
    }


def mixers_table(variants: Sequence[Variant], results: Results) -> Table:
    """One schedule; deviations are sample standard deviations.

    Args:
        variants: The networks; differences are from the first.
        results: Where they were read.
    """
    machine = results.read(_FILE)['machine']

    def measured(values: Sequence[float]) -> str:
        mean, deviation = mean_and_deviation(values)
        return results.measured(mean, machine, 'mixers', spread=deviation)

    heads = ['variant', 'parameters [k]', 'widths', 'mIoU at the end [%]', 'less the first row, by seed']
    table = Table([*heads, 'mean over the curve [%]', f'seeds above {_SOLVED:.0f} %', 'the seeds [%]'])
    firsts = [curve[-1] for curve in variants[0].curves]
    for variant in variants:
        ends = [curve[-1] for curve in variant.curves]
        gaps = [end - first for end, first in zip(ends, firsts, strict=True)]
        table.add(
            variant.name,
            computed(variant.parameters / 1e3, 1),
            '-'.join(map(str, variant.widths)),
            measured(ends),
            measured(gaps) if any(gaps) else NOTHING,
            measured(list(map(statistics.mean, variant.curves))),
            results.measured(f'{sum(end > _SOLVED for end in ends)} of {len(ends)}', machine, 'mixers'),
            results.measured(', '.join(f'{end:.1f}' for end in ends), machine, 'mixers'),
        )
    return table


def draw(schedules: dict[str, list[Variant]]) -> Figure:
    """A row of panels per schedule, a column per question."""
    figure = Figure(figsize=(12, 4.2 * len(schedules)), layout='constrained')
    grid = figure.subplots(len(schedules), len(_PANELS), squeeze=False, sharey='row')
    for row, (iterations, variants) in zip(grid, schedules.items(), strict=True):
        for axes, (title, names) in zip(row, _PANELS.items(), strict=True):
            _draw_curves(axes, [next(one for one in variants if one.name == name) for name in names])
            axes.set(title=f'{title}; {iterations} iterations', xlabel='iteration')
        row[0].set_ylabel('held-out mIoU [%]')
    seeds = len(next(iter(schedules.values()))[0].curves)
    figure.suptitle(f"The demo's set: mean of {seeds} seeds; bars are standard deviations")
    return figure


def _draw_curves(axes: Axes, variants: Sequence[Variant]) -> None:
    for index, (variant, (line, marker, colour)) in enumerate(zip(variants, _STYLES, strict=False)):
        means, spreads = zip(*map(mean_and_deviation, zip(*variant.curves, strict=True)), strict=True)
        # Shifted a little, so that the bars of different curves do not cover each other.
        steps = [step + 2 * index for step in variant.iterations]
        label = f'{variant.name}: {variant.parameters / 1e3:.1f} k parameters'
        style: dict[str, Any] = dict(
            linestyle=line, marker=marker, markersize=5, color=colour, capsize=2, elinewidth=0.8
        )
        axes.errorbar(steps, means, spreads, label=label, **style)
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right', fontsize=8)


def main() -> None:
    parser = figure_parser(__doc__, _FILE)
    parser.add_argument('--results', type=Path, default=RESULTS, help='folder of the results files; %(default)s')
    args = parser.parse_args()
    with exit_on_user_error():
        results = Results(args.results)
        schedules = read_schedules(results)
        if not schedules:
            raise FileNotFoundError(f"no {_FILE}.json in '{args.results}'; python benchmarks/{_FILE}.py writes it")
        for variants in schedules.values():
            mixers_table(variants, results).print()
        numbers = {iterations: list(map(asdict, variants)) for iterations, variants in schedules.items()}
        write_figure(draw(schedules), args, numbers)


if __name__ == '__main__':
    main()
