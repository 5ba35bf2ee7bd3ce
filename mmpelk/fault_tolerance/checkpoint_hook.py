"""Checkpoints of which a good one stands at any moment, whatever happens to the process, the disk or the files."""

import contextlib
import functools
import hashlib
import os.path as osp
import pickle
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process, master_only
from mmengine.fileio import register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner, save_checkpoint
from torch import Tensor, nn

from .atomic_files import AtomicBackend, sync, write_atomically
from .errors import UserError
from .networks import unwrap_model
from .random_state import get_random_state
from .resume import ResumeHook
from .safe_loading import SAFE_LOADING, CheckpointError, check_integrity, install_safe_loading, load_data

__all__ = ['CheckpointHook', 'find_fault', 'find_newest']

_MAKE_ROOM = (
    'Make room (one checkpoint more than max_keep_ckpts has to fit), or write elsewhere with --cfg-options '
    'default_hooks.checkpoint.out_dir=FOLDER'
)


class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's ``CheckpointHook``, with the same arguments, that loses nothing.

    - A checkpoint is written aside and renamed: whenever a process is killed, a file of that name is whole. It is
      synced while training goes on; only when it stands on the disk does ``last_checkpoint`` name it, and only then is
      deleted what has to make room for it, so that the disk has to hold one more than ``max_keep_ckpts``. The next
      checkpoint, the end and an exit after a signal wait for that. The best checkpoint is written likewise.
    - With ``resume=True`` and no name, training goes on from the newest checkpoint that loads whole and is of this
      network; the log names what was skipped, and why. That is also what finds the one before, if the machine itself
      has failed before the newest was on the disk.
    - A disk without room stops all processes with a sentence that says how much is needed and free, and the last good
      checkpoint stays. The log warns of it one checkpoint before.
    - Every checkpoint holds each process's random state, for :class:`~mmpelk.engine.ResumeHook`.

    Folders in a remote store (``out_dir='s3://…'``) are written as mmengine writes them.
    """

    # mmengine's own, of which it says no types.
    backend_args: Any
    best_ckpt_path: Any
    best_ckpt_path_dict: Any
    keep_ckpt_ids: Any
    last_ckpt: Any

    _run_state: dict[str, Any] | None = None
    _place = 0  # batches of the current epoch that were trained on
    _saved = -1  # iteration of the newest checkpoint
    _local = False  # whether files are written by this module's rules

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        install_safe_loading()
        register_backend('atomic', AtomicBackend, force=True)
        self._behind = _Behind()

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from, before mmengine takes ``last_checkpoint`` at its word."""
        runner.logger.info(SAFE_LOADING)
        # mmengine has no public names for what it was asked to resume; its own hooks read these, too.
        if not runner._resume:
            return
        given = runner._load_from
        if given is None:
            runner._load_from = self._choose(runner)
            runner._resume = runner._load_from is not None
        elif '://' not in given:
            fault = _from_main(lambda: find_fault(given, unwrap_model(runner.model)))
            if fault:
                raise CheckpointError(f'{fault}; --resume without a name takes the newest checkpoint that loads')

    def _choose(self, runner: Runner) -> str | None:
        folders = [Path(runner.work_dir)]
        if self.out_dir is not None and '://' not in str(self.out_dir):
            folders.append(Path(self.out_dir) / osp.basename(runner.work_dir.rstrip(osp.sep)))
        named = Path(runner.work_dir) / 'last_checkpoint'
        pointed = named.read_text(errors='replace').strip() if named.is_file() else ''
        if '://' in pointed:
            return pointed
        network = unwrap_model(runner.model)
        newest, skipped = _from_main(lambda: find_newest(self._candidates(folders, pointed), network))
        for reason in skipped:
            runner.logger.warning(f'Not resumed from: {reason}')
        if newest is None and skipped:
            raise CheckpointError(
                f'none of the {len(skipped)} checkpoints in {folders[-1]} can be resumed from: {"; ".join(skipped)}. '
                'Name a good one with --resume FILE, or train from the start in another --work-dir'
            )
        if newest and newest != pointed and is_main_process():
            # Before what it named may have to make room: who reads this file alone finds a checkpoint.
            write_atomically(named, newest.encode())
        if newest is None:
            runner.logger.info(f'No checkpoint in {folders[-1]} to resume from: training starts at the beginning')
        return newest

    def _candidates(self, folders: list[Path], pointed: str) -> list[Path]:
        """Every checkpoint of the training that could be resumed from."""
        # `iter_{}.pth`, or `epoch_{}.pth` with the iteration behind it if it was written in the middle of an epoch.
        stem, suffix = osp.splitext(self.filename_tmpl)
        stem = re.sub(r'\\\{.*?\\\}', r'\\d+', re.escape(stem))
        name = re.compile(rf'{stem}(_iter_\d+)?{re.escape(suffix)}')
        paths = [
            path for folder in folders if folder.is_dir() for path in folder.iterdir() if name.fullmatch(path.name)
        ]
        # The same file under two names is one.
        return sorted({path.resolve(): path for path in [*([Path(pointed)] if pointed else []), *paths]}.values())

    def before_train(self, runner: Runner) -> None:
        """As mmengine, with files that are whole or not there."""
        if self.backend_args is None and self.file_client_args is None and not self._is_remote(runner):
            self.backend_args = dict(backend='atomic', synced=False)
            self._local = True
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            # mmengine's forgets an old one as soon as a new one is begun.
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)
        if isinstance(self.out_dir, str) and '://' not in self.out_dir and is_main_process():
            for left in Path(self.out_dir).glob('.*.pth.tmp'):  # what a kill in the middle of a write left behind
                left.unlink()

    def _is_remote(self, runner: Runner) -> bool:
        return '://' in str(self.out_dir or runner.work_dir)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Save at the interval, if it is in iterations."""
        self._place = batch_idx + 1
        super().after_train_iter(runner, batch_idx, *args, **kwargs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save at the interval, if it is in epochs."""
        self._place = 0
        super().after_train_epoch(runner)

    def save_now(self, runner: Runner) -> str:
        """Save after the current iteration, whatever the interval; called by all processes, after ``after_train_iter``.

        Returns:
            The path of the checkpoint, which is on the disk.
        """
        done, epoch = runner.iter + 1, runner.epoch
        if self._saved != done and not self.by_epoch:
            self._save_checkpoint(runner)
        elif self._saved != done:
            stem, suffix = osp.splitext(self.filename_tmpl.format(epoch))
            self._save_as(runner, f'{stem}_iter_{done}{suffix}', dict(epoch=epoch, iter=done))
        self._wait()
        return str(self.last_ckpt)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated: list[int] = []
        if self.max_keep_ckpts > 0:
            if not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step:
                self.keep_ckpt_ids.append(step)
            # With those that are about to go: who resumes after a kill deletes them.
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            outdated = list(self.keep_ckpt_ids)[: -self.max_keep_ckpts]
        self._save_as(runner, self.filename_tmpl.format(step), meta, list(map(self.filename_tmpl.format, outdated)))
        for _ in outdated:
            self.keep_ckpt_ids.popleft()

    def _warn_of_a_full_disk(self, runner: Runner) -> None:
        """Say it an interval before the next checkpoint finds no room."""
        path = Path(str(self.last_ckpt))
        if self._is_remote(runner) or not path.is_file():
            return
        needed, free = path.stat().st_size, shutil.disk_usage(path.parent).free
        if free < needed:
            runner.logger.warning(
                f"The next checkpoint does not fit beside '{path}': about {needed:,} bytes are needed, {free:,} free. "
                + _MAKE_ROOM
            )

    def _save_as(self, runner: Runner, name: str, meta: dict[str, Any], outdated: Sequence[str] = ()) -> None:
        """Save under a name, and only then say that it is the newest; all processes agree on whether it went well."""
        self._wait()
        previous = runner.message_hub.runtime_info.get('interrupted_ckpt')
        interrupted = name if self.by_epoch and name != self.filename_tmpl.format(meta['epoch']) else None
        runner.message_hub.update_info('interrupted_ckpt', interrupted)
        resuming = next((hook for hook in runner.hooks if isinstance(hook, ResumeHook)), None)
        self._run_state = dict(
            ranks=all_gather_object(resuming.training_state() if resuming else get_random_state()),
            batch_size=getattr(runner.train_dataloader.batch_sampler, 'batch_size', None),
            batches=len(runner.train_dataloader),
            place=self._place,
            sampler_seed=getattr(_sampler(runner.train_dataloader), 'seed', None),
        )
        path = self.file_backend.join_path(self.out_dir, name)
        before, self.last_ckpt = self.last_ckpt, path
        runner.message_hub.update_info('last_ckpt', path)
        try:
            with _together(path, before):
                runner.save_checkpoint(
                    self.out_dir,
                    name,
                    self.file_client_args,
                    save_optimizer=self.save_optimizer,
                    save_param_scheduler=self.save_param_scheduler,
                    meta=meta,
                    by_epoch=self.by_epoch,
                    backend_args=self.backend_args,
                    **self.args,
                )
        finally:
            self._run_state = None
        self._saved = meta['iter']
        outdated = [*outdated, *([previous] if previous and previous != name else [])]
        old = [self.file_backend.join_path(self.out_dir, each) for each in outdated]

        def finish() -> None:
            self._let_stand(path, before, old, Path(runner.work_dir) / 'last_checkpoint')
            self._warn_of_a_full_disk(runner)

        self._behind.do(finish)

    def _let_stand(self, path: str, before: str | None, outdated: Sequence[str], pointer: Path | None = None) -> None:
        """Put a checkpoint on the disk, let a file say that it is the newest, and delete the outdated ones."""
        with _told(path, before):
            if self._local:
                sync(path)
            if pointer:
                write_atomically(pointer, path.encode())
            for old in outdated:
                self._remove(old)

    def _wait(self) -> None:
        """Until what was written before is on the disk; all processes learn it if it is not."""
        with _together('', None):
            self._behind.wait()

    def after_train(self, runner: Runner) -> None:
        """Wait for the disk, and publish as mmengine does."""
        self._wait()
        super().after_train(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the random states, except to the best checkpoint, which nobody resumes from."""
        if self._run_state is not None:
            checkpoint['run_state'] = self._run_state

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best:
            return
        single = len(self.key_indicators) == 1
        before = {'': self.best_ckpt_path} if single else dict(self.best_ckpt_path_dict)
        # Without a name mmengine removes nothing before it has written the new one.
        if single:
            self.best_ckpt_path = None
        else:
            self.best_ckpt_path_dict = dict.fromkeys(before)
        super()._save_best_checkpoint(_SavesTogether(runner, self.last_ckpt), metrics)
        for key, old in before.items():
            new = self.best_ckpt_path if single else self.best_ckpt_path_dict[key]
            if new is None and single:
                self.best_ckpt_path = old
            elif new is None:
                self.best_ckpt_path_dict[key] = old
            else:
                outdated = [old] if old not in (None, new) else []
                self._behind.do(functools.partial(self._let_stand, new, old, outdated))

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        checkpoint = load_data(ckpt_path, 'cpu')
        assert self.published_keys is not None
        published = {key: value for key, value in checkpoint.items() if key in self.published_keys}
        digest = hashlib.sha256(pickle.dumps(published)).hexdigest()
        path = f'{osp.splitext(ckpt_path)[0]}-{digest[:8]}.pth'
        with _told(path, ckpt_path):
            save_checkpoint(published, path, backend_args=dict(backend='atomic') if self._local else self.backend_args)
        runner.logger.info(f'The checkpoint ({ckpt_path}) is published to {path}, with {sorted(published)}.')

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # deepspeed's are folders
            self.file_backend.rmtree(path)


class _Behind:
    """What the first process does to files in the order given, while training goes on."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None  # ends with the program, after what it has to do
        self._pending: list[Future[None]] = []

    @master_only
    def do(self, task: Callable[[], None]) -> None:
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


class _SavesTogether:
    """A runner, all of whose processes learn it if the first cannot write.

    Args:
        runner: The runner.
        last_good: Path of the checkpoint that stands.
    """

    def __init__(self, runner: Runner, last_good: str | None) -> None:
        self._runner, self._last_good = runner, last_good

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        with _together(osp.join(out_dir, filename), self._last_good):
            self._runner.save_checkpoint(out_dir, filename, *args, **kwargs)


def find_newest(paths: list[Path], network: nn.Module) -> tuple[str | None, list[str]]:
    """The checkpoint of the highest iteration that can be resumed from.

    Args:
        paths: Files to choose from.
        network: What is to be trained on.

    Returns:
        Its path, or None if there is none, and a sentence about each that is damaged or of something else.
    """
    known, skipped = [], []
    for path in paths:
        if not path.is_file():
            skipped.append(f"'{path}', which last_checkpoint names, is not there")
            continue
        try:
            known.append((load_data(path, 'cpu')['meta']['iter'], path))
        except CheckpointError as error:
            skipped.append(str(error))
        except (KeyError, TypeError, AttributeError):
            skipped.append(f"'{path}' was not written by a training")
    for _, path in sorted(known, reverse=True):
        fault = find_fault(path, network)
        if not fault:
            return str(path), skipped
        skipped.append(fault)
    return None, skipped


def find_fault(path: str | Path, network: nn.Module) -> str | None:
    """What keeps a training of a network from going on from a checkpoint, or None."""
    try:
        content = load_data(path, 'cpu')
        check_integrity(path)
    except CheckpointError as error:
        return str(error)
    parts = {'meta', 'state_dict', 'message_hub', 'optimizer'}
    if not isinstance(content, dict) or not parts <= content.keys():
        return f"'{path}' is no checkpoint to resume from: it lacks the optimizer. Load it with load_from instead"
    weights = content['state_dict']
    for name, parameter in network.named_parameters():
        found = weights.get(name, weights.get(f'module.{name}'))
        if not isinstance(found, Tensor) or found.shape != parameter.shape:
            shape = 'nothing' if found is None else f'shape {tuple(found.shape)}'
            return f"'{path}' is of another network: {name} has shape {tuple(parameter.shape)} here, {shape} there"
    return None


def _sampler(dataloader: Any) -> Any:
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)


def _from_main(function: Any) -> Any:
    """What a function gives on rank 0, on all ranks."""
    result = [function() if is_main_process() else None]
    broadcast_object_list(result)
    return result[0]


@contextlib.contextmanager
def _together(path: str, last_good: str | None) -> Iterator[None]:
    """Tell all processes, in a sentence, of a failure to write; all of them pass here."""
    fault = ''
    try:
        with _told(path, last_good):
            yield
    except UserError as error:
        fault = str(error)
    fault = _from_main(lambda: fault)
    if fault:
        raise UserError(fault)


@contextlib.contextmanager
def _told(path: str, last_good: str | None) -> Iterator[None]:
    """Turn a failure to write into a sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch tells of a failed write by a RuntimeError of its own.
        if not isinstance(error, OSError) and 'write' not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        good = f"the last good one is '{last_good}'" if last_good else 'there is none before it'
        raise UserError(
            f"the checkpoint '{path}' cannot be written: {reason}; {good}. {_MAKE_ROOM}, and go on with --resume"
        ) from error
