"""A training that was killed and resumed ends as the one that was not, to the bit."""

import random
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from tests.commands import call
from tests.paths import TOOLS
from tests.reliability.recipes import write_recipe
from tests.reliability.training import Running, difference, preload, start

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
    """SIGKILL to all processes as soon as a file is there."""
    while not path.exists():
        assert any(process.is_alive() for process in running.processes), running.printed()[-3000:]
        time.sleep(0.01)
    running.kill(signal.SIGKILL)
    running.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def final(folder: Path, task: str) -> dict:
    return torch.load(folder / LAST[task], weights_only=False)


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
    ports = [_free_port() for _ in range(3)]  # what loaded data for a killed process holds its port for a while
    words = {name: [recipe, '--work-dir', tmp_path / name] for name in ('whole', 'killed')}
    whole = start(tmp_path, words['whole'], ranks, port=ports[0])
    assert whole.wait() == [0] * ranks, whole.printed()[-3000:]
    kill_when(start(tmp_path, words['killed'], ranks, port=ports[1]), tmp_path / 'killed' / point)
    resumed = start(tmp_path, [*words['killed'], '--resume'], ranks, port=ports[2])
    assert resumed.wait() == [0] * ranks, resumed.printed()[-3000:]
    first, second = final(tmp_path / 'whole', task), final(tmp_path / 'killed', task)
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'message_hub', 'run_state'} <= first.keys()
    assert not difference(first, second)
