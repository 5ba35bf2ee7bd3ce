"""The scores of SNIP: one batch through the model, which changes nothing of the run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmpelk.fault_tolerance.random_state import isolated_randomness, make_generator

from .masks import MaskedParameter

_BATCH_TAG = 2


class _GradientProbe(OptimWrapper):
    """An optimizer wrapper that computes gradients and never steps, for ``train_step`` of any model."""

    def step(self, **kwargs: Any) -> None:
        """Leave the weights alone."""

    def zero_grad(self, **kwargs: Any) -> None:
        """Leave the gradients for the caller."""


def draw_batch(dataloader: DataLoader, batch_size: int | None, seed: int) -> Any:
    """One batch of training samples, drawn without touching the loader's order.

    Iterating over the loader itself would advance an endless sampler and the run's random numbers. So the samples are
    chosen here, a random draw that depends on the seed alone; every rank takes its own part of it.

    Args:
        dataloader: The run's training data.
        batch_size: Samples per rank; None takes the loader's.
        seed: Seed of the draw.

    Returns:
        The collated batch, as the loader would give it.

    Raises:
        ValueError: If the data cannot be indexed, or the loader has no fixed batch size.
    """
    size = batch_size or dataloader.batch_size or getattr(dataloader.batch_sampler, 'batch_size', None)
    dataset: Any = dataloader.dataset
    if size is None or not hasattr(dataset, '__len__') or not hasattr(dataset, '__getitem__'):
        raise ValueError(
            'SNIP needs a batch of known size from a dataset that can be indexed: set `snip_batch_size`, '
            'or use initialisation="erk", which needs no data'
        )
    order = torch.randperm(len(dataset), generator=make_generator(seed, _BATCH_TAG)).tolist()
    first = get_rank() * size
    assert dataloader.collate_fn is not None
    return dataloader.collate_fn([dataset[order[(first + i) % len(order)]] for i in range(size)])


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put buffers (running statistics), gradients and the mode of a model back afterwards.

    A deep copy would be simpler, but it would not be one: activation checkpointing and ``compile`` of mmengine put
    functions on the modules that stay bound to the original.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, name, buffer, values in buffers:
            setattr(module, name, buffer.copy_(values))


def snip_scores(
    model: nn.Module,
    parameters: Sequence[MaskedParameter],
    dataloader: DataLoader,
    seed: int,
    batch_size: int | None = None,
) -> list[Tensor]:
    """``|w · ∂L/∂w|`` of one batch, in the training mode and the precision of the weights.

    The gradient is averaged over the ranks before the product, so that the scores are those of the global batch: two
    ranks with four samples each score as one rank with the eight. (With batch norms that are not synchronised, up to
    their statistics.) The batch is drawn and run with random numbers of its own, and buffers, gradients and the run's
    random state are put back.

    Args:
        model: The model, unwrapped, with mmengine's ``train_step``.
        parameters: The parameters to score.
        dataloader: The run's training data.
        seed: Seed of the run.
        batch_size: Samples per rank; None takes the loader's.

    Returns:
        The scores of each parameter, of its shape.

    Raises:
        ValueError: If a parameter gets no gradient, or the data cannot be indexed.
    """
    with isolated_randomness(seed + get_rank()), _untouched(model):
        model.train()
        probe = _GradientProbe(torch.optim.SGD(model.parameters(), lr=0.0))
        # Of the class: `compile` puts another one on the instance, which is not worth warming up for one step.
        train_step: Any = getattr(type(model), 'train_step')  # noqa: B009 (mypy: nn.Module has none)
        train_step(model, draw_batch(dataloader, batch_size, seed), optim_wrapper=probe)
        gradients = [entry.weight.grad for entry in parameters]
    idle = [entry.name for entry, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if idle:
        raise ValueError(
            f'SNIP cannot score {len(idle)} parameters that get no gradient, such as {idle[:3]}: the loss does not use '
            'them, or they are frozen. Name them in `exclude`, or use initialisation="erk" or "uniform".'
        )
    scores = []
    for entry, gradient in zip(parameters, gradients, strict=True):
        assert gradient is not None
        if get_world_size() > 1:
            all_reduce(gradient, op='mean')
        scores.append((entry.weight.detach() * gradient).abs())
    return scores
