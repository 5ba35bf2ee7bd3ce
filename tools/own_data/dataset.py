"""What the readers of all tasks share: what they find, and how pictures are read and split."""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmengine.registry import DATASETS
from PIL import Image
from rich.progress import track

from mmpelk.analysis.drawings import IMAGE_SUFFIXES
from mmpelk.errors import UserError

__all__ = [
    'CLASS_FILES',
    'DataSet',
    'Header',
    'Note',
    'find_images',
    'known_metainfo',
    'make_palette',
    'map_files',
    'read_classes',
    'read_header',
    'split_names',
    'spread',
]

# Lists of class names that annotation tools leave beside the data: CVAT's, CamVid's, and plain ones.
CLASS_FILES = ('labelmap.txt', 'class_dict.csv', 'classes.txt', 'labels.txt', 'names.txt')
SPLITS = {'train': ('train', 'training', 'train2017'), 'val': ('val', 'valid', 'validation', 'val2017', 'test')}
_ORIENTATION = 0x0112  # the EXIF tag
_SHOWN = 5  # files named in a message
Item = TypeVar('Item')
Result = TypeVar('Result')


@dataclass(frozen=True)
class Note:
    """One sentence about the data.

    Attributes:
        kind: ``'mistake'``, something wrong in the data; ``'decision'``, a guess that the user may have to correct;
            ``'remark'``.
        text: What was found, and what was done about it or what to do.
        files: Whom it concerns.
    """

    kind: str
    text: str
    files: Sequence[str] = ()

    def __str__(self) -> str:
        shown = ', '.join(self.files[:_SHOWN]) + (f' and {len(self.files) - _SHOWN} more' * (len(self.files) > _SHOWN))
        return f'{self.kind}: {self.text}' + (f' ({shown})' if shown else '')


