"""Every mixer: its definition, its gradients, its merged form, and what it refuses."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpelk.models import MIXERS, DenseMixer, Mixer, MixerSpec, PeripheralMixer, StripeMixer
from mmpelk.ops.backends import BACKENDS
from mmpelk.ops.reference import peripheral_conv2d_reference

CHANNELS, SIZE = 3, 13
BASELINES = [name for name in MIXERS if name != 'peripheral']

each_mixer = pytest.mark.parametrize(
    ('name', 'mode'),
    [('peripheral', 'in_bounds'), ('peripheral', 'constant'), *((name, None) for name in MIXERS)],
    ids=lambda value: value or 'no embedding',
)
each_small_kernel = pytest.mark.parametrize('small_kernel_size', [0, 3, 5])
each_size = pytest.mark.parametrize('size', [(16, 16), (5, 30)], ids=['16x16', '5x30'])


def _trained(name: str, mode: str | None = None, **arguments: object) -> tuple[Mixer, Tensor | None]:
    """A mixer in float64 whose norms have moved away from their initial statistics, in eval mode; and an embedding."""
    torch.manual_seed(0)
    mixer = MIXERS[name](MixerSpec(CHANNELS, SIZE, positional_embedding=mode, **arguments)).double()
    embedding = torch.randn(CHANNELS, SIZE, SIZE, dtype=torch.float64) if mode else None
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for _ in range(3):
        mixer(2 * torch.randn(2, CHANNELS, 16, 16, dtype=torch.float64) + 1, embedding)
    return mixer.eval(), embedding


def _by_definition(name: str, mixer: Mixer, x: Tensor, mode: str | None, embedding: Tensor | None) -> Tensor:
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
        term = dict(embedding=embedding, embedding_mode=mode) if mode else {}
        large = peripheral_conv2d_reference(x, mixer.large.weight, mixer.large.sharing_grid, **term)
        large = mixer.large_norm(large)
    return large + mixer.small_norm(convolve(mixer.small.weight)) if mixer.small_kernel_size else large


@each_size
@each_small_kernel
@each_mixer
def test_forward_is_the_definition(name: str, mode: str | None, small_kernel_size: int, size: tuple[int, int]) -> None:
    mixer, embedding = _trained(name, mode, small_kernel_size=small_kernel_size)
    x = torch.randn(2, CHANNELS, *size, dtype=torch.float64)
    torch.testing.assert_close(mixer(x, embedding), _by_definition(name, mixer, x, mode, embedding))


@pytest.mark.parametrize('name', MIXERS)
def test_gradients(name: str) -> None:
    """Of the input and of every parameter, against finite differences, with batch statistics."""
    mixer = _trained(name)[0].train()
    x = torch.randn(2, CHANNELS, 6, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*mixer.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,))

    # fast_mode: one random direction per argument instead of one pass per number, of which there are thousands.
    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize('backend', sorted(BACKENDS))
def test_every_backend_computes_dense_kernels(backend: str) -> None:
    mixer, _ = _trained('dense')
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


# What is left once everything that can be merged is merged: tensors by name. A peripheral kernel stays peripheral.
DEPLOYED = {
    'peripheral': {'large.weight': (9, 9), 'large.bias': ()},
    'dense': {'large.weight': (13, 13), 'large.bias': ()},
    'stripe': {'large.0.weight': (13, 5), 'large.0.bias': (), 'large.1.weight': (5, 13)},
    'conv7': {'large.weight': (7, 7), 'large.bias': ()},
}


@each_size
@each_small_kernel
@each_mixer
def test_deployed_mixer_is_the_same_function(
    name: str, mode: str | None, small_kernel_size: int, size: tuple[int, int]
) -> None:
    mixer, embedding = _trained(name, mode, small_kernel_size=small_kernel_size)
    x = torch.randn(2, CHANNELS, *size, dtype=torch.float64)
    want = mixer(x, embedding)
    for _ in range(2):  # a second call changes nothing
        mixer.switch_to_deploy(embedding)
        torch.testing.assert_close(mixer(x), want, rtol=1e-10, atol=1e-10)
    assert not any(module.training for module in mixer.modules())
    assert {key: tuple(value.shape[2:]) for key, value in mixer.named_parameters()} == DEPLOYED[name]
    spec = MixerSpec(CHANNELS, SIZE, small_kernel_size=small_kernel_size, positional_embedding=mode, deploy=True)
    built = MIXERS[name](spec).double()
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


def test_constant_embedding_has_no_effect_behind_a_batch_norm() -> None:
    mixer, embedding = _trained('peripheral', 'constant')
    mixer.train()
    x = torch.randn(2, CHANNELS, 9, 14, dtype=torch.float64)
    out = mixer(x, embedding.requires_grad_())
    torch.testing.assert_close(out, mixer(x, 100 * embedding))
    (grad,) = torch.autograd.grad(out.square().sum(), embedding)
    assert grad.abs().max() < 1e-8


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        *((name, dict(sharing_grid=[6, 1, 6]), f"mixer='{name}' has no sharing grid") for name in BASELINES),
        ('stripe', dict(positional_embedding='in_bounds'), "mixer='stripe' has no positional embedding: set"),
        ('conv7', dict(positional_embedding='constant'), "mixer='conv7' has no positional embedding: set"),
        ('stripe', dict(kernel_size=12), 'kernel_size must be an odd positive integer, got 12'),
        ('dense', dict(kernel_size=12), 'kernel_size must be an odd positive integer, got 12'),
        ('stripe', dict(small_kernel_size=4), 'small_kernel_size must be odd'),
        ('stripe', dict(small_kernel_size=-3), 'small_kernel_size must be odd'),
    ],
)
def test_refuses(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIXERS[name](MixerSpec(**(dict(channels=CHANNELS, kernel_size=SIZE) | arguments)))


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('stripe', dict(small_kernel_size=7), 'small kernel of 7 does not fit a stripe of width 5'),
        ('peripheral', dict(sharing_grid=[2, 2, 2, 1, 2, 2, 2]), 'small kernel of 5 does not fit the fine-grained'),
        ('peripheral', dict(sharing_grid=[1, 11, 1]), 'small kernel of 5 does not fit the fine-grained'),
        ('peripheral', dict(norm_cfg=dict(type='GN', num_groups=1)), 'no running statistics'),
        ('peripheral', dict(mode='constant'), 'switch_to_deploy of the stage'),
        ('dense', dict(mode='in_bounds'), 'switch_to_deploy of the stage'),
    ],
)
def test_refuses_to_merge(name: str, arguments: dict, message: str) -> None:
    mixer, embedding = _trained(name, **arguments)
    with pytest.raises(ValueError, match=message):
        mixer.switch_to_deploy()
    mixer(torch.zeros(1, CHANNELS, 9, 9, dtype=torch.float64), embedding)  # still whole


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize(
    ('name', 'size', 'reach'),
    [('peripheral', 13, 13), ('dense', 13, 13), ('stripe', 13, 13), ('conv7', 13, 7), ('stripe', 3, 3)],
)
def test_receptive_field(name: str, size: int, reach: int, deploy: bool) -> None:
    assert MIXERS[name](MixerSpec(CHANNELS, size, deploy=deploy)).receptive_field == (reach, reach)


NORMS: dict[str, Callable[[], nn.Module]] = {
    'another epsilon': lambda: nn.BatchNorm2d(CHANNELS, eps=0.5),
    'no weights': lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    'SyncBN': lambda: nn.SyncBatchNorm(CHANNELS, eps=0.1),
    'instance norm': lambda: nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True),
    'instance norm without weights': lambda: nn.InstanceNorm2d(CHANNELS, track_running_stats=True),
}


@pytest.mark.parametrize('kind', NORMS)
@pytest.mark.parametrize('name', ['peripheral', 'stripe'])
def test_every_norm_with_statistics_is_merged(name: str, kind: str) -> None:
    mixer, _ = _trained(name)
    mixer.small_norm, first = NORMS[kind](), NORMS[kind]()
    mixer.large_norm = nn.ModuleList([first, NORMS[kind]()]) if name == 'stripe' else first
    for norm_name, value in mixer.double().eval().state_dict().items():
        if 'norm' in norm_name and value.is_floating_point():
            nn.init.uniform_(value, 0.1, 2)
    x = torch.randn(2, CHANNELS, 9, 14, dtype=torch.float64)
    want = mixer(x)
    mixer.switch_to_deploy()
    torch.testing.assert_close(mixer(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('small_kernel_size', [0, 5])
@pytest.mark.parametrize('mode', ['in_bounds', 'constant'])
def test_a_mixer_is_not_called_without_its_embedding(mode: str, small_kernel_size: int, grad: bool) -> None:
    mixer, _ = _trained('peripheral', mode, small_kernel_size=small_kernel_size)
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match='call the stage, or each block as'):
        mixer(torch.zeros(1, CHANNELS, 9, 9, dtype=torch.float64))


def test_a_replaced_kernel_is_called() -> None:
    """As quantisation puts one in place."""
    mixer, _ = _trained('peripheral')
    x = torch.randn(2, CHANNELS, 9, 12, dtype=torch.float64)
    before = mixer(x)
    mixer.small = nn.Identity()
    assert not torch.allclose(mixer(x), before)
