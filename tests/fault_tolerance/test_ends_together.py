"""What stops one process stops all, with a sentence, and what is good stays."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmpelk.fault_tolerance.safe_loading import check_integrity
from tests.commands import find_free_port
from tests.fault_tolerance.recipes import write_recipe
from tests.fault_tolerance.training import LOST, Running, preload, start

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB, in memory."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', folder], capture_output=True).returncode:
        pytest.skip('mounting a file system takes root')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)


def begin(tmp_path: Path, words: list[object], first: Path) -> Running:
    """Two processes that have written their first checkpoint."""
    preload('seg')
    run = start(tmp_path, words, 2, port=find_free_port())
    run.wait_for(first.exists)
    return run


def unwritten(run: Running) -> re.Match[str]:
    """The sentence with which both have ended: the file, why it cannot be written, and the last good one."""
    assert run.wait() == [1, 1], run.printed()[-3000:]
    assert 'Traceback' not in run.printed()
    said = r"^error: the checkpoint '(.*)' cannot be written: (.*); the last good one is '(.*)'\. .*--resume$"
    *_, message = re.finditer(said, run.printed(), re.MULTILINE)  # logs are continued by a resume
    check_integrity(message[3])
    return message


def test_full_disk(tmp_path: Path, tiny_ade20k: Path, small_disk: Path) -> None:
    """The first process alone writes; the second learns of it instead of waiting."""
    changes = dict(default_hooks__checkpoint__out_dir=str(small_disk), train_cfg__val_interval=1000)
    recipe = write_recipe('seg', tiny_ade20k, tmp_path / 'seg.py', train_cfg__max_iters=400, **changes)
    words = [recipe, '--work-dir', tmp_path / 'run']
    first = small_disk / 'run' / 'iter_2.pth'
    run = begin(tmp_path, words, first)
    run.kill(signal.SIGSTOP)  # so that nothing is written in between
    room = shutil.disk_usage(small_disk).free - first.stat().st_size * 3 // 2  # for one more
    subprocess.run(['fallocate', '--length', str(room), small_disk / 'data of others'], check=True)
    run.kill(signal.SIGCONT)
    message = unwritten(run)
    sizes = re.fullmatch(r'No space left on device: ([\d,]+) bytes are needed, ([\d,]+) are free', message[2])
    assert sizes
    assert int(sizes[2].replace(',', '')) < int(sizes[1].replace(',', ''))
    assert re.search(r'The next checkpoint does not fit beside .* needed, [\d,]+ free\. Make room', run.printed())
    assert not Path(message[1]).exists()
    assert not list(small_disk.glob('run/.*.tmp'))

    # With room again it goes on from there, until the best checkpoint cannot be written.
    (small_disk / 'data of others').unlink()
    done = int(re.findall(r'\d+', message[3])[-1])
    taken = small_disk / 'run' / f'best_mIoU_iter_{done + 2}.pth'
    taken.mkdir()
    ends = [f'train_cfg.{key}={done + 2}' for key in ('max_iters', 'val_interval')]
    again = start(tmp_path, [*words, '--resume', '--cfg-options', *ends], 2, port=find_free_port())
    message = unwritten(again)
    assert f'iter: {done}' in again.printed()
    assert (message[1], Path(message[3]).name) == (str(taken), f'iter_{done + 2}.pth')


def test_a_process_that_hangs_is_waited_for_no_longer_than_the_timeout(tmp_path: Path, tiny_ade20k: Path) -> None:
    """torture.py has a process that is killed."""
    changes = dict(train_cfg__max_iters=4000, train_cfg__val_interval=5000, env_cfg__dist_cfg__timeout=30)
    recipe = write_recipe('seg', tiny_ade20k, tmp_path / 'seg.py', **changes)
    run = begin(tmp_path, [recipe, '--work-dir', tmp_path / 'run'], tmp_path / 'run' / 'iter_2.pth')
    run.kill(signal.SIGSTOP, [1])
    run.processes[0].join(300)
    run.kill(signal.SIGKILL)
    assert run.processes[0].exitcode == 1, run.printed()[-3000:]
    printed = run.logs[0].read_text()
    assert LOST in printed
    assert 'Traceback' not in printed
