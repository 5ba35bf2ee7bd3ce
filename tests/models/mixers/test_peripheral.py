"""The mixer: its branches, and their merging into one kernel."""

import copy

import pytest
import torch
from torch import nn

from mmpelk.models import MixerSpec, PeripheralMixer
from mmpelk.ops.reference import peripheral_conv2d_reference


def _trained(**arguments: object) -> tuple[PeripheralMixer, torch.Tensor]:
    """A mixer in float64 whose norms have moved away from their initial statistics, in eval mode; and an embedding."""
    torch.manual_seed(0)
    mixer = PeripheralMixer(MixerSpec(3, 13, **arguments)).double()
    embedding = torch.randn(3, 13, 13, dtype=torch.float64)
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for _ in range(3):
        mixer(2 * torch.randn(2, 3, 16, 16, dtype=torch.float64) + 1, embedding)
    return mixer.eval(), embedding


@pytest.mark.parametrize('mode', ['in_bounds', 'constant', None])
@pytest.mark.parametrize('small_kernel_size', [0, 3, 5])
def test_branches_follow_the_equations(mode: str | None, small_kernel_size: int) -> None:
    mixer, embedding = _trained(positional_embedding=mode, small_kernel_size=small_kernel_size)
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    arguments = dict(embedding=embedding, embedding_mode=mode) if mode else {}
    large = peripheral_conv2d_reference(x, mixer.large.weight, mixer.large.sharing_grid, **arguments)
    want = mixer.large_norm(large)
    if small_kernel_size:
        want = want + mixer.small_norm(mixer.small(x))
    torch.testing.assert_close(mixer(x, embedding), want)


@pytest.mark.parametrize('mode', ['in_bounds', 'constant', None])
@pytest.mark.parametrize('small_kernel_size', [0, 3, 5])
@pytest.mark.parametrize('size', [(16, 16), (5, 30)], ids=['16x16', '5x30'])
def test_deployed_mixer_is_the_same_function(mode: str | None, small_kernel_size: int, size: tuple[int, int]) -> None:
    mixer, embedding = _trained(positional_embedding=mode, small_kernel_size=small_kernel_size)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    want = mixer(x, embedding)
    mixer.switch_to_deploy(embedding)
    torch.testing.assert_close(mixer(x), want, rtol=1e-10, atol=1e-10)
    assert [name for name, _ in mixer.named_parameters()] == ['large.weight', 'large.bias']
    assert mixer.large.weight.shape == (3, 1, 9, 9)  # still peripheral
    mixer.switch_to_deploy(embedding)  # a second call changes nothing
    torch.testing.assert_close(mixer(x), want, rtol=1e-10, atol=1e-10)


def test_built_for_deployment_has_the_converted_keys() -> None:
    mixer, embedding = _trained(positional_embedding='in_bounds')
    mixer.switch_to_deploy(embedding)
    built = PeripheralMixer(MixerSpec(3, 13, positional_embedding='in_bounds', deploy=True)).double()
    built.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    torch.testing.assert_close(built(x), mixer(x))


def test_constant_embedding_has_no_effect_behind_a_batch_norm() -> None:
    mixer, embedding = _trained(positional_embedding='constant')
    mixer.train()
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    embedding.requires_grad_()
    out = copy.deepcopy(mixer)(x, embedding)
    torch.testing.assert_close(out, mixer(x, 100 * embedding))
    (grad,) = torch.autograd.grad(out.square().sum(), embedding)
    assert grad.abs().max() < 1e-8


def test_small_kernel_beyond_the_centre_refuses_to_merge() -> None:
    mixer, embedding = _trained(sharing_grid=[2, 2, 2, 1, 2, 2, 2], positional_embedding='in_bounds')
    with pytest.raises(ValueError, match='small kernel of 5 does not fit the fine-grained centre'):
        mixer.switch_to_deploy(embedding)
    mixer(torch.zeros(1, 3, 9, 9, dtype=torch.float64), embedding)  # still whole


def test_norm_without_statistics_refuses_to_merge() -> None:
    mixer = PeripheralMixer(MixerSpec(4, 13, norm_cfg=dict(type='GN', num_groups=2)))
    with pytest.raises(ValueError, match='no running statistics'):
        mixer.switch_to_deploy()


def test_even_small_kernel() -> None:
    with pytest.raises(ValueError, match='small_kernel_size must be odd'):
        MixerSpec(4, 13, small_kernel_size=4)
