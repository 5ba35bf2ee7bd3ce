"""A disk without room, and a file that cannot be written: all processes stop with a sentence, what is good stays."""

import re
import resource
import shutil
import signal
import subprocess
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmpelk.fault_tolerance.atomic_files import write_atomically
from mmpelk.fault_tolerance.safe_loading import check_integrity
from tests.commands import find_free_port
from tests.fault_tolerance.recipes import write_recipe
from tests.fault_tolerance.training import preload, start

Usage = namedtuple('Usage', 'total used free')


def test_no_write_is_begun_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'a.pth'
    write_atomically(path, b'old')
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: Usage(9000, 7000, 1999))
    with pytest.raises(OSError, match='No space left on device: 2,000 bytes are needed, 1,999 are free'):
        write_atomically(path, b'x' * 2000)
    assert path.read_bytes() == b'old'
    write_atomically(path, b'x' * 1999)
    assert [file.name for file in tmp_path.iterdir()] == ['a.pth']


def test_a_write_that_fails_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / 'a.pth'
    write_atomically(path, b'old')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(OSError, match='File too large'):
            write_atomically(path, b'x' * 8192)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b'old'
    assert [file.name for file in tmp_path.iterdir()] == ['a.pth']


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB, in memory."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', folder], capture_output=True).returncode:
        pytest.skip('mounting a file system takes root')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)


@pytest.mark.slow
def test_full_disk(tmp_path: Path, tiny_ade20k: Path, small_disk: Path) -> None:
    preload('seg')
    changes = dict(default_hooks__checkpoint__out_dir=str(small_disk), train_cfg__val_interval=100)
    recipe = write_recipe('seg', tiny_ade20k, tmp_path / 'seg.py', train_cfg__max_iters=400, **changes)
    words = [recipe, '--work-dir', tmp_path / 'run']
    run = start(tmp_path, words, 2, port=find_free_port())
    first = small_disk / 'run' / 'iter_2.pth'
    while not first.exists():
        assert run.processes[0].is_alive(), run.printed()[-3000:]
        time.sleep(0.01)
    run.kill(signal.SIGSTOP)  # so that nothing is written in between
    room = shutil.disk_usage(small_disk).free - first.stat().st_size * 3 // 2  # for one more
    subprocess.run(['fallocate', '--length', str(room), small_disk / 'data of others'], check=True)
    run.kill(signal.SIGCONT)
    assert run.wait() == [1, 1], run.printed()[-3000:]
    printed = run.printed()
    assert 'Traceback' not in printed
    assert re.search(r'The next checkpoint does not fit beside .* needed, [\d,]+ free\. Make room', printed)
    told = re.search(
        r"^error: the checkpoint '(.*)' cannot be written: No space left on device: ([\d,]+) bytes are needed, "
        r"([\d,]+) are free; the last good one is '(.*)'\. Make room .*--resume$",
        printed,
        re.MULTILINE,
    )
    assert told, printed[-3000:]
    assert int(told[3].replace(',', '')) < int(told[2].replace(',', ''))
    check_integrity(told[4])
    assert not Path(told[1]).exists()
    assert not list(small_disk.glob('run/.*.tmp'))
    # With room again it goes on from there.
    (small_disk / 'data of others').unlink()
    done = int(re.findall(r'\d+', told[4])[-1])
    again = start(
        tmp_path, [*words, '--resume', '--cfg-options', f'train_cfg.max_iters={done + 2}'], 2, port=find_free_port()
    )
    assert again.wait() == [0, 0], again.printed()[-3000:]
    assert f'iter: {done}' in again.printed()
    assert torch.load(small_disk / 'run' / f'iter_{done + 2}.pth', weights_only=False)['meta']['iter'] == done + 2


@pytest.mark.slow
def test_best_checkpoint_that_cannot_be_written(tmp_path: Path, tiny_ade20k: Path) -> None:
    """The first process alone writes; the second learns of it instead of waiting."""
    preload('seg')
    recipe = write_recipe('seg', tiny_ade20k, tmp_path / 'seg.py')
    taken = tmp_path / 'run' / 'best_mIoU_iter_3.pth'
    taken.mkdir(parents=True)
    run = start(tmp_path, [recipe, '--work-dir', tmp_path / 'run'], 2, port=find_free_port())
    assert run.wait() == [1, 1], run.printed()[-3000:]
    assert 'Traceback' not in run.printed()
    sentence = f"error: the checkpoint '{re.escape(str(taken))}' cannot be written: .*the last good one is .*iter_2"
    assert re.search(sentence, run.printed())
    check_integrity(tmp_path / 'run' / 'iter_2.pth')
