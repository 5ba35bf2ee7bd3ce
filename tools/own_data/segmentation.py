"""Segmentation: images and label maps, whatever their layout, and the mistakes that are easy to make with them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmpelk.errors import UserError

from .dataset import (
    DataSet,
    Header,
    find_images,
    known_metainfo,
    make_palette,
    map_files,
    read_classes,
    read_header,
    split_names,
    split_of,
    spread,
)

__all__ = ['read_segmentation']

# Names of folders, in lower case.
_IMAGES = ('images', 'image', 'imgs', 'img', 'img_dir', 'jpegimages', 'leftimg8bit', 'photos', 'pictures', 'rgb')
_LABELS = (
    *('annotations', 'annotation', 'labels', 'label', 'masks', 'mask', 'ann_dir', 'segmentationclass', 'gtfine', 'gt'),
    *('segmentationclassaug', 'ground_truth', 'groundtruth', 'segmentations', 'segmentation', 'seg'),
)
# Ends of names that only images have, and, where an image has several label maps, the end of the one to take.
_IMAGE_ENDS = ('_leftImg8bit', '_image', '_img', '_sat', '')
_LABEL_ENDS = ('_gtFine_labelTrainIds', '_gtFine_labelIds')
_IGNORED = 255
_MOST_COLOURS = 256
_RARE = 1e-3  # share of the labelled pixels below which a class is called rare
Colour = tuple[int, int, int]


@dataclass
class _Folders:
    """Folders that belong together, relative to the root; ``split`` where their names say it."""

    images: str
    labels: str
    split: str | None = None


@dataclass(frozen=True)
class _Pair:
    folders: int
    name: str  # without its end
    image_end: str
    label_end: str

    def image(self, root: Path, folders: Sequence[_Folders]) -> Path:
        return root / folders[self.folders].images / f'{self.name}{self.image_end}'

    def label(self, root: Path, folders: Sequence[_Folders]) -> Path:
        return root / folders[self.folders].labels / f'{self.name}{self.label_end}'


@dataclass(frozen=True)
class _Label:
    """What one label map holds: values, or packed colours, with their number of pixels."""

    header: Header
    mode: str = ''
    counts: dict[int, int] = field(default_factory=dict)


@dataclass
class _Meaning:
    """What the values in the files stand for."""

    classes: list[str]
    palette: list[Colour]
    reduce_zero_label: bool = False
    mapping: dict[int, int] | None = None  # from values or packed colours, where the files have to be rewritten


def read_segmentation(
    root: Path,
    classes: str | None = None,
    images: str | None = None,
    labels: str | None = None,
    reduce_zero_label: bool | None = None,
    val_share: float = 0.2,
    limit: int = 2000,
) -> DataSet:
    """Read a folder of images and label maps.

    Known layouts: ADE20K's, Pascal VOC's, Cityscapes', MMSegmentation's, and any two folders of images and labels with
    equal names in them, below or above folders that are called train and val.

    Args:
        root: The folder.
        classes: As :func:`~own_data.dataset.read_classes` takes it.
        images: Folder of the images in ``root``, if its name does not tell.
        labels: Folder of the label maps.
        reduce_zero_label: Whether the value 0 means "no class" and the classes begin at 1; guessed by default.
        val_share: Share of the pictures to validate on where the folders do not say it.
        limit: Label maps whose pixels are counted, and images that are read through.

    Raises:
        UserError: If there are no such folders, or nothing can be trained on what is there.
    """
    root = root.resolve()
    folders = _find_folders(root, images, labels)
    data = DataSet('seg', root, [], [], {}, [], [], 'pixels')
    pairs = _find_pairs(data, folders)
    checked = set(spread(pairs, limit))

    def read(pair: _Pair) -> tuple[Header, _Label]:
        image = read_header(pair.image(root, folders), pixels=pair in checked)
        return image, _read_label(pair.label(root, folders), pixels=pair in checked)

    found = dict(zip(pairs, map_files(read, pairs, 'Reading label maps'), strict=True))
    if len(checked) < len(pairs):
        data.note('remark', f'the pixels of {len(checked)} of {len(pairs)} label maps were counted')
    pairs = _check_pairs(data, found)
    values: Counter[int] = Counter()
    for pair in pairs:
        values.update(found[pair][1].counts)
    colour_coded = _is_colour_coded(data, {pair: found[pair][1] for pair in pairs})
    meaning = _interpret(data, values, colour_coded, classes, reduce_zero_label, pairs)
    data.classes, data.palette = meaning.classes, meaning.palette
    _split(data, folders, pairs, val_share)
    _count(data, {pair: found[pair][1].counts for pair in pairs}, meaning)
    data.sizes = [image.stored if data.ignore_orientation else image.upright for image, _ in (found[p] for p in pairs)]
    data.details |= dict(folders=folders, pairs=pairs, meaning=meaning)
    return data


def write_labels(data: DataSet, out: Path) -> bool:
    """Write label maps of indices where the files hold colours or scattered values; the classes begin at 0 there.

    Returns:
        Whether that was needed.
    """
    mapping = data.details['meaning'].mapping
    if mapping is None:
        return False
    folders = data.details['folders']
    keys = np.array(sorted(mapping))
    indices = np.array([mapping[key] for key in sorted(mapping)], np.uint8)

    def write(pair: _Pair) -> None:
        values = _values(Image.open(pair.label(data.root, folders)))
        position = np.searchsorted(keys, values).clip(max=len(keys) - 1)
        target = out / folders[pair.folders].labels / f'{pair.name}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(keys[position] == values, indices[position], np.uint8(_IGNORED))).save(target)

    map_files(write, data.details['pairs'], 'Writing label maps')
    return True


def _find_folders(root: Path, images: str | None, labels: str | None) -> list[_Folders]:
    if (images is None) != (labels is None):
        raise UserError('--images and --labels go together: the folders of the images and of the label maps')
    if images is not None and labels is not None:
        for folder in (images, labels):
            if not (root / folder).is_dir():
                raise UserError(f"there is no folder '{folder}' in '{root}'")
        return [_Folders(images, labels)]
    children = {path.name.lower(): path.name for path in root.iterdir() if path.is_dir()}
    if pair := _choose(children):
        return [_Folders(*pair)]
    found = []
    for name in sorted(children.values()):
        inside = {path.name.lower(): path.name for path in (root / name).iterdir() if path.is_dir()}
        if (split := split_of(name)) and (pair := _choose(inside)):
            found.append(_Folders(f'{name}/{pair[0]}', f'{name}/{pair[1]}', split))
    if not found:
        raise UserError(
            f"'{root}' holds {', '.join(sorted(children.values())) or 'no folders'}: neither images and labels ("
            'such as images/ and annotations/, JPEGImages/ and SegmentationClass/, leftImg8bit/ and gtFine/) nor '
            'train/ and val/ with those inside. Name them: --images FOLDER --labels FOLDER'
        )
    return found


def _choose(names: dict[str, str]) -> tuple[str, str] | None:
    images = next((names[name] for name in _IMAGES if name in names), None)
    labels = next((names[name] for name in _LABELS if name in names), None)
    return (images, labels) if images and labels else None


def _find_pairs(data: DataSet, folders: list[_Folders]) -> list[_Pair]:
    pairs: list[_Pair] = []
    for index, folder in enumerate(folders):
        images, labels = (find_images(data.root / name) for name in (folder.images, folder.labels))
        if not images:
            raise UserError(f"there is no image in '{data.root / folder.images}'")
        if not labels:
            raise UserError(f"there is no label map in '{data.root / folder.labels}'")
        by_name: dict[str, str] = {}  # name without its end, to the end
        for path in images:
            stem, suffix = path.rsplit('.', 1)
            end = next(end for end in _IMAGE_ENDS if stem.endswith(end))
            by_name[stem.removesuffix(end)] = f'{end}.{suffix}'
        ends, owners = _label_ends(labels, by_name)
        matched = set()
        for path in labels:
            name = owners.get(path)
            if name is not None and path.removeprefix(name) in ends and name not in matched:
                matched.add(name)
                pairs.append(_Pair(index, name, by_name[name], path.removeprefix(name)))
        if alone := sorted(f'{name}{end}' for name, end in by_name.items() if name not in matched):
            data.note('mistake', f'{len(alone)} images without a label map are left out', alone)
        if alone := [path for path in labels if path not in owners]:
            data.note('mistake', f'{len(alone)} label maps without an image are left out', alone)
    if not pairs:
        raise UserError(
            f"no image in '{data.root / folders[0].images}' has a label map of its name in "
            f"'{data.root / folders[0].labels}': {data.notes[0]}"
        )
    return pairs


def _label_ends(labels: list[str], names: dict[str, str]) -> tuple[set[str], dict[str, str]]:
    """Ends of the label maps to take, such as ``'.png'`` or ``'_mask.png'``, and each file's image."""
    owners: dict[str, str] = {}
    for path in labels:
        stem = path.rsplit('.', 1)[0]
        # The longest name that the file's begins with, cut at any place but in the middle of a number.
        for length in range(len(stem), 0, -1):
            if stem[:length] in names and not (
                stem[length - 1 : length].isdigit() and stem[length : length + 1].isdigit()
            ):
                owners[path] = stem[:length]
                break
    ends = {path: path.removeprefix(name) for path, name in owners.items()}
    kinds = Counter(end.rsplit('.', 1)[0] for end in ends.values())
    preferred = [kind for kind in _LABEL_ENDS if kind in kinds] or [kind for kind, _ in kinds.most_common(1)]
    return {end for end in ends.values() if end.rsplit('.', 1)[0] == preferred[0]} if preferred else set(), owners


