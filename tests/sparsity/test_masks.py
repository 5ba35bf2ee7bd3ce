"""Which parameters have a mask, and how masks are kept in a model and its state dict."""

import copy

import pytest
import torch
from torch import nn

from mmpelk.models import PeLK
from mmpelk.models.weights.facts import facts_of
from mmpelk.sparsity import (
    apply_masks,
    attach_masks,
    density_table,
    find_parameters,
    fold_masks,
    layer_densities,
    mask_keys,
    overall_density,
    remove_masks,
    state_dict_densities,
)
from tests.sparsity.tiny import draw_masks


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.embedding = nn.Parameter(torch.zeros(4, 5, 5))
        self.gamma = nn.Parameter(torch.ones(4))
        self.linear = nn.Linear(4, 6)
        self.shared = nn.Linear(4, 6, bias=False)
        self.shared.weight = self.linear.weight
        self.attention = nn.Parameter(torch.ones(2))
        self.register_buffer('attention_mask', torch.ones(2, 2, dtype=torch.bool))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({'backbone': Backbone(), 'head': nn.Linear(6, 2)})


def test_masks_cover_each_2d_and_4d_parameter_of_the_target_once(model):
    for words, names in (
        ((), ['backbone.conv.weight', 'backbone.linear.weight']),
        ((None,), ['backbone.conv.weight', 'backbone.linear.weight', 'head.weight']),
        ((('head', 'backbone.conv'),), ['head.weight', 'backbone.conv.weight']),
        (('backbone', ('linear',)), ['backbone.conv.weight']),
        (('backbone', ('conv.weight',)), ['backbone.linear.weight']),
    ):
        assert [entry.name for entry in find_parameters(model, *words)] == names
    with pytest.raises(ValueError, match=r"no submodule 'neck'.*backbone, head"):
        find_parameters(model, 'neck')
    with pytest.raises(ValueError, match='nothing to make sparse'):
        find_parameters(model, 'backbone.norm')


def test_masks_are_where_their_weights_are(model):
    parameters = find_parameters(model.to('meta'))
    attach_masks(parameters)
    assert {entry.mask.device.type for entry in parameters} == {'meta'}


def test_masks_travel_with_state_dict_copy_and_dtype(model):
    draw_masks(model)
    restored = nn.ModuleDict({'backbone': Backbone(), 'head': nn.Linear(6, 2)})
    attach_masks(find_parameters(restored))
    restored.load_state_dict(model.state_dict())  # strict
    twin = copy.deepcopy(model).half()
    attach_masks(find_parameters(model))  # again, which keeps them
    for entry, other, half in zip(*map(find_parameters, (model, restored, twin)), strict=True):
        assert torch.equal(entry.mask, other.mask)
        assert torch.equal(entry.mask, half.mask)
        assert half.mask.dtype == torch.bool
        assert half.mask.data_ptr() != entry.mask.data_ptr()


def test_folded_state_dict_loads_strictly_into_a_model_without_masks(model):
    draw_masks(model)
    state = model.state_dict()
    assert mask_keys(state) == {
        'backbone.conv.weight_mask': 'backbone.conv.weight',
        'backbone.linear.weight_mask': 'backbone.linear.weight',
    }
    before = {key: value.clone() for key, value in state.items()}
    folded = fold_masks(state)
    assert all(torch.equal(value, state[key]) for key, value in before.items()), 'the given one is not changed'
    # The shared weight is in the state dict twice, under a name without a mask too.
    plain = nn.ModuleDict({'backbone': Backbone(), 'head': nn.Linear(6, 2)})
    plain.load_state_dict(folded | {'backbone.shared.weight': folded['backbone.linear.weight']})
    apply_masks(find_parameters(model))
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_what_is_no_mask_and_facts_of_the_network_stay():
    weight = torch.ones(2, 3)
    for other, is_mask in (
        (torch.ones(2, 3), False),
        (torch.ones(3, 2, dtype=torch.bool), False),
        (torch.ones(2, dtype=torch.bool), False),
        (torch.ones(2, 2, dtype=torch.bool), False),
        (torch.ones(2, 1, dtype=torch.bool), True),
    ):
        state = {'a': weight, 'a_mask': other, 'b_mask': torch.ones(2, dtype=torch.bool)}
        assert mask_keys(state) == ({'a_mask': 'a'} if is_mask else {})
        assert fold_masks(state).keys() == state.keys() - ({'a_mask'} if is_mask else set())
    network = PeLK(depths=(1,), channels=(8,), kernel_sizes=(9,))
    draw_masks(nn.ModuleDict(dict(backbone=network)))
    assert facts_of(fold_masks(network.state_dict())) == facts_of(network.state_dict()) != {}


def test_removed_masks_are_in_the_weights(model):
    draw_masks(model)
    expected = fold_masks(model.state_dict())
    remove_masks(model)
    assert 'backbone.attention_mask' in model.state_dict()
    assert expected.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected['backbone.linear.weight' if 'shared' in key else key]), key


def test_densities_of_model_and_state_dict_agree(model):
    draw_masks(model)
    layers = layer_densities(find_parameters(model))
    assert layers == state_dict_densities(model.state_dict())
    active = sum(int(entry.mask.sum()) for entry in find_parameters(model))
    assert overall_density(layers) == active / (4 * 3 * 9 + 6 * 4)


def test_table_has_a_row_for_each_layer_and_the_sum(model):
    layers = layer_densities(draw_masks(model))
    header, *rows, last = density_table(layers, grown={'backbone.conv.weight': 5}).splitlines()
    assert header.split() == ['parameter', 'shape', 'weights', 'active', 'density', 'dropped,', 'grown']
    assert [row.split()[0] for row in rows] == ['backbone.conv.weight', 'backbone.linear.weight']
    assert rows[0].split()[1:] == ['4x3x3x3', '108', str(layers[0].active), f'{layers[0].density:.4f}', '5']
    assert rows[1].split()[-1] == '0', 'nothing grown'
    assert last.split()[:2] + last.split()[3:] == ['all', '132', f'{overall_density(layers):.4f}', '5']
