"""Small pictures and label maps, and what a reader said about them."""

import json
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


def write_set(task: str, root: Path, count: int) -> Path:
    """A set of a task: two classes, for detection one, with a box in every picture."""
    for index in range(count):
        folder = 'ab'[index % 2] if task == 'cls' else 'images'
        image(root / folder / f'{index}.jpg', (96 + index, 64))
        if task == 'seg':
            label(root / 'labels' / f'{index}.png', [0, 1, 255], (96 + index, 64))
    if task == 'det':
        content = dict(
            images=[dict(id=index, file_name=f'{index}.jpg', width=96 + index, height=64) for index in range(count)],
            categories=[dict(id=0, name='cat')],
            annotations=[dict(id=i, image_id=i, category_id=0, bbox=[4, 5, 50, 40]) for i in range(count)],
        )
        (root / 'labels.json').write_text(json.dumps(content))
    return root


def notes(data: DataSet, kind: str = '') -> str:
    return '\n'.join(str(note) for note in data.notes if note.kind.startswith(kind))


def names(data: DataSet) -> dict[str, int]:
    return {split: len(chosen) for split, chosen in data.splits.items()}
