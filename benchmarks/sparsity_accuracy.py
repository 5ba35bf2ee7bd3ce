"""What does dynamic sparsity cost in accuracy, by weights and by units, and is it worth more than a small network?

    python tools/demo/make_segmentation_data.py --out data/demo_segmentation
    python tools/demo/make_classification_data.py data/demo_classification
    python -m benchmarks.sparsity_accuracy --seeds 0 1 2 3 4

Two sets, four variants, paired by seed: the dense network; 40 % of its weights at zero, single ones (SNIP's shares) or
whole hidden units (the same share in every block); and, trained densely from scratch, the small network that has only
as many hidden units from the start, which executes what the shrunk one does. The demo's set has a shorter schedule than
the demo, which nearly solves it. Finished trainings are read and not repeated. Writes
``benchmarks/results/sparsity_accuracy.json``.
"""

import argparse
import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

import mmpelk
from mmpelk.analysis.complexity import count_complexity
from mmpelk.analysis.inference import build_model
from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.sparsity import active_total, find_parameters, uniform_units
from reproduction.variants import VariantRun, mean_and_deviation, train_variants, trained_on

RESULTS = Path(__file__).resolve().parent / 'results' / 'sparsity_accuracy.json'
DENSITY = 0.6
UPDATES = 16  # of the masks, in a run


@dataclass(frozen=True)
class Task:
    """A recipe to train on.

    Attributes:
        recipe: Its name.
        metric: Name of the metric in the log.
        iterations: Of a run.
        target: What is made sparse, as in the recipes of the task.
        shape: Height and width of its images.
    """

    recipe: str
    metric: str
    iterations: int
    target: tuple[str, ...]
    shape: tuple[int, int]

    def config(self) -> Config:
        """The dense recipe, for one process."""
        cfg = copy.deepcopy(mmpelk.get_config(f'demo/{self.recipe}'))
        if cfg.default_scope == 'mmseg':
            cfg.merge_from_dict(
                dict(
                    train_dataloader=dict(batch_size=8),  # the demo's batch is 4 on each of two processes
                    param_scheduler=[
                        dict(type='LinearLR', start_factor=0.03, by_epoch=False, begin=0, end=30),
                        dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=30, end=self.iterations),
                    ],
                    train_cfg=dict(max_iters=self.iterations, val_interval=self.iterations // 4),
                    default_hooks=dict(checkpoint=dict(interval=self.iterations)),
                )
            )
        cfg.custom_hooks = []
        return cfg

    def widths(self) -> list[list[int]]:
        """Hidden units of every block with as many active weights as :data:`DENSITY` says, as ``SparsityHook`` does."""
        units = iter(uniform_units(build_model(self.config()), DENSITY, self.target).values())
        return [[next(units) for _ in range(depth)] for depth in self.config().model.backbone.depths]

    def variants(self) -> dict[str, Config]:
        """Config of each variant."""
        hook = dict(
            type='mmpelk.SparsityHook',
            density=DENSITY,
            target=list(self.target),
            update_interval=math.ceil(self.iterations / UPDATES),
        )
        hooks = {
            'dense': [],
            'weight': [hook],
            'unit': [dict(hook, granularity='unit', initialisation='uniform')],
            'small': [],
        }
        variants = {}
        for name, custom_hooks in hooks.items():
            variants[name] = self.config()
            variants[name].custom_hooks = custom_hooks
        variants['small'].model.backbone.hidden_channels = self.widths()
        return variants

    def counts(self) -> dict[str, dict[str, int]]:
        """Live parameters and executed multiply-adds of each variant."""
        variants = self.variants()
        dense, small = (count_complexity(build_model(variants[name]), self.shape) for name in ('dense', 'small'))
        sizes = [entry.weight.numel() for entry in find_parameters(build_model(variants['dense']), self.target)]
        inactive = sum(sizes) - active_total(sizes, DENSITY)
        return {
            'dense': dict(active=dense.params, executed=dense.flops),
            'weight': dict(active=dense.params - inactive, executed=dense.flops),
            'unit': dict(active=small.params, executed=small.flops),
            'small': dict(active=small.params, executed=small.flops),
        }


TASKS = {
    'demo': Task('upernet_pelk_nano_synthetic', 'mIoU', 400, ('backbone',), (128, 128)),
    'digits': Task('pelk_nano_digits', 'accuracy/top1', 12 * math.ceil(1297 / 64), ('backbone', 'head'), (32, 32)),
}


def summarise(runs: Sequence[VariantRun], counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, Any]]:
    """What the results file holds of a task: by variant, values by seed, their mean, and the gain over ``small``."""
    values = {name: [run.final for run in runs if run.name == name] for name in counts}
    summary = {}
    for name, own in values.items():
        mean, deviation = mean_and_deviation(own)
        gains = [a - b for a, b in zip(own, values['small'], strict=True)]
        gain, spread = mean_and_deviation(gains)
        summary[name] = dict(
            counts[name], mean=mean, deviation=deviation, values=own, gain=dict(mean=gain, deviation=spread)
        )
    return summary


def make_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """All tasks and variants; gains are paired by seed."""
    columns = [
        'set',
        'variant',
        'active parameters',
        'executed FLOPs',
        'metric, %',
        'less small, by seed',
    ]
    table = Table(columns, title=f'mIoU and top-1 at density {DENSITY}: mean ± standard deviation', labels=2)
    for task, variants in results.items():
        for name, result in variants.items():
            gain = result['gain']
            table.add(
                task,
                name,
                f'{result["active"] / 1e3:.1f} k',
                f'{result["executed"] / 1e6:.1f} M',
                f'{result["mean"]:.2f} ± {result["deviation"]:.2f}',
                '-' if name == 'small' else f'{gain["mean"]:+.2f} ± {gain["deviation"]:.2f}',
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4], help='0 to 4 by default')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time')
    args = parser.parse_args()
    everything: list[VariantRun] = []
    results = {}
    with exit_on_user_error():
        for name, task in TASKS.items():
            runs = train_variants(
                task.variants(), args.seeds, Path('work_dirs/sparsity_accuracy') / name, args.jobs, task.metric
            )
            everything += runs
            results[name] = summarise(runs, task.counts())
    make_table(results).print()
    data = dict(machine=trained_on(everything), seeds=args.seeds, density=DENSITY, results=results)
    RESULTS.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    print(f'written to {RESULTS}')


if __name__ == '__main__':
    main()
