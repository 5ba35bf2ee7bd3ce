"""The receptive field that is measured equals the one that follows from the kernels, for networks with known ones."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmpelk.analysis.receptive_field import (
    area_ratios,
    contribution_scores,
    last_map,
    theoretical_size,
)
from mmpelk.models import PeLK
from mmpelk.ops import force_backend

KERNELS = (13, 9)
# Mixers with the share of channels and the kernels that they see with.
MIXERS: dict[str, dict[str, Any]] = {
    'peripheral': dict(conv_ratio=0.5),
    'dense': dict(conv_ratio=0.5),
    'stripe': dict(conv_ratio=1.0, positional_embedding=None),
    'conv7': dict(conv_ratio=1.0, positional_embedding=None),
}
# Even and odd, divisible by the strides and not; the first three are larger than the receptive field of 120 pixels.
SIZES = [(192, 176), (204, 183), (171, 205), (64, 48), (61, 130), (4, 7)]


def small_pelk(mixer: str = 'peripheral', **changes: Any) -> PeLK:
    arch = dict(depths=(1, 1), channels=(4, 6), kernel_sizes=KERNELS, center_size=5)
    settings = dict(arch=arch, mixer=mixer, gap_before_final_norm=False, layer_scale_init_value=1.0)
    return PeLK(**settings | MIXERS[mixer] | changes)


def positive(backbone: PeLK) -> PeLK:
    """Make every path from a pixel to the output add to the gradient, so that none can cancel another.

    All weights positive and a positive image: then GELU's derivative is positive as well. Layer norms, whose gradient
    has both signs, mix channels and not positions, and are taken out.
    """
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())
    for parameter in backbone.parameters():
        nn.init.constant_(parameter, 0.1)
    return backbone.double().eval()


def image(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height)) + 0.1


def footprint(mixer: str, shape: tuple[int, int]) -> np.ndarray:
    """Pixels that the centre of the last map sees, by running kernels of ones backwards. Not by the formula."""
    layers: list[tuple[list[tuple[int, int]], int]] = []
    for patch, size in zip((4, 2), KERNELS, strict=True):
        kernels = {'stripe': [(size, 5), (5, size)], 'conv7': [(7, 7)]}.get(mixer, [(size, size)])
        layers += [([(patch, patch)], patch), (kernels, 1)]
    shapes = [shape]
    for _, stride in layers:
        shapes.append((max(1, shapes[-1][0] // stride), max(1, shapes[-1][1] // stride)))
    seen = torch.zeros(1, 1, *shapes[-1], dtype=torch.float64)
    seen[..., shapes[-1][0] // 2, shapes[-1][1] // 2] = 1
    for (kernels, stride), (height, width) in zip(reversed(layers), reversed(shapes[:-1]), strict=True):
        before = torch.zeros(1, 1, height, width, dtype=torch.float64)
        for size in kernels:
            padding = (size[0] // 2, size[1] // 2) if stride == 1 else 0
            back = F.conv_transpose2d(seen, torch.ones(1, 1, *size).double(), stride=stride, padding=padding)
            back = back[..., :height, :width]
            before[..., : back.shape[-2], : back.shape[-1]] += back
        seen = (before > 0).double()
    return seen[0, 0].numpy() > 0


@pytest.mark.parametrize('shape', SIZES, ids=lambda shape: f'{shape[0]}x{shape[1]}')
@pytest.mark.parametrize('mixer', MIXERS)
def test_measured_support_is_the_theoretical_one(mixer: str, shape: tuple[int, int]) -> None:
    backbone = positive(small_pelk(mixer))
    with force_backend('fft'):  # which leaks; the measurement has to choose for itself
        scores = contribution_scores(backbone, [image(*shape)])
    assert scores.shape == shape
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores > 0, footprint(mixer, shape))


def test_theoretical_size_of_pelk_t() -> None:
    stem = 1 + 3
    stages = [3 * 50 * 4, 4 + 3 * 48 * 8, 8 + 9 * 46 * 16, 16 + 3 * 12 * 32]
    with torch.device('meta'):
        assert theoretical_size(PeLK('tiny')) == stem + sum(stages)


@pytest.mark.parametrize('mixer', MIXERS)
def test_size_and_support_of_random_networks_with_all_norms(mixer: str) -> None:
    rows, columns = (np.flatnonzero(footprint(mixer, (204, 183)).any(axis)) for axis in (1, 0))
    assert theoretical_size(small_pelk(mixer)) == np.ptp(rows) + 1 == np.ptp(columns) + 1
    torch.manual_seed(0)
    backbone = small_pelk(mixer).double()
    backbone.init_weights()
    # Contributions are cut off at zero: a single pixel may show nothing, but not a whole border of the field.
    scores = contribution_scores(backbone, [image(192, 176), image(192, 176).flip(-1)])
    field = footprint(mixer, (192, 176))
    assert not scores[~field].any()
    for axis in (0, 1):
        np.testing.assert_array_equal(scores.any(axis), field.any(axis))


def test_what_lowers_the_map_contributes_nothing() -> None:
    network = torch.nn.Conv2d(1, 2, (1, 3), padding=(0, 1)).double()
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[[[2.0, 1.0, -3.0]]], [[[9.0, 9.0, 9.0]]]]))
        network.bias.copy_(torch.tensor([10.0, -100.0]))  # type: ignore[union-attr]
    scores = contribution_scores(network, [torch.ones(1, 1, 5, dtype=torch.float64)])
    assert scores.tolist() == [[0, 2, 1, 0, 0]]


def test_channels_of_the_image_do_not_cancel() -> None:
    network = torch.nn.Conv2d(2, 1, 1, bias=False).double()
    network.weight.data.copy_(torch.tensor([5.0, -3.0]).view(1, 2, 1, 1))
    assert contribution_scores(network, [torch.ones(2, 1, 1, dtype=torch.float64)]).tolist() == [[5]]


def test_one_gradient_that_is_not_finite_is_refused() -> None:
    network = torch.nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    for value in (float('inf'), float('nan')):
        network.weight.data.copy_(torch.tensor([1.0, value, 1.0]))
        with pytest.raises(ValueError, match='image 0 is not finite'):
            contribution_scores(network, [torch.ones(1, 1, 5)])


def test_deployed_network_sees_the_same() -> None:
    torch.manual_seed(0)
    backbone = small_pelk().double().eval()
    backbone.init_weights()
    before = contribution_scores(backbone, [image(64, 64)])
    size = theoretical_size(backbone)
    backbone.switch_to_deploy()
    assert theoretical_size(backbone) == size
    np.testing.assert_allclose(contribution_scores(backbone, [image(64, 64)]), before, rtol=1e-9, atol=1e-12)


def test_images_accumulate() -> None:
    torch.manual_seed(0)
    backbone = small_pelk().double()
    first, second = image(48, 48), image(48, 48).flip(-1)
    apart = contribution_scores(backbone, [first]) + contribution_scores(backbone, [second])
    np.testing.assert_array_equal(contribution_scores(backbone, iter([first, second])), apart)
    assert contribution_scores(backbone, [first.float()]).shape == (48, 48), 'cast to what the network computes in'
    together = contribution_scores(backbone, [torch.stack([first, second])])
    np.testing.assert_allclose(together, apart, rtol=1e-9, atol=1e-15)


def test_model_is_left_as_it_was() -> None:
    backbone = small_pelk(frozen_stages=1, norm_eval=True).train()
    backbone.stages[1].positional_embedding.requires_grad_(False)
    modes = [module.training for module in backbone.modules()]
    grads = [parameter.requires_grad for parameter in backbone.parameters()]
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert len(set(modes)) == len(set(grads)) == 2, 'a model in which both are mixed'
    meanwhile = []
    handle = backbone.register_forward_pre_hook(
        lambda module, _: meanwhile.extend(parameter.requires_grad for parameter in module.parameters())
    )
    with torch.no_grad():  # of the caller: the measurement needs gradients all the same
        contribution_scores(backbone, [image(32, 32)])
    handle.remove()
    assert not any(meanwhile), 'only the image needs a gradient'
    assert not any(module._forward_hooks for module in backbone.modules())
    with pytest.raises(ValueError, match='gradient of image 1 is not finite'):
        contribution_scores(backbone, [image(32, 32), image(32, 32) * float('nan')])
    with pytest.raises(RuntimeError):
        contribution_scores(backbone, [image(32, 32)[:2]])
    assert not any(module._forward_hooks for module in backbone.modules())
    assert [module.training for module in backbone.modules()] == modes
    assert [parameter.requires_grad for parameter in backbone.parameters()] == grads
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_pooled_and_normed_outputs_are_measured_alike() -> None:
    classifier = small_pelk(gap_before_final_norm=True)
    segmentor = small_pelk(gap_before_final_norm=False)
    segmentor.load_state_dict(classifier.state_dict())
    expected = contribution_scores(classifier, [image(48, 48)])
    assert expected.any()
    np.testing.assert_array_equal(contribution_scores(segmentor, [image(48, 48)]), expected)


FOREIGN = {  # tokens from its stages; a map from its own norm
    'SwinTransformer': dict(arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]), window_size=2),
    'RepLKNet': dict(
        arch=dict(
            large_kernel_sizes=[13, 11, 9, 7], layers=[1, 1, 1, 1], channels=[4, 6, 8, 10], small_kernel=5, dw_ratio=1
        )
    ),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_backbones_of_mmpretrain(name: str) -> None:
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(dict(type=name, **FOREIGN[name]))
    assert last_map(backbone, torch.rand(2, 3, 64, 96)).shape[2:] == (2, 3)
    assert contribution_scores(backbone, [torch.rand(3, 64, 96)]).shape == (64, 96)


@pytest.mark.parametrize('kind', [tuple, list])
def test_last_map_of_a_pyramid(kind: type) -> None:
    class Pyramid(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return kind([x, F.avg_pool2d(x, 2), x.mean((-2, -1))])

    assert last_map(Pyramid(), torch.rand(1, 3, 8, 12)).shape[2:] == (4, 6)


@pytest.mark.parametrize('kind', [nn.Sequential, lambda *stages: nn.ModuleList(stages)])
def test_last_map_is_of_the_last_stage(kind: Any) -> None:
    """Before what follows it."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = kind(nn.AvgPool2d(2), nn.AvgPool2d(2))

        def forward(self, x: Tensor) -> Tensor:
            for stage in self.stages:
                x = stage(x)
            return 7 * x

    x = torch.rand(1, 3, 8, 12)
    assert torch.equal(last_map(Backbone(), x), F.avg_pool2d(F.avg_pool2d(x, 2), 2))


