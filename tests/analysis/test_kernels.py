"""Regions of a grid, and kernels and embeddings out of checkpoints in every form that they come in."""

from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpelk.analysis.kernels import (
    LearntEmbedding,
    LearntKernel,
    backbone_tensors,
    learnt_embedding,
    learnt_kernel,
    regions,
)
from mmpelk.models import PeLK
from mmpelk.models.deploy import deploy_state_dict
from mmpelk.ops import expand_kernel, sharing_grid
from mmpelk.ops.reference import peripheral_conv2d_reference

ARCH = dict(depths=(1, 2), channels=(8, 16), kernel_sizes=(13, 9), center_size=5)


def backbone(**changes: Any) -> PeLK:
    """A tiny network with random numbers in every floating-point tensor."""
    torch.manual_seed(0)
    model = PeLK(ARCH, out_indices=(0, 1), **changes).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    return model


def kernel_of(model: PeLK, stage: int = 0, block: int = 0, **changes: Tensor) -> LearntKernel:
    return learnt_kernel(model, model.state_dict() | changes, stage, block)


def embedding_of(model: PeLK, size: tuple[int, int] = (8, 9), stage: int = 0, block: int = 0) -> LearntEmbedding:
    return learnt_embedding(model, model.state_dict(), stage, block, size)


