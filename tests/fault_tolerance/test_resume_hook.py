"""What the resume hook keeps, restores and leaves out, piece by piece; whole runs are in test_exact_resume.py."""

import itertools
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.dataset import DefaultSampler, sampler
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, TensorDataset

from mmpelk.fault_tolerance import resume
from mmpelk.fault_tolerance.errors import UserError
from mmpelk.fault_tolerance.random_state import get_random_state, set_random_state
from mmpelk.fault_tolerance.resume import (
    NumberedBatches,
    ResumeHook,
    _Batch,
    _count_from,
    _rebuild,
    _ResumedIterator,
    _seeded,
)
from mmpelk.fault_tolerance.workers import _WatchParent
from tests.fault_tolerance.test_random_state import draw
from tests.fault_tolerance.tiny import Ones, make_runner


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(5)), batch_size=1)


def runner(seed: int = 5, iteration: int = 7) -> Any:
    return SimpleNamespace(seed=seed, iter=iteration, val_loop=SimpleNamespace(dataloader=loader()))


def test_validation_draws_from_a_copy_of_the_random_state() -> None:
    hook = ResumeHook()
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    assert torch.rand(()).item() == expected[0]
    hook.before_val(runner())
    torch.rand(7)
    kept = hook.training_state()['torch']  # what a checkpoint of the validation holds
    hook.after_val(runner())
    assert torch.equal(kept, torch.get_rng_state())
    assert torch.equal(kept, hook.training_state()['torch'])
    assert torch.rand(()).item() == expected[1]
    assert torch.equal(hook.training_state()['torch'], torch.get_rng_state()), 'training has gone on'


def test_another_number_of_processes_draws_numbers_of_this_run_and_iteration() -> None:
    drawn = []
    for seed, iteration in ((5, 7), (5, 7), (5, 8), (6, 7)):
        hook = ResumeHook()
        hook._pending = dict(ranks=[{}, {}])
        hook._restore(runner(seed, iteration))
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize('rank', [0, 1])
def test_every_process_goes_on_with_its_own_numbers(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, 'get_world_size', lambda: 2)
    monkeypatch.setattr(resume, 'get_rank', lambda: rank)
    states, expected = [], []
    for seed in (3, 4):
        torch.manual_seed(seed)
        states.append(get_random_state())
        expected.append(torch.rand(()).item())
    hook = ResumeHook()
    hook._pending = dict(ranks=states)
    hook._restore(runner())
    assert torch.rand(()).item() == expected[rank]


@pytest.mark.parametrize(('done', 'epoch', 'state', 'place'), [
    # Of mmengine's own hook, which does not say it.
    *((0, 0, None, 0), (7, 1, None, 2), (5, 1, None, 0), (9, 1, None, 4), (20, 1, None, 5)),
    # The same share of an epoch of another length.
    *((7, 1, dict(place=2, batches=batches), place) for batches, place in ((5, 2), (10, 1), (1, 10))),
])  # fmt: skip
def test_place_in_the_epoch_of_a_checkpoint(done: int, epoch: int, state: dict | None, place: int) -> None:
    hook, loop = ResumeHook(), SimpleNamespace(iter=done, epoch=epoch, dataloader=loader())
    hook._state = state
    assert hook._place_in_epoch(loop) == place


def numbered(rank: int = 0) -> NumberedBatches:
    return NumberedBatches(BatchSampler(SequentialSampler(range(5)), 1, False), 7, rank, 0, 0, False)


def test_batches_of_the_epoch_that_goes_on_are_counted_from_where_it_was_left() -> None:
    counted = []
    loop = SimpleNamespace(epoch=3, run_iter=lambda index, batch: counted.append((index, batch)))
    _count_from(loop, 5)
    loop.run_iter(0, 'first')
    loop.epoch = 4
    loop.run_iter(1, 'second')
    assert counted == [(5, 'first'), (1, 'second')]


@pytest.mark.parametrize(('given', 'said'), [
    ({}, None),
    (dict(ranks=[{}, {}]), 'processes 2 before, 1 here'),
    (dict(batch_size=3), 'batch_size 3 before, 1 here'),
    (dict(batches=4), 'batches_per_epoch 4 before, 5 here'),
])  # fmt: skip
def test_what_makes_it_another_run_is_told(given: dict[str, Any], said: str | None) -> None:
    warnings: list[str] = []
    training: Any = SimpleNamespace(train_dataloader=loader(), logger=SimpleNamespace(warning=warnings.append))
    ResumeHook()._log_differences(training, dict(ranks=[{}], batch_size=1, batches=5) | given)
    assert [f'the same run: {said}. Data' in line for line in warnings] == [True] * bool(said)


def test_an_endless_loop_draws_every_epoch_anew() -> None:
    sampler = DefaultSampler(range(9), seed=3)
    batches = iter(NumberedBatches(BatchSampler(sampler, 3, False), 7, 0, 0, 1, True))
    drawn = [index for _ in range(8) for index in next(batches)]
    assert drawn == [index for epoch in range(3) for index in (sampler.set_epoch(epoch), *sampler)[1:]][3:]
    assert drawn[6:15] != drawn[15:]


