"""Train recipes, shrunk, on the ranks of one launch: ``torchrun two_ranks.py DATA_ROOT CONFIG ...`` (a step costs less
than importing the toolbox). Rank 0 writes what it found to ``results.json``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dist import all_gather, get_rank
from mmengine.runner import Runner
from torch import Tensor

from mmpelk.engine import adapt_to_machine


def shrink(cfg: Config, data_root: str, name: str) -> None:
    """An epoch of two steps with a tiny network, without worker processes and evaluation."""
    cfg.merge_from_dict({
        'launcher': 'pytorch', 'work_dir': f'work/{name}', 'experiment_name': name, 'randomness.seed': 0,
        'model.backbone.depths': (1, 1, 1, 1), 'model.backbone.channels': (8, 12, 16, 20),
        'model.head.in_channels': 20, 'optim_wrapper.accumulative_counts': 1,
        'train_dataloader.batch_size': 2, 'train_cfg.max_epochs': 1,
        'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False,
        'train_dataloader.dataset.data_root': data_root, 'param_scheduler': None,
        **{f'{part}_{kind}': None for part in ('val', 'test') for kind in ('cfg', 'dataloader', 'evaluator')},
    })  # fmt: skip
    cfg.train_dataloader.dataset.pipeline[1].scale = 48


def train(path: str, data_root: str) -> dict[str, Any]:
    """What an epoch did to one recipe."""
    cfg, name = Config.fromfile(path), Path(path).stem
    shrink(cfg, data_root, name)
    adapt_to_machine(cfg)
    runner = Runner.from_cfg(cfg)
    network = runner.model.module
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    statistics: list[Tensor] = []

    def look(*_: Any) -> None:
        values = [value.double().sum() for key, value in network.named_buffers() if 'running_' in key]
        statistics.append(torch.stack(values).sum() if values else torch.zeros(()).double())

    network.register_forward_pre_hook(look)
    runner.train()
    after = dict(network.named_parameters())
    total = torch.stack([value.detach().double().sum() for value in after.values()]).sum()
    masks = [value for key, value in network.named_buffers() if key.endswith('_mask')]
    return dict(
        losses=runner.message_hub.get_scalar('train/loss').data[0].tolist(),
        totals=[float(value) for value in all_gather(total)],
        statistics=[values.tolist() for values in all_gather(torch.stack(statistics))],
        moved=sum(not torch.equal(value, before[key]) for key, value in after.items()) / len(after),
        density=sum(int(m.sum()) for m in masks) / max(1, sum(m.numel() for m in masks)),
        hooks=[type(hook).__name__ for hook in runner.hooks],
    )


if __name__ == '__main__':
    results = {Path(path).stem: train(path, sys.argv[1]) for path in sys.argv[2:]}
    if get_rank() == 0:
        Path('results.json').write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
