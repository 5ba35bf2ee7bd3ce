"""What it costs that nothing is lost: the hooks in a training step, and a checkpoint against mmengine's.

Steps with and without the hooks take turns on one network, each pair in the other order than the one before; so do
checkpoints, in one folder. What is given is the median over the pairs of the difference, and of the ratio.

python benchmarks/reliability.py --out benchmarks/results/reliability_cpu.json
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
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

from mmpelk.analysis.table import Table
from mmpelk.analysis.timing import environment_info, synchronize
from mmpelk.engine import CheckpointHook, DivergenceHook, PreemptionHook, ResumeHook
from mmpelk.models import PeLK

LIMITS = dict(step=0.01, checkpoint=1.2)  # what the hooks may cost of a step, and a checkpoint of mmengine's


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
    parser.add_argument('--size', type=int, default=224, help='height and width of the images; %(default)s')
    parser.add_argument('--batch', type=int, default=8, help='images per step; %(default)s')
    parser.add_argument('--pairs', type=int, default=12, help='of steps and of checkpoints; %(default)s')
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


def measure_steps(runner: Runner, pairs: int) -> list[tuple[float, float]]:
    """Seconds of a step with the hooks and without, drawing its images included, in pairs."""
    hooks: list[Any] = [ResumeHook(), DivergenceHook(), PreemptionHook()]
    dataset = runner.train_dataloader.dataset
    indices: Any = list(range(len(dataset)))
    batches = iter(runner.train_loop.dataloader.batch_sampler)

    def step(active: Sequence[Any]) -> None:
        # A batch that knows its number draws from it, if the hooks are on.
        chosen = next(batches) if active else indices
        samples = dataset.__getitems__(chosen) if active else [dataset[index] for index in chosen]
        batch = runner.train_loop.dataloader.collate_fn(samples)
        for hook in active:
            hook.before_train_iter(runner, 0, batch)
        outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        for hook in active:
            hook.after_train_iter(runner, 0, batch, outputs)

    def with_hooks() -> None:
        step(hooks)

    hooks[0].before_train(runner)
    batches = iter(runner.train_loop.dataloader.batch_sampler)

    def prepare(active: bool) -> None:
        for hook in hooks[1:]:
            (hook.before_train if active else hook.after_train)(runner)

    # On a CPU what other programs of the machine do is left out.
    return _pairs((with_hooks, lambda: step(())), prepare, pairs, time.process_time if get_device() == 'cpu' else None)


def measure_checkpoints(runner: Runner, pairs: int) -> list[tuple[float, float]]:
    """Seconds of a checkpoint of ours and of mmengine's, in pairs; the older one is deleted, as usual."""
    saving = [kind(by_epoch=False, interval=1, max_keep_ckpts=1) for kind in (CheckpointHook, MMEngineCheckpointHook)]
    for hook, name in zip(saving, ('ours', 'mmengine'), strict=True):
        hook.out_dir = f'{runner.work_dir}/{name}'
        hook.before_train(runner)

    def save(hook: Any) -> Callable[[], None]:
        def one() -> None:
            hook._save_checkpoint(runner)  # what both do at an interval
            runner.train_loop._iter += 1

        return one

    # Before and after ours: what mmengine has left to the system would be written on our account.
    return _pairs((save(saving[0]), save(saving[1])), lambda active: os.sync(), pairs)


def _pairs(
    functions: tuple[Callable[[], None], Callable[[], None]],
    prepare: Callable[[bool], None],
    pairs: int,
    clock: Callable[[], float] | None = None,
) -> list[tuple[float, float]]:
    device, measured, now = get_device(), [], clock or time.perf_counter
    for pair in range(-1, pairs):  # the first warms up
        times = [0.0, 0.0]
        for which in (0, 1) if pair % 2 else (1, 0):
            if which == 0:
                prepare(True)
            synchronize(device)
            begun = now()
            functions[which]()
            synchronize(device)
            times[which] = now() - begun
            if which == 0:
                prepare(False)
        if pair >= 0:
            measured.append((times[0], times[1]))
    return measured


def make_table(results: dict[str, Any]) -> Table:
    """What is measured, with and without, and the cost."""
    table = Table(['', 'mmpelk', 'without, or mmengine', 'cost', 'at most'])
    for name, row in results['rows'].items():
        ours, theirs = (f'{1e3 * row[key]:.0f} ms' for key in ('ours', 'without'))
        share = 'step' in name
        cost = f'{100 * row["share"]:+.2f} %' if share else f'{1 + row["share"]:.2f} x'
        table.add(name, ours, theirs, cost, f'{100 * LIMITS["step"]:.0f} %' if share else f'{LIMITS["checkpoint"]} x')
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
            'training step': summarise(measure_steps(runner, args.pairs)),
            'checkpoint': summarise(measure_checkpoints(runner, args.pairs)),
        }
        size = max(path.stat().st_size for path in Path(folder).rglob('*.pth'))
    results = dict(
        setting=dict(arch=args.arch, size=args.size, batch=args.batch, pairs=args.pairs, checkpoint_bytes=size),
        machine=environment_info(get_device().split(':')[0]),
        rows=rows,
    )
    make_table(results).print()
    for name, row in rows.items():
        print(f'{name}: quartiles of the cost {100 * row["low"]:+.2f} % and {100 * row["high"]:+.2f} %')
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()
