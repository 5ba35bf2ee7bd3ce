"""Fig. 6 in closed form against built networks, and the growth of the rings."""

from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmpelk.analysis.scaling import (
    CHANNELS,
    DEPTHS,
    KERNEL_SIZES,
    MIXERS,
    convolution_parameters,
    embedding_parameters,
    kernel_growth,
    kernel_parameters,
    model_size,
    ring_bound,
    scaling_table,
)
from mmpelk.models import PeLK
from mmpelk.ops import sharing_grid

ODD = range(1, 2002, 2)
# All points of the figure, and two between them: the smallest kernel that shares parameters, and one of PeLK-101.
BUILT = sorted({*KERNEL_SIZES, 9, 69})


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def backbone(mixer: str, kernel_sizes: tuple[int, ...], center_size: int = 5, **changes: Any) -> dict[str, Any]:
    """ConvNeXt-T with its kernels replaced, as a config: every channel convolved, and no 5x5 branch."""
    arch = dict(depths=DEPTHS, channels=CHANNELS, kernel_sizes=kernel_sizes, center_size=center_size)
    literal = dict(conv_ratio=1.0, small_kernel_size=0, positional_embedding=None, deploy=True)
    return dict(arch=arch, mixer=mixer) | literal | changes


def built(mixer: str, kernel_size: int, **changes: Any) -> int:
    """Parameters of the backbone, built without memory."""
    with torch.device('meta'):
        return count(PeLK(**backbone(mixer, (kernel_size,) * 4, **changes)))


