"""Boxes and outlines in files beside the pictures, LabelMe's JSON, YOLO's and Pascal VOC's, in one form.

A reader takes the folder and the user's names, and returns ``None`` where there is no file of its format, else
``format``, COCO's ``categories``, ``images``, each with its ``split``, ``annotations``, and ``left_out``. An annotation
of the category 0 is no class; one without ``segmentation`` is a box alone.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image, ImageDraw

from mmpelk.errors import UserError

from .dataset import find_files, find_images, read_header, read_text, split_of
from .names import order_names, read_names

__all__ = ['has_outlines', 'read_outlines', 'write_boxes', 'write_maps']

Content = dict[str, Any]
_IGNORE = '__ignore__'  # LabelMe's name for what is no class
_NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')


def has_outlines(root: Path) -> bool:
    """Whether there is a file in the folder that :func:`read_outlines` reads for segmentation."""
    return any(content is not None for _, content in _labelme_files(root)) or any(True for _ in _yolo_files(root))


def read_outlines(root: Path, classes: str | None) -> Content | None:
    """What the first reader finds that knows the files in the folder; a question where another knows some, too."""
    found = [content for read in (_read_labelme, _read_yolo, _read_voc) if (content := read(root, classes))]
    if len(found) > 1:
        forms = ' and '.join(content['format'] for content in found)
        text = f'the folder holds labels in the formats {forms}: --yes takes the first, else move its files away'
        found[0].setdefault('said', []).append(['question', text])
    return found[0] if found else None


def _finish(content: Content, names: Sequence[str], splits: Mapping[int, str]) -> Content:
    """Add the categories; of pictures beside those of a split, and of a split that is none, the training."""
    said = {split for split in splits.values() if split}
    beside = [image['file_name'] for image in content['images'] if not splits[image['id']]]
    if beside and 'train' in said:
        text = f'{len(beside)} pictures beside those of the splits are trained on: --yes, if that is right, else move'
        content.setdefault('said', []).append(['question', f'{text} or rename their folders ({", ".join(beside[:5])})'])
    for image in content['images']:
        image['split'] = splits[image['id']] or ('train' if said else 'default')
    categories = [dict(id=index, name=name) for index, name in enumerate(names, start=1)]
    return content | dict(categories=categories)


def _labelme_files(root: Path) -> Iterator[tuple[Path, Content | None]]:
    """Files and what they hold, ``None`` where a file is damaged; those of other formats are left out."""
    for path in map(root.joinpath, find_files(root, ['.json'])):
        try:
            content = json.loads(read_text(path))
        except (ValueError, RecursionError):
            yield path, None
            continue
        if isinstance(content, dict) and 'shapes' in content and 'imagePath' in content:
            yield path, content


def _read_labelme(root: Path, classes: str | None) -> Content | None:
    """LabelMe's ``x.json`` beside ``x.jpg``."""
    pictures = {str(Path(path).with_suffix('')): path for path in find_images(root)}
    images: list[Content] = []
    annotations: list[Content] = []
    splits: dict[int, str] = {}
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
        picture = pictures.get(stem) or pictures.get(beside.as_posix()) or f'{stem}.jpg'
        number = len(images) + 1
        splits[number] = split_of(Path(stem).parent.as_posix()) or ''
        size = dict(width=content.get('imageWidth'), height=content.get('imageHeight'))
        images.append(dict(id=number, file_name=picture, **size))
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
            entry: Content = dict(id=0, image_id=number, category_id=label, segmentation=[outline])
            annotations.append(entry if group is None else entry | dict(group=group))
    kinds = ', '.join(f'{count} {kind}' for kind, count in types.items())
    if not names:
        if lost:
            raise UserError(f"LabelMe's shapes in '{root}' enclose nothing that is read here ({kinds}): draw polygons")
        return None
    left_out = [
        ["JSON files beside LabelMe's cannot be read", damaged, len(damaged) + len(images)],
        [f'shapes enclose nothing that is read here ({kinds})', lost, shapes],
    ]
    bare = sorted(set(pictures.values()) - {image['file_name'] for image in images})
    left_out.append(["pictures have no file of LabelMe's", bare, len(bare) + len(images)])
    found = dict(format='LabelMe', images=images, annotations=annotations, left_out=left_out)
    return _finish(found, _order(annotations, list(names), classes, root), splits)


