"""A tiny model and a real mmengine Runner around it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel, BaseModule
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from mmpelk.sparsity import SparsityHook, active_total, attach_masks, find_parameters, is_two_of_four
from mmpelk.sparsity.probe import snip_scores

_run_numbers = itertools.count()


class Bottleneck(nn.Module):
    """Hidden units, named as in PeLK and ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Linear(8, 40)
        self.pointwise_conv2 = nn.Linear(40, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise_conv2(nn.functional.gelu(self.pointwise_conv1(x)))


class TinyBackbone(BaseModule):
    """Two 4-D and one 2-D weight to mask; a 3-D embedding, norm, biases and a scale to leave dense; dropout draws."""

    def __init__(self, with_cp: bool, dropout: float, init_cfg: dict[str, Any] | None, bottleneck: bool) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.embedding = nn.Parameter(torch.zeros(8, 5, 5))
        self.gamma = nn.Parameter(torch.ones(8))
        self.linear = nn.Linear(8, 16)
        self.bottleneck = Bottleneck() if bottleneck else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def _block(self, x: Tensor) -> Tensor:
        return self.gamma.view(8, 1, 1) * self.depthwise(x).relu() + self.embedding.mean((1, 2)).view(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = checkpoint(self._block, x, use_reentrant=False) if self.with_cp else self._block(x)
        return self.dropout(self.linear(self.bottleneck(x.mean((2, 3)))))


class TinyModel(BaseModel):
    """A classifier of three classes."""

    def __init__(
        self,
        with_cp: bool = False,
        dropout: float = 0.1,
        backbone_init: dict[str, Any] | None = None,
        bottleneck: bool = False,
    ) -> None:
        super().__init__(data_preprocessor=BaseDataPreprocessor())
        self.backbone = TinyBackbone(with_cp, dropout, backbone_init, bottleneck)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs: Tensor, label: Tensor, mode: str = 'tensor') -> Any:
        logits = self.head(self.backbone(inputs))
        return {'loss': nn.functional.cross_entropy(logits, label)} if mode == 'loss' else [logits]


class TinyData(Dataset):
    """Random images; each access draws ``noise`` from torch's generator, as augmentations do."""

    def __init__(self, length: int = 24, noise: float = 0.01) -> None:
        self.images = torch.randn(length, 3, 6, 6, generator=torch.Generator().manual_seed(3))
        self.noise = noise

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'inputs': self.images[index] + self.noise * torch.randn(3, 6, 6), 'label': index % 3}


class Watch(Hook):
    """After every iteration, behind every other hook: call ``look(runner)``."""

    priority = 'LOWEST'

    def __init__(self, look: Callable[[Runner], None]) -> None:
        self.look = look

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.look(runner)


def build_runner(
    work_dir: Path,
    sparsity: dict[str, Any] | None = None,
    max_iters: int = 8,
    model: nn.Module | None = None,
    data: Dataset | None = None,
    hooks: tuple[Any, ...] = (),
    seed: int = 7,
    wrapper: dict[str, Any] | None = None,
    **settings: Any,
) -> Runner:
    """A Runner that trains the tiny model, with checkpoints every 4 iterations and scalars in a local file."""
    torch.manual_seed(seed)
    optim_wrapper = {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 0.02, 'weight_decay': 0.05}}
    own = [] if sparsity is None else [{'type': 'mmpelk.SparsityHook', **sparsity}]
    return Runner(
        model=TinyModel() if model is None else model,
        work_dir=str(work_dir),
        train_dataloader={
            'dataset': TinyData() if data is None else data,
            'sampler': {'type': 'InfiniteSampler', 'shuffle': True},
            'batch_size': 4,
            'collate_fn': {'type': 'default_collate'},
        },
        train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': max_iters, 'val_interval': 1000},
        optim_wrapper=optim_wrapper | (wrapper or {}),
        default_hooks={
            'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 4},
            'logger': {'type': 'LoggerHook', 'interval': 1},
        },
        log_processor={'by_epoch': False},
        custom_hooks=[*own, *hooks],
        visualizer={'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]},
        randomness={'seed': seed},
        default_scope='mmengine',
        experiment_name=f'tiny{next(_run_numbers)}',
        **settings,
    )


def draw_masks(model: nn.Module, target: str | list[str] | None = 'backbone', density: float = 0.6) -> list[Any]:
    """Give a model random masks; its weights are those of before. Returns the masked parameters."""
    parameters = find_parameters(model, target)
    attach_masks(parameters)
    for entry in parameters:
        entry.mask.copy_(torch.rand(entry.mask.shape) < density)
    return parameters


def load_masks(path: Path) -> dict[str, Tensor]:
    """The masks of a checkpoint."""
    state = torch.load(path, weights_only=False)['state_dict']
    return {key: value for key, value in state.items() if key.endswith('_mask')}


def masked(runner: Runner) -> list[Any]:
    """The masked parameters of the runner's model."""
    return next(hook.parameters for hook in runner.hooks if isinstance(hook, SparsityHook))


def is_of_granularity(granularity: str, model: nn.Module, density: float = 0.6) -> bool:
    """Whether the masks of a tiny model with a bottleneck are as the granularity and the density say."""
    masks = {name.removeprefix('backbone.'): mask for name, mask in model.named_buffers() if name.endswith('_mask')}
    whole = [entry.weight.numel() for entry in find_parameters(model)]
    if granularity == 'weight':
        return sum(int(mask.sum()) for mask in masks.values()) == active_total(whole, density)
    if granularity == '2:4':
        return len(masks) == 3 and all(
            2 * mask.sum() == mask.numel() and is_two_of_four(mask) for mask in masks.values()
        )
    row, bias, column = (masks[f'bottleneck.pointwise_conv{name}_mask'] for name in ('1.weight', '1.bias', '2.weight'))
    inactive = (8 + 1 + 8) * int((~bias).sum())
    same = torch.equal(row[:, 0], bias) and torch.equal(column[0], bias)
    return same and len(masks) == 3 and abs(inactive - (sum(whole) - active_total(whole, density))) <= 17 / 2


def dead_values(runner: Runner) -> list[Tensor]:
    """Every value that has to be zero: inactive weights, their moments, their averaged copies."""
    values = []
    averages = [hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model')]
    for entry in masked(runner):
        state = runner.optim_wrapper.optimizer.state.get(entry.weight, {})
        moments = [value for value in state.values() if value.shape == entry.weight.shape]
        copies = [average.get_parameter(entry.name) for average in averages]
        inactive = ~entry.mask.expand_as(entry.weight)
        values += [tensor[inactive] for tensor in (entry.weight, *moments, *copies)]
        for average in averages:
            assert torch.equal(average.get_buffer(f'{entry.name}_mask'), entry.mask)
    return values


def scores_of_global_batch(batch_size: int) -> list[Tensor]:
    """SNIP's scores of the tiny model, without anything that depends on how the batch is shared among the ranks."""
    torch.manual_seed(1)
    model = TinyModel(dropout=0.0)
    model.backbone.norm = nn.Identity()
    loader = DataLoader(TinyData(noise=0.0), batch_size=batch_size)
    return snip_scores(model, find_parameters(model), loader, seed=5)
