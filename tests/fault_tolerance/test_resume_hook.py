"""What the resume hook keeps, restores and leaves out, piece by piece; whole runs are in test_exact_resume.py."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, TensorDataset

from mmpelk.fault_tolerance import resume
from mmpelk.fault_tolerance.errors import UserError
from mmpelk.fault_tolerance.random_state import get_random_state
from mmpelk.fault_tolerance.resume import NumberedBatches, ResumeHook, _Batch, _rebuild, _seeded


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
    assert torch.rand(()).item() == expected[1]


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


@pytest.mark.parametrize(('done', 'epoch', 'place'), [(0, 0, 0), (7, 1, 2), (5, 1, 0), (9, 1, 4), (20, 1, 5)])
def test_place_in_the_epoch_of_a_checkpoint_that_does_not_say_it(done: int, epoch: int, place: int) -> None:
    """Of mmengine's own hook."""
    loop = SimpleNamespace(iter=done, epoch=epoch, dataloader=loader())
    assert ResumeHook()._place_in_epoch(loop) == place


@pytest.mark.parametrize(('batches', 'place'), [(5, 2), (10, 1), (1, 10)])
def test_place_in_an_epoch_of_another_length(batches: int, place: int) -> None:
    hook = ResumeHook()
    hook._state = dict(place=2, batches=batches)
    loop = SimpleNamespace(iter=7, epoch=1, dataloader=loader())
    assert hook._place_in_epoch(loop) == place


def test_loaders_draw_nothing_from_the_numbers_of_training() -> None:
    batches = NumberedBatches(BatchSampler(SequentialSampler(range(5)), 1, False), 0, 0, 0, 0, False)
    before = torch.get_rng_state()
    assert len(list(_rebuild(loader(), batches))) == 5
    assert torch.equal(torch.get_rng_state(), before)


class Plain(Dataset):
    """Draws a number for each sample."""

    def __init__(self, size: int = 3) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return int(torch.randint(2**30, ()))


class OfAFile(Plain):
    """Opens its file anew in every process."""

    def __init__(self) -> None:
        super().__init__(4)
        self.file = open(__file__)  # noqa: SIM115

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
    drawn = [there.__getitems__(batch) for batch in batches]
    assert drawn[0] == drawn[2] != drawn[1], 'by the number of the batch'
    again = pickle.loads(pickle.dumps(there))
    assert isinstance(again, kind)
    assert again.draws_by_batch


def test_data_sets_of_no_class_are_refused() -> None:
    with pytest.raises(UserError, match='dataset is a list'):
        _seeded([1, 2])


def test_processes_draw_other_numbers() -> None:
    def seeds(rank: int) -> list[int]:
        sampler = BatchSampler(SequentialSampler(range(5)), 1, False)
        return [batch.seed for batch in NumberedBatches(sampler, 7, rank, 0, 0, False)]

    assert seeds(0) == seeds(0)
    assert len({*seeds(0), *seeds(1)}) == 10
