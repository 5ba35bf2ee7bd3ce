"""Inactive weights and their moments are zero after every step of any optimizer, at the price of one fused multiply."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmpelk.sparsity import StepMasker, attach_masks, find_parameters

OPTIMIZERS = {
    'sgd': lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1),
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
    parameters = find_parameters(model, target=None)
    attach_masks(parameters)
    for entry in parameters:
        entry.mask.copy_(torch.rand(entry.mask.shape) < 0.6)
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


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_step_costs_one_fused_multiply_and_nothing_that_waits_for_the_device():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    masker = StepMasker(optimizer, find_parameters(model, target=None))
    step(model, optimizer, 0)
    with Recorder() as recorder:
        masker.apply()
    assert recorder.calls == ['aten._foreach_mul_.List']


def test_parameters_of_another_optimizer_are_left_to_it():
    model = make_model()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    masker = StepMasker(optimizer, find_parameters(model, target=None))
    assert [entry.name for entry in masker.parameters] == ['2.weight']


def test_after_close_the_optimizer_is_free():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masker = StepMasker(optimizer, find_parameters(model, target=None))
    masker.close()
    step(model, optimizer, 0)
    assert any(entry.weight[~entry.mask].any() for entry in masker.parameters)
