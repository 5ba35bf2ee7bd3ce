"""Progress of a training: a line on the terminal, an estimate of the whole run, and curves in other programs."""

import atexit
import importlib.util
import logging
import os
import resource
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmpelk.errors import UserError
from mmpelk.registry import HOOKS

_GB = 2**30
_REFRESH = 0.5  # seconds
# By the name of tools/train.py's option: mmengine's backend, the packages that it needs, and its arguments.
VISUALIZERS = {
    'tensorboard': ('TensorboardVisBackend', ('tensorboard', 'tensorboardX'), {}),
    # What is passed to wandb goes before its own variable.
    'wandb': ('WandbVisBackend', ('wandb',), {'init_kwargs': {'project': os.environ.get('WANDB_PROJECT', 'mmpelk')}}),
}


def add_vis_backend(cfg: Config, name: str) -> None:
    """Send everything that is logged to another program, too.

    Args:
        cfg: The config; its visualizer gets another backend.
        name: A key of :data:`VISUALIZERS`.

    Raises:
        UserError: If the package that it takes is not installed.
    """
    kind, packages, arguments = VISUALIZERS[name]
    if not any(importlib.util.find_spec(package) for package in packages):
        raise UserError(f'--visualize {name} takes the package {packages[0]}: pip install {packages[0]}')
    backends = cfg.visualizer.get('vis_backends') or []
    if not any(backend['type'] == kind for backend in backends):
        # Set anew: what a config's `setdefault` returns is not what it keeps.
        cfg.visualizer.vis_backends = [*backends, {'type': kind, **arguments}]


@HOOKS.register_module()
class ProgressLineHook(Hook):
    """One line at the bottom of a terminal: iterations, loss, and the time that is left; the log scrolls above it.

    Where the output is no terminal (a file, a pipe, another rank than 0) nothing is printed.
    """

    priority = 'LOW'  # after the log's own lines

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: Any = None
        self._drawn = 0.0
        self._handlers: list[tuple[logging.StreamHandler, Any]] = []

    def before_train(self, runner: Runner) -> None:
        """Start the line, if the output is a terminal."""
        console = Console()
        if not (is_main_process() and sys.stdout.isatty() and console.is_interactive):
            return
        # Without rich's own thread: data loaders fork this process, and a thread's locks would not be released in them.
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('{task.fields[loss]}'),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task('training', total=runner.max_iters, completed=runner.iter, loss='')
        printed = sys.stdout
        self._progress.start()  # puts itself in front of sys.stdout, which the log's handlers have looked up before
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is printed:
                self._handlers.append((handler, printed))
                handler.setStream(sys.stdout)
        atexit.register(self._stop)  # an interrupted training leaves the terminal as it was

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Show the iteration and its loss."""
        if self._progress is not None:
            losses = runner.message_hub.log_scalars.get('train/loss')
            loss = f'loss {losses.current():.4g}' if losses is not None else ''
            self._show(completed=runner.iter + 1, description='training', loss=loss)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        """Show how far the validation is."""
        if self._progress is not None:
            self._show(description=f'validation {batch_idx + 1}/{len(runner.val_dataloader)}')

    def after_train(self, runner: Runner) -> None:
        """End the line."""
        self._stop()

    def _show(self, **fields: Any) -> None:
        assert self._progress is not None
        now = time.monotonic()
        due = now - self._drawn > _REFRESH
        if due:
            self._drawn = now
        self._progress.update(self._task, refresh=due, **fields)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.refresh()
            self._progress.stop()
            self._progress = None
            for handler, stream in self._handlers:
                handler.setStream(stream)
            atexit.unregister(self._stop)


@HOOKS.register_module()
class RunEstimateHook(Hook):
    """Log how long the whole training will take and how much memory it uses, and again after the first validation.

    Args:
        after: Iterations after which it logs; a shorter training logs nothing.
        skipped: The first of them, which are slower, are not timed.
    """

    priority = 'LOW'

    def __init__(self, after: int = 50, skipped: int = 10) -> None:
        if not 0 < skipped < after:
            raise ValueError(f'skipped={skipped} iterations have to be at least one, and fewer than after={after}')
        self.after, self.skipped = after, skipped
        self._seen = 0
        self._seconds = 0.0  # of an iteration
        self._since = 0.0
        self._validations: list[float] = []
        self._timing = False
        self._others = 0.0  # seconds of validation since then

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Count, time, and log."""
        if self._seen > self.after:
            return
        self._seen += 1
        if self._seen in (self.skipped, self.after) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._seen == self.skipped:
            self._since, self._others = time.monotonic(), 0.0
        elif self._seen == self.after:
            self._seconds = (time.monotonic() - self._since - self._others) / (self.after - self.skipped)
            self._log(runner, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Time a validation among the first iterations, too."""
        if self._seen <= self.after or not self._validations:
            self._validations.append(time.monotonic())
            self._timing = True

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """The time of the validation counts for no iteration."""
        if self._timing:
            self._timing = False
            self._validations[-1] = time.monotonic() - self._validations[-1]
            self._others += self._validations[-1]
            if self._seconds and runner.iter < runner.max_iters:  # the first estimate did not know it
                self._log(runner, runner.iter)

    @master_only
    def _log(self, runner: Runner, past: int) -> None:
        seconds, left = self._seconds, runner.max_iters - past
        loop: Any = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done, end = (runner.epoch, loop.max_epochs) if by_epoch else (past, loop.max_iters)
        validations = 0
        if runner.val_loop is not None:  # mmengine validates at the end, too
            ahead = range(max(done + 1, loop.val_begin), end + 1)
            validations = sum(each % loop.val_interval == 0 or each == end for each in ahead)
        total, counted = left * seconds, ''
        if validations and self._validations:
            each = sum(self._validations) / len(self._validations)
            total += validations * each
            counted = f' with validations of {each:.3g} s'
        elif validations:
            counted = ' without the validations'
        finish = datetime.now() + timedelta(seconds=total)
        runner.logger.info(
            f'estimate of the whole run: {seconds:.3g} s an iteration, {_duration(total)} for {left} more{counted}, so '
            f'until {finish:%Y-%m-%d %H:%M}; {_memory()}'
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, 'd'), (hours, 'h'), (minutes, 'min'), (seconds, 's'))
    # Two units are precise enough.
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return ' '.join(f'{count} {unit}' for count, unit in parts[first : first + 2])


def _memory() -> str:
    if torch.cuda.is_available():
        used, whole = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
        hint = '; a batch twice as large would fit' if 2 * used < 0.9 * whole else ''
        return f'{used / _GB:.1f} of {whole / _GB:.1f} GB of GPU memory at most{hint}'
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kilobytes
    whole = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return f'{used / _GB:.1f} of {whole / _GB:.1f} GB of memory at most, worker processes aside'
