"""Lower rates for peripheral kernels: in groups for torch, and in the constructors of optimizers."""

import copy
from typing import Any

import pytest
import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch.nn.utils import prune

import mmpelk
from mmpelk.engine import LayerDecayOptimWrapperConstructor, PeripheralOptimWrapperConstructor
from mmpelk.models import PeLK

OPTIM_WRAPPER = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))


def network() -> nn.Module:
    """Two depthwise convolutions, of which the second is frozen, and a third that is pruned."""
    convs = [nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(3)]
    model = nn.Sequential(*convs, nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    mmpelk.enlarge(model, 15)
    model[1].weight.requires_grad_(False)
    prune.random_unstructured(model[2], 'weight', 0.5)
    return model


def rates(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group['lr'] for group in groups for parameter in group['params']}


KERNELS = {'0.weight', '2.weight_orig'}


@pytest.mark.parametrize('factor', [None, 0.5])
def test_groups_for_torch(factor: float | None) -> None:
    model = network()
    groups = mmpelk.parameter_groups(model, 0.2, **({} if factor is None else dict(peripheral_lr_mult=factor)))
    assert [group['lr'] for group in groups] == pytest.approx([0.2, 0.2 * (factor or 0.1)])
    optimizer = torch.optim.SGD(groups)
    found = rates(model, optimizer.param_groups)
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, rate in found.items():
        assert rate == pytest.approx(0.2 * ((factor or 0.1) if name in KERNELS else 1)), name


def test_a_parametrised_kernel_is_one() -> None:
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    found = rates(model, mmpelk.parameter_groups(model, 0.2))
    slow = {name for name, rate in found.items() if rate < 0.1}
    assert slow == {'0.parametrizations.weight.original0', '0.parametrizations.weight.original1', '2.weight_orig'}


def test_a_kernel_of_two_modules_is_one() -> None:
    model = network()
    model[2] = copy.deepcopy(model[0])
    model[2].weight = model[0].weight
    groups = mmpelk.parameter_groups(model, 0.2)
    assert sum(len(group['params']) for group in groups) == len({p for p in model.parameters() if p.requires_grad})


def test_without_large_kernels_there_is_one_group() -> None:
    model = nn.Linear(2, 2)
    (group,) = mmpelk.parameter_groups(model, 0.2)
    assert group['lr'] == 0.2
    assert group['params'] == list(model.parameters())


@pytest.mark.parametrize('keys', [{}, dict(bias_lr_mult=2.0), dict(custom_keys={'0.': dict(lr_mult=3.0)})])
@pytest.mark.parametrize('factor', [None, 0.5])
def test_constructor_multiplies_mmengines_rates(keys: dict[str, Any], factor: float | None) -> None:
    model = network()
    own = {} if factor is None else dict(peripheral_lr_mult=factor)
    ours = PeripheralOptimWrapperConstructor(OPTIM_WRAPPER, keys | own)(model).optimizer
    theirs = DefaultOptimWrapperConstructor(OPTIM_WRAPPER, keys)(model).optimizer
    found, wanted = rates(model, ours.param_groups), rates(model, theirs.param_groups)
    wanted.pop('1.weight', None)  # frozen: mmengine's constructor leaves it out if it has keys
    assert set(found) == set(wanted)
    for name, rate in found.items():
        assert rate == pytest.approx(wanted[name] * ((factor or 0.1) if name in KERNELS else 1)), name


def test_layer_decay_multiplies_its_rates() -> None:
    """Kernels of which every number has one position, as those of 5 x 5, keep the rate."""
    model = nn.Module()
    model.backbone = PeLK(dict(depths=(1,) * 4, channels=(8,) * 4, kernel_sizes=(13, 13, 13, 5)))
    plain, lower = (
        LayerDecayOptimWrapperConstructor(OPTIM_WRAPPER, dict(decay_rate=0.9, **key))(model).optimizer.param_groups
        for key in ({}, dict(peripheral_lr_mult=0.25))
    )
    changed = {name for name, rate in rates(model, lower).items() if rate != rates(model, plain)[name]}
    assert changed == {f'backbone.stages.{stage}.0.mixer.large.weight' for stage in range(3)}
    for group in lower:
        assert group['lr'] == pytest.approx(1e-3 * group['lr_scale'])
    assert all(rates(model, lower)[name] == pytest.approx(rates(model, plain)[name] / 4) for name in changed)


@pytest.mark.parametrize('factor', [-0.1, '0.1', True, float('nan'), float('inf')])
def test_refused_factors(factor: object) -> None:
    for constructor, keys in (
        (PeripheralOptimWrapperConstructor, {}),
        (LayerDecayOptimWrapperConstructor, dict(decay_rate=1)),
    ):
        with pytest.raises(ValueError, match='peripheral_lr_mult'):
            constructor(OPTIM_WRAPPER, keys | dict(peripheral_lr_mult=factor))
        constructor(OPTIM_WRAPPER, keys | dict(peripheral_lr_mult=0))  # which keeps the kernels as they are
    with pytest.raises(ValueError, match='peripheral_lr_mult'):
        mmpelk.parameter_groups(nn.Linear(2, 2), 0.2, factor)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='lr must not be negative'):
        mmpelk.parameter_groups(nn.Linear(2, 2), -0.2)
    with pytest.raises(ValueError, match='no lr'):
        PeripheralOptimWrapperConstructor(dict(optimizer=dict(type='AdamW')))
