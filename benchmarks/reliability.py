"""What it costs that nothing is lost: the hooks in a training step, and a checkpoint against mmengine's.

In a step, what the hooks do is timed where they do it: between mmengine's calls of them, and around its backward pass
and its optimizer without these themselves. The machine's noise is larger than the difference of two steps. On a GPU
every boundary waits for the device, so that the figure is an upper bound.

Checkpoints of ours and of mmengine's take turns in one folder, each pair in the other order than the one before, first
for the time that training waits, then up to the moment that the file is on the disk. What is given is the median.

python -m benchmarks.reliability --out benchmarks/results/reliability_cpu.json
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.timing import synchronize
from mmpelk.analysis.machine import environment_info
from mmpelk.analysis.table import Table
from mmpelk.engine import CheckpointHook, DivergenceHook, PreemptionHook, ResumeHook
from mmpelk.models import PeLK

STEP, WAITS, STANDS = 'training step', 'checkpoint, while training waits', 'checkpoint, until it is on the disk'
LIMITS = {STEP: 0.01, WAITS: 0.2}  # what the hooks may add to a step, and to what mmengine's takes


class Images(Dataset):
    """Images that are drawn, as augmentation draws."""

    def __init__(self, size: int, number: int) -> None:
        self.size, self.number = size, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.random.randint(0, 256, (3, self.size, self.size), np.uint8)
        return dict(inputs=torch.from_numpy(image).float() / 128 - 1, label=index % 10)


class Classifier(BaseModel):
    """PeLK and a linear layer."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        self.backbone = PeLK(arch=arch)
        width = next(p.shape[0] for p in reversed(list(self.backbone.parameters())))
        self.head = nn.Linear(width, 10)

    def forward(self, inputs: Tensor, label: Tensor, mode: str = 'loss') -> dict[str, Tensor]:
        features = self.backbone(inputs)[-1]
        features = features.mean((2, 3)) if features.ndim == 4 else features
        return dict(loss=nn.functional.cross_entropy(self.head(features), label))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='tiny', help='architecture of PeLK; %(default)s')
    parser.add_argument('--size', type=int, default=512, help='height and width of the images; %(default)s')
    parser.add_argument('--batch', type=int, default=2, help='images per step; %(default)s')
    parser.add_argument('--pairs', type=int, default=12, help='steps, and pairs of checkpoints; %(default)s')
    parser.add_argument('--folder', help='where checkpoints are written; that of temporary files by default')
    parser.add_argument('--out', type=Path, help='results file')
    return parser.parse_args()


def make_runner(args: argparse.Namespace, folder: str) -> Runner:
    """A runner after its first step: the optimizer's state is there."""
    runner = Runner(
        Classifier(args.arch),
        work_dir=folder,
        train_dataloader=dict(
            dataset=Images(args.size, args.batch),
            batch_size=args.batch,
            sampler=dict(type='InfiniteSampler'),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-5)),
        default_hooks=dict(checkpoint=None, logger=None),
        log_level='ERROR',
    )
    runner.train()
    return runner