def _order(annotations: list[Content], names: list[str], classes: str | None, root: Path) -> list[str]:
    """Number the categories in the user's order."""
    order = order_names(names, classes, root)
    for entry in annotations:
        old = entry['category_id']
        entry['category_id'] = old and order.index(names[old - 1]) + 1
    return order


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


def _yolo_files(root: Path) -> Iterator[tuple[str, Path | None]]:
    """Pictures with their label file, in ``labels`` for ``images`` or beside them; nothing if none is YOLO's."""
    found: list[tuple[str, Path | None]] = []
    known = False
    for picture in find_images(root):
        *folders, _ = parts = picture.split('/')
        last = max((i for i, folder in enumerate(folders) if folder.lower() == 'images'), default=None)
        folder = 'Labels' if last is not None and parts[last] == 'Images' else 'labels'
        other = parts if last is None else [*parts[:last], folder, *parts[last + 1 :]]
        paths = [(root / '/'.join(each)).with_suffix('.txt') for each in (other, parts)]
        label = next((path for path in paths if path.is_file()), None)
        found.append((picture, label))
        if label and not known:
            words = next((line.split() for line in _lines(label) if line.strip()), [])
            known = len(words) >= 5 and all(map(_NUMBER.fullmatch, words))
    return iter(found if known else [])


def _lines(path: Path) -> list[str]:
    return path.read_text('utf-8-sig', errors='replace').splitlines()


def _read_yolo(root: Path, classes: str | None) -> Content | None:
    """YOLO's label files, a line an object: class, centre and size of a box, or class and corners; in shares."""
    files = list(_yolo_files(root))
    if not files:
        return None
    settings = _yolo_settings(root)
    if 'kpt_shape' in settings:
        raise UserError(f"'{root}' has YOLO's labels of key points, which are not read: export boxes or polygons")
    images: list[Content] = []
    annotations: list[Content] = []
    splits: dict[int, str] = {}
    unlabelled: list[str] = []
    unlisted: list[str] = []
    for picture, label in files:
        header = read_header(root / picture, pixels=False)
        number = len(images) + 1
        image = dict(id=number, file_name=picture, width=header.upright[0], height=header.upright[1])
        splits[number] = _yolo_split(picture, settings)
        reason = unlisted if settings.get('lists') and not splits[number] else unlabelled if label is None else None
        images.append(image if reason is None else image | dict(unused=True))
        if reason is not None:
            reason.append(picture)
            continue
        for position, line in enumerate(_lines(label) if label else [], start=1):
            if words := line.split():
                where = f"line {position} of '{label}'"
                annotations.append(dict(id=0, image_id=number) | _yolo_object(words, header.upright, where))
    # They have no order: what is larger lies below.
    annotations.sort(key=lambda entry: -max(map(_area, entry.get('segmentation', [])), default=0.0))
    highest = max((entry['category_id'] for entry in annotations), default=0)
    said: list[list[str]] = []
    listed = settings.get('names') or ()
    names = list(map(str, listed.values() if isinstance(listed, dict) else listed))
    if isinstance(listed, dict) and list(listed) != list(range(len(listed))):
        raise UserError(f"'{root}' has a .yaml whose names are not numbered 0, 1, 2, ...: number them so")
    if classes or not names:
        folders = sorted({path.parent for _, path in files if path})
        places = dict.fromkeys([root, root / 'labels', *folders, *(folder.parent for folder in folders)])
        list_ = next(filter(None, (read_names(classes, place) for place in places)), [])
        if any(not name.coloured and name.key not in (None, index) for index, name in enumerate(list_)):
            raise UserError(f"the list of YOLO's classes for '{root}' is not numbered 0, 1, 2, ...: number it so")
        given = [name.name for name in list_]
        if classes and names and given != names:
            raise UserError(
                f"YOLO's labels are indices into the names of '{root}': {', '.join(names[:12])}; no --classes"
            )
        if not given:
            said = [
                ['decision', "no list beside YOLO's labels names their classes: --classes NAME,... or a file of them"]
            ]
        names = given or [f'class_{index}' for index in range(highest)]
    if len(names) < highest:
        raise UserError(f'YOLO labels in {str(root)!r} have the class {highest - 1}, but {len(names)} names are given')
    left_out = [
        ['pictures have no label file', unlabelled, len(images)],
        ['pictures are in no list of the .yaml', unlisted, len(images)],
    ]
    found = dict(format='YOLO', images=images, annotations=annotations, left_out=left_out, said=said)
    return _finish(found, names, splits)