def _values(image: Image.Image) -> npt.NDArray[np.int64]:
    """Values of a label map ``(H, W)``; colours packed as ``R * 65536 + G * 256 + B``."""
    if image.mode in ('RGB', 'RGBA', 'CMYK', 'YCbCr', 'LA', 'PA'):
        pixels = np.asarray(image.convert('RGB'), dtype=np.int64)
        return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    return np.asarray(image).astype(np.int64)


def _read_label(path: Path, pixels: bool) -> _Label:
    try:
        with Image.open(path) as image:
            header = Header(*image.size)
            if not pixels:
                return _Label(header, image.mode)
            values, counts = np.unique(_values(image), return_counts=True)
            return _Label(header, image.mode, dict(zip(values.tolist(), counts.tolist(), strict=True)))
    except Exception as error:  # Pillow's readers raise whatever the damage leads to
        return _Label(Header(error=f'{type(error).__name__}: {error}'.splitlines()[0]))


def _check_pairs(data: DataSet, found: dict[_Pair, tuple[Header, _Label]]) -> list[_Pair]:
    """Pairs that can be trained on."""
    broken = {pair: image.error or label.header.error for pair, (image, label) in found.items()}
    if names := [pair.name for pair, error in broken.items() if error]:
        first = next(error for error in broken.values() if error)
        data.note('mistake', f'{len(names)} pictures or label maps cannot be read ({first}) and are left out', names)
    readable = {pair: sizes for pair, sizes in found.items() if not broken[pair]}
    turned = {pair: sizes for pair, sizes in readable.items() if sizes[0].orientation > 1}
    as_stored = [p for p, (image, label) in turned.items() if label.header.stored == image.stored != image.upright]
    as_upright = [p for p, (image, label) in turned.items() if label.header.stored == image.upright != image.stored]
    data.ignore_orientation = len(as_stored) > len(as_upright)
    if as_stored or as_upright:
        text = 'the rotation in the EXIF data of {} pictures {}'
        if data.ignore_orientation:
            text = text.format(len(as_stored), 'shifts them against their label maps: the config ignores it')
        else:
            text = text.format(len(as_upright), 'is in their label maps, too: it is applied')
        data.note('decision', text, [pair.name for pair in as_stored or as_upright])
    if undecided := [pair.name for pair in turned if pair not in as_stored and pair not in as_upright]:
        applied = 'ignored' if data.ignore_orientation else 'applied'
        text = f'{len(undecided)} pictures are rotated by EXIF in a way that their sizes do not tell: it is {applied}'
        data.note('decision', text, undecided)
    good: list[_Pair] = []
    different: list[_Pair] = []
    for pair, (image, label) in readable.items():
        fits = label.header.stored == (image.stored if data.ignore_orientation else image.upright)
        (good if fits else different).append(pair)
    if different:
        example = ' against '.join('x'.join(map(str, header.stored)) for header in (
            readable[different[0]][0], readable[different[0]][1].header))  # fmt: skip
        text = f'{len(different)} label maps differ in size from their images ({example}) and are left out'
        data.note('mistake', text, [pair.name for pair in different])
    if not good:
        raise UserError(f"nothing in '{data.root}' can be trained on: {data.notes[-1]}")
    return good


