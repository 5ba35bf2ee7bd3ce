"""One rank of a two-process training on the CPU: ``ranks.py FOLDER GRANULARITY``, with a launcher's variables."""

import sys
from pathlib import Path

import torch
import torch.distributed
from mmengine.model import MMDistributedDataParallel

from mmpelk.fault_tolerance.random_state import make_generator
from mmpelk.sparsity import hook
from tests.sparsity.tiny import (
    TinyModel,
    Watch,
    build_runner,
    dead_values,
    is_of_granularity,
    masked,
    scores_of_global_batch,
)


def main() -> None:
    folder, granularity = Path(sys.argv[1]), sys.argv[2]
    torch.distributed.init_process_group('gloo')
    rank = torch.distributed.get_rank()
    masks = []

    def look(runner):
        assert all(not values.any() for values in dead_values(runner))
        assert is_of_granularity(granularity, runner.model.module)
        masks.append(torch.cat([entry.mask.flatten() for entry in masked(runner)]))

    # Each rank draws masks of its own: they are the same on both because those of rank 0 are broadcast.
    hook.make_generator = lambda seed, *purpose, **device: make_generator(seed + rank, *purpose, **device)
    # Other weights and other global random numbers on each rank before DDP brings them together.
    torch.manual_seed(rank)
    runner = build_runner(
        folder / 'run',
        {'granularity': granularity, 'update_interval': 2, 'prune_rate': 0.5},
        max_iters=6,
        model=MMDistributedDataParallel(TinyModel(dropout=0.3, bottleneck=True)),
        hooks=({'type': 'EMAHook', 'momentum': 0.3}, Watch(look)),
        wrapper={'accumulative_counts': 2},
        launcher='pytorch',  # the process group exists already, so mmengine starts none
    )
    runner.train()
    weights = {key: value for key, value in runner.model.module.state_dict().items() if 'running' not in key}
    scores = scores_of_global_batch(batch_size=4)
    torch.save({'masks': masks, 'weights': weights, 'scores': scores}, folder / f'rank{rank}.pth')
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
