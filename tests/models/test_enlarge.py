"""Enlarged networks: the same function, the same weights to load, gradients in the periphery, and what is refused."""

import copy
import pickle

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_state_dict as mmengine_load_state_dict
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import mmpelk
from mmpelk.models import EnlargedConv2d, PeripheralConv2d

timm = pytest.importorskip('timm')

#: One of each family of timm that has depthwise convolutions of stride 1, small, and its image size.
FAMILIES = {
    'convnext_atto': 64,
    'convnextv2_atto': 64,
    'convnext_zepto_rms': 64,
    'tf_efficientnet_lite0': 64,
    'efficientnet_b0': 64,
    'efficientnetv2_rw_t': 64,
    'mobilenetv2_050': 64,
    'mobilenetv3_small_050': 64,
    'mobilenetv4_conv_small_050': 64,
    'mobileone_s0': 64,
    'repvit_m0_9': 64,
    'fastvit_t8': 64,
    'edgenext_xx_small': 64,
    'inception_next_atto': 64,
    'caformer_s18': 64,
    'convformer_s18': 64,
    'coatnet_nano_rw_224': 224,
    'maxvit_rmlp_pico_rw_256': 256,
    'hgnetv2_b0': 64,
    'rexnet_100': 64,
    'tinynet_e': 64,
    'mnasnet_small': 64,
    'fbnetc_100': 64,
    'ghostnet_050': 64,
    'starnet_s1': 64,
    'lcnet_035': 64,
    'mixnet_s': 64,
    'xception41': 96,
    'efficientvit_b0': 64,
    'swiftformer_xs': 64,
    'mambaout_femto': 64,
    'hardcorenas_a': 64,
    'semnasnet_050': 64,
    'spnasnet_100': 64,
    'shvit_s1': 64,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
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
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_families_compute_the_same(name: str) -> None:
    """In float32, to 1e-5; batch norms over few numbers make more of rounding: there as far off as the original is."""
    network = build(name)
    larger = copy.deepcopy(network)
    assert mmpelk.enlarge(larger, 31).changes
    x = torch.rand(2, 3, FAMILIES[name], FAMILIES[name])

    def run(model: nn.Module, x: Tensor) -> Tensor:
        torch.manual_seed(1)  # of dropped paths
        with torch.no_grad():
            return model(x).double()

    for training in (False, True):
        before = copy.deepcopy(network).train(training)
        want, got = run(network.train(training), x), run(larger.train(training), x)
        if (got - want).norm() > 1e-5 * want.norm():
            assert (got - want).norm() <= 2 * (want - run(before.double(), x.double())).norm()
    larger.load_state_dict(network.state_dict())  # the public weights of the original


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['mobilenet_v2', 'convnext_tiny', 'mnasnet0_5', 'shufflenet_v2_x0_5', 'efficientnet_b0']
)
def test_networks_of_torchvision_compute_the_same(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=5).eval()
    larger, x = copy.deepcopy(network), torch.rand(1, 3, 64, 64)
    mmpelk.enlarge(larger, 31)
    with torch.no_grad():
        want, got = network(x), larger(x)
    assert (got - want).norm() <= 1e-5 * want.norm()


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
    }
    lines = str(found).splitlines()
    assert lines[1].split('  ')[0] == '1'
    assert lines[-1] == '5 is left as it is: its padding mode is reflect'


def test_gradients_reach_the_periphery_and_training_lowers_the_loss() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    mmpelk.enlarge(network, 31)
    x, target = torch.rand(4, 3, 32, 32), torch.rand(4, 8, 32, 32)
    optimizer, losses = torch.optim.SGD(network.parameters(), 1e-3), []
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

    assert sizes(kernel_size={'1': 51, '[2-5]': 13}) == {'1': 51, '2': 13}
    assert sizes(kernel_size=lambda name, module: 13 if module.bias is None else None) == {'2': 13}
    assert sizes(kernel_size=13, exclude='2') == {'1': 13, '6': 13}
    assert sizes(kernel_size=13, include=['6', '3']) == {'6': 13}


def test_the_centre_can_be_larger_than_the_kernel() -> None:
    network, x = small(), torch.rand(1, 3, 16, 16)
    want = network(x)
    mmpelk.enlarge(network, 31, center_size=13)
    torch.testing.assert_close(network(x), want)
    assert network[1].sharing_grid[4:-4] == (1,) * 13 or network[1].sharing_grid.count(1) == 13


def test_weights_of_the_original_load_before_and_after(tmp_path) -> None:
    original, x = small(), torch.rand(2, 3, 20, 24)
    path = tmp_path / 'original.pth'
    torch.save(original.state_dict(), path)
    for load in (
        lambda model: model.load_state_dict(torch.load(path)),
        lambda model: mmengine_load_state_dict(model, torch.load(path), strict=True),
    ):
        torch.manual_seed(1)
        network = small()
        network[1].weight.data.mul_(3)
        mmpelk.enlarge(network, 15)
        network[1].weight.data.add_(1)  # the periphery is overwritten, too
        load(network)
        torch.testing.assert_close(network(x), original(x))
        again = copy.deepcopy(network)
        again.load_state_dict(network.state_dict())
        assert torch.equal(again(x), network(x))


