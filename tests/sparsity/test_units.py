"""Hidden units: where they are found, how many are active, what drops and grows, and what that does to the outputs."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import nn

from mmpelk.models import PeLK
from mmpelk.models.hidden_units import HiddenUnits, find_hidden_units
from mmpelk.sparsity import (
    GRANULARITIES,
    UnitLayer,
    active_total,
    attach_masks,
    find_parameters,
    layer_densities,
    uniform_units,
)
from tests.sparsity.tiny import TinyModel, is_of_granularity, masked

NANO = dict(depths=(1, 2), channels=(8, 12), kernel_sizes=(9, 7))


class Pair(nn.Module):
    """Two linear layers or 1 x 1 convolutions."""

    def __init__(self, conv: bool = False, hidden: int = 12) -> None:
        super().__init__()
        make = partial(nn.Conv2d, kernel_size=1) if conv else nn.Linear
        self.fc1, self.fc2 = make(4, hidden), make(hidden, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


def layer_of(block: nn.Module) -> UnitLayer:
    torch.manual_seed(0)
    (units,) = find_hidden_units(block)
    layer = UnitLayer(units)
    attach_masks(layer.parameters)
    return layer


@pytest.mark.scope('mmpretrain')
def test_units_are_found_in_backbones():
    small = dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[8, 8, 8, 8]))
    for backbone, count in (
        (dict(type='mmpelk.PeLK', arch=NANO), 3),
        (small, 5),
        (small | dict(linear_pw_conv=False), 5),
        (small | dict(use_grn=True, layer_scale_init_value=0), 0),
        (dict(type='mmpretrain.SwinTransformer', arch=dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1] * 4)), 5),
        (dict(type='mmpretrain.ResNet', depth=50, base_channels=8, stem_channels=8), 0),
    ):
        found = find_hidden_units(MODELS.build(backbone))
        assert len(found) == count, backbone
        assert all(units.count == 4 * units.first.weight.shape[1] for units in found)


@pytest.mark.parametrize(('initialisation', 'density'), [('snip', 0.5), ('erk', 0.6), ('uniform', 0.9), ('snip', 0.9)])
def test_as_many_weights_active_as_without_units(make_runner, initialisation, density):
    sparsity = {'granularity': 'unit', 'density': density, 'initialisation': initialisation}
    runner = make_runner(sparsity, model=TinyModel(bottleneck=True), max_iters=1)
    runner.train()
    assert is_of_granularity('unit', runner.model, density)


def test_every_block_keeps_the_same_share():
    """To a multiple of eight units, and PeLK-T as many weights as with single ones inactive, to a thousandth."""
    with torch.device('meta'):
        model = PeLK('tiny')
    units, blocks = uniform_units(model, 0.6), find_hidden_units(model)
    assert not any(number % 8 for number in units.values())
    whole_share = sum(units.values()) / sum(block.count for block in blocks)
    assert all(abs(units[block.block_name] - whole_share * block.count) < 5 for block in blocks)
    inactive = sum((block.count - units[block.block_name]) * UnitLayer(block).shape[1] for block in blocks)
    whole = [entry.weight.numel() for entry in find_parameters(model, None)]
    assert (sum(whole) - inactive) / active_total(whole, 0.6) == pytest.approx(1, abs=1e-3)


def test_units_of_a_part_count_its_weights_alone():
    model = nn.ModuleDict(dict(backbone=PeLK(NANO), head=nn.Linear(12, 1000)))
    alone = uniform_units(model.backbone, 0.8)
    assert uniform_units(model, 0.8, 'backbone') == {f'backbone.{name}': count for name, count in alone.items()}
    assert set(uniform_units(model, 0.8, ['backbone.stages.1'])) == {f'backbone.stages.1.{i}' for i in (0, 1)}


@pytest.mark.parametrize('granularity', GRANULARITIES)
def test_a_draw_follows_its_generator_alone(granularity):
    layers, drawn = GRANULARITIES[granularity](TinyModel(bottleneck=True), 'backbone', ()), []
    for seed, other in ((1, 1), (1, 2), (2, 2)):
        torch.manual_seed(other)
        for layer in layers:
            attach_masks(layer.parameters)
            layer.draw(math.prod(layer.shape) // 2, torch.Generator().manual_seed(seed))
        drawn.append(torch.cat([entry.mask.flatten() for layer in layers for entry in layer.parameters]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize('granularity', GRANULARITIES)
def test_layers_are_those_of_the_target_but_what_is_excluded(granularity):
    model = nn.ModuleDict({name: TinyModel(bottleneck=True) for name in 'abc'})
    layers = GRANULARITIES[granularity](model, ['a', 'b.backbone'], ['a.backbone'])
    owners = {'.'.join(layer.name.split('.')[:2]) for layer in layers}
    assert owners == {'b.backbone', *(['a.head'] if granularity != 'unit' else [])}


def test_two_of_four_are_of_linear_layers_alone():
    """Not of other 2-D parameters, such as a table of relative positions."""
    model = nn.ModuleList([nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Conv2d(8, 8, 1)])
    assert [layer.name for layer in GRANULARITIES['2:4'](model, None, ['2'])] == ['1.weight']


@pytest.mark.parametrize(('units', 'kept'), [(199, 199), (201, 200), (220, 224), (300, 300)])
def test_hundreds_of_units_are_rounded_to_eights_but_not_beyond_the_layer(units, kept):
    layer = layer_of(Pair(hidden=300))
    for more in (-0.4, 0.4):
        assert layer.units_of(round((units + more) * layer.shape[1])) == kept


def test_a_layer_keeps_a_unit():
    layer = layer_of(Pair())
    layer.draw(0, torch.Generator().manual_seed(0))
    assert int(layer.mask.sum()) == 1


def test_networks_that_cannot_have_units(make_runner):
    with pytest.raises(ValueError, match=r'density=0.3 is too low for units: they hold 57%'):
        make_runner({'granularity': 'unit', 'density': 0.3}, model=TinyModel(bottleneck=True)).train()
    for granularity, target in (('unit', 'backbone'), ('2:4', 'backbone.stem')):
        with pytest.raises(ValueError, match=r"take granularity='weight'"):
            make_runner({'granularity': granularity, 'target': target}, granularity[0]).train()


def test_excluded_weights_are_dense_and_do_not_count(make_runner):
    model = TinyModel(bottleneck=True)
    with pytest.raises(ValueError, match='no block'):
        make_runner({'granularity': 'unit', 'exclude': ['pointwise_conv2']}, model=model).train()
    make_runner({'granularity': 'unit', 'exclude': ['stem']}, 'stem', model=model, max_iters=1).train()
    whole = [entry.weight.numel() for entry in find_parameters(model, 'backbone', ['stem'])]
    inactive = (8 + 1 + 8) * int((~model.backbone.bottleneck.pointwise_conv1.bias_mask).sum())
    assert abs(inactive - (sum(whole) - active_total(whole, 0.6))) <= 17 / 2


@given(active=st.integers(1, 12), rate=st.floats(0, 1), conv=st.booleans(), seed=st.integers(0, 99))
def test_update_drops_the_least_salient_and_grows_the_inactive(active, rate, conv, seed):
    layer = layer_of(Pair(conv=conv))
    layer.draw(active * layer.shape[1], torch.Generator().manual_seed(seed))
    before = layer.mask.clone()
    row, column = (layer.parameters[i].weight.detach() for i in (0, 2))
    saliency = row.flatten(1).norm(dim=1) * column.transpose(0, 1).flatten(1).norm(dim=1)
    count = layer.update(rate, torch.Generator().manual_seed(seed)) // layer.shape[1]
    dropped, grown, kept = before & ~layer.mask, layer.mask & ~before, before & layer.mask
    assert int(dropped.sum()) == int(grown.sum()) == count == min(round(rate * active), 12 - active)
    if count and kept.any():
        assert saliency[dropped].max() <= saliency[kept].min()
    for entry in layer.parameters:
        assert entry.mask.shape == entry.mask_shape
        assert torch.equal(entry.mask.flatten(), layer.mask)


@pytest.mark.parametrize('conv', [False, True], ids=['linear', 'conv'])
def test_a_grown_unit_changes_no_output_and_learns(conv):
    from mmpelk.sparsity import apply_masks, mask_average

    block = Pair(conv=conv, hidden=120)
    layer = layer_of(block)
    layer.draw(12 * layer.shape[1], torch.Generator().manual_seed(0))
    apply_masks(layer.parameters)
    average = ExponentialMovingAverage(nn.Sequential(block))
    average.module = copy.deepcopy(block)
    scale = layer.parameters[0].weight.detach()[layer.mask].square().mean().sqrt()  # of the active rows
    layer.update(0.5, torch.Generator().manual_seed(0))
    without = copy.deepcopy(block)  # of those that are dropped, but grown ones are zero
    for entry in layer.parameters:
        without.get_submodule(entry.module_name).get_parameter(entry.attribute).data.mul_(entry.mask)
    layer.start_grown([average], torch.Generator().manual_seed(0))
    apply_masks(layer.parameters)
    mask_average(average, layer.parameters)
    x = torch.randn(3, 4, 2, 2) if conv else torch.randn(3, 4)
    assert torch.equal(block(x), without(x))
    grown = ~layer.parameters[2].weight.detach().transpose(0, 1).flatten(1).any(1) & layer.mask
    assert int(grown.sum()) == 6
    rows = layer.parameters[0].weight.detach().flatten(1)
    torch.testing.assert_close(rows[grown], scale * torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(average.module.get_submodule(layer.parameters[0].module_name).weight.detach().flatten(1)[grown],
                       rows[grown])  # fmt: skip
    block(x).square().sum().backward()
    assert layer.parameters[2].weight.grad.transpose(0, 1).flatten(1)[grown].any(1).all(), 'the column learns'


def test_scores_and_densities_of_units():
    """A unit's score is the mean over its weights."""
    layer = layer_of(Pair(hidden=3))
    scores = [torch.arange(float(entry.weight.numel())).view_as(entry.weight) for entry in layer.parameters]
    expected = [(scores[0][unit].sum() + scores[1][unit] + scores[2][:, unit].sum()) / (4 + 1 + 5) for unit in range(3)]
    found = layer.score(scores)
    assert found.shape == layer.shape == (3, 10)
    torch.testing.assert_close(found, torch.stack(expected)[:, None].expand(3, 10))

    layer = layer_of(Pair())
    layer.draw(3 * layer.shape[1], torch.Generator().manual_seed(0))
    assert [(found.active, found.size) for found in layer_densities(layer.parameters)] == [(12, 48), (3, 12), (15, 60)]


