"""What a deployed mixer keeps: made once for a size, for few sizes, and made again once its tensors change."""

import copy
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # private: torch has no public way to it

from mmpelk.models import MixerSpec, PeripheralMixer
from mmpelk.models.mixers import constants
from mmpelk.ops import force_backend


@pytest.fixture
def mixer() -> PeripheralMixer:
    return _deployed()


def _deployed() -> PeripheralMixer:
    torch.manual_seed(0)
    mixer = PeripheralMixer(MixerSpec(3, 13, positional_embedding='in_bounds', deploy=True)).eval()
    torch.nn.init.normal_(mixer.embedding_table)
    torch.nn.init.normal_(mixer.large.bias)
    return mixer


def _plain(mixer: PeripheralMixer, x: torch.Tensor) -> torch.Tensor:
    """Without anything kept, as under autograd."""
    with torch.enable_grad():
        return torch.cat([mixer(x[:, :3]), x[:, 3:]], 1).detach()


CHANGES = {
    'nothing': lambda mixer: mixer,
    'a write to the weight': lambda mixer: mixer.large.weight.mul_(2),
    'a write to the bias': lambda mixer: mixer.large.bias.add_(1),
    'a write to the table': lambda mixer: mixer.embedding_table.mul_(3),
    'another parameter': lambda mixer: setattr(mixer.large, 'bias', torch.nn.Parameter(torch.ones(3))),
    'other memory': lambda mixer: setattr(mixer.large.weight, 'data', 2 * mixer.large.weight),
    'a state dict': lambda mixer: mixer.load_state_dict({k: 2 * v for k, v in mixer.state_dict().items()}),
    'a state dict, assigned': lambda mixer: mixer.load_state_dict(
        {k: 2 * v for k, v in mixer.state_dict().items()}, assign=True
    ),
    'half and back': lambda mixer: mixer.bfloat16().float(),
}


@pytest.mark.parametrize('change', CHANGES)
@torch.no_grad()
def test_follows_every_change(mixer: PeripheralMixer, change: str) -> None:
    for size in ((9, 12), (40, 33)):
        x = torch.randn(2, 5, *size).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(mixer(x), _plain(mixer, x))
    CHANGES[change](mixer)
    for _ in range(2):
        torch.testing.assert_close(mixer(x), _plain(mixer, x))
    assert mixer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('backend', ['dft', 'dense'])
@torch.no_grad()
def test_settings_and_copies(mixer: PeripheralMixer, backend: str) -> None:
    mixer.large.backend = backend
    x = torch.randn(2, 5, 9, 12)
    with torch.autocast('cpu', torch.bfloat16):
        assert mixer(x).dtype == torch.bfloat16
    single = mixer(x)  # of what was not rounded
    torch.testing.assert_close(single, _plain(mixer, x))
    assert {prepared.backend for prepared in mixer._constants._kept.values()} == {backend}
    with pytest.raises(ValueError, match=r'weight is torch.float32 on cpu, x is torch.float64'):
        mixer(x.double())
    other = copy.deepcopy(mixer)
    assert not other._constants._kept
    assert torch.equal(other(x), single)
    assert mixer(x.mT.contiguous().mT).is_contiguous()


@torch.no_grad()
def test_a_size_is_prepared_once_and_the_oldest_makes_room(mixer: PeripheralMixer) -> None:
    images = [torch.randn(1, 5, 10 + extra, 9) for extra in range(constants._SIZES + 1)]
    with mock.patch.object(constants, 'prepare', side_effect=constants.prepare) as prepared:
        for x in images[:-1] * 3:
            mixer(x)
        assert prepared.call_count == constants._SIZES == 4
        for x, more in ((images[-1], 1), (images[-2], 1), (images[0], 2)):  # one more than fit; the newest; the oldest
            mixer(x)
            assert prepared.call_count == constants._SIZES + more
        with force_backend('fft'):
            mixer(images[0])
        assert prepared.call_count == constants._SIZES + 3
        mixer.large.backend = 'fft'
        mixer(images[0])
        assert prepared.call_count == constants._SIZES + 4


@torch.inference_mode()
def test_nothing_is_kept_of_tensors_that_count_no_writes() -> None:
    mixer, x = _deployed(), torch.randn(2, 5, 9, 12)
    for _ in range(2):
        torch.testing.assert_close(mixer(x), _plain(mixer, x))
        mixer.large.weight.mul_(2)


def test_gradients_take_no_constants(mixer: PeripheralMixer) -> None:
    out = mixer(torch.randn(2, 3, 9, 12)).square().sum()
    assert all(grad.any() for grad in torch.autograd.grad(out, [mixer.large.weight, mixer.large.bias]))


@pytest.mark.parametrize('backend', ['dense', 'dft', 'fft'])
def test_nothing_stays_of_a_fake_forward(mixer: PeripheralMixer, backend: str) -> None:
    """As those that count operations, whose tensors have no numbers."""
    x = torch.randn(2, 5, 9, 14)
    with torch.no_grad(), force_backend(backend):
        want = mixer(x)
        mixer._constants.clear()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = mixer(mode.from_tensor(x))
        assert (fake.shape, fake.stride()) == (want.shape, want.stride())
        assert not mixer._constants._kept
        torch.testing.assert_close(mixer(x), want, rtol=0, atol=0)