def test_regions_of_fig_1a() -> None:
    """[2, 1, 2]: nine parameters, and corners of 2 x 2."""
    assert [astuple(region) for region in regions([2, 1, 2])] == [
        (0, 0, 0, 2, 2), (1, 0, 2, 2, 1), (2, 0, 3, 2, 2),
        (3, 2, 0, 1, 2), (4, 2, 2, 1, 1), (5, 2, 3, 1, 2),
        (6, 3, 0, 2, 2), (7, 3, 2, 2, 1), (8, 3, 3, 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize('kernel_size', [5, 13, 31, 69])
def test_regions_cover_the_kernel_as_the_operator_expands_it(kernel_size: int) -> None:
    grid = sharing_grid(kernel_size)
    indices = expand_kernel(torch.arange(len(grid) ** 2).view(len(grid), -1), grid)
    drawn = torch.full((kernel_size, kernel_size), -1)
    for region in regions(grid):
        drawn[region.top : region.top + region.height, region.left : region.left + region.width] = region.index
    assert torch.equal(drawn, indices)
    assert sum(region.height * region.width for region in regions(grid)) == kernel_size**2, 'each position once'


def test_tensors_of_any_model() -> None:
    own = {'stages.0.0.gamma': torch.ones(1)}
    for prefix in ('', 'backbone.', 'module.backbone.', 'module.'):
        state = {f'{prefix}{name}': value for name, value in own.items()}
        if 'backbone' in prefix:
            state['module.decode_head.weight'] = torch.ones(2)
        assert backbone_tensors(state) == own


def test_kernels_of_every_form() -> None:
    model = backbone()
    for stage, block in ((0, 0), (1, 1)):
        large, kernel = model.stages[stage][block].mixer.large, kernel_of(model, stage, block)
        assert not kernel.deployed
        assert kernel.name == f'stages.{stage}.{block}.mixer.large.weight'
        assert torch.equal(kernel.dense, expand_kernel(large.weight, large.sharing_grid)[:, 0])

    # The config of the trained form reads the checkpoint of the merged one.
    state = deploy_state_dict(backbone(), backbone().state_dict())
    kernel = learnt_kernel(backbone(), state, 1, 0)
    assert kernel.deployed
    assert torch.equal(kernel.weight, state['stages.1.0.mixer.large.weight'][:, 0])

    kernel = kernel_of(backbone(mixer='dense'))
    assert kernel.grid == (1,) * 13
    assert torch.equal(kernel.dense, kernel.weight)

    halves = {name: value.half() for name, value in backbone().state_dict().items()}  # products would lose digits
    assert learnt_kernel(backbone(), halves, 0, 0).weight.dtype == torch.float32
    learnt = learnt_embedding(backbone(), halves, 0, 0, (8, 9))
    assert {value.dtype for value in (learnt.embedding, learnt.weighted, learnt.map)} == {torch.float32}

    mask = torch.rand(3, 1, 9, 9) < 0.6
    kernel = kernel_of(backbone(), **{'stages.0.0.mixer.large.weight_mask': mask})
    assert torch.equal(kernel.weight == 0, ~mask[:, 0])


def test_no_such_kernel() -> None:
    for stage, block, message in (
        (2, 0, 'there is no block 0 in stage 2: counted from 0'),
        (-1, 0, 'there is no block 0 in stage -1'),
        (1, 2, 'there is no block 2 in stage 1'),
        (1, -1, 'there is no block -1 in stage 1'),
    ):
        with pytest.raises(ValueError, match=message):
            kernel_of(backbone(), stage, block)
    with pytest.raises(ValueError, match='StripeMixer has neither sharing grid nor embedding'):
        kernel_of(backbone(mixer='stripe', positional_embedding=None))
    state = backbone(kernel_sizes=(31, 9)).state_dict()
    with pytest.raises(ValueError, match=r'has 11 x 11 parameters, the sharing grid .* 9 x 9'):
        learnt_kernel(backbone(), state, 0, 0)
    with pytest.raises(ValueError, match=r"no 'stages.0.0.mixer.large.weight'; its nearest: x.stages.0.0.mixer.la"):
        learnt_kernel(backbone(), {f'x.{name}': value for name, value in state.items()}, 0, 0)


@pytest.mark.parametrize('size', [(7, 10), (13, 13), (20, 16)], ids=['smaller-than-the-kernel', 'equal', 'larger'])
@pytest.mark.parametrize('mode', ['in_bounds', 'constant'])
def test_map_is_eq_3_of_an_empty_image(mode: Any, size: tuple[int, int]) -> None:
    model = backbone(positional_embedding=mode)
    learnt, large, h = embedding_of(model, size), model.stages[0][0].mixer.large, model.stages[0].positional_embedding
    assert torch.equal(learnt.embedding, h)
    zero = torch.zeros(1, large.weight.shape[0], *size)
    expected = peripheral_conv2d_reference(zero, large.weight, large.sharing_grid, None, h, mode)[0].float()
    # Sums of 169 products near 1 in float32.
    torch.testing.assert_close(learnt.map, expected, rtol=1e-5, atol=1e-4)
    if size == (13, 13):  # its central position sees all of the kernel
        torch.testing.assert_close(learnt.weighted.sum((1, 2)), learnt.map[:, 6, 6], rtol=1e-5, atol=1e-4)


def test_deployed_carries_the_norms_scale() -> None:
    model = backbone()
    first, second = (embedding_of(model, (9, 9), 1, block) for block in range(2))
    assert torch.equal(first.embedding, second.embedding)
    assert not torch.equal(first.map, second.map), 'blocks share h but not M'
    trained, norm = embedding_of(model), model.stages[0][0].mixer.large_norm
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()[:, None, None]
    deployed = learnt_embedding(backbone(), deploy_state_dict(model, model.state_dict()), 0, 0, (8, 9))
    assert deployed.embedding is None
    assert deployed.name == 'stages.0.0.mixer.embedding_table'
    # Differences of float32 sums up to some hundred.
    torch.testing.assert_close(deployed.weighted, trained.weighted * scale, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(deployed.map, trained.map * scale, rtol=1e-4, atol=1e-3)


H = 'stages.0.positional_embedding'


def test_embedding_that_is_not_there() -> None:
    model, constant = backbone(), backbone(positional_embedding='constant')
    state = model.state_dict()
    for network, tensors, size, message in (
        (backbone(positional_embedding=None), state, 8, 'positional_embedding=None'),
        (model, {name: value for name, value in state.items() if name != H}, 8, f"no '{H}'; its nearest: "),
        (
            model,
            state | {H: torch.rand(3, 11, 11)},
            8,
            r'is \(3, 11, 11\) in the checkpoint, and the kernel is \(3, 13',
        ),
        (model, state, 0, 'two positive integers'),
        (constant, deploy_state_dict(constant, constant.state_dict()), 8, "in the kernel's bias"),
    ):
        with pytest.raises(ValueError, match=message):
            learnt_embedding(network, tensors, 0, 0, (8, size))