def _area(outline: Sequence[float]) -> float:
    x, y = np.asarray(outline).reshape(-1, 2).T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def _yolo_object(words: list[str], size: tuple[int, int], where: str) -> Content:
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise UserError(
            f'{where} has {len(words)} numbers: YOLO has a class and the 4 numbers of a box, or pairs of corners; '
            "a confidence behind them is that of a network's result, and no label"
        )
    if not words[0].isdigit() or not all(map(_NUMBER.fullmatch, words[1:])):
        raise UserError(f'{where} is not one of a YOLO label file: {" ".join(words)[:60]}')
    values = np.array(words[1:], float)
    if values.max() > 1.1 or values.min() < -0.1:
        raise UserError(f'{where} has numbers beyond 0 to 1, and YOLO has shares of width and height: divide by them')
    scaled = (values.reshape(-1, 2) * size).ravel().tolist()
    entry: Content = dict(category_id=int(words[0]) + 1)
    if len(scaled) == 4:
        x, y, w, h = scaled
        return entry | dict(bbox=[x - w / 2, y - h / 2, w, h])
    return entry | dict(segmentation=[scaled])


def _yolo_settings(root: Path) -> Content:
    """What a ``.yaml`` of YOLO's in the folder says; lists of pictures that it names as ``lists``."""
    found: dict[Path, Content] = {}
    for path in sorted(root.glob('*.y*ml')):
        try:
            content = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise UserError(f"'{path}' is damaged: {str(error).splitlines()[0]}") from error
        if isinstance(content, dict) and 'names' in content:
            found[path] = content
    if not found:
        return {}
    settings = next(iter(found.values()))
    if not isinstance(settings['names'], (list, dict)):
        raise UserError(f"'{next(iter(found))}' has names: {settings['names']!r}, where YOLO has a list of them")
    if any(content['names'] != settings['names'] for content in found.values()):
        raise UserError(f'{" and ".join(f"{str(path)!r}" for path in found)} name other classes: keep one of them')
    if 'nc' in settings and settings['nc'] != len(settings['names']):
        raise UserError(
            f"'{next(iter(found))}' has {len(settings['names'])} names for nc: {settings['nc']}: correct it"
        )
    lists: dict[str, set[str]] = {}
    for split, entry in _yolo_entries(settings):
        if entry.endswith('.txt'):
            path = root / entry
            if not path.is_file():
                raise UserError(f"'{next(iter(found))}' names the list '{entry}', which is not in '{root}'")
            names = [line.strip().replace('\\', '/').removeprefix('./') for line in read_text(path).splitlines()]
            # Of another machine's path the folder and the name.
            lists.setdefault(split, set()).update(names, ('/'.join(name.split('/')[-2:]) for name in names))
    return settings | dict(lists=lists)


