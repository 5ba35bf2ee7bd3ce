"""Fig. 6: what is read from built networks, and the growth of the rings."""

import pytest
from mmengine.registry import MODELS, DefaultScope

from mmpelk.ops import sharing_grid
from reproduction.paper import GROWTH
from reproduction.scaling import CURVES, KERNEL_SIZES, growth_table, measure, ring_bound, size_table

# ConvNeXt-T's, as published.
DEPTHS, CHANNELS = (3, 3, 9, 3), (96, 192, 384, 768)
MIXERS = ('peripheral', 'stripe', 'dense')


@pytest.mark.parametrize('mixer', ['dense', 'peripheral'])
def test_network_with_7x7_kernels_is_convnext_t(mixer: str) -> None:
    """28.59 M, as published; with a centre of 5 the peripheral 7x7 kernel is dense."""
    assert measure(mixer, 7).network == 28_589_128


def test_network_with_7x7_kernels_is_the_toolboxes_convnext_t() -> None:
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(dict(type='ConvNeXt', arch='tiny'))
    classifier = (CHANNELS[-1] + 1) * 1000
    assert measure('dense', 7).network == sum(p.numel() for p in backbone.parameters()) + classifier


@pytest.mark.parametrize(('side', 'kernels'), [(3, (9, 18, 9)), (51, (169, 510, 2601))])
def test_parameters_per_kernel(side: int, kernels: tuple[int, ...]) -> None:
    """Below the width of a stripe both stripes are the whole kernel."""
    assert tuple(measure(mixer, side).kernel for mixer in MIXERS) == kernels


@pytest.mark.parametrize('side', [9, 51, 69, 151])
@pytest.mark.parametrize('mixer', MIXERS)
def test_only_the_kernels_grow(mixer: str, side: int) -> None:
    large, small = measure(mixer, side), measure(mixer, 7)
    blocks = sum(depth * width for depth, width in zip(DEPTHS, CHANNELS, strict=True))
    assert large.kernels == blocks * large.kernel
    assert large.network - small.network == large.kernels - small.kernels


def test_sizes_per_stage_and_another_centre() -> None:
    sides = (101, 69, 67, 13)
    blocks = zip(DEPTHS, CHANNELS, sides, strict=True)
    expected = sum(depth * width * len(sharing_grid(side, 7)) ** 2 for depth, width, side in blocks)
    assert measure('peripheral', sides, 7).kernels == expected


def test_the_embedding_is_quadratic() -> None:
    """What Fig. 6 leaves out: at 151 in all stages and channels, ``h`` is larger than the rest of the network."""
    norms = sum(depth * width for depth, width in zip(DEPTHS, CHANNELS, strict=True))  # scale, shift for a bias
    embedding, plain = sum(CHANNELS) * 151**2, measure('peripheral', 151).network
    assert measure('peripheral with h', 151).network == plain + norms + embedding
    assert embedding > plain


def test_peripheral_networks_are_the_smallest() -> None:
    assert (KERNEL_SIZES[0], KERNEL_SIZES[-1]) == (7, 151)
    for side in KERNEL_SIZES[1:]:
        peripheral, stripe, dense = (measure(mixer, side).network for mixer in MIXERS)
        assert peripheral < stripe < dense
    assert [row[0] for row in size_table().rows] == list(map(str, KERNEL_SIZES))


def test_the_papers_multiples() -> None:
    """Section 3, from 7 to 51; of whole networks they are smaller: the last stage goes to 13 only."""
    rows = {row[0]: row for row in growth_table().rows}
    for mixer in MIXERS:
        factor = measure(mixer, 51).kernel / measure(mixer, 7).kernel
        assert rows[mixer][1:4:2] == ((f'{GROWTH[mixer]} (p)', '0.0 %') if mixer in GROWTH else ('-', '-'))
        assert rows[mixer][2] == f'{factor:.1f} (c)'
        assert float(rows[mixer][4].split()[0]) < factor


@pytest.mark.parametrize('sides', [8, (7, 7)])
def test_wrong_sizes_are_refused(sides: int | tuple[int, ...]) -> None:
    for curve in CURVES:
        with pytest.raises(ValueError, match='odd positive integer, got 8' if sides == 8 else 'give one per stage'):
            measure(curve, sides)


CENTERS = pytest.mark.parametrize('center_size', [1, 3, 5, 7, 11])


@CENTERS
def test_rings_stay_below_their_bound(center_size: int) -> None:
    for kernel_size in range(1, 2002, 2):
        assert len(sharing_grid(kernel_size, center_size)) <= ring_bound(kernel_size, center_size)


@CENTERS
def test_the_bound_is_reached_beyond_every_size(center_size: int) -> None:
    """Complete rings: 2 + 4 + ... + 2^n on each side."""
    for rings in range(1, 10):
        kernel_size = center_size + 2 * (2 ** (rings + 1) - 2)
        expected = center_size + 2 * rings
        assert len(sharing_grid(kernel_size, center_size)) == ring_bound(kernel_size, center_size) == expected


@CENTERS
def test_twice_the_periphery_takes_two_rings_more_at_most(center_size: int) -> None:
    """What lies around the centre doubles, ``K - c``: no ring more, or one on each side. Never fewer."""
    for kernel_size in range(center_size + 2, 2002, 2):
        rings = len(sharing_grid(kernel_size, center_size))
        assert len(sharing_grid(2 * kernel_size - center_size, center_size)) - rings in (0, 2)


def test_twice_the_kernel_takes_two_rings_more_at_most() -> None:
    """The same of ``K`` itself, to either neighbour of ``2K``, with the default centre."""
    for kernel_size in range(7, 2002, 2):
        rings = len(sharing_grid(kernel_size))
        assert all(len(sharing_grid(2 * kernel_size + one)) - rings in (0, 2) for one in (-1, 1))
