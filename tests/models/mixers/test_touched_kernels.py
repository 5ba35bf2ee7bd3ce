"""Kernels that have hooks, are wrapped or are changed: they are called as modules, and merged rightly or not at all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.utils import fuse_conv_bn
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
)
from torch.nn.utils import parametrizations, parametrize, prune

from mmpelk.models import MIXERS, MixerSpec, PeLK, PeripheralConv2d, PeripheralMixer
from mmpelk.models.mixers.base import is_untouched

SIZE = 13


def trained(name: str = 'peripheral', **arguments: object) -> PeripheralMixer:
    """A mixer in eval mode whose norms do something."""
    torch.manual_seed(0)
    mixer = MIXERS[name](MixerSpec(4, SIZE, **arguments)).double()
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return mixer.eval()


def network(depth: int = 1, deployed: bool = False, **arguments: object) -> PeLK:
    arch = dict(depths=(depth,), channels=(16,), kernel_sizes=(SIZE,))
    model = PeLK(arch, **dict(gap_before_final_norm=False) | arguments).eval()
    if deployed:
        model.switch_to_deploy()
    return model


def image() -> Tensor:
    return torch.randn(2, 4, 9, 11, dtype=torch.float64, requires_grad=True)


def replace_forward(kernel: nn.Module, seen: list[int]) -> None:
    """As activation checkpointing, LoRA and accelerate do it."""
    inner = kernel.forward
    kernel.forward = lambda *args, **kwargs: (seen.append(1), inner(*args, **kwargs))[1]


OF_A_KERNEL: dict[str, Callable[[nn.Module, list[int]], object]] = {
    'forward hook': lambda kernel, seen: kernel.register_forward_hook(lambda *_: seen.append(1)),
    'forward pre-hook': lambda kernel, seen: kernel.register_forward_pre_hook(lambda *_: seen.append(1)),
    'backward hook': lambda kernel, seen: kernel.register_full_backward_hook(lambda *_: seen.append(1)),
    'backward pre-hook': lambda kernel, seen: kernel.register_full_backward_pre_hook(lambda *_: seen.append(1)),
    'replaced forward': replace_forward,
}
OF_ALL = [register_module_forward_hook, register_module_forward_pre_hook, register_module_full_backward_hook]


@pytest.mark.parametrize('kind', OF_A_KERNEL)
@pytest.mark.parametrize('name', ['large', 'small'])
def test_a_watched_kernel_is_called_in_training(name: str, kind: str) -> None:
    """With the outputs and gradients of the form that computes both kernels at once."""
    mixer, x, seen = trained(positional_embedding='in_bounds').train(), image(), []
    inputs = [x, torch.randn(4, SIZE, SIZE, dtype=torch.float64, requires_grad=True)]

    def outcome() -> list[Tensor]:
        out = mixer(*inputs)
        return [out, *torch.autograd.grad(out.sin().sum(), [*inputs, *mixer.parameters()])]

    want = outcome()
    OF_A_KERNEL[kind](getattr(mixer, name), seen)
    got = outcome()
    assert seen == [1]
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('register', OF_ALL, ids=lambda function: function.__name__)
def test_global_hooks_see_both_kernels(register: Callable) -> None:
    mixer, seen = trained().train(), []
    handle = register(lambda module, *_: seen.append(module))
    try:
        mixer(image()).sum().backward()
    finally:
        handle.remove()
    assert {mixer.large, mixer.small} <= set(seen)


@pytest.mark.parametrize('rate', [0.0, 0.5])
@pytest.mark.parametrize('kind', ['forward hook', 'forward pre-hook', 'replaced forward'])
@torch.no_grad()
def test_a_watched_drop_path_is_called_in_evaluation(kind: str, rate: float) -> None:
    model, seen = network(2, drop_path_rate=rate), []
    x = torch.rand(1, 3, 32, 32)
    want = model(x)[0]
    OF_A_KERNEL[kind](model.stages[0][1].drop_path, seen)
    torch.testing.assert_close(model(x)[0], want)
    assert seen == [1]


@pytest.mark.parametrize('kind', ['forward hook', 'forward pre-hook', 'replaced forward'])
@torch.no_grad()
def test_a_watched_kernel_is_called_when_deployed(kind: str) -> None:
    model = network(deployed=True)
    x, seen = torch.rand(1, 3, 32, 32), []
    want = model(x)[0]
    OF_A_KERNEL[kind](model.stages[0][0].mixer.large, seen)
    torch.testing.assert_close(model(x)[0], want)
    assert seen == [1]


def test_a_hook_may_change_what_a_kernel_gives() -> None:
    mixer, x = trained(), image()
    want = mixer(x) + mixer.small_norm(mixer.small(x)) - mixer.small_norm(torch.zeros_like(x))
    mixer.small.register_forward_hook(lambda module, args, out: 2 * out)
    torch.testing.assert_close(mixer(x), want)


@pytest.mark.parametrize('grad', [False, True])
def test_norms_fused_by_mmcv(grad: bool) -> None:
    mixer, x = trained(), image()
    want = mixer(x)
    fused = fuse_conv_bn(mixer)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(fused(x), want)
    fused.switch_to_deploy()
    torch.testing.assert_close(fused(x), want)


def test_another_padding_is_kept() -> None:
    """As for panoramas: a convolution that wraps around."""
    mixer, x = trained(), image()
    mixer.small.padding_mode = 'circular'
    small = F.conv2d(F.pad(x, [2] * 4, mode='circular'), mixer.small.weight, groups=4)
    want = mixer.large_norm(mixer.large(x)) + mixer.small_norm(small)
    torch.testing.assert_close(mixer(x), want)
    with pytest.raises(ValueError, match=r'small \(Conv2d\) cannot be merged: .*switch_to_deploy'):
        mixer.switch_to_deploy()


class Rounded(nn.Module):
    """As fake quantisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return (weight * 50).round() / 50