def _is_colour_coded(data: DataSet, labels: dict[_Pair, _Label]) -> bool:
    coded = [pair for pair, label in labels.items() if label.mode in ('RGB', 'RGBA', 'CMYK', 'YCbCr', 'LA', 'PA')]
    if coded and len(coded) < len(labels):
        raise UserError(
            f'{len(coded)} of {len(labels)} label maps are colour pictures, such as {coded[0].name}: convert all'
        )
    if any(pair.label_end.lower().endswith(('.jpg', '.jpeg')) for pair in labels):
        data.note('mistake', 'label maps are JPEGs, which blur the values at every contour: export them as PNG')
    return bool(coded)


def _interpret(
    data: DataSet,
    values: Counter[int],
    colour_coded: bool,
    given: str | None,
    reduce_zero_label: bool | None,
    pairs: list[_Pair],
) -> _Meaning:
    """What the values mean, from names, known data sets, and the values themselves."""
    names, colours = read_classes(given, data.root)
    if colour_coded:
        return _interpret_colours(data, values, names, colours)
    used = sorted(value for value in values if value != _IGNORED)
    if not used:
        raise UserError(f"every pixel of the label maps in '{data.root}' is 255, which means 'no class'")
    if used[-1] > _IGNORED:
        raise UserError(f'a label map has the value {used[-1]}: MMSegmentation knows classes up to 254')
    if not names and (known := _known(pairs, used)):
        names, colours = list(known['classes']), [(r, g, b) for r, g, b in known['palette']]
        zero = len(names) == 150 if reduce_zero_label is None else reduce_zero_label
        data.note(
            'decision', f'the {len(names)} classes are taken to be {", ".join(names[:3])}, ...; --classes for others'
        )
        return _Meaning(names, colours, zero)
    if names:
        return _interpret_named(used, names, colours, reduce_zero_label, values)
    if used == [0] and _IGNORED in values:
        data.note(
            'decision',
            'masks of 0 and 255 are rewritten: 255 means "no class" to MMSegmentation; here it is the foreground',
        )
        return _Meaning(['background', 'foreground'], make_palette(2), mapping={0: 0, _IGNORED: 1})
    if used[-1] >= 8 and 2 * len(used) <= used[-1] + 1:
        data.note(
            'decision',
            f'the values {_shorten(used)} are taken for grey levels of {len(used)} classes and rewritten as indices; '
            'if they are indices, give the names of all classes with --classes',
        )
        mapping = {value: index for index, value in enumerate(used)} | {_IGNORED: _IGNORED}
        return _Meaning([f'grey_{value}' for value in used], make_palette(len(used)), mapping=mapping)
    zero = used[0] > 0 if reduce_zero_label is None else reduce_zero_label
    if reduce_zero_label is None:
        data.note(
            'decision',
            'no pixel is 0, so the classes begin at 1 (reduce_zero_label=True)'
            if zero
            else 'the value 0 is taken for a class of its own; if it means "not labelled", give --reduce-zero-label',
        )
    if zero and used[-1] == 0:
        raise UserError('with --reduce-zero-label no class is left: every labelled pixel is 0')
    count = used[-1] + (not zero)
    data.note(
        'decision', f'{count} classes have no names: give them with --classes (and --overwrite), or in the config'
    )
    first = int(zero)
    return _Meaning([f'class_{first + index}' for index in range(count)], make_palette(count), zero)