def test_way_back() -> None:
    network, x = small(), torch.rand(2, 3, 20, 24)
    mmpelk.enlarge(network, 15)
    nn.init.normal_(network[1].weight)
    want = network(x)
    assert mmpelk.dense(network) == ['1', '2', '6']
    assert not any(isinstance(module, PeripheralConv2d) for module in network.modules())
    assert network[1].kernel_size == (15, 15)
    torch.testing.assert_close(network(x), want)


def test_twice_and_kernels_that_are_larger() -> None:
    network = small()
    mmpelk.enlarge(network, 15)
    with pytest.raises(ValueError, match=r'1: its kernel is peripheral already, 15 x 15'):
        mmpelk.enlarge(network, 31)
    with pytest.raises(ValueError, match=r'2: its kernel of 1 x 11 is not smaller than 3'):
        mmpelk.enlarge(small(), 3)


REFUSED = {
    'no depthwise convolution': (nn.Sequential(nn.Conv2d(3, 8, 3)), dict(), 'it has none among the names'),
    'an even size': (small(), dict(kernel_size=30), 'kernel_size is an odd positive integer, got 30 for 1'),
    'no size': (small(), dict(kernel_size={'9': 31}), '1: no kernel size is given for it'),
    'a small centre': (small()[1:2], dict(center_size=1), '3 x 3 does not fit the centre of 1'),
    'a centre without periphery': (small()[1:2], dict(kernel_size=13, center_size=13), 'leaves 13 no periphery'),
    'weight norm': (
        nn.Sequential(parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1, groups=8))),
        dict(),
        'its weight is parametrised',
    ),
    'a single convolution': (nn.Conv2d(8, 8, 3, padding=1, groups=8), dict(), 'a single convolution'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_refuses_and_changes_nothing(kind: str) -> None:
    network, options, message = REFUSED[kind]
    before = repr(network)
    with pytest.raises(ValueError, match=message):
        mmpelk.enlarge(network, **options)
    assert repr(network) == before


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
    assert left['7'] == 'its padding of (0, 0) changes the size of the map'
    assert left['8'] == 'its class Unpadded convolves in a way of its own'


def test_shared_modules_stay_shared() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    network = nn.Sequential(conv, nn.ReLU(), conv)
    assert [change.name for change in mmpelk.enlarge(network, 13).changes] == ['0', '2']
    assert network[0] is network[2]
    mmpelk.dense(network)
    assert network[0] is network[2]


def test_meta_device_copies_and_frozen_parameters() -> None:
    with torch.device('meta'):
        network = small()
    mmpelk.enlarge(network, 15)
    assert {value.device.type for value in network.state_dict().values()} == {'meta'}
    network = small().requires_grad_(False).double().eval()
    state = torch.random.get_rng_state()
    mmpelk.enlarge(network, 15)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing is drawn
    assert not network[1].weight.requires_grad
    assert network[1].weight.dtype == torch.float64
    assert not network[1].training
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(x), network(x))


def test_under_checkpointing_and_compilation() -> None:
    network, x = small()[:3], torch.rand(1, 3, 16, 16, requires_grad=True)
    mmpelk.enlarge(network, 15)
    want = network(x)
    torch.testing.assert_close(checkpoint(network, x, use_reentrant=False), want)
    torch.testing.assert_close(torch.compile(network, backend='eager', fullgraph=True)(x), want)


@pytest.mark.scope('mmdet')
def test_in_configs() -> None:
    """The network of a toolbox itself, with its names; its initialisation leaves the periphery at zero."""
    inner = dict(
        type='mmdet.CSPNeXt',
        deepen_factor=0.167,
        widen_factor=0.125,
        expand_ratio=0.5,
        channel_attention=True,
        norm_cfg=dict(type='BN'),
    )
    torch.manual_seed(0)
    plain = MODELS.build(inner)
    network = MODELS.build(dict(type='mmpelk.Enlarged', backbone=inner, kernel_size=31))
    assert type(network) is type(plain)
    assert network.state_dict().keys() == plain.state_dict().keys()
    network.init_weights()
    convs = [module for module in network.modules() if isinstance(module, EnlargedConv2d)]
    assert convs
    assert not any(conv.weight[:, :, 0].any() for conv in convs)
    network.load_state_dict(plain.state_dict())
    plain.eval()  # which returns nothing
    network.eval()
    x = torch.rand(1, 3, 64, 64)
    for got, want in zip(network(x), plain(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
