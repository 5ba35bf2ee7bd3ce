"""Read a data set of another format by Datumaro, and write what the readers here take.

python convert.py --task det --data FOLDER --out FOLDER [--format NAME]

It runs in an environment of its own, requirements/own_data.txt, and imports nothing of this project: the pins of
Datumaro and of the toolboxes do not fit each other. It writes ``converted.json``: what was read, and of each sample the
picture, the split and the label; beside it label maps, annotations in COCO's format, pictures that are no files yet.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'}
_WANTED = {'det': {'bbox', 'polygon', 'mask'}, 'seg': {'mask', 'polygon', 'ellipse'}, 'cls': {'label'}}
_PREFERRED = {'det': ('detection', 'instances'), 'seg': ('segmentation',), 'cls': ('classification', 'imagenet')}


_LOST: dict[str, list[str]] = defaultdict(list)  # what is left out and why: the items that it concerns


class _Unknown(Exception):
    """Nothing could be read."""


def _open(data: Path, task: str, name: str | None) -> tuple[Any, str]:
    """The data set, and the format that it has."""
    import datumaro

    environment = datumaro.Environment()
    found = [name] if name else environment.detect_dataset(str(data))
    found.sort(key=lambda each: not each.endswith(_PREFERRED[task]))
    reasons = []
    for each in found:
        try:
            dataset = datumaro.Dataset.import_from(str(data), each)
            kinds = {annotation.type.name for item in dataset for annotation in item.annotations}
        except Exception as error:  # a plugin may raise anything on unexpected files
            reason: BaseException = error
            while reason.__cause__:
                reason = reason.__cause__
            reasons.append(f'{each}: {reason!r}'.splitlines()[0][:200])
            continue
        if kinds & _WANTED[task]:
            return dataset, each
        reasons.append(f'{each} has {", ".join(sorted(kinds)) or "no annotations"}')
    raise _Unknown('; '.join(reasons) or 'no format that Datumaro knows was found')


def _pictures(dataset: Any, data: Path, out: Path) -> Iterator[tuple[Any, str, str, tuple[int, int]]]:
    """Items with their split, the path of their picture, below ``data`` or absolute, and its height and width."""
    subsets = {item.subset for item in dataset}
    for item in dataset:
        split = _split(item.subset, subsets)
        if split is None:
            continue
        media = item.media
        path = getattr(media, 'path', None)
        if path and Path(path).is_file() and Path(path).suffix.lower() in _SUFFIXES:
            resolved = Path(path).resolve()
            name = resolved.relative_to(data).as_posix() if data in resolved.parents else str(resolved)
        else:
            try:
                pixels = None if media is None else getattr(media, 'data', None)
            except OSError:
                pixels = None
            if pixels is None:
                _LOST['pictures are not there'].append(item.id)
                continue
            target = (
                out
                / 'images'
                / f'{re.sub(r"[^A-Za-z0-9._/-]", "_", f"{item.subset}/{item.id}").replace("..", "_")}.png'
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(pixels).astype(np.uint8)
            Image.fromarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels).save(target)  # BGR
            name, resolved = str(target), target
        with Image.open(resolved) as image:
            yield item, split, name, (image.height, image.width)


def _shapes(item: Any, task: str) -> list[Any]:
    """The annotations of an item that the task can take; the others are counted."""
    shapes = []
    for annotation in item.annotations:
        kind = annotation.type.name
        if kind in _WANTED[task] and annotation.label is not None:
            shapes.append(annotation)
        elif kind in _WANTED[task]:
            _LOST['objects have no class'].append(item.id)
        elif kind not in ('label', 'caption') and not (task == 'seg' and kind == 'bbox'):
            _LOST[f'objects are of a kind that is not read here ({kind})'].append(item.id)
    return shapes


def _shape_mask(annotation: Any, size: tuple[int, int]) -> np.ndarray:
    from pycocotools import mask

    if hasattr(annotation, 'image'):
        return np.asarray(annotation.image).astype(bool)
    points = annotation.as_polygon() if hasattr(annotation, 'as_polygon') else annotation.points
    return mask.decode(mask.merge(mask.frPyObjects([list(map(float, points))], *size))).astype(bool)


def _segmentation(dataset: Any, data: Path, out: Path, names: list[str]) -> dict[str, Any]:
    """Label maps with 0 for what lies outside of every outline, and the classes from 1 on."""
    samples: list[dict[str, Any]] = []
    used: set[int] = set()
    for item, split, name, size in _pictures(dataset, data, out):
        labels = np.zeros(size, np.uint16)
        shapes = _shapes(item, 'seg')
        for shape in sorted(shapes, key=lambda shape: getattr(shape, 'z_order', 0)):
            # VOC's contours are no class.
            labels[_shape_mask(shape, size)] = 255 if names[shape.label] == 'ignored' else shape.label + 1
        used |= set(np.unique(labels).tolist())
        if not shapes:
            _LOST['pictures have no outline'].append(item.id)
            continue
        target = out / 'maps' / f'{len(samples):06}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels if labels.max() > 255 else labels.astype(np.uint8)).save(target)
        samples.append(dict(image=name, label=str(target), subset=split))
    colours = dataset.categories().get(_category('mask'))
    table = {int(key): [int(part) for part in value] for key, value in (colours.colormap if colours else {}).items()}
    classes = [dict(name=name, key=index + 1, colour=table.get(index)) for index, name in enumerate(names)]
    unused = [each['name'] for each in classes if each['key'] not in used and each['name'] != 'background']
    return dict(samples=samples, classes=[each for each in classes if each['name'] not in unused], unused=unused)


def _detection(dataset: Any, data: Path, out: Path, names: list[str]) -> dict[str, Any]:
    from pycocotools import mask

    contents: dict[str, dict[str, list]] = defaultdict(lambda: dict(images=[], annotations=[]))
    used = set()
    for item, split, name, (height, width) in _pictures(dataset, data, out):
        content = contents[split]
        number = len(content['images']) + 1
        content['images'].append(dict(id=number, file_name=name, width=width, height=height))
        groups: dict[Any, list[Any]] = defaultdict(list)
        for index, annotation in enumerate(_shapes(item, 'det')):
            groups[annotation.group or f'single {index}'].append(annotation)
        for parts in groups.values():
            boxes = [part for part in parts if part.type.name == 'bbox']
            shapes = [part for part in parts if part.type.name != 'bbox']
            entry: dict[str, Any] = dict(id=0, image_id=number, category_id=parts[0].label + 1)
            used.add(parts[0].label)
            entry['iscrowd'] = int(bool(parts[0].attributes.get('is_crowd')))
            if shapes and all(part.type.name == 'polygon' for part in shapes):
                entry['segmentation'] = [[float(value) for value in part.points] for part in shapes]
            elif shapes:
                whole = np.any([_shape_mask(part, (height, width)) for part in shapes], axis=0)
                code = mask.encode(np.asfortranarray(whole.astype(np.uint8)))
                entry['segmentation'] = dict(size=code['size'], counts=code['counts'].decode())
            x, y, w, h = (boxes or shapes)[0].get_bbox()
            if not boxes and len(shapes) > 1:
                corners = np.array([part.get_bbox() for part in shapes])
                x, y = corners[:, :2].min(0)
                w, h = (corners[:, :2] + corners[:, 2:]).max(0) - (x, y)
            entry['bbox'] = [float(x), float(y), float(w), float(h)]
            content['annotations'].append(entry)
    # Formats list categories that no object has, such as VOC's "ignored".
    kept = [index for index in range(len(names)) if index in used]
    categories = [dict(id=index + 1, name=names[index]) for index in kept]
    files: dict[str, str] = {}
    for subset, content in contents.items():
        path = out / f'{len(files)}.json'
        path.write_text(json.dumps(dict(content, categories=categories)), encoding='utf-8')
        files[subset] = str(path)
    return dict(files=files, unused=[name for index, name in enumerate(names) if index not in used])


def _classification(dataset: Any, data: Path, out: Path, names: list[str]) -> dict[str, Any]:
    samples, several = [], 0
    for item, split, name, _ in _pictures(dataset, data, out):
        labels = {annotation.label for annotation in item.annotations if annotation.type.name == 'label'}
        several += len(labels) > 1
        if not labels:
            _LOST['pictures have no class'].append(item.id)
        if len(labels) == 1:
            samples.append(dict(image=name, label=names[labels.pop()], subset=split))
    if several:
        raise _Unknown(f'{several} pictures have several labels: this is no data set for a classifier of one label')
    return dict(samples=samples)


def _category(kind: str) -> Any:
    from datumaro.components.annotation import AnnotationType

    return AnnotationType[kind]


def _split(subset: str, subsets: set[str]) -> str | None:
    """``'train'``, ``'val'``, ``'test'``, ``'default'``, or ``None`` for a union of others."""
    words = set(re.split(r'[^a-z]+', subset.lower()))
    for split, known in (('train', {'train', 'training'}), ('val', {'val', 'valid', 'validation'}), ('test', {'test'})):
        if words & known:
            return split
    return None if subset in ('trainval', 'all') and len(subsets) > 1 else 'default'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', required=True, choices=sorted(_WANTED), help='what the data set is for')
    parser.add_argument('--data', required=True, type=Path, help='folder of the data set')
    parser.add_argument('--out', required=True, type=Path, help='folder for what is written')
    parser.add_argument('--format', help='name that Datumaro has for the format; found by default')
    args = parser.parse_args()
    data, out = args.data.resolve(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any]
    try:
        dataset, name = _open(data, args.task, args.format)
        names = [label.name for label in dataset.categories()[_category('label')].items]
        result = {'seg': _segmentation, 'det': _detection, 'cls': _classification}[args.task](dataset, data, out, names)
        total = len(dataset) + sum(len(item.annotations) for item in dataset if args.task == 'det')
        left_out = [[text, found, total] for text, found in _LOST.items()]
        result |= dict(format=name, error='', left_out=left_out)
    except _Unknown as error:
        result = dict(error=str(error))
    (out / 'converted.json').write_text(json.dumps(result), encoding='utf-8')


if __name__ == '__main__':
    main()
