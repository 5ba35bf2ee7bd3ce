"""Counts of active weights: exact totals, and each rule against a direct computation."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from mmpelk.sparsity import active_total, erk, find_parameters, probe, random_mask, snip, uniform
from mmpelk.sparsity.probe import draw_batch, snip_scores
from tests.sparsity.tiny import TinyData, TinyModel

SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=6,
)
DENSITY = st.floats(0.01, 1.0)


def check_counts(counts: list[int], sizes: list[int], total: int) -> None:
    assert sum(counts) == total
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))


@given(shapes=SHAPES, density=DENSITY)
def test_uniform_is_exact_in_total_and_within_one_weight_in_each_layer(shapes, density):
    sizes = [math.prod(shape) for shape in shapes]
    total = active_total(sizes, density)
    counts = uniform(sizes, total)
    check_counts(counts, sizes, total)
    assert total == 1 or abs(total - density * sum(sizes)) <= 0.5
    shares = [total * size / sum(sizes) for size in sizes]
    assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))
    # The layers that lack most of a weight are rounded up.
    up, down = (
        [share % 1 for count, share in zip(counts, shares, strict=True) if sign * (count - share) > 1e-6]
        for sign in (1, -1)
    )
    assert not up or not down or min(up) >= max(down) - 1e-6


@given(shapes=SHAPES, density=DENSITY)
def test_erk_is_exact_in_total_and_in_proportion_where_it_is_not_capped(shapes, density):
    sizes = [math.prod(shape) for shape in shapes]
    total = active_total(sizes, density)
    counts = erk(shapes, total)
    check_counts(counts, sizes, total)
    # Active weights of a layer are in proportion to the sum of its sides; a capped layer has fewer than that, so the
    # scale that any open layer implies is the largest. Rounding moves each count by less than one.
    open_layers = [i for i, (count, size) in enumerate(zip(counts, sizes, strict=True)) if count < size]
    for i in open_layers:
        for j in range(len(sizes)):
            assert (counts[j] - 1) * sum(shapes[i]) <= (counts[i] + 1) * sum(shapes[j])
    for i in open_layers:
        for j in open_layers:
            assert (counts[i] - 1) / sum(shapes[i]) <= (counts[j] + 1) / sum(shapes[j])


def test_erk_of_two_layers_by_hand():
    # Sides add up to 20 and 8: 28 active weights are shared 20 : 8.
    assert erk([(10, 10), (2, 2, 2, 2)], 28) == [20, 8]
    # 0.9 · 116 = 104 weights: the small layer would get 29.7 of its 16, so it is dense and the other gets the rest.
    assert erk([(10, 10), (2, 2, 2, 2)], 104) == [88, 16]


# Few values, so that ties are the rule.
@given(scores=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=20), min_size=1, max_size=5), density=DENSITY)
def test_snip_counts_the_globally_largest_scores(scores, density):
    tensors = [torch.tensor(layer, dtype=torch.float32) for layer in scores]
    sizes = [len(layer) for layer in scores]
    total = active_total(sizes, density)
    counts = snip(tensors, total)
    check_counts(counts, sizes, total)
    # Direct: sort all (score, layer) pairs, largest first, earlier layers first among equals; take the first `total`.
    ranked = sorted(((-score, index) for index, layer in enumerate(scores) for score in layer))[:total]
    assert counts == [sum(1 for _, layer in ranked if layer == index) for index in range(len(scores))]


@pytest.mark.parametrize('wrong', [math.nan, math.inf])
def test_snip_refuses_gradients_that_are_not_finite(wrong):
    with pytest.raises(ValueError, match='not finite'):
        snip([torch.ones(3), torch.tensor([1.0, wrong])], 1)


@given(shape=st.tuples(st.integers(1, 8), st.integers(1, 8)), data=st.data())
def test_random_mask_has_the_count_and_follows_the_seed(shape, data):
    active = data.draw(st.integers(0, math.prod(shape)))
    first, second = (random_mask(shape, active, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.dtype == torch.bool
    assert tuple(first.shape) == shape
    assert int(first.sum()) == active
    assert torch.equal(first, second)


def test_random_mask_is_uniform():
    generator = torch.Generator().manual_seed(0)
    hits = torch.stack([random_mask((4, 5), 6, generator) for _ in range(4000)]).float().mean(0)
    # Standard deviation of each frequency: sqrt(0.3 · 0.7 / 4000) = 0.0072; five of them, twenty positions.
    assert (hits - 0.3).abs().max() < 0.0363


@pytest.mark.parametrize('density', [0.0, -0.1, 1.1])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(ValueError, match='share of active weights'):
        active_total([10], density)


def test_batch_of_a_loader_that_has_a_sampler_of_batches(monkeypatch):
    data = TinyData(length=10, noise=0.0)
    loader = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 3, False))
    assert draw_batch(loader, None, 5)['inputs'].shape[0] == 3
    drawn = draw_batch(loader, 10, 5)['inputs']  # the whole set, in another order
    assert not torch.equal(drawn, data.images)
    assert sorted(image.sum().item() for image in drawn) == sorted(image.sum().item() for image in data.images)
    assert torch.equal(draw_batch(DataLoader(data, 2), 4, 5)['inputs'], drawn[:4]), 'a draw of the seed alone'
    assert not torch.equal(draw_batch(loader, 10, 6)['inputs'], drawn)
    monkeypatch.setattr(probe, 'get_rank', lambda: 1)
    assert torch.equal(draw_batch(DataLoader(data, 4), None, 5)['inputs'], drawn[4:8]), (
        'the second process has the next'
    )
    more = draw_batch(DataLoader(data, 4), 12, 5)['inputs']  # than there are
    assert torch.equal(more, torch.cat([drawn[2:], drawn, drawn])[:12]), 'from the start again'
    with pytest.raises(ValueError, match='a batch of known size from a dataset that can be indexed'):
        draw_batch(DataLoader(data, batch_size=None), None, 5)


def test_scores_are_those_of_training_and_the_model_stays_as_it_was():
    model, data = TinyModel(dropout=0.0), TinyData(length=4, noise=0.0)
    loader, parameters = DataLoader(data, 4), find_parameters(model)
    scores = {}
    for mode in (True, False):
        model.train(mode)
        model.backbone.norm.eval()  # frozen by its network
        model.head.weight.grad = grad = torch.ones_like(model.head.weight)
        state = copy.deepcopy(model.state_dict())
        buffers = list(model.buffers())
        scores[mode] = snip_scores(model, parameters, loader, seed=3)
        assert (model.training, model.backbone.norm.training) == (mode, False)
        assert model.head.weight.grad is grad
        assert grad.eq(1).all()
        assert all(old is new for old, new in zip(buffers, model.buffers(), strict=True)), 'who holds them, keeps them'
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != 'head.weight')
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(scores[True], scores[False])
    batch = torch.utils.data.default_collate([data[index] for index in range(4)])
    gradients = torch.autograd.grad(model.train()(**batch, mode='loss')['loss'], [entry.weight for entry in parameters])
    want = [(entry.weight * gradient).abs() for entry, gradient in zip(parameters, gradients, strict=True)]
    torch.testing.assert_close(scores[True], want)
