"""Worker processes of data loaders end with the process that they load for."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

_LOOK_EVERY = 1.0  # seconds


class _WatchParent:
    """A ``worker_init_fn`` that starts to watch the parent, and calls another one."""

    def __init__(self, inner: Callable[[int], Any] | None) -> None:
        self.inner = inner

    def __call__(self, worker: int) -> None:
        threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True, name='parent').start()
        if self.inner is not None:
            self.inner(worker)


def _exit_with(parent: int) -> None:
    started_by = multiprocessing.parent_process()
    # A parent that is gone before this worker looks has already been replaced as the parent: the pipe to it tells.
    while os.getppid() == parent and (started_by is None or started_by.is_alive()):
        time.sleep(_LOOK_EVERY)
    # Not sys.exit: that waits for a queue to be emptied, which no process reads any more.
    os.kill(os.getpid(), signal.SIGKILL)


def end_workers_with_parent(loader: DataLoader) -> None:
    """Let the workers that a loader starts from now on end when their parent is gone, as after SIGKILL.

    torch's own workers also check whether their parent is alive, but then wait forever for their batches to be fetched.
    """
    if loader.num_workers and not isinstance(loader.worker_init_fn, _WatchParent):
        loader.worker_init_fn = _WatchParent(loader.worker_init_fn)
