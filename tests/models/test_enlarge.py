"""Enlarged networks: the same function, the same weights to load, gradients in the periphery, and what is refused."""

import copy
import io
import json
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmengine.model import BaseModule, ExponentialMovingAverage, MMDistributedDataParallel
from mmengine.registry import MODELS
from mmengine.runner import load_state_dict as mmengine_load_state_dict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import mmpelk
from mmpelk.export import make_plain
from mmpelk.models import EnlargedConv2d, PeripheralConv2d
from mmpelk.models.enlarge.report import Change, Enlargement
from mmpelk.ops.executed import executed_operations
from mmpelk.ops.sharing_grid import sharing_grid
from tests.sparsity.tiny import draw_masks

timm = pytest.importorskip('timm')

#: One of each family of timm that has depthwise convolutions of stride 1, small; and networks of torchvision.
FAMILIES = [
    'convnext_atto', 'convnextv2_atto', 'convnext_zepto_rms', 'tf_efficientnet_lite0', 'efficientnet_b0',
    'efficientnetv2_rw_t', 'mobilenetv2_050', 'mobilenetv3_small_050', 'mobilenetv4_conv_small_050', 'mobileone_s0',
    'repvit_m0_9', 'fastvit_t8', 'edgenext_xx_small', 'inception_next_atto', 'caformer_s18', 'convformer_s18',
    'coatnet_nano_rw_224', 'maxvit_rmlp_pico_rw_256', 'hgnetv2_b0', 'rexnet_100', 'tinynet_e', 'mnasnet_small',
    'fbnetc_100', 'ghostnet_050', 'starnet_s1', 'lcnet_035', 'mixnet_s', 'xception41', 'efficientvit_b0',
    'swiftformer_xs', 'mambaout_femto', 'hardcorenas_a', 'semnasnet_050', 'spnasnet_100', 'shvit_s1',
    'torchvision:mobilenet_v2', 'torchvision:convnext_tiny', 'torchvision:mnasnet0_5', 'torchvision:shufflenet_v2_x0_5',
    'torchvision:efficientnet_b0',
]  # fmt: skip
SIDES = {'coatnet_nano_rw_224': 224, 'maxvit_rmlp_pico_rw_256': 256, 'xception41': 96}  # of images; else 64


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    owner, _, own_name = name.rpartition(':')
    if owner:
        network = pytest.importorskip('torchvision.models').get_model(own_name, num_classes=7)
    else:
        network = timm.create_model(name, num_classes=7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def small() -> nn.Sequential:
    """Of every kind of depthwise convolution one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, (1, 11), padding='same', groups=8, bias=False),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode='reflect'),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.Conv2d(8, 16, 3, groups=8, padding=1),
    )


def pair() -> nn.Sequential:
    """A small network with one depthwise convolution."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8))


class Plain(BaseModule):
    """Layers, which its initialisation leaves to ``init_cfg``."""

    def __init__(self, init_cfg: dict | None = None, layers: nn.Module | None = None) -> None:
        super().__init__(init_cfg)
        self.layers = layers or pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OwnLoop(Plain):
    """As some backbones of the toolboxes: it looks for convolutions itself."""

    def init_weights(self) -> None:
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=module.kernel_size[0] / module.out_channels)


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_families_compute_the_same(name: str) -> None:
    """In float32, to 1e-5; where a network makes more of rounding, as far off as the original is."""
    network, x = build(name).eval(), torch.rand(2, 3, *[SIDES.get(name, 64)] * 2)
    larger = copy.deepcopy(network)
    assert mmpelk.enlarge(larger, 31).changes
    with torch.no_grad():
        want, got = network(x), larger(x)
        if (got - want).norm() > 1e-5 * want.norm():
            exact = copy.deepcopy(network).double()(x.double())
            assert (got - want).norm() <= 2 * (want - exact).norm()
    larger.load_state_dict(network.state_dict())  # the public weights of the original


def test_changes_and_reasons() -> None:
    network, x = small(), torch.rand(2, 3, 20, 24)
    want = network(x)
    found = mmpelk.enlarge(network, 15)
    torch.testing.assert_close(network(x), want)
    assert [(change.name, change.before, change.after) for change in found.changes] == [
        ('1', (3, 3), 15),
        ('2', (1, 11), 15),
        ('6', (3, 3), 15),
    ]
    assert found.changes[0].parameters == (8 * 9, 8 * len(network[1].sharing_grid) ** 2)
    assert found.left == {
        '3': 'its stride is (2, 2)',
        '4': 'its dilation is (2, 2)',
        '5': 'its padding mode is reflect',
        '7': 'it has 2 outputs of each channel',
    }
    lines = str(found).splitlines()
    assert lines[1].split('  ')[0] == '1'
    assert lines[-1] == '7 is left as it is: it has 2 outputs of each channel'


