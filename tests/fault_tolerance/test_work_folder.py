"""One training at a time writes into a work folder, and no link leads it elsewhere."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.work_folder import WorkFolderLock
from tests.fault_tolerance.tiny import hook_of, make_runner, names, train


def is_locked(folder: Path) -> bool:
    """Whether a lock of another opening of the file is refused, as another process's is."""
    with open(folder / '.lock', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize('slashes', [0, 1])
def test_the_folder_of_checkpoints_is_locked_too(slashes: int, tmp_path: Path) -> None:
    """Work folders of one name in two places share it."""
    runner, locked = make_runner(tmp_path / 'run', 1, out_dir=str(tmp_path / 'large')), []
    runner._work_dir += os.sep * slashes  # as a shell completes it
    runner.train_loop.run = lambda: locked.append(is_locked(tmp_path / 'large' / 'run'))
    runner.train()
    assert locked == [True]
    hook_of(runner).after_train(runner)
    assert not is_locked(tmp_path / 'large' / 'run')


def test_a_process_may_train_again_in_its_folder(tmp_path: Path) -> None:
    """The lock outlasts other openings of its file: of a runner before, of a second one, of a copy of the folder."""
    failed, lock = WorkFolderLock(tmp_path / '.'), WorkFolderLock(tmp_path)
    shutil.copytree(tmp_path, tmp_path / 'copy', ignore=shutil.ignore_patterns('copy'))
    del failed
    WorkFolderLock(tmp_path).release()
    assert is_locked(tmp_path), 'by the one that is left'
    lock.release()
    assert not is_locked(tmp_path)
    opened = len(os.listdir('/proc/self/fd'))
    for lock in [WorkFolderLock(tmp_path) for _ in range(3)]:
        lock.release()
    assert len(os.listdir('/proc/self/fd')) == opened


def test_the_file_of_a_lock_names_its_holder_alone(tmp_path: Path) -> None:
    (tmp_path / '.lock').write_text('process 123456789 on another machine, whose name is long\n' * 3)
    lock = WorkFolderLock(tmp_path)
    assert (tmp_path / '.lock').read_text() == f'process {os.getpid()} on {socket.gethostname()}\n'
    lock.release()


@pytest.mark.parametrize('number', [errno.EACCES, errno.EAGAIN, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_trained_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is locked by another process is refused, whichever number the system has for that."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    opened = len(os.listdir('/proc/self/fd'))
    if number in (errno.EACCES, errno.EAGAIN):
        with pytest.raises(UserError, match=r'^another process trains in '):
            WorkFolderLock(tmp_path)
    else:
        WorkFolderLock(tmp_path).release()
    assert len(os.listdir('/proc/self/fd')) == opened


@pytest.mark.slow
def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    program = (
        'import sys; from mmpelk.fault_tolerance.work_folder import WorkFolderLock\n'
        f'lock = WorkFolderLock({str(tmp_path)!r}); print("locked", flush=True); sys.stdin.read()'
    )
    other = subprocess.Popen([sys.executable, '-c', program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b'locked\n'
        with pytest.raises(UserError, match=f'process {other.pid} on .* trains in .*--work-dir'):
            train(tmp_path, 1)
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    train(tmp_path, 1)  # the lock of a dead process is none


@pytest.mark.slow
def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = WorkFolderLock(tmp_path)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b'.')
        signal.pause()
    try:
        os.read(read, 1)
        lock.release()
        assert not is_locked(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_links_in_a_work_folder_lead_to_nothing(tmp_path: Path) -> None:
    precious, folder = tmp_path / 'thesis.tex', tmp_path / 'run'
    folder.mkdir()
    precious.write_text('a year of work')
    for name in ('.last_checkpoint.tmp', '.run_id.tmp', '.iter_1.pth.tmp'):
        (folder / name).symlink_to(precious)
    train(folder, 1)
    assert names(folder) == ['iter_1.pth']
    (folder / '.lock').unlink()
    (folder / '.lock').symlink_to(precious)
    with pytest.raises(UserError, match=r'\.lock.* cannot be opened to lock the folder'):
        WorkFolderLock(folder)
    assert precious.read_text() == 'a year of work'
