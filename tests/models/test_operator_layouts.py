"""The maps that networks hand to the operator: channels last, which the Triton kernels copy in whole sectors."""

import pytest
import torch
from torch import Tensor

from mmpelk.models import PeLK
from mmpelk.ops import force_backend
from mmpelk.ops.backends import BACKENDS, Backend, dft
from mmpelk.ops.layout import is_channels_last

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
