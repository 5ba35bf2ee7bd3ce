"""Segmentation: images and label maps in any layout, and the mistakes that are easy to make with them."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmpelk.analysis.drawings import IMAGE_SUFFIXES
from mmpelk.errors import UserError

from .dataset import (
    DataSet,
    Header,
    UnknownLayoutError,
    ask_beside,
    ask_depth,
    complete_splits,
    find_copies,
    find_files,
    known_metainfo,
    map_files,
    nothing_left,
    read_header,
    split_by_lists,
    split_of,
)
from .meaning import IGNORED, Answers, Meaning, Statistics, interpret
from .names import ClassName, order_names, pack, read_names, show_key

__all__ = ['Pair', 'read_segmentation', 'write_labels']

# Words in the names of folders and files, in lower case.
_IMAGES = {'images', 'image', 'imgs', 'img', 'jpegimages', 'jpeg', 'jpg', 'leftimg8bit', 'photos', 'photo', 'pictures'}
_IMAGES |= {'rgb', 'sat', 'stills', 'inputs', 'input', 'raw', 'stillsraw'}
_LABELS = {'annotations', 'annotation', 'annots', 'annot', 'ann', 'labels', 'label', 'labeled', 'labelled', 'lbl', 'l'}
_LABELS |= {'masks', 'mask', 'segmentationclass', 'segmentationclassaug', 'segmentations', 'segmentation', 'seg', 'gt'}
_LABELS |= {
    'gtfine',
    'groundtruth',
    'truth',
    'semantic',
    'trimaps',
    'targets',
    'labeltrainids',
    'labelids',
    'labeledapproved',
}
_PLAIN = {'dir', 'png', 'tif', 'tiff', 'jpg', 'jpeg', 'class', 'ground', 'full', 'fixed', 'approved'}
_OTHER = {'segmentationobject', 'instances', 'instance', 'instanceids', 'panoptic', 'depth', 'disparity'}  # no classes
_BEST = ('labeltrainids', 'labelids', '', 'color')  # where an image has several label maps, the first of these
_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # labelIds of the 19 classes
_SEVERAL = (
    'label maps belong to images that have another, and are not used: draw the classes of an image into one map, or '
    'choose the maps with --images FOLDER --labels FOLDER'
)
_OTHER_FOLDERS = (
    'images are paired with label maps of other folders, as the names of the files are equal: --yes, if they belong '
    'together, else rename or remove them'
)
_BEGINNINGS = (
    "images are paired with label maps whose names only begin like the image's: --yes, if they belong together, else "
    'rename or remove them'
)
_NO_CLASS = ('void', 'unlabeled', 'unlabelled', 'ignore', 'ignored', 'dontcare', "don't care", 'no class')
_RARE = 1e-3  # share of the labelled pixels below which a class is called rare


@dataclass(frozen=True)
class Pair:
    """An image and its label map, relative to the root, and the split that their folders say."""

    image: str
    label: str
    split: str | None = None


@dataclass(frozen=True)
class _Label:
    """What one label map holds."""

    header: Header
    mode: str = ''
    statistics: Statistics = field(default_factory=Statistics)
    palette: dict[int, int] = field(default_factory=dict)  # packed colours of the indices that it has


def read_segmentation(
    root: Path,
    classes: str | None = None,
    images: str | None = None,
    labels: str | None = None,
    answers: Answers | None = None,
    val_share: float = 0.2,
    converted: dict[str, Any] | None = None,
) -> DataSet:
    """Read a folder of images and label maps.

    Images and label maps belong together if their paths are equal but for words such as ``images`` and ``masks`` in the
    names of folders and files: ADE20K's layout, Pascal VOC's, Cityscapes', CamVid's, MMSegmentation's, LoveDA's,
    ``x.jpg`` beside ``x_mask.png``.

    Args:
        root: The folder.
        classes: As :func:`~own_data.names.read_names` takes it.
        images: Folder of the images in ``root``, if its name does not tell.
        labels: Folder of the label maps.
        answers: What the user says about the label maps.
        val_share: Share of the pictures to validate on where nothing says it.
        converted: The data set as :func:`~own_data.foreign.convert` has read it.

    Raises:
        UserError: If there are no such folders, or nothing can be trained on what is there.
    """
    root = root.resolve()
    data = DataSet('seg', root, [], [], {}, [], [], 'pixels')
    if converted:
        pairs = [Pair(s['image'], s['label'], split_of(s['subset'])) for s in converted['samples']]
        keys = {each['name']: each['key'] for each in converted['classes']}
        names = [ClassName(name, keys[name]) for name in order_names(list(keys), classes, root)]
        # What lies outside of every outline is background, where the format has such a class.
        names += [ClassName(name.name, 0) for name in names if name.name.lower() in ('background', '_background_')]
        for left_out in converted.get('left_out', ()):
            data.leave_out(*left_out)
    else:
        pairs = _find_pairs(data, images, labels)
        names = read_names(classes, root)
    through_palette = _named_by_palette(root / pairs[0].label, names)

    def read(pair: Pair) -> tuple[Header, _Label]:
        return read_header(root / pair.image), _read_label(root / pair.label, through_palette)

    found = dict(zip(pairs, map_files(read, pairs, 'Reading label maps'), strict=True))
    if not through_palette and _compare_palettes(data, {pair: label for pair, (_, label) in found.items()}):
        through_palette = True
        found = dict(zip(pairs, map_files(read, pairs, 'Reading label maps'), strict=True))
    pairs = _check_pairs(data, found)
    statistics = Statistics()
    for pair in pairs:
        statistics.add(found[pair][1].statistics)
    coloured = _are_coloured(data, {pair: found[pair][1] for pair in pairs}) or through_palette
    lossy = any(pair.label.lower().endswith(('.jpg', '.jpeg')) for pair in pairs)
    answers = answers or Answers()
    unsaid = answers.ignore is None and answers.background is None
    if converted and unsaid and len(names) > 1 and 0 in statistics.counts and all(name.key for name in names):
        answers = replace(answers, background='0')
        share = statistics.counts[0] / sum(statistics.counts.values())
        text = f'what lies outside of every outline, {share:.1%} of the pixels, is taken for a class background'
        data.note('question', f'{text}: --background 0 confirms it, --ignore 0 does not train on it')
    meaning = interpret(statistics, coloured, lossy, names, answers, _public(pairs))
    for kind, text in meaning.said:
        data.note(kind, text)
    _ask_classes(data, meaning, answers, bool(names), {pair: found[pair][1].statistics.counts for pair in pairs})
    ask_depth(data, ((pair.image, found[pair][0]) for pair in pairs))
    data.classes, data.palette = meaning.classes, meaning.palette
    splits = _split(data, pairs, val_share)
    _count(data, splits, {pair: found[pair][1].statistics.counts for pair in pairs}, meaning)
    data.splits = {split: [pair.image for pair in chosen] for split, chosen in splits.items()}
    data.sizes = [image.stored if data.ignore_orientation else image.upright for image, _ in (found[p] for p in pairs)]
    find_copies(data, [pair.image for part in splits.values() for pair in part])
    chosen = [pair for part in splits.values() for pair in part]
    data.details |= dict(pairs=chosen, meaning=meaning, through_palette=through_palette, values=meaning.rows)
    return data


def read_indices(data: DataSet, pair: Pair) -> npt.NDArray[np.uint8]:
    """The label map of an image as indices of the classes, ``(H, W)``, 255 for what is not trained on."""
    mapping = data.details['meaning'].mapping
    keys = np.array(sorted(mapping))
    indices = np.array([mapping[key] for key in sorted(mapping)], np.uint8)
    with Image.open(data.root / pair.label) as image:
        values = _values(image, data.details['through_palette'])
    position = np.searchsorted(keys, values).clip(max=len(keys) - 1)
    return np.where(keys[position] == values, indices[position], np.uint8(IGNORED))


def write_labels(data: DataSet, out: Path) -> None:
    """Write a PNG of indices for every image, as ``out/IMAGE.png``: the classes from 0 on, 255 for no class."""

    def write(pair: Pair) -> None:
        target = out / f'{pair.image}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(read_indices(data, pair)).save(target)

    map_files(write, data.details['pairs'], 'Writing label maps')


@dataclass(frozen=True)
class _Named:
    """What the name of a file says."""

    path: str
    is_label: bool
    rank: int  # among several label maps of an image
    key: str  # equal for an image and its label map
    stem: str  # the last part of it
    split: str | None


def _read_name(path: str, stems_first: bool, is_label: bool | None = None) -> _Named | None:
    """Take the words off a path; ``None`` if it is neither image nor label map."""
    *folders, file = path.split('/')
    stem = file.rsplit('.', 1)[0]
    said: dict[str, set[str]] = {'folders': set(), 'stem': set()}
    kept = []
    for folder in folders:
        words = (
            [folder.lower()]
            if folder.lower() in _LABELS | _IMAGES | _OTHER
            else re.split(r'[^a-z0-9]+', folder.lower())
        )
        rest = []
        for word in words:
            end = next((end for end in _LABELS | _IMAGES if len(end) > 2 and word.endswith(end) and word != end
                        and split_of(word.removesuffix(end))), '')  # trainannot  # fmt: skip
            word, known = word.removesuffix(end), end or word
            if known in _LABELS | _IMAGES | _OTHER and len(known) > 1:
                said['folders'].add(known)
            if word and word not in _LABELS | _IMAGES | _PLAIN:
                rest.append(word)
        kept += ['_'.join(rest)] if (rest and not re.fullmatch(r'v?[\d_]+', '_'.join(rest))) or rest == words else []
    stem = re.sub(r'^(image|img|mask|label|seg)(?=\d)', r'\1_', stem, flags=re.IGNORECASE)  # mask7
    words = re.split(r'([^A-Za-z0-9]+)', stem)
    while len(words) > 2 and words[-1].lower() in _LABELS | _IMAGES | _OTHER | {'color'}:
        said['stem'].add(words[-1].lower())
        words = words[:-2]
    while len(words) > 2 and words[0].lower() in (_LABELS | _IMAGES) - {'l'}:
        said['stem'].add(words[0].lower())
        words = words[2:]
    if len(words) == 1 and words[0].lower() in _LABELS | _IMAGES and folders:
        said['stem'].add(words[0].lower())
        words = ['']
    if (said['folders'] | said['stem']) & _OTHER:
        return None
    order = ('stem', 'folders') if stems_first else ('folders', 'stem')
    first = next((said[where] for where in order if said[where]), set())
    label = bool(first & (_LABELS | {'color'})) if is_label is None else is_label
    rank = min((_BEST.index(word) for word in said['stem'] if word in _BEST), default=_BEST.index(''))
    name = ''.join(words)
    split = split_of('/'.join(folders)) if folders else None
    return _Named(path, label, rank, '/'.join([*kept, name]), name or (kept[-1] if kept else ''), split)


def _find_pairs(data: DataSet, images: str | None, labels: str | None) -> list[Pair]:
    if (images is None) != (labels is None):
        raise UserError('--images and --labels go together: the folders of the images and of the label maps')
    if images is None and any(b'<segm>' in (data.root / path).read_bytes() for path in find_files(data.root, ['.xml'])):
        raise UnknownLayoutError(f"'{data.root}' holds LabelMe's XML files, whose masks are of single objects")
    prefixes: dict[bool, str] = {}
    for is_label, folder in ((False, images), (True, labels)):
        if folder is not None:
            if not (data.root / folder).is_dir():
                raise UserError(f"there is no folder '{folder}' in '{data.root}'")
            prefixes[is_label] = '' if Path(folder) == Path() else f'{Path(folder).as_posix()}/'
    if len(set(prefixes.values())) == 2:
        listed: list[tuple[str, bool | None, str]] = [
            (prefix, is_label, name)
            for is_label, prefix in prefixes.items()
            for name in find_files(data.root / prefix, IMAGE_SUFFIXES | {'.gif'})
            # One folder may lie in the other.
            if not any(
                other.startswith(prefix) and other != prefix and f'{prefix}{name}'.startswith(other)
                for other in prefixes.values()
            )
        ]
    else:
        prefix = next(iter(prefixes.values()), '')
        listed = [(prefix, None, name) for name in find_files(data.root / prefix, IMAGE_SUFFIXES | {'.gif'})]
    for stems_first in (False, True):
        named = [(prefix, _read_name(name, stems_first, is_label)) for prefix, is_label, name in listed]
        files = [replace(name, path=f'{prefix}{name.path}') for prefix, name in named if name is not None]
        pairs, alone, doubts = _match([f for f in files if not f.is_label], [f for f in files if f.is_label])
        if pairs:
            break
    if not pairs or any(path.endswith('_parts_1.png') for _, _, path in listed):  # ADE20K as it was published
        folders = sorted({path.split('/')[0] for _, _, path in listed if '/' in path})
        raise UnknownLayoutError(
            f"'{data.root}' holds {len(listed)} pictures in {', '.join(folders[:8]) or 'no folder'}, and no label map "
            'that belongs to an image by its name, such as images/7.jpg and masks/7.png, or 7.jpg and 7_mask.png. '
            'Where the folders have other names: --images FOLDER --labels FOLDER'
        )
    for text, doubtful in doubts.items():
        data.note('question', f'{len(doubtful)} {text}', doubtful)
    lonely = [file.path for file in alone if not file.is_label]
    tests = [file.path for file in alone if not file.is_label and file.split == 'test']
    if tests and not any(pair.split == 'test' for pair in pairs):
        data.note('remark', f'{len(tests)} images of the test split have no label map: demo_image.py draws them', tests)
        lonely = [path for path in lonely if path not in tests]
    data.leave_out('images have no label map', lonely, len(lonely) + len(pairs))
    lost = [file.path for file in alone if file.is_label]
    data.leave_out('label maps have no image', lost, len(lost) + len(pairs))
    return pairs


def _match(images: list[_Named], labels: list[_Named]) -> tuple[list[Pair], list[_Named], dict[str, list[str]]]:
    """Pairs by the whole path without its words, then by split and name, by name alone, and by the beginning of it.

    Returns:
        The pairs, the files that belong to none, and what is doubtful: what has to be asked, with the files.
    """
    free = {image.path: image for image in images}
    left = sorted(labels, key=lambda label: (label.rank, label.path))
    pairs: dict[str, Pair] = {}
    of: dict[str, _Named] = {}  # the label map of an image
    doubts: dict[str, list[str]] = defaultdict(list)
    for key_of in (lambda f: f.key, lambda f: (f.split, f.stem), lambda f: f.stem):
        groups: dict[Any, list[_Named]] = defaultdict(list)
        for image in images:
            groups[key_of(image)].append(image)
        rest = []
        for label in left:
            owners = groups[key_of(label)]
            owner = owners[0] if len(owners) == 1 else None
            if owner is None or (owner.split and label.split and owner.split != label.split):
                rest.append(label)
            elif owner.path in free:
                free.pop(owner.path)
                of[owner.path] = label
                pairs[owner.path] = Pair(owner.path, label.path, owner.split or label.split)
                folders = [set(file.key.split('/')[:-1]) for file in (owner, label)]
                if not (folders[0] <= folders[1] or folders[1] <= folders[0]):
                    doubts[_OTHER_FOLDERS].append(f'{owner.path} with {label.path}')
            elif label.key != of[owner.path].key or label.rank <= of[owner.path].rank:  # not of Cityscapes' set
                doubts[_SEVERAL].append(f'{label.path} beside {of[owner.path].path}')
        left = rest
    by_stem = {(image.split, image.stem): image for image in free.values()}
    rest, ends = [], {}
    for label in left:
        # The longest name that the label map's begins with, cut at any place but in the middle of a number.
        for length in range(len(label.stem) - 1, 0, -1):
            start, after = label.stem[:length], label.stem[length]
            owner = by_stem.get((label.split, start))
            if owner and not (start[-1].isdigit() and after.isdigit()):
                if owner.path not in free:
                    doubts[_SEVERAL].append(f'{label.path} beside {pairs[owner.path].label}')
                    break
                free.pop(owner.path)
                end = label.stem[length:].lower()
                ends[f'{owner.path} with {label.path}'] = '' if end in IMAGE_SUFFIXES else end
                pairs[owner.path] = Pair(owner.path, label.path, owner.split)
                break
        else:
            rest.append(label)
    if len(set(ends.values())) > 1 or (of and any(ends.values())):
        doubts[_BEGINNINGS] += list(ends)
    return [pairs[path] for path in sorted(pairs)], [*free.values(), *rest], doubts


def _values(image: Image.Image, through_palette: bool = False) -> npt.NDArray[np.int64]:
    """Values of a label map ``(H, W)``, or packed colours."""
    if image.mode in ('RGB', 'RGBA', 'CMYK', 'YCbCr', 'LA', 'PA') or through_palette:
        pixels = np.asarray(image.convert('RGB'), dtype=np.int64)
        return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    values = np.asarray(image)
    if values.dtype.kind == 'f' and not (np.isfinite(values) & (values == np.round(values))).all():
        raise ValueError('values of label maps are whole numbers, and it has others')
    return values.astype(np.int64)


def _named_by_palette(path: Path, names: list[ClassName]) -> bool:
    """Whether a label map of indices has a palette whose colours are those of the list of classes."""
    colours = {name.key for name in names if name.coloured}
    try:
        with Image.open(path) as image:
            if not colours or image.mode != 'P':
                return False
            return set(np.unique(_values(image, through_palette=True)).tolist()) <= colours | {pack(224, 224, 192)}
    except Exception:  # any damage; reported when all label maps are read
        return False


def _read_label(path: Path, through_palette: bool) -> _Label:
    try:
        with Image.open(path) as image:
            header, mode = Header(*image.size), image.mode
            if getattr(image, 'n_frames', 1) > 1:
                raise ValueError(f'a label map is one picture, and it has {image.n_frames}')
            table = image.getpalette('RGB') if mode == 'P' else None
            values = _values(image, through_palette)
    except Exception as error:  # Pillow's readers may raise anything on damaged files
        return _Label(Header(error=f'{type(error).__name__}: {error}'.splitlines()[0]))
    keys, positions = np.unique(values, return_inverse=True)
    palette = np.asarray(table or [], np.int64).reshape(-1, 3)
    packed = (palette[:, 0] << 16 | palette[:, 1] << 8 | palette[:, 2]).tolist()
    colours = {key: packed[key] for key in keys.tolist() if not through_palette and 0 <= key < len(packed)}
    positions = positions.reshape(values.shape)
    counts = np.bincount(positions.ravel(), minlength=len(keys))
    # Pixels whose neighbours to all four sides are of their own value.
    inside = np.zeros(values.shape, bool)
    same = positions[1:-1, 1:-1]
    inside[1:-1, 1:-1] = (
        (same == positions[:-2, 1:-1])
        & (same == positions[2:, 1:-1])
        & (same == positions[1:-1, :-2])
        & (same == positions[1:-1, 2:])
    )
    inner = np.bincount(positions[inside], minlength=len(keys))
    numbers = keys.tolist()
    return _Label(
        header,
        mode,
        Statistics(dict(zip(numbers, counts.tolist(), strict=True)), dict(zip(numbers, inner.tolist(), strict=True))),
        colours,
    )


def _check_pairs(data: DataSet, found: dict[Pair, tuple[Header, _Label]]) -> list[Pair]:
    """Pairs that can be trained on."""
    broken = {pair: image.error or label.header.error for pair, (image, label) in found.items()}
    if names := [pair.image for pair, error in broken.items() if error]:
        first = next(error for error in broken.values() if error)
        data.leave_out(f'images or their label maps cannot be read ({first})', names, len(found))
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
        data.note('decision', text, [pair.image for pair in as_stored or as_upright])
    if undecided := [pair.image for pair in turned if pair not in as_stored and pair not in as_upright]:
        applied = 'ignored' if data.ignore_orientation else 'applied'
        text = f'{len(undecided)} pictures are rotated by EXIF in a way that their sizes do not tell: it is {applied}'
        data.note('decision', text, undecided)
    good: list[Pair] = []
    different: list[Pair] = []
    for pair, (image, label) in readable.items():
        fits = label.header.stored == (image.stored if data.ignore_orientation else image.upright)
        (good if fits else different).append(pair)
    if different:
        example = ' against '.join('x'.join(map(str, header.stored)) for header in (
            readable[different[0]][0], readable[different[0]][1].header))  # fmt: skip
        names = [pair.image for pair in different]
        data.leave_out(f'label maps differ in size from their images ({example})', names, len(found))
    if not good:
        raise nothing_left(data)
    return good


def _compare_palettes(data: DataSet, labels: dict[Pair, _Label]) -> bool:
    """Whether the same colours have other indices in other files, so that colours are to be compared."""
    seen: dict[int, dict[int, str]] = defaultdict(dict)  # of an index the colours, each with a file that has it
    for pair, label in labels.items():
        for index, colour in label.palette.items():
            seen[index].setdefault(colour, pair.label)
    differing = {index: colours for index, colours in seen.items() if len(colours) > 1}
    if not differing:
        return False
    index, files = next(iter(differing.items()))
    shown = ' and '.join(f'{show_key(colour, True)} in {file}' for colour, file in list(files.items())[:2])
    text = f'the palettes of the label maps differ: index {index} is {shown}'
    if len({colour for colours in seen.values() for colour in colours}) <= len(seen):
        data.note('decision', f'{text}; they have the same colours in other orders, so the colours are the classes')
        return True
    data.note('question', f'{text}; the indices are taken for the classes, --yes confirms that, else convert to RGB')
    return False


def _are_coloured(data: DataSet, labels: dict[Pair, _Label]) -> bool:
    coded = [pair for pair, label in labels.items() if label.mode in ('RGB', 'RGBA', 'CMYK', 'YCbCr', 'LA', 'PA')]
    if coded and len(coded) < len(labels):
        raise UserError(
            f'{len(coded)} of {len(labels)} label maps are colour pictures, such as {coded[0].label}: convert all'
        )
    modes = {label.mode: pair.label for pair, label in labels.items()}
    if len(modes) > 1 and not coded:
        shown = ', '.join(f'{mode} in {file}' for mode, file in sorted(modes.items()))
        text = f'the label maps are of several kinds ({shown}), whose values may differ: --yes, if they mean the same'
        data.note('question', f'{text}, else convert them to one')
    return bool(coded)


def _ask_classes(
    data: DataSet, meaning: Meaning, answers: Answers, named: bool, counts: dict[Pair, dict[int, int]]
) -> None:
    """Ask where classes look like single objects or are called like none, and where 255 looks like a class."""
    if meaning.coloured and not named and len(counts) > 3:
        maps = Counter(index for values in counts.values() for index in {meaning.mapping.get(key) for key in values})
        single = [name for index, name in enumerate(meaning.classes) if maps[index] == 1]
        if 2 * len(single) > len(meaning.classes):
            text = f'{len(single)} of {len(meaning.classes)} colours are in one label map each, as those of single'
            data.note(
                'question', f'{text} objects are: export colours of classes; --yes trains each as a class', single
            )
    if answers.ignore is not None:
        return
    void = [name for name in meaning.classes if name.lower() in _NO_CLASS]
    if void and answers.background is None:
        text = f"the class '{void[0]}' is called like none, and is trained on: --ignore {void[0]} leaves it out"
        data.note('question', f'{text}, --ignore none confirms it')
    if not meaning.coloured and IGNORED not in meaning.mapping:
        masks = [pair.label for pair, values in counts.items() if IGNORED in values]
        if masks and all(values.keys() <= {0, IGNORED} for values in counts.values() if IGNORED in values):
            text = f'{len(masks)} label maps hold 0 and 255 alone, the others no 255, and 255 is not trained on'
            data.note('question', f'{text}: make their values equal, or --ignore 255 confirms it', masks)


def _public(pairs: list[Pair]) -> Any:
    """A function from values to the public data set that the files' names belong to."""

    def known(values: list[int]) -> dict[str, Any] | None:
        name, label, top = (
            Path(pairs[0].image).name,
            pairs[0].label.lower(),
            max(v for v in (*values, 0) if v != IGNORED),
        )
        if name.startswith('ADE_') and top <= 150:
            return dict(known_metainfo('mmseg.ADE20KDataset'), name='ADE20K', keys=range(1, 151))
        if '_gtfine_labeltrainids' in label and top < 19:
            return dict(known_metainfo('mmseg.CityscapesDataset'), name='Cityscapes', keys=range(19))
        if '_gtfine_labelids' in label and top < 34:
            return dict(known_metainfo('mmseg.CityscapesDataset'), name='Cityscapes', keys=_CITYSCAPES)
        if re.match(r'20(0[5-9]|1[0-2])_00\d{4}\.', name) and top <= 20:
            return dict(known_metainfo('mmseg.PascalVOCDataset'), name='Pascal VOC', keys=range(21))
        return None

    return lambda values: known(values) if values else None


