"""Inactive weights and their moments are zero after every step of any optimizer, at the price of one fused multiply."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from benchmarks.backbone import dispatched_operators
from mmpelk.sparsity import StepMasker, find_parameters
from mmpelk.sparsity.hook import _optimizers
from tests.sparsity.tiny import draw_masks

OPTIMIZERS = {
    'sgd': lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1),
    'sgd-groups': lambda weights: torch.optim.SGD([{'params': [weight]} for weight in weights], lr=0.1, momentum=0.9),
    'sgd-plain': lambda weights: torch.optim.SGD(weights, lr=0.1),
    'adamw': lambda weights: torch.optim.AdamW(weights, lr=0.1),
    'adamw-amsgrad': lambda weights: torch.optim.AdamW(weights, lr=0.1, amsgrad=True),
    'rmsprop': lambda weights: torch.optim.RMSprop(weights, lr=0.1, momentum=0.9, centered=True),
    'radam': lambda weights: torch.optim.RAdam(weights, lr=0.1),
    'adamw-for-loop': lambda weights: torch.optim.AdamW(weights, lr=0.1, foreach=False),
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    draw_masks(model, None)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, mask_gradients: bool = False) -> None:
    optimizer.zero_grad()
    model(torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    if mask_gradients:
        for entry in find_parameters(model, target=None):
            entry.weight.grad *= entry.mask
    optimizer.step()


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_dead_weights_and_moments_are_zero_as_with_masked_gradients(name):
    model = make_model()
    other = copy.deepcopy(model)
    optimizer, reference = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](other.parameters())
    masker = StepMasker(optimizer, find_parameters(model, target=None))
    StepMasker(reference, find_parameters(other, target=None)).close()  # masks the weights once, at the start
    for seed in range(4):
        step(model, optimizer, seed)
        step(other, reference, seed, mask_gradients=True)
        for entry in masker.parameters:
            for tensor in (entry.weight, *(value for value in optimizer.state[entry.weight].values() if value.ndim)):
                assert not tensor[~entry.mask].any()
                assert tensor[entry.mask].any()
    for weight, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_moments_of_another_precision_are_masked_and_what_is_no_moment_stays():
    model = make_model().bfloat16()
    optimizer = torch.optim.SGD([{'params': [weight]} for weight in model.parameters()], lr=0.1)
    masker = StepMasker(optimizer, find_parameters(model, target=None))
    others = {'step': torch.ones(()), 'word': 'kept', 'row': torch.ones(5)}
    for entry in masker.parameters:
        ones = torch.ones_like(entry.weight)
        optimizer.state[entry.weight] = {
            'first': ones.float(),
            'second': ones.clone(),
            'third': ones.double(),
            **others,
        }
    masker.apply()
    for entry in masker.parameters:
        state = optimizer.state[entry.weight]
        for name, dtype in {'first': torch.float32, 'second': torch.bfloat16, 'third': torch.float64}.items():
            assert torch.equal(state[name], entry.mask.to(dtype)), name
        assert all(state[name] is other for name, other in others.items())
        assert torch.ones(5).equal(state['row'])


def test_a_step_costs_one_operator_and_nothing_that_waits_for_the_device():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    masker = StepMasker(optimizer, find_parameters(model, target=None))
    step(model, optimizer, 0)
    assert dispatched_operators(masker.apply) == 1


def test_every_optimizer_is_masked():
    one, other = (OptimWrapper(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)) for _ in range(2))
    assert _optimizers(one) == [one.optimizer]
    assert _optimizers(OptimWrapperDict(one=one, other=other)) == [one.optimizer, other.optimizer]


def test_parameters_of_another_optimizer_and_after_close():
    model = make_model()
    masker = StepMasker(torch.optim.SGD(model[2].parameters(), lr=0.1), find_parameters(model, target=None))
    assert [entry.name for entry in masker.parameters] == ['2.weight']
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masker = StepMasker(optimizer, find_parameters(model, target=None))
    masker.close()
    step(model, optimizer, 0)
    assert any(entry.weight[~entry.mask].any() for entry in masker.parameters)