def _interpret_named(
    used: list[int], names: list[str], colours: list[Colour], zero: bool | None, values: Counter[int]
) -> _Meaning:
    if zero is None:
        zero = used[-1] == len(names)
    beyond = [value for value in used if value >= len(names) + zero]
    if beyond:
        share = sum(values[value] for value in beyond) / sum(values.values())
        raise UserError(
            f'{len(names)} classes have names, but the label maps hold the values {_shorten(beyond)} beyond them '
            f'({share:.1%} of the pixels): name all classes in their order, or correct the label maps'
        )
    return _Meaning(names, colours or make_palette(len(names)), zero)


def _interpret_colours(data: DataSet, values: Counter[int], names: list[str], colours: list[Colour]) -> _Meaning:
    if len(values) > _MOST_COLOURS:
        raise UserError(
            f'the label maps hold {len(values)} colours, so they are photographs or were smoothed (JPEG, resizing): '
            'export one colour a class as PNG'
        )
    if colours:
        packed = {r << 16 | g << 8 | b: index for index, (r, g, b) in enumerate(colours)}
        unknown = {value: count for value, count in values.items() if value not in packed}
        if unknown:
            share = sum(unknown.values()) / sum(values.values())
            shown = ', '.join(_hex(value) for value in list(unknown)[:5])
            data.note(
                'mistake', f'{share:.1%} of the pixels have colours of no class ({shown}): they are not trained on'
            )
        meaning = _Meaning(names, colours, mapping=packed)
    else:
        found = sorted(values)
        if names and len(names) != len(found):
            raise UserError(
                f'{len(names)} classes have names, but the label maps have {len(found)} colours '
                f'({", ".join(_hex(value) for value in found[:8])}): give a list with lines name,R,G,B to --classes'
            )
        meaning = _Meaning(
            names or [_hex(value) for value in found],
            [(value >> 16, value >> 8 & 255, value & 255) for value in found],
            mapping={value: index for index, value in enumerate(found)},
        )
    data.note('decision', 'the label maps are colour pictures: index maps are written beside the config')
    return meaning


