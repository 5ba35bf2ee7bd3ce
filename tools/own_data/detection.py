"""Detection and instance segmentation: annotation files in COCO's format."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmpelk.errors import UserError

from .dataset import (
    DataSet,
    Header,
    UnknownLayoutError,
    ask_beside,
    ask_depth,
    ask_twins,
    complete_splits,
    count_unread,
    find_copies,
    find_files,
    find_images,
    make_palette,
    map_files,
    nothing_left,
    read_header,
    read_text,
    split_by_lists,
    split_of,
)
from .names import order_names

_LISTS = ('images', 'annotations', 'categories')
_CUT = 'objects have a box that reaches out of the image; it is cut off'


def read_detection(
    root: Path,
    annotations: list[str] | None = None,
    images: str | None = None,
    val_share: float = 0.2,
    converted: dict[str, Any] | None = None,
    classes: str | None = None,
) -> DataSet:
    """Read a data set with annotations in COCO's format.

    Args:
        root: Its folder.
        annotations: Annotation files in it: of all pictures, or of the training and the validation. Found by default.
        images: Folder of the pictures, if it cannot be found by the names in the annotations.
        val_share: Share of the pictures to validate on where there is one annotation file.
        converted: The data set as :func:`~own_data.foreign.convert` has read it.
        classes: The names of the categories in the order of their indices; by default that of the file.

    Raises:
        UserError: If there are no such files, or nothing can be trained on what is there.
    """
    root = root.resolve()
    data = DataSet('det', root, [], [], {}, [], [], 'objects')
    files = _converted_files(converted) if converted else _find_files(root, annotations)
    contents = {split: json.loads(read_text(path)) for split, path in files.items()}
    _same_categories(data, contents, files)
    pictures = {path: path for path in find_images(root)}
    count_unread(data, len(pictures))
    if converted:
        for left_out in converted.get('left_out', ()):
            data.leave_out(*left_out)
        ask_beside(data, [image['file_name'] for image in contents.get('train/1', {}).get('images', ())], ['train'])
        # Pictures that were in an archive.
        absolute = (image['file_name'] for content in contents.values() for image in content['images'])
        pictures |= {path: path for path in absolute if Path(path).is_absolute() and Path(path).is_file()}
    clean = _join(
        data, {key: _check(data, part, files[key], pictures, images) for key, part in contents.items()}, files
    )
    named = {image['file_name'] for content in clean.values() for image in content['images']}
    beside = {os.path.dirname(name) for name in named}
    if unlisted := [path for path in pictures if os.path.dirname(path) in beside and path not in named]:
        data.note('remark', f'{len(unlisted)} pictures beside the others are in no annotation file', unlisted)
    splits = {split: clean[split]['images'] if split in clean else [] for split in ('train', 'val', 'test')}
    if list(clean) == ['train']:
        listed = split_by_lists(data, root, splits['train'], lambda image: [image['file_name']])
        splits = listed or _split_by_folders(data, splits['train']) or splits
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    number = 0
    for content in clean.values():
        offset = number
        for image in content['images']:
            image['id'] += offset
            number = max(number, image['id'])
        for entry in content['annotations']:
            objects[entry['image_id'] + offset].append({**entry, 'image_id': entry['image_id'] + offset})
    every = [image for content in clean.values() for image in content['images']]
    data.unlabelled = sum(not objects[image['id']] for image in every) / max(len(every), 1)
    bare = [image for image in splits['train'] if not objects[image['id']]] if not splits['val'] else []
    splits['train'] = [image for image in splits['train'] if image not in bare]  # none to validate on
    complete_splits(data, splits, val_share, lambda image: image['file_name'])
    splits['train'] += bare
    by_name = {category['name']: category for category in clean['train']['categories']}
    categories = [by_name[name] for name in order_names(list(by_name), classes, root)]
    contents = {}
    for split, chosen in splits.items():
        # COCO's evaluation takes the id 0 for "no object", and mixes up objects of equal ids.
        entries = [entry for image in chosen for entry in objects[image['id']]]
        entries = [{**entry, 'id': index} for index, entry in enumerate(entries, start=1)]
        if all(entry['iscrowd'] for entry in entries):
            raise UserError(f"no object of '{root}' that is no crowd is left for the split '{split}'")
        contents[split] = dict(images=chosen, categories=categories, annotations=entries)
    data.splits = {split: [image['file_name'] for image in chosen] for split, chosen in splits.items()}
    find_copies(data, [name for chosen in data.splits.values() for name in chosen])
    data.classes = [category['name'] for category in categories]
    if classes is None:
        ask_twins(data)
    _count(data, contents, {category['id']: category['name'] for category in categories})
    data.palette = make_palette(len(data.classes))
    kept = [e for content in contents.values() for e in content['annotations'] if not e['iscrowd']]
    masks = sum(bool(entry.get('segmentation')) for entry in kept)
    if 0 < masks < len(kept):
        data.note('mistake', f'{len(kept) - masks} of {len(kept)} objects have no outline: boxes alone are trained')
    data.details |= dict(
        contents=contents,
        folders={split: _common_folder(names) for split, names in data.splits.items()},
        masks=masks == len(kept) > 0,
        sides=[float(np.sqrt(entry['bbox'][2] * entry['bbox'][3])) for entry in kept],
    )
    return data


def _split_by_folders(data: DataSet, images: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]] | None:
    """The split that the folders of the pictures of one annotation file say, if one of them is to train on."""
    splits: dict[str, list[dict[str, Any]]] = {'train': [], 'val': [], 'test': []}
    said = {image['file_name']: split_of(os.path.dirname(image['file_name'])) for image in images}
    if any(map(os.path.isabs, said)) or not set(said.values()) & {'val', 'test'} or 'train' not in said.values():
        return None
    ask_beside(data, [name for name, split in said.items() if not split], said.values())
    for image in images:
        splits[said[image['file_name']] or 'train'].append(image)
    data.note('decision', "the split is that of the pictures' folders")
    return splits


def _join(data: DataSet, parts: dict[str, dict[str, Any]], files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The contents of each split, of one annotation file or of several.

    Raises:
        UserError: If a picture is in two files of a split.
    """
    joined: dict[str, dict[str, Any]] = {}
    owners: dict[str, dict[str, Path]] = defaultdict(dict)
    for key, part in parts.items():
        split = key.split('/')[0]
        for image in part['images']:
            other = owners[split].setdefault(image['file_name'], files[key])
            if other != files[key]:
                raise UserError(
                    f"the picture '{image['file_name']}' is in '{other}' and in '{files[key]}', both for the split "
                    f"'{split}': choose with --annotations TRAIN VAL [TEST]"
                )
        if split not in joined:
            joined[split] = part
            continue
        offset = len(joined[split]['images'])  # they are numbered from 1
        joined[split]['images'] += [{**image, 'id': image['id'] + offset} for image in part['images']]
        entries = [{**entry, 'image_id': entry['image_id'] + offset} for entry in part['annotations']]
        joined[split]['annotations'] += entries
    for split in joined:
        several = [str(path) for key, path in files.items() if key.split('/')[0] == split]
        if len(several) > 1:
            data.note('decision', f'{len(several)} annotation files are joined for the split {split}', several)
    if not owners:
        raise nothing_left(data)
    first = next(iter(owners))  # the training, if there is one
    held_out = {name for split, named in owners.items() if split != first for name in named}
    if both := sorted(held_out & set(owners[first])):
        data.note('question', f'{len(both)} pictures to train on are listed to validate or test on, too', both)
    return joined