class Share:
    """Time that is spent between an outer and an inner function, for some of them together."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def _timed(self, function: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            synchronize(get_device())
            begun = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize(get_device())
            self.seconds += sign * (time.perf_counter() - begun)
            return result

        return call

    def outer(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self._timed(function, 1)

    def inner(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self._timed(function, -1)


def measure_steps(runner: Runner, number: int) -> list[tuple[float, float]]:
    """Seconds of a step with the hooks and without, drawing its images included."""
    share, wrapper, loader = Share(), runner.optim_wrapper, runner.train_loop.dataloader
    hooks: list[Any] = [ResumeHook(), DivergenceHook(), PreemptionHook()]
    wrapper.backward, wrapper.step = share.inner(wrapper.backward), share.inner(wrapper.step)
    kind = type(loader.dataset)
    for hook in hooks:
        hook.before_train(runner)
    wrapper.backward, wrapper.step = share.outer(wrapper.backward), share.outer(wrapper.step)
    loader, measured = runner.train_loop.dataloader, []
    batches = iter(loader.batch_sampler)
    # A batch that knows its number draws from it.
    draw = share.outer(lambda: loader.dataset.__getitems__(next(batches)))
    load, kind.__getitem__ = kind.__getitem__, share.inner(kind.__getitem__)
    for step in range(-1, number):  # the first warms up
        share.seconds = 0.0
        synchronize(get_device())
        begun = time.perf_counter()
        batch = loader.collate_fn(draw())
        for hook in hooks:
            share.outer(hook.before_train_iter)(runner, 0, batch)
        outputs = runner.model.train_step(batch, optim_wrapper=wrapper)
        for hook in hooks:
            share.outer(hook.after_train_iter)(runner, 0, batch, outputs)
        seconds = time.perf_counter() - begun
        if step >= 0:
            measured.append((seconds, seconds - share.seconds))
    kind.__getitem__ = load
    for hook in hooks[1:]:
        hook.after_train(runner)
    return measured


def measure_checkpoints(runner: Runner, pairs: int, synced: bool) -> list[tuple[float, float]]:
    """Seconds of a checkpoint of ours and of mmengine's, in pairs; the older one is deleted, as usual.

    Args:
        runner: What is saved.
        pairs: How many.
        synced: Whether both are timed up to the moment that the files are on the disk.
    """
    options = dict(by_epoch=False, interval=1, max_keep_ckpts=1)
    ours, theirs = CheckpointHook(**options), MMEngineCheckpointHook(**options)
    for hook, name in ((ours, 'ours'), (theirs, 'mmengine')):
        hook.out_dir = f'{runner.work_dir}/{name}'
        hook.before_train(runner)

    def settle() -> None:
        # Around each: what one has left to the system would be written on the other's account.
        ours.after_train(runner)
        os.sync()

    def save(hook: Any) -> None:
        hook._save_checkpoint(runner)  # what both do at an interval
        if synced:
            settle()
        runner.train_loop._iter += 1

    return _pairs((lambda: save(ours), lambda: save(theirs)), settle, pairs)


def _pairs(
    functions: tuple[Callable[[], None], Callable[[], None]], settle: Callable[[], None], pairs: int
) -> list[tuple[float, float]]:
    measured = []
    for pair in range(-1, pairs):  # the first warms up
        times = [0.0, 0.0]
        for which in (0, 1) if pair % 2 else (1, 0):
            settle()
            begun = time.perf_counter()
            functions[which]()
            times[which] = time.perf_counter() - begun
        if pair >= 0:
            measured.append((times[0], times[1]))
    return measured


def _cost(name: str, share: float) -> str:
    return f'{100 * share:+.2f} %' if name == STEP else f'{1 + share:.2f} x'


def make_table(results: dict[str, Any]) -> Table:
    """What is measured, with and without, and the cost."""
    table = Table(['', 'mmpelk', 'without, or mmengine', 'cost', 'at most'])
    for name, row in results['rows'].items():
        ours, theirs = (f'{1e3 * row[key]:.0f} ms' for key in ('ours', 'without'))
        table.add(name, ours, theirs, _cost(name, row['share']), _cost(name, LIMITS[name]) if name in LIMITS else '')
    return table


def summarise(measured: list[tuple[float, float]]) -> dict[str, float]:
    """Medians, and quartiles of what the first of a pair costs over the second."""
    shares = [ours / without - 1 for ours, without in measured]
    low, share, high = statistics.quantiles(shares, n=4)
    ours, without = (statistics.median(column) for column in zip(*measured, strict=True))
    return dict(ours=ours, without=without, share=share, low=low, high=high)


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        runner = make_runner(args, folder)
        rows = {
            STEP: summarise(measure_steps(runner, args.pairs)),
            WAITS: summarise(measure_checkpoints(runner, args.pairs, synced=False)),
            STANDS: summarise(measure_checkpoints(runner, args.pairs, synced=True)),
        }
        size = max(path.stat().st_size for path in Path(folder).rglob('*.pth'))
    results = dict(
        setting=dict(arch=args.arch, size=args.size, batch=args.batch, pairs=args.pairs, checkpoint_bytes=size),
        machine=environment_info(get_device().split(':')[0]),
        rows=rows,
    )
    make_table(results).print()
    for name, row in rows.items():
        print(f'{name}: quartiles of the cost {_cost(name, row["low"])} and {_cost(name, row["high"])}')
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
