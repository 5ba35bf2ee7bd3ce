"""The mixers of the networks that the paper compares with: operator, gradients, deployment, and what they refuse."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models import ConvNeXt
from torch import Tensor, nn

from mmpelk.models import MIXERS, DenseMixer, Mixer, MixerSpec, PeLK, PeripheralMixer, StripeMixer
from mmpelk.models.deploy import deploy_state_dict
from mmpelk.ops.backends import BACKENDS
from mmpelk.ops.reference import peripheral_conv2d_reference

CHANNELS, SIZE = 3, 13
NANO = dict(depths=(1, 1, 2, 1), channels=(16, 24, 32, 40), kernel_sizes=(31, 15, 9, 5))
BASELINES = [name for name in MIXERS if name != 'peripheral']


def _mixer(name: str, **arguments: object) -> Mixer:
    """A mixer in float64 whose norms have moved away from their initial statistics, in eval mode."""
    torch.manual_seed(0)
    mixer = MIXERS[name](MixerSpec(CHANNELS, SIZE, **arguments)).double()
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for _ in range(3):
        mixer(2 * torch.randn(2, CHANNELS, 16, 16, dtype=torch.float64) + 1)
    return mixer.eval()


def _by_definition(name: str, mixer: Mixer, x: Tensor) -> Tensor:
    """The mixers written out: every position of a kernel by itself."""

    def convolve(weight: Tensor) -> Tensor:
        height, width = weight.shape[2:]
        padded = F.pad(x, [width // 2] * 2 + [height // 2] * 2)
        terms = [
            weight[:, 0, i, j, None, None] * padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            for i in range(height)
            for j in range(width)
        ]
        return torch.stack(terms).sum(0)

    if name == 'conv7':
        assert mixer.large.weight.shape == (CHANNELS, 1, 7, 7)
        return convolve(mixer.large.weight) + mixer.large.bias[:, None, None]
    if name == 'stripe':
        first, second = mixer.large
        assert first.weight.shape[2:] == (SIZE, 5)
        assert second.weight.shape[2:] == (5, SIZE)
        large = mixer.large_norm[0](convolve(first.weight)) + mixer.large_norm[1](convolve(second.weight))
    else:
        large = mixer.large_norm(peripheral_conv2d_reference(x, mixer.large.weight, mixer.large.sharing_grid))
    return large + mixer.small_norm(convolve(mixer.small.weight)) if mixer.small_kernel_size else large


@pytest.mark.parametrize('size', [(16, 16), (5, 30)], ids=['16x16', '5x30'])
@pytest.mark.parametrize('small_kernel_size', [0, 3, 5])
@pytest.mark.parametrize('name', MIXERS)
def test_forward_is_the_definition(name: str, small_kernel_size: int, size: tuple[int, int]) -> None:
    mixer = _mixer(name, small_kernel_size=small_kernel_size)
    x = torch.randn(2, CHANNELS, *size, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), _by_definition(name, mixer, x))


@pytest.mark.parametrize('name', MIXERS)
def test_gradients(name: str) -> None:
    """Of the input and of every parameter, against finite differences, with batch statistics."""
    mixer = _mixer(name).train()
    x = torch.randn(2, CHANNELS, 6, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*mixer.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,))

    # fast_mode: one random direction per argument instead of one pass per number, of which there are thousands.
    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize('backend', sorted(BACKENDS))
def test_every_backend_computes_dense_kernels(backend: str) -> None:
    mixer = _mixer('dense')
    x = torch.randn(2, CHANNELS, 9, 14, dtype=torch.float64)
    want = mixer(x)
    mixer.large.backend = backend
    try:
        out = mixer(x)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        pytest.skip(f'not on this machine: {error}')
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize('mode', ['in_bounds', 'constant', None])
def test_dense_is_peripheral_with_a_grid_of_ones(mode: str | None) -> None:
    torch.manual_seed(0)
    dense = DenseMixer(MixerSpec(CHANNELS, SIZE, positional_embedding=mode))
    peripheral = PeripheralMixer(MixerSpec(CHANNELS, SIZE, sharing_grid=[1] * SIZE, positional_embedding=mode))
    peripheral.load_state_dict(dense.state_dict(), strict=True)
    assert dense.large.weight.shape == (CHANNELS, 1, SIZE, SIZE)
    x, embedding = torch.randn(2, CHANNELS, 9, 14), torch.randn(CHANNELS, SIZE, SIZE)
    assert torch.equal(dense(x, embedding), peripheral(x, embedding))


# What is left once everything that can be merged is merged: tensors by name.
DEPLOYED = {
    'peripheral': {'large.weight': (9, 9), 'large.bias': ()},
    'dense': {'large.weight': (13, 13), 'large.bias': ()},
    'stripe': {'large.0.weight': (13, 5), 'large.0.bias': (), 'large.1.weight': (5, 13)},
    'conv7': {'large.weight': (7, 7), 'large.bias': ()},
}


@pytest.mark.parametrize('size', [(16, 16), (5, 30)], ids=['16x16', '5x30'])
@pytest.mark.parametrize('small_kernel_size', [0, 3, 5])
@pytest.mark.parametrize('name', MIXERS)
def test_deployed_mixer_is_the_same_function(name: str, small_kernel_size: int, size: tuple[int, int]) -> None:
    mixer = _mixer(name, small_kernel_size=small_kernel_size)
    x = torch.randn(2, CHANNELS, *size, dtype=torch.float64)
    want = mixer(x)
    for _ in range(2):  # a second call changes nothing
        mixer.switch_to_deploy()
        torch.testing.assert_close(mixer(x), want, rtol=1e-10, atol=1e-10)
    assert {key: tuple(value.shape[2:]) for key, value in mixer.state_dict().items()} == DEPLOYED[name]
    built = MIXERS[name](MixerSpec(CHANNELS, SIZE, small_kernel_size=small_kernel_size, deploy=True)).double()
    built.load_state_dict(mixer.state_dict(), strict=True)
    assert torch.equal(built(x), mixer(x))


def test_stripe_of_a_short_kernel_keeps_its_branches() -> None:
    """SLaK's last stages: K = 7 and below, where the stripes are nearly or exactly square."""
    for kernel_size, shapes in ((7, [(7, 5), (5, 7)]), (3, [(3, 3), (3, 3)])):
        mixer = StripeMixer(MixerSpec(CHANNELS, kernel_size)).double().eval()
        assert [tuple(stripe.weight.shape[2:]) for stripe in mixer.large] == shapes
        x = torch.randn(1, CHANNELS, 4, 9, dtype=torch.float64)
        want = mixer(x)
        mixer.switch_to_deploy()
        torch.testing.assert_close(mixer(x), want)