def _converted_files(converted: dict[str, Any]) -> dict[str, Path]:
    files = {subset: Path(path) for subset, path in converted['files'].items()}
    if 'default' in files:  # of pictures in no split: trained on, as those of the training are
        files['train/1' if 'train' in files else 'train'] = files.pop('default')
    if 'train' not in files:
        raise UserError(f'the data set has the splits {", ".join(files)}, and none to train on')
    return {split: files[split] for split in ('train', 'train/1', 'val', 'test') if split in files}


def _common_folder(names: list[str]) -> str:
    """The folder that all pictures are in, ``''`` if there is none below the root."""
    if len({os.path.isabs(name) for name in names}) != 1:
        return ''
    return os.path.commonpath([os.path.dirname(name) for name in names])


def _same_categories(data: DataSet, contents: dict[str, dict[str, Any]], files: dict[str, Path]) -> None:
    """Make the lists of categories one, without those that only group others.

    Raises:
        UserError: If the files number different names, or two names are equal.
    """
    first = next(iter(contents))
    for split, content in contents.items():
        for category in content['categories']:
            if not isinstance(category, dict) or category.get('id') is None or category.get('name') in (None, ''):
                raise UserError(f"a category of '{files[split]}' has no id or no name: {category!r}")
    lists = {
        split: {category['id']: str(category['name']).strip() for category in content['categories']}
        for split, content in contents.items()
    }
    for split, ids in lists.items():
        if ids != lists[first]:
            raise UserError(f"'{files[split]}' has other categories than '{files[first]}': make them equal")
    used = {entry.get('category_id') for content in contents.values() for entry in content['annotations']}
    groups = {category.get('supercategory') for category in contents[first]['categories']}
    # Roboflow lists the name of the project as a category, the parent of all others.
    parents = [
        key for key, name in lists[first].items() if name in groups and key not in used and len(lists[first]) > 1
    ]
    ids = {key: name for key, name in lists[first].items() if key not in parents}
    if parents:
        data.note('decision', 'a category that groups the others and has no object is no class',
                  [lists[first][key] for key in parents])  # fmt: skip
    if len(set(ids.values())) < len(ids):
        raise UserError(f'two categories have the same name: {", ".join(ids.values())}')
    if not ids:
        raise UserError(f"'{files[first]}' lists no category")
    for content in contents.values():
        content['categories'] = [dict(category, name=ids[category['id']]) for category in content['categories']
                                 if category['id'] in ids]  # fmt: skip


