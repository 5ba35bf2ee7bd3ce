"""A step that is left out changes nothing, whether its loss or its gradient is bad, and whoever waits for the device.

What a GPU does later, of which only the copy to the host needs one, is run on the CPU.
"""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmpelk.engine import DivergenceHook
from mmpelk.errors import DataError

OPTIMIZERS = {
    'AdamW': lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5),
    'SGD': lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.5),
}


class BadGradient(torch.autograd.Function):
    """The identity, whose gradient is not finite."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * float('nan')


class Training:
    """Steps of a small network with the hook, as mmengine takes them."""

    def __init__(self, optimizer: str, late: bool, patience: int = 10, accumulate: int = 1) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.wrapper = OptimWrapper(OPTIMIZERS[optimizer](self.network.parameters()), accumulative_counts=accumulate)
        average = EMAHook()
        average.ema_model = ExponentialMovingAverage(self.network, momentum=0.5)
        self.average = average.ema_model
        self.hook = DivergenceHook(patience)
        self.runner: Any = SimpleNamespace(
            model=self.network,
            optim_wrapper=self.wrapper,
            hooks=[self.hook, average],
            message_hub=MessageHub.get_instance('divergence'),
            logger=MMLogger.get_instance('divergence'),
            iter=0,
        )
        self.hook.before_train(self.runner)
        for guard in self.hook._guards:
            guard.late = late

    def step(self, what: str = 'good') -> None:
        generator = torch.Generator().manual_seed(self.runner.iter)
        self.hook.before_train_iter(self.runner, self.runner.iter, {})
        x = torch.randn(5, 3, generator=generator) * (float('nan') if what == 'bad loss' else 1.0)
        y = self.network(x)
        loss = (BadGradient.apply(y) if what == 'bad gradient' else y).square().mean()
        loss = loss + (float('nan') if what == 'bad loss of good gradients' else 0.0)
        self.wrapper.update_params(loss)
        self.hook.after_train_iter(self.runner, self.runner.iter, {})
        self.average.update_parameters(self.network)
        self.runner.iter += 1

    def state(self) -> dict[str, Any]:
        return deepcopy(
            dict(
                network=self.network.state_dict(),
                optimizer=self.wrapper.optimizer.state_dict()['state'],
                average=self.average.state_dict(),
            )
        )


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize(('what', 'late'), [('bad loss', False), ('bad gradient', False), ('bad gradient', True)])
def test_nothing_changes(optimizer: str, what: str, late: bool) -> None:
    training = Training(optimizer, late)
    for _ in range(2):
        training.step()
    before = training.state()
    training.step(what)
    after = training.state()
    assert same(before['network'], after['network'])
    assert same(before['optimizer'], after['optimizer'])
    assert late or same(before['average'], after['average'])
    assert all(torch.isfinite(value).all() for value in after['average'].values())
    training.step()
    assert training.hook.skipped == 1
    assert not same(before['network'], training.state()['network'])


@pytest.mark.parametrize('late', [False, True])
def test_nothing_changes_by_the_first_step(late: bool) -> None:
    training = Training('AdamW', late)
    before = training.state()['network']
    training.step('bad gradient')
    assert same(before, training.state()['network'])
    kept = training.state()['optimizer']
    assert not any(value.any() for state in kept.values() for value in state.values())
    training.runner.iter = 0
    training.step()
    other = Training('AdamW', late)
    other.step()
    assert same(training.state()['network'], other.state()['network'])
    assert same(training.state()['optimizer'], other.state()['optimizer'])


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_good_steps_are_those_without_the_hook(optimizer: str) -> None:
    first, second = Training(optimizer, late=True), Training(optimizer, late=False)
    second.hook.after_train(second.runner)
    for _ in range(3):
        first.step()
        second.step()
    assert same(first.state(), second.state())


@pytest.mark.parametrize('what', ['bad loss', 'bad loss of good gradients'])
def test_one_bad_batch_of_two_spoils_their_step(what: str) -> None:
    training = Training('SGD', late=False, accumulate=2)
    before = training.state()['network']
    training.step(what)
    training.step()
    assert same(before, training.state()['network'])
    assert training.hook.skipped == 1


def test_several_that_are_not_in_a_row_end_nothing() -> None:
    training = Training('SGD', late=False, patience=2)
    for _ in range(4):
        training.step('bad loss')
        training.step()
    assert training.hook.skipped == 4


def test_several_in_a_row_end_the_training() -> None:
    training = Training('SGD', late=True, patience=3)
    for _ in range(3):
        training.step('bad gradient')
    # The third is known one step later.
    with pytest.raises(DataError, match='3 steps in a row had a gradient that was not finite, one step before'):
        training.step('bad gradient')
