"""Regions of a grid, and kernels and embeddings out of checkpoints in every form that they come in."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmpelk.analysis.kernels import (
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


class TestRegions:
    def test_of_fig_1a(self) -> None:
        """[2, 1, 2]: nine parameters, and corners of 2 x 2."""
        cut = regions([2, 1, 2])
        assert [(region.top, region.left, region.height, region.width) for region in cut] == [
            (0, 0, 2, 2), (0, 2, 2, 1), (0, 3, 2, 2),
            (2, 0, 1, 2), (2, 2, 1, 1), (2, 3, 1, 2),
            (3, 0, 2, 2), (3, 2, 2, 1), (3, 3, 2, 2),
        ]  # fmt: skip
        assert [region.index for region in cut] == list(range(9))

    @pytest.mark.parametrize('kernel_size', [5, 13, 31, 69])
    def test_cover_the_kernel_as_the_operator_expands_it(self, kernel_size: int) -> None:
        grid = sharing_grid(kernel_size)
        indices = expand_kernel(torch.arange(len(grid) ** 2).view(len(grid), -1), grid)
        drawn = torch.full((kernel_size, kernel_size), -1)
        for region in regions(grid):
            part = drawn[region.top : region.top + region.height, region.left : region.left + region.width]
            assert (part == -1).all()
            part.fill_(region.index)
        assert torch.equal(drawn, indices)

    def test_refuses_what_is_no_grid(self) -> None:
        with pytest.raises(ValueError, match='symmetric about its centre'):
            regions([2, 1, 1, 1])


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.', 'module.'])
def test_tensors_of_any_model(prefix: str) -> None:
    own = {'stages.0.0.gamma': torch.ones(1)}
    state = {f'{prefix}{name}': value for name, value in own.items()}
    if 'backbone' in prefix:
        state['module.decode_head.weight'] = torch.ones(2)
    assert backbone_tensors(state) == own


class TestLearntKernel:
    @pytest.mark.parametrize(('stage', 'block'), [(0, 0), (1, 1)])
    def test_trained(self, stage: int, block: int) -> None:
        model = backbone()
        large = model.stages[stage][block].mixer.large
        kernel = learnt_kernel(model, model.state_dict(), stage, block)
        assert not kernel.deployed
        assert kernel.name == f'stages.{stage}.{block}.mixer.large.weight'
        assert torch.equal(kernel.dense, expand_kernel(large.weight, large.sharing_grid)[:, 0])

    def test_deployed(self) -> None:
        """The config of the trained form reads the checkpoint of the merged one."""
        state = deploy_state_dict(backbone(), backbone().state_dict())
        kernel = learnt_kernel(backbone(), state, 1, 0)
        assert kernel.deployed
        assert torch.equal(kernel.weight, state['stages.1.0.mixer.large.weight'][:, 0])

    def test_dense(self) -> None:
        model = backbone(mixer='dense')
        kernel = learnt_kernel(model, model.state_dict(), 0, 0)
        assert kernel.grid == (1,) * 13
        assert torch.equal(kernel.dense, kernel.weight)

    def test_masked_weights_are_zero(self) -> None:
        model, name = backbone(), 'stages.0.0.mixer.large.weight'
        state = model.state_dict()
        state[f'{name}_mask'] = torch.rand_like(state[name]) < 0.6
        kernel = learnt_kernel(model, state, 0, 0)
        assert torch.equal(kernel.weight == 0, ~state[f'{name}_mask'][:, 0])

    def test_of_another_network(self) -> None:
        state = backbone(kernel_sizes=(31, 9)).state_dict()
        with pytest.raises(ValueError, match=r'has 11 x 11 parameters, the sharing grid .* 9 x 9'):
            learnt_kernel(backbone(), state, 0, 0)
        with pytest.raises(ValueError, match=r"no 'stages.0.0.mixer.large.weight'; its nearest: x.stages.0.0.mixer.la"):
            learnt_kernel(backbone(), {f'x.{name}': value for name, value in state.items()}, 0, 0)

    @pytest.mark.parametrize(('stage', 'block'), [(2, 0), (-1, 0), (1, 2)])
    def test_of_no_block(self, stage: int, block: int) -> None:
        model = backbone()
        with pytest.raises(ValueError, match=f'there is no block {block} in stage {stage}: counted from 0'):
            learnt_kernel(model, model.state_dict(), stage, block)

    def test_of_stripes(self) -> None:
        model = backbone(mixer='stripe', positional_embedding=None)
        with pytest.raises(ValueError, match='StripeMixer has neither sharing grid nor embedding'):
            learnt_kernel(model, model.state_dict(), 0, 0)


def reference_term(model: PeLK, stage: int, block: int, size: tuple[int, int], mode: Any = 'in_bounds') -> Tensor:
    """``M`` as Eq. 3 spells it: what the convolution gives where the image is zero."""
    large, embedding = model.stages[stage][block].mixer.large, model.stages[stage].positional_embedding
    zero = torch.zeros(1, large.weight.shape[0], *size)
    return peripheral_conv2d_reference(zero, large.weight, large.sharing_grid, None, embedding, mode)[0].float()


class TestLearntEmbedding:
    @pytest.mark.parametrize('size', [(7, 10), (20, 16)], ids=['smaller-than-the-kernel', 'larger'])
    @pytest.mark.parametrize('mode', ['in_bounds', 'constant'])
    def test_map_is_eq_3_of_an_empty_image(self, mode: Any, size: tuple[int, int]) -> None:
        model = backbone(positional_embedding=mode)
        learnt = learnt_embedding(model, model.state_dict(), 0, 0, size)
        assert learnt.embedding is not None
        assert torch.equal(learnt.embedding, model.stages[0].positional_embedding)
        # Sums of 169 products near 1 in float32.
        torch.testing.assert_close(learnt.map, reference_term(model, 0, 0, size, mode), rtol=1e-5, atol=1e-4)

    def test_weighted_sums_to_the_term_that_sees_all_of_the_kernel(self) -> None:
        model = backbone()
        learnt = learnt_embedding(model, model.state_dict(), 0, 0, (13, 13))
        torch.testing.assert_close(learnt.weighted.sum((1, 2)), learnt.map[:, 6, 6], rtol=1e-5, atol=1e-4)

    def test_blocks_share_h_but_not_m(self) -> None:
        model = backbone()
        first, second = (learnt_embedding(model, model.state_dict(), 1, block, (9, 9)) for block in range(2))
        assert first.embedding is not None
        assert second.embedding is not None
        assert torch.equal(first.embedding, second.embedding)
        assert not torch.equal(first.map, second.map)

    def test_deployed_carries_the_norms_scale(self) -> None:
        model = backbone()
        trained = learnt_embedding(model, model.state_dict(), 0, 0, (8, 8))
        norm = model.stages[0][0].mixer.large_norm
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()[:, None, None]
        deployed = learnt_embedding(backbone(), deploy_state_dict(model, model.state_dict()), 0, 0, (8, 8))
        assert deployed.embedding is None
        assert deployed.name == 'stages.0.0.mixer.embedding_table'
        # Differences of float32 sums up to some hundred.
        torch.testing.assert_close(deployed.weighted, trained.weighted * scale, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(deployed.map, trained.map * scale, rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize(
        ('mode', 'change', 'size', 'message'),
        [
            (None, {}, 8, 'positional_embedding=None'),
            (
                'in_bounds',
                {'stages.0.positional_embedding': None},
                8,
                "no 'stages.0.positional_embedding'; its nearest",
            ),
            (
                'in_bounds',
                {'stages.0.positional_embedding': torch.rand(3, 11, 11)},
                8,
                r'is \(3, 11, 11\) in the check',
            ),
            ('in_bounds', {}, 0, 'two positive integers'),
        ],
        ids=['without-one', 'absent', 'of-another-kernel', 'empty-map'],
    )
    def test_refuses(self, mode: Any, change: dict[str, Any], size: int, message: str) -> None:
        model = backbone(positional_embedding=mode)
        state = {name: value for name, value in (model.state_dict() | change).items() if value is not None}
        with pytest.raises(ValueError, match=message):
            learnt_embedding(model, state, 0, 0, (8, size))

    def test_in_a_bias(self) -> None:
        model = backbone(positional_embedding='constant')
        state = deploy_state_dict(model, model.state_dict())
        with pytest.raises(ValueError, match="in the kernel's bias"):
            learnt_embedding(backbone(positional_embedding='constant'), state, 0, 0, (8, 8))