def _find_files(root: Path, given: list[str] | None) -> dict[str, Path]:
    if given:
        files = [root / name for name in given]
        if missing := [path for path in files if not path.is_file()]:
            raise UserError(f"there is no annotation file '{missing[0]}'")
    else:
        files = [path for path in map(root.joinpath, find_files(root, ['.json'])) if _is_coco(path)]
    if not files:
        raise UnknownLayoutError(
            f"'{root}' holds no annotation file in COCO's format, a .json with {', '.join(_LISTS)}: --annotations FILE"
        )
    if unreadable := [path for path in files if not _is_coco(path)]:
        raise UserError(f"'{unreadable[0]}' is not in COCO's format: a .json with the lists {', '.join(_LISTS)}")
    if given and len(given) in (2, 3):
        return dict(zip(('train', 'val', 'test'), files, strict=False))
    if len(files) == 1:
        return {'train': files[0]}
    by_split: dict[str | None, list[Path]] = defaultdict(list)
    for path in files:
        below = path.parent.name if path.parent != root else ''  # the data set's own name says nothing of a split
        by_split[split_of(path.stem.lower()) or split_of(below)].append(path)
    found: dict[str, Path] = {}
    for split in ('train', 'val', 'test'):
        # COCO has keypoints and captions beside the instances.
        parts = [path for path in by_split[split] if path.stem.startswith('instances')] or by_split[split]
        found |= {f'{split}/{number}' if number else split: path for number, path in enumerate(parts)}
    if 'train' not in found or by_split[None]:
        names = ', '.join(str(path.relative_to(root)) for path in files)
        raise UserError(f'which of {names} is for training and which for validation? --annotations TRAIN VAL [TEST]')
    return found


def _is_coco(path: Path) -> bool:
    text = path.read_bytes().decode('utf-8-sig', errors='replace')
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if any(f'"{name}"' in text for name in _LISTS):
            raise UserError(f"the annotation file '{path}' is damaged ({error}): copy or export it again") from error
        return False
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in _LISTS)


