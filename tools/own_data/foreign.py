"""Data sets of other formats: LabelMe's JSON, and whatever Datumaro reads, in an environment of its own."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmpelk.errors import UserError

from .dataset import find_images, read_header, split_of
from .names import order_names, read_names

__all__ = ['convert', 'has_labelme']

_ROOT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = _ROOT / '.venv-data'
_IGNORE = '__ignore__'  # LabelMe's name for what is no class
_VARIABLE = 'MMPELK_DATUMARO_PYTHON'  # names the Python of another environment


def convert(
    root: Path, task: str, out: Path, reason: str, name: str | None = None, classes: str | None = None
) -> dict[str, Any]:
    """Read a data set of another format.

    Args:
        root: Its folder.
        task: ``'seg'``, ``'det'`` or ``'cls'``.
        out: Folder for what has to be written.
        reason: Why the layouts that are read here do not fit, for messages.
        name: Of the format, as Datumaro calls it; found by default.
        classes: Names, where the format has none.

    Returns:
        ``format``, and in detection ``files``, COCO's annotations of each split; else ``samples``, each with ``image``,
        ``label`` (the path of a label map, or the name of a class) and ``subset``; in segmentation ``classes``, too.
        ``left_out`` is what could not be read, as :meth:`~own_data.dataset.DataSet.leave_out` takes it.

    Raises:
        UserError: If it cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    if task != 'cls' and name is None and (content := _read_labelme(root, classes)):
        return _labelme_maps(root, content, out) if task == 'seg' else _labelme_boxes(content, out)
    command = [_find_python(reason), str(Path(__file__).with_name('convert.py')), '--task', task, '--data', str(root)]
    command += ['--out', str(out), '--classes', classes or '', *(['--format', name] if name else [])]
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f'Datumaro failed on {str(root)!r}: {(done.stderr.strip() or "no message").splitlines()[-1]}')
    result = json.loads((out / 'converted.json').read_text())
    if result['error']:
        raise UserError(
            f"{reason}. Datumaro does not read '{root}' either ({result['error']}); --format NAME tries one of its "
            'formats, else convert it to one of the layouts of docs/your_own_data.md'
        )
    return result


def _find_python(reason: str) -> str:
    """A Python that has Datumaro."""
    if given := os.environ.get(_VARIABLE):
        return given
    if importlib.util.find_spec('datumaro'):
        return sys.executable
    own = _ENVIRONMENT / 'bin' / 'python'
    if own.is_file():
        return str(own)
    folder, list_ = shlex.quote(str(_ENVIRONMENT)), shlex.quote(str(_ROOT / 'requirements' / 'own_data.txt'))
    raise UserError(
        f'{reason}. Datumaro reads 85 other formats (YOLO, VOC, CVAT, ...), in an environment of its own: python -m '
        f'venv {folder} && {folder}/bin/pip install -r {list_}, then type this command again'
    )


def has_labelme(root: Path) -> bool:
    """Whether there is a file of LabelMe's in the folder."""
    return any(content is not None for _, content in _labelme_files(root))


