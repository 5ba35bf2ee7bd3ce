"""Small pictures and label maps, and what a reader said about them."""

from pathlib import Path
from typing import Any

import numpy as np
from own_data import DataSet
from PIL import Image

SIZE = (48, 32)  # width, height


def image(path: Path, size: tuple[int, int] = SIZE, orientation: int | None = None) -> None:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def label(path: Path, values: list[object], size: tuple[int, int] = SIZE) -> None:
    """Stripes of values, or of colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.array(values, np.uint8)[np.arange(size[0]) * len(values) // size[0]]
    Image.fromarray(np.broadcast_to(stripes[None], (size[1], *stripes.shape)).copy()).save(path)


def write_pairs(
    root: Path, values: list[object], count: int | range = 4, images: str = '', labels: str = '', size: Any = SIZE
) -> Path:
    """Pictures and label maps of them.

    Args:
        root: The folder.
        values: Of each label map.
        count: How many, or their numbers.
        images: Path of a picture, with ``{i}`` for its number.
        labels: Of its label map; ``'-'`` for none.
        size: Width and height.
    """
    for index in range(count) if isinstance(count, int) else count:
        image(root / (images or 'images/{i}.jpg').format(i=index), size)
        if labels != '-':
            label(root / (labels or 'labels/{i}.png').format(i=index), values, size)
    return root


def notes(data: DataSet, kind: str = '') -> str:
    return '\n'.join(str(note) for note in data.notes if note.kind.startswith(kind))


def names(data: DataSet) -> dict[str, int]:
    return {split: len(chosen) for split, chosen in data.splits.items()}
