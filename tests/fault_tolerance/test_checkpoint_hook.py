"""In which order a checkpoint is written, synced, named and makes room, and who waits for the disk."""

import errno
import os
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from mmpelk.engine import CheckpointHook
from mmpelk.errors import UserError
from mmpelk.fault_tolerance import checkpoint_hook


class Network(BaseModel):
    """A weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, mode: str = 'loss') -> dict[str, Tensor]:
        return dict(loss=(self.weight * x).sum())


class Disk:
    """A disk that takes files when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.allowed, self.fails = threading.Event(), threading.Event(), False
        monkeypatch.setattr(checkpoint_hook, 'sync', self._sync)

    def _sync(self, path: str) -> None:
        self.asked.set()
        assert self.allowed.wait(60)
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    disk.allowed.set()
    yield disk
    disk.allowed.set()


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """One iteration was trained; the next checkpoint is that of the second."""
    runner = Runner(
        Network(),
        work_dir=str(tmp_path),
        train_dataloader=dict(dataset=[torch.ones(1)] * 4, batch_size=1, sampler=dict(type='InfiniteSampler')),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(type='mmpelk.CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=1), logger=None
        ),
        log_level='ERROR',
        experiment_name=tmp_path.name,
    )
    runner.train()
    return runner


def hook_of(runner: Runner) -> Any:
    return next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook))


def here(folder: Path) -> tuple[list[str], str]:
    """Checkpoints that are there, and the one that is named as the last."""
    return sorted(path.name for path in folder.glob('*.pth')), Path((folder / 'last_checkpoint').read_text()).name


def test_training_goes_on_while_the_disk_takes_the_file(disk: Disk, runner: Runner, tmp_path: Path) -> None:
    assert here(tmp_path) == (['iter_1.pth'], 'iter_1.pth')
    disk.asked.clear()
    disk.allowed.clear()
    hook_of(runner)._save_checkpoint(runner)
    # It is there, whole, at once, but until the disk has it the one before counts.
    assert disk.asked.wait(60)
    assert here(tmp_path) == (['iter_1.pth', 'iter_2.pth'], 'iter_1.pth')
    assert torch.load(tmp_path / 'iter_2.pth', weights_only=False)['meta']['iter'] == 2
    disk.allowed.set()
    hook_of(runner)._wait()
    assert here(tmp_path) == (['iter_2.pth'], 'iter_2.pth')


@pytest.mark.parametrize('who', ['the next checkpoint', 'the end', 'a signal'])
def test_who_waits_for_the_disk(who: str, disk: Disk, runner: Runner, tmp_path: Path) -> None:
    hook = hook_of(runner)
    hook._save_checkpoint(runner)
    runner.train_loop._iter += 1
    waits = {
        'the next checkpoint': lambda: hook._save_checkpoint(runner),
        'the end': lambda: hook.after_train(runner),
        'a signal': lambda: hook.save_now(runner),
    }
    hook._wait()
    disk.asked.clear()
    disk.allowed.clear()
    hook._save_checkpoint(runner)
    saved = runner.iter + 1
    runner.train_loop._iter += who == 'the next checkpoint'
    waiting = threading.Thread(target=waits[who])
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert not (tmp_path / f'iter_{saved + 1}.pth').exists()
    disk.allowed.set()
    waiting.join(60)
    hook._wait()
    assert here(tmp_path) == ([f'iter_{runner.iter + 1}.pth'], f'iter_{runner.iter + 1}.pth')


@pytest.mark.parametrize('later', ['_save_checkpoint', 'after_train', 'save_now'])
def test_a_disk_that_does_not_take_it_is_told(later: str, disk: Disk, runner: Runner, tmp_path: Path) -> None:
    disk.fails = True
    hook_of(runner)._save_checkpoint(runner)
    runner.train_loop._iter += 1
    with pytest.raises(UserError, match=r"iter_2\.pth' cannot be written: Input.*the last good one is .*iter_1"):
        getattr(hook_of(runner), later)(runner)
    assert here(tmp_path) == (['iter_1.pth', 'iter_2.pth'], 'iter_1.pth')


def test_a_write_that_fails_names_the_last_good_one(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runner, 'save_checkpoint', fail)
    with pytest.raises(UserError, match=r"iter_2\.pth' cannot be written: No space.*last good one is .*iter_1"):
        hook_of(runner)._save_checkpoint(runner)


def test_the_best_one_before_goes_when_the_new_one_stands(disk: Disk, runner: Runner, tmp_path: Path) -> None:
    hook = CheckpointHook(by_epoch=False, interval=1, save_best='score', rule='greater')
    hook.before_train(runner)
    hook.after_val_epoch(runner, dict(score=0.1))
    hook._wait()
    runner.train_loop._iter += 1
    disk.allowed.clear()
    hook.after_val_epoch(runner, dict(score=0.2))
    assert sorted(path.name for path in tmp_path.glob('best*')) == ['best_score_iter_1.pth', 'best_score_iter_2.pth']
    disk.allowed.set()
    hook._wait()
    assert [path.name for path in tmp_path.glob('best*')] == ['best_score_iter_2.pth']


@pytest.mark.parametrize(('missing', 'warned'), [(1, True), (0, False)])
def test_a_disk_that_has_no_room_for_the_next_one(
    missing: int, warned: bool, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = hook_of(runner)
    size = os.path.getsize(str(hook.last_ckpt))
    usage = namedtuple('Usage', 'total used free')(10 * size, 9 * size, size - missing)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
    said: list[str] = []
    monkeypatch.setattr(runner.logger, 'warning', said.append)
    hook._warn_of_a_full_disk(runner)
    assert [('does not fit' in line) for line in said] == [True] * warned


class Stops(Hook):
    """Saves in the middle of an epoch and ends the training, as a signal does."""

    priority = 'LOWEST'

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter == 1:
            hook_of(runner).save_now(runner)
            raise KeyboardInterrupt


def test_a_checkpoint_in_the_middle_of_an_epoch_gives_way_to_the_next(tmp_path: Path) -> None:
    for resume in (False, True):
        runner = Runner(
            Network(),
            work_dir=str(tmp_path),
            train_dataloader=dict(dataset=[torch.ones(1)] * 4, batch_size=1, sampler=dict(type='DefaultSampler')),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(checkpoint=dict(type='mmpelk.CheckpointHook', interval=1), logger=None),
            resume=resume,
            log_level='ERROR',
            experiment_name=f'{tmp_path.name}-{resume}',
        )
        if resume:
            runner.train()
            hook_of(runner)._wait()
        else:
            runner.register_hook(Stops())
            with pytest.raises(KeyboardInterrupt):
                runner.train()
            assert here(tmp_path)[0] == ['epoch_0_iter_2.pth']
            for lock in hook_of(runner)._locks:
                lock.release()
    assert here(tmp_path) == (['epoch_1.pth'], 'epoch_1.pth')


def test_what_is_synced_is_the_file_and_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda opened: synced.append(os.readlink(f'/proc/self/fd/{opened}')))
    (tmp_path / 'a.pth').write_bytes(b'weights')
    checkpoint_hook.sync(tmp_path / 'a.pth')
    assert synced == [str(tmp_path / 'a.pth'), str(tmp_path)]
