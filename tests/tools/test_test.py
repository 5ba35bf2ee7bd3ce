"""``tools/test.py``: where drawings go."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.test import keep_folders


@pytest.mark.parametrize('method', ['add_datasample', 'visualize_cls'])
def test_drawings_of_equal_names_keep_their_folders(method: str) -> None:
    drawn: list[Any] = []

    def draw(name: str, *, data_sample: Any, out_file: str | None, step: int) -> None:
        drawn.append((name, data_sample.img_path, out_file, step))

    def files(paths: list[str]) -> list[str | None]:
        drawn.clear()
        visualizer = SimpleNamespace(**{method: draw})
        keep_folders(visualizer, paths)
        for path in paths:
            sample = SimpleNamespace(img_path=path)
            getattr(visualizer, method)('x', data_sample=sample, out_file=f'/out/{Path(path).name}', step=3)
        assert [(name, path, step) for name, path, _, step in drawn] == [('x', path, 3) for path in paths]
        return [file for _, _, file, _ in drawn]

    assert files(['/data/cat/1.jpg', '/data/dog/2.jpg']) == ['/out/1.jpg', '/out/2.jpg']
    assert files(['/data/cat/1.jpg', '/data/dog/1.jpg', '/data/2.jpg']) == [
        '/out/cat/1.jpg', '/out/dog/1.jpg', '/out/2.jpg'
    ]  # fmt: skip