def _find_pictures(
    data: DataSet, file: Path, images: list[dict[str, Any]], pictures: dict[str, str], given: str | None
) -> None:
    """Set every ``file_name`` to the picture's path below the root, ``''`` where there is none."""
    if not images:
        raise UserError(f"'{file}' lists no image")
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in pictures:
        by_name[Path(path).name].append(path)
    here = file.parent.relative_to(data.root).as_posix() if data.root in file.parents else '.'
    split = split_of(file.stem.lower()) or split_of(here)
    mended, before = [], images[0].get('file_name')
    tied: list[str] = []
    agreed: dict[int, int] = {}  # how many parts of its path a picture's has at the end
    for image in images:
        written = str(image.get('file_name', ''))
        name = written.replace('\\', '/')
        name = re.sub(r'^[A-Za-z]:', '', name)
        parts = [part for part in name.split('/') if part not in ('', '.', '..')]
        folders = [given.strip('/')] if given else [here, *({} if here == '.' else {'.': 0})]
        direct = ['/'.join([*([] if folder == '.' else [folder]), *parts]) for folder in folders]
        if name in pictures:  # below the root already
            direct = [name]
        candidates = by_name.get(parts[-1] if parts else '', [])
        if given:
            candidates = [path for path in candidates if given == '.' or path.startswith(f'{given.strip("/")}/')]

        # The candidate that agrees longest with the end of the path, then the one of the file's own split.
        def rank(path: str, parts: list[str] = parts) -> tuple[int, bool]:
            return -_common_end(path, parts), split_of(str(Path(path).parent)) != split

        best = sorted(candidates, key=rank)
        exact = next((path for path in direct if path in pictures), '')
        image['file_name'] = exact or (best[0] if best else '')
        if not exact and len(best) > 1 and rank(best[0]) == rank(best[1]):
            tied.append(f'{best[0]} or {best[1]}')
        agreed[id(image)] = len(parts) if exact else -rank(best[0])[0] if best else 0
        image['written'] = written
        if image['file_name'] and (name.startswith('/') or name != written):
            mended.append(written)
    if tied:
        text = f'{len(tied)} images of {file.name} are in several folders: --images FOLDER names the right one'
        data.note('question', text, tied)
    _check_folders(data, file, images, agreed)
    if not any(image['file_name'] for image in images):
        where = f"'{data.root / given}'" if given else f"any folder of '{data.root}'"
        raise UserError(f"the image '{before}' of '{file}' is not in {where}; name the folder with --images")
    if mended:
        data.note(
            'decision', f'{len(mended)} paths of another machine in {file.name} are replaced by those here', mended
        )


def _check_folders(data: DataSet, file: Path, images: list[dict[str, Any]], agreed: dict[int, int]) -> None:
    """Ask where the folders that the annotations name are not those where the pictures were found.

    Raises:
        UserError: If a picture is listed twice.
    """
    owners: dict[str, dict[str, Any]] = {}
    for image in sorted(images, key=lambda image: -agreed[id(image)]):
        owner = owners.setdefault(image['file_name'], image)
        if image['file_name'] and owner is not image:
            if owner['written'] == image['written']:
                ids = f'{owner["id"]} and {image["id"]}'
                raise UserError(f"'{file}' lists '{image['written']}' twice, with the ids {ids}: join the two entries")
            image['file_name'] = ''  # it belongs to another, whose folders agree better
    written: dict[str, set[str]] = defaultdict(set)
    found: dict[str, set[str]] = defaultdict(set)
    for image in images:
        if image['file_name']:
            there, said = os.path.dirname(image['file_name']), os.path.dirname(image['written'].replace('\\', '/'))
            written[said].add(there)
            found[there].add(said)
    doubtful = []
    for image in images:
        there, said = os.path.dirname(image['file_name']), os.path.dirname(image['written'].replace('\\', '/'))
        if image['file_name'] and said and agreed[id(image)] == 1 and (len(written[said]) > 1 or len(found[there]) > 1):
            doubtful.append(f'{image["file_name"]} for {image["written"]}')
    if doubtful:
        text = f'{len(doubtful)} images of {file.name} are found in other folders than it names'
        data.note('question', f'{text}: --images FOLDER names the right one', doubtful)


def _common_end(path: str, parts: list[str]) -> int:
    count = 0
    for one, other in zip(reversed(path.split('/')), reversed(parts), strict=False):
        if one != other:
            break
        count += 1
    return count


