"""Draw the curves of ``benchmarks/mixer_comparison.py``: held-out mIoU over the iterations, mean and deviation.

python tools/analysis/plot_mixer_comparison.py --out docs/figures/reproduction/mixer_comparison.png
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmpelk.engine.command_line import exit_on_user_error

matplotlib.use('Agg')  # no display needed

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'benchmarks/results/mixer_comparison.json'
# Two questions: which mixer, and which peripheral kernel.
PANELS = {
    'Mixers at equal parameters': ('peripheral', 'dense', 'stripe', 'conv7'),
    'Peripheral kernels, and dense ones as wide': (
        'peripheral',
        'peripheral with embedding',
        'peripheral, centre 1',
        'peripheral, centre 7',
        'dense, same widths',
    ),
}
STYLES = (('-', 'o', 'black'), ('--', 's', '0.35'), ('-.', '^', '0.5'), (':', 'D', '0.2'), ('--', 'v', '0.6'))


def draw(data: dict[str, Any]) -> Figure:
    """A row of panels per schedule, a column per question."""
    schedules = data['schedules']
    figure = plt.figure(figsize=(12, 4.2 * len(schedules)), layout='constrained')
    grid = figure.subplots(len(schedules), len(PANELS), squeeze=False, sharey='row')
    for row, (iterations, results) in zip(grid, schedules.items(), strict=True):
        for axes, (title, names) in zip(row, PANELS.items(), strict=True):
            _draw_curves(axes, results, names)
            axes.set(title=f'{title}; {iterations} iterations', xlabel='iteration')
        row[0].set_ylabel('held-out mIoU [%]')
    seeds = len(data['seeds'])
    figure.suptitle(f"The demo's set: mean of {seeds} seeds; bars are standard deviations")
    return figure


def _draw_curves(axes: Axes, results: dict[str, Any], names: Sequence[str]) -> None:
    for index, (name, (line, marker, colour)) in enumerate(zip(names, STYLES, strict=False)):
        result = results[name]
        spread = [
            statistics.stdev(values) if len(values) > 1 else 0.0
            for values in zip(*result['curves'].values(), strict=True)
        ]
        # Shifted a little, so that the bars of different curves do not cover each other.
        steps = [step + 2 * index for step in result['iterations']]
        axes.errorbar(
            steps,
            result['mean_curve'],
            spread,
            linestyle=line,
            marker=marker,
            markersize=5,
            color=colour,
            capsize=2,
            elinewidth=0.8,
            label=f'{name}: {result["parameters"] / 1e3:.1f} k parameters',
        )
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right', fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=Path, default=RESULTS, help='what the benchmark has written; %(default)s')
    parser.add_argument('--out', type=Path, required=True, help='PNG to write')
    args = parser.parse_args()
    with exit_on_user_error():
        if not args.results.is_file():
            raise FileNotFoundError(f"'{args.results}' does not exist; python benchmarks/mixer_comparison.py writes it")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        draw(json.loads(args.results.read_text())).savefig(args.out, dpi=100)
    print(args.out)


if __name__ == '__main__':
    main()
