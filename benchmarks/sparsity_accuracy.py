"""Does dynamic sparsity cost accuracy? The demo's network, dense and with 40 % of its weights at zero, over seeds.

    python tools/demo/make_segmentation_data.py --out data/demo_segmentation
    python benchmarks/sparsity_accuracy.py --seeds 0 1 2

Trains every combination with ``tools/train.py`` on one process, several at a time, and writes mean and deviation of the
held-out mIoU to ``benchmarks/results/sparsity_accuracy.json``.
"""

import argparse
import os
import statistics
from pathlib import Path

from common import save
from demo_training import ROOT, train_all, trained_on
from rich.console import Console
from rich.table import Table

from mmpelk.engine.command_line import exit_on_user_error

HOOKS = {
    'dense': '',
    'dynamic': "custom_hooks = [dict(type='mmpelk.SparsityHook', mode='dynamic', density=0.6, update_interval=25)]",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/sparsity_accuracy')
    args = parser.parse_args()
    with exit_on_user_error():
        runs = train_all(HOOKS, args.seeds, args.work_dir, args.jobs)
    results: dict[str, dict[str, float | list[float]]] = {}
    table = Table(title='held-out mIoU of the demo, percent')
    for column in ('mode', 'mean', 'standard deviation', 'seeds'):
        table.add_column(column)
    for mode in HOOKS:
        values = [run.final for run in runs if run.name == mode]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        results[mode] = {'mean': statistics.mean(values), 'deviation': deviation, 'values': values}
        table.add_row(mode, f'{statistics.mean(values):.2f}', f'{deviation:.2f}', ', '.join(map(str, values)))
    Console().print(table)
    path = save('sparsity_accuracy', {'machine': trained_on(runs), 'seeds': args.seeds, 'results': results})
    print(f'written to {path}')


if __name__ == '__main__':
    main()
