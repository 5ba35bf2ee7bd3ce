"""Do the paper's claims about mixers hold where they can be tested here? The demo's set, over seeds.

    python tools/demo/make_segmentation_data.py --out data/demo_segmentation
    python benchmarks/mixer_comparison.py --seeds 0 1 2 3 4

Peripheral kernels against dense ones, stripes and 7 x 7, at the same number of parameters; three sizes of the
fine-grained centre; with and without the positional embedding; dense kernels at the same widths. Two schedules: the
demo's, and a shorter one, since kernels that see far enough nearly solve the set in the end (docs/demo.md). Finished
trainings are read and not repeated. Writes the curves, and means and deviations, to
``benchmarks/results/mixer_comparison.json``.
"""

import argparse
import copy
import functools
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import save
from demo_training import RECIPE, ROOT, Run, train_all, trained_on
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.table import Table

from mmpelk.engine.command_line import exit_on_user_error

# What a variant changes in the backbone. Those of `EXTRA` differ from `BASE` in nothing else, and so in size; the
# widths of the others are chosen for the parameters of `BASE`.
BASE = 'peripheral'
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: dict(positional_embedding=None),
    'peripheral, centre 1': dict(positional_embedding=None, arch=dict(center_size=1)),
    'peripheral, centre 7': dict(positional_embedding=None, arch=dict(center_size=7)),
    'dense': dict(positional_embedding=None, mixer='dense'),
    'stripe': dict(positional_embedding=None, mixer='stripe'),
    'conv7': dict(positional_embedding=None, mixer='conv7'),
    'peripheral with embedding': dict(positional_embedding='in_bounds'),
    'dense, same widths': dict(positional_embedding=None, mixer='dense'),
}
EXTRA = ('peripheral with embedding', 'dense, same widths')
WARM_UP = 30  # iterations, as in the demo
POINTS = 10  # of a curve


def configure(backbone: dict[str, Any], widths: Sequence[int]) -> dict[str, Any]:
    """The part of a config that changes the demo's model."""
    arch = dict(backbone.get('arch', {}), channels=tuple(widths))
    return dict(backbone=dict(backbone, arch=arch), decode_head=dict(in_channels=list(widths)))


@functools.cache
def _demo() -> Config:
    return Config.fromfile(RECIPE)


def count_parameters(backbone: dict[str, Any], widths: Sequence[int]) -> int:
    """Parameters of the whole model."""
    cfg = copy.deepcopy(_demo())
    cfg.merge_from_dict(dict(model=configure(backbone, widths)))
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return sum(parameter.numel() for parameter in MODELS.build(cfg.model).parameters())


def matched_widths(backbone: dict[str, Any], parameters: int, demo: Sequence[int]) -> tuple[int, int]:
    """Widths of the two stages, the second about twice the first, that come nearest to a number of parameters."""
    candidates = [
        (first, second)
        for first in range(demo[0] // 2, demo[0] + 9)
        for second in (2 * first - 1, 2 * first, 2 * first + 1)
    ]
    counts = {widths: count_parameters(backbone, widths) for widths in candidates}
    return min(candidates, key=lambda widths: (abs(counts[widths] - parameters), abs(widths[1] - 2 * widths[0])))


def plan() -> dict[str, tuple[int, ...]]:
    """Widths of every variant."""
    demo = tuple(_demo().channels)
    target = count_parameters(VARIANTS[BASE], demo)
    same = (BASE, *EXTRA)
    return {
        name: demo if name in same else matched_widths(backbone, target, demo) for name, backbone in VARIANTS.items()
    }


def settings(name: str, widths: Sequence[int], iterations: int) -> str:
    """Text of the config of a variant, for a schedule of a number of iterations."""
    schedule = [
        dict(type='LinearLR', start_factor=0.03, by_epoch=False, begin=0, end=WARM_UP),
        dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=WARM_UP, end=iterations),
    ]
    return '\n'.join(
        [
            f'model = {configure(VARIANTS[name], widths)!r}',
            f'param_scheduler = {schedule!r}',
            f'train_cfg = dict(max_iters={iterations}, val_interval={iterations // POINTS})',
            f'default_hooks = dict(checkpoint=dict(interval={iterations}))',
        ]
    )


def summarise(name: str, widths: Sequence[int], runs: Sequence[Run]) -> dict[str, Any]:
    """Everything about a variant that the result file holds. Deviations are sample standard deviations."""
    final = [run.final for run in runs]
    means = [statistics.mean(value for _, value in points) for points in zip(*(run.curve for run in runs), strict=True)]
    over_curve = [statistics.mean(value for _, value in run.curve) for run in runs]
    return dict(
        backbone=VARIANTS[name],
        widths=list(widths),
        parameters=count_parameters(VARIANTS[name], widths),
        matched=name not in EXTRA,
        iterations=[step for step, _ in runs[0].curve],
        curves={str(run.seed): [value for _, value in run.curve] for run in runs},
        mean_curve=means,
        final=dict(mean=statistics.mean(final), deviation=_deviation(final), values=final),
        over_curve=dict(mean=statistics.mean(over_curve), deviation=_deviation(over_curve), values=over_curve),
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def print_table(console: Console, results: dict[str, dict[str, Any]], iterations: int) -> None:
    table = Table(title=f'held-out mIoU of the demo after {iterations} iterations, %: mean ± standard deviation')
    for column in ('variant', 'widths', 'parameters', 'at the end', 'mean over the curve', 'seeds, at the end'):
        table.add_column(column)
    for name, result in results.items():
        final, over = result['final'], result['over_curve']
        table.add_row(
            name,
            '-'.join(map(str, result['widths'])),
            str(result['parameters']),
            f'{final["mean"]:.1f} ± {final["deviation"]:.1f}',
            f'{over["mean"]:.1f} ± {over["deviation"]:.1f}',
            ', '.join(f'{value:.1f}' for value in final['values']),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    parser.add_argument('--iterations', type=int, nargs='+', default=[400, 700], help='schedules; %(default)s')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time; %(default)s')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/mixer_comparison')
    args = parser.parse_args()
    console, widths = Console(), plan()
    everything: list[Run] = []
    schedules: dict[str, dict[str, dict[str, Any]]] = {}
    for iterations in args.iterations:
        texts = {name: settings(name, widths[name], iterations) for name in VARIANTS}
        with exit_on_user_error():
            runs = train_all(texts, args.seeds, args.work_dir / str(iterations), args.jobs)
        everything += runs
        schedules[str(iterations)] = {
            name: summarise(name, widths[name], [run for run in runs if run.name == name]) for name in VARIANTS
        }
        print_table(console, schedules[str(iterations)], iterations)
        data = dict(machine=trained_on(everything), seeds=args.seeds, schedules=schedules)
        console.print(f'written to {save("mixer_comparison", data)}')


if __name__ == '__main__':
    main()
