"""Variants of a recipe trained over seeds, several at a time: comparisons for a machine without a GPU."""

import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmpelk.analysis.machine import environment_info
from mmpelk.engine.checks import check_data

from .runs import read_run
from .trainings import Training, run_trainings

_TRAIN = Path(__file__).resolve().parents[1] / '.mim' / 'tools' / 'train.py'
# On the CPU on every machine: the figures are to be comparable.
_ENVIRONMENT = dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONWARNINGS='ignore')


@dataclass(frozen=True)
class VariantRun:
    """The training of a variant with a seed."""

    name: str  # of the variant
    seed: int  # of the run
    curve: tuple[tuple[int, float], ...]  # ``(epoch or iteration, metric in percent)`` of every test, in order
    machine: dict[str, Any]  # where and when it was trained, as :func:`.timing.environment_info` describes it

    @property
    def final(self) -> float:
        """The metric at the end, in percent."""
        return self.curve[-1][1]


def train_variants(
    variants: Mapping[str, Config], seeds: Sequence[int], work_dir: Path, at_a_time: int, metric: str
) -> list[VariantRun]:
    """Train every variant with every seed, each in one process with one thread on the CPU.

    What ``work_dir`` holds finished, with the same settings, is read and not trained again; what was interrupted starts
    anew. Once a training fails, all are stopped.

    Args:
        variants: Config by name.
        seeds: Of the runs.
        work_dir: Folder of the runs.
        at_a_time: Trainings at a time.
        metric: Name of the metric in the log, such as ``'mIoU'``.

    Returns:
        The runs, by name and then by seed.

    Raises:
        FileNotFoundError: If the data of a variant are not there.
        ValueError: If a training fails; it names the log.
    """
    for cfg in variants.values():
        check_data(cfg, ['train_dataloader', 'val_dataloader'])
    trainings = {
        (name, seed): _training(name, cfg, seed, work_dir, metric) for seed in seeds for name, cfg in variants.items()
    }
    failed = run_trainings(trainings.values(), at_a_time, keep_going=False)
    for name, reason in failed.items():
        raise ValueError(f'the training of {name} failed: {reason}')
    return [_read(name, seed, trainings[name, seed].folder, metric) for name in variants for seed in seeds]


def _training(name: str, cfg: Config, seed: int, work_dir: Path, metric: str) -> Training:
    folder = work_dir / f'{name}_{seed}'.replace(',', '').replace(' ', '_')
    config, run = folder / 'variant.py', folder / 'run'
    settings = cfg.to_dict() | dict(randomness=dict(seed=seed))
    # Its bases merged, so that a change of them is a change of the settings.
    text = '\n'.join(f'{key} = {value!r}' for key, value in settings.items()) + '\n'

    def is_finished() -> bool:
        return (
            config.exists()
            and config.read_text(encoding='utf-8') == text
            and read_run(run, metric).status == 'finished'
        )

    def prepare() -> None:
        shutil.rmtree(run, ignore_errors=True)
        config.write_text(text, encoding='utf-8')
        (folder / 'machine.json').write_text(
            json.dumps(dict(environment_info('cpu'), threads=1)) + '\n', encoding='utf-8'
        )

    command = [sys.executable, str(_TRAIN), str(config), '--work-dir', str(run)]
    return Training(f"'{name}' with seed {seed}", command, folder, is_finished, _ENVIRONMENT, prepare=prepare)


def _read(name: str, seed: int, folder: Path, metric: str) -> VariantRun:
    curve = tuple(sorted(read_run(folder / 'run', metric).tested.items()))
    return VariantRun(name, seed, curve, json.loads((folder / 'machine.json').read_text(encoding='utf-8')))


def trained_on(runs: Sequence[VariantRun]) -> dict[str, Any]:
    """The machine of trainings; where they differ, all values of an entry, joined, and of the dates the oldest."""
    together = {key: list(dict.fromkeys(run.machine.get(key, 'unknown') for run in runs)) for key in runs[0].machine}
    joined = {key: values[0] if len(values) == 1 else ' or '.join(map(str, values)) for key, values in together.items()}
    return dict(joined, date=min(together['date']))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is 0 for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