def test_reasons_of_paddings_and_sizes() -> None:
    options: list[dict[str, Any]] = [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, padding='valid'),
        dict(kernel_size=1, padding='valid'),
        dict(kernel_size=3, padding=(1, 0)),
        dict(kernel_size=(3, 4), padding=(1, 2)),
        dict(kernel_size=15, padding=7),
        *(dict(kernel_size=3, padding=1, stride=stride) for stride in ((1, 2), (2, 1))),
        *(dict(kernel_size=3, padding=1, dilation=dilation) for dilation in ((1, 2), (2, 1))),
        *(dict(kernel_size=3, padding=1, padding_mode=mode) for mode in ('reflect', 'replicate', 'circular')),
        *(dict(kernel_size=(3, 5), padding=padding) for padding in ((1, 1), (1, 2))),
    ]
    network = nn.Sequential(*(nn.Conv2d(8, 8, groups=8, **each) for each in options))
    for center_size, message in (
        (15, 'a centre of 15 leaves 15 no periphery'),
        (1, '3 x 3 does not fit the centre of 1'),
    ):
        with pytest.raises(ValueError, match=message):
            mmpelk.enlarge(network, 15, center_size, include='0')
    found = mmpelk.enlarge(network, 15)
    assert [change.name for change in found.changes] == ['0', '2', '14']
    assert found.left == {
        '1': 'its padding of valid changes the size of the map',
        '3': 'its padding of (1, 0) changes the size of the map',
        '4': 'its kernel of 3 x 4 is even',
        '5': 'its kernel of 15 x 15 is not smaller than 15',
        '6': 'its stride is (1, 2)',
        '7': 'its stride is (2, 1)',
        '8': 'its dilation is (1, 2)',
        '9': 'its dilation is (2, 1)',
        '10': 'its padding mode is reflect',
        '11': 'its padding mode is replicate',
        '12': 'its padding mode is circular',
        '13': 'its padding of (1, 1) changes the size of the map',
    }


