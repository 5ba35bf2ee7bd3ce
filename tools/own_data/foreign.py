"""Data sets of other formats: LabelMe's JSON, and whatever Datumaro reads, in an environment of its own."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mmpelk.errors import UserError

from .dataset import find_images

__all__ = ['convert']

_ROOT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = _ROOT / '.venv-data'
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

    Raises:
        UserError: If it cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    if task != 'cls' and name is None and (content := _read_labelme(root)):
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


def _read_labelme(root: Path) -> dict[str, Any] | None:
    """LabelMe's ``x.json`` beside ``x.jpg`` as one file of COCO's; ``None`` if there are none."""
    pictures = {str(Path(path).with_suffix('')): path for path in find_images(root)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: dict[str, int] = {}
    for path in sorted(root.rglob('*.json')):
        try:
            content = json.loads(path.read_text('utf-8'))
        except ValueError:
            continue
        if not isinstance(content, dict) or 'shapes' not in content or 'imagePath' not in content:
            continue
        stem = path.relative_to(root).with_suffix('').as_posix()
        beside = (Path(stem).parent / str(content['imagePath']).replace('\\', '/').split('/')[-1]).with_suffix('')
        picture = pictures.get(stem) or pictures.get(beside.as_posix()) or ''
        number = len(images) + 1
        size = dict(width=content.get('imageWidth'), height=content.get('imageHeight'))
        images.append(dict(id=number, file_name=picture or f'{stem}.jpg', **size))
        for shape in content['shapes']:
            outline = _outline(shape)
            if outline is not None:
                label = names.setdefault(str(shape['label']), len(names) + 1)
                annotations.append(dict(id=0, image_id=number, category_id=label, segmentation=[outline]))
    categories = [dict(id=index, name=name) for name, index in names.items()]
    return dict(images=images, annotations=annotations, categories=categories) if annotations else None


def _outline(shape: Mapping[str, Any]) -> list[float] | None:
    """Corners of a polygon; of a rectangle and a circle, too."""
    points = [(float(x), float(y)) for x, y in shape.get('points', [])]
    kind = shape.get('shape_type', 'polygon')
    if kind == 'rectangle' and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind == 'circle' and len(points) == 2:
        import numpy as np

        centre, edge = np.array(points)
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radius = np.linalg.norm(edge - centre)
        points = [(float(x), float(y)) for x, y in centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)]
    elif kind != 'polygon':
        return None
    return [value for point in points for value in point] if len(points) > 2 else None


def _labelme_boxes(content: dict[str, Any], out: Path) -> dict[str, Any]:
    path = out / 'labelme.json'
    path.write_text(json.dumps(content))
    return dict(format='LabelMe', files={'default': str(path)})


def _labelme_maps(root: Path, content: dict[str, Any], out: Path) -> dict[str, Any]:
    by_image: dict[int, list[Any]] = defaultdict(list)
    for entry in content['annotations']:
        by_image[entry['image_id']].append(entry)
    samples: list[dict[str, Any]] = []
    for image in content['images']:
        if not (root / image['file_name']).is_file():
            continue
        with Image.open(root / image['file_name']) as picture:
            labels = Image.new('L' if len(content['categories']) < 255 else 'I;16', picture.size)
        for entry in by_image[image['id']]:
            corners: Sequence[float] = entry['segmentation'][0]
            ImageDraw.Draw(labels).polygon(list(corners), fill=entry['category_id'])
        target = out / 'maps' / f'{len(samples):06}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        labels.save(target)
        samples.append(dict(image=image['file_name'], label=str(target), subset='default'))
    classes = [dict(name=each['name'], key=each['id'], colour=None) for each in content['categories']]
    return dict(format='LabelMe', samples=samples, classes=classes)
