"""The random state of a process: it goes on where it was kept, from data alone; seeds of many numbers."""

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpelk.fault_tolerance.errors import UserError
from mmpelk.fault_tolerance.random_state import (
    get_random_state,
    isolated_randomness,
    make_generator,
    make_seed,
    seed_all,
    set_random_state,
)


def draw() -> list[float]:
    """Numbers of every generator; normal ones are made in pairs, of which the second is kept."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


@pytest.mark.parametrize('drawn', [0, 1])
def test_it_goes_on_where_it_was_kept(drawn: int, tmp_path: Path) -> None:
    seed_all(3)
    for _ in range(drawn):
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
    numbers = ([1, 2, 3], [1, 3, 2], [2, 2, 3], [1, 2, 4], [2**40, 2, 3])
    seeds = {make_seed(each) for each in numbers}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)
    drawn = [torch.rand((), generator=make_generator(*each)).item() for each in (*numbers, numbers[0])]
    assert drawn[-1] == drawn[0]
    assert len(set(drawn)) == 5
    assert max(make_generator(*each).initial_seed() for each in numbers) >= 2**32, 'of 63 bits'


@pytest.mark.parametrize('generator', range(len(draw())))
def test_numbers_of_a_block_change_none_after_it(generator: int) -> None:
    """Of a seed beyond NumPy's 32 bits, too, and if the block fails."""
    seed_all(3)
    expected = draw()[generator]
    seed_all(3)
    inside = []
    for seed in (7, 7, 2**32 + 8):
        with contextlib.suppress(KeyError), isolated_randomness(seed):
            inside.append(draw()[generator])
            raise KeyError
    assert inside[0] == inside[1] != inside[2]
    assert draw()[generator] == expected


@pytest.mark.parametrize(('part', 'index', 'value'), [
    ('numpy', 2, 10**8),
    ('numpy', 2, -1),
    ('numpy', 2, 1.0),
    ('numpy', 1, torch.zeros(3, dtype=torch.int64)),
    ('numpy', 1, 'x'),
    ('numpy', 0, 'PCG64'),
    ('python', 1, (1, 2)),
    ('python', 1, (10**30,) * 625),
    ('torch', 0, 'x'),
    ('torch', 0, torch.zeros(3, dtype=torch.uint8)),
])  # fmt: skip
def test_a_state_that_is_none_is_refused(part: str, index: int, value: object) -> None:
    state = get_random_state()
    changed = list(state[part])
    changed[index] = value
    with pytest.raises(UserError, match='random state of the checkpoint is damaged'):
        set_random_state({**state, part: value if part == 'torch' else tuple(changed)})
    set_random_state(state)