# In the network


def _network(mixer: str, **arguments: object) -> PeLK:
    torch.manual_seed(0)
    return PeLK(
        NANO,
        mixer=mixer,
        positional_embedding=None,
        layer_scale_init_value=1.0,
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        **arguments,
    )


@pytest.mark.parametrize('conv_ratio', [3 / 8, 1.0])
@pytest.mark.parametrize('mixer', MIXERS)
def test_network_trains_and_deploys(mixer: str, conv_ratio: float) -> None:
    model = _network(mixer, conv_ratio=conv_ratio)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    model.eval()
    x = torch.randn(2, 3, 70, 50)
    want, trained = model(x), copy.deepcopy(model.state_dict())
    model.switch_to_deploy()
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
    assert not any('small' in name or 'large_norm' in name for name in model.state_dict())
    built = _network(mixer, conv_ratio=conv_ratio, deploy=True).eval()
    built.load_state_dict(deploy_state_dict(_network(mixer, conv_ratio=conv_ratio), trained), strict=True)
    torch.testing.assert_close(built(x), model(x))


def test_conv7_network_is_convnext() -> None:
    """With all channels mixed, mmpretrain's ConvNeXt computes the same from the same tensors."""
    ours = _network('conv7', conv_ratio=1.0).eval()
    theirs = ConvNeXt(
        dict(depths=[1, 1, 2, 1], channels=[16, 24, 32, 40]), out_indices=(0, 1, 2, 3), gap_before_final_norm=False
    )
    state = {name.replace('mixer.large', 'depthwise_conv'): value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    theirs.eval()
    x = torch.randn(2, 3, 64, 96)
    for out, want in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mixer', MIXERS)
def test_initial_weights_are_convnexts(mixer: str) -> None:
    """Truncated normal of standard deviation 0.02 for every convolution, biases 0."""
    model = PeLK('tiny', mixer=mixer, positional_embedding=None)
    model.init_weights()
    for name, value in model.stages[0][0].mixer.named_parameters():
        if 'norm' in name:
            continue
        if name.endswith('bias'):
            assert not value.any()
        else:
            # At least 46 x 81 numbers: the sample's deviation is within 5 % of the distribution's by four sigmas.
            assert value.std().item() == pytest.approx(0.02, rel=0.05), name
            assert value.abs().max() > 0.03, name


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        *((name, dict(sharing_grid=[6, 1, 6]), f"mixer='{name}' has no sharing grid") for name in BASELINES),
        ('stripe', dict(positional_embedding='in_bounds'), "mixer='stripe' has no positional embedding: set"),
        ('conv7', dict(positional_embedding='constant'), "mixer='conv7' has no positional embedding: set"),
        ('stripe', dict(kernel_size=12), 'kernel_size must be an odd positive integer, got 12'),
        ('dense', dict(kernel_size=12), 'kernel_size must be an odd positive integer, got 12'),
        ('stripe', dict(small_kernel_size=4), 'small_kernel_size must be odd'),
    ],
)
def test_refuses(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIXERS[name](MixerSpec(**(dict(channels=CHANNELS, kernel_size=SIZE) | arguments)))


def test_small_kernel_wider_than_the_stripes_refuses_to_merge() -> None:
    mixer = _mixer('stripe', small_kernel_size=7)
    with pytest.raises(ValueError, match='small kernel of 7 does not fit a stripe of width 5'):
        mixer.switch_to_deploy()
    mixer(torch.zeros(1, CHANNELS, 9, 9, dtype=torch.float64))  # still whole


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize(
    ('name', 'size', 'reach'),
    [
        ('peripheral', 13, (13, 13)),
        ('dense', 13, (13, 13)),
        ('stripe', 13, (13, 13)),
        ('conv7', 13, (7, 7)),
        ('stripe', 3, (3, 3)),
    ],
)
def test_receptive_field(name: str, size: int, reach: tuple[int, int], deploy: bool) -> None:
    assert MIXERS[name](MixerSpec(CHANNELS, size, deploy=deploy)).receptive_field == reach


def test_unknown_mixer() -> None:
    with pytest.raises(ValueError, match="unknown mixer 'peripherial'; known: peripheral, dense, stripe, conv7"):
        PeLK(NANO, mixer='peripherial')