@pytest.mark.parametrize('rank', [0, 1])
def test_an_endless_sampler_begins_again_with_the_indices_of_its_process(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, 'get_dist_info', lambda: (rank, 2))
    training = make_runner(tmp_path, 1, hooks=())
    loop = training.train_loop
    given = loop.dataloader.sampler
    for shuffle, drawn in itertools.product((True, False), (0, 3)):
        given.shuffle = shuffle
        expected = [*itertools.islice(sampler.InfiniteSampler(range(4), shuffle, given.seed), 9)]
        [*itertools.islice(given.indices, drawn)]
        ResumeHook().before_train(training)
        assert [index for batch in itertools.islice(loop.dataloader.batch_sampler, 9) for index in batch] == expected


def test_loaders_draw_nothing_from_the_numbers_of_training() -> None:
    before = torch.get_rng_state()
    assert len(list(_rebuild(loader(), numbered()))) == 5
    assert torch.equal(torch.get_rng_state(), before)


def test_loaders_keep_their_settings() -> None:
    settings = dict(
        num_workers=2,
        prefetch_factor=5,
        **(dict(in_order=False) if hasattr(loader(), 'in_order') else {}),
        persistent_workers=True,
        multiprocessing_context='spawn',
    )
    settings |= dict(collate_fn=list, pin_memory=True, timeout=3.0, worker_init_fn=print, generator=torch.Generator())
    given = DataLoader(TensorDataset(torch.arange(5)), batch_size=1, **settings)  # type: ignore[arg-type]
    rebuilt = _rebuild(given, numbered())
    assert {name: getattr(rebuilt, name) for name in settings} == {name: getattr(given, name) for name in settings}


def test_batches_that_were_trained_on_are_left_out_with_their_numbers() -> None:
    resumed = NumberedBatches(BatchSampler(SequentialSampler(range(5)), 1, True), 7, 0, 2, 2, False)
    whole = list(numbered())
    assert [(batch, batch.seed) for batch in resumed] == [(batch, batch.seed) for batch in whole[2:]]
    assert (resumed.drop_last, numbered().drop_last, resumed.batch_size) == (True, False, 1)


def test_processes_draw_other_numbers() -> None:
    seeds = [[batch.seed for batch in numbered(rank)] for rank in (0, 0, 1)]
    assert seeds[0] == seeds[1]
    other = [batch.seed for batch in NumberedBatches(BatchSampler(range(5), 1, False), 8, 0, 0, 0, False)]
    assert len({*seeds[0], *seeds[2], *other}) == 15, 'nor those of a run of the next seed'


class Plain(Dataset):
    """Draws numbers for each sample."""

    def __init__(self, size: int = 3) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> list[float]:
        return draw()


class OfAFile(Plain):
    """Opens its file anew in every process."""

    def __init__(self) -> None:
        super().__init__(4)
        self.file = open(__file__, encoding='utf-8')  # noqa: SIM115

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'file': None}


class ByCall(Plain):
    """Is made anew."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.size + 1,)


class WithState(OfAFile):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, size=9)


@pytest.mark.parametrize(('kind', 'size'), [(Plain, 3), (OfAFile, 4), (ByCall, 4), (WithState, 9)])
def test_data_sets_reach_workers_as_their_class_says(kind: Any, size: int) -> None:
    """Processes that are not forked get a pickle."""
    there = pickle.loads(pickle.dumps(_seeded(kind())))
    assert isinstance(there, kind)
    assert there.size == size
    assert getattr(there, 'file', None) is None
    batches = [_Batch([0, 1]), _Batch([0, 1]), _Batch([0, 1])]
    for batch, seed in zip(batches, (5, 6, 5), strict=True):
        batch.seed = seed
    before = get_random_state()
    drawn = [there.__getitems__(batch) for batch in batches]
    for first, second, third in zip(*map(itertools.chain.from_iterable, drawn), strict=True):
        assert first == third != second, 'by the number of the batch'
    expected = draw()
    set_random_state(before)
    assert draw() == expected, 'the numbers of training go on'
    again = pickle.loads(pickle.dumps(there))
    assert isinstance(again, kind)
    assert again.draws_by_batch


class Several(Plain):
    """Loads the samples of a batch together."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        assert type(indices) is list
        return [(index, draw()) for index in indices]


def test_a_data_set_that_loads_batches_loads_them() -> None:
    data: Any = _seeded(_seeded(Several()))
    batches = [_Batch([2, 0]), _Batch([2, 0]), [2, 0]]
    for batch in batches[:2]:
        batch.seed = 5  # type: ignore[attr-defined]
    first, second, plain = map(data.__getitems__, batches)
    assert [index for index, _ in first] == [2, 0]
    assert first == second
    before = get_random_state()
    expected = data.__getitems__([0])
    set_random_state(before)
    assert data.__getitems__([0]) == expected != data.__getitems__([0]), 'what has no number draws as ever'
    assert plain != first


