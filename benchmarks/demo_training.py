"""Trainings of the demo's network under changed settings, several at a time: what the accuracy benchmarks share."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from rich.progress import Progress

from mmpelk.analysis.runs import read_run
from mmpelk.analysis.timing import environment_info

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
        machine: Where and when it was trained, as :func:`mmpelk.analysis.timing.environment_info` describes it.
    """

    name: str
    seed: int
    curve: tuple[tuple[int, float], ...]
    machine: dict[str, Any]

    @property
    def final(self) -> float:
        """mIoU after the last iteration, in percent."""
        return self.curve[-1][1]


def train_all(settings: Mapping[str, str], seeds: Sequence[int], work_dir: Path, jobs: int) -> list[Run]:
    """Train every combination of settings and seeds with ``tools/train.py``, each in one process on the CPU.

    A combination that ``work_dir`` holds finished, with the same settings, is read and not trained again; one that was
    interrupted starts anew. Once a training fails, or the user stops, no other is started.

    Args:
        settings: Text of a config by name, laid over the demo's.
        seeds: Of the runs.
        work_dir: Folder of the runs.
        jobs: Trainings at a time, of one thread each.

    Returns:
        The runs, by name and then by seed.

    Raises:
        FileNotFoundError: If the demo's pictures are not there.
        ValueError: If a training fails; it names the log.
    """
    if not DATA.is_dir():
        raise FileNotFoundError(f'{DATA} does not exist; python tools/demo/make_segmentation_data.py draws it')
    stopped = Event()

    def train(name: str, seed: int) -> Run | None:
        if stopped.is_set():
            return None
        try:
            return _train(name, settings[name], seed, work_dir)
        except BaseException:
            stopped.set()  # here, since this thread takes the next training before the main thread hears of it
            raise

    combinations = [(name, seed) for seed in seeds for name in settings]
    with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train, *combination) for combination in combinations]
        try:
            finished = [
                future.result()
                for future in progress.track(as_completed(futures), total=len(futures), description='training')
            ]
        finally:
            stopped.set()
    runs = {(run.name, run.seed): run for run in finished if run}
    return [runs[name, seed] for name in settings for seed in seeds]


def _train(name: str, settings: str, seed: int, work_dir: Path) -> Run:
    folder = work_dir / f'{name}_{seed}'.replace(',', '').replace(' ', '_')
    config, done, log = folder / 'config.py', folder / 'done', folder / 'log.txt'
    text = _CONFIG.format(recipe=os.path.relpath(RECIPE, folder), seed=seed, settings=settings)
    if not (done.exists() and config.read_text() == text):
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        config.write_text(text)
        command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', folder / 'run']
        # On the CPU on every machine: the figures are to be comparable.
        one_thread = dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONWARNINGS='ignore')
        with log.open('w') as output:
            code = subprocess.run(
                command, cwd=ROOT, env=os.environ | one_thread, stdout=output, stderr=subprocess.STDOUT
            ).returncode
        if code or read_run(folder / 'run', 'mIoU').status != 'finished':
            raise ValueError(f"the training of '{name}' with seed {seed} failed, exit code {code}; its output: {log}")
        done.write_text(json.dumps(dict(environment_info('cpu'), threads=1)) + '\n')
    curve = tuple(sorted(read_run(folder / 'run', 'mIoU').tested.items()))
    return Run(name, seed, curve, json.loads(done.read_text()))


def trained_on(runs: Sequence[Run]) -> dict[str, Any]:
    """The machine of trainings; where they differ, all values of an entry, joined, and of the dates the oldest."""
    together = {key: list(dict.fromkeys(run.machine[key] for run in runs)) for key in runs[0].machine}
    joined = {key: values[0] if len(values) == 1 else ' or '.join(map(str, values)) for key, values in together.items()}
    return dict(joined, date=min(together['date']))
