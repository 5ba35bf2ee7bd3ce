"""Classification: a folder of pictures for every class."""

import hashlib
from collections import defaultdict
from pathlib import Path

from mmpelk.errors import UserError

from .dataset import DataSet, find_images, make_palette, map_files, read_header, split_names, split_of

__all__ = ['read_classification']


def read_classification(root: Path, val_share: float = 0.2, limit: int = 20000) -> DataSet:
    """Read ``root/CLASS/*.jpg``, or ``root/train/CLASS/*.jpg`` and ``root/val/CLASS/*.jpg``.

    Args:
        root: The folder.
        val_share: Share of every class's pictures to validate on where the folders do not say it.
        limit: Above so many pictures, only their headers are read.

    Raises:
        UserError: If there are not two classes with pictures.
    """
    root = root.resolve()
    data = DataSet('cls', root, [], [], {}, [], [], 'pictures')
    names = find_images(root)
    children = sorted({name.split('/')[0] for name in names if '/' in name})
    prefixes = {split: [child for child in children if split_of(child) == split] for split in ('train', 'val')}
    depth = 1 if prefixes['train'] else 0
    if loose := [name for name in names if name.count('/') <= depth and (not depth or split_of(name.split('/')[0]))]:
        data.note('mistake', f'{len(loose)} pictures are in no folder of a class and are left out', loose)
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split('/')
        if len(parts) > depth + 1 and (not depth or split_of(parts[0])):
            by_class[parts[depth]].append(name)
    folders = [root / child for child in prefixes['train'] + prefixes['val']] if depth else [root]
    empty = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()} - set(by_class)
    if empty := {name for name in empty if name[0] != '.'}:
        data.note('mistake', f'{len(empty)} folders hold no picture and are no classes', sorted(empty))
    data.classes = sorted(by_class)
    if len(data.classes) < 2:
        raise UserError(f"'{root}' needs a folder of pictures for each of at least two classes, found {data.classes}")
    labelled = [name for group in by_class.values() for name in group]
    pixels = len(labelled) <= limit
    headers = map_files(lambda name: (name, read_header(root / name, pixels)), labelled, 'Reading pictures')
    if broken := [(name, header.error) for name, header in headers if header.error]:
        text = f'{len(broken)} files cannot be read as pictures ({broken[0][1]}) and are left out'
        data.note('mistake', text, [name for name, _ in broken])
    sizes = {name: header.upright for name, header in headers if not header.error}
    data.sizes = list(sizes.values())
    splits: dict[str, list[str]] = {'train': [], 'val': []}
    few = []
    for label in data.classes:
        usable = [name for name in by_class[label] if name in sizes]
        data.counts.append(len(usable))
        if depth and prefixes['val']:
            for name in usable:
                splits[split_of(name.split('/')[0]) or 'train'].append(name)
        elif len(usable) < 2:
            few.append(label)
            splits['train'] += usable
        else:
            for split, drawn in split_names(usable, val_share).items():
                splits[split] += drawn
    if few:
        data.note('mistake', f'{len(few)} classes have a single picture: none is left to validate on', few)
    if not (depth and prefixes['val']):
        counts = f'{len(splits["train"])} to {len(splits["val"])}'
        data.note(
            'decision', f'no folder says which pictures to validate on: {counts} are drawn at random, always the same'
        )
    data.splits = splits
    data.palette = make_palette(len(data.classes))
    for split, chosen in splits.items():
        absent = sorted(set(data.classes) - {name.split('/')[depth] for name in chosen})
        if absent:
            data.note('remark', f'{len(absent)} of {len(data.classes)} classes have no {split} picture', absent)
    if not splits['train'] or not splits['val']:
        raise UserError(f"'{root}' has no pictures to {'validate on' if splits['train'] else 'train on'}")
    _find_copies(data, sizes)
    _say_balance(data)
    data.details['depth'] = depth
    return data


def _find_copies(data: DataSet, sizes: dict[str, tuple[int, int]]) -> None:
    """The same file in training and in validation, where it would be praised for being remembered."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for name in sizes:
        by_length[(data.root / name).stat().st_size].append(name)
    held_out = set(data.splits['val'])
    copies = []
    for group in by_length.values():
        if len(group) > 1 and any(name in held_out for name in group):
            digests: dict[bytes, list[str]] = defaultdict(list)
            for name in group:
                digests[hashlib.sha256((data.root / name).read_bytes()).digest()].append(name)
            for same in digests.values():
                if len({name in held_out for name in same}) > 1:
                    copies += [name for name in same if name in held_out]
    if copies:
        data.note('mistake', f'{len(copies)} pictures to validate on are copies of pictures to train on', copies)


def _say_balance(data: DataSet) -> None:
    most, least = max(data.counts), min(data.counts)
    if most > 10 * least:
        text = f'the largest class has {most} pictures, the smallest {least}: accuracy will hide the small ones'
        data.note('remark', text, [data.classes[data.counts.index(least)]])
