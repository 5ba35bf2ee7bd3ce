"""PeLK with fewer hidden units: as configured, as in its pretrained weights, and as in a checkpoint that it loads."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mmpelk.models import PeLK
from mmpelk.models import hidden_units as module
from mmpelk.models.deploy import deploy_state_dict
from mmpelk.models.hidden_units import find_hidden_units, shrink_hidden_units

NANO = dict(depths=(1, 2), channels=(8, 12), kernel_sizes=(9, 7))
WIDTHS = [[5], [48, 7]]


def sparse(inactive: bool = True) -> PeLK:
    """A network with layer scales of 1 and random norms, most units of two of its blocks inactive."""
    torch.manual_seed(0)
    model = PeLK(NANO, layer_scale_init_value=1.0, out_indices=(0, 1)).eval()
    for name, value in model.state_dict().items():
        if 'norm' in name and value.dim() == 1:
            value.uniform_(0.5, 1.5)
    for units, width in zip(find_hidden_units(model), [5, 48, 7] if inactive else [], strict=False):
        columns = torch.randperm(units.count)[width:]
        units.second.weight.data[:, columns] = 0
    return model


def widths(model: nn.Module) -> list[int]:
    return [units.count for units in find_hidden_units(model)]


@pytest.fixture(scope='module')
def shrunk() -> dict[str, torch.Tensor]:
    state, counts = shrink_hidden_units(sparse().state_dict())
    assert counts == {'stages.0.0': 5, 'stages.1.1': 7}
    return state


@pytest.fixture
def file(shrunk, tmp_path) -> Path:
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in shrunk.items()}), tmp_path / 'shrunk.pth')
    return tmp_path / 'shrunk.pth'


def pretrained(file: Path) -> dict[str, str]:
    return dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')


def test_units_of_convolutions():
    block = nn.ModuleDict(dict(fc1=nn.Conv2d(4, 12, 1), fc2=nn.Conv2d(12, 4, 1)))
    state = {'fc1.weight': torch.ones(7, 4, 1, 1), 'fc1.bias': torch.ones(7), 'fc2.weight': torch.ones(4, 7, 1, 1)}
    module.fit_all_hidden_units(block, state)
    assert (block['fc1'].out_channels, block['fc2'].in_channels) == (7, 7)
    assert block['fc2'](block['fc1'](torch.rand(1, 4, 3, 3))).shape == (1, 4, 3, 3)


@pytest.mark.parametrize('has_bias', [False, True])
def test_units_with_and_without_biases(has_bias):
    block = nn.ModuleDict(dict(fc1=nn.Linear(4, 12, bias=has_bias), fc2=nn.Linear(12, 5, bias=False)))
    state = {'fc1.weight': torch.ones(7, 4), 'fc2.weight': torch.ones(5, 7)}
    module.fit_all_hidden_units(block, state)
    assert widths(block) == [12 if has_bias else 7], 'a bias is missing'


def test_units_of_another_network_change_nothing(shrunk):
    model = PeLK(NANO | dict(channels=(10, 12)), out_indices=(0, 1))
    before = widths(model)
    with pytest.raises(RuntimeError, match='size mismatch'):
        model.load_state_dict(shrunk)
    assert widths(model)[0] == before[0] == 40, 'of the stage of another width'


@pytest.mark.parametrize('given', [None, WIDTHS], ids=['full', 'narrow'])
def test_a_shrunk_network_computes_the_same(shrunk, given):
    model = PeLK(NANO, layer_scale_init_value=1.0, out_indices=(0, 1), hidden_channels=given).eval()
    model.load_state_dict(shrunk)  # strictly
    assert widths(model) == [5, 48, 7]
    images = torch.randn(2, 3, 40, 36)
    for found, expected in zip(model(images), sparse()(images), strict=True):
        # Float32 sums with fewer zeros in them.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('given', [None, 'pretrained'])
def test_a_backbone_starts_from_a_shrunk_file(file, shrunk, given):
    model = PeLK(NANO, hidden_channels=given, init_cfg=pretrained(file))
    assert widths(model) == ([5, 48, 7] if given else [32, 48, 48])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.init_weights()
    assert widths(model) == [5, 48, 7]
    model(torch.randn(2, 3, 40, 36))[0].sum().backward()
    assert {id(p) for group in optimizer.param_groups for p in group['params']} == {id(p) for p in model.parameters()}
    optimizer.step()
    assert not torch.equal(model.stages[0][0].pointwise_conv1.weight, shrunk['stages.0.0.pointwise_conv1.weight'])


def test_of_several_files_the_last_counts(file, tmp_path):
    torch.save(PeLK(NANO).state_dict(), tmp_path / 'whole.pth')
    whole = dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth'))
    for given, found in (([whole, pretrained(file)], [5, 48, 7]), ([pretrained(file), whole], [32, 48, 48])):
        model = PeLK(NANO, hidden_channels='pretrained', init_cfg=given)
        assert widths(model) == found
        model.init_weights()
        assert widths(model) == found


def test_a_part_of_a_shrunk_block_leaves_the_block_as_it_is(shrunk):
    model = PeLK(NANO)
    part = {name: value for name, value in shrunk.items() if 'pointwise_conv' in name and name.endswith('weight')}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match='size mismatch'):
        model.load_state_dict(part, strict=False)
    biases = [name for name in before if name.endswith('pointwise_conv1.bias')]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in biases)


def test_widths_that_do_not_fit_are_explained(file, tmp_path):
    assert widths(PeLK(NANO, hidden_channels='pretrained')) == [32, 48, 48], 'testing needs no weights'
    with pytest.raises(FileNotFoundError, match=r'init_cfg\.checkpoint=PATH'):
        PeLK(NANO, hidden_channels='pretrained', init_cfg=pretrained(tmp_path / 'none.pth'))
    for given in ('pretraind', [5, 7], [[5], [7]], [[5], [0, 7]]):
        with pytest.raises(ValueError, match='hidden_channels'):
            PeLK(NANO, hidden_channels=given)
    with pytest.raises(ValueError, match='does not fit this backbone'):
        PeLK(NANO | dict(channels=(8, 16)), init_cfg=pretrained(file)).init_weights()


def test_several_processes_refuse_to_train_what_was_resized(shrunk, monkeypatch):
    monkeypatch.setattr(module, 'get_world_size', lambda: 2)
    model = PeLK(NANO)
    model.load_state_dict(shrunk, strict=False)
    with pytest.raises(ValueError, match=r"hidden_channels='pretrained'"):
        model(torch.randn(1, 3, 32, 32))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    model.eval()(torch.randn(1, 3, 32, 32))
    narrow = PeLK(NANO, hidden_channels=WIDTHS)
    narrow.load_state_dict(shrunk, strict=False)
    narrow(torch.randn(2, 3, 32, 32))


def test_deployed_form_of_a_shrunk_network(shrunk):
    deployed = PeLK(NANO, layer_scale_init_value=1.0, out_indices=(0, 1), deploy=True).eval()
    trained = PeLK(NANO, layer_scale_init_value=1.0, out_indices=(0, 1))
    deployed.load_state_dict(deploy_state_dict(trained, shrunk))
    images = torch.randn(1, 3, 40, 36)
    for found, expected in zip(deployed(images), sparse()(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_network_without_dead_units_is_not_shrunk():
    state = sparse(inactive=False).state_dict()
    state['stages.0.0.pointwise_conv2.weight'][:, 3] *= 1e-30  # nearly
    same, counts = shrink_hidden_units(state)
    assert not counts
    assert all(same[name] is value for name, value in state.items())


def test_a_block_keeps_one_unit_and_those_with_a_norm_keep_all():
    block = nn.ModuleDict(dict(fc1=nn.Linear(4, 6), fc2=nn.Linear(6, 4)))
    nn.init.zeros_(block['fc2'].weight)
    for prefix in ('', 'a.'):
        state = {prefix + name: value for name, value in block.state_dict().items()}
        shrunk, counts = shrink_hidden_units(state)
        assert counts == {prefix.rstrip('.'): 1}
        assert shrunk[f'{prefix}fc1.weight'].shape == (1, 4)
        assert shrink_hidden_units(state | {f'{prefix}grn.gamma': torch.ones(6)})[1] == {}


def test_which_blocks_have_units() -> None:
    linear, conv, second = (nn.Linear(8, 16), nn.Linear(16, 8)), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
    names = ('pointwise_conv1', 'pointwise_conv2', 'norm')
    for layers, keys, found in (
        ((*linear, nn.LayerNorm(8)), names, True),
        ((*linear, nn.LayerNorm(16)), names, False),  # over the units
        ((*linear, nn.Linear(8, 16, bias=False)), names, True),  # of as many outputs
        ((linear[0], nn.Linear(15, 8)), names, False),
        # As many units as channels: a norm of that size is taken for one over the channels.
        ((nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)), names, True),
        ((conv, second, nn.BatchNorm2d(8)), names, True),
        ((nn.Conv2d(8, 16, 1, stride=2), second), names, False),
        ((nn.Conv2d(8, 16, 1, groups=2), second), names, False),
        ((nn.Conv2d(8, 16, 3, padding=1), second), names, False),
        ((nn.Linear(8, 16, bias=False), linear[1]), ('fc1', 'fc2'), True),
        ((*linear, nn.Dropout()), ('linear1', 'linear2', 'dropout'), True),  # torch's names
        (linear, ('a', 'b'), False),
    ):
        block = nn.ModuleDict(dict(zip(keys, layers, strict=False)))
        assert widths(block) == ([len(layers[0].weight)] if found else []), layers
        # At two places it is found once, and not where a part of it is left out.
        twice = nn.ModuleDict({'a': block, 'b': nn.Sequential(block)})
        assert [units.block_name for units in find_hidden_units(twice, ['a', 'b'])] == ['a'] * found
        twice['c'] = copy.deepcopy(block)
        assert [units.block_name for units in find_hidden_units(twice, ['b', 'c'])] == ['b.0', 'c'] * found
        assert not find_hidden_units(block, exclude=[f'{keys[1]}.weight'])