@dataclass
class DataSet:
    """A data set that was read.

    Attributes:
        task: ``'seg'``, ``'det'`` or ``'cls'``.
        root: Its folder, absolute.
        classes: Names, in the order of their indices.
        palette: Colours ``(R, G, B)`` to paint them in.
        splits: Names of the samples in ``'train'`` and ``'val'``, as the split's files list them.
        sizes: Width and height of the pictures, as they are trained on.
        counts: What was counted of each class: pixels, objects or pictures.
        unit: What that is.
        unlabelled: Share of pixels without a class, or of pictures without an object.
        ignore_orientation: The labels fit the pictures as stored, without the rotation that EXIF asks for.
        notes: Everything that deserves a sentence.
        details: What only the task's own config needs.
    """

    task: str
    root: Path
    classes: list[str]
    palette: list[tuple[int, int, int]]
    splits: dict[str, list[str]]
    sizes: list[tuple[int, int]]
    counts: list[int]
    unit: str
    unlabelled: float = 0.0
    ignore_orientation: bool = False
    notes: list[Note] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median_size(self) -> tuple[int, int]:
        """Width and height of the middle picture, by area."""
        return sorted(self.sizes, key=lambda size: size[0] * size[1])[len(self.sizes) // 2]

    def note(self, kind: str, text: str, files: Iterable[str] = ()) -> None:
        """Append a :class:`Note`."""
        self.notes.append(Note(kind, text, tuple(files)))


@dataclass(frozen=True)
class Header:
    """What a picture's file says before its pixels are read.

    Attributes:
        width: As stored.
        height: As stored.
        orientation: EXIF's number, 1 to 8; 1 is upright.
        error: Why the file cannot be read, or ``''``.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1
    error: str = ''

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.width, self.height

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after the rotation that EXIF asks for."""
        return (self.height, self.width) if self.orientation > 4 else self.stored


def read_header(path: Path, pixels: bool = True) -> Header:
    """Size and orientation of a picture.

    Args:
        path: The file.
        pixels: Read through the pixels, too, so that a truncated file is found; of a JPEG in an eighth of its size.
    """
    try:
        with Image.open(path) as image:
            (width, height), orientation = image.size, image.getexif().get(_ORIENTATION, 1)
            if pixels:
                image.draft('RGB', (width // 8 or 1, height // 8 or 1))
                image.load()
    except Exception as error:  # Pillow's readers raise whatever the damage leads to
        return Header(error=f'{type(error).__name__}: {error}'.splitlines()[0])
    return Header(width, height, orientation if orientation in range(1, 9) else 1)


def map_files(function: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """``function`` of every item, on threads, with a progress bar where it takes long and somebody watches."""
    with ThreadPoolExecutor() as pool:
        results = pool.map(function, items)
        return list(track(results, description=what, total=len(items)) if len(items) > 200 else results)


def find_images(folder: Path) -> list[str]:
    """Pictures in a folder and below, relative to it, sorted; hidden ones and what macOS leaves are left out."""
    paths = (path.relative_to(folder) for path in folder.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(
        path.as_posix() for path in paths if not any(part[0] == '.' or part == '__MACOSX' for part in path.parts)
    )


def split_of(folder: str) -> str | None:
    """``'train'`` or ``'val'`` if a folder's name says so."""
    return next((split for split, names in SPLITS.items() if folder.lower() in names), None)


def split_names(names: Sequence[str], share: float, seed: int = 0) -> dict[str, list[str]]:
    """Draw a validation split: the same names give the same split, on every machine.

    Raises:
        UserError: If there is but one name.
    """
    if len(names) < 2:
        raise UserError(f'{len(names)} usable picture: training and validation need one each')
    drawn = sorted(names)
    random.Random(seed).shuffle(drawn)
    held_out = min(max(1, round(share * len(drawn))), len(drawn) - 1)
    return {'train': sorted(drawn[held_out:]), 'val': sorted(drawn[:held_out])}


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most ``limit`` items, evenly from the whole sequence."""
    if len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def read_classes(given: str | None, root: Path) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names of classes, and their colours if the list has them.

    Args:
        given: Path of a list with a class a line, ``name`` or ``name,R,G,B`` (CVAT's ``name:R,G,B::``, too); or the
            names themselves, with commas between them; or ``None``: look for one of ``CLASS_FILES`` in ``root``.
        root: Folder of the data set.

    Raises:
        UserError: If a name comes twice.
    """
    if given and not Path(given).is_file():
        lines = given.split(',')
    else:
        files = [Path(given)] if given else [root / name for name in CLASS_FILES if (root / name).is_file()]
        lines = files[0].read_text().splitlines() if files else []
    names: list[str] = []
    colours: list[tuple[int, int, int]] = []
    for line in lines:
        if not (line := line.strip()) or line.startswith('#') or re.fullmatch(r'name\W+r\W+g\W+b', line.lower()):
            continue
        found = re.match(r'(.+?)[:,;\t ]\s*(\d+)[, ;\t]+(\d+)[, ;\t]+(\d+)', line)
        names.append((found[1] if found else line).strip(' :,;\t'))
        if found:
            colours.append((int(found[2]), int(found[3]), int(found[4])))
    if doubled := {name for name in names if names.count(name) > 1}:
        raise UserError(f'the list of classes has {sorted(doubled)} twice')
    return names, colours if len(colours) == len(names) else []


def known_metainfo(name: str) -> dict[str, Any]:
    """Classes and palette of a public data set, from the toolbox's own class, such as ``'mmseg.ADE20KDataset'``."""
    kind = DATASETS.get(name)
    return dict(kind.METAINFO) if kind is not None else {}


def make_palette(count: int) -> list[tuple[int, int, int]]:
    """Pascal VOC's colours: the bits of the index, the lowest to the highest bits of red, green and blue."""

    def channel(index: int, offset: int) -> int:
        return sum(((index >> 3 * bit + offset) & 1) << (7 - bit) for bit in range(8))

    return [(channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(count)]
