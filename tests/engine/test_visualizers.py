"""``--visualize``: curves in TensorBoard's files and in a run of Weights & Biases, from a training."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.commands import call
from tests.paths import TOOLS

pytestmark = pytest.mark.slow


def train(config: Path, name: str, folder: Path) -> str:
    """Four iterations and a validation with the option."""
    return call(TOOLS / 'train.py', config, '--work-dir', folder, '--visualize', name, cwd=config.parent)


def test_tensorboard_reads_the_curves(tiny_config: Path, tmp_path: Path) -> None:
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_config, 'tensorboard', tmp_path)
    (events,) = tmp_path.rglob('events.out.tfevents.*')
    curves = EventAccumulator(str(events.parent)).Reload()
    assert [event.step for event in curves.Scalars('loss')] == [1, 2, 3, 4]
    assert len(curves.Scalars('mIoU')) == 1


class Wandb(ModuleType):
    """What mmengine calls of the package, recorded."""

    def __init__(self) -> None:
        super().__init__('wandb')
        self.started: list[dict] = []
        self.logged: list[dict] = []
        self.config = SimpleNamespace(update=lambda *_, **__: None)
        self.run = SimpleNamespace(log_code=lambda *_, **__: None)

    def init(self, **arguments: Any) -> None:
        self.started.append(arguments)

    def log(self, values: dict, **_: Any) -> None:
        self.logged.append(values)

    def finish(self, *_: Any, **__: Any) -> None:
        pass

    join = finish


def test_wandb_gets_the_curves(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in: the package itself is 20 MB and asks for an account."""
    stand_in = Wandb()
    stand_in.__spec__ = SimpleNamespace(name='wandb')  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, 'wandb', stand_in)
    train(tiny_config, 'wandb', tmp_path)
    (arguments,) = stand_in.started
    assert arguments['project'] == 'mmpelk'
    assert Path(arguments['dir']).is_relative_to(tmp_path)
    assert sum('loss' in values for values in stand_in.logged) == 4
    assert any('mIoU' in values for values in stand_in.logged)
