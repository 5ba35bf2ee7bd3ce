"""Mixers compared on the demo's set: what ``benchmarks/mixer_comparison.py`` has found, as a table and as curves.

python -m reproduction.mixers --out docs/figures/reproduction/mixer_comparison.png
"""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error

from .figures import figure_path, write_figure
from .marks import NOTHING, Results, computed
from .variants import mean_and_deviation

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


#: A schedule's networks by name, each as the benchmark describes it.
Variants = Mapping[str, Mapping[str, Any]]


def read_schedules(results: Results) -> dict[str, Variants]:
    """The variants of each schedule, by its iterations; nothing before the benchmark has run."""
    return (results.read(_FILE) or dict(schedules={}))['schedules']


def mixers_table(schedules: Mapping[str, Variants], results: Results) -> Table:
    """Every schedule; deviations are sample standard deviations.

    Args:
        schedules: Of :func:`read_schedules`; differences are from the first network of each.
        results: Where they were read.
    """
    machine = results.read(_FILE)['machine']

    def measured(mean: float | str, deviation: float | None = None) -> str:
        return results.measured(mean, machine, 'mixers', spread=deviation)

    columns = ['variant', 'parameters [k]', 'widths']
    for iterations in schedules:
        columns += [f'mIoU after {iterations} [%]', 'less the first row', f'seeds above {_SOLVED:.0f} %']
    table = Table(columns)
    for name, variant in next(iter(schedules.values())).items():
        cells = [name, computed(variant['parameters'] / 1e3, 1), '-'.join(map(str, variant['widths']))]
        for variants in schedules.values():
            final = variants[name]['final']
            firsts = next(iter(variants.values()))['final']['values']
            gaps = [end - first for end, first in zip(final['values'], firsts, strict=True)]
            cells += [
                measured(final['mean'], final['deviation']),
                measured(*mean_and_deviation(gaps)) if any(gaps) else NOTHING,
                f'{sum(end > _SOLVED for end in final["values"])} of {len(gaps)}',
            ]
        table.add(*cells)
    return table


def draw(schedules: Mapping[str, Variants]) -> Figure:
    """A row of panels per schedule, a column per question."""
    figure = Figure(figsize=(12, 4.2 * len(schedules)), layout='constrained')
    grid = figure.subplots(len(schedules), len(_PANELS), squeeze=False, sharey='row')
    for row, (iterations, variants) in zip(grid, schedules.items(), strict=True):
        for axes, (title, names) in zip(row, _PANELS.items(), strict=True):
            _draw_curves(axes, {name: variants[name] for name in names})
            axes.set(title=f'{title}; {iterations} iterations', xlabel='iteration')
        row[0].set_ylabel('held-out mIoU [%]')
    seeds = len(variants[names[0]]['curves'])
    figure.suptitle(f"The demo's set: mean of {seeds} seeds; bars are standard deviations")
    return figure


def _draw_curves(axes: Axes, variants: Variants) -> None:
    for index, ((name, variant), (line, marker, colour)) in enumerate(zip(variants.items(), _STYLES, strict=False)):
        over_seeds = zip(*variant['curves'].values(), strict=True)
        means, spreads = zip(*map(mean_and_deviation, over_seeds), strict=True)
        # Shifted a little, so that the bars of different curves do not cover each other.
        steps = [step + 2 * index for step in variant['iterations']]
        label = f'{name}: {variant["parameters"] / 1e3:.1f} k parameters'
        style: dict[str, Any] = dict(linestyle=line, marker=marker, color=colour)
        axes.errorbar(steps, means, spreads, label=label, markersize=5, capsize=2, elinewidth=0.8, **style)
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right', fontsize=8)


def main() -> None:
    path = figure_path('mixers', __doc__)
    with exit_on_user_error():
        results = Results()
        schedules = read_schedules(results)
        if not schedules:
            raise FileNotFoundError(f"no {_FILE}.json in '{results.folder}'; python -m benchmarks.{_FILE} writes it")
        mixers_table(schedules, results).print()
        write_figure(draw(schedules), path)


if __name__ == '__main__':
    main()
