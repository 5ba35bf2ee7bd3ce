"""One update of a mask: exact counts, the smallest dropped, only inactive ones grown, reproducible."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpelk.sparsity import cosine_prune_rate, prune_and_grow, random_mask


@st.composite
def layers(draw):
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    active = draw(st.integers(0, rows * columns))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask((rows, columns), active, generator)
    weight = torch.randn(rows, columns, generator=generator)
    if draw(st.booleans()):
        weight = weight.round()  # ties, and active weights of exactly zero
    return weight * mask, mask, seed


@given(layer=layers(), rate=st.floats(0, 1))
def test_update_keeps_the_density_drops_the_smallest_and_grows_the_inactive(layer, rate):
    weight, mask, seed = layer
    before = mask.clone()
    again = mask.clone()
    count, _ = (prune_and_grow(weight, each, rate, torch.Generator().manual_seed(seed)) for each in (mask, again))
    assert torch.equal(mask, again)
    dropped, grown = before & ~mask, mask & ~before
    active = int(before.sum())
    assert int(mask.sum()) == active
    assert int(dropped.sum()) == int(grown.sum()) == count
    assert count == min(round(rate * active), before.numel() - active)
    kept = before & mask
    if count and kept.any():
        assert weight[dropped].abs().max() <= weight[kept].abs().min()


def test_growth_is_random_among_all_inactive_weights():
    weight = torch.arange(1.0, 21.0).view(4, 5)
    start = weight > 12  # 8 active, 12 inactive
    generator = torch.Generator().manual_seed(0)
    grown = torch.zeros(4, 5)
    for _ in range(3000):
        mask = start.clone()
        prune_and_grow(weight, mask, 0.5, generator)
        grown += mask & ~start
    # 4 of 12 grow each time: 1/3, with standard deviation sqrt(2/9 / 3000) = 0.0086; five of them.
    assert (grown[~start] / 3000 - 1 / 3).abs().max() < 0.043


def test_rate_is_a_cosine_from_start_to_end():
    assert cosine_prune_rate(0, 100, 0.5) == 0.5
    assert cosine_prune_rate(100, 100, 0.5) == pytest.approx(0.005, abs=1e-15)
    assert cosine_prune_rate(50, 100, 0.5) == pytest.approx((0.5 + 0.005) / 2, abs=1e-15)
    rates = [cosine_prune_rate(i, 100, 0.5) for i in range(101)]
    assert rates == sorted(rates, reverse=True)