class TestModelSize:
    @pytest.mark.parametrize('kernel_size', BUILT)
    @pytest.mark.parametrize('mixer', MIXERS)
    def test_is_the_count_of_the_built_network(self, mixer: str, kernel_size: int) -> None:
        """Without the classifier, and with the one that the points of the figure contain."""
        expected = built(mixer, kernel_size)
        assert model_size(mixer, kernel_size, num_classes=0) == expected
        assert model_size(mixer, kernel_size) == expected + (CHANNELS[-1] + 1) * 1000

    @pytest.mark.parametrize('kernel_size', [7, 51, 151])
    @pytest.mark.parametrize('mixer', MIXERS)
    def test_of_the_trained_form(self, mixer: str, kernel_size: int) -> None:
        """A norm per branch in the place of the bias."""
        assert model_size(mixer, kernel_size, deploy=False, num_classes=0) == built(mixer, kernel_size, deploy=False)

    @pytest.mark.parametrize(
        ('mixer', 'kernel_size'),
        [*(('peripheral', size) for size in BUILT), *(('dense', size) for size in (7, 51, 151))],
    )
    def test_with_the_embedding(self, mixer: str, kernel_size: int) -> None:
        """The figure's fourth curve, and dense kernels, which can have an embedding as well."""
        closed = model_size(mixer, kernel_size, deploy=False, positional_embedding=True, num_classes=0)
        assert closed == built(mixer, kernel_size, deploy=False, positional_embedding='in_bounds')

    def test_of_another_centre_and_of_sizes_per_stage(self) -> None:
        sizes = (101, 69, 67, 13)
        with torch.device('meta'):
            expected = count(PeLK(**backbone('peripheral', sizes, center_size=7)))
        assert model_size('peripheral', sizes, center_size=7, num_classes=0) == expected

    @pytest.mark.parametrize('mixer', MIXERS)
    def test_with_the_classifier(self, mixer: str) -> None:
        """A whole classifier as a recipe builds it."""
        pytest.importorskip('mmpretrain')
        model = dict(
            type='ImageClassifier',
            backbone=dict(type='mmpelk.PeLK', **backbone(mixer, (51,) * 4)),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=CHANNELS[-1]),
        )
        with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
            assert model_size(mixer, 51) == count(MODELS.build(model))

    @pytest.mark.parametrize('mixer', ['dense', 'peripheral'])
    def test_of_7x7_kernels_is_convnext_t(self, mixer: str) -> None:
        """28.59 M, as published; with a centre of 5 the peripheral 7x7 kernel is dense."""
        assert model_size(mixer, 7) == 28_589_128

    def test_of_7x7_kernels_is_the_toolboxes_convnext_t(self) -> None:
        pytest.importorskip('mmpretrain')
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            assert model_size('dense', 7, num_classes=0) == count(MODELS.build(dict(type='ConvNeXt', arch='tiny')))

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(mixer='conv7'), "unknown mixer 'conv7'; known: peripheral, stripe, dense"),
            (dict(kernel_sizes=8), 'odd positive integer, got 8'),
            (dict(kernel_sizes=(7, 7)), '2 kernel sizes for 4 stages'),
            (dict(positional_embedding=True), 'give deploy=False'),
            (dict(mixer='stripe', positional_embedding=True, deploy=False), 'needs a square kernel'),
        ],
    )
    def test_refuses(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model_size(**dict(mixer='peripheral', kernel_sizes=7) | options)


class TestGrowth:
    """The peripheral kernel has O(log K) rings, and so O(log(K)^2) parameters."""

    @pytest.mark.parametrize('center_size', [1, 3, 5, 7, 11])
    def test_rings_stay_below_their_bound(self, center_size: int) -> None:
        for kernel_size in ODD:
            assert len(sharing_grid(kernel_size, center_size)) <= ring_bound(kernel_size, center_size)

    @pytest.mark.parametrize('center_size', [1, 3, 5, 7])
    def test_the_bound_is_reached_beyond_every_size(self, center_size: int) -> None:
        """Complete rings: 2 + 4 + ... + 2^n on each side."""
        for rings in range(1, 10):
            kernel_size = center_size + 2 * (2 ** (rings + 1) - 2)
            expected = center_size + 2 * rings
            assert len(sharing_grid(kernel_size, center_size)) == ring_bound(kernel_size, center_size) == expected

    @pytest.mark.parametrize('center_size', [1, 3, 5, 7, 11])
    def test_twice_the_periphery_takes_two_rings_more_at_most(self, center_size: int) -> None:
        """What lies around the centre doubles, ``K - c``: no ring more, or one on each side. Never fewer."""
        for kernel_size in range(center_size + 2, 2002, 2):
            rings = len(sharing_grid(kernel_size, center_size))
            assert len(sharing_grid(2 * kernel_size - center_size, center_size)) - rings in (0, 2)

    def test_twice_the_kernel_takes_two_rings_more_at_most(self) -> None:
        """The same of ``K`` itself, to either neighbour of ``2K``, with the default centre."""
        for kernel_size in range(7, 2002, 2):
            rings = len(sharing_grid(kernel_size))
            for double in (2 * kernel_size - 1, 2 * kernel_size + 1):
                assert len(sharing_grid(double)) - rings in (0, 2)

    def test_parameters_per_kernel(self) -> None:
        assert [kernel_parameters(mixer, 51) for mixer in ('peripheral', 'stripe', 'dense')] == [169, 510, 2601]
        # Below the width of a stripe both stripes are the whole kernel.
        assert [kernel_parameters(mixer, 3) for mixer in ('peripheral', 'stripe', 'dense')] == [9, 18, 9]

    def test_the_papers_multiples(self) -> None:
        """Section 3: "7.3x params for stripe conv while that for dense conv is 53.1x", from 7 to 51."""
        growth = {row.mixer: row for row in kernel_growth()}
        assert f'{growth["stripe"].kernel:.1f}' == '7.3' == str(growth['stripe'].paper)
        assert f'{growth["dense"].kernel:.1f}' == '53.1' == str(growth['dense'].paper)
        assert growth['peripheral'].kernel == 13**2 / 7**2
        assert growth['peripheral'].paper is None
        # Of whole networks: the last stage, a third of the channels, goes to 13 only.
        for mixer, row in growth.items():
            assert row.network < row.kernel
            sizes = (51, 49, 47, 13)
            assert row.network == convolution_parameters(mixer, sizes) / convolution_parameters(mixer, 7)

    def test_other_sizes_have_no_paper_beside_them(self) -> None:
        assert all(row.paper is None for row in kernel_growth(7, 31))


class TestTable:
    def test_rows(self) -> None:
        rows = scaling_table()
        assert tuple(row.kernel_size for row in rows) == KERNEL_SIZES
        assert (KERNEL_SIZES[0], KERNEL_SIZES[-1]) == (7, 151)
        for row in rows:
            sizes = (row.peripheral, row.stripe, row.dense)
            assert sizes == tuple(model_size(mixer, row.kernel_size) for mixer in ('peripheral', 'stripe', 'dense'))
            assert row.rings**2 == row.kernel['peripheral']
            assert row.rings <= row.ring_bound
        assert all(row.peripheral < row.stripe < row.dense for row in rows if row.kernel_size >= 13)

    def test_the_embedding_is_quadratic(self) -> None:
        """What Fig. 6 leaves out: at 151 in all stages and channels, ``h`` is larger than the rest of the network."""
        last = scaling_table([151])[0]
        norms = sum(depth * width for depth, width in zip(DEPTHS, CHANNELS, strict=True))  # scale, shift for a bias
        assert last.peripheral_embedding == last.peripheral + norms + embedding_parameters(151)
        assert embedding_parameters(151) == sum(CHANNELS) * 151**2 > last.peripheral

    def test_refuses_even_kernels(self) -> None:
        with pytest.raises(ValueError, match='kernel_size must be an odd positive integer, got 50'):
            scaling_table([7, 50])
