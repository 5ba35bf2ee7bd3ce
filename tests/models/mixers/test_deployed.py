"""Deployed mixers: what they keep is made once for a size, and never used once a tensor holds other numbers."""

import copy
import pickle
import threading
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.reduction import ForkingPickler
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # private: torch has no public way to it

import mmpelk
from mmpelk.models import DenseMixer, MixerSpec, PeLK, PeripheralMixer
from mmpelk.models.mixers import peripheral
from mmpelk.models.mixers.base import norm_as_affine
from mmpelk.ops import force_backend
from mmpelk.ops.backends import BACKENDS
from tests.ops.inputs import Recording

ON_CPU = sorted(name for name in BACKENDS if not name.startswith('triton'))


@pytest.fixture
def mixer() -> PeripheralMixer:
    return _deployed()


def _deployed() -> PeripheralMixer:
    torch.manual_seed(0)
    mixer = PeripheralMixer(MixerSpec(3, 13, positional_embedding='in_bounds', deploy=True)).eval()
    torch.nn.init.normal_(mixer.embedding_table)
    torch.nn.init.normal_(mixer.large.bias)
    return mixer


def _plain(mixer: PeripheralMixer, x: Tensor) -> Tensor:
    """Without anything kept, as under autograd."""
    with torch.enable_grad():
        return torch.cat([mixer(x[:, :3]), x[:, 3:]], 1).detach()


def _assign(mixer: PeripheralMixer, assign: bool) -> None:
    mixer.load_state_dict({key: 2 * value for key, value in mixer.state_dict().items()}, assign=assign)


def _step(mixer: PeripheralMixer, kind: type[torch.optim.Optimizer]) -> None:
    for parameter in mixer.parameters():
        parameter.grad = torch.ones_like(parameter)
    kind(mixer.parameters(), lr=0.1).step()


@pytest.mark.parametrize('deployed', [False, True])
def test_the_backend_of_a_kernel_computes_it(
    deployed: bool, mixer: PeripheralMixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, 3, 9, 12)
    mixer = mixer if deployed else PeripheralMixer(MixerSpec(3, 13))
    want = mixer(x)
    monkeypatch.setattr('mmpelk.ops.backends.calls.BACKENDS', table := Recording())
    for backend in (*ON_CPU, *reversed(ON_CPU)):
        mixer.large.backend = backend
        with torch.set_grad_enabled(not deployed):
            torch.testing.assert_close(mixer(x), want)
        assert table.used[-1] == backend


@pytest.mark.parametrize('settings', [
    dict(backend='fft', dtype=torch.float64, frozen=False, training=True),
    dict(backend='dense', dtype=torch.float32, frozen=True, training=False),
])  # fmt: skip
def test_a_merged_kernel_is_as_its_kernel_was(settings: dict[str, Any]) -> None:
    mixer = (
        PeripheralMixer(MixerSpec(3, 13, positional_embedding=None))
        .to(settings['dtype'])
        .requires_grad_(not settings['frozen'])
        .eval()
    )
    before = mixer.large.train(settings['training'])
    before.backend = settings['backend']
    mixer.switch_to_deploy()
    after = mixer.large
    assert after is not before
    for name in ('kernel_size', 'sharing_grid', 'backend', 'training'):
        assert getattr(after, name) == getattr(before, name), name
    assert after.backend == settings['backend']
    for parameter in after.parameters():
        assert (parameter.dtype, parameter.requires_grad) == (settings['dtype'], not settings['frozen'])


@torch.no_grad()
def test_under_a_transform_nothing_is_kept(mixer: PeripheralMixer) -> None:
    x, state = torch.randn(1, 3, 9, 12), mixer.state_dict()
    states = {name: torch.stack([value, 2 * value]) for name, value in state.items()}

    def run(state: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, state, (x,))

    want = [run({name: value[index] for name, value in states.items()}, x) for index in (0, 1)]
    torch.testing.assert_close(torch.func.vmap(run, (0, None))(states, x), torch.stack(want))
    torch.testing.assert_close(mixer(x), want[0])


def test_biases_that_somebody_gave_the_kernels_are_scaled_by_their_norms() -> None:
    torch.manual_seed(0)
    mixer = PeripheralMixer(MixerSpec(3, 13)).eval()
    for kernel, norm in ((mixer.large, mixer.large_norm), (mixer.small, mixer.small_norm)):
        kernel.bias = nn.Parameter(torch.randn(3))
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor, std=2)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(1, 3, 9, 9)
    before = mixer(x)
    mixer.switch_to_deploy()
    torch.testing.assert_close(mixer(x), before, rtol=1e-4, atol=1e-4)


