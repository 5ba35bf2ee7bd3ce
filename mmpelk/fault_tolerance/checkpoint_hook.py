"""A checkpoint hook that keeps a valid checkpoint on the disk at every moment, through kills, full disks and damage."""

import contextlib
import functools
import hashlib
import inspect
import io
import math
import numbers
import os
import os.path as osp
import re
import shutil
import stat
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, is_main_process, master_only
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from .agreement import from_main, raise_on_all
from .atomic_files import register_atomic_backend, sync, write_atomically
from .errors import UserError
from .networks import unwrap_model
from .random_state import get_random_state
from .resumable import ANCESTORS, RUN_ID, Run, fault_of, find_fault, find_newest, misfit_of, run_of
from .resume import ResumeHook
from .safe_loading import SAFE_LOADING, CheckpointError, install_safe_loading, load_data, scheduler_states
from .saving import MAKE_ROOM, BackgroundWriter, SavesOnAll, explain_failed_write, refuse_unreadable
from .work_folder import WorkFolderLock


class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's ``CheckpointHook`` with the same arguments, safe against kills, full disks and damaged files.

    - A checkpoint is written aside and renamed: whenever a process is killed, a file of that name is whole. It is
      synced while training goes on; only when it stands on the disk does ``last_checkpoint`` name it, and only then is
      deleted what has to make room for it, so that the disk has to hold one more than ``max_keep_ckpts``. The next
      checkpoint, the end and an exit after a signal wait for that. The best checkpoint is written likewise.
    - With ``resume=True`` and no name, training goes on from the newest checkpoint of the same run that loads whole and
      is of this network; the log names what was skipped, and why. That is also what finds the one before, if the
      machine itself has failed before the newest was on the disk.
    - Nothing that a checkpoint says is taken as a path: only regular files in the folder of this run whose names are
      those of its checkpoints make room for others. Two trainings do not write into one work folder.
    - A full disk stops all processes with an error that gives the bytes needed and free, and the last good checkpoint
      stays. The log warns one checkpoint before.
    - The hook reads the first checkpoint again, and stops a training whose checkpoints could not be loaded.
    - Every checkpoint holds each process's random state, for :class:`~mmpelk.engine.ResumeHook`.

    Folders in a remote store (``out_dir='s3://…'``) are written as mmengine writes them.
    """

    # mmengine's own attributes, which it does not annotate.
    backend_args: Any
    best_ckpt_path: Any
    best_ckpt_path_dict: Any
    keep_ckpt_ids: Any
    last_ckpt: Any

    _run_state: dict[str, Any] | None = None
    _run: Run | None = None
    _interrupted: str | None = None  # name of a checkpoint in the middle of an epoch, which the next one replaces
    _locks: Sequence[WorkFolderLock] = ()
    _place = 0  # batches of the current epoch that were trained on
    _saved = -1  # iteration of the newest checkpoint
    _is_readable = False  # whether a checkpoint of this training was read again
    _local = False  # whether files are written by this module's rules

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        install_safe_loading()
        register_atomic_backend()
        self._background = BackgroundWriter()
        stem, suffix = osp.splitext(self.filename_tmpl)
        # `iter_{}.pth`, or `epoch_{}.pth` with the iteration behind it if it was written in the middle of an epoch.
        stem = re.sub(r'\\\{.*?\\\}', r'\\d+', re.escape(stem))
        self._name = re.compile(rf'{stem}(_iter_\d+)?{re.escape(suffix)}')
        self._best_name = re.compile(rf'best_[^/\\]+_{self._name.pattern}')

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from, before mmengine follows ``last_checkpoint``.

        Raises:
            UserError: If another training writes into the work folder.
            CheckpointError: If there is none to resume from.
        """
        runner.logger.info(SAFE_LOADING)
        # mmengine has no public names for which loop it has built and what it was asked to resume.
        if isinstance(runner._train_loop, dict):
            return
        with raise_on_all():
            if is_main_process():
                # Two work folders of one name share a folder of checkpoints.
                self._locks = [WorkFolderLock(folder) for folder in self._folders(runner)]
        if not runner._resume:
            return
        given = runner._load_from
        if given is None:
            runner._load_from = self._choose(runner)
            runner._resume = runner._load_from is not None
        elif '://' not in given:
            given = runner._load_from = osp.expanduser(given)  # as what reads its weights takes it
            fault = from_main(lambda: find_fault(given, unwrap_model(runner.model)))
            if fault:
                raise CheckpointError(f'{fault}; --resume without a name takes the newest checkpoint that loads')
            if is_main_process():
                self._branch(runner, given)
            if is_main_process() and Path(given).resolve() in [each.resolve() for each in self._candidates(runner)]:
                # Those of later iterations are of no use from here on.
                write_atomically(Path(runner.work_dir) / 'last_checkpoint', given.encode())

    def _branch(self, runner: Runner, given: str) -> None:
        """Go on from a named checkpoint as a run of its own, so that later ones of the run before do not count."""
        content = load_data(given, 'meta')
        self._run = run_of(content).branch(uuid.uuid4().hex, content['meta']['iter'])
        write_atomically(Path(runner.work_dir) / RUN_ID, self._run.text().encode())

    def _choose(self, runner: Runner) -> str | None:
        folder = Path(runner.work_dir)
        pointer = folder / 'last_checkpoint'
        pointed = pointer.read_text(encoding='utf-8', errors='replace').strip() if pointer.is_file() else ''
        if '://' in pointed and self._is_remote(runner) and pointed.startswith(str(self.out_dir or runner.work_dir)):
            return pointed
        network = unwrap_model(runner.model)
        newest = from_main(lambda: find_newest(self._candidates(runner), folder, network))
        self._run = newest.run
        for reason in newest.skipped:
            runner.logger.warning(f'Not resumed from: {reason}')
        if newest.path is None and newest.damaged:
            raise CheckpointError(
                f'none of the {len(newest.skipped)} checkpoints of {folder} can be resumed from: '
                f'{"; ".join(newest.skipped)}. Name a good one with --resume FILE, or train from the start in another '
                '--work-dir'
            )
        if newest.path is None and newest.run.ancestors:
            raise CheckpointError(
                f'the training in {folder} goes on from a checkpoint of another folder, and has none of its own yet: '
                'name that file again with --resume FILE, or train from the start without --resume'
            )
        if newest.path and newest.path != pointed and is_main_process():
            # Before what it named may have to make room, so that this file always names one that is there.
            write_atomically(pointer, newest.path.encode())
        if newest.path is None:
            runner.logger.info(
                f'No checkpoint of this run in {folder} to resume from: training starts at the beginning'
            )
        return newest.path

    def _folders(self, runner: Runner) -> list[Path]:
        """The work folder, and that of the checkpoints where it is another one of this machine."""
        folders = [Path(runner.work_dir)]
        if self.out_dir is not None and '://' not in str(self.out_dir):
            folders.append(Path(self.out_dir) / osp.basename(runner.work_dir.rstrip(osp.sep)))
        return folders

    def _candidates(self, runner: Runner) -> list[Path]:
        """Every file that may be a checkpoint to resume from."""
        found = [path for folder in self._folders(runner) if folder.is_dir() for path in folder.iterdir()]
        found = [path for path in found if path.is_file()]
        # The same file under two names is one.
        return sorted({path.resolve(): path for path in found if self._name.fullmatch(path.name)}.values())

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Go on as the same run, if training is resumed; the message hub takes what the file says of it afterwards.

        Raises:
            CheckpointError: If the optimizer or the schedulers do not take what it holds.
        """
        if runner._resume:
            if not hasattr(runner, 'strategy'):  # which has states of its own kinds
                self._refuse_misfit(runner, checkpoint)
            self._run = self._run or run_of(checkpoint)
            for key in (RUN_ID, ANCESTORS):
                checkpoint.pop(key, None)

    def _refuse_misfit(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        name = runner._load_from
        fault = fault_of(checkpoint, name, unwrap_model(runner.model)) if '://' in str(name) else None
        if not fault and (misfit := misfit_of(checkpoint, runner.optim_wrapper, runner.param_schedulers)):
            fault = f"'{name}' is no checkpoint to resume this training from: {misfit}"
        if fault:
            raise CheckpointError(f'{fault}. Load its weights alone with load_from, or resume from another one')

    def before_train(self, runner: Runner) -> None:
        """As mmengine, with files that are whole or not there, and with names instead of paths from a checkpoint."""
        if 'DeepSpeed' in type(getattr(runner, 'strategy', None)).__name__ and self.max_keep_ckpts > 0:
            raise UserError(
                'checkpoints of DeepSpeed are folders, which mmpelk.CheckpointHook does not delete: set '
                'default_hooks.checkpoint.max_keep_ckpts=-1'
            )
        if self.backend_args is None and self.file_client_args is None and not self._is_remote(runner):
            self.backend_args = dict(backend='atomic', synced=False)
            self._local = True
        info = runner.message_hub.runtime_info
        kept, interrupted = info.pop('keep_ckpt_ids', None), info.pop('interrupted_ckpt', None)
        for key in [key for key in info if key.startswith('best_score')]:
            if not isinstance(info[key], numbers.Real) or math.isnan(info[key]):
                del info[key]
        super().before_train(runner)
        steps = [step for step in kept if type(step) is int] if isinstance(kept, list) else []
        self.keep_ckpt_ids = deque(step for step in steps if self._is_of_run(self.filename_tmpl.format(step)))
        self._interrupted = self._own_name(interrupted, self._name)
        for key in [key for key in info if re.match('best_ckpt(_|$)', key)]:
            if best := self._own_name(info[key], self._best_name):
                info[key] = self.file_backend.join_path(self.out_dir, best)
            else:
                del info[key]
        if self.save_best is not None:
            if len(self.key_indicators) == 1:
                self.best_ckpt_path = info.get('best_ckpt')
            else:
                self.best_ckpt_path_dict = {key: info.get(f'best_ckpt_{key}') for key in self.key_indicators}
        if 'last_ckpt' in info:
            info['last_ckpt'] = runner._load_from
        if not runner._resume:
            self._run = Run(uuid.uuid4().hex)
        with raise_on_all(), explain_failed_write(osp.join(runner.work_dir, RUN_ID), None):
            if is_main_process():
                self._start_folder(Path(runner.work_dir))

    def _start_folder(self, folder: Path) -> None:
        """Write the run's id to a folder, and delete what a killed write has left."""
        if self._run is None or self._run.id is None:  # resumed from a file without an id
            (folder / RUN_ID).unlink(missing_ok=True)
        else:
            write_atomically(folder / RUN_ID, self._run.text().encode())
        if self._local and Path(str(self.out_dir)).is_dir():
            for left in Path(str(self.out_dir)).iterdir():
                name = left.name.removeprefix('.').removesuffix('.tmp')
                if left.name == f'.{name}.tmp' and (self._name.fullmatch(name) or self._best_name.fullmatch(name)):
                    self._remove(left.name)

    def _own_name(self, path: object, pattern: re.Pattern) -> str | None:
        """The name in a path that a checkpoint holds, if it is one of this run's files."""
        name = osp.basename(path) if isinstance(path, str) else ''
        there = self.file_backend.isfile(self.file_backend.join_path(self.out_dir, name)) if name else False
        return name if there and pattern.fullmatch(name) and self._is_of_run(name) else None

    def _is_of_run(self, name: str) -> bool:
        """Whether a file of the folder was written by this training, and not by one that was there before."""
        if not self._local:
            return True
        try:
            content = load_data(osp.join(str(self.out_dir), name), 'meta')
            return self._run is not None and self._run.has(run_of(content).id, content['meta']['iter'])
        except (AttributeError, CheckpointError, KeyError, OSError, TypeError):
            return False

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
        """Save after the current iteration, at any interval; all processes call it, after ``after_train_iter``.

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
            # Including those about to be deleted: after a kill, the resumed training deletes them.
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            outdated = list(self.keep_ckpt_ids)[: -self.max_keep_ckpts]
        self._save_as(runner, self.filename_tmpl.format(step), meta, list(map(self.filename_tmpl.format, outdated)))
        for _ in outdated:
            self.keep_ckpt_ids.popleft()

    def _warn_of_a_full_disk(self, runner: Runner) -> None:
        """Warn one interval before a checkpoint does not fit."""
        path = Path(str(self.last_ckpt))
        if self._is_remote(runner) or not path.is_file():
            return
        needed, free = path.stat().st_size, shutil.disk_usage(path.parent).free
        if free < needed:
            runner.logger.warning(
                f"The next checkpoint does not fit beside '{path}': about {needed:,} bytes are needed, {free:,} free. "
                + MAKE_ROOM
            )

    def _save_as(self, runner: Runner, name: str, meta: dict[str, Any], outdated: Sequence[str] = ()) -> None:
        """Save under a name, and name it the newest only then; all processes agree on whether that succeeded."""
        self._wait()
        previous = self._interrupted
        self._interrupted = name if self.by_epoch and name != self.filename_tmpl.format(meta['epoch']) else None
        runner.message_hub.update_info('interrupted_ckpt', self._interrupted)
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
            with raise_on_all(), explain_failed_write(path, before):
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

        def finish() -> None:
            if self._local and not self._is_readable:
                refuse_unreadable(path)
                self._is_readable = True
            self._commit(path, before, outdated, Path(runner.work_dir) / 'last_checkpoint')
            self._warn_of_a_full_disk(runner)

        self._background.submit(finish)

    def _commit(self, path: str, before: str | None, outdated: Sequence[str], pointer: Path | None = None) -> None:
        """Sync a checkpoint, name it in ``last_checkpoint``, and delete the outdated ones, given by name."""
        with explain_failed_write(path, before):
            if self._local:
                sync(path)
            if pointer:
                write_atomically(pointer, path.encode())
            for old in outdated:
                self._remove(old)

    def _wait(self) -> None:
        """Wait until earlier writes are on the disk; all processes learn of a failure."""
        with raise_on_all():
            self._background.wait()

    def after_train(self, runner: Runner) -> None:
        """Wait for the disk, and publish as mmengine does."""
        self._wait()
        super().after_train(runner)
        for lock in self._locks:
            lock.release()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the id of the run, and the random states, except to the best checkpoint, from which no training resumes.

        Functions that schedulers put into their states, as OneCycleLR does, are left out: they are built anew.
        """
        for state in scheduler_states(checkpoint.get('param_schedulers')):
            for key in [key for key, value in state.items() if inspect.isroutine(value)]:
                del state[key]
        if self._run is not None and self._run.id is not None:
            checkpoint[RUN_ID] = self._run.id
            if self._run.ancestors:
                checkpoint[ANCESTORS] = self._run.ancestors
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
        super()._save_best_checkpoint(SavesOnAll(runner, self.last_ckpt), metrics)
        for key, old in before.items():
            new = self.best_ckpt_path if single else self.best_ckpt_path_dict[key]
            if new is None and single:
                self.best_ckpt_path = old
            elif new is None:
                self.best_ckpt_path_dict[key] = old
            else:
                outdated = [osp.basename(old)] if old not in (None, new) else []
                self._background.submit(functools.partial(self._commit, new, old, outdated))

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        checkpoint = load_data(ckpt_path, 'cpu')
        assert self.published_keys is not None
        published = {key: value for key, value in checkpoint.items() if key in self.published_keys}
        torch.save(published, content := io.BytesIO())
        # Of the file, as torch.hub compares it; mmengine's is of another pickle.
        digest = hashlib.sha256(content.getbuffer()).hexdigest()
        path = f'{osp.splitext(ckpt_path)[0]}-{digest[:8]}.pth'
        with explain_failed_write(path, ckpt_path):
            backend_args = dict(backend='atomic') if self._local else self.backend_args
            get_file_backend(path, backend_args=backend_args).put(content.getvalue(), path)
        runner.logger.info(f'The checkpoint ({ckpt_path}) is published to {path}, with {sorted(published)}.')

    def _remove(self, name: str) -> None:
        """Delete a regular file of the folder of checkpoints."""
        path = self.file_backend.join_path(self.out_dir, name)
        if not self._local:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            return
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.unlink(path)


def _sampler(dataloader: Any) -> Any:
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)
