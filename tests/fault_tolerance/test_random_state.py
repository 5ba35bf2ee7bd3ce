"""The random state of a process: it goes on where it was kept, from data alone; seeds of many numbers."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpelk.fault_tolerance.errors import UserError
from mmpelk.fault_tolerance.random_state import get_random_state, make_seed, seed_all, set_random_state


def draw() -> list[float]:
    """Numbers of every generator; normal ones are made in pairs, of which the second is kept."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def test_it_goes_on_where_it_was_kept(tmp_path: Path) -> None:
    seed_all(3)
    draw()
    torch.save(get_random_state(), tmp_path / 'state.pth')
    expected = draw()
    seed_all(4)
    assert draw() != expected
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert draw() == expected


@pytest.mark.parametrize('generator', range(len(draw())))
def test_one_seed_for_all(generator: int) -> None:
    numbers = []
    for seed in (5, 5, 6):
        seed_all(seed)
        numbers.append(draw()[generator])
    assert numbers[0] == numbers[1] != numbers[2]


def test_every_number_counts() -> None:
    seeds = {make_seed(numbers) for numbers in ([1, 2, 3], [1, 3, 2], [2, 2, 3], [1, 2, 4], [2**40, 2, 3])}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(('part', 'index', 'value'), [
    ('numpy', 2, 10**8),
    ('numpy', 2, -1),
    ('numpy', 2, 1.0),
    ('numpy', 1, torch.zeros(3, dtype=torch.int64)),
    ('numpy', 1, 'x'),
    ('numpy', 0, 'PCG64'),
    ('python', 1, (1, 2)),
])  # fmt: skip
def test_a_state_that_is_none_is_refused(part: str, index: int, value: object) -> None:
    state = get_random_state()
    changed = list(state[part])
    changed[index] = value
    with pytest.raises(UserError, match='random state of the checkpoint is damaged'):
        set_random_state({**state, part: tuple(changed)})
    set_random_state(state)
