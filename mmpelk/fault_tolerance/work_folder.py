"""One training at a time writes into a work folder."""

import contextlib
import errno
import fcntl
import functools
import os
import socket
import weakref
from pathlib import Path

from .errors import UserError

# By device and number of the lock file: its descriptor, and how many locks of this process there are on it.
_held: dict[tuple[int, int], list[int]] = {}


class WorkFolderLock:
    """A lock on a folder that its process holds, and that ends with the process, however it ends.

    It is the operating system's (``flock``), on the file ``.lock``; worker processes do not inherit it, and a process
    that has it may take it again. Another opening and closing of the file does not end it.

    Args:
        folder: It is made where there is none.

    Raises:
        UserError: If another process has it, or ``.lock`` cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / '.lock'
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UserError(
                f"'{path}' cannot be opened to lock the folder: {error.strerror}. Delete it if no training runs there, "
                'or take another --work-dir'
            ) from error
        status = os.fstat(opened)
        key = (status.st_dev, status.st_ino)
        if key in _held:
            os.close(opened)
            _held[key][1] += 1
        else:
            _take(opened, path, key)
        self._release = weakref.finalize(self, _release_lock, key)

    def release(self) -> None:
        """Let others train there, unless this process holds it once more."""
        self._release()


def _take(opened: int, path: Path, key: tuple[int, int]) -> None:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = path.read_text(encoding='utf-8', errors='replace').strip() or 'another process'
        os.close(opened)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"{holder} trains in '{path.parent}', where the checkpoints of two trainings would mix: wait for its "
                'end, or take another --work-dir'
            ) from error
        return  # a file system without locks
    with contextlib.suppress(OSError):  # a full disk; the lock is held all the same
        os.ftruncate(opened, 0)
        os.write(opened, f'process {os.getpid()} on {socket.gethostname()}\n'.encode())
    _forget_in_forks()
    _held[key] = [opened, 1]


def _release_lock(key: tuple[int, int]) -> None:
    if key not in _held:
        return
    _held[key][1] -= 1
    if not _held[key][1]:
        os.close(_held.pop(key)[0])


@functools.cache
def _forget_in_forks() -> None:
    """A lock lasts as long as any process that inherited its descriptor, as workers of data loaders do."""
    os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    while _held:
        _, (opened, _) = _held.popitem()
        with contextlib.suppress(OSError):
            os.close(opened)
