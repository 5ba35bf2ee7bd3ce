"""Exact resume: an interrupted training ends with the same bits as one that was not interrupted."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Sampler, get_worker_info

from .errors import UserError
from .random_state import get_random_state, make_seed, seed_all, set_random_state
from .workers import end_workers_with_parent


class ResumeHook(Hook):
    """Let training go on, after a resume, as if it had not been interrupted.

    It needs :class:`~mmpelk.engine.CheckpointHook`, which stores what it restores: the random state of every process,
    for drop path, dropout and everything else that draws random numbers in the training process.

    Data are drawn anew by position, not by history. Each batch has a number, counted from the start of the run, and
    its augmentations are drawn from (seed of the run, rank, number), in whichever worker loads it: where the workers
    were need not be known, and their number may change. A resume leaves out the indices of the batches that were
    trained on, without loading them, in the middle of an epoch, too.

    Validation draws from a copy of the random state: training is the same with and without it.

    With another number of processes or another batch size training goes on, and the log says that it is no longer the
    same run. What it does not reach: transforms that keep samples from earlier batches (mmdet's ``CachedMosaic``),
    gradients accumulated over steps at the time of a save, and loops or data loaders that are not built by mmengine.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self._pending: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take over what :class:`CheckpointHook` stored; only if training is resumed, not for ``load_from``."""
        if runner._resume:  # mmengine's own EMAHook reads it, too
            self._state = checkpoint.pop('run_state', None)
            if self._state is None:
                runner.logger.warning(
                    'The checkpoint holds no random state: it was not written by mmpelk.CheckpointHook, so data and '
                    'random numbers are not those that the interrupted run would have drawn'
                )

    def before_train(self, runner: Runner) -> None:
        """Number the batches, and start at the first that was not trained on."""
        loop, state = runner.train_loop, self._state
        loader = loop.dataloader
        if not isinstance(loop, EpochBasedTrainLoop | IterBasedTrainLoop) or loader.batch_sampler is None:
            runner.logger.warning(
                f'{type(loop).__name__} with {type(loader).__name__}: a resume will not draw the same data again'
            )
            return
        sampler: Any = getattr(loader.batch_sampler, 'sampler', None)
        if len(loader.dataset) == 0 or (not isinstance(sampler, InfiniteSampler) and len(loader) == 0):
            raise UserError(
                'the training set is empty, or smaller than a batch: check train_dataloader.dataset (its annotation '
                'file, its folders and what filter_cfg drops) and train_dataloader.batch_size'
            )
        if state and state['sampler_seed'] is not None and hasattr(sampler, 'seed'):
            sampler.seed = state['sampler_seed']
        if isinstance(sampler, InfiniteSampler):  # the stock mmengine has begun to draw
            sampler.indices = InfiniteSampler(range(sampler.size), sampler.shuffle, sampler.seed).indices
        endless = isinstance(loop, IterBasedTrainLoop)
        skip = loop.iter if endless else self._place_in_epoch(loop)
        batches = NumberedBatches(loader.batch_sampler, runner.seed, get_rank(), loop.iter, skip, endless)
        loop.dataloader = _rebuild(loader, batches)
        end_workers_with_parent(loop.dataloader)
        if endless:
            loop.dataloader_iterator = _ResumedIterator(loop.dataloader_iterator, loop.dataloader, loop.iter)
        elif skip:
            _count_from(loop, skip)
        if state:
            self._log_differences(runner, state)
            self._pending = state
            # An epoch that begins draws in its hooks, as it would have; one that goes on has done so.
            self._within = endless or bool(skip)

    def before_train_epoch(self, runner: Runner) -> None:
        """Restore the random state, if an epoch begins."""
        if self._pending and not self._within:
            self._restore(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Restore the random state, if an epoch goes on."""
        if self._pending:
            self._restore(runner)

    def before_val(self, runner: Runner) -> None:
        """Keep the random state of training."""
        end_workers_with_parent(runner.val_loop.dataloader)
        self._before_val = get_random_state()

    def before_test(self, runner: Runner) -> None:
        """Let worker processes end with this one."""
        end_workers_with_parent(runner.test_loop.dataloader)

    def after_val(self, runner: Runner) -> None:
        """Restore the random state of training."""
        if self._before_val is not None:
            set_random_state(self._before_val)
            self._before_val = None

    def training_state(self) -> dict[str, Any]:
        """The random state that training goes on with, during a validation, too, which may save."""
        return self._before_val or get_random_state()

    def _restore(self, runner: Runner) -> None:
        assert self._pending is not None
        states, self._pending = self._pending['ranks'], None
        if len(states) == get_world_size():
            set_random_state(states[get_rank()])
        else:
            seed_all(make_seed([runner.seed, runner.iter]))

    def _place_in_epoch(self, loop: Any) -> int:
        """Batches of the current epoch that were trained on."""
        length = len(loop.dataloader)
        if self._state is None:
            return min(max(0, loop.iter - loop.epoch * length), length)
        return self._state['place'] * length // self._state['batches']  # of another length: the same share of it

    def _log_differences(self, runner: Runner, state: dict[str, Any]) -> None:
        now = dict(
            processes=(len(state['ranks']), get_world_size()),
            batch_size=(state['batch_size'], runner.train_dataloader.batch_sampler.batch_size),
            batches_per_epoch=(state['batches'], len(runner.train_dataloader)),
        )
        differ = [f'{name} {before} before, {here} here' for name, (before, here) in now.items() if before != here]
        if differ:
            runner.logger.warning(
                f'Training goes on, but it is no longer the same run: {"; ".join(differ)}. Data and random numbers '
                'are drawn anew from here on'
            )


class _Batch(list):
    """Indices of a batch, with the seed of what is drawn for it."""

    seed: int = 0


class NumberedBatches(Sampler):
    """A batch sampler whose batches know their number in the run.

    Args:
        batch_sampler: What draws the indices.
        seed: Seed of the run.
        rank: Rank of this process.
        number: Number of the next batch.
        skip: Batches to leave out first.
        endless: Begin again at the end.
    """

    def __init__(self, batch_sampler: Any, seed: int, rank: int, number: int, skip: int, endless: bool) -> None:
        self.batch_sampler = batch_sampler
        # Where mmengine's hooks look for `set_epoch`, and others for the size.
        self.sampler = batch_sampler.sampler
        self.batch_size = batch_sampler.batch_size
        self.drop_last = getattr(batch_sampler, 'drop_last', False)
        self.seed, self.rank, self.number = seed, rank, number
        self.skip, self.endless = skip, endless

    def __iter__(self) -> Iterator[_Batch]:
        epoch = 0
        while True:
            for indices in self.batch_sampler:
                if self.skip:
                    self.skip -= 1
                    continue
                batch = _Batch(indices)
                batch.seed = make_seed([self.seed, self.rank, self.number])
                self.number += 1
                yield batch
            if not self.endless:
                return
            epoch += 1
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)