def _check(
    data: DataSet, content: dict[str, Any], file: Path, pictures: dict[str, str], given: str | None
) -> dict[str, Any]:
    """The content without what cannot be trained on, with paths below the root and images numbered from 1."""
    images = [dict(image) for image in content['images']]
    if nameless := [image for image in images if image.get('id') is None]:
        raise UserError(f"an image of '{file}' has no id: {nameless[0]}")
    if doubled := [str(key) for key, count in Counter(image['id'] for image in images).items() if count > 1]:
        raise UserError(f"images share the id {doubled[0]} in '{file}': ids have to be unique")
    _find_pictures(data, file, images, pictures, given)
    data.leave_out('annotated images are not there', [i['written'] for i in images if not i['file_name']], len(images))
    present = [image for image in images if image['file_name']]
    headers = dict(zip(
        (image['id'] for image in present),
        map_files(lambda image: read_header(data.root / image['file_name']), present, 'Reading images'),
        strict=True,
    ))  # fmt: skip
    broken = {image['file_name']: error for image in present if (error := headers[image['id']].error)}
    data.leave_out(f'images cannot be read ({next(iter(broken.values()), "")})', list(broken), len(images))
    ask_depth(data, ((image['file_name'], headers[image['id']]) for image in present))
    present = _check_sizes(data, [image for image in present if not headers[image['id']].error], headers)
    data.sizes += [(image['width'], image['height']) for image in present]
    ids = {category['id']: category['name'] for category in content['categories']}
    kept = _check_objects(data, content['annotations'], present, {image['id'] for image in images}, ids)
    numbers = {image['id']: number for number, image in enumerate(present, start=1)}
    for image in present:
        image.pop('written')
    return dict(
        images=[{**image, 'id': numbers[image['id']]} for image in present],
        categories=content['categories'],
        annotations=[{**entry, 'image_id': numbers[entry['image_id']]} for entry in kept],
    )


def _check_sizes(data: DataSet, images: list[dict[str, Any]], headers: dict[int, Header]) -> list[dict[str, Any]]:
    stored, upright = [], []
    good: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    if unsized := [image for image in images if not (image.get('width') and image.get('height'))]:
        data.note('decision', f'{len(unsized)} images without a size in their annotations have that of their files')
        for image in unsized:
            image['width'], image['height'] = headers[image['id']].upright
    for image in images:
        header, size = headers[image['id']], (image['width'], image['height'])
        if header.stored != header.upright and size == header.stored:
            stored.append(image['file_name'])
        if header.stored != header.upright and size == header.upright:
            upright.append(image['file_name'])
    if stored or upright:
        if len(stored) > len(upright) and data.details.get('turned'):
            # Those of the other files would be trained on unturned.
            raise UserError(
                f"the sizes in the annotations of '{stored[0]}' are those of the picture as stored, and those of "
                f"'{data.details['turned']}', in another file, those of the picture as EXIF turns it: make them equal"
            )
        data.ignore_orientation |= len(stored) > len(upright)
        if not data.ignore_orientation:
            data.details['turned'] = upright[0]
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
    data.leave_out('images differ in size from their annotations', [i['file_name'] for i in wrong], len(images))
    return good


