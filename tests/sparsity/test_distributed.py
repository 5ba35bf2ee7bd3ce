"""Two processes train together (gloo): the same masks on both, all the time, from the scores of the global batch."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from mmpelk.sparsity import (
    GRANULARITIES,
    active_total,
    attach_masks,
    broadcast_masks,
    find_parameters,
    hook,
    masks,
    probe,
)
from mmpelk.sparsity import granularity as granularities
from tests.commands import find_free_port
from tests.fault_tolerance.training import preload, start
from tests.paths import ROOT
from tests.sparsity.tiny import TinyData, TinyModel, draw_masks, masked, scores_of_global_batch


def test_what_the_other_process_sends_is_taken(monkeypatch):
    """With this process alone, and messages that change what they are given."""
    model = TinyModel()
    parameters = draw_masks(model)
    drawn = [entry.mask.clone() for entry in parameters]
    sent = []
    monkeypatch.setattr(masks, 'broadcast', lambda packed, src: sent.append(src) or packed.copy_(1 - packed))
    broadcast_masks(parameters)
    assert all(torch.equal(entry.mask, mask) for entry, mask in zip(parameters, drawn, strict=True)), 'nobody is there'
    monkeypatch.setattr(masks, 'get_world_size', lambda: 2)
    broadcast_masks(parameters)
    assert sent == [0], 'one message'
    assert all(torch.equal(entry.mask, ~mask) for entry, mask in zip(parameters, drawn, strict=True))

    model = TinyModel(bottleneck=True)
    (layer,) = GRANULARITIES['unit'](model, 'backbone', ())
    attach_masks(layer.parameters)
    layer.draw(9 * layer.shape[1], torch.Generator().manual_seed(0))
    before = layer.mask.clone()
    layer.update(0.5, torch.Generator().manual_seed(0))
    average = SimpleNamespace(module=copy.deepcopy(model))
    monkeypatch.setattr(granularities, 'broadcast', lambda rows, src: rows.fill_(7 + src))
    layer.start_grown([average], torch.Generator().manual_seed(0))
    for network in (model, average.module):
        sevens = network.backbone.bottleneck.pointwise_conv1.weight.eq(7).all(1)
        assert torch.equal(sevens, layer.mask & ~before)

    loader = DataLoader(TinyData(noise=0.0), 4)
    model = TinyModel(dropout=0.0)
    own = probe.snip_scores(model, find_parameters(model), loader, 3)
    monkeypatch.setattr(probe, 'get_world_size', lambda: 2)
    monkeypatch.setattr(probe, 'all_reduce', lambda gradient, op: gradient.mul_({'mean': 3}[op]))
    for alone, together in zip(own, probe.snip_scores(model, find_parameters(model), loader, 3), strict=True):
        torch.testing.assert_close(together, 3 * alone)


def test_masks_are_those_of_the_first_process_from_each_draw_and_update_on(monkeypatch, make_runner):
    taken = []

    def roll(parameters):
        for entry in parameters:
            entry.mask.copy_(entry.mask.roll(1))
        taken.append([entry.mask.clone() for entry in parameters])

    monkeypatch.setattr(hook, 'broadcast_masks', roll)
    runner = make_runner({'update_interval': 2}, max_iters=5)
    runner.train()
    assert len(taken) == 3
    for entry, mask in zip(masked(runner), taken[-1], strict=True):
        assert torch.equal(entry.mask, mask)
        assert not entry.weight[~mask].any()


@pytest.mark.slow
@pytest.mark.parametrize('granularity', ['weight', 'unit'])
def test_both_ranks_have_the_same_masks_throughout(tmp_path, granularity):
    preload()
    tool = str(ROOT / 'tests' / 'sparsity' / 'ranks.py')
    running = start(tmp_path, [tmp_path, granularity], 2, tool, find_free_port())
    assert running.wait() == [0, 0], running.printed()[-3000:]
    first, second = (torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2))
    assert len(first['masks']) == 6
    for mask, other in zip(first['masks'], second['masks'], strict=True):
        assert torch.equal(mask, other)
        assert granularity != 'weight' or int(mask.sum()) == active_total([mask.numel()], 0.6)
    assert not torch.equal(first['masks'][0], first['masks'][-1])
    for key, value in first['weights'].items():
        assert torch.equal(value, second['weights'][key]), key
    # Two ranks with four samples each score as one with the eight; float32 sums in another order.
    for ours, other, whole in zip(first['scores'], second['scores'], scores_of_global_batch(8), strict=True):
        assert torch.equal(ours, other)
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-7)