FOLDABLE: dict[str, Callable[[nn.Module], object]] = {
    'weight norm': parametrizations.weight_norm,
    'spectral norm': lambda kernel: parametrizations.spectral_norm(kernel).eval(),
    'weight norm by a hook': nn.utils.weight_norm,
    'spectral norm by a hook': nn.utils.spectral_norm,
    'a parametrisation': lambda kernel: parametrize.register_parametrization(kernel, 'weight', Rounded()),
    'pruning': lambda kernel: prune.random_unstructured(kernel, 'weight', 0.5),
}


@pytest.mark.parametrize('kind', FOLDABLE)
@pytest.mark.parametrize('name', ['peripheral', 'stripe'])
def test_what_computes_a_weight_is_folded(name: str, kind: str) -> None:
    mixer, x = trained(name), image().detach()
    kernels = [mixer.small, *(mixer.large if name == 'stripe' else [mixer.large])]
    for kernel in kernels:
        FOLDABLE[kind](kernel)
    mixer.eval()
    with torch.no_grad():
        want = mixer(x)
        mixer.switch_to_deploy()
        torch.testing.assert_close(mixer(x), want)
    names = ['large.0.weight', 'large.0.bias', 'large.1.weight'] if name == 'stripe' else ['large.weight', 'large.bias']
    assert sorted(name for name, value in mixer.named_parameters() if value.requires_grad) == sorted(names)
    assert not [name for name, _ in mixer.named_buffers() if 'weight' in name]


@pytest.mark.parametrize(
    'compute',
    [
        lambda module, name: parametrize.register_parametrization(module, name, Rounded()),
        lambda module, name: prune.random_unstructured(module, name, 0.5),
        lambda module, name: nn.utils.weight_norm(module, name, None),
    ],
    ids=['parametrisations', 'pruning', 'weight norm by a hook'],
)
@pytest.mark.parametrize('name', ['peripheral', 'stripe'])
@torch.no_grad()
def test_what_computes_biases_and_numbers_of_norms_is_folded(name: str, compute: Callable[..., object]) -> None:
    mixer, x = trained(name), image().detach()
    mixer.small.bias = nn.Parameter(torch.randn(4, dtype=torch.float64))
    for module in (mixer.small, *(each for each in mixer.modules() if isinstance(each, nn.BatchNorm2d))):
        compute(module, 'bias')
        compute(module, 'weight')
    want = mixer(x)
    mixer.switch_to_deploy()
    torch.testing.assert_close(mixer(x), want)


