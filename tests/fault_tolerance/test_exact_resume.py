"""A training that was killed and resumed ends as the one that was not, to the bit."""

import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from mmpelk.fault_tolerance.preemption import PREEMPTED
from tests.commands import call, find_free_port
from tests.fault_tolerance.recipes import write_recipe
from tests.fault_tolerance.training import Running, Signalled, difference, preload, start
from tests.paths import TOOLS

pytestmark = pytest.mark.slow
LAST = {'seg': 'iter_8.pth', 'cls': 'epoch_3.pth', 'det': 'epoch_3.pth'}


@pytest.fixture(scope='module', autouse=True)
def _imported() -> None:
    preload()


@pytest.fixture(scope='module')
def data(tmp_path_factory, tiny_ade20k: Path, tiny_imagenet: Path) -> dict[str, Path]:
    shapes = tmp_path_factory.mktemp('shapes')
    call(TOOLS / 'demo/make_detection_data.py', shapes, '--train', 4, '--val', 1, cwd=shapes)
    return dict(seg=tiny_ade20k, cls=tiny_imagenet, det=shapes)


def kill_when(running: Running, path: Path) -> None:
    """Kill all processes as soon as a file is there."""
    while not path.exists():
        assert any(process.is_alive() for process in running.processes), running.printed()[-3000:]
        time.sleep(0.01)
    running.kill()
    running.wait()


def final(folder: Path, name: str) -> dict:
    return torch.load(folder / LAST.get(name, name), weights_only=False)


@pytest.mark.parametrize(
    ('task', 'ranks', 'workers', 'point'),
    [
        ('seg', 1, 0, 'iter_4.pth'),
        ('seg', 2, 2, 'iter_2.pth'),
        ('cls', 2, 2, 'epoch_1.pth'),
        ('det', 1, 2, 'epoch_2.pth'),
    ],
)
def test_killed_and_resumed(tmp_path, data, task, ranks, workers, point):
    recipe = write_recipe(
        task, data[task], tmp_path / f'{task}.py', workers, randomness=dict(seed=random.randrange(999))
    )
    ports = [find_free_port() for _ in range(3)]  # what loaded data for a killed process holds its port for a while
    words = {name: [recipe, '--work-dir', tmp_path / name] for name in ('whole', 'killed')}
    whole = start(tmp_path, words['whole'], ranks, port=ports[0])
    assert whole.wait() == [0] * ranks, whole.printed()[-3000:]
    kill_when(start(tmp_path, words['killed'], ranks, port=ports[1]), tmp_path / 'killed' / point)
    resumed = start(tmp_path, [*words['killed'], '--resume'], ranks, port=ports[2])
    assert resumed.wait() == [0] * ranks, resumed.printed()[-3000:]
    first, second = final(tmp_path / 'whole', task), final(tmp_path / 'killed', task)
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'message_hub', 'run_state'} <= first.keys()
    assert not difference(first, second)


def test_stopped_by_a_signal_to_one_of_two_processes(tmp_path, data):
    """Both finish the iteration, save and leave with the code that a scheduler starts them again on."""
    # Without validation before the end, which mmengine does not run again.
    changes = dict(randomness=dict(seed=7), train_cfg__val_interval=100)
    recipe = write_recipe('seg', data['seg'], tmp_path / 'seg.py', **changes)
    words = {name: [recipe, '--work-dir', tmp_path / name] for name in ('whole', 'stopped')}
    whole = start(tmp_path, words['whole'], 2, port=find_free_port())
    assert whole.wait() == [0, 0], whole.printed()[-3000:]
    signalled = dict(type=f'{Signalled.__module__}.Signalled', rank=1, iteration=3, number=int(signal.SIGTERM))
    write_recipe('seg', data['seg'], recipe, **changes, default_hooks__signalled=signalled)
    stopped = start(tmp_path, words['stopped'], 2, port=find_free_port())
    assert stopped.wait() == [PREEMPTED, PREEMPTED], stopped.printed()[-3000:]
    assert '--resume goes on from there' in stopped.printed()
    write_recipe('seg', data['seg'], recipe, **changes)
    resumed = start(tmp_path, [*words['stopped'], '--resume'], 2, port=find_free_port())
    assert resumed.wait() == [0, 0], resumed.printed()[-3000:]
    assert not difference(final(tmp_path / 'whole', 'seg'), final(tmp_path / 'stopped', 'seg'))


def test_newest_that_loads_is_resumed_from(tmp_path, data):
    recipe = write_recipe('seg', data['seg'], tmp_path / 'seg.py', randomness=dict(seed=7), train_cfg__val_interval=7)
    words = [recipe, '--work-dir', tmp_path / 'run']
    first = start(tmp_path, words)
    assert first.wait() == [0], first.printed()[-3000:]
    newest = tmp_path / 'run' / 'iter_8.pth'
    expected = final(tmp_path / 'run', 'seg')
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    again = start(tmp_path, [*words, '--resume'])
    assert again.wait() == [0], again.printed()[-3000:]
    assert re.search(r'Not resumed from: .*iter_8\.pth', again.printed())
    assert not difference(expected, final(tmp_path / 'run', 'seg'))


def test_training_that_diverges_stops_with_the_files_and_the_remedy(tmp_path, data):
    recipe = write_recipe('seg', data['seg'], tmp_path / 'seg.py', train_cfg__max_iters=40)
    run = start(tmp_path, [recipe, '--work-dir', tmp_path / 'run', '--cfg-options', 'optim_wrapper.optimizer.lr=1e30'])
    assert run.wait() == [1]
    assert 'Traceback' not in run.printed()
    assert re.search(r'not finite.*Look at these files.*lower learning rate', run.printed(), re.DOTALL)