def _yolo_entries(settings: Content) -> Iterator[tuple[str, str]]:
    """Splits with the folder or list that the ``.yaml`` names for it."""
    for split, key in (('train', 'train'), ('val', 'val'), ('val', 'valid'), ('test', 'test')):
        entries = settings.get(key) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            yield split, re.sub(r'^(\.{0,2}/)+', '', str(entry).replace('\\', '/')).rstrip('/')


def _yolo_split(picture: str, settings: Content) -> str:
    """The split whose list or folder the ``.yaml`` names, else the one that the folders' names say."""
    parts = picture.split('/')
    ends = {'/'.join(parts[start:]) for start in range(len(parts))}
    for split, names in settings.get('lists', {}).items():
        if names & ends:
            return split
    inside = '/'.join(['', *parts[:-1], ''])
    for split, entry in _yolo_entries(settings):
        if entry and not entry.endswith('.txt') and inside.endswith(f'/{entry}/'):
            return split
    return '' if settings.get('lists') else split_of(inside) or ''


def _read_voc(root: Path, classes: str | None) -> Content | None:
    """Pascal VOC's boxes, ``x.xml`` wherever it is."""
    pictures: dict[str, list[str]] = defaultdict(list)
    for picture in find_images(root):
        pictures[Path(picture).stem].append(picture)
    images: list[Content] = []
    annotations: list[Content] = []
    splits: dict[int, str] = {}
    names: dict[str, int] = {}
    damaged, doubtful = [], []
    for path in map(root.joinpath, find_files(root, ['.xml'])):
        try:
            content = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, LookupError, ValueError):  # the latter two of its encoding
            damaged.append(path.relative_to(root).as_posix())
            continue
        objects = content.findall('object')
        if (
            content.tag != 'annotation'
            or content.find('object/polygon') is not None
            or content.find('object/segm') is not None
        ):
            continue
        here = path.parent.relative_to(root).as_posix()
        said = split_of(here)
        stems = (path.stem, Path((content.findtext('filename') or '').replace('\\', '/')).stem)
        near = next((pictures[stem] for stem in stems if stem in pictures), [])
        if stems[0] != stems[1] and all(stem in pictures for stem in stems):
            doubtful.append(f'{path.name} names {stems[1]}')
        # Beside the file, else in a folder of its split.
        best = (
            [p for p in near if Path(p).parent.as_posix() == here] or [p for p in near if split_of(p) == said] or near
        )
        if len(best) > 1:
            raise UserError(f"'{path}' may belong to {' or to '.join(best[:2])}: give the pictures distinct names")
        number = len(images) + 1
        texts = {key: content.findtext(f'size/{key}', '').strip() for key in ('width', 'height')}
        size = {key: round(float(text)) if _NUMBER.fullmatch(text) else 0 for key, text in texts.items()}
        images.append(dict(id=number, file_name=best[0] if best else path.stem + '.jpg', **size))
        splits[number] = said or (split_of(Path(best[0]).parent.as_posix()) or '' if best else '')
        for each in objects:
            name = (each.findtext('name') or '').strip()
            corners = [each.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
            if not name or any(not _NUMBER.fullmatch((corner or '').strip()) for corner in corners):
                raise UserError(f"an object of '{path}' has no name or no bndbox of numbers")
            left, top, right, bottom = (float(corner or 0) for corner in corners)
            label = names.setdefault(name, len(names) + 1)
            annotations.append(
                dict(id=0, image_id=number, category_id=label, bbox=[left, top, right - left, bottom - top])
            )
    if not names:
        return None
    left_out = [['XML files cannot be read', damaged, len(damaged) + len(images)]]
    found: Content = dict(format='Pascal VOC', images=images, annotations=annotations, left_out=left_out)
    if doubtful:
        text = f'{len(doubtful)} XML files name another picture that is here, and are taken for that of their own name'
        found['said'] = [['question', f'{text}: --yes, if that is right ({", ".join(doubtful[:5])})']]
    in_order = sorted(names)
    for entry in annotations:
        entry['category_id'] = in_order.index(list(names)[entry['category_id'] - 1]) + 1
    return _finish(found, _order(annotations, in_order, classes, root), splits)


def write_boxes(content: Content, out: Path) -> Content:
    """Write an annotation file of COCO's for each split; returns them, and what is left out."""
    objects: list[Content] = []
    groups: dict[Any, Content] = {}
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
        images = [image for image in content['images'] if image['split'] == split and not image.get('unused')]
        if not images:
            continue
        ids = {image['id'] for image in images}
        part = dict(
            images=[{name: value for name, value in image.items() if name != 'split'} for image in images],
            annotations=[entry for entry in objects if entry['image_id'] in ids],
            categories=content['categories'],
        )
        (out / f'{split}.json').write_text(json.dumps(part), encoding='utf-8')
        files[split] = str(out / f'{split}.json')
    of = {image['id']: image['file_name'] for image in content['images']}
    names = [of[entry['image_id']] for entry in ignored]
    left_out = [*content['left_out'], [f'shapes are called {_IGNORE}', names, len(content['annotations'])]]
    return dict(content, files=files, left_out=left_out)


def write_maps(root: Path, content: Content, out: Path) -> Content:
    """Draw the outlines into label maps: 0 for what lies outside of all, the classes from 1 on."""
    by_image: dict[int, list[Content]] = defaultdict(list)
    boxes = [entry for entry in content['annotations'] if 'segmentation' not in entry]
    if len(boxes) == len(content['annotations']):
        raise UserError(
            f"'{root}' has boxes in the format {content['format']} and no outlines: --task det trains on them"
        )
    for entry in content['annotations']:
        by_image[entry['image_id']].append(entry)
    many = len(content['categories']) > 254
    samples: list[Content] = []
    hidden, cut = [], []
    for image in content['images']:
        if image.get('unused'):
            continue
        # In the size that it was drawn in, which the reader compares with the picture's.
        size = (image['width'], image['height'])
        if not all(size):
            size = read_header(root / image['file_name'], pixels=False).upright
        labels = Image.new('I;16' if many else 'L', size if all(size) else (1, 1))
        for entry in by_image[image['id']]:
            for corners in entry.get('segmentation', ()):
                value = entry['category_id'] or (65535 if many else 255)
                ImageDraw.Draw(labels).polygon(list(corners), fill=value)
        corners = [xy for entry in by_image[image['id']] for xy in entry.get('segmentation', ())]
        if all(size) and any(max(xy[axis::2]) > size[axis] + 2 or min(xy) < -2 for xy in corners for axis in (0, 1)):
            cut.append(image['file_name'])
        wanted = {entry['category_id'] for entry in by_image[image['id']] if entry.get('segmentation')} - {0}
        if all(size) and wanted - set(np.unique(np.asarray(labels)).tolist()):
            hidden.append(image['file_name'])
        target = out / 'maps' / f'{len(samples):06}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        labels.save(target)
        samples.append(dict(image=image['file_name'], label=str(target), subset=image['split']))
    said = list(content.get('said', ()))
    for files, text in (
        (hidden, 'the outlines of a class are covered by later ones, and are not trained on'),
        (cut, 'outlines reach out of the picture, and are cut off'),
    ):
        if files:
            much = 'question' if files is hidden or 10 * len(files) > len(samples) else 'mistake'
            text = f'in {len(files)} pictures {text}' + (': --yes, if that is right' if much == 'question' else '')
            said.append([much, f'{text} ({", ".join(files[:5])})'])
    content = dict(content, said=said)
    classes = [dict(name=each['name'], key=each['id'], colour=None) for each in content['categories']]
    of = {image['id']: image['file_name'] for image in content['images']}
    bare = [
        'objects have a box and no outline',
        [of[entry['image_id']] for entry in boxes],
        len(content['annotations']),
    ]
    return dict(content, samples=samples, classes=classes, left_out=[*content['left_out'], bare])