@pytest.mark.parametrize('count', [1, 12, 20])
@pytest.mark.parametrize('conv', [False, True], ids=['linear', 'conv'])
def test_resized_units_keep_their_parameters(count, conv):
    block = Pair(conv=conv)
    layer = layer_of(block)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    HiddenUnits('', block, 'fc1', 'fc2').resize(count)
    assert layer.units.count == count
    assert all(entry.mask.shape == entry.mask_shape for entry in layer.parameters)
    block(torch.randn(3, 4, 2, 2) if conv else torch.randn(3, 4)).sum().backward()
    before = [parameter.clone() for parameter in block.parameters()]
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, block.parameters(), strict=True))
    names = 'channels' if conv else 'features'
    sizes = [[getattr(layer, f'{side}_{names}') for side in ('in', 'out')] for layer in (block.fc1, block.fc2)]
    assert sizes == [[4, count], [count, 5]]


def test_a_frozen_block_keeps_its_units(make_runner, tmp_path):
    make_runner({'granularity': 'unit'}, 'first', model=TinyModel(bottleneck=True), max_iters=4).train()
    model = TinyModel(bottleneck=True)
    model.backbone.bottleneck.pointwise_conv2.requires_grad_(False)
    sparsity = {'granularity': 'unit', 'update_interval': 1}
    runner = make_runner(sparsity, model=model, max_iters=4, load_from=str(tmp_path / 'first/iter_4.pth'))
    before = torch.load(tmp_path / 'first/iter_4.pth', weights_only=False)['state_dict']
    runner.train()
    assert all(torch.equal(entry.mask, before[f'{entry.name}_mask']) for entry in masked(runner))
