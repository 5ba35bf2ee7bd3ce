"""The sharing grid against the paper's printed grids and its defining properties."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpelk.ops import expand_kernel, sharing_grid
from mmpelk.ops.sharing_grid import (
    _ring_of_position,
    _ring_without_copy,
    check_sharing_grid,
    mirror_half_grid,
    project_kernel,
    reachable_rings,
    reduce_kernel,
    resolve_sharing_grid,
)

# Half grids from the rim to the centre: printed in the paper (Fig. 1b, Tables 5 and 6), or following from its rule.
HALF_GRIDS = {
    (31, 5): [7, 4, 2, 1, 1, 1],
    (33, 5): [8, 4, 2, 1, 1, 1],
    (51, 1): [11, 8, 4, 2, 1],
    (51, 3): [10, 8, 4, 2, 1, 1],
    (51, 5): [9, 8, 4, 2, 1, 1, 1],
    (51, 7): [8, 8, 4, 2, 1, 1, 1, 1],
    (49, 5): [8, 8, 4, 2, 1, 1, 1],
    (47, 5): [7, 8, 4, 2, 1, 1, 1],
    (13, 5): [2, 2, 1, 1, 1],
    (101, 7): [17, 16, 8, 4, 2, 1, 1, 1, 1],
    (69, 7): [17, 8, 4, 2, 1, 1, 1, 1],
    (67, 7): [16, 8, 4, 2, 1, 1, 1, 1],
    (13, 7): [1, 2, 1, 1, 1, 1],  # a remainder of exactly half the ring before it stays a ring
    (11, 5): [1, 2, 1, 1, 1],
    (25, 5): [4, 4, 2, 1, 1, 1],
    (23, 5): [3, 4, 2, 1, 1, 1],
    (21, 5): [2, 4, 2, 1, 1, 1],
    (19, 5): [5, 2, 1, 1, 1],  # one of less is folded into it
}

odd = st.integers(0, 75).map(lambda n: 2 * n + 1)
grids = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(lambda half: mirror_half_grid([*half, 1]))


@pytest.mark.parametrize(('kernel_size', 'center_size'), HALF_GRIDS)
def test_grid_of_the_paper(kernel_size: int, center_size: int) -> None:
    assert sharing_grid(kernel_size, center_size) == mirror_half_grid(HALF_GRIDS[kernel_size, center_size])


@given(odd, odd, st.integers(1, 4))
def test_rule_gives_a_symmetric_grid_with_its_centre(kernel_size: int, center_size: int, base: int) -> None:
    grid = sharing_grid(kernel_size, center_size, base)
    assert sum(grid) == kernel_size
    assert grid == grid[::-1]
    size = min(center_size, kernel_size)
    margin = (len(grid) - size) // 2
    assert set(grid[margin : margin + size]) == {1}
    outwards = grid[margin + size :]
    for ring, width in enumerate(outwards[:-1], start=1):
        assert width == base**ring


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((50, 5), 'kernel_size must be an odd'),
        ((51, 4), 'center_size must be an odd'),
        ((0, 1), 'kernel_size must be an odd'),
        ((51, 5, 0), 'base must be'),
        ((51.0, 5), 'kernel_size must be an odd'),
        ((51, -5), 'center_size must be an odd'),
        ((51, 5, 2.0), 'base must be'),
    ],
)
def test_rule_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharing_grid(*arguments)


def test_explicit_grids() -> None:
    assert resolve_sharing_grid(5, [2, 1, 2], 3) == (2, 1, 2)
    assert resolve_sharing_grid(33, [4, 4, 4, 2, 1, 1, 1], 5) == mirror_half_grid([4, 4, 4, 2, 1, 1, 1])
    assert resolve_sharing_grid(5, [1, 1, 1], 3) == (1,) * 5
    assert resolve_sharing_grid(51, None, 7) == sharing_grid(51, 7) != sharing_grid(51)


@pytest.mark.parametrize(
    ('kernel_size', 'grid', 'center_size', 'message'),
    [
        (33, [8, 4, 2, 1, 1], 5, 'sums to 16 as a full grid and to 31 as a half grid'),
        (5, [1, 2, 2], 3, 'symmetric'),
        (9, [1, 2, 3, 1, 1, 1], 3, 'symmetric'),  # the ends alone are alike
        (5, [3, -1, 3], 3, 'positive integers'),
        (5, [2, 0, 1, 0, 2], 3, 'positive integers'),
        (6, [2, 2, 2], 1, 'kernel_size must be an odd'),
        (5, None, 7, 'center_size 7 is larger than kernel_size 5'),
    ],
    ids=['wrong sum', 'asymmetric', 'asymmetric inside', 'negative', 'zero', 'even kernel', 'centre too large'],
)
def test_explicit_grid_refuses(kernel_size: int, grid: list[int] | None, center_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_sharing_grid(kernel_size, grid, center_size)


def test_check_names_the_sum() -> None:
    with pytest.raises(ValueError, match='sums to 5, but the kernel size is 7'):
        check_sharing_grid([2, 1, 2], 7)
    for grid, message in (([], 'positive integers'), ([1.0], 'positive integers'), ([2, 2], 'a kernel size is odd')):
        with pytest.raises(ValueError, match=message):
            check_sharing_grid(grid)
    assert check_sharing_grid([2, 1, 2]) == check_sharing_grid([2, 1, 2], 5) == (2, 1, 2)


@given(grids)
def test_expansion_is_constant_on_the_regions(grid: tuple[int, ...]) -> None:
    rings = len(grid)
    weight = torch.arange(rings * rings, dtype=torch.float64).view(1, 1, rings, rings)
    expected = torch.cat(
        [
            torch.cat([weight[..., a : a + 1, b : b + 1].expand(1, 1, grid[a], grid[b]) for b in range(rings)], -1)
            for a in range(rings)
        ],
        -2,
    )
    assert torch.equal(expand_kernel(weight, grid), expected)


@given(grids)
def test_reduction_is_the_adjoint_of_the_expansion(grid: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(grid))
    weight = torch.randn(2, 1, len(grid), len(grid), generator=generator, dtype=torch.float64)
    dense = torch.randn(2, 1, sum(grid), sum(grid), generator=generator, dtype=torch.float64)
    torch.testing.assert_close((expand_kernel(weight, grid) * dense).sum(), (weight * reduce_kernel(dense, grid)).sum())


@pytest.mark.parametrize('size', [(7, 7), (7, 3), (3, 7), (5, 7), (7, 5)], ids=str)
def test_another_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match='a grid of 3 rings needs'):
        expand_kernel(torch.zeros(1, 1, *size), [2, 1, 2])
    with pytest.raises(ValueError, match='a grid of sum 5 needs'):
        project_kernel(torch.zeros(1, 1, *size), [2, 1, 2])


@given(grids, st.integers(1, 40))
def test_reachable_rings_are_those_that_meet_the_map(grid: tuple[int, ...], extent: int) -> None:
    rings, edges = reachable_rings(grid, extent)
    radius = sum(grid) // 2
    ring_of_tap = {tap - radius: ring for tap, ring in enumerate(a for a, w in enumerate(grid) for _ in range(w))}
    meets = {tap: ring for tap, ring in ring_of_tap.items() if -extent < tap < extent}
    assert list(range(rings.start, rings.stop)) == sorted(set(meets.values()))
    covered = {tap: rings.start + a for a in range(len(edges) - 1) for tap in range(edges[a], edges[a + 1])}
    assert covered == meets


@pytest.mark.parametrize('grid', [(1,), (1, 1, 1), (4, 2, 1, 1, 1, 2, 4), (3, 1, 1)], ids=str)
def test_rings_made_on_the_device(grid: tuple[int, ...]) -> None:
    """What a CUDA graph captures, here on the CPU."""
    device = torch.device('cpu')
    assert torch.equal(_ring_without_copy(grid, device), _ring_of_position(grid, device))