@pytest.mark.parametrize('resumes', [True, False])
def test_weights_alone_bring_no_random_state(resumes: bool) -> None:
    said: list[str] = []
    training: Any = SimpleNamespace(_resume=resumes, logger=SimpleNamespace(warning=said.append))
    hook, checkpoint = ResumeHook(), dict(run_state=dict(place=3))
    for _ in range(2):
        hook.after_load_checkpoint(training, checkpoint)  # type: ignore[arg-type]
        if not resumes:
            assert checkpoint == dict(run_state=dict(place=3))
            assert hook._state is None
        else:
            assert not checkpoint, "mmengine's hook of averages reads it, too"
    assert ['holds no random state' in line for line in said] == [True] * resumes, 'the second has none'


@pytest.mark.parametrize('seed', [None, 0, 11])
def test_the_seed_of_the_sampler_is_that_of_the_checkpoint(seed: int | None, tmp_path: Path) -> None:
    training = make_runner(tmp_path, 1, hooks=())
    training._train_dataloader.update(num_workers=1, sampler=dict(type='InfiniteSampler', shuffle=False, seed=3))
    loop, hook = training.train_loop, ResumeHook()
    hook._state = dict(sampler_seed=seed, ranks=[{}], batch_size=1, batches=4, place=0)
    hook.before_train(training)
    assert loop.dataloader.batch_sampler.sampler.seed == (3 if seed is None else seed)
    assert [*itertools.islice(loop.dataloader.batch_sampler, 5)] == [[0], [1], [2], [3], [0]]
    assert isinstance(loop.dataloader.worker_init_fn, _WatchParent)


@pytest.mark.parametrize('rank', [0, 1])
def test_a_resumed_loop_begins_with_the_batch_after_the_last(rank: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Whose number, with the run's seed and the rank, tells what is drawn for it."""
    monkeypatch.setattr(resume, 'get_rank', lambda: rank)
    training = make_runner(tmp_path, 9, hooks=())
    loop = training.train_loop
    loop._iter, loop.dataloader_iterator = 6, iter(())
    ResumeHook().before_train(training)
    assert [next(loop.dataloader_iterator) for _ in range(6)] == [None] * 6
    batches = loop.dataloader.batch_sampler
    assert (batches.seed, batches.rank, batches.number, batches.skip) == (training.seed, rank, 6, 6)
    # Versions of mmengine ask for every batch that was trained on, or skip them.
    for replaced, asked in ((iter(()), 6), (SimpleNamespace(skip_iter=None), 0)):
        iterator = _ResumedIterator(replaced, loader(), 6)
        iterator.skip_iter(6)
        assert [next(iterator) for _ in range(asked)] == [None] * asked
        assert next(iterator)[0].tolist() == [0]


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('place', [0, 2])
def test_random_numbers_are_restored_where_an_epoch_begins_or_goes_on(
    by_epoch: bool, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks that draw when an epoch begins draw as they would have."""
    training = make_runner(tmp_path, 9, hooks=(), by_epoch=by_epoch)
    restored: list[str] = []
    monkeypatch.setattr(resume, 'set_random_state', restored.append)
    hook, compared = ResumeHook(), []
    monkeypatch.setattr(hook, '_log_differences', lambda _, state: compared.append(state))
    hook._state = dict(sampler_seed=None, ranks=['kept'], batch_size=1, batches=4, place=place)
    hook.before_train(training)
    assert compared == [hook._state]
    assert ('run_iter' in vars(training.train_loop)) == (by_epoch and place > 0), 'counts from where it was left'
    hook.before_train_epoch(training)
    assert restored == ['kept'] * (by_epoch and not place)
    for _ in range(2):
        hook.before_train_iter(training, 0)
    assert restored == ['kept']


def test_an_endless_sampler_of_no_samples_is_refused(tmp_path: Path) -> None:
    training = make_runner(tmp_path, 1)
    training.train_loop.dataloader.dataset.__class__ = type('Empty', (Ones,), dict(__len__=lambda self: 0))
    with pytest.raises(UserError, match='the training set is empty'):
        ResumeHook().before_train(training)


def test_what_mmengine_has_not_built_is_left_alone() -> None:
    said: list[str] = []
    for loop in (SimpleNamespace(dataloader=loader()), EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)):
        loop.dataloader = given = DataLoader(TensorDataset(torch.arange(5)), batch_size=None)
        training: Any = SimpleNamespace(train_loop=loop, logger=SimpleNamespace(warning=said.append))
        ResumeHook().before_train(training)
        assert loop.dataloader is given
    assert ['will not draw the same data again' in line for line in said] == [True] * 2


def test_data_sets_of_no_class_are_refused() -> None:
    with pytest.raises(UserError, match='dataset is a list'):
        _seeded([1, 2])


def test_fewer_samples_than_a_batch_are_refused(tmp_path: Path) -> None:
    training = make_runner(tmp_path, 1, by_epoch=True)  # of four samples
    training._train_dataloader.update(batch_size=8, drop_last=True)
    with pytest.raises(UserError, match='smaller than a batch: check'):
        training.train()
    training = make_runner(tmp_path / 'endless', 1)  # which begins the set anew
    training._train_dataloader.update(batch_size=8, drop_last=True)
    training.train_loop.run = lambda: training.call_hook('before_train')
    training.train()