def _check_objects(
    data: DataSet, objects: list[dict[str, Any]], images: list[dict[str, Any]], known: set[int], ids: dict[int, str]
) -> list[dict[str, Any]]:
    sizes = {image['id']: (image['width'], image['height'], image['file_name']) for image in images}
    problems: dict[str, list[str]] = defaultdict(list)
    kept, boxed, outlined = [], 0, 0
    shifted: list[str] = []
    seen = set()
    for entry in objects:
        owner = entry.get('image_id')
        if owner not in known:
            problems['objects belong to no image'].append(f'id {entry.get("id")}')
        elif owner in sizes:
            width, height, name = sizes[owner]
            outline = _outline(entry.get('segmentation'))
            around = _box_of(outline, width, height)
            box = _box(entry.get('bbox'), name) or around
            boxed += bool(box and not entry.get('bbox'))
            x, y, w, h = box or (0, 0, 0, 0)
            key = (owner, entry.get('category_id'), x, y, w, h)
            if entry.get('category_id') not in ids:
                problems['objects are of no listed category'].append(name)
            elif entry.get('ignore'):
                problems['objects are marked to be ignored'].append(name)
            elif not all(map(np.isfinite, (x, y, w, h))) or w < 1 or h < 1:
                problems['objects have an empty box'].append(name)
            elif min(x + w, width) - max(x, 0) < 1 or min(y + h, height) - max(y, 0) < 1:
                problems['objects have a box outside the image'].append(name)
            elif entry.get('segmentation') and not around:
                problems['objects have an outline of fewer than three corners, or of another size'].append(name)
            elif around and _apart(around, (x, y, w, h)):
                problems['objects have an outline beside their box'].append(name)
            elif key in seen:
                problems['objects are there twice'].append(name)
            else:
                seen.add(key)
                outlined += around is not None
                if around and np.abs(_corners(around) - _corners((x, y, w, h))).max() > 2 + 0.05 * max(w, h):
                    shifted.append(name)
                if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                    problems[_CUT].append(name)
                    left, top = max(x, 0), max(y, 0)
                    x, y, w, h = left, top, min(x + w, width) - left, min(y + h, height) - top
                # mmdet reads all three; exporters leave them out.
                more: dict[str, Any] = {'bbox': [x, y, w, h], 'iscrowd': int(bool(entry.get('iscrowd')))}
                more['area'] = float(entry.get('area') or w * h)
                kept.append({**entry, **more} | (dict(segmentation=outline) if outline else {}))
    if 2 * len(shifted) > outlined:
        text = f'{len(shifted)} of {outlined} boxes are not around their outlines: COCO has x, y, width, height'
        data.note('question', f'{text}; --yes trains on both as they are', dict.fromkeys(shifted))
    if boxed:
        data.note('decision', f'{boxed} objects without a box have that of their outlines')
    cut = problems.pop(_CUT, [])
    if len(cut) > max(1, 0.1 * len(kept)):
        text = f'{len(cut)} of {len(kept)} boxes reach out of their images: COCO has x, y, width, height, no corners'
        data.note('question', f'{text}; --yes cuts them off', dict.fromkeys(cut))
    elif cut:
        data.note('mistake', f'{len(cut)} {_CUT}', dict.fromkeys(cut))
    if twice := problems.pop('objects are there twice', []):  # nothing is lost
        data.note('mistake', f'{len(twice)} objects are there twice, and one of each is trained on', twice)
    for text, names in problems.items():
        data.leave_out(text, names, len(objects))
    with_objects = {entry['image_id'] for entry in kept}
    empty = [image['file_name'] for image in images if image['id'] not in with_objects]
    if empty:
        data.note('remark', f'{len(empty)} of {len(images)} images have no object; training leaves them out', empty)
    return kept


def _box(given: Any, name: str) -> list[float] | None:
    """``x, y, width, height`` as numbers.

    Raises:
        UserError: If it is something else.
    """
    if not given:
        return None
    try:
        x, y, w, h = map(float, given)
    except (TypeError, ValueError) as error:
        raise UserError(f"an object of '{name}' has the bbox {given!r}: COCO has [x, y, width, height]") from error
    return [x, y, w, h]


def _corners(box: Sequence[float]) -> npt.NDArray[np.float64]:
    x, y, w, h = box
    return np.array([x, y, x + w, y + h])


def _apart(one: Sequence[float], other: Sequence[float]) -> bool:
    first, second = _corners(one), _corners(other)
    return bool((np.minimum(first, second)[2:] <= np.maximum(first, second)[:2]).any())


def _outline(given: Any) -> Any:
    """A run-length code, or polygons of three corners and more as lists of numbers, however they are nested."""
    if isinstance(given, dict):
        return given
    parts = given if isinstance(given, list) and given and isinstance(given[0], list) else [given] if given else []
    flat = [np.asarray(part, float).ravel().tolist() for part in parts]
    return [part for part in flat if len(part) >= 6 and len(part) % 2 == 0]


def _box_of(outline: Any, width: int, height: int) -> list[float] | None:
    """The box around polygons or a run-length code, x, y, width, height; ``None`` if there is none of that size."""
    if not outline or (isinstance(outline, dict) and list(outline.get('size', ())) != [height, width]):
        return None
    if isinstance(outline, list):
        points = np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in outline])
        low, high = points.min(0), points.max(0)
        return [*low.tolist(), *(high - low).tolist()]
    from pycocotools import mask

    code = mask.frPyObjects(outline, height, width) if isinstance(outline.get('counts'), list) else outline
    return mask.toBbox(code).tolist()


def _count(data: DataSet, clean: dict[str, Any], ids: dict[int, str]) -> None:
    counts = {
        split: Counter(ids[entry['category_id']] for entry in content['annotations'])
        for split, content in clean.items()
    }
    data.counts = [sum(count[name] for count in counts.values()) for name in data.classes]
    for split, count in counts.items():
        if absent := [name for name in data.classes if not count[name]]:
            data.note('remark', f'{len(absent)} of {len(data.classes)} categories have no {split} object', absent)
