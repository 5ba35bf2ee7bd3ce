"""Trainings of the demo's network under changed settings, several at a time: what the accuracy benchmarks share."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / 'configs/demo/upernet_pelk_nano_synthetic.py'
DATA = ROOT / 'data/demo_segmentation'
# The demo's batch is 4 on each of two processes.
_CONFIG = """
_base_ = {recipe!r}
randomness = dict(seed={seed})
train_dataloader = dict(batch_size=8)
{settings}
"""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Of the settings.
        seed: Of the run.
        curve: ``(iteration, held-out mIoU in percent)``, in order.
    """

    name: str
    seed: int
    curve: tuple[tuple[int, float], ...]

    @property
    def final(self) -> float:
        """mIoU after the last iteration, in percent."""
        return self.curve[-1][1]


def train_all(settings: Mapping[str, str], seeds: Sequence[int], work_dir: Path, jobs: int) -> list[Run]:
    """Train every combination of settings and seeds, on one process each, with ``tools/train.py``.

    A combination that ``work_dir`` holds finished, with the same settings, is read and not trained again; one that was
    interrupted starts anew.

    Args:
        settings: Text of a config by name, laid over the demo's.
        seeds: Of the runs.
        work_dir: Folder of the runs.
        jobs: Trainings at a time, of one thread each.

    Returns:
        The runs, by name and then by seed.

    Raises:
        FileNotFoundError: If the demo's pictures are not there.
        subprocess.CalledProcessError: If a training fails; its folder holds ``log.txt``.
    """
    if not DATA.is_dir():
        raise FileNotFoundError(f'{DATA} does not exist; python tools/demo/make_segmentation_data.py draws it')
    combinations = [(name, seed) for seed in seeds for name in settings]
    runs: dict[tuple[str, int], Run] = {}
    with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task('training', total=len(combinations))

        def train(combination: tuple[str, int]) -> None:
            name, seed = combination
            runs[combination] = _train(name, settings[name], seed, work_dir)
            progress.advance(task)

        list(pool.map(train, combinations))
    return [runs[name, seed] for name in settings for seed in seeds]


def _train(name: str, settings: str, seed: int, work_dir: Path) -> Run:
    folder = work_dir / f'{name}_{seed}'.replace(',', '').replace(' ', '_')
    config, done = folder / 'config.py', folder / 'done'
    text = _CONFIG.format(recipe=os.path.relpath(RECIPE, folder), seed=seed, settings=settings)
    if not (done.exists() and config.read_text() == text):
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        config.write_text(text)
        command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', folder / 'run']
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
        with (folder / 'log.txt').open('w') as log:
            subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
        done.touch()
    return Run(name, seed, tuple(_read_curve(folder / 'run')))


def _read_curve(folder: Path) -> list[tuple[int, float]]:
    newest = max(folder.glob('*/vis_data/scalars.json'))
    rows = [json.loads(line) for line in newest.read_text().splitlines()]
    return [(row['step'], row['mIoU']) for row in rows if 'mIoU' in row]
