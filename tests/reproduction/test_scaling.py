"""Fig. 6: what is read from built networks, and the growth of the rings."""

import math

import pytest

from mmpelk.ops import sharing_grid
from reproduction.paper import GROWTH
from reproduction.scaling import CURVES, growth_table, measure

# ConvNeXt-T's, as published.
DEPTHS, CHANNELS = (3, 3, 9, 3), (96, 192, 384, 768)
MIXERS = ('peripheral', 'stripe', 'dense')


@pytest.mark.parametrize('mixer', ['dense', 'peripheral'])
def test_network_with_7x7_kernels_is_convnext_t(mixer: str) -> None:
    """28.59 M, as published; with a centre of 5 the peripheral 7x7 kernel is dense."""
    assert measure(mixer, 7).network == 28_589_128


@pytest.mark.parametrize(('side', 'kernels'), [(3, (9, 18, 9)), (51, (169, 510, 2601))])
def test_parameters_per_kernel(side: int, kernels: tuple[int, ...]) -> None:
    """Below the width of a stripe both stripes are the whole kernel."""
    assert tuple(measure(mixer, side).kernel for mixer in MIXERS) == kernels


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


def test_growth_is_the_papers() -> None:
    """Section 3, from 7 to 51; of whole networks it is smaller: the last stage goes to 13 only."""
    for mixer, printed, ours, deviation, network in growth_table().rows:
        factor = measure(mixer, 51).kernel / measure(mixer, 7).kernel
        assert (printed, deviation) == ((f'{GROWTH[mixer]} (p)', '0.0 %') if mixer in GROWTH else ('-', '-'))
        assert ours == f'{factor:.1f} (c)'
        assert float(network.split()[0]) < factor


@pytest.mark.parametrize('sides', [8, (7, 7)])
def test_wrong_sizes_are_refused(sides: int | tuple[int, ...]) -> None:
    for curve in CURVES:
        with pytest.raises(ValueError, match='odd positive integer, got 8' if sides == 8 else 'give one per stage'):
            measure(curve, sides)


@pytest.mark.parametrize('center_size', [1, 3, 5, 7, 11])
def test_rings_grow_with_the_logarithm_of_the_kernel(center_size: int) -> None:
    """On each side ``n`` rings of widths 2 to ``2**n`` hold ``2**(n + 1) - 2`` positions, a remainder is one at most.

    So the ``r = (K - c) / 2`` positions on a side take ``ceil(log2(r + 2)) - 1`` rings or fewer; complete ones all.
    """
    for kernel_size in range(center_size + 2, 2002, 2):
        rings = len(sharing_grid(kernel_size, center_size))
        assert rings <= center_size + 2 * (math.ceil(math.log2((kernel_size - center_size) // 2 + 2)) - 1)
        # What lies around the centre doubles: no ring more, or one on each side. Never fewer.
        assert len(sharing_grid(2 * kernel_size - center_size, center_size)) - rings in (0, 2)
    for rings in range(1, 10):
        assert len(sharing_grid(center_size + 2 * (2 ** (rings + 1) - 2), center_size)) == center_size + 2 * rings
