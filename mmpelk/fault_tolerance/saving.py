"""Write checkpoints while training goes on, and explain a write that fails."""

import contextlib
import os.path as osp
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mmengine.dist import master_only
from mmengine.runner import Runner

from .agreement import raise_on_all
from .errors import UserError
from .safe_loading import TRUST, CheckpointError, load_data

MAKE_ROOM = (
    'Make room (one checkpoint more than max_keep_ckpts has to fit), or write elsewhere with --cfg-options '
    'default_hooks.checkpoint.out_dir=FOLDER'
)


class BackgroundWriter:
    """Runs the file operations of the first process in order, while training goes on."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None  # ends with the program, after what it has to do
        self._pending: list[Future[None]] = []

    @master_only
    def submit(self, task: Callable[[], None]) -> None:
        self._pool = self._pool or ThreadPoolExecutor(1, 'checkpoints')
        self._pending.append(self._pool.submit(task))

    def wait(self) -> None:
        """Until all is done.

        Raises:
            UserError: If something could not be.
        """
        pending, self._pending = self._pending, []
        for task in pending:
            task.result()


class SavesOnAll:
    """A runner that tells all processes if the first cannot write.

    Args:
        runner: The runner.
        last_good: Path of the checkpoint that stands.
    """

    def __init__(self, runner: Runner, last_good: str | None) -> None:
        self._runner, self._last_good = runner, last_good

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        with raise_on_all(), explain_failed_write(osp.join(out_dir, filename), self._last_good):
            self._runner.save_checkpoint(out_dir, filename, *args, **kwargs)


def refuse_unreadable(path: str) -> None:
    """Read a checkpoint as a resume would, but for its numbers."""
    try:
        load_data(path, 'meta')
    except CheckpointError as error:
        raise UserError(
            f'this training cannot be resumed: {error}. Keep functions and objects out of what its hooks, schedulers '
            f'and message hub save, or set {TRUST}=1 for the training and the resume'
        ) from error


@contextlib.contextmanager
def explain_failed_write(path: str, last_good: str | None) -> Iterator[None]:
    """Turn a failure to write into a :class:`UserError` of one sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch reports a failed write by a RuntimeError of its own.
        if not isinstance(error, OSError) and 'write' not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        good = f"the last good one is '{last_good}'" if last_good else 'there is none before it'
        raise UserError(
            f"the checkpoint '{path}' cannot be written: {reason}; {good}. {MAKE_ROOM}, and go on with --resume"
        ) from error
