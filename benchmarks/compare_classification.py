"""Train the networks of the classification demo over seeds, and compare them: a table, and a figure with error bars.

python -m benchmarks.compare_classification work_dirs/demo_classification --data data/demo_classification

What the folder holds finished, with the same settings, is read and not trained again.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.registry import MODELS, init_default_scope

import mmpelk
from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error
from reproduction.variants import VariantRun, mean_and_deviation, train_variants

# Recipe, and name in the figure.
NETWORKS = {'pelk': 'peripheral', 'conv7': 'conv7 (ConvNeXt)', 'stripe': 'stripe (SLaK)'}


def count_parameters(network: str) -> int:
    cfg = mmpelk.get_config(f'demo/{network}_nano_digits')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return sum(parameter.numel() for parameter in MODELS.build(cfg.model).parameters())


def train(data: Path, seeds: Sequence[int], work_dir: Path, at_a_time: int) -> dict[str, list[VariantRun]]:
    """The runs of each network."""
    roots = {f'{split}_dataloader.dataset.data_root': str(data) for split in ('train', 'val', 'test')}
    variants = {network: mmpelk.get_config(f'demo/{network}_nano_digits', roots) for network in NETWORKS}
    runs = train_variants(variants, seeds, work_dir, at_a_time, 'accuracy/top1')
    return {network: [run for run in runs if run.name == network] for network in NETWORKS}


def make_table(results: Mapping[str, Sequence[VariantRun]]) -> Table:
    table = Table(['mixer', 'parameters', 'top-1 on the test set, %', 'seeds'])
    for network, runs in results.items():
        values = [run.final for run in runs]
        mean, deviation = mean_and_deviation(values)
        seeds = ', '.join(f'{value:.1f}' for value in values)
        table.add(NETWORKS[network], str(count_parameters(network)), f'{mean:.2f} ± {deviation:.2f}', seeds)
    return table


def plot(results: Mapping[str, Sequence[VariantRun]], out: Path) -> None:
    """Accuracy over the epochs, and at the end; bars are standard deviations over the seeds."""
    figure = Figure(figsize=(10, 4), layout='constrained')
    curves, final = figure.subplots(1, 2)
    for position, (network, runs) in enumerate(results.items()):
        epochs = [epoch for epoch, _ in runs[0].curve]
        over_seeds = zip(*([value for _, value in run.curve] for run in runs), strict=True)
        means, deviations = zip(*map(mean_and_deviation, over_seeds), strict=True)
        label = f'{NETWORKS[network]}, {count_parameters(network) / 1e3:.1f} k'
        curves.errorbar(epochs, means, deviations, marker='o', capsize=4, label=label)
        final.errorbar(position, means[-1], deviations[-1], marker='o', capsize=8, markersize=8)
        final.plot([position + 0.12] * len(runs), [run.final for run in runs], 'k.', alpha=0.5)
    curves.set(xlabel='epoch', ylabel='top-1 on 500 test digits, %')
    curves.legend(loc='lower right')
    final.set(ylabel='top-1 at the end, %', xlim=(-0.5, len(results) - 0.5))
    final.set_xticks(range(len(results)), [NETWORKS[network] for network in results])
    for axes in (curves, final):
        axes.grid(alpha=0.3)
    seeds = len(next(iter(results.values())))
    figure.suptitle(f'Mean and standard deviation of {seeds} seeds; one digit is 0.2 %')
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='folder of the runs')
    parser.add_argument('--data', type=Path, default=Path('data/demo_classification'), help='%(default)s by default')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='0 1 2 by default')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time; %(default)s here')
    args = parser.parse_args()
    with exit_on_user_error():
        results = train(args.data, args.seeds, args.work_dir, args.jobs)
    make_table(results).print()
    out = args.work_dir / 'comparison.png'
    plot(results, out)
    print(out)


if __name__ == '__main__':
    main()