def test_gradients_reach_the_periphery_and_training_lowers_the_loss() -> None:
    """Also while the graph of an earlier call exists."""
    network, x, target = pair(), torch.rand(4, 3, 32, 32), torch.rand(4, 8, 32, 32)
    losses, before = [], network(x)
    mmpelk.enlarge(network, 31)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    torch.testing.assert_close(network(x), before)
    for _ in range(20):
        loss = (network(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert network[1].weight.grad[:, :, 0, 0].abs().min() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_sizes_by_name_and_function_and_patterns() -> None:
    def sizes(**options: object) -> dict[str, int]:
        return {change.name: change.after for change in mmpelk.enlarge(small(), **options).changes}

    assert sizes() == {'1': 15, '2': 15, '6': 15}
    assert sizes(kernel_size={'1': 51, '[2-5]': 13}) == {'1': 51, '2': 13}
    assert sizes(kernel_size=lambda name, module: 13 if module.bias is None else None) == {'2': 13}
    assert sizes(kernel_size=13, exclude='2') == {'1': 13, '6': 13}
    assert sizes(kernel_size=13, include=['6', '3']) == {'6': 13}
    assert sizes(kernel_size=np.int64(13), include='2') == {'2': 13}
    assert type(mmpelk.enlarge(network := small(), np.int64(13)).changes[0].after) is int
    assert {type(each) for each in (network[1].kernel_size, *network[1].sharing_grid)} == {int}  # as files have them
    assert sizes(kernel_size={np.int64(9): 13}, include='2', input_size=(9, 9)) == {'2': 13}
    network = small()
    mmpelk.enlarge(network, 31)
    changes = mmpelk.shrink(network, {'1': 15, '*': 21}, exclude='2').changes
    assert {change.name: change.after for change in changes} == {'1': 15, '6': 21}
    assert [change.name for change in mmpelk.shrink(network, 15, include=['[26]'], exclude=['6']).changes] == ['2']
    with pytest.raises(ValueError, match='shrink takes a number, sizes by patterns of names, or a function'):
        mmpelk.shrink(network, {9: 13})


def test_backend_of_the_larger_kernels() -> None:
    network = small()
    assert {change.backend for change in mmpelk.enlarge(network, 15, include='1').changes} == {None}
    for size, backend, expected in ((17, 'fft', 'fft'), (31, None, 'fft'), (51, 'dense', 'dense')):
        changes = mmpelk.enlarge(network, size, center_size=15, include='1', backend=backend).changes
        assert [change.backend for change in changes] == [network[1].backend] == [expected]
    part = network[1:2]  # the first convolution of which is a peripheral one
    (change,) = mmpelk.enlarge(part, 71, backend='fft', input_size=(9, 12)).changes
    assert change.maps == ((9, 12),)
    assert change.executed == executed_operations([('fft', (1, 8, 9, 12), part[0].sharing_grid)])


def test_the_centre_can_be_larger_than_the_kernel() -> None:
    network, x = small(), torch.rand(1, 3, 16, 16)
    want = network(x)
    mmpelk.enlarge(network, 31, center_size=13)
    torch.testing.assert_close(network(x), want)
    assert network[1].sharing_grid.count(1) == network[1].center_size == 13
    mmpelk.enlarge(network, 51)  # which keeps it
    assert network[1].sharing_grid.count(1) == 13
    torch.testing.assert_close(network(x), want)
    for center in (1, 31):
        with pytest.raises(ValueError, match='of at least 3 and below kernel_size 31'):
            EnlargedConv2d(8, 31, (3, 3), center)


def through_a_file(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """And its own state once more."""
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    network.load_state_dict(torch.load(file))
    network.load_state_dict(copy.deepcopy(network).state_dict())
    return network


def through_ddp(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    wrapped = DistributedDataParallel(network)
    mmengine_load_state_dict(wrapped.module, state, strict=True)
    wrapped(torch.rand(1, 3, 9, 9)).sum().backward()
    return wrapped


def through_ema(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    average = ExponentialMovingAverage(network)
    average.load_state_dict({'steps': torch.tensor(0), **{f'module.{name}': value for name, value in state.items()}})
    return average.module


def through_compilation(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    compiled = torch.compile(network, backend='eager', fullgraph=True)
    compiled(torch.rand(1, 3, 9, 9))
    compiled.load_state_dict({f'_orig_mod.{name}': value for name, value in state.items()})
    return compiled


def through_masks(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    for entry in draw_masks(network, None):
        entry.mask.fill_(True)
    network.load_state_dict(state, strict=False)
    return network


def through_assignment(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    network.to('meta').load_state_dict(state, assign=True)
    return network


WAYS = [through_a_file, through_ddp, through_ema, through_compilation, through_masks, through_assignment]


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.usefixtures('one_process')
def test_weights_of_the_original_load(way: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('mmpelk.models.enlarge.convolution.print_log', lambda message, _: said.append(message))
    original, network, x = small()[:3], small()[:3], torch.rand(2, 3, 20, 24)
    mmpelk.enlarge(network, 15)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    loaded = way(network, original.state_dict())
    torch.testing.assert_close(loaded(x), original(x))
    (message,) = said  # of two kernels
    assert '1.weight of 3 x 3 is the centre of 15 x 15 now' in message


@pytest.mark.parametrize('way', ['load_state_dict', 'json', 'init_cfg', 'init_cfg in its place'])
@pytest.mark.parametrize(
    ('source', 'own', 'accepted'),
    [
        ((3, 31), (3, 31), True),
        ((3, None), (3, 31), True),
        ((3, 29), (3, 31), False),  # as many rings
        ((9, None), (3, 31), False),  # a dense kernel of as many numbers
        ((3, 13), (7, 31), False),  # as many rings as the original's kernel has rows
        ((7, None), (7, 31), True),
    ],
)
def test_kernels_of_another_size_with_as_many_numbers_are_refused(
    way: str, source: tuple[int, int | None], own: tuple[int, int], accepted: bool, tmp_path: Path
) -> None:
    """By what torch keeps in the file, also where mmengine loads the tensors under a prefix."""

    def network_of(dense: int, size: int | None) -> Plain:
        network = OwnLoop()
        network.layers[1] = nn.Conv2d(8, 8, dense, padding=dense // 2, groups=8)
        if size:
            mmpelk.enlarge(network, size)
        return network

    given, network, path = network_of(*source), network_of(*own), tmp_path / 'weights.pth'
    kernels = [len(each.layers[1].weight[0, 0]) for each in (given, network)]
    assert accepted or kernels[0] in (kernels[1], own[0])  # torch would not refuse it
    for parameter in given.parameters():
        nn.init.normal_(parameter)
    state = nn.ModuleDict({'backbone': given}).state_dict()
    torch.save(state if way == 'init_cfg in its place' else dict(state_dict=state), path)

    def load() -> nn.Module:
        if way == 'load_state_dict':
            network.load_state_dict(given.state_dict())
            return network
        if way == 'json':  # which has lists in the place of tuples, as in safetensors
            state = given.state_dict()
            state._metadata = json.loads(json.dumps(state._metadata))
            network.load_state_dict(state)
            return network
        of_place = way == 'init_cfg in its place'
        init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.' if of_place else 'backbone')
        inner = dict(type=lambda init_cfg: Plain(init_cfg, network_of(own[0], None).layers), init_cfg=None)
        config: dict[str, Any] = dict(type='mmpelk.Enlarged', backbone=inner, kernel_size=own[1])
        (config if of_place else inner).update(init_cfg=init_cfg)
        enlarged = MODELS.build(config)
        enlarged.init_weights()
        return enlarged

    if accepted:
        x = torch.rand(1, 3, 20, 20)
        torch.testing.assert_close(load()(x), given(x), rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(ValueError, match=r'layers\.1 were trained with a kernel of'):
        load()


def test_every_kernel_of_another_size_is_refused_and_not_the_first_alone() -> None:
    given, network = (
        nn.Sequential(*(nn.Conv2d(4, 4, size, padding=size // 2, groups=4) for size in sizes))
        for sizes in ((3, 9), (3, 3))
    )
    mmpelk.enlarge(given, {'0': 13}, include='0')
    mmpelk.enlarge(network, {'0': 13, '1': 31})  # of 9 x 9 numbers
    with pytest.raises(ValueError, match=r'1 were trained with a kernel of'):
        network.load_state_dict(given.state_dict())


def test_way_back() -> None:
    network, x = small(), torch.rand(2, 3, 20, 24)
    mmpelk.enlarge(network, 15)
    nn.init.normal_(network[1].weight)
    want = network(x)
    assert mmpelk.dense(network) == ['1', '2', '6']
    assert not any(isinstance(module, PeripheralConv2d) for module in network.modules())
    assert network[1].kernel_size == (15, 15)
    torch.testing.assert_close(network(x), want)
    assert mmpelk.dense(network) == []
    network.append(PeripheralConv2d(8, 13))
    with pytest.raises(ValueError, match=r'8 is a peripheral convolution .* call mmpelk\.export\.make_plain'):
        mmpelk.dense(network)


def test_grows_and_shrinks_where_that_is_exact() -> None:
    network, x = pair().double(), torch.rand(1, 3, 20, 24, dtype=torch.float64)
    mmpelk.enlarge(network, 31)
    (change,) = mmpelk.enlarge(network, 51).changes  # the kernel is zero outside of its centre
    assert (change.before, change.after) == ((31, 31), 51)
    (change,) = mmpelk.shrink(network, 15, include='1').changes  # rings of 4, 2, 1, 1, 1, 2, 4
    assert (change.before, change.parameters) == ((51, 51), (8 * 11**2, 8 * 7**2))
    torch.testing.assert_close(network(x), pair().double()(x))

    nn.init.normal_(network[1].weight)  # now it is not
    want = network(x)
    for size, rings in ((31, 9), (51, 11)):  # a ring of 8 outside of 15, then one of 10
        (change,) = mmpelk.enlarge(network, size).changes
        assert change.parameters == (8 * (rings - 2) ** 2, 8 * rings**2)
        torch.testing.assert_close(network(x), want)
    assert mmpelk.shrink(network, 31).changes[0].after == 31  # still zero outside of 15
    for change_size, size, reason in (
        (mmpelk.enlarge, 31, '1: its kernel of 31 x 31 is not smaller than 31'),
        (mmpelk.shrink, 31, '1: its kernel of 31 x 31 is not larger than 31'),
        (mmpelk.shrink, 13, '1: its kernel is not zero outside of 13 x 13'),
        (mmpelk.shrink, 3, '1: a centre of 3 does not fit between 3 and 3'),
    ):
        with pytest.raises(ValueError, match=reason):
            change_size(network, size)
    with pytest.raises(ValueError, match='2: its kernel of 1 x 11 is not smaller than 3'):
        mmpelk.enlarge(small(), 3)


def test_a_ring_that_would_be_cut_is_refused_with_a_centre_that_holds_it() -> None:
    network, x = pair().double(), torch.rand(1, 3, 20, 24, dtype=torch.float64)
    mmpelk.enlarge(network, 13)  # rings of 3, 2, 1, 1, 1, 2, 3
    nn.init.normal_(network[1].weight)
    want = network(x)
    with pytest.raises(ValueError, match='1: the rings of 51 cut through the rings of its kernel; center_size=9 does'):
        mmpelk.enlarge(network, 51)
    mmpelk.enlarge(network, 51, center_size=9)
    torch.testing.assert_close(network(x), want)
    assert network[1].center_size == 9
    with pytest.raises(ValueError, match='1: the rings of 31 cut through the rings of its kernel'):
        mmpelk.shrink(network, 31, center_size=7)
    torch.testing.assert_close(network(x), want)
    network = pair()
    mmpelk.enlarge(network, 51)
    mmpelk.shrink(network, 31, center_size=7)
    assert network[1].sharing_grid == sharing_grid(31, 7)
    mmpelk.enlarge(network, 71)  # which keeps the centre
    assert network[1].sharing_grid == sharing_grid(71, 7)


def test_sizes_by_map_and_operations() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(6))
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.convs[5](self.convs[0](self.norm(x)))
            x = self.convs[1](self.convs[5](nn.functional.max_pool2d(x, 2)))
            return self.convs[3](self.convs[2](x)) + self.convs[3](x)[..., :1] + self.convs[2](x[..., :4])[..., :1]

    network = Pyramid().train()
    network.convs[4].eval()
    state = copy.deepcopy(network.state_dict())
    found = mmpelk.enlarge(network, {16: 31, 8: 13}, input_size=(16, 16))
    assert {change.name: (change.after, change.maps) for change in found.changes} == {
        'convs.0': (31, ((16, 16),)),
        'convs.1': (13, ((8, 8),)),
        'convs.3': (13, ((8, 8), (8, 8))),
    }
    assert found.left == {
        'convs.2': 'its maps are 8 x 4 and 8 x 8, and not of one side: give its size by a pattern of names',
        'convs.4': 'the network does not call it',
        'convs.5': 'its maps are 8 x 8 and 16 x 16, and not of one side: give its size by a pattern of names',
    }
    assert found.changes[2].flops == (2 * 4 * 64 * 3**2, 2 * 4 * 64 * 13**2)
    assert found.changes[0].executed == executed_operations([('dense', (1, 4, 16, 16), network.convs[0].sharing_grid)])
    assert 'FLOPs' in str(found)
    assert network.training
    assert network.norm.training
    norm = {name: tensor for name, tensor in state.items() if name.startswith('norm.')}
    torch.testing.assert_close({name: network.state_dict()[name] for name in norm}, norm, rtol=0, atol=0)
    assert not network.convs[4].training
    assert not any(module._forward_pre_hooks for module in network.modules())
    with pytest.raises(ValueError, match=r'2: no kernel size is given for maps of 9 x 9'):
        mmpelk.enlarge(small()[:3], {8: 31}, include='2', input_size=(9, 9))


class Doubled(nn.Conv2d):
    """Another convolution under the same ``forward``."""

    def _conv_forward(self, *args: Any) -> Tensor:
        return 2 * super()._conv_forward(*args)


class Sharded(nn.Parameter):
    """As of libraries that shard or quantise."""


def pair_of_another_weight() -> nn.Sequential:
    network = pair()
    network[1].weight = Sharded(network[1].weight.detach())
    return network


def parametrised_bias() -> nn.Sequential:
    network = pair()
    parametrize.register_parametrization(network[1], 'bias', nn.Identity())
    return network


REFUSED = {
    'no depthwise convolution': (nn.Sequential(nn.Conv2d(3, 8, 3)), dict(), 'it has none among the names'),
    **{
        f'a size of {size}': (small(), dict(kernel_size=size), f'an odd positive integer, got {size} for 1')
        for size in (30, 0, -3)
    },
    'a convolution of one channel': (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)), dict(), 'it has none among'),
    'patterns for no convolution': (nn.Sequential(nn.Linear(3, 3)), dict(include='1'), 'it has none among'),
    'even kernels': (nn.Sequential(nn.Conv2d(8, 8, (3, 4), groups=8)), dict(), 'its kernel of 3 x 4 is even'),
    'a convolution step of its own': (
        nn.Sequential(Doubled(8, 8, 3, padding=1, groups=8)),
        dict(),
        'its class Doubled convolves in a way of its own',
    ),
    'a convolution of standardised weights': (
        nn.Sequential(ConvWS2d(8, 8, 3, padding=1, groups=8)),
        dict(),
        'its class ConvWS2d convolves in a way of its own',
    ),
    'a weight of another class': (pair_of_another_weight(), dict(), 'sharded or quantised'),
    'a map that is not square': (
        pair(),
        dict(kernel_size={9: 31}, input_size=(9, 12)),
        'its maps are 9 x 12, and not of one side',
    ),
    'a centre below the longer side': (small()[2:3], dict(center_size=5), '1 x 11 does not fit the centre of 5'),
    'a parametrised bias': (parametrised_bias(), dict(), 'its weight is parametrised'),
    'no size': (small(), dict(kernel_size={'[3]': 31}), '1: no kernel size is given for it'),
    'patterns that fit nothing': (
        small(),
        dict(kernel_size={'9': 31, '*': 13}, include=['1', '1.'], exclude='2.*'),
        "no name of a convolution fits '1.', '2.*', '9' of .*; the names are 1, 2, 3, 4, and 3 more",
    ),
    'a small centre': (small()[1:2], dict(center_size=1), '3 x 3 does not fit the centre of 1'),
    'a centre without periphery': (small()[1:2], dict(kernel_size=13, center_size=13), 'leaves 13 no periphery'),
    'weight norm': (
        nn.Sequential(parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1, groups=8))),
        dict(),
        'its weight is parametrised',
    ),
    'a size by map without an image': (small(), dict(kernel_size={8: 31}), 'needs the size of an image'),
    'sizes by map and by name': (small(), dict(kernel_size={8: 31, '*': 13}), 'not both'),
    'an image that it does not take': (small()[1:], dict(input_size=(2, 2)), 'does not take an image of .1, 8, 2, 2.'),
    'no convolution and an image': (nn.Sequential(nn.Linear(3, 3)), dict(input_size=(8, 8)), 'it has none among'),
    'an image without columns': (small(), dict(input_size=(8, 0)), 'the height and the width'),
    'no size of an image': (small(), dict(input_size=(8,)), 'the height and the width'),
    'a single convolution': (nn.Conv2d(8, 8, 3, padding=1, groups=8), dict(), 'a single convolution'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_refuses_and_changes_nothing(kind: str) -> None:
    network, options, message = REFUSED[kind]

    def state() -> list[object]:
        return [repr(network), *((module.training, len(module._forward_pre_hooks)) for module in network.modules())]

    before = state()
    with pytest.raises(ValueError, match=message):
        mmpelk.enlarge(network, **options)
    assert state() == before


class FullyShardedDataParallel(nn.Module):
    """Named as torch's, which wants a GPU."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


HOLDERS = {
    'optimizer': (
        lambda network: torch.optim.SGD(network.parameters(), 1e-3),
        'an optimizer, SGD, holds these kernels',
    ),
    'optimizer of biases': (lambda network: torch.optim.SGD([network[1].bias], 1e-3), 'an optimizer, SGD, holds'),
    'optimizer of two groups': (
        lambda network: torch.optim.SGD([dict(params=part.parameters()) for part in network], 1e-3),
        'an optimizer, SGD, holds',
    ),
    **{
        kind.__name__: (kind, f'the {kind.__name__} would not know of the new parameters')
        for kind in (DistributedDataParallel, MMDistributedDataParallel, FullyShardedDataParallel)
    },
}
CHANGES = {
    'enlarge': lambda network, _: mmpelk.enlarge(network, 31),
    'enlarge a part': lambda network, _: mmpelk.enlarge(network[1:], 31),
    'enlarge what holds': lambda network, holder: mmpelk.enlarge(
        nn.Sequential(holder) if isinstance(holder, nn.Module) else network, 31
    ),
    'shrink': lambda network, _: mmpelk.shrink(network, 11),
    'dense': lambda network, holder: mmpelk.dense(holder if isinstance(holder, nn.Module) else network),
}


@pytest.mark.parametrize('kind', HOLDERS)
@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.usefixtures('one_process')
def test_holders_of_the_parameters_are_refused_until_deleted(change: str, kind: str) -> None:
    (hold, message), network = HOLDERS[kind], pair()
    mmpelk.enlarge(network, 13)
    holder = hold(network)
    if isinstance(holder, torch.optim.Optimizer):
        holder.itself = holder  # a cycle, as schedulers make
    before = repr(network)
    with pytest.raises(ValueError, match=message):
        CHANGES[change](network, holder)
    assert repr(network) == before
    del holder
    CHANGES[change](network, None)
    assert repr(network) != before


class Unpadded(nn.Conv2d):
    """As timm's ``Conv2dSame``: pads by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (2, 0, 2, 0)))


def test_classes_with_a_forward_of_their_own_and_hooks_are_left() -> None:
    network = small()
    network.append(Unpadded(8, 8, 3, padding=0, groups=8))
    network.append(Unpadded(8, 8, 3, padding=1, groups=8))
    network[1].register_forward_hook(lambda *_: None)
    left = mmpelk.enlarge(network, 31).left
    assert left['1'].startswith('it has hooks')
    assert left['8'] == 'its padding of (0, 0) changes the size of the map'
    assert left['9'] == 'its class Unpadded convolves in a way of its own'


class Called(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class Stateful(nn.Conv2d):
    def get_extra_state(self) -> int:
        return 1

    def set_extra_state(self, state: int) -> None:
        pass


def nothing(*_: object) -> None:
    pass


LOST = {
    **{
        name: (operator.methodcaller(name, nothing), 'it has hooks of its state dict')
        for name in (
            *('register_state_dict_pre_hook', 'register_state_dict_post_hook'),
            *('register_load_state_dict_pre_hook', 'register_load_state_dict_post_hook'),
        )
    },
    'hook of a gradient': (lambda conv: conv.weight.register_hook(nothing), 'its parameters have hooks'),
    'hook behind a gradient': (
        lambda conv: conv.bias.register_post_accumulate_grad_hook(nothing),
        'its parameters have hooks',
    ),
    'parameter': (lambda conv: setattr(conv, 'scale', nn.Parameter(torch.ones(1))), 'modules beside .* bias: scale'),
    'buffer': (lambda conv: conv.register_buffer('weight_mask', torch.ones(1)), 'modules beside .* bias: weight_mask'),
    'a second name of the weight': (
        lambda conv: conv.register_parameter('alias', conv.weight),
        'modules beside .* bias: alias|its weight belongs to another',
    ),
    'submodule': (lambda conv: conv.add_module('norm', nn.Identity()), 'modules beside weight and bias: norm'),
    'class': (lambda conv: setattr(conv, '__class__', Called), 'its class Called is called in a way of its own'),
    'class of a state': (lambda conv: setattr(conv, '__class__', Stateful), 'its class Stateful is called in a way'),
}


@pytest.mark.parametrize('kind', LOST)
def test_what_a_new_module_would_lose_is_left(kind: str) -> None:
    (hang, reason), network = LOST[kind], pair()
    hang(network[1])
    with pytest.raises(ValueError, match=reason):
        mmpelk.enlarge(network, 31)
    if not kind.startswith('class'):
        network = pair()
        mmpelk.enlarge(network, 13)
        hang(network[1])
        with pytest.raises(ValueError, match=f'{reason}.*, which dense would drop'):
            mmpelk.dense(network)
        with pytest.raises(ValueError, match=reason):
            mmpelk.shrink(network, 11)


class Keeper(nn.Module):
    """Holds its convolution at a second place: in a list, by its forward or by its weight."""

    def __init__(self, keep: Callable[[nn.Conv2d], object]) -> None:
        super().__init__()
        self.conv = pair()[1]
        self.kept = keep(self.conv)


SHARED = {
    'one name of two': (lambda conv: nn.Sequential(conv, conv), dict(include='0'), 'has another name'),
    'two sizes': (lambda conv: nn.Sequential(conv, conv), dict(kernel_size={'0': 31, '1': 51}), 'has another name'),
    'a bias': (lambda conv: nn.Sequential(conv, shared_bias(conv)), dict(), 'its bias belongs to another module, too'),
    'a list': (lambda _: Keeper(lambda conv: [conv]), dict(), 'the Keeper keeps it beside its submodules'),
    'a tuple': (lambda _: Keeper(lambda conv: (conv,)), dict(), 'the Keeper keeps it beside its submodules'),
    'a forward': (lambda _: Keeper(lambda conv: conv.forward), dict(), 'the Keeper keeps it beside its submodules'),
    'a weight': (lambda _: Keeper(lambda conv: {'w': conv.weight}), dict(), 'the Keeper keeps it beside its'),
}


def shared_bias(conv: nn.Conv2d) -> nn.Conv2d:
    other = pair()[1]
    other.bias = conv.bias
    return other


@pytest.mark.parametrize('kind', SHARED)
def test_shared_modules_are_left(kind: str) -> None:
    build_network, options, reason = SHARED[kind]
    network = build_network(pair()[1])
    before = repr(network)
    with pytest.raises(ValueError, match=reason):
        mmpelk.enlarge(network, **{'kernel_size': 31, **options})
    assert repr(network) == before


@pytest.mark.parametrize('padding', [1, 'same'])
def test_networks_outside_that_share_a_convolution_keep_it(padding: int | str) -> None:
    conv, x = nn.Conv2d(4, 4, 3, padding=padding, groups=4), torch.rand(1, 4, 9, 9)
    network, other = nn.Sequential(conv), nn.Sequential(conv, nn.ReLU())
    want, state = other(x), copy.deepcopy(other.state_dict())
    for change in (lambda network: mmpelk.enlarge(network, 13), mmpelk.dense):
        change(network)
        for parameter in network.parameters():
            nn.init.normal_(parameter)
        assert torch.equal(other(x), want)
        assert {name: value.tolist() for name, value in other.state_dict().items()} == {
            name: value.tolist() for name, value in state.items()
        }
        other = nn.Sequential(network[0])
        want, state = other(x), copy.deepcopy(other.state_dict())


def test_shared_modules_stay_shared() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    network = nn.Sequential(conv, nn.MaxPool2d(2), conv)
    found = mmpelk.enlarge(network, 13, input_size=(9, 12))
    assert [(change.name, change.parameters, change.maps) for change in found.changes] == [
        ('0', (4 * 3**2, 4 * 7**2), ((9, 12), (4, 6))),
        ('2', (0, 0), ()),
    ]
    assert 'FLOPs' in str(found)
    assert str(found).splitlines()[-1].split()[1:4] == ['36', '->', '196']
    assert network[0] is network[2]
    mmpelk.dense(network)
    assert network[0] is network[2]
    network = nn.Sequential(conv, nn.ReLU(), conv)
    network.append(nn.Conv2d(4, 4, 13, padding=6, groups=4))
    network[3].weight = network[0].weight
    with pytest.raises(ValueError, match='3: its weight belongs to another module, too'):
        mmpelk.enlarge(network, 31)


def test_operations_that_a_backend_hides_are_no_part_of_a_sum() -> None:
    grid = sharing_grid(13)
    kinds = [Change('a', 8, (3, 5), 13, (15, 49), ((9, 9),), backend, grid) for backend in ('fft', 'triton')]
    known, hidden, total = str(Enlargement(kinds)).splitlines()[1:]
    assert str(Enlargement(kinds[:1] * 2)).endswith(f'{2 * kinds[0].executed:,}')
    assert kinds[1].executed is None
    assert known.endswith(f'{kinds[0].executed:,}')
    flops = [8 * 81 * positions for positions in (3 * 5, 13**2)]
    assert hidden.endswith(f'{flops[0]:,} -> {flops[1]:,}')
    assert total.endswith(f'{2 * flops[0]:,} -> {2 * flops[1]:,}')


def test_meta_device_copies_and_frozen_parameters() -> None:
    with torch.device('meta'):
        network = small()
    mmpelk.enlarge(network, 15)
    assert {value.device.type for value in network.state_dict().values()} == {'meta'}
    with pytest.raises(ValueError, match='or on the meta device'):
        mmpelk.enlarge(network, 31)
    network = small().requires_grad_(False).double().eval()
    for value in network[1].parameters():
        value.mark = 'of a toolbox'
    state = torch.random.get_rng_state()
    for change in (lambda network: mmpelk.enlarge(network, 15), mmpelk.dense):
        change(network)
        assert torch.equal(torch.random.get_rng_state(), state)  # nothing is drawn
        assert not network[1].training
        for value in network[1].parameters():
            assert (value.requires_grad, value.dtype, value.mark) == (False, torch.float64, 'of a toolbox')
        x = torch.ones(1, 3, 16, 16, dtype=torch.float64)
        for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(copied(x), network(x))


def test_under_checkpointing_and_compilation() -> None:
    network, x = small()[:3], torch.rand(1, 3, 16, 16, requires_grad=True)
    mmpelk.enlarge(network, 15)
    want = network(x)
    torch.testing.assert_close(checkpoint(network, x, use_reentrant=False), want)
    torch.testing.assert_close(torch.compile(network, backend='eager', fullgraph=True)(x), want)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_and_channels_last_stay(dtype: torch.dtype) -> None:
    network = pair()[1:].to(dtype, memory_format=torch.channels_last)
    x = torch.rand(1, 8, 20, 24).to(dtype, memory_format=torch.channels_last)
    want = network(x)
    mmpelk.enlarge(network, 31)
    out = network(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize('size', [13, 31])
def test_plain_form_of_a_convolution_that_is_called_at_several_places_and_for_several_sizes(size: int) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    network = nn.Sequential(conv, nn.MaxPool2d(2), conv).eval()
    mmpelk.enlarge(network, size)
    nn.init.normal_(network[0].weight, std=0.1)
    x = torch.rand(1, 4, 20, 24)
    plain = make_plain(copy.deepcopy(network), x)
    assert not any(isinstance(module, PeripheralConv2d) for module in plain.modules())
    torch.testing.assert_close(plain(x), network(x), rtol=1e-4, atol=1e-5)


CSPNEXT = dict(
    type='mmdet.CSPNeXt', deepen_factor=0.167, widen_factor=0.125, expand_ratio=0.5, norm_cfg=dict(type='BN')
)
# Networks, and the initialisation that their parent brings.
INITIALISED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    'own loop': (dict(type=OwnLoop), None),
    'init_cfg': (dict(type=OwnLoop, init_cfg=dict(type='TruncNormal', layer='Conv2d', std=2)), None),
    'of a toolbox': (CSPNEXT, None),
    'of its parent': (dict(type=pair), dict(type='Kaiming', layer='Conv2d')),
}


@pytest.mark.parametrize('kind', INITIALISED)
@pytest.mark.scope('mmdet')
def test_initialised_as_the_plain_network(kind: str) -> None:
    """The same class and names; with the same seed the same function: enlarged kernels, other ones, and norms."""
    config, of_parent = INITIALISED[kind]
    networks = []
    for each in (config, dict(type='mmpelk.Enlarged', backbone=config, kernel_size=31)):
        parent = BaseModule(of_parent)
        parent.backbone = copy.deepcopy(MODELS.build(each))
        torch.manual_seed(1)
        parent.init_weights()
        parent.backbone.eval()
        networks.append(parent.backbone)
    plain, network = networks
    assert type(network) is type(plain)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert any(isinstance(module, EnlargedConv2d) for module in network.modules())
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network(x), plain(x), rtol=1e-4, atol=1e-5)
    want = copy.deepcopy(network)
    want.load_state_dict(plain.state_dict())
    for name, value in want.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


def test_functions_of_modules_find_the_convolution_and_keep_trained_kernels() -> None:
    """``Module.apply`` with what initialises nothing changes nothing; a pruned kernel is handed on as it is."""
    network = pair()
    network[1] = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=8)
    mmpelk.enlarge(network, 13)
    nn.init.normal_(network[1].weight)
    kernel, seen = network[1].weight.clone(), []
    network.apply(seen.append)
    assert [type(module) for module in seen] == [nn.Conv2d, nn.Conv2d, EnlargedConv2d, nn.Sequential]
    modes: list[bool] = []
    network[1].eval().apply(lambda module: modes.append(module.training))
    assert modes == [False, False]
    assert torch.equal(network[1].weight, kernel)
    network.apply(lambda module: module.reset_parameters() if hasattr(module, 'reset_parameters') else None)
    assert network[1].weight.nonzero()[:, 2:].unique(dim=0).tolist() == [[3, 2], [3, 3], [3, 4]]  # of 7 x 7
    nn.init.ones_(network[1].weight)
    with network[1].as_dense() as conv:
        nn.init.normal_(conv.weight)
    assert len(network[1].weight[0].nonzero()) == 3, 'what was trained around the centre is zero again'
    kernel = network[1].weight.clone()
    network[1].apply(lambda module: module.weight.data.mul_(2) if isinstance(module, nn.Conv2d) else None)
    assert torch.equal(network[1].weight, 2 * kernel)
    prune.l1_unstructured(network[1], 'weight', amount=0.5)
    seen.clear()
    network.apply(seen.append)
    assert [type(module) for module in seen] == [nn.Conv2d, EnlargedConv2d, nn.Sequential]
    with pytest.raises(ValueError, match='1 has hooks or a weight that is parametrised, pruned'):
        mmpelk.dense(network)


def test_an_error_in_a_function_of_modules_leaves_the_kernel() -> None:
    network = pair()
    mmpelk.enlarge(network, 13)
    nn.init.normal_(network[1].weight)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(AttributeError):
        network[1].apply(lambda module: module.what)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_way_back_of_a_class_that_convolves_in_a_way_of_its_own_is_refused() -> None:
    network = pair()
    mmpelk.enlarge(network, 13)
    network[1].__class__ = type('Doubled', (EnlargedConv2d,), {'forward': lambda self, x: 2 * self(x)})
    with pytest.raises(ValueError, match='1: its class Doubled convolves in a way of its own'):
        mmpelk.dense(network)


@pytest.mark.parametrize('dense_size', [(1, 3), (5, 3)])
def test_attributes_are_those_of_the_convolution_that_it_computes(dense_size: tuple[int, int]) -> None:
    names = ['in_channels', 'out_channels', 'groups', 'stride', 'dilation', 'padding', 'padding_mode', 'transposed']
    conv = EnlargedConv2d(4, 13, dense_size)
    with conv.as_dense() as original:
        for found, side in ((conv, (13, 13)), (original, dense_size)):
            want = nn.Conv2d(4, 4, side, padding=(side[0] // 2, side[1] // 2), groups=4)
            assert [getattr(found, name) for name in names] == [getattr(want, name) for name in names]
