"""The limit on transient memory: kept, without a change of the results, and read from the environment."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # no public alias

from mmpelk.ops import sharing_grid, workspace
from mmpelk.ops.backends import BACKENDS as TABLE
from tests.ops.inputs import BACKENDS, FAST, convolve, make_inputs, output_and_gradients


@pytest.mark.parametrize('backend', BACKENDS)
def test_small_workspace_changes_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sharing_grid(13, 5)
    inputs = make_inputs(grid, 10, 9)
    want = output_and_gradients(convolve(grid, backend), inputs, torch.ones_like(inputs[0]))
    monkeypatch.setattr(workspace, '_limit_mb', 1e-4)
    got = output_and_gradients(convolve(grid, backend), inputs, torch.ones_like(inputs[0]))
    torch.testing.assert_close(got, want)


class _LargestStorage(TorchDispatchMode):
    """Bytes of the largest storage that is made inside, beside the input's and the output's."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.shape, self.known, self.bytes = x.shape, {x.untyped_storage().data_ptr()}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            storage = out.untyped_storage()
            if out.shape == self.shape:
                self.known.add(storage.data_ptr())
            elif storage.data_ptr() not in self.known:
                self.bytes = max(self.bytes, storage.nbytes())
        return out


@pytest.mark.parametrize('backend', FAST)
def test_workspace_is_bounded(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images and channels there are."""
    monkeypatch.setattr(workspace, '_limit_mb', 1)
    grid = sharing_grid(31, 5)
    x, weight = torch.randn(32, 16, 40, 40), torch.randn(16, 1, len(grid), len(grid))
    with _LargestStorage(x) as largest:
        TABLE[backend].forward(x, weight, None, grid)
        TABLE[backend].weight_grad(x, x, grid)
    assert 0 < largest.bytes <= 2**20


def test_workspace_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, megabytes in (('0.5', 0.5), ('', 64)):
        monkeypatch.setenv('MMPELK_WORKSPACE_MB', text)
        assert workspace.workspace_limit('cpu') == megabytes * 2**20
    for text in ('much', '0', '-1'):
        monkeypatch.setenv('MMPELK_WORKSPACE_MB', text)
        with pytest.raises(ValueError, match='MMPELK_WORKSPACE_MB'):
            workspace.workspace_limit('cpu')
