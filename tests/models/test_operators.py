"""What a network hands to the operator, and how many operators it dispatches.

Maps are channels last, which the Triton kernels copy in whole sectors; on small maps and on a GPU each operator costs
more than its arithmetic.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.backbone import dispatched_operators, inference, training_step
from benchmarks.ceiling import without_mixer
from mmpelk.models import PeLK
from mmpelk.ops import force_backend
from mmpelk.ops.backends import BACKENDS, Backend, dft
from mmpelk.ops.layout import is_channels_last


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


NANO = {'depths': (1, 1, 1, 1), 'channels': (8, 12, 16, 20), 'kernel_sizes': (13, 11, 9, 7)}


@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('deploy', [False, True], ids=['training', 'deployed'])
def test_every_map_is_channels_last(deploy: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    maps: list[Tensor] = []

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, grid: list[int], out: Tensor | None = None) -> Tensor:
        maps.extend([x] if out is None else [x, out])
        if bias is not None and bias.dim() == 3:
            maps.append(bias[None])
        return dft.forward(x, weight, bias, grid, out)

    def weight_grad(x: Tensor, grad_out: Tensor, grid: list[int]) -> Tensor:
        maps.extend([x, grad_out])
        return dft.weight_grad(x, grad_out, grid)

    monkeypatch.setitem(BACKENDS, 'triton', Backend('triton', forward, weight_grad))
    network = PeLK(NANO, out_indices=(0, 1, 2, 3), gap_before_final_norm=False, deploy=deploy).train(not deploy)
    with force_backend('triton'), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        outs = network(torch.randn(2, 3, 96, 96)) if not deploy else torch.no_grad()(network)(torch.randn(2, 3, 96, 96))
    if not deploy:
        with force_backend('triton'):
            sum(out.float().square().mean() for out in outs).backward()
    assert len(maps) >= 8
    assert all(is_channels_last(x) for x in maps), [x.stride() for x in maps if not is_channels_last(x)]
