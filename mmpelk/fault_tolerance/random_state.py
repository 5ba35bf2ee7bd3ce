"""The random state of a process, as data that every checkpoint can hold."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .errors import UserError

_NUMPY_KEYS = 624  # of MT19937


def get_random_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy, torch and the current CUDA device: tensors, numbers, containers."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = dict(
        python=random.getstate(),
        # As 64-bit integers: torch's own are signed, and no number is lost.
        numpy=(kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`get_random_state` returned.

    Raises:
        UserError: If it is no such state, as a file may hold.
    """
    try:
        version, numbers, gauss = state['python']
        kind, keys, position, *rest = state['numpy']
        # NumPy reads beyond its keys at a position beyond them.
        if type(position) is not int or not 0 <= position <= _NUMPY_KEYS or keys.shape != (_NUMPY_KEYS,):
            raise ValueError("a position of NumPy's generator that is not valid")
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, *rest))
        torch.set_rng_state(state['torch'].cpu())
        if 'cuda' in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state['cuda'].cpu())
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f'the random state of the checkpoint is damaged ({type(error).__name__}): resume from another one with '
            '--resume FILE, or train from its weights with load_from'
        ) from error


def make_seed(numbers: Sequence[int]) -> int:
    """Combine non-negative integers into one seed of 32 bits, as NumPy takes (``numpy.random.SeedSequence``)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators of the CPU, and the GPU's where this process may use one."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_generator(seed: int, *purpose: int, device: torch.device | str = 'cpu') -> torch.Generator:
    """A generator for one purpose, the same on every rank and after every resume.

    Args:
        seed: Seed of the run.
        purpose: Non-negative integers that tell this use from every other, such as a tag and the iteration.
        device: Device of the numbers.

    Returns:
        The generator. Different purposes give independent streams (``numpy.random.SeedSequence``).
    """
    state = np.random.SeedSequence([seed, *purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) & (2**63 - 1))


@contextmanager
def isolated_randomness(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators inside, and put them back afterwards as they were."""
    state = get_random_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(state)
