"""One training at a time writes into a work folder."""

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from .errors import UserError

__all__ = ['WorkFolderLock']


class WorkFolderLock:
    """A lock on a folder that its process holds, and that ends with the process, however it ends.

    It is the operating system's, on the file ``.lock``; worker processes do not inherit it, and a process that has it
    may take it again.

    Args:
        folder: It has to exist.

    Raises:
        UserError: If another process has it.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / '.lock'
        self._file: IO[str] = open(path, 'a+')  # noqa: SIM115 - open for as long as the lock is held
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = path.read_text(errors='replace').strip() or 'another process'
            self._file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"{holder} trains in '{folder}', where the checkpoints of two trainings would mix: wait for its "
                    'end, or take another --work-dir'
                ) from error
            return  # a file system without locks
        self._file.truncate(0)
        self._file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        self._file.flush()

    def release(self) -> None:
        """Let others train there."""
        self._file.close()
