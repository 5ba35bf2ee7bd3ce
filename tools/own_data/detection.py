"""Detection and instance segmentation: annotation files in COCO's format."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mmpelk.errors import UserError

from .dataset import DataSet, Header, find_images, make_palette, map_files, read_header, split_names, split_of, spread

__all__ = ['read_detection']

_LISTS = ('images', 'annotations', 'categories')


def read_detection(
    root: Path,
    annotations: list[str] | None = None,
    images: str | None = None,
    val_share: float = 0.2,
    limit: int = 2000,
) -> DataSet:
    """Read a data set with annotations in COCO's format.

    Args:
        root: Its folder.
        annotations: Annotation files in it: of all pictures, or of the training and the validation. Found by default.
        images: Folder of the pictures, if it cannot be found by the names in the annotations.
        val_share: Share of the pictures to validate on where there is one annotation file.
        limit: Pictures that are read through; of the others only the sizes are read.

    Raises:
        UserError: If there are no such files, or nothing can be trained on what is there.
    """
    root = root.resolve()
    data = DataSet('det', root, [], [], {}, [], [], 'objects')
    files = _find_files(root, annotations)
    contents = {split: json.loads(path.read_text()) for split, path in files.items()}
    first = contents[next(iter(contents))]
    ids = {category['id']: category['name'] for category in first['categories']}
    data.classes = [category['name'] for category in first['categories']]
    for split, content in contents.items():
        if {category['id']: category['name'] for category in content['categories']} != ids:
            raise UserError(f"'{files[split]}' has other categories than '{files[next(iter(files))]}': make them equal")
    if len(set(data.classes)) < len(data.classes):
        raise UserError(f'two categories have the same name: {", ".join(data.classes)}')
    folders = {split: _find_pictures(root, files[split], content, images) for split, content in contents.items()}
    clean = {split: _check(data, content, folders[split], ids, limit) for split, content in contents.items()}
    if 'val' not in clean:
        clean = _split(data, clean['train'], val_share)
        folders['val'] = folders['train']
    for split, content in clean.items():
        if not content['annotations']:
            raise UserError(f"no object of '{files.get(split, files['train'])}' is left for the split '{split}'")
    data.splits = {split: [image['file_name'] for image in content['images']] for split, content in clean.items()}
    _count(data, clean, ids)
    data.palette = make_palette(len(data.classes) + 1)[1:]  # black is hard to see around a box
    objects = [entry for content in clean.values() for entry in content['annotations'] if not entry.get('iscrowd')]
    masks = sum(bool(entry.get('segmentation')) for entry in objects)
    if 0 < masks < len(objects):
        data.note(
            'mistake', f'{len(objects) - masks} of {len(objects)} objects have no outline: boxes alone are trained'
        )
    data.details |= dict(
        contents=clean,
        folders={split: folder.relative_to(root).as_posix() for split, folder in folders.items()},
        masks=masks == len(objects),
        sides=[float(np.sqrt(entry['bbox'][2] * entry['bbox'][3])) for entry in objects],
    )
    return data


def _find_files(root: Path, given: list[str] | None) -> dict[str, Path]:
    if given:
        files = [root / name for name in given]
        if missing := [path for path in files if not path.is_file()]:
            raise UserError(f"there is no annotation file '{missing[0]}'")
    else:
        files = [path for path in sorted(root.rglob('*.json')) if _is_coco(path)]
    if not files:
        raise UserError(
            f"'{root}' holds no annotation file in COCO's format, a .json with {', '.join(_LISTS)}: --annotations FILE"
        )
    if unreadable := [path for path in files if not _is_coco(path)]:
        raise UserError(f"'{unreadable[0]}' is not in COCO's format: a .json with the lists {', '.join(_LISTS)}")
    if len(files) == 1:
        return {'train': files[0]}
    found: dict[str, Path] = {}
    for path in files:
        words = [path.parent.name, *path.stem.replace('-', '_').split('_')]
        split = next((split for word in words if (split := split_of(word))), None)
        # COCO has keypoints and captions beside the instances.
        if split and (split not in found or path.stem.startswith('instances')):
            found[split] = path
    if set(found) != {'train', 'val'}:
        if given and len(given) == 2:
            return dict(zip(('train', 'val'), files, strict=True))
        names = ', '.join(str(path.relative_to(root)) for path in files)
        raise UserError(f'which of {names} is for training and which for validation? --annotations TRAIN VAL')
    return {'train': found['train'], 'val': found['val']}


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in _LISTS)


def _find_pictures(root: Path, file: Path, content: dict[str, Any], given: str | None) -> Path:
    if not content['images']:
        raise UserError(f"'{file}' lists no image")
    names = [image['file_name'] for image in spread(content['images'], 20)]
    if given:
        candidates = [root / given]
    else:
        # By the annotation file, by its name ('instances_train2017'), usual names, and any folder.
        words = [file.stem, *file.stem.replace('-', '_').split('_'), 'images', 'JPEGImages']
        below = [path for path in sorted(root.glob('*')) + sorted(root.glob('*/*')) if path.is_dir()]
        candidates = [file.parent, *(root / word for word in words), *(file.parent / word for word in words)]
        candidates += [root / 'images' / word for word in words] + [root, *below]
    hits = {folder: sum((folder / name).is_file() for name in names) for folder in candidates if folder.is_dir()}
    best = max(hits, key=lambda folder: hits[folder], default=root)
    if not hits.get(best):
        where = f"'{candidates[0]}'" if given else f"any folder of '{root}'"
        raise UserError(f"the image '{names[0]}' of '{file}' is not in {where}; name the folder with --images")
    return best


def _check(data: DataSet, content: dict[str, Any], folder: Path, ids: dict[int, str], limit: int) -> dict[str, Any]:
    """The content without what cannot be trained on."""
    images = content['images']
    if doubled := [str(key) for key, count in Counter(image['id'] for image in images).items() if count > 1]:
        raise UserError(f"images share the id {doubled[0]} in the annotations of '{folder}': ids have to be unique")
    missing = [image['file_name'] for image in images if not (folder / image['file_name']).is_file()]
    if missing:
        data.note('mistake', f'{len(missing)} annotated images are not there and are left out', missing)
    present = [image for image in images if (folder / image['file_name']).is_file()]
    checked = {image['id'] for image in spread(present, limit)}
    headers = dict(zip(
        (image['id'] for image in present),
        map_files(
            lambda image: read_header(folder / image['file_name'], image['id'] in checked), present, 'Reading images'
        ),
        strict=True,
    ))  # fmt: skip
    if broken := [image['file_name'] for image in present if headers[image['id']].error]:
        data.note('mistake', f'{len(broken)} images cannot be read and are left out', broken)
    listed = {image['file_name'] for image in images}
    if unlisted := [name for name in find_images(folder) if name not in listed and Path(name).name not in listed]:
        data.note('remark', f"{len(unlisted)} pictures of '{folder.name}' are in no annotation file", unlisted)
    present = _check_sizes(data, [image for image in present if not headers[image['id']].error], headers)
    data.sizes += [(image['width'], image['height']) for image in present]
    kept = _check_objects(data, content['annotations'], present, {image['id'] for image in images}, ids)
    return {**content, 'images': present, 'annotations': kept}


def _check_sizes(data: DataSet, images: list[dict[str, Any]], headers: dict[int, Header]) -> list[dict[str, Any]]:
    stored, upright = [], []
    good: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    for image in images:
        header, size = headers[image['id']], (image['width'], image['height'])
        if header.stored != header.upright and size == header.stored:
            stored.append(image['file_name'])
        if header.stored != header.upright and size == header.upright:
            upright.append(image['file_name'])
    if stored or upright:
        data.ignore_orientation |= len(stored) > len(upright)
        done = (
            'is not in their annotations: the config ignores it'
            if data.ignore_orientation
            else 'is in their annotations, too'
        )
        data.note(
            'decision', f'the rotation in the EXIF data of {len(stored or upright)} images {done}', stored or upright
        )
    for image in images:
        header = headers[image['id']]
        expected = header.stored if data.ignore_orientation else header.upright
        (good if (image['width'], image['height']) == expected else wrong).append(image)
    if wrong:
        names = [image['file_name'] for image in wrong]
        data.note('mistake', f'{len(wrong)} images differ in size from their annotations and are left out', names)
    return good


def _check_objects(
    data: DataSet, objects: list[dict[str, Any]], images: list[dict[str, Any]], known: set[int], ids: dict[int, str]
) -> list[dict[str, Any]]:
    sizes = {image['id']: (image['width'], image['height'], image['file_name']) for image in images}
    problems: dict[str, list[str]] = defaultdict(list)
    kept = []
    for entry in objects:
        owner = entry.get('image_id')
        if owner not in known:
            problems['belong to no image and are left out'].append(f'id {entry.get("id")}')
        elif owner in sizes:
            width, height, name = sizes[owner]
            x, y, w, h = entry.get('bbox') or (0, 0, 0, 0)
            if entry.get('category_id') not in ids:
                problems['are of no listed category and are left out'].append(name)
            elif w < 1 or h < 1:
                problems['have an empty box and are left out'].append(name)
            elif min(x + w, width) - max(x, 0) < 1 or min(y + h, height) - max(y, 0) < 1:
                problems['have a box outside the image and are left out'].append(name)
            else:
                if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                    problems['have a box that reaches out of the image; it is cut off'].append(name)
                    left, top = max(x, 0), max(y, 0)
                    entry = {**entry, 'bbox': [left, top, min(x + w, width) - left, min(y + h, height) - top]}
                # mmdet reads both; exporters leave them out.
                kept.append({**entry, 'iscrowd': entry.get('iscrowd', 0), 'area': entry.get('area', w * h)})
    for text, names in problems.items():
        data.note('mistake', f'{len(names)} objects {text}', dict.fromkeys(names))
    with_objects = {entry['image_id'] for entry in kept}
    empty = [image['file_name'] for image in images if image['id'] not in with_objects]
    if empty:
        data.note('remark', f'{len(empty)} of {len(images)} images have no object; training leaves them out', empty)
        data.unlabelled = max(data.unlabelled, len(empty) / len(images))
    return kept


def _split(data: DataSet, content: dict[str, Any], share: float) -> dict[str, Any]:
    """Draw images with objects; those without serve the training alone."""
    with_objects = {entry['image_id'] for entry in content['annotations']}
    drawn = split_names([image['file_name'] for image in content['images'] if image['id'] in with_objects], share)
    data.note(
        'decision',
        f'one annotation file: {len(drawn["train"])} to {len(drawn["val"])} are drawn at random, always the same',
    )
    held_out = set(drawn['val'])
    result = {}
    for split in ('train', 'val'):
        images = [image for image in content['images'] if (image['file_name'] in held_out) == (split == 'val')]
        chosen = {image['id'] for image in images}
        objects = [entry for entry in content['annotations'] if entry['image_id'] in chosen]
        result[split] = {**content, 'images': images, 'annotations': objects}
    return result


def _count(data: DataSet, clean: dict[str, Any], ids: dict[int, str]) -> None:
    counts = {
        split: Counter(ids[entry['category_id']] for entry in content['annotations'])
        for split, content in clean.items()
    }
    data.counts = [sum(count[name] for count in counts.values()) for name in data.classes]
    for split, count in counts.items():
        if absent := [name for name in data.classes if not count[name]]:
            data.note('remark', f'{len(absent)} of {len(data.classes)} categories have no {split} object', absent)