def _seed_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def _seeded(dataset: Any) -> Any:
    """The same object, of a class in which what is drawn for a batch depends on the batch alone.

    Other references to it, and a pipeline that is set later, reach the object that samples are loaded from.
    """
    kind: Any = type(dataset)
    if getattr(kind, 'draws_by_batch', False):
        return dataset

    def load(self: Any, indices: Sequence[int]) -> list[Any]:
        if hasattr(kind, '__getitems__'):
            return kind.__getitems__(self, list(indices))
        return [self[index] for index in indices]

    def getitems(self: Any, indices: Sequence[int]) -> list[Any]:
        seed = getattr(indices, 'seed', None)
        if seed is None:
            return load(self, indices)
        if get_worker_info() is not None:
            _seed_cpu(seed)
            return load(self, indices)
        # In the training process, whose own numbers go on as if there were no data.
        python, numpy, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        _seed_cpu(seed)
        try:
            return load(self, indices)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(state)

    def reduce_ex(self: Any, protocol: Any) -> str | tuple[Any, ...]:
        # As its own class would, whose name the other process can import.
        reduced = kind.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *state = (kind if part is type(self) else part for part in reduced)
        arguments = tuple(kind if argument is type(self) else argument for argument in arguments)
        return _make_seeded, (make, arguments), *state

    # One base, so that objects of both look the same in memory, which Python asks for before a class changes.
    members = dict(__module__=kind.__module__, draws_by_batch=True, __getitems__=getitems, __reduce_ex__=reduce_ex)
    try:
        dataset.__class__ = type(kind.__name__, (kind,), members)
    except TypeError as error:
        raise UserError(
            f'train_dataloader.dataset is a {kind.__name__}, whose samples cannot be drawn by their number: put it '
            'into a class of its own, such as a torch.utils.data.Dataset'
        ) from error
    return dataset


def _make_seeded(make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return _seeded(make(*arguments))


def _rebuild(loader: DataLoader, batches: NumberedBatches) -> DataLoader:
    """The loader with numbered batches. Its own generator draws the seeds of workers, which have no effect."""
    options = {
        name: getattr(loader, name)
        for name in ('pin_memory_device', 'in_order', 'prefetch_factor', 'multiprocessing_context')
        if getattr(loader, name, None) is not None
    }
    return DataLoader(
        _seeded(loader.dataset),
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator or torch.Generator().manual_seed(0),
        persistent_workers=loader.persistent_workers,
        **options,
    )


class _ResumedIterator:
    """Replaces the iterator of ``IterBasedTrainLoop``; its loader starts after the batches that were trained on.

    mmengine 0.10.7 asks for every batch that was trained on, later ones call ``skip_iter``.
    """

    def __init__(self, replaced: Any, loader: DataLoader, done: int) -> None:
        self._loader = loader
        self._iterator: Iterator[Any] | None = None
        self._asked = 0 if hasattr(replaced, 'skip_iter') else done

    def __iter__(self) -> '_ResumedIterator':
        return self

    def __next__(self) -> Any:
        if self._asked:
            self._asked -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._loader)
        return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        """Nothing is left to skip."""


def _count_from(loop: Any, skipped: int) -> None:
    """Let the first epoch count its batches from where it was interrupted, for the log and its intervals."""
    run_iter, first = loop.run_iter, loop.epoch

    def run(index: int, data_batch: Any) -> None:
        run_iter(index + skipped if loop.epoch == first else index, data_batch)

    loop.run_iter = run