def _labelme_files(root: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Files and what they hold, ``None`` where a file is damaged; those of other formats are left out."""
    for path in sorted(root.rglob('*.json')):
        try:
            content = json.loads(path.read_text('utf-8-sig'))
        except ValueError:
            yield path, None
            continue
        if isinstance(content, dict) and 'shapes' in content and 'imagePath' in content:
            yield path, content


def _read_labelme(root: Path, classes: str | None = None) -> dict[str, Any] | None:
    """LabelMe's ``x.json`` beside ``x.jpg`` as one file of COCO's; ``None`` if there are none."""
    pictures = {str(Path(path).with_suffix('')): path for path in find_images(root)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: dict[str, int] = {}
    damaged, lost = [], []
    types: Counter[str] = Counter()
    shapes = 0
    for path, content in _labelme_files(root):
        if content is None:
            damaged.append(path.relative_to(root).as_posix())
            continue
        stem = path.relative_to(root).with_suffix('').as_posix()
        beside = (Path(stem).parent / str(content['imagePath']).replace('\\', '/').split('/')[-1]).with_suffix('')
        picture = pictures.get(stem) or pictures.get(beside.as_posix()) or ''
        number = len(images) + 1
        size = dict(width=content.get('imageWidth'), height=content.get('imageHeight'))
        split = split_of(Path(stem).parent.as_posix()) or 'default'
        images.append(dict(id=number, file_name=picture or f'{stem}.jpg', split=split, **size))
        for shape in content['shapes']:
            shapes += 1
            outline = _outline(shape)
            if outline is None:
                lost.append(path.relative_to(root).as_posix())
                types[str(shape.get('shape_type'))] += 1
                continue
            name = str(shape['label'])
            label = 0 if name == _IGNORE else names.setdefault(name, len(names) + 1)
            group = shape.get('group_id')
            entry: dict[str, Any] = dict(id=0, image_id=number, category_id=label, segmentation=[outline])
            annotations.append(entry if group is None else entry | dict(group=group))
    kinds = ', '.join(f'{count} {kind}' for kind, count in types.items())
    if not names:
        if lost:
            raise UserError(f"LabelMe's shapes in '{root}' enclose nothing that is read here ({kinds}): draw polygons")
        return None
    if any(entry['split'] != 'default' for entry in images):
        for entry in images:
            entry['split'] = 'train' if entry['split'] == 'default' else entry['split']
    if classes and any(name.key is not None for name in read_names(classes, root)):
        raise UserError("LabelMe's shapes have names and no values: give --classes NAME,... alone")
    order = order_names(list(names), classes, root)
    for entry in annotations:
        old = entry['category_id']
        entry['category_id'] = old and order.index(list(names)[old - 1]) + 1
    return dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=index, name=name) for index, name in enumerate(order, start=1)],
        left_out=[
            ["JSON files beside LabelMe's cannot be read", damaged, len(damaged) + len(images)],
            [f'shapes enclose nothing that is read here ({kinds})', lost, shapes],
        ],
    )


def _outline(shape: Mapping[str, Any]) -> list[float] | None:
    """Corners of a polygon; of a rectangle, turned or not, and a circle, too."""
    points = [(float(x), float(y)) for x, y in shape.get('points', [])]
    kind = shape.get('shape_type', 'polygon')
    if kind == 'rectangle' and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind == 'circle' and len(points) == 2:
        centre, edge = np.array(points)
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radius = np.linalg.norm(edge - centre)
        points = [(float(x), float(y)) for x, y in centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)]
    elif kind != 'polygon' and not (kind in ('rectangle', 'rotation') and len(points) == 4):  # X-AnyLabeling's
        return None
    return [value for point in points for value in point] if len(points) > 2 else None


def _labelme_boxes(content: dict[str, Any], out: Path) -> dict[str, Any]:
    objects: list[dict[str, Any]] = []
    groups: dict[Any, dict[str, Any]] = {}
    ignored = [entry for entry in content['annotations'] if not entry['category_id']]
    for entry in content['annotations']:
        if not entry['category_id']:
            continue
        # Shapes of one group and one class in a picture are parts of one object.
        key = (entry['image_id'], entry['category_id'], entry['group']) if 'group' in entry else len(objects)
        if key in groups:
            groups[key]['segmentation'] += entry['segmentation']
        else:
            groups[key] = {name: value for name, value in entry.items() if name != 'group'}
            objects.append(groups[key])
    files = {}
    for split in dict.fromkeys(image['split'] for image in content['images']):
        images = [image for image in content['images'] if image['split'] == split]
        ids = {image['id'] for image in images}
        path = out / f'labelme_{split}.json'
        path.write_text(
            json.dumps(dict(
                images=[{name: value for name, value in image.items() if name != 'split'} for image in images],
                annotations=[entry for entry in objects if entry['image_id'] in ids],
                categories=content['categories'],
            ))
        )  # fmt: skip
        files[split] = str(path)
    of = {image['id']: image['file_name'] for image in content['images']}
    names = [of[entry['image_id']] for entry in ignored]
    left_out = [*content['left_out'], [f'shapes are called {_IGNORE}', names, len(content['annotations'])]]
    return dict(format='LabelMe', files=files, left_out=left_out)


def _labelme_maps(root: Path, content: dict[str, Any], out: Path) -> dict[str, Any]:
    by_image: dict[int, list[Any]] = defaultdict(list)
    for entry in content['annotations']:
        by_image[entry['image_id']].append(entry)
    many = len(content['categories']) > 254
    samples: list[dict[str, Any]] = []
    for image in content['images']:
        # In the size that it was drawn in, which the reader compares with the picture's.
        size = (image['width'], image['height'])
        if not all(size):
            size = read_header(root / image['file_name'], pixels=False).upright
        labels = Image.new('I;16' if many else 'L', size if all(size) else (1, 1))
        for entry in by_image[image['id']]:
            corners: Sequence[float] = entry['segmentation'][0]
            value = entry['category_id'] or (65535 if many else 255)
            ImageDraw.Draw(labels).polygon(list(corners), fill=value)
        target = out / 'maps' / f'{len(samples):06}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        labels.save(target)
        samples.append(dict(image=image['file_name'], label=str(target), subset=image['split']))
    classes = [dict(name=each['name'], key=each['id'], colour=None) for each in content['categories']]
    return dict(format='LabelMe', samples=samples, classes=classes, left_out=content['left_out'])