def test_what_cannot_be_measured() -> None:
    class Pooling(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x.mean((-2, -1)),)

    with pytest.raises(ValueError, match=r'Pooling returns no feature map .* but \[\(1, 3\)\]'):
        contribution_scores(Pooling(), [image(8, 8)])
    with pytest.raises(ValueError, match='no image'):
        contribution_scores(small_pelk(), [])
    with pytest.raises(ValueError, match=r'image 1 is \(32, 32\), those before \(32, 48\)'):
        contribution_scores(small_pelk(), [image(32, 48), image(32, 32)])


# Area ratios


def block(height: int, width: int, radius: int) -> np.ndarray:
    """Ones in a square around the central pixel, in a map of zeros."""
    scores = np.zeros((height, width))
    rows, columns = (slice(extent // 2 - radius, extent // 2 + radius + 1) for extent in scores.shape)
    scores[rows, columns] = 1
    return scores


def test_ratios_of_known_maps() -> None:
    for scores, expected in (
        (3 * block(101, 99, 0), [1, 1, 1, 1]),
        (block(101, 101, 50), [47, 57, 73, 101]),  # 45^2 / 101^2 = 0.1985 and 47^2 / 101^2 = 0.2165, and so on
        (block(64, 80, 10), [11, 13, 15, 21]),  # 9^2 / 21^2 = 0.18 and 11^2 / 21^2 = 0.27
        (np.ones((8, 8)), [5, 5, 7, 8]),  # to the border
        (7 * block(9, 9, 0) + block(9, 9, 1), [1, 1, 3, 3]),  # half of them, which is not more than half
    ):
        ratios = area_ratios(scores)
        assert [ratio.threshold for ratio in ratios] == [0.2, 0.3, 0.5, 0.99]
        assert [ratio.side for ratio in ratios] == expected
        assert [ratio.area_ratio for ratio in ratios] == [side**2 / scores.size for side in expected]


def test_squares_end_at_the_border_of_the_shorter_side() -> None:
    ratios = area_ratios(np.ones((4, 40)))
    assert [(ratio.side, ratio.area_ratio) for ratio in ratios] == [(9, 0.225), (13, 0.325), (21, 0.525), (40, 1.0)]


def sides(scores: np.ndarray, **options: Any) -> list[int]:
    return [ratio.side for ratio in area_ratios(scores, **options)]


def test_logarithm_depends_on_the_scale() -> None:
    scores = np.zeros((41, 41))
    scores[20, 20], scores[10, 20] = 999.0, 9.0
    assert sides(scores) == [1, 1, 1, 1]
    assert sides(scores, logarithm=True) == [1, 1, 1, 21], 'log10(1000) and log10(10): shares of 3/4 and 1/4'
    assert sides(1e-3 * scores) == sides(scores)
    assert sides(1e-4 * scores, logarithm=True) == [1, 1, 1, 1], 'log10(1.0999) and log10(1.0009)'


def test_ratios_are_checked() -> None:
    for scores in (np.zeros((4, 4)), np.full((4, 4), np.nan), -np.ones((4, 4)), np.ones(4)):
        with pytest.raises(ValueError, match='contribution scores'):
            area_ratios(scores)
