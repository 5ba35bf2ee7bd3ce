"""Two of four: the pattern after every draw and update, and the layer that torch's sparse kernels run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmpelk.sparsity import is_two_of_four, prune_and_grow_two_of_four, random_two_of_four, to_semi_structured

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 19))
SEEDS = st.integers(0, 2**31)


def active_of(columns: int) -> int:
    """Active weights of a row: half, and in a last group of one or three all but the half."""
    return 2 * (columns // 4) + min(columns % 4, 2)


@given(shape=SHAPES, seed=SEEDS)
def test_a_drawn_mask_has_two_of_every_four(shape, seed):
    mask, again = (random_two_of_four(shape, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert mask.shape == shape
    assert torch.equal(mask, again)
    for row in mask.tolist():
        groups = [row[i : i + 4] for i in range(0, len(row), 4)]
        assert [sum(group) for group in groups] == [min(2, len(group)) for group in groups]


@given(shape=SHAPES, seed=SEEDS, rates=st.lists(st.floats(0, 1), min_size=1, max_size=4), ties=st.booleans())
def test_the_pattern_is_exact_after_every_update(shape, seed, rates, ties):
    generator = torch.Generator().manual_seed(seed)
    mask = random_two_of_four(shape, generator)
    for rate in rates:
        weight = torch.randn(shape, generator=generator)
        weight = (weight.round() if ties else weight) * mask
        before, active = mask.clone(), shape[0] * active_of(shape[1])
        count = prune_and_grow_two_of_four(weight, mask, rate, generator)
        assert is_two_of_four(mask)
        assert int(mask.sum()) == active
        dropped, grown = before & ~mask, mask & ~before
        assert int(dropped.sum()) == int(grown.sum()) == count
        groups = shape[0] * (shape[1] // 4 + (shape[1] % 4 == 3))
        assert count == min(round(rate * active), groups)
        # In its group what is dropped is no larger than what stays.
        for row, column in dropped.nonzero().tolist():
            group = slice(column - column % 4, column - column % 4 + 4)
            kept = weight[row, group][before[row, group] & mask[row, group]].abs()
            assert int(dropped[row, group].sum()) == int(grown[row, group].sum()) == 1
            assert (weight[row, column].abs() <= kept).all()


def test_groups_whose_smaller_weights_are_smallest_give_one():
    weight = torch.tensor([[3.0, 1.0, 0, 0, 5.0, 0, 4.0, 0, 0, 2.0, 0, 9.0]])
    mask = weight != 0
    assert prune_and_grow_two_of_four(weight, mask, 1 / 3, torch.Generator().manual_seed(0)) == 2
    assert (~mask & (weight != 0)).nonzero().tolist() == [[0, 1], [0, 9]]


def test_growth_is_random_among_the_inactive_of_a_group():
    weight, generator = torch.tensor([[3.0, 1.0, 0, 0]]), torch.Generator().manual_seed(0)
    grown = torch.zeros(4)
    for _ in range(2000):
        mask = weight != 0
        prune_and_grow_two_of_four(weight, mask, 0.5, generator)
        grown += mask[0]
    assert grown[:2].tolist() == [2000, 0]
    # Standard deviation of each share: sqrt(1/4 / 2000) = 0.0112; five of them.
    assert (grown[2:] / 2000 - 0.5).abs().max() < 0.056


def test_growth_draws_from_its_generator_alone():
    """So that every process has the same mask, whatever else it draws."""
    weight, grown = torch.randn(32, 16), []
    before = random_two_of_four((32, 16), torch.Generator().manual_seed(0))
    for seed in (1, 2):
        torch.manual_seed(seed)
        mask = before.clone()
        prune_and_grow_two_of_four(weight * mask, mask, 0.5, torch.Generator().manual_seed(0))
        grown.append(mask)
    assert torch.equal(*grown)
    assert not torch.equal(grown[0], before)


@pytest.mark.parametrize(
    ('active', 'expected'),
    [([1, 1, 0, 0, 1], True), ([0, 1, 1, 1], False), ([1, 1, 1], False), ([-1, 1, 0, -1], False)],
)
def test_the_pattern_is_recognised(active, expected):
    assert is_two_of_four(torch.tensor([active])) == expected


class Adapted(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


@pytest.mark.parametrize(('inputs', 'outputs', 'bias'), [(64, 64, True), (19, 7, True), (8, 70, False)])
def test_a_semi_structured_layer_computes_the_same(monkeypatch, inputs, outputs, bias):
    """torch makes such tensors on a GPU alone: here the layer's filling up is tested, with what it asks of a weight."""
    asked = []
    monkeypatch.setattr(torch.sparse, 'to_sparse_semi_structured', lambda weight: asked.append(weight) or weight)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=bias), nn.Linear(outputs, 6))
    model[0].weight.data *= random_two_of_four((outputs, inputs), torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, inputs)
    model.append(Adapted(6, 6))
    model[2].weight.data.zero_()  # of the pattern, but of a layer that computes something else
    expected = model(x)
    assert to_semi_structured(model) == ['0']
    assert all(side % 64 == 0 for side in asked[0].shape)
    assert is_two_of_four(asked[0])
    torch.testing.assert_close(model(x), expected)
