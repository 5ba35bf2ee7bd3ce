"""Does dynamic sparsity cost accuracy? The demo's network, dense and with 40 % of its weights at zero, over seeds.

    python tools/demo/make_segmentation_data.py --out data/demo_segmentation
    python benchmarks/sparsity_accuracy.py --seeds 0 1 2

Trains every combination with ``tools/train.py`` on one process, several at a time, and writes mean and deviation of the
held-out mIoU to ``benchmarks/results/sparsity_accuracy.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import save
from rich.console import Console
from rich.table import Table

from mmpelk.analysis.timing import machine

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / 'configs/demo/upernet_pelk_nano_synthetic.py'
HOOKS = {
    'dense': '',
    'dynamic': "custom_hooks = [dict(type='mmpelk.SparsityHook', mode='dynamic', density=0.6, update_interval=25)]",
}
# The demo's batch is 4 on each of two processes.
CONFIG = """
_base_ = {recipe!r}
randomness = dict(seed={seed})
train_dataloader = dict(batch_size=8)
{hook}
"""


def train(mode: str, seed: int, work_dir: Path) -> float:
    """One training; the last held-out mIoU in percent."""
    folder = work_dir / f'{mode}_{seed}'
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / 'config.py'
    config.write_text(CONFIG.format(recipe=str(RECIPE), seed=seed, hook=HOOKS[mode]))
    command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', folder / 'run']
    with (folder / 'log.txt').open('w') as log:
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    scalars = max((folder / 'run').glob('*/vis_data/scalars.json'))
    scores = [row['mIoU'] for row in map(json.loads, scalars.read_text().splitlines()) if 'mIoU' in row]
    return scores[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/sparsity_accuracy')
    args = parser.parse_args()
    runs = [(mode, seed) for seed in args.seeds for mode in HOOKS]
    with ThreadPoolExecutor(args.jobs) as pool:
        scores = list(pool.map(lambda run: train(*run, args.work_dir), runs))
    results: dict[str, dict[str, float | list[float]]] = {}
    table = Table(title='held-out mIoU of the demo, percent')
    for column in ('mode', 'mean', 'standard deviation', 'seeds'):
        table.add_column(column)
    for mode in HOOKS:
        values = [score for (name, _), score in zip(runs, scores, strict=True) if name == mode]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        results[mode] = {'mean': statistics.mean(values), 'deviation': deviation, 'values': values}
        table.add_row(mode, f'{statistics.mean(values):.2f}', f'{deviation:.2f}', ', '.join(map(str, values)))
    Console().print(table)
    path = save('sparsity_accuracy', {'machine': machine('cpu'), 'seeds': args.seeds, 'results': results})
    print(f'written to {path}')


if __name__ == '__main__':
    main()