def _split(data: DataSet, pairs: list[Pair], share: float) -> dict[str, list[Pair]]:
    splits = split_by_lists(data, data.root, pairs, lambda pair: (pair.image, pair.label))
    if splits is None:
        ask_beside(data, [pair.image for pair in pairs if not pair.split], {pair.split for pair in pairs})
        splits = {
            split: [pair for pair in pairs if (pair.split or 'train') == split] for split in ('train', 'val', 'test')
        }
    complete_splits(data, splits, share, lambda pair: pair.image)
    return splits


def _count(data: DataSet, splits: dict[str, list[Pair]], counts: dict[Pair, dict[int, int]], meaning: Meaning) -> None:
    total = {split: np.zeros(IGNORED + 1, np.int64) for split in splits}
    for split, chosen in splits.items():
        for value, count in sum((Counter(counts[pair]) for pair in chosen), Counter()).items():
            total[split][meaning.mapping.get(value, IGNORED)] += count
    together = sum(total.values(), np.zeros(IGNORED + 1, np.int64))
    data.counts = together[: len(data.classes)].tolist()
    data.unlabelled = float(together[IGNORED] / max(together.sum(), 1))
    for split, pixels in total.items():
        absent = [name for name, count in zip(data.classes, pixels.tolist(), strict=False) if not count]
        if absent:
            data.note('remark', f'{len(absent)} of {len(data.classes)} classes are in no {split} picture', absent)
    rare = [name for name, count in zip(data.classes, data.counts, strict=True) if 0 < count < _RARE * sum(data.counts)]
    if rare:
        data.note('remark', f'{len(rare)} classes have less than {_RARE:.1%} of the labelled pixels', rare)
