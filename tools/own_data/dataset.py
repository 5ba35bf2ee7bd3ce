"""What the readers of all tasks share: what they find, and how pictures are read and split."""

import codecs
import hashlib
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image
from rich.progress import track

from mmpelk.analysis.drawings import IMAGE_SUFFIXES
from mmpelk.errors import UserError

__all__ = [
    'Colour',
    'DataSet',
    'Header',
    'Note',
    'UnknownLayoutError',
    'ask_beside',
    'ask_depth',
    'ask_twins',
    'complete_splits',
    'count_unread',
    'find_copies',
    'find_files',
    'find_images',
    'is_hidden',
    'known_metainfo',
    'make_palette',
    'map_files',
    'nothing_left',
    'original_of',
    'read_header',
    'read_text',
    'same_files',
    'say_drawn',
    'split_by_lists',
    'split_names',
    'split_of',
    'spread',
]

_SPLITS = {
    'train': ('train', 'training', 'train2017', 'trn', 'trainset'),
    'val': ('val', 'valid', 'validation', 'val2017', 'dev', 'valset'),
    'test': ('test', 'testing', 'test2017', 'tst', 'testset'),
}
_PLAIN_WORDS = {'images', 'image', 'imgs', 'img', 'labels', 'label', 'masks', 'mask', 'annotations', 'annots', 'data'}
_PLAIN_WORDS |= {'dataset', 'set', 'split'}
_UNREAD = {'.avif', '.gif', '.heic', '.jfif', '.jp2', '.dcm', '.exr', '.heif', '.jpe', '.jxl', '.pgm', '.pnm', '.tga'}
_JOINED = ('trainval', 'train_val', 'train+val')
Colour = tuple[int, int, int]
_ORIENTATION = 0x0112  # the EXIF tag
_SHOWN = 5  # files named in a message
Item = TypeVar('Item')
Result = TypeVar('Result')


class UnknownLayoutError(UserError):
    """The folder has none of the layouts that are read here; it may be of another format."""