#: Ways to change what a deployed mixer computes. Those through ``.data`` (averages of weights, momentum encoders) and
#: of inference tensors leave no trace in torch's counts.
CHANGES: dict[str, Callable[[PeripheralMixer], object]] = {
    'nothing': lambda mixer: None,
    'a write to the weight': lambda mixer: mixer.large.weight.mul_(2),
    'a write to the bias': lambda mixer: mixer.large.bias.add_(1),
    'a write to the table': lambda mixer: mixer.embedding_table.mul_(3),
    'a write to one number': lambda mixer: mixer.large.weight[1, 0, 3, 4].add_(1),
    'data.copy_': lambda mixer: mixer.large.weight.data.copy_(torch.ones_like(mixer.large.weight)),
    'data.mul_ of the table': lambda mixer: mixer.embedding_table.data.mul_(2),
    'other data': lambda mixer: setattr(mixer.large.weight, 'data', 2 * mixer.large.weight),
    'foreach': lambda mixer: torch._foreach_mul_([mixer.large.weight.data, mixer.large.bias.data], 2.0),
    'numpy': lambda mixer: mixer.large.weight.numpy().__imul__(2),
    'no bias': lambda mixer: setattr(mixer.large, 'bias', None),
    'another parameter': lambda mixer: setattr(mixer.large, 'bias', nn.Parameter(torch.ones(3))),
    'requires_grad_ and a step of SGD': lambda mixer: _step(mixer.requires_grad_(), torch.optim.SGD),
    'a step of AdamW': lambda mixer: _step(mixer, torch.optim.AdamW),
    'a state dict': lambda mixer: _assign(mixer, False),
    'a state dict, assigned': lambda mixer: _assign(mixer, True),
    'half and back': lambda mixer: mixer.bfloat16().float(),
}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_follows_every_change(mixer: PeripheralMixer, change: str, mode: type) -> None:
    with torch.no_grad():
        with mode():
            for size in ((9, 12), (40, 33)):
                x = torch.randn(2, 5, *size).contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(mixer(x), _plain(mixer, x))
        assert len(mixer._prepared) == 2
        CHANGES[change](mixer)
        with mode():
            for _ in range(2):
                torch.testing.assert_close(mixer(x), _plain(mixer, x))
            assert mixer(x).is_contiguous(memory_format=torch.channels_last)


#: What torch counts no write for, so that a frozen mixer does not see it.
UNSEEN = ('data.copy_', 'data.mul_ of the table', 'foreach', 'numpy')


@pytest.mark.parametrize('change', CHANGES)
@torch.no_grad()
def test_frozen_it_is_made_once_and_refuses_changes_that_torch_counts(mixer: PeripheralMixer, change: str) -> None:
    x = torch.randn(2, 5, 9, 12).contiguous(memory_format=torch.channels_last)
    before = _plain(mixer, x)
    assert mmpelk.freeze(mixer) is mixer
    assert not any(parameter.requires_grad for parameter in mixer.parameters())
    with mock.patch.object(peripheral, 'prepare', wraps=peripheral.prepare) as prepare:
        for _ in range(3):
            torch.testing.assert_close(mixer(x), before)
        for width in range(8):  # as many as are kept stay; the others are right all the same
            other = torch.randn(2, 5, 9, 3 + width)
            torch.testing.assert_close(mixer(other), _plain(mixer, other))
        torch.testing.assert_close(mixer(x), before)
        assert (prepare.call_count, len(mixer._prepared)) == (9, 4)
    CHANGES[change](mixer)
    unseen = change in ('nothing', *UNSEEN)
    with nullcontext() if unseen else pytest.raises(RuntimeError, match=r'call mmpelk.freeze\(model\) again'):
        torch.testing.assert_close(mixer(x), before)
    mmpelk.freeze(mixer)
    torch.testing.assert_close(mixer(x), _plain(mixer, x))
    mmpelk.freeze(mixer, False)
    mixer.large.weight.data.mul_(2)
    torch.testing.assert_close(mixer(x), _plain(mixer, x))


def test_thawed_its_parameters_have_gradients_as_before(mixer: PeripheralMixer) -> None:
    network = nn.Sequential(mixer, nn.Conv2d(5, 5, 1))
    network.requires_grad_(True)
    network[1].bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in network.parameters()]
    for _ in range(2):  # the second finds them without gradients
        mmpelk.freeze(network)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for thawed in (mmpelk.freeze(copy.deepcopy(network), False), mmpelk.freeze(network, False)):
        assert [parameter.requires_grad for parameter in thawed.parameters()] == before
    mmpelk.freeze(network.requires_grad_(False), False)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_only_merged_networks_are_frozen() -> None:
    trained = DenseMixer(MixerSpec(3, 13))
    for network in (nn.Conv2d(1, 1, 1), trained, nn.Sequential(_deployed(), trained)):
        with pytest.raises(ValueError, match='switch_to_deploy'):
            mmpelk.freeze(network)
    mmpelk.freeze(DenseMixer(MixerSpec(3, 13, deploy=True)))


@torch.inference_mode()
def test_follows_writes_to_inference_tensors() -> None:
    mixer, x = _deployed(), torch.randn(2, 5, 9, 12)
    for _ in range(2):
        torch.testing.assert_close(mixer(x), _plain(mixer, x))
        mixer.large.weight.mul_(2)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', ON_CPU)
