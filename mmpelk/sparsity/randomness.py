"""Random numbers that depend on a seed and a purpose alone, and code that leaves the run's own untouched."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ['isolated_randomness', 'make_generator']


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
    """Seed Python's, NumPy's and torch's generators inside, and put them back afterwards as they were.

    Args:
        seed: Seed of the generators inside.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