class Activated(nn.BatchNorm2d):
    """As timm's norms with an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def activate(mixer: PeripheralMixer) -> None:
    norm = Activated(4).double().eval()
    norm.load_state_dict(mixer.large_norm.state_dict())
    mixer.large_norm = norm


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class ScaledPeripheral(PeripheralConv2d):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().forward(*args, **kwargs)


CANNOT = 'cannot be merged: .* Take that off it before switch_to_deploy'
REFUSED: dict[str, tuple[Callable[[PeripheralMixer], object], str]] = {
    'hook': (lambda mixer: mixer.large.register_forward_hook(lambda module, args, out: 2 * out), f'large .* {CANNOT}'),
    'forward': (lambda mixer: replace_forward(mixer.small, []), f'small .* {CANNOT}'),
    'hook of a norm': (
        lambda mixer: mixer.large_norm.register_forward_hook(lambda module, args, out: out + 1),
        f'large_norm .* {CANNOT}',
    ),
    'a large kernel of another class': (
        lambda mixer: setattr(mixer.large, '__class__', ScaledPeripheral),
        f'large .* {CANNOT}',
    ),
    'a small kernel of another class': (lambda mixer: setattr(mixer.small, '__class__', Scaled), f'small .* {CANNOT}'),
    'norm that does more': (activate, 'Activated may do more than a batch norm'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_cannot_be_folded_is_refused(kind: str) -> None:
    (change, message), mixer, x = REFUSED[kind], trained(), image()
    change(mixer)
    want = mixer(x)
    with pytest.raises(ValueError, match=message):
        mixer.switch_to_deploy()
    torch.testing.assert_close(mixer(x), want)  # still whole


def test_untouched_is_the_rule() -> None:
    """The kernels of a new network take the fast path; parametrised, compiled and changed ones do not."""
    mixer = trained()
    assert is_untouched(mixer.large, mixer.small)
    for change in (
        lambda mixer: parametrize.register_parametrization(mixer.large, 'weight', nn.Identity()),
        lambda mixer: mixer.large.compile(),
        lambda mixer: setattr(mixer.small, 'dilation', (2, 2)),
        lambda mixer: setattr(mixer.small, 'stride', (2, 2)),
        lambda mixer: setattr(mixer.small, 'padding_mode', 'circular'),
        lambda mixer: setattr(mixer.small, '__class__', Scaled),
        lambda mixer: setattr(mixer.large, '__class__', ScaledPeripheral),
    ):
        touched = trained()
        change(touched)
        assert not is_untouched(touched.large, touched.small)


@pytest.mark.parametrize('name', ['peripheral', 'stripe'])
def test_kernels_that_are_shared_are_merged_apart(name: str) -> None:
    """Two blocks, or two networks, with one kernel: deploying one leaves the other as it is."""
    first, second, x = trained(name), trained(name), image().detach()
    second.large = first.large
    with torch.no_grad():
        wants = first(x), second(x)
        first.switch_to_deploy()
        torch.testing.assert_close(second(x), wants[1])
        second.switch_to_deploy()
        for mixer, want in zip((first, second), wants, strict=True):
            torch.testing.assert_close(mixer(x), want)


@pytest.mark.parametrize('wrap', [False, True])
@torch.no_grad()
def test_a_watched_mixer_gets_its_own_channels_when_deployed(wrap: bool) -> None:
    model = network(deployed=True)
    mixer, seen = model.stages[0][0].mixer, []
    if wrap:
        inner = mixer.forward
        mixer.forward = lambda x, embedding=None: (seen.append(x.shape[1]), inner(x, embedding))[1]
    else:
        mixer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    model(torch.rand(1, 3, 32, 32))
    assert seen == [6]


def test_a_pruned_embedding_is_folded() -> None:
    model = network(2).double()
    stage, x = model.stages[0], torch.rand(1, 3, 32, 32, dtype=torch.float64)
    prune.l1_unstructured(stage, 'positional_embedding', 0.3)
    stage.positional_embedding_orig.data.mul_(30)  # as a step of an optimizer
    with torch.no_grad():
        want = model(x)[0]
        model.switch_to_deploy()
        torch.testing.assert_close(model(x)[0], want)


def test_dropped_paths_can_be_drawn_in_evaluation() -> None:
    model = network(2, drop_path_rate=0.9, layer_scale_init_value=1.0, gap_before_final_norm=True)
    x = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        want = model(x)[0]
        assert torch.equal(model(x)[0], want)
        model.stages[0][1].drop_path.train()
        assert not torch.equal(model(x)[0], want)


def test_slices_of_a_stage_keep_names_and_embedding() -> None:
    stage, x = network(3).stages[0], torch.rand(1, 16, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(stage[1:](stage[:1](x)), stage(x))
    assert [name for name, _ in stage[1:].named_children()] == ['1', '2']
    assert stage[:1].positional_embedding is stage.positional_embedding


@torch.no_grad()
def test_forward_mode_is_refused_when_deployed_and_vmap_keeps_nothing() -> None:
    model = network(deployed=True)
    x = torch.rand(1, 3, 32, 32)
    with pytest.raises(NotImplementedError, match='no forward-mode derivative'):
        torch.func.jvp(lambda image: model(image)[0], (x,), (x,))
    stacked = torch.stack([x, 2 * x])
    want = torch.stack([model(one)[0] for one in stacked])
    for _ in range(2):
        torch.testing.assert_close(torch.vmap(lambda image: model(image)[0])(stacked), want)


def test_arguments_are_those_of_the_call() -> None:
    arch = dict(depths=[1], channels=[16], kernel_sizes=[SIZE])
    model = PeLK(arch)
    arch['kernel_sizes'][0] = 31
    assert model.arguments()['arch']['kernel_sizes'] == [SIZE]
