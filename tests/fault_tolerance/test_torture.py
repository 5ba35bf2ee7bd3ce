"""A few of the kills of `make torture`."""

import random
from pathlib import Path

import pytest

from tests.fault_tolerance.torture import torture


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    said: list[str] = []
    assert ': 3 resumes' in torture(tmp_path, 3, random.randrange(999), said.append)
    assert sum(line.startswith('kill') for line in said) == 3
