"""A training that was killed and resumed ends as the one that was not, to the bit."""

import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpelk.fault_tolerance.preemption import PREEMPTED
from tests.commands import call, find_free_port
from tests.fault_tolerance.recipes import write_recipe
from tests.fault_tolerance.torture import torture
from tests.fault_tolerance.training import Running, Signalled, difference, preload, start
from tests.paths import TOOLS

pytestmark = pytest.mark.slow
LAST = {'seg': 'iter_8.pth', 'cls': 'epoch_3.pth', 'det': 'epoch_3.pth'}


@pytest.fixture(scope='module', autouse=True)
def _imported() -> None:
    preload()


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory, tiny_ade20k: Path, tiny_imagenet: Path) -> dict[str, Path]:
    shapes = tmp_path_factory.mktemp('shapes')
    call(TOOLS / 'demo/make_detection_data.py', shapes, '--train', 4, '--val', 1, cwd=shapes)
    return dict(seg=tiny_ade20k, cls=tiny_imagenet, det=shapes)


class Runs:
    """Runs of one recipe, one of which nobody interrupts."""

    def __init__(self, task: str, data: Path, folder: Path, ranks: int, workers: int, **changes: Any) -> None:
        self.task, self.data, self.folder, self.ranks, self.workers = task, data, folder, ranks, workers
        self.changes = dict(randomness=dict(seed=random.randrange(999)), **changes)
        self.end(self.start('whole'))

    def start(self, name: str, *options: str, **changes: Any) -> Running:
        recipe = self.folder / f'{self.task}.py'
        write_recipe(self.task, self.data, recipe, self.workers, **self.changes, **changes)
        # A port of its own: what loaded data for a killed process holds its port for a while.
        words = [recipe, '--work-dir', self.folder / name, *options]
        return start(self.folder, words, self.ranks, port=find_free_port())

    def end(self, running: Running, code: int = 0) -> str:
        assert running.wait() == [code] * self.ranks, running.printed()[-3000:]
        return running.printed()

    def kill_when(self, running: Running, name: str) -> None:
        """Kill all processes as soon as a checkpoint is there."""
        running.wait_for((self.folder / 'other' / name).exists)
        running.kill()
        running.wait()

    def compare(self) -> None:
        first, second = (
            torch.load(self.folder / name / LAST[self.task], weights_only=False) for name in ('whole', 'other')
        )
        assert {'state_dict', 'ema_state_dict', 'optimizer', 'message_hub', 'run_state'} <= first.keys()
        assert not difference(first, second)


@pytest.mark.parametrize(('task', 'ranks', 'point'), [('cls', 2, 'epoch_1.pth'), ('det', 1, 'epoch_2.pth')])
def test_killed_and_resumed(tmp_path: Path, data: dict[str, Path], task: str, ranks: int, point: str) -> None:
    runs = Runs(task, data[task], tmp_path, ranks, 2)
    runs.kill_when(runs.start('other'), point)
    runs.end(runs.start('other', '--resume'))
    runs.compare()


def test_newest_that_loads_is_resumed_from(tmp_path: Path, data: dict[str, Path]) -> None:
    runs = Runs('seg', data['seg'], tmp_path, 1, 0)
    runs.kill_when(runs.start('other'), 'iter_4.pth')
    newest = max((tmp_path / 'other').glob('iter_*.pth'))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    printed = runs.end(runs.start('other', '--resume'))
    assert re.search(rf'Not resumed from: .*{newest.name}', printed)
    runs.compare()


def test_stopped_by_a_signal_to_one_of_two_processes_and_killed(tmp_path: Path, data: dict[str, Path]) -> None:
    """Both finish the iteration, save and leave with the code that a scheduler starts them again on."""
    # mmengine does not repeat a validation that was killed: so that the only one has a checkpoint before it.
    runs = Runs('seg', data['seg'], tmp_path, 2, 2, train_cfg__val_interval=5)
    signalled = dict(type=f'{Signalled.__module__}.Signalled', rank=1, iteration=2, number=int(signal.SIGTERM))
    printed = runs.end(runs.start('other', default_hooks__signalled=signalled), PREEMPTED)
    assert '--resume goes on from there' in printed
    assert (tmp_path / 'other' / 'iter_3.pth').exists(), 'whatever the interval'
    runs.kill_when(runs.start('other', '--resume'), 'iter_4.pth')
    runs.end(runs.start('other', '--resume'))
    runs.compare()


def test_three_kills(tmp_path: Path) -> None:
    """Of `make torture`: of both processes and of each of them."""
    said: list[str] = []
    assert ': 3 resumes' in torture(tmp_path, 3, random.randrange(999), said.append)
    assert sum(line.startswith('kill') for line in said) == 3
