"""Two processes train together (gloo): the same masks on both, all the time, from the scores of the global batch."""

import pytest
import torch

from mmpelk.sparsity import active_total
from tests.commands import find_free_port
from tests.fault_tolerance.training import preload, start
from tests.paths import ROOT
from tests.sparsity.tiny import scores_of_global_batch


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
