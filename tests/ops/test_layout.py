"""Which maps count as channels last, and what is laid out as they are."""

import pytest
import torch
from torch import Tensor

from mmpelk.ops.layout import dense, empty_as, is_channels_last

FULL = torch.rand(2, 4, 5, 6, dtype=torch.float64)
LAST = FULL.contiguous(memory_format=torch.channels_last)
MAPS: dict[str, tuple[Tensor, bool]] = {
    'channels first': (FULL, False),
    'channels last': (LAST, True),
    'slice of channels first': (FULL[:, 1:3], False),
    'slice of channels last': (LAST[:, 1:3], True),
    'one channel of channels last': (LAST[:, 1:2], False),
    'one row repeated': (LAST[:, :, :1].expand_as(LAST), False),
    'windows that overlap': (torch.rand(99, dtype=torch.float64).as_strided((1, 4, 5, 6), (0, 1, 9, 1)), False),
}


@pytest.mark.parametrize('name', MAPS)
def test_results_are_laid_out_as_their_input(name: str) -> None:
    x, last = MAPS[name]
    assert is_channels_last(x) == last
    memory_format = torch.channels_last if last else torch.contiguous_format
    for result in (dense(FULL, like=x), empty_as(x)):
        assert result.is_contiguous(memory_format=memory_format)
        assert result.dtype == x.dtype
    assert empty_as(x).shape == x.shape