def _known(pairs: list[_Pair], used: list[int]) -> dict | None:
    """Classes of the public data set that the files' names belong to."""
    name = Path(pairs[0].name).name
    if name.startswith('ADE_') and used[-1] <= 150:
        return known_metainfo('mmseg.ADE20KDataset')
    if pairs[0].label_end.startswith('_gtFine_labelTrainIds') and used[-1] < 19:
        return known_metainfo('mmseg.CityscapesDataset')
    if re.fullmatch(r'20\d\d_\d{6}', name) and used[-1] <= 20:
        return known_metainfo('mmseg.PascalVOCDataset')
    return None


def _hex(value: int) -> str:
    return f'#{value:06x}'


def _shorten(values: list[int]) -> str:
    return ', '.join(map(str, values[:8])) + (', ...' if len(values) > 8 else '')


def _split(data: DataSet, folders: list[_Folders], pairs: list[_Pair], share: float) -> None:
    splits: dict[str, list[_Pair]] = {'train': [], 'val': []}
    lists = {
        split: set((data.root / 'ImageSets' / 'Segmentation' / f'{split}.txt').read_text().split())
        for split in splits
        if (data.root / 'ImageSets' / 'Segmentation' / f'{split}.txt').is_file()
    }
    for pair in pairs:
        split = folders[pair.folders].split or split_of(pair.name.split('/')[0])
        split = next((key for key, names in lists.items() if pair.name in names), None if lists else split)
        if split:
            splits[split].append(pair)
    if not splits['train'] or not splits['val']:
        by_name = {f'{pair.folders}:{pair.name}': pair for pair in splits['train'] or pairs}
        drawn = split_names(list(by_name), share)
        splits = {split: [by_name[name] for name in names] for split, names in drawn.items()}
        counts = f'{len(splits["train"])} to {len(splits["val"])}'
        data.note(
            'decision', f'no folder says which pictures to validate on: {counts} are drawn at random, always the same'
        )
    data.details['splits'] = splits
    data.splits = {split: [pair.name for pair in chosen] for split, chosen in splits.items()}


def _count(data: DataSet, counts: dict[_Pair, dict[int, int]], meaning: _Meaning) -> None:
    total = {split: np.zeros(_IGNORED + 1, np.int64) for split in data.details['splits']}
    for split, chosen in data.details['splits'].items():
        for value, count in sum((Counter(counts[pair]) for pair in chosen), Counter()).items():
            if meaning.mapping is not None:
                index = meaning.mapping.get(value, _IGNORED)
            else:
                index = (
                    _IGNORED
                    if value == _IGNORED or (meaning.reduce_zero_label and value == 0)
                    else value - meaning.reduce_zero_label
                )
            total[split][index] += count
    together = sum(total.values(), np.zeros(_IGNORED + 1, np.int64))
    data.counts = together[: len(data.classes)].tolist()
    data.unlabelled = float(together[_IGNORED] / max(together.sum(), 1))
    for split, pixels in total.items():
        absent = [name for name, count in zip(data.classes, pixels.tolist(), strict=False) if not count]
        if absent:
            data.note('remark', f'{len(absent)} of {len(data.classes)} classes are in no {split} picture', absent)
    rare = [name for name, count in zip(data.classes, data.counts, strict=True) if 0 < count < _RARE * sum(data.counts)]
    if rare:
        data.note('remark', f'{len(rare)} classes have less than {_RARE:.1%} of the labelled pixels', rare)
