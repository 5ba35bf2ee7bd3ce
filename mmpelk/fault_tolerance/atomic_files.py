"""Files that are written whole or not at all."""

import errno
import io
import os
import shutil
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.backends import backends

from .errors import UserError


def write_atomically(path: str | Path, content: bytes, synced: bool = True) -> None:
    """Write a file that is there whole or not at all: aside, synced, renamed, the folder synced.

    Args:
        path: The file; folders above it are made.
        content: What it is to hold.
        synced: Whether to wait for the disk. Without, the file is whole whenever the process is killed, but not if the
            machine itself fails before :func:`sync` of the path is through.

    Raises:
        OSError: If it cannot be written, without a try where the disk has no room for it; what was there before stands,
            and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < len(content):
        full = f'{os.strerror(errno.ENOSPC)}: {len(content):,} bytes are needed, {free:,} are free'
        raise OSError(errno.ENOSPC, full, str(path))
    aside = path.with_name(f'.{path.name}.tmp')
    try:
        # Always a new file: a link of this name must not redirect the write.
        aside.unlink(missing_ok=True)
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), 'wb') as file:
            file.write(content)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if synced:
        _sync(path.parent)


def sync(path: str | Path) -> None:
    """Return when a file, and its name in its folder, are on the disk.

    Raises:
        OSError: If the disk does not take them.
    """
    _sync(path)
    _sync(Path(path).parent)


def _sync(path: str | Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class AtomicBackend(LocalBackend):
    """mmengine's local files, written by :func:`write_atomically`: ``backend_args=dict(backend='atomic')``.

    Args:
        synced: Whether a write waits for the disk.
    """

    def __init__(self, synced: bool = True) -> None:
        super().__init__()
        self.synced = synced

    def put(self, obj: bytes | io.BytesIO, filepath: str | Path) -> None:
        write_atomically(filepath, obj.getvalue() if isinstance(obj, io.BytesIO) else obj, self.synced)


def register_atomic_backend() -> None:
    """Let mmengine know :class:`AtomicBackend` as ``'atomic'``.

    Raises:
        UserError: If another backend has that name.
    """
    other = backends.get('atomic', AtomicBackend)
    if other is not AtomicBackend:
        raise UserError(
            f"{other.__module__}.{other.__qualname__} is registered as the file backend 'atomic', a name that "
            "mmpelk's CheckpointHook needs: register it under another name, or use mmengine's CheckpointHook"
        )
    register_backend('atomic', AtomicBackend, force=True)
