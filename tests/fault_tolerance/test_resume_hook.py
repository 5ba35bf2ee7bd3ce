"""What the resume hook keeps, restores and leaves out, piece by piece; whole runs are in test_exact_resume.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from mmpelk.fault_tolerance.resume import NumberedBatches, ResumeHook, _rebuild


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
