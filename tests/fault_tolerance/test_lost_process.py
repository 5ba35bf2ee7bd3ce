"""A process that dies, or that hangs: the other ends and says so, instead of waiting for ever."""

import signal
import time
from pathlib import Path

import pytest

from tests.commands import find_free_port
from tests.fault_tolerance.recipes import write_recipe
from tests.fault_tolerance.training import preload, start

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ('number', 'lost', 'timeout'), [(signal.SIGKILL, 1, 1800), (signal.SIGKILL, 0, 1800), (signal.SIGSTOP, 1, 30)]
)
def test_the_other_process_ends(
    tmp_path: Path, tiny_ade20k: Path, number: signal.Signals, lost: int, timeout: int
) -> None:
    preload('seg')
    changes = dict(train_cfg__max_iters=4000, train_cfg__val_interval=5000, env_cfg__dist_cfg__timeout=timeout)
    recipe = write_recipe('seg', tiny_ade20k, tmp_path / 'seg.py', **changes)
    run = start(tmp_path, [recipe, '--work-dir', tmp_path / 'run'], 2, port=find_free_port())
    while not (tmp_path / 'run' / 'iter_2.pth').exists():
        assert run.processes[0].is_alive(), run.printed()[-3000:]
        time.sleep(0.01)
    run.kill(number, [lost])
    other = run.processes[1 - lost]
    other.join(300)
    run.kill(signal.SIGKILL)
    assert other.exitcode == 1, run.printed()[-3000:]
    printed = run.logs[1 - lost].read_text()
    assert 'error: another process has ended or does not answer' in printed
    assert 'Traceback' not in printed
