"""Annotations in COCO's format: where files lie, and what is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import read_detection
from PIL import Image

from mmpelk.errors import UserError
from tests.paths import sample_data
from tests.tools.own_data.pictures import image, notes

Content = dict[str, Any]


def content(count: int = 5) -> Content:
    """Pictures of 48x32 with two boxes each."""
    boxes = [[2, 3, 10, 12], [20, 5, 16, 20]]
    return dict(
        images=[dict(id=10 + index, file_name=f'{index}.jpg', width=48, height=32) for index in range(count)],
        categories=[dict(id=3, name='cat'), dict(id=7, name='dog')],
        annotations=[
            dict(id=index, image_id=10 + index // 2, category_id=(3, 7)[index % 2], bbox=boxes[index % 2])
            for index in range(2 * count)
        ],
    )


def write(root: Path, data: Content, file: str = 'labels.json', folder: str = 'images') -> Path:
    for entry in data['images']:
        image(root / folder / Path(entry['file_name']).name)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(data))
    return root


def test_coco_sample() -> None:
    data = read_detection(sample_data('coco_sample'))
    assert {split: len(names) for split, names in data.splits.items()} == {'train': 21, 'val': 7}
    assert sum(data.counts) == 159
    assert dict(zip(data.classes, data.counts, strict=True))['person'] == 54
    assert data.details['masks']
    assert data.details['folders'] == {'train': 'train2017', 'val': 'val2017'}
    assert not notes(data, 'mistake')


@pytest.mark.parametrize(
    ('files', 'folders'),
    [
        (('annotations/instances_train.json', 'annotations/instances_val.json'), ('train', 'val')),
        (('train/_annotations.coco.json', 'valid/_annotations.coco.json'), ('train', 'valid')),
        (('train.json', 'val.json'), ('images/train', 'images/val')),
    ],
    ids=['coco', 'roboflow', 'flat'],
)
def test_layouts_with_splits(files: tuple[str, str], folders: tuple[str, str], tmp_path: Path) -> None:
    for file, folder, count in zip(files, folders, (4, 2), strict=True):
        write(tmp_path, content(count), file, folder)
    data = read_detection(tmp_path)
    assert {split: len(names) for split, names in data.splits.items()} == {'train': 4, 'val': 2}
    assert list(data.details['folders'].values()) == list(folders)
    assert not data.details['masks']


def test_one_file_is_split_and_nothing_lost(tmp_path: Path) -> None:
    data = read_detection(write(tmp_path, content()))
    assert {split: len(names) for split, names in data.splits.items()} == {'train': 4, 'val': 1}
    assert sum(len(part['annotations']) for part in data.details['contents'].values()) == 10
    assert data.splits == read_detection(tmp_path).splits


def alter(**changes: Any) -> Callable[[Content], None]:
    return lambda data: data['annotations'][0].update(changes)


# What is done to the content, what is said, and how many objects are left.
SPOILT: dict[str, tuple[Callable[[Content], Any], str, int]] = {
    'outside': (alter(bbox=[60, 3, 10, 12]), '1 objects have a box outside the image', 9),
    'reaching out': (alter(bbox=[40, 3, 20, 12]), 'reaches out of the image; it is cut off', 10),
    'empty box': (alter(bbox=[2, 3, 0, 12]), '1 objects have an empty box', 9),
    'no box': (alter(bbox=[]), '1 objects have an empty box', 9),
    'category': (alter(category_id=99), '1 objects are of no listed category', 9),
    'image': (alter(image_id=99), '1 objects belong to no image', 9),
    'missing file': (
        lambda d: d['images'].append(dict(id=1, file_name='x/none.jpg', width=4, height=4)),
        'are not there',
        10,
    ),
    'size': (lambda d: d['images'][0].update(width=60), 'differ in size from their annotations', 8),
    'no object': (lambda d: d['annotations'].__delitem__(slice(2)), '1 of 5 images have no object', 8),
    'some outlines': (alter(segmentation=[[2, 3, 12, 3, 12, 15]]), '9 of 10 objects have no outline', 10),
}


@pytest.mark.parametrize(('spoil', 'said', 'left'), SPOILT.values(), ids=SPOILT)
def test_mistakes_are_told(spoil: Callable[[Content], Any], said: str, left: int, tmp_path: Path) -> None:
    wrong = content()
    spoil(wrong)
    write(tmp_path, wrong)
    (tmp_path / 'images' / 'none.jpg').unlink(missing_ok=True)
    data = read_detection(tmp_path)
    assert said in notes(data)
    kept = [entry for part in data.details['contents'].values() for entry in part['annotations']]
    assert len(kept) == left
    assert all(entry['area'] > 0 and entry['iscrowd'] == 0 for entry in kept)
    corners = np.array([entry['bbox'] for entry in kept])
    assert (corners[:, :2] + corners[:, 2:] <= [48, 32]).all()


def test_unlisted_pictures_are_told(tmp_path: Path) -> None:
    image(write(tmp_path, content()) / 'images' / 'new.jpg')
    assert "1 pictures of 'images' are in no annotation file (new.jpg)" in notes(read_detection(tmp_path))


@pytest.mark.parametrize(('size', 'ignored'), [((48, 32), True), ((32, 48), False)])
def test_exif_orientation(size: tuple[int, int], ignored: bool, tmp_path: Path) -> None:
    turned = content()
    turned['images'][0].update(width=size[0], height=size[1])
    image(write(tmp_path, turned) / 'images' / '0.jpg', orientation=6)
    data = read_detection(tmp_path)
    assert data.ignore_orientation is ignored
    assert 'the rotation in the EXIF data of 1 images' in notes(data, 'decision')
    assert sum(len(names) for names in data.splits.values()) == 5


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='holds no annotation file'):
        read_detection(tmp_path)
    (tmp_path / 'x.json').write_text('{}')
    with pytest.raises(UserError, match="is not in COCO's format"):
        read_detection(tmp_path, ['x.json'])
    doubled = content()
    doubled['images'][1]['id'] = doubled['images'][0]['id']
    with pytest.raises(UserError, match='images share the id 10'):
        read_detection(write(tmp_path, doubled))
    nowhere = content()
    for entry in nowhere['images']:
        entry['file_name'] = f'gone_{entry["file_name"]}'
    (tmp_path / 'labels.json').write_text(json.dumps(nowhere))
    with pytest.raises(UserError, match='name the folder with --images'):
        read_detection(tmp_path)
    write(tmp_path, content(), 'other.json')
    with pytest.raises(UserError, match='--annotations TRAIN VAL'):
        read_detection(tmp_path)
    renamed = content()
    renamed['categories'][0]['name'] = 'cow'
    write(tmp_path, content())
    (tmp_path / 'other.json').write_text(json.dumps(renamed))
    with pytest.raises(UserError, match='other categories'):
        read_detection(tmp_path, ['labels.json', 'other.json'])


def test_upright_pictures_are_not_touched(tmp_path: Path) -> None:
    data = read_detection(write(tmp_path, content()))
    assert set(data.sizes) == {(48, 32)}
    assert Image.open(tmp_path / 'images' / '0.jpg').size == (48, 32)
