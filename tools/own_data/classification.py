"""Classification: a folder of pictures for every class."""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmpelk.errors import UserError

from .dataset import (
    DataSet,
    UnknownLayoutError,
    ask_depth,
    ask_twins,
    complete_splits,
    count_unread,
    find_copies,
    find_images,
    is_hidden,
    make_palette,
    map_files,
    original_of,
    read_header,
    same_files,
    say_drawn,
    split_by_lists,
    split_names,
    split_of,
)
from .names import order_names

# Folders of other formats.
_OTHERS = {'jpegimages', 'images', 'image', 'annotations', 'labels', 'segmentationclass', 'segmentationobject', 'masks'}
_NO_CLASS = {'unlabeled', 'unlabelled', 'unsorted', 'unclassified', 'new folder', 'todo', 'thumbnails', 'augmented'}

_READ_WHOLE = 20_000  # pictures; of more than these, only the headers are read


def read_classification(
    root: Path,
    val_share: float = 0.2,
    converted: dict[str, Any] | None = None,
    classes: str | None = None,
) -> DataSet:
    """Read ``root/CLASS/*.jpg``, or ``root/train/CLASS/*.jpg`` and ``root/val/CLASS/*.jpg``.

    Args:
        root: The folder.
        val_share: Share of every class's pictures to validate on where the folders do not say it.
        converted: The data set as :func:`~own_data.foreign.convert` has read it.
        classes: The names in the order of their indices; by default that of the alphabet.

    Raises:
        UserError: If there are not two classes with pictures.
    """
    root = root.resolve()
    data = DataSet('cls', root, [], [], {}, [], [], 'pictures')
    if converted:
        samples = [_Sample(s['image'], s['label'], split_of(s['subset'])) for s in converted['samples']]
        for left_out in converted.get('left_out', ()):
            data.leave_out(*left_out)
    else:
        samples = _list_samples(data, classes is not None)
    by_class: dict[str, list[_Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.label].append(sample)
    data.classes = sorted(by_class)
    if len(data.classes) < 2:
        raise UnknownLayoutError(
            f"'{root}' needs a folder of pictures for each of at least two classes, found {data.classes}"
        )
    data.classes[:] = order_names(data.classes, classes, root)
    if classes is None:
        _ask_names(data)
    labelled = [sample.path for group in by_class.values() for sample in group]
    pixels = len(labelled) <= _READ_WHOLE
    headers = map_files(lambda name: (name, read_header(root / name, pixels)), labelled, 'Reading pictures')
    count_unread(data, len(labelled))
    if broken := [(name, header.error) for name, header in headers if header.error]:
        data.leave_out(f'pictures cannot be read ({broken[0][1]})', [name for name, _ in broken], len(labelled))
    sizes = {name: header.upright for name, header in headers if not header.error}
    if not sizes:
        raise UserError(f"no picture of '{root}' can be read: {broken[0][1]}")
    data.sizes = list(sizes.values())
    splits: dict[str, list[str]] = {'train': [], 'val': [], 'test': []}
    said = any(sample.split for sample in samples)
    unsaid = {sample.path for sample in samples if said and not sample.split}
    data.leave_out('pictures of a class are in no folder of a split', sorted(unsaid), len(labelled))
    labels: dict[str, int] = {}
    for index, label in enumerate(data.classes):
        usable = [sample for sample in by_class[label] if sample.path in sizes and sample.path not in unsaid]
        labels |= {sample.path: index for sample in usable}
        data.counts.append(len(usable))
        for sample in usable:
            splits[sample.split or 'train'].append(sample.path)
    if not splits['val']:
        few = _draw(data, splits, labels, val_share)
        if few:
            data.note('mistake', f'{len(few)} classes have a single picture: none is left to validate on', few)
    complete_splits(data, splits, val_share, lambda name: name)
    data.splits = splits
    data.palette = make_palette(len(data.classes))
    for split, chosen in splits.items():
        absent = sorted(set(data.classes) - {data.classes[labels[name]] for name in chosen})
        if absent:
            data.note('remark', f'{len(absent)} of {len(data.classes)} classes have no {split} picture', absent)
    if not splits['train']:
        raise UserError(f"'{root}' has no pictures to train on")
    find_copies(data, list(sizes))
    ask_depth(data, headers)
    doubtful = [g for g in same_files(root, list(sizes)) if len({labels[name] for name in g}) > 1]
    if doubtful:
        text = f'{len(doubtful)} pictures are in the folders of several classes, and one of them is learnt: remove the'
        shown = [' and '.join(group[:3]) for group in doubtful]
        data.note('question', f'{text} wrong copies; --yes trains on contradictory labels', shown)
    _say_balance(data)
    data.details |= dict(labels=labels)
    return data


@dataclass(frozen=True)
class _Sample:
    path: str  # below the root, or absolute
    label: str
    split: str | None


def _ask_names(data: DataSet) -> None:
    """Ask where the names of the classes look like something else."""
    shown = ','.join(data.classes[:8])
    if splits := [name for name in data.classes if split_of(name)]:
        text = (
            f'{len(splits)} classes are called like a split: --classes {shown} confirms the classes, --data FOLDER/...'
        )
        data.note('question', f'{text} takes a folder below', splits)
    if none := [name for name in data.classes if name.lower() in _NO_CLASS]:
        text = f'{len(none)} folders are called like no class: --classes {shown} confirms them, else move them away'
        data.note('question', text, none)
    ask_twins(data)


def _wrapping(names: list[str]) -> str:
    """The folders that hold everything else, as an archive has them, with a slash behind."""
    prefix = ''
    while True:
        children = {name[len(prefix) :].split('/')[0] for name in names}
        below = [name[len(prefix) :].count('/') for name in names]
        if len(children) != 1 or min(below) < 2 or _is_split_folder(child := children.pop()):
            return prefix
        prefix += f'{child}/'


def _list_samples(data: DataSet, confirmed: bool) -> list[_Sample]:
    """Pictures in folders of classes."""
    names = find_images(data.root)
    prefix = _wrapping(names) if names else ''
    root = data.root / prefix
    children = sorted({part[0] for name in names if len(part := name[len(prefix) :].split('/')) > 1})
    said = {child: split for child in children if (split := split_of(child)) and _is_split_folder(child)}
    depth = 1 if 'train' in said.values() else 0
    samples, loose, tests, beside, deeper = [], [], [], [], []
    for name in names:
        parts = name[len(prefix) :].split('/')
        if len(parts) > depth + 1 and (not depth or parts[0] in said):
            below = parts[1] if not depth and len(parts) == 3 and _is_split_folder(parts[1]) else ''  # cat/train/7.jpg
            if len(parts) > depth + 2 and not below:
                deeper.append(name)
            samples.append(_Sample(name, parts[depth], said[parts[0]] if depth else split_of(below)))
        elif said.get(parts[0]) == 'test':
            tests.append(name)
        elif not depth or parts[0] in said or len(parts) == 1:
            loose.append(name)
        else:
            beside.append(name)
    found = {sample.label for sample in samples}
    if foreign := sorted(label for label in found if label.lower() in _OTHERS):
        raise UnknownLayoutError(f"the folders {', '.join(foreign)} of '{root}' are no classes")
    if tests:
        data.note('remark', f'{len(tests)} pictures of the test split have no class: demo_image.py draws them', tests)
    if len(found) > 1:
        data.leave_out('pictures are in folders beside those of the splits', beside, len(names))
        if deeper and not confirmed:
            shown = ','.join(sorted(found)[:8])
            text = f'{len(deeper)} pictures are in folders below that of their class: --classes {shown} confirms that'
            data.note('question', f'{text} these are the classes, --data FOLDER/... takes a folder below', deeper)
        data.leave_out('pictures are in no folder of a class', loose, len(names))
    folders = [root / child for child in said] if depth else [root]
    empty = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()} - found
    if empty := {name for name in empty if not is_hidden(name)}:
        data.note('mistake', f'{len(empty)} folders hold no picture and are no classes', sorted(empty))
    listed = None if depth else split_by_lists(data, root, samples, lambda sample: [sample.path])
    if listed is None:
        return samples
    return [replace(sample, split=split) for split, part in listed.items() for sample in part]


def _is_split_folder(name: str) -> bool:
    """``train``, and not ``train_station``: a class may be called like that."""
    return (
        re.fullmatch(r'(?i)(train|training|val|valid|validation|dev|test|testing)([_-]?(images|set|data))?', name)
        is not None
    )


def _draw(data: DataSet, splits: dict[str, list[str]], labels: dict[str, int], share: float) -> list[str]:
    """Draw a share of every class's training pictures to validate on; returns the classes that have but one."""
    few, train = [], splits['train']
    splits['train'] = []
    for index, label in enumerate(data.classes):
        own = [name for name in train if labels[name] == index]
        if len({original_of(name) for name in own}) < 2:
            few.append(label)
            splits['train'] += own
        else:
            for split, drawn in split_names(own, share).items():
                splits[split] += drawn
    say_drawn(data, splits)
    return few


def _say_balance(data: DataSet) -> None:
    most, least = max(data.counts), min(data.counts)
    if most > 10 * least:
        text = f'the largest class has {most} pictures, the smallest {least}: accuracy will hide the small ones'
        data.note('remark', text, [data.classes[data.counts.index(least)]])
