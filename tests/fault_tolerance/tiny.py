"""Trainings of a single weight, which save on request."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmpelk.fault_tolerance.checkpoint_hook import CheckpointHook


class Network(BaseModel):
    """A weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, mode: str = 'loss') -> dict[str, Tensor]:
        return dict(loss=(self.weight * x).sum())


class Ones(Dataset):
    """Four numbers."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.ones(1)


def make_runner(
    folder: Path,
    iterations: int,
    load_from: Path | None = None,
    hooks: Sequence[str] = ('mmpelk.ResumeHook',),
    by_epoch: bool = False,
    **options: Any,
) -> Runner:
    """A training that saves after every iteration; with ``by_epoch`` for one epoch of four, after it.

    Args:
        folder: The work folder.
        iterations: How many.
        load_from: A checkpoint.
        hooks: Types of more hooks.
        by_epoch: Whether epochs are counted.
        **options: Of the runner, ``resume`` and ``param_scheduler``, and of its checkpoint hook.
    """
    settings = dict(type='mmpelk.CheckpointHook', by_epoch=by_epoch, interval=1)
    of_runner = {key: options.pop(key) for key in ('resume', 'param_scheduler') if key in options}
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    return Runner(
        Network(),
        work_dir=str(folder),
        train_dataloader=dict(dataset=Ones(), batch_size=1, sampler=dict(type=sampler)),
        train_cfg=dict(by_epoch=True, max_epochs=1) if by_epoch else dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=settings | options, logger=None),
        custom_hooks=[dict(type=hook) for hook in hooks],
        load_from=None if load_from is None else str(load_from),
        log_level='ERROR',
        experiment_name=f'{folder.name}-{iterations}-{os.urandom(4).hex()}',
        **of_runner,
    )


def train(folder: Path, iterations: int, **options: Any) -> Runner:
    runner = make_runner(folder, iterations, **options)
    runner.train()
    return runner


def hook_of(runner: Runner) -> Any:
    return next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook))


def names(folder: Path) -> list[str]:
    """Checkpoints that are there."""
    return sorted(path.name for path in folder.glob('*.pth'))
