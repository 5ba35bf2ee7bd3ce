"""The divergence hook with a gradient scaler and with bfloat16, as far as a CPU has them."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn

from mmpelk.fault_tolerance.divergence import DivergenceHook

pytestmark = pytest.mark.skipif(
    not hasattr(torch.amp, 'GradScaler'), reason='gradient scalers of a CPU came with torch 2.3'
)


def make_training(monkeypatch: pytest.MonkeyPatch, dtype: str) -> tuple[Any, AmpOptimWrapper, DivergenceHook, Any]:
    """mmengine's wrapper, which asks for a GPU, with torch's scaler of the CPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', lambda **options: torch.amp.GradScaler('cpu', **options))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    wrapper = AmpOptimWrapper(optimizer=optimizer, dtype=dtype, loss_scale='dynamic')
    hook = DivergenceHook(patience=3)
    runner = SimpleNamespace(
        optim_wrapper=wrapper, model=network, hooks=[], iter=0, logger=mock.Mock(), message_hub=mock.MagicMock()
    )
    hook.before_train(runner)
    return network, wrapper, hook, runner


def step(training: Any, loss_factor: float = 1.0, bad_gradient: bool = False) -> None:
    network, wrapper, hook, runner = training
    hook.before_train_iter(runner, runner.iter, {})
    with torch.autocast('cpu', torch.bfloat16):
        out = network(torch.ones(5, 3) * torch.arange(5.0)[:, None])
    loss = out.float().square().mean() * loss_factor
    if bad_gradient:
        loss.register_hook(lambda grad: grad * float('inf'))
    wrapper.update_params(loss)
    hook.after_train_iter(runner, runner.iter, {})
    runner.iter += 1


def state(training: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in training[0].state_dict().items()}


def test_a_loss_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_training(monkeypatch, 'bfloat16')
    step(training)
    before, scale = state(training), training[1].loss_scaler.state_dict()
    step(training, float('nan'))
    assert all(torch.equal(value, before[key]) for key, value in state(training).items())
    assert training[1].loss_scaler.state_dict() == scale
    assert training[2].skipped == 1
    step(training)
    assert any(not torch.equal(value, before[key]) for key, value in state(training).items())


def test_the_scaler_looks_for_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that are too large are its own affair, until there is no scale for them."""
    training = make_training(monkeypatch, 'bfloat16')
    scale = training[1].loss_scaler.get_scale()
    for _ in range(5):  # more than the patience
        step(training, bad_gradient=True)
    assert training[1].loss_scaler.get_scale() == scale / 2**5
    assert training[2].skipped == 0
    before = state(training)
    step(training)
    assert any(not torch.equal(value, before[key]) for key, value in state(training).items())


def test_no_scale_at_all_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_training(monkeypatch, 'bfloat16')
    for _ in range(32 + 2):  # halvings, and one step less than the patience
        step(training, bad_gradient=True)
    with pytest.raises(ValueError, match='not finite at any loss scale'):
        step(training, bad_gradient=True)