@dataclass(frozen=True)
class Note:
    """One sentence about the data.

    Attributes:
        kind: ``'question'``, more than one reading fits, and the user has to say which; ``'mistake'``, something wrong
            in the data; ``'decision'``, what was understood, which the user may have to correct; ``'remark'``.
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
        splits: Names of the samples in ``'train'`` and ``'val'``, as the split's files list them, and in ``'test'``
            where there is one: for ``tools/test.py`` alone.
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

    def leave_out(self, text: str, files: Sequence[str], total: int) -> None:
        """Note what cannot be trained on; a question where it is more than a tenth of the whole."""
        if files:
            much = len(files) > 0.1 * total and len(files) > 1
            asked = f' ({len(files) / total:.0%} of all: --yes, if that is right)' if much else ''
            self.note('question' if much else 'mistake', f'{len(files)} {text} and are left out{asked}', files)

    def validate_on(self, names: Sequence[str]) -> None:
        """Validate on some samples alone while training; ``tools/test.py`` keeps all, if it has no split of its own."""
        contents, folders = self.details.get('contents', {}), self.details.get('folders', {})
        if 'test' not in self.splits:
            self.splits['test'] = self.splits['val']
            if contents:
                contents['test'], folders['test'] = contents['val'], folders['val']
        self.splits['val'] = list(names)
        if contents:
            chosen = set(names)
            images = [image for image in contents['val']['images'] if image['file_name'] in chosen]
            ids = {image['id'] for image in images}
            objects = [entry for entry in contents['val']['annotations'] if entry['image_id'] in ids]
            contents['val'] = {**contents['val'], 'images': images, 'annotations': objects}

    @property
    def questions(self) -> list[Note]:
        """What the user has to answer before anything is written."""
        return [note for note in self.notes if note.kind == 'question']


@dataclass(frozen=True)
class Header:
    """What a picture's file says before its pixels are read.

    Attributes:
        width: As stored.
        height: As stored.
        orientation: EXIF's number, 1 to 8; 1 is upright.
        error: Why the file cannot be read, or ``''``.
        peak: The highest value of a picture of 16 bits, 0 of others and where its pixels are not read.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1
    error: str = ''
    peak: int = 0

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
            if image.mode == 'F' or (image.mode == 'I' and image.format == 'TIFF'):
                raise ValueError('training reads pictures of 8 bits, and it has 32: convert them')
            if image.format == 'TIFF' and getattr(image, 'n_frames', 1) > 1:
                raise ValueError(f'training reads one picture of a file, and it has {image.n_frames}: save each alone')
            peak = 0
            if pixels:
                image.draft('RGB', (width // 8 or 1, height // 8 or 1))
                image.load()
            if image.mode.startswith('I'):
                peak = int(np.asarray(image).max())
    except Exception as error:  # Pillow's readers may raise anything on damaged files
        return Header(error=f'{type(error).__name__}: {error}'.splitlines()[0])
    return Header(width, height, orientation if orientation in range(1, 9) else 1, peak=peak)


def ask_beside(data: DataSet, beside: Sequence[str], splits: Iterable[str | None]) -> None:
    """Ask about pictures in no folder of a split where there is one to train on, and others."""
    if beside and 'train' in splits:
        text = f'{len(beside)} pictures are in folders beside those of the splits and are trained on: --yes, if that is'
        data.note('question', f'{text} right, else move or rename the folders', beside)


def ask_depth(data: DataSet, headers: Iterable[tuple[str, Header]]) -> None:
    """Ask where pictures of 16 bits use the lower ones, as cameras of 12 bits do: training reads the upper 8."""
    peaks = {name: header.peak for name, header in headers if header.peak}
    if not peaks:
        return
    peak = max(peaks.values())
    dark = peak < 1 << 15
    text = (
        f'{len(peaks)} pictures have 16 bits, of which training reads the upper 8: the highest value is {peak}, read '
    )
    text += f'as {peak >> 8} of 255' + ('; convert them to 8 bits over their own range, or --yes' if dark else '')
    data.note('question' if dark else 'decision', text, list(peaks))


def map_files(function: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """``function`` of every item, on threads, with a progress bar where it takes long and somebody watches."""
    with ThreadPoolExecutor() as pool:
        results = pool.map(function, items)
        return list(track(results, description=what, total=len(items)) if len(items) > 200 else results)


def read_text(path: Path) -> str:
    """A text in UTF-8, or in UTF-16 with the mark that Windows sets in front of it.

    Raises:
        UserError: If it is in another encoding, which nothing in it names.
    """
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode('utf-16' if marked else 'utf-8-sig')
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is no text in UTF-8: save it in that encoding") from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or what macOS leaves in archives."""
    return name[0] == '.' or name == '__MACOSX'


def find_files(folder: Path, suffixes: Iterable[str]) -> list[str]:
    """Files in a folder and below, relative to it, sorted, without hidden ones and what macOS leaves.

    Links to folders are followed, each once, if they lead out of the folder.
    """
    found: list[Path] = []
    top, followed = folder.resolve(), set()

    def wanted(path: Path) -> bool:
        if is_hidden(path.name):
            return False
        if not path.is_symlink():
            return True
        target = path.resolve()
        new = target not in followed and target != top and top not in target.parents
        followed.add(target)
        return new

    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if wanted(Path(here, name))]
        found += [Path(here, name) for name in files if name[0] != '.' and Path(name).suffix.lower() in suffixes]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def find_images(folder: Path) -> list[str]:
    """Pictures as :func:`find_files` finds them."""
    return find_files(folder, IMAGE_SUFFIXES)


def count_unread(data: DataSet, read: int) -> None:
    """Note pictures of kinds that are not looked for."""
    names = find_files(data.root, _UNREAD)
    kinds = ', '.join(sorted({Path(name).suffix.lower() for name in names}))
    data.leave_out(f'pictures are of kinds that are not read ({kinds}; convert them to .jpg or .png)', names,
                   read + len(names))  # fmt: skip


def split_of(path: str) -> str | None:
    """``'train'``, ``'val'`` or ``'test'`` if a folder's name says so: ``images/val2017``, ``val_images``.

    Of several the one that says nothing else, then the deepest: ``train_data/images/val`` and ``val/train_station`` are
    to validate on.
    """
    said: list[tuple[int, str]] = []
    for part in reversed(path.lower().split('/')):
        words = set(re.split(r'[^a-z0-9]+', part)) - {''}
        for split, names in _SPLITS.items():
            if part in names or words & set(names):
                others = words - set(names)
                said.append((0 if part in names else 1 if others <= _PLAIN_WORDS else 2, split))
                break
    return min(said, key=lambda each: each[0])[1] if said else None


def split_by_lists(
    data: DataSet, root: Path, items: Sequence[Item], paths: Callable[[Item], Sequence[str]]
) -> dict[str, list[Item]] | None:
    """The split of lists of names beside the pictures: ``train.txt``, ``val.txt``, ``test.txt``, also in ``ImageSets``.

    Without a ``train.txt``, what ``trainval.txt`` has beyond the validation is the training, else what is in no list.

    Args:
        data: Gets notes.
        root: Where the lists are looked for.
        items: Samples.
        paths: Of a sample, which a line may name, or the end of them. A line that names none may have more after the
            first word.

    Returns:
        The samples of each split, ``None`` if there are no lists.
    """
    known = {end for item in items for path in paths(item) for end in _ends(path)}
    lists, lost = _read_split_lists(root, known)
    if not lists:
        return None
    splits: dict[str, list[Item]] = {'train': [], 'val': [], 'test': []}
    rest: list[Item] = []
    several: list[str] = []
    for item in items:
        ends = {end for path in paths(item) for end in _ends(path)}
        said_by = [split for split, names in lists.items() if names & ends]
        (splits[said_by[0]] if said_by else rest).append(item)
        several += [f'{paths(item)[0]} in {" and ".join(said_by)}'] * (len(said_by) > 1)
    said = 'the split is that of the lists beside the pictures'
    if 'train' not in lists:
        splits['train'], rest = rest, []
        said += ', and what is in none is trained on'
    data.note('decision', f'{said}: {", ".join(f"{len(part)} {split}" for split, part in splits.items() if part)}')
    if rest:
        data.note('remark', f'{len(rest)} pictures are in no list and not used', [paths(item)[0] for item in rest])
    if several:
        data.note('question', f'{len(several)} pictures are in several lists: --yes takes the first', several)
    if not any(splits[split] for split in lists):
        raise UserError(
            f"no line of the lists beside the pictures names one: '{lost[0] if lost else ''}'; correct them"
        )
    data.leave_out('lines of the lists name no picture that is here', lost, len(lost) + len(items))
    return splits


def _read_split_lists(root: Path, known: set[str]) -> tuple[dict[str, set[str]], list[str]]:
    """Of each split that has a list, how its lines call the pictures; and the lines that name none."""
    below = ('', 'ImageSets/Segmentation', 'ImageSets/Main', 'splits', 'lists', 'annotations')
    folders = [root / folder for folder in below]
    lists: dict[str, set[str]] = {}
    joined: set[str] = set()
    lost: list[str] = []
    for folder in folders:
        for path in sorted(folder.glob('*.txt')):
            stem = path.stem.lower()
            split = split_of(stem) if stem in sum(_SPLITS.values(), ()) else None
            if stem in _JOINED or (split and split not in lists):
                lines = read_text(path).replace('\\', '/').splitlines()
                found = {line: _names_in(line, known) for line in lines if line.strip()}
                lost += [f'{path.name}: {line}' for line, names in found.items() if not names & known]
                listed = lists.setdefault(split, set()) if split else joined
                listed |= {name for names in found.values() for name in names}
        if lists or joined:
            break
    if joined and 'train' not in lists:
        lists['train'] = joined - lists.get('val', set()) - lists.get('test', set())
    return lists, lost


def _names_in(line: str, known: set[str]) -> set[str]:
    """What a line of a list calls its picture."""
    for text in (line, line.split(' ')[0]):
        # Of an absolute path, which is another machine's, the folder and the name.
        name = _plain(text)
        found = {name, '/'.join(name.split('/')[-2:])} if re.match(r'/|[A-Za-z]:', name) else {name}
        if found & known:
            break
    return found


def _ends(name: str) -> list[str]:
    """A picture's path without its suffix, and every end of it."""
    parts = _plain(name).split('/')
    return ['/'.join(parts[start:]) for start in range(len(parts))]


def _plain(name: str) -> str:
    name = name.strip().removeprefix('./')
    stem, dot, suffix = name.rpartition('.')
    return stem if dot and f'.{suffix.lower()}' in IMAGE_SUFFIXES else name


def complete_splits(data: DataSet, splits: dict[str, list[Item]], share: float, names: Callable[[Item], str]) -> None:
    """Draw what is validated on from the training where nothing says it; a test split is never taken for it.

    Args:
        data: Gets a note.
        splits: Lists of samples; ``'train'`` and ``'val'`` are filled, an empty ``'test'`` goes.
        share: Of the training's samples that are drawn.
        names: Of a sample, unique.

    Raises:
        UserError: If there are too few samples.
    """
    if not splits.get('test'):
        splits.pop('test', None)
    if not any(splits.values()):
        raise nothing_left(data)
    if not splits['train'] and splits['val']:
        raise UserError(f"'{data.root}' has samples to validate on, and none to train on")
    if not splits['val']:
        by_name = {names(item): item for item in splits['train']}
        drawn = split_names(list(by_name), share)
        for split, chosen in drawn.items():
            splits[split] = [by_name[name] for name in chosen]
        say_drawn(data, splits, names)
    if 'test' in splits:
        text = f'{len(splits["test"])} samples of the test split are for tools/test.py alone: nothing is chosen by them'
        data.note('decision', text)


def ask_twins(data: DataSet) -> None:
    """Ask where two classes may be one."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in data.classes:
        by_name[name.strip().lower()].append(name)
    if twins := [name for group in by_name.values() if len(group) > 1 for name in group]:
        text = f'{len(twins)} classes differ in capital letters or blanks alone: rename them to join them'
        data.note('question', f'{text}, or --classes {",".join(data.classes[:8])} confirms them', twins)


def nothing_left(data: DataSet) -> UserError:
    """The error where everything was left out, with the reason."""
    reasons = [note for note in data.notes if note.kind in ('question', 'mistake')] or data.notes[-1:]
    said = f': {reasons[-1]}' if reasons else ''
    return UserError(f"nothing in '{data.root}' can be trained on{said}")


def find_copies(data: DataSet, names: Sequence[str]) -> None:
    """Note files that are in training and in validation, where they would raise the score."""
    held_out = set(data.splits['val']) | set(data.splits.get('test', ()))
    # Roboflow's folders of the splits are not in the way: the name of an original is the same in all.
    trained = {Path(original_of(name)).name for name in data.splits['train'] if original_of(name) != name}
    if made := sorted(
        name for name in held_out if original_of(name) != name and Path(original_of(name)).name in trained
    ):
        text = f'{len(made)} pictures to validate or test on are called like augmented copies of pictures to train on'
        data.note('mistake', text, made)
    mixed = [same for same in same_files(data.root, names) if len({name in held_out for name in same}) > 1]
    if copies := [name for same in mixed for name in same if name in held_out]:
        data.note(
            'mistake', f'{len(copies)} pictures to validate or test on are copies of pictures to train on', copies
        )


def same_files(root: Path, names: Iterable[str]) -> list[list[str]]:
    """The files that have others of equal content, in groups."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        by_length[(root / name).stat().st_size].append(name)
    groups: dict[bytes, list[str]] = defaultdict(list)
    for group in by_length.values():
        if len(group) > 1:
            for name in group:
                groups[hashlib.sha256((root / name).read_bytes()).digest()].append(name)
    return [group for group in groups.values() if len(group) > 1]


def split_names(names: Sequence[str], share: float) -> dict[str, list[str]]:
    """Draw a validation split: the same names give the same split, on every machine, copies of a picture are together.

    Raises:
        UserError: If there is but one picture.
    """
    copies: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        copies[original_of(name)].append(name)
    if len(copies) < 2:
        raise UserError(f'{len(copies)} usable picture: training and validation need one each')
    drawn = list(copies.values())
    random.Random(0).shuffle(drawn)
    held_out = min(max(1, round(share * len(drawn))), len(drawn) - 1)
    parts = {'train': drawn[held_out:], 'val': drawn[:held_out]}
    return {split: sorted(name for group in part for name in group) for split, part in parts.items()}


def original_of(name: str) -> str:
    """The picture that an augmented copy of Roboflow's was made of: ``7_jpg.rf.HASH.jpg`` and others are one."""
    return re.sub(r'\.rf\.[0-9A-Za-z]{16,}(?=\.\w+$)', '', name)


def say_drawn(data: DataSet, splits: Mapping[str, Sequence[Item]], names: Callable[[Item], str] = str) -> None:
    """Note how many are drawn to validate on, and that copies stay together."""
    counts = f'{len(splits["train"])} to {len(splits["val"])}'
    text = f'nothing says which pictures to validate on: {counts} are drawn at random, always the same'
    drawn = [names(item) for split in ('train', 'val') for item in splits[split]]
    if many := len(drawn) - len({original_of(name) for name in drawn}):
        text += f', {many} augmented copies with the pictures that they were made of'
    data.note('decision', text)
    _ask_unread_splits(data, drawn)
    series = _series(drawn, data.task == 'cls')
    trained = {series[names(item)] for item in splits['train']}
    shared = [name for name in map(names, splits['val']) if series[name] != name and series[name] in trained]
    if 2 * len(shared) > len(splits['val']):
        text = f'{len(shared)} of {len(splits["val"])} pictures to validate on are of a series of names that is trained'
        text += ' on, too: of frames of one video, tiles or copies of one picture the results are too good; put whole'
        data.note('remark', f'{text} series into folders train and val', shared)


def _ask_unread_splits(data: DataSet, names: Sequence[str]) -> None:
    """Ask where names of pictures or lists say a split that is not read."""
    begun = {name: split_of(re.split(r'[^A-Za-z0-9]', Path(name).stem)[0]) for name in names}
    if len(set(begun.values()) - {None}) > 1:
        text = 'the names of pictures begin with those of splits, which are not read: put them into folders train, val'
        data.note('question', f'{text} and test, or --yes draws at random', [n for n, split in begun.items() if split])
    if any('lists beside the pictures' in note.text for note in data.notes):
        return
    known = {end for name in names for end in _ends(name)}
    unread = []
    for file in find_files(data.root, ['.txt', '.csv', '.lst']):
        if split_of(Path(file).stem) in ('val', 'test') and Path(file).stem not in known:
            with open(data.root / file, encoding='utf-8', errors='replace') as lines:
                first = [line for line, _ in zip(lines, range(20), strict=False)]
            if 2 * sum(bool(_names_in(line.split(',')[0], known) & known) for line in first) >= len(first) > 0:
                unread.append(file)
    if unread:
        text = f'{len(unread)} lists of a split are not read: call them train.txt, val.txt and test.txt, in {data.root}'
        data.note('question', f'{text}, or --yes draws at random', unread)


def _series(names: Iterable[str], folders_are_classes: bool) -> dict[str, str]:
    """What begins every name: ``7`` of ``7_flip.jpg`` where there is ``7.jpg``, ``clip3_`` of ``clip3_0041.jpg``.

    What all names of a class begin with is no series; a name without one is its own.
    """
    stems = {name: original_of(name).rsplit('.', 1)[0] for name in names}
    known = set(stems.values())
    copies = {stem: re.sub(r'[_-][^_/-]+$', '', stem) for stem in known}
    copies = {stem: picture for stem, picture in copies.items() if picture != stem and picture in known}
    copied = set(copies.values())
    series = {}
    for name, stem in stems.items():
        picture = copies.get(stem, stem)
        start = re.sub(r'\d+$', '', picture)
        numbered = start != picture and re.search(r'\d[^/\d]*/?$', start)
        series[name] = start if numbered else picture if picture in copied else name
    if folders_are_classes:
        begun: dict[str, set[str]] = defaultdict(set)
        for name, start in series.items():
            begun[os.path.dirname(name)].add(start)
        series = {name: start if len(begun[os.path.dirname(name)]) > 1 else name for name, start in series.items()}
    return series


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most ``limit`` items, evenly from the whole sequence."""
    if len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def known_metainfo(name: str) -> dict[str, Any]:
    """Classes and palette of a public data set, from the toolbox's own class, such as ``'mmseg.ADE20KDataset'``."""
    kind = DATASETS.get(name)
    return dict(kind.METAINFO) if kind is not None else {}


def make_palette(count: int, given: Sequence[Colour | None] = ()) -> list[Colour]:
    """Colours far from each other and from black, the same every time.

    Args:
        count: How many.
        given: Colours to keep, ``None`` where one is wanted.
    """
    levels = np.linspace(32, 255, 8)
    free = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), -1).reshape(-1, 3)
    free = free[(free @ [0.3, 0.59, 0.11] > 60) & (free.min(1) < 230)]  # neither dark nor nearly white
    palette = [*given, *[None] * (count - len(given))]
    taken = [np.zeros(3), *(np.array(colour, float) for colour in palette if colour)]
    distance = np.min([np.linalg.norm(free - colour, axis=1) for colour in taken], axis=0)
    for index, colour in enumerate(palette):
        if colour is None:
            best = free[distance.argmax()]
            distance = np.minimum(distance, np.linalg.norm(free - best, axis=1))
            palette[index] = tuple(best.astype(int).tolist())
    return palette  # type: ignore[return-value]
