"""Trainings of the accuracy benchmarks: what is read, what is trained, what follows a failure; none is really run."""

import importlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.paths import ROOT

SETTINGS = {'dense': 'a = 1', 'one, two': 'a = 2'}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The module, with pictures."""
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    module = importlib.import_module('demo_training')
    monkeypatch.setattr(module, 'DATA', tmp_path)
    return module


class Trainer:
    """In place of :func:`subprocess.run`: leaves behind what a training does, or fails."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.environments: list[dict[str, str]] = []
        self.fails = ''
        self.second = 0

    def __call__(self, command: list[Any], *, env: dict[str, str], stdout: Any, **_: Any) -> SimpleNamespace:
        name = Path(command[2]).parent.name
        self.trained.append(name)
        self.environments.append(env)
        print('what it says', file=stdout)
        if name == self.fails:
            return SimpleNamespace(returncode=3)
        self.second += 1
        data = Path(command[4]) / f'20260102_0304{self.second:02}' / 'vis_data'
        data.mkdir(parents=True)
        (data / 'config.py').write_text('train_cfg = dict(max_iters=20)')
        lines = [dict(iter=5, step=5), dict(mIoU=40.0, step=10), dict(iter=15, step=15), dict(mIoU=50.5, step=20)]
        (data / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
        return SimpleNamespace(returncode=0)


def replace_run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> None:
    """In the module alone: :mod:`platform` starts processes, too."""
    monkeypatch.setattr(tool, 'subprocess', SimpleNamespace(run=function, STDOUT=subprocess.STDOUT))


@pytest.fixture
def trainer(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    replace_run(tool, monkeypatch, trainer)
    return trainer


def test_finished_trainings_are_read_and_not_repeated(tool: ModuleType, trainer: Trainer, tmp_path: Path) -> None:
    runs = tool.train_all(SETTINGS, [0, 1], tmp_path, 2)
    assert [(run.name, run.seed) for run in runs] == [(name, seed) for name in SETTINGS for seed in (0, 1)]
    assert {run.curve for run in runs} == {((10, 40.0), (20, 50.5))}
    assert {run.final for run in runs} == {50.5}
    assert sorted(trainer.trained) == ['dense_0', 'dense_1', 'one_two_0', 'one_two_1']
    assert tool.train_all(SETTINGS, [0, 1], tmp_path, 2) == runs
    assert len(trainer.trained) == 4
    assert tool.train_all(SETTINGS, [0, 1, 2], tmp_path, 2)[:2] == runs[:2]
    assert sorted(trainer.trained[4:]) == ['dense_2', 'one_two_2']


def test_other_settings_train_again(tool: ModuleType, trainer: Trainer, tmp_path: Path) -> None:
    tool.train_all(SETTINGS, [0], tmp_path, 1)
    tool.train_all(SETTINGS | {'dense': 'a = 3'}, [0], tmp_path, 1)
    assert trainer.trained == ['dense_0', 'one_two_0', 'dense_0']
    config = (tmp_path / 'dense_0' / 'config.py').read_text()
    assert 'a = 3' in config
    assert 'randomness = dict(seed=0)' in config


def test_machine_is_that_of_the_training(
    tool: ModuleType, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, 'machine', lambda device: dict(device=f'a {device}', threads=8, date='2026-01-02'))
    (first,) = tool.train_all({'dense': ''}, [0], tmp_path, 1)
    assert first.machine == dict(device='a cpu', threads=1, date='2026-01-02')
    assert trainer.environments[0]['OMP_NUM_THREADS'] == '1'
    assert trainer.environments[0]['CUDA_VISIBLE_DEVICES'] == '', 'on the CPU, as the machine says'
    # Read again later and elsewhere, beside one that is trained there.
    monkeypatch.setattr(tool, 'machine', lambda device: dict(device=f'b {device}', threads=8, date='2026-01-09'))
    runs = tool.train_all({'dense': ''}, [0, 1], tmp_path, 1)
    assert runs[0].machine == first.machine
    assert tool.trained_on(runs) == dict(device='a cpu or b cpu', threads=1, date='2026-01-02')
    assert tool.trained_on(runs[:1]) == first.machine


@pytest.mark.parametrize('jobs', [1, 2])
def test_failure_names_the_log_and_stops_the_rest(
    jobs: int, tool: ModuleType, trainer: Trainer, tmp_path: Path
) -> None:
    trainer.fails = 'one_two_0'
    with pytest.raises(
        ValueError, match=r"training of 'one, two' with seed 0 failed, exit code 3; .*/log\.txt$"
    ) as told:
        tool.train_all(SETTINGS, range(20), tmp_path, jobs)
    log = Path(str(told.value).rpartition(' ')[2])
    assert log == tmp_path / 'one_two_0' / 'log.txt'
    assert log.read_text() == 'what it says\n'
    assert len(trainer.trained) <= 40 // 4, 'of 40'
    if jobs == 1:
        assert trainer.trained == ['dense_0', 'one_two_0']
    # The same call again trains what failed, and not what was finished.
    trainer.fails, trainer.trained = '', []
    tool.train_all(SETTINGS, [0], tmp_path, jobs)
    assert trainer.trained == ['one_two_0']


def test_interrupt_stops_the_rest(
    tool: ModuleType, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    def slow(command: list[Any], **words: Any) -> Any:
        time.sleep(0.5)  # until long after the interrupt
        return trainer(command, **words)

    monkeypatch.setattr(tool, 'as_completed', interrupted)
    replace_run(tool, monkeypatch, slow)
    with pytest.raises(KeyboardInterrupt):
        tool.train_all(SETTINGS, range(20), tmp_path, 1)
    assert len(trainer.trained) <= 1, 'the one that ran'


def test_training_that_ends_early_failed(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 0 without the last test."""

    def nothing(command: list[Any], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(returncode=0)

    replace_run(tool, monkeypatch, nothing)
    with pytest.raises(ValueError, match='failed, exit code 0'):
        tool.train_all(SETTINGS, [0], tmp_path, 1)


def test_without_pictures(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, 'DATA', tmp_path / 'nothing')
    with pytest.raises(FileNotFoundError, match='make_segmentation_data'):
        tool.train_all(SETTINGS, [0], tmp_path, 1)
