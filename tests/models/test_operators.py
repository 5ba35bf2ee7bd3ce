"""How many operators a network dispatches: on a GPU, and on small maps, each costs more than its arithmetic."""

import pytest
import torch

from benchmarks.backbone import dispatched_operators, inference, training_step
from benchmarks.ceiling import without_mixer
from mmpelk.models import PeLK


@pytest.mark.parametrize(
    ('step', 'deploy', 'most', 'comparisons'),
    [
        # On a CPU each of the 18 mixers compares weight, bias and table with what its constants were made of.
        (inference, True, 1.0, 3 * 18),
        # Both kernels with the embedding are one operator each way; two batch norms are four, of three each in forward.
        (training_step, False, 1.6, 0),
    ],
    ids=['inference', 'training'],
)
def test_operators_over_those_of_the_network_without_mixers(step, deploy: bool, most: float, comparisons: int) -> None:
    """All but views, after a first call, which fills the caches."""
    counts = []
    for model in (PeLK('tiny', deploy=deploy), without_mixer(PeLK('tiny'))):
        model.train(not deploy)
        x = torch.randn(1, 3, 64, 64)
        step(model, None, x, torch.float32)
        counts.append(dispatched_operators(lambda model=model, x=x: step(model, None, x, torch.float32)))
    assert counts[0] - comparisons <= most * counts[1], counts
