"""The runner of :mod:`tests.sparsity.tiny` as a fixture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.runner import Runner

from tests.sparsity.tiny import build_runner


@pytest.fixture
def make_runner(tmp_path: Path) -> Callable[..., Runner]:
    """:func:`build_runner`, in a folder of its own unless one is named."""

    def build(sparsity: dict[str, Any] | None = None, folder: str = 'run', **settings: Any) -> Runner:
        return build_runner(tmp_path / folder, sparsity, **settings)

    return build
