"""The limit on transient memory: kept, without a change of the results, and read from the environment."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mmpelk.ops import set_workspace_limit, sharing_grid, workspace
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


def _most_bytes(call: Callable[[], Tensor]) -> int:
    """Bytes that are allocated at a time during a call, at most, as torch's profiler counts them."""
    call()  # what is kept between calls is made here
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    now = most = 0
    for _, change in sorted(_allocations(profiler.profiler.kineto_results.experimental_event_tree())):
        now += change
        most = max(most, now)
    return most


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int]]:
    # The profiler has no public way to sizes of single allocations.
    for event in events:
        if event.typed[0].name == 'Allocation':
            yield event.start_time_ns, event.typed[1].alloc_size
        yield from _allocations(event.children)


@pytest.mark.parametrize('last', [False, True], ids=['channels first', 'channels last'])
@pytest.mark.parametrize(('height', 'width'), [(24, 24), (40, 40), (96, 64)])
@pytest.mark.parametrize('backend', FAST)
def test_workspace_is_bounded(
    backend: str, height: int, width: int, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many images and channels there are; the limit is one of pieces, which a call may pass by half."""
    monkeypatch.setattr(workspace, '_limit_mb', 2)
    grid = sharing_grid(31, 5)
    x, weight = torch.randn(8, 16, height, width), torch.randn(16, 1, len(grid), len(grid))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    out = torch.empty_like(x)
    for call in (
        lambda: TABLE[backend].forward(x, weight, None, grid, out),
        lambda: TABLE[backend].forward(x, weight, torch.randn(16), grid, out),
        lambda: TABLE[backend].weight_grad(x, out, grid),
    ):
        assert 0 < _most_bytes(call) <= 1.5 * 2**21


def test_pieces_on_a_cpu_stay_in_its_cache() -> None:
    for device, size in (('cpu', 8), ('meta', 512)):
        x = torch.empty(1, 600, 1, 1, device=device)
        assert next(workspace.channel_chunks(x, 2**20)) == slice(0, size)
        assert next(workspace.image_chunks(x.transpose(0, 1), 2**20)) == slice(0, size)
        assert next(workspace.image_chunks(x.expand(600, 600, 1, 1)[:, :4], 2**20)) == slice(0, size // 4)


def test_workspace_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, megabytes in (('0.5', 0.5), ('', 64)):
        monkeypatch.setenv('MMPELK_WORKSPACE_MB', text)
        assert workspace.workspace_limit('cpu') == megabytes * 2**20
    monkeypatch.setenv('MMPELK_WORKSPACE_MB', '0.5')
    monkeypatch.setattr(workspace, '_limit_mb', None)  # as before, afterwards
    set_workspace_limit(3)  # what the program says comes first
    assert workspace.workspace_limit('cpu') == 3 * 2**20
    set_workspace_limit(None)
    assert workspace.workspace_limit('cpu') == 2**19
    for megabytes in (0, -1):
        with pytest.raises(ValueError, match='must be positive'):
            set_workspace_limit(megabytes)
    for text in ('much', '0', '-1'):
        monkeypatch.setenv('MMPELK_WORKSPACE_MB', text)
        with pytest.raises(ValueError, match='MMPELK_WORKSPACE_MB'):
            workspace.workspace_limit('cpu')