@torch.no_grad()
def test_settings_and_copies(mixer: PeripheralMixer, backend: str, dtype: torch.dtype) -> None:
    mixer.large.backend = backend
    x = torch.randn(2, 5, 9, 12)
    with torch.autocast('cpu', dtype):
        rounded = mixer(x)
    single = mixer(x)  # of what was not rounded
    assert rounded.dtype == dtype
    torch.testing.assert_close(rounded.float(), single, rtol=0.05, atol=0.05)  # a few ulps of bfloat16's 2^-8
    torch.testing.assert_close(single, _plain(mixer, x))
    with pytest.raises(ValueError, match=r'weight is torch.float32 on cpu, x is torch.float64'):
        mixer(x.double())
    copies = [copy.deepcopy(mixer), *(pickle.loads(pickle.dumps(mixer, protocol)) for protocol in (0, 2, 5))]
    copies.append(pickle.loads(ForkingPickler.dumps(mixer)))  # as processes get it that are started
    for other in copies:
        assert len(other._prepared) == 0
        assert torch.equal(other(x), single)
    assert mixer(x.mT.contiguous().mT).is_contiguous()


@torch.no_grad()
def test_a_size_is_prepared_once_for_each_backend(mixer: PeripheralMixer) -> None:
    x = torch.randn(1, 5, 10, 9)
    with mock.patch.object(peripheral, 'prepare', side_effect=peripheral.prepare) as prepared:
        for count, backend, forced in ((1, None, None), (2, None, 'fft'), (3, 'dft', None)):
            mixer.large.backend = backend
            for _ in range(2):
                with force_backend(forced) if forced else nullcontext():
                    mixer(x)
                assert prepared.call_count == count
    mixer.large.sharing_grid = (3, *[1] * 7, 3)  # of as many rings
    torch.testing.assert_close(mixer(x), _plain(mixer, x))


def test_gradients_take_no_constants(mixer: PeripheralMixer) -> None:
    out = mixer(torch.randn(2, 3, 9, 12)).square().sum()
    assert all(grad.any() for grad in torch.autograd.grad(out, [mixer.large.weight, mixer.large.bias]))


@pytest.mark.parametrize('backend', ON_CPU)
def test_nothing_stays_of_a_fake_forward(mixer: PeripheralMixer, backend: str) -> None:
    """As those that count operations, whose tensors have no numbers."""
    x = torch.randn(2, 5, 9, 14)
    with torch.no_grad(), force_backend(backend):
        want = mixer(x)
        kept = len(mixer._prepared)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = torch.cat([mixer(mode.from_tensor(x)[:, :3]), mode.from_tensor(x)[:, 3:]], 1)
        assert fake.shape == want.shape
        assert len(mixer._prepared) == kept
        torch.testing.assert_close(mixer(x), want, rtol=0, atol=0)


def test_threads_get_what_one_gets() -> None:
    """Eight threads, more sizes than are kept, weights that change in between."""
    arch = dict(depths=(1, 1), channels=(8, 8), kernel_sizes=(13, 13))
    network = PeLK(arch, gap_before_final_norm=False).eval()
    network.switch_to_deploy()
    images = [torch.rand(1, 3, 32 + 8 * index, 32) for index in range(7)]
    with torch.no_grad():
        want = [network(image)[0] for image in images]
    wrong: list[object] = []

    def serve(first: int) -> None:
        try:
            with torch.no_grad():
                for index in range(first, first + 40):
                    if not torch.equal(network(images[index * 5 % 7])[0], want[index * 5 % 7]):
                        wrong.append(index)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=serve, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ('dtype', 'kept'),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_tables_have_more_digits_than_weights_in_16_bits(dtype: torch.dtype, kept: torch.dtype) -> None:
    """Their sums are subtracted from each other."""
    mixer = PeripheralMixer(MixerSpec(3, 13, positional_embedding='in_bounds')).eval().to(dtype)
    mixer.switch_to_deploy(torch.randn(3, 13, 13).to(dtype))
    assert mixer.embedding_table.dtype == kept
    assert {parameter.dtype for parameter in mixer.parameters()} == {dtype}
    if dtype != torch.float16:  # which older torch does not convolve on a CPU
        x = torch.randn(2, 5, 9, 12).to(dtype)
        with torch.no_grad():
            got = mixer(x)
        torch.testing.assert_close(got, _plain(mixer, x), rtol=0.05, atol=0.05)


class DetrFrozenBatchNorm2d(nn.BatchNorm2d):
    """As transformers has them, whose epsilon is a number in the code."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


@pytest.mark.parametrize('kind', ['torchvision', 'transformers'])
def test_frozen_norms_have_their_own_epsilon(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DetrFrozenBatchNorm2d, '__module__', 'transformers.models.detr.modeling_detr')
    ops = pytest.importorskip('torchvision.ops')
    norm = ops.FrozenBatchNorm2d(3, eps=1e-3) if kind == 'torchvision' else DetrFrozenBatchNorm2d(3)
    norm.running_var.fill_(1e-5)
    x = torch.randn(2, 3, 4, 5)
    scale, shift = norm_as_affine(norm)
    torch.testing.assert_close(scale[:, 0] * x + shift[:, None, None], norm(x), check_dtype=False)
