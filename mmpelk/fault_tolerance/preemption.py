"""Save and exit when a signal says that the machine is needed."""

import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

from mmengine.dist import barrier, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .agreement import Agreement
from .checkpoint_hook import CheckpointHook

PREEMPTED = 75  # "temporary failure, try again" of sysexits.h
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_SAME = 2.0  # seconds within which two signals are one


class PreemptionHook(Hook):
    """Finish the iteration, save, and exit with code 75 on SIGTERM, SIGUSR1 (Slurm's ``--signal``) or Ctrl-C.

    It is enough that one process gets the signal. All of them stop after the same iteration: each reports at the end of
    every iteration whether it has got one, and learns at the end of the next whether any has, so that none waits. With
    accumulated gradients they stop after the next step of the optimizer. A second signal ends a process at once, unless
    it comes within two seconds: a scheduler that signals all processes and a launcher that hands its own on send two.

    ``tools/dist_train.sh`` hands signals on and exits with this code. In a batch job ``REQUEUE=1 tools/slurm_train.sh``
    requeues on it, and ``--resume`` goes on where training stopped. It needs
    :class:`~mmpelk.engine.CheckpointHook`. One of several processes leaves without the functions of ``atexit``.
    """

    # After CheckpointHook, which may just have saved.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self._agreement: Agreement | None = None
        self._wanted = False

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers."""
        self._agreement = Agreement()
        try:
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        except ValueError:
            runner.logger.warning('Signals reach the main thread alone: this training does not save when it is stopped')

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # Processes that load data inherit this, and live on until the training that reads from them ends.
        now = time.monotonic()
        if self._received is None:
            self._received, self._since = signal.Signals(number), now
        elif now - self._since > _SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Ask whether to stop, and stop if the answer to the question before was yes."""
        assert self._agreement is not None, 'before_train comes first'
        self._wanted = self._agreement.answer() or self._wanted
        if self._wanted and _has_stepped(runner):
            self._save_and_exit(runner)
        self._agreement.ask(self._received is not None)

    def _save_and_exit(self, runner: Runner) -> None:
        why = self._received.name if self._received else 'a signal in another process'
        saving = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        saved = saving.save_now(runner) if saving else None
        runner.logger.info(
            f'Stopped by {why} after iteration {runner.iter + 1}: '
            + (f'{saved} is saved, --resume goes on from there' if saved else 'nothing saved, no mmpelk.CheckpointHook')
        )
        barrier()
        # All have saved. A launcher that sees the first one leave may stop the others before they have.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        runner.visualizer.close()  # which training that ends does
        if not is_distributed():
            sys.exit(PREEMPTED)
        # Past the interpreter's shutdown, in which threads of gloo that still hold tensors abort the process
        # (https://github.com/pytorch/pytorch/pull/179291): the launcher would see another code.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(PREEMPTED)

    def after_train(self, runner: Runner) -> None:
        """Restore the signal handlers."""
        if self._agreement is not None:
            self._agreement.answer()  # every process takes part in what it has asked
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def _has_stepped(runner: Runner) -> bool:
    """Whether no gradients are being accumulated, which a checkpoint would lose."""
    wrappers = (
        [runner.optim_wrapper] if hasattr(runner.optim_wrapper, 'optimizer') else [*runner.optim_wrapper.values()]
    )
    return all(wrapper.should_update() for wrapper in wrappers)
