"""Does dynamic sparsity cost accuracy? The demo's network, dense and with 40 % of its weights at zero, over seeds.

    python tools/demo/make_segmentation_data.py --out data/demo_segmentation
    python benchmarks/sparsity_accuracy.py --seeds 0 1 2

Trains every combination with ``tools/train.py`` on one process, several at a time, and writes mean and deviation of the
held-out mIoU to ``benchmarks/results/sparsity_accuracy.json``.
"""

import argparse
import json
import os
from pathlib import Path

import mmpelk
from mmpelk.analysis.table import Table
from mmpelk.analysis.variants import mean_and_deviation, train_variants, trained_on
from mmpelk.engine.command_line import exit_on_user_error

RESULTS = Path(__file__).resolve().parent / 'results' / 'sparsity_accuracy.json'
MODES: dict[str, list[dict]] = {
    'dense': [],
    'dynamic': [dict(type='mmpelk.SparsityHook', mode='dynamic', density=0.6, update_interval=25)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/sparsity_accuracy'))
    args = parser.parse_args()
    with exit_on_user_error():
        # The demo's batch is 4 on each of two processes.
        variants = {
            mode: mmpelk.get_config(
                'demo/upernet_pelk_nano_synthetic', {'train_dataloader.batch_size': 8, 'custom_hooks': hooks}
            )
            for mode, hooks in MODES.items()
        }
        runs = train_variants(variants, args.seeds, args.work_dir, args.jobs, 'mIoU')
    results: dict[str, dict[str, float | list[float]]] = {}
    table = Table(['mode', 'mean', 'standard deviation', 'seeds'], title='held-out mIoU of the demo, percent')
    for mode in MODES:
        values = [run.final for run in runs if run.name == mode]
        mean, deviation = mean_and_deviation(values)
        results[mode] = dict(mean=mean, deviation=deviation, values=values)
        table.add(mode, f'{mean:.2f}', f'{deviation:.2f}', ', '.join(map(str, values)))
    table.print()
    data = dict(machine=trained_on(runs), seeds=args.seeds, results=results)
    RESULTS.write_text(json.dumps(data, indent=1) + '\n')
    print(f'written to {RESULTS}')


if __name__ == '__main__':
    main()
