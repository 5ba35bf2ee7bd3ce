"""Annotations in COCO's format: where files lie, and what is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import DataSet, read_detection

from mmpelk.errors import UserError
from tests.paths import sample_data
from tests.tools.own_data.pictures import image, names, notes

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


def write(root: Path, data: Content | int = 5, file: str = 'labels.json', folder: str = 'images') -> Path:
    """An annotation file, and its pictures, or so many of them."""
    data = content(data) if isinstance(data, int) else data
    for entry in data['images']:
        image(root / folder / Path(entry['file_name']).name)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(data))
    return root


def kept(data: DataSet) -> list[dict[str, Any]]:
    """Its objects."""
    return [entry for part in data.details['contents'].values() for entry in part['annotations']]


def test_coco_sample() -> None:
    data = read_detection(sample_data('coco_sample'))
    assert names(data) == {'train': 21, 'val': 7}
    assert sum(data.counts) == 159
    assert dict(zip(data.classes, data.counts, strict=True))['person'] == 54
    assert data.details['masks']
    assert {name.split('/')[0] for name in data.splits['val']} == {'val2017'}
    assert not notes(data, 'mistake')


# Annotation files with folders and numbers of pictures.
LAYOUTS = {
    'coco': [(f'annotations/instances_{split}.json', split, n) for split, n in (('train', 4), ('val', 2))],
    'flat': [('train.json', 'images/train', 4), ('val.json', 'images/val', 2)],
    'roboflow': [(f'{split}/_annotations.coco.json', split, n) for split, n in dict(train=4, valid=2, test=3).items()],
    'no validation': [('train/a.json', 'train', 4), ('test/a.json', 'test', 3)],
    'one file': [('labels.json', 'images', 5)],
}


@pytest.mark.parametrize('files', LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.usefixtures('all_that_is_read')
def test_layouts(files: list[tuple[str, str, int]], tmp_path: Path) -> None:
    """Nothing is chosen on the test split, and nothing is lost; pictures may be called alike in two folders."""
    for file, folder, count in files:
        write(tmp_path, count, file, folder)
    for _ in range(2):  # the split is always the same
        read_detection(tmp_path)


def alter(**changes: Any) -> Callable[[Content], None]:
    return lambda data: data['annotations'][0].update(changes)


# What is done to the content.
SPOILT: dict[str, Callable[[Content], Any]] = {
    'outside': alter(bbox=[60, 3, 10, 12]),
    'reaching out': alter(bbox=[40, 3, 20, 12]),
    'one pixel in': alter(bbox=[47, 3, 10, 12]),
    'empty box': alter(bbox=[2, 3, 0, 12]),
    'no box': alter(bbox=[]),
    'category': alter(category_id=99),
    'image': alter(image_id=99),
    'missing file': lambda d: d['images'].append(dict(id=1, file_name='x/none.jpg', width=4, height=4)),
    'size': lambda d: d['images'][0].update(width=60),
    'no object': lambda d: d['annotations'].__delitem__(slice(2)),
    'ignored': alter(ignore=1),
    'twice': lambda d: d['annotations'].append(dict(d['annotations'][0], id=99)),
    'two corners': alter(segmentation=[[2, 3, 12, 15]]),
    'odd outline': alter(segmentation=[[2, 3, 12, 3, 12, 15, 4]]),
    'code of another size': alter(segmentation=dict(size=[48, 32], counts=[100, 20, 1416])),
    'outline elsewhere': alter(segmentation=[[30, 20, 40, 20, 40, 30]]),
    'absent category': lambda d: d['categories'].append(dict(id=9, name='cow')),
    'most outlines': lambda d: [
        entry.update(segmentation=[[2, 3, 12, 3, 12, 15]], bbox=[2, 3, 10, 12]) for entry in d['annotations'][1:]
    ],
    'some outlines': alter(segmentation=[[2, 3, 12, 3, 12, 15]]),
}


@pytest.mark.parametrize('spoil', SPOILT.values(), ids=SPOILT)
@pytest.mark.usefixtures('all_that_is_read')
def test_mistakes_are_told(spoil: Callable[[Content], Any], tmp_path: Path) -> None:
    wrong = content()
    spoil(wrong)
    write(tmp_path, wrong)
    (tmp_path / 'images' / 'none.jpg').unlink(missing_ok=True)
    read_detection(tmp_path)


# Lists beside one annotation file.
LISTS = {
    'two': dict(train='0\n4\n', val='1.jpg\n2.jpg\n'),
    'joined, one of it in the test': dict(trainval='0\n1\n2\n3\n4\n5\n', test='5\n6\n7\n'),
}


@pytest.mark.parametrize('lists', LISTS.values(), ids=LISTS)
@pytest.mark.usefixtures('all_that_is_read')
def test_lists_split_one_file(lists: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, 8)
    for name, text in lists.items():
        (tmp_path / f'{name}.txt').write_text(text)
    read_detection(tmp_path)


@pytest.mark.parametrize('more', [None, 'val.json'])
def test_lists_come_before_folders_and_files_of_splits_before_lists(more: str | None, tmp_path: Path) -> None:
    pictures = [f'i/{split}/{index}.jpg' for index, split in enumerate(('train', 'train', 'val', 'val', 'train'))]
    files = {'train.json': pictures[:3], 'val.json': pictures[3:]} if more else {'a.json': pictures}
    lay(tmp_path, files, ' '.join(pictures))
    (tmp_path / 'val.txt').write_text('0\n1\n')
    held_out = read_detection(tmp_path).splits['val']
    assert held_out == (pictures[3:] if more else pictures[:2])


@pytest.mark.usefixtures('all_that_is_read')
def test_folders_of_the_pictures_split_one_file(tmp_path: Path) -> None:
    for index, split in enumerate(('train', 'train', 'val', 'test', 'train')):
        image(tmp_path / 'pictures' / split / f'{index}.jpg')
    (tmp_path / 'labels.json').write_text(json.dumps(content()))
    read_detection(tmp_path)


@pytest.mark.parametrize('ids', [lambda index: index, lambda index: 7, lambda index: f'x{index}'],
                         ids=['from 0', 'repeated', 'words'])  # fmt: skip
def test_objects_are_numbered_anew(ids: Callable[[int], object], tmp_path: Path) -> None:
    """The id 0 means "no object" to COCO's evaluation, and equal ids mix pictures up."""
    numbered = content()
    for index, entry in enumerate(numbered['annotations']):
        entry['id'] = ids(index)
    data = read_detection(write(tmp_path, numbered))
    for part in data.details['contents'].values():
        assert [entry['id'] for entry in part['annotations']] == list(range(1, len(part['annotations']) + 1))
        files = {image['id']: image['file_name'] for image in part['images']}
        assert len(files) == len(part['images'])
        for entry in part['annotations']:
            assert files[entry['image_id']] in data.splits['train'] + data.splits['val']


PATHS = {
    'windows': lambda name: f'C:\\Users\\me\\images\\{name}',
    'backslashes': lambda name: f'images\\{name}',
    'absolute': lambda name: f'/home/me/set/images/{name}',
    'upwards': lambda name: f'../images/{name}',
}


@pytest.mark.parametrize('path', PATHS.values(), ids=PATHS)
def test_paths_of_other_machines(path: Callable[[str], str], tmp_path: Path) -> None:
    moved = content()
    write(tmp_path, moved, 'annotations/all.json')
    for entry in moved['images']:
        entry['file_name'] = path(entry['file_name'])
    (tmp_path / 'annotations/all.json').write_text(json.dumps(moved))
    data = read_detection(tmp_path)
    assert sorted(data.splits['train'] + data.splits['val']) == [f'images/{index}.jpg' for index in range(5)]
    assert 'paths of another machine' in notes(data, 'decision') or path('x').startswith('..')


@pytest.mark.usefixtures('all_that_is_read')
def test_sizes_and_boxes_are_completed(tmp_path: Path) -> None:
    """From the pictures, outlines and run-length codes."""
    bare, mask = content(), np.zeros((32, 48), np.uint8)
    mask[3:15, 2:12] = 1
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.T.ravel(), 2])))
    for entry in bare['images']:
        del entry['width'], entry['height']
    for index, entry in enumerate(bare['annotations']):
        del entry['bbox']
        code, outline = dict(size=[32, 48], counts=runs.tolist()), [[2, 3, 12, 3, 12, 15, 2, 15]]
        entry['segmentation'] = code if index % 2 else outline
    read_detection(write(tmp_path, bare))


@pytest.mark.usefixtures('all_that_is_read')
def test_crowds_stay_crowds_and_areas_those_of_the_file(tmp_path: Path) -> None:
    crowded = content()
    for entry, area in zip(crowded['annotations'], (77.5, 99.5, 0, None), strict=False):
        entry['area'] = area  # of the outline, which fills no box; some writers say none
    crowded['annotations'][0]['iscrowd'] = 1
    data = read_detection(write(tmp_path, crowded))
    assert sum(entry['iscrowd'] for entry in kept(data)) == 1
    assert {entry['area'] for entry in kept(data)} == {77.5, 99.5, 10 * 12, 16 * 20}
    assert {round(side * side, 6) for side in data.details['sides']} == {10 * 12, 16 * 20}, 'of what is no crowd'


@pytest.mark.usefixtures('all_that_is_read')
def test_classes_are_those_of_the_user_and_no_groups_of_others(tmp_path: Path) -> None:
    grouped = content()
    for entry in grouped['categories']:
        entry['supercategory'] = 'animals'
    grouped['categories'].insert(0, dict(id=0, name='animals', supercategory='none'))
    assert read_detection(write(tmp_path, grouped)).classes == ['cat', 'dog']
    data = read_detection(tmp_path, classes='dog,cat')
    assert data.classes == ['dog', 'cat']
    assert [entry['name'] for entry in data.details['contents']['train']['categories']] == ['dog', 'cat']
    with pytest.raises(UserError, match='give the same names'):
        read_detection(tmp_path, classes='dog,cow')


@pytest.mark.parametrize('size', [(48, 32), (32, 48)])
@pytest.mark.usefixtures('all_that_is_read')
def test_exif_orientation(size: tuple[int, int], tmp_path: Path) -> None:
    turned = content()
    turned['images'][0].update(width=size[0], height=size[1])
    image(write(tmp_path, turned) / 'images' / '0.jpg', orientation=6)
    read_detection(tmp_path)


@pytest.mark.parametrize(
    'nest', [lambda points: points.ravel(), lambda points: [points], lambda points: [points.ravel()]]
)
@pytest.mark.usefixtures('all_that_is_read')
def test_outlines_however_they_are_nested(nest: Callable[[np.ndarray], Any], tmp_path: Path) -> None:
    """And a question where the boxes are corners or centres, as the outlines tell."""
    own = content()
    for entry in own['annotations']:
        x, y, w, h = entry['bbox']
        points = np.array([[x, y], [x + w, y], [x + w, y + h]], float)
        entry['segmentation'] = json.loads(json.dumps(nest(points), default=lambda array: array.tolist()))
    read_detection(write(tmp_path, own))
    for entry in own['annotations']:
        x, y, w, h = entry['bbox']
        entry['bbox'] = [x, y, x + w, y + h]
    read_detection(write(tmp_path, own))


def corners_for_sizes(root: Path) -> None:
    corners = content()
    for entry in corners['annotations']:
        entry['bbox'] = [20, 10, 44, 30]
    write(root, corners)


def of_two_cameras(root: Path) -> None:
    """The pictures of the second, which are not there, have the names of the first one's."""
    both = content(6)
    for index, entry in enumerate(both['images']):
        entry['file_name'] = f'cam{"AB"[index % 2]}/{index // 2}.jpg'
    write(root, both, folder='camA')


def moved(root: Path) -> None:
    """A picture is in another folder than its annotation says."""
    data = content()
    for entry in data['images']:
        entry['file_name'] = f'camB/{entry["file_name"]}'
    write(root, data, folder='camB')
    (root / 'camA').mkdir()
    (root / 'camB' / '4.jpg').rename(root / 'camA' / '4.jpg')


# What there is.
TOLD: dict[str, Callable[[Path], Any]] = {
    'not listed': lambda r: image(write(r) / 'images' / 'new.jpg'),
    'corners': corners_for_sizes,
    'another camera': of_two_cameras,
    'moved': moved,
    'two folders': lambda r: [write(r, folder=folder) for folder in ('a/x', 'ab/x')],
    'in two files': lambda r: (write(r, 5, 'train.json'), write(r, 2, 'val.json')),
    # Every picture is the same noise.
    'copies': lambda r: [
        write(r, count, f'{split}/labels.json', split) for split, count in (('train', 3), ('valid', 2), ('test', 1))
    ],
}


@pytest.mark.parametrize('make', TOLD.values(), ids=TOLD)
@pytest.mark.usefixtures('all_that_is_read')
def test_what_is_told(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path)
    read_detection(tmp_path)
    if make is TOLD['two folders']:
        assert not read_detection(tmp_path, images='a').questions


@pytest.mark.usefixtures('all_that_is_read')
def test_several_files_of_a_split_are_joined(tmp_path: Path) -> None:
    for name, count in (('site1/train', 3), ('site2/train', 4), ('site1/val', 2)):
        write(tmp_path, count, f'{name}/labels.json', name)
    read_detection(tmp_path)


def test_converted_pictures_of_no_split_are_trained_on_and_asked_for(tmp_path: Path) -> None:
    for split, count in (('default', 2), ('train', 3), ('val', 1)):
        part = content(count)
        for entry in part['images']:
            entry['file_name'] = f'{split}/{entry["file_name"]}'
        write(tmp_path, part, f'{split}.json', split)
    files = {split: str(tmp_path / f'{split}.json') for split in ('default', 'train', 'val')}
    data = read_detection(tmp_path, converted=dict(files=files))
    assert names(data) == {'train': 5, 'val': 1}
    assert 'default/0.jpg, default/1.jpg' in notes(data, 'question')
    del files['train']
    data = read_detection(tmp_path, converted=dict(files=files))
    assert names(data) == {'train': 2, 'val': 1}
    assert 'default/' not in notes(data, 'question')


@pytest.mark.parametrize(('box', 'expected'), [
    ([-5, -4, 20, 20], [0, 0, 15, 16]), ([40, 20, 20, 20], [40, 20, 8, 12]), ([-9, -9, 99, 99], [0, 0, 48, 32]),
    # What is rounded, or begins to count at 1, is left as it is.
    ([-1, -1, 50, 34], [-1, -1, 50, 34]), ([2, 3, 1, 1], [2, 3, 1, 1]),
    ([2, 3, 0.9, 12], None), ([2, 3, 12, 0.9], None), ([47.5, 3, 10, 12], None), ([2, 31.5, 10, 12], None),
    ([-12, 3, 12, 12], None), ([2, -12, 12, 12], None), ([2, 3, -5, 12], None),
])  # fmt: skip
def test_boxes_at_the_border(box: list[float], expected: list[float] | None, tmp_path: Path) -> None:
    bordering = content()
    bordering['annotations'][0]['bbox'] = box
    found = [entry['bbox'] for entry in kept(read_detection(write(tmp_path, bordering)))]
    others = 4 * [[2, 3, 10, 12]] + 5 * [[20, 5, 16, 20]]
    assert sorted(found) == sorted(others + ([expected] if expected else []))


def test_only_crowds_have_outlines(tmp_path: Path) -> None:
    """As in COCO's own files: nothing is trained on them."""
    crowded = content()
    crowded['annotations'][0] |= dict(iscrowd=1, bbox=[2, 3, 30, 20], segmentation=[[2, 3, 32, 3, 32, 23, 2, 23]])
    data = read_detection(write(tmp_path, crowded))
    assert not data.details['masks']
    assert 'have no outline' not in notes(data)
    assert {round(side * side, 6) for side in data.details['sides']} == {10 * 12, 16 * 20}
    for entry in crowded['annotations'][1:]:
        x, y, w, h = entry['bbox']
        entry['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    del crowded['annotations'][0]['segmentation']
    assert read_detection(write(tmp_path, crowded)).details['masks']


def test_folders_of_a_test_alone_split_one_file(tmp_path: Path) -> None:
    for index in range(5):
        image(tmp_path / 'pictures' / ('test' if index < 2 else 'train') / f'{index}.jpg')
    (tmp_path / 'labels.json').write_text(json.dumps(content()))
    data = read_detection(tmp_path)
    assert names(data) == {'train': 2, 'val': 1, 'test': 2}
    assert {Path(name).parent.name for name in data.splits['test']} == {'test'}


def test_two_classes_may_have_one_box(tmp_path: Path) -> None:
    """And two objects of a class, in one picture, one corner or one size."""
    both = content()
    both['annotations'][1]['bbox'] = both['annotations'][0]['bbox']
    for box in ([3, 3, 10, 12], [2, 4, 10, 12], [2, 3, 11, 12], [2, 3, 10, 13]):
        both['annotations'].append(both['annotations'][0] | dict(id=99, bbox=box))
    data = read_detection(write(tmp_path, both))
    assert len(kept(data)) == 14
    assert 'are there twice' not in notes(data)


def test_pictures_and_objects_of_joined_files_belong_together(tmp_path: Path) -> None:
    """Of files of unequal lengths, one of which has pictures without an object; in folders whose names begin alike."""
    for name, count in (('site1/train', 4), ('site12/train', 2), ('site2/val', 3)):
        part = content(count)
        for entry in part['images']:
            entry['file_name'] = f'{name}/{entry["file_name"]}'
        if count == 3:
            del part['annotations'][2:]
        write(tmp_path, part, f'{name}.json', name)
    data = read_detection(tmp_path)
    for split, counts in dict(train=[2] * 6, val=[2, 0, 0]).items():
        part = data.details['contents'][split]
        of = [sum(entry['image_id'] == image['id'] for entry in part['annotations']) for image in part['images']]
        assert of == counts
    assert data.unlabelled == pytest.approx(2 / 9)
    assert data.details['folders'] == dict(train='', val='site2/val')
    assert data.counts == [7, 7]


def test_a_picture_belongs_to_the_entry_whose_folders_agree(tmp_path: Path) -> None:
    """In whatever order they are listed: the other's picture is not here."""
    cameras = content(4)
    for index, entry in enumerate(cameras['images']):
        entry['file_name'] = f'cam{"BA"[index % 2]}/{index // 2}.jpg'
    data = read_detection(write(tmp_path, cameras, folder='camA'))
    listed = [image for part in data.details['contents'].values() for image in part['images']]
    assert sorted(image['file_name'] for image in listed) == ['camA/0.jpg', 'camA/1.jpg']
    assert '2 annotated images are not there' in notes(data)
    assert 'camB/0.jpg' in notes(data)


def test_keypoints_beside_the_instances_are_not_read(tmp_path: Path) -> None:
    for split, count in dict(train=4, val=2).items():
        for kind in ('instances', 'person_keypoints'):
            write(tmp_path, count, f'annotations/{kind}_{split}2017.json', f'{split}2017')
    assert names(read_detection(tmp_path)) == {'train': 4, 'val': 2}


def test_three_files_are_given(tmp_path: Path) -> None:
    for file, count in dict(a=2, b=3, c=4).items():
        write(tmp_path, count, f'{file}.json', file)
    data = read_detection(tmp_path, ['c.json', 'a.json', 'b.json'])
    assert {split: len(chosen) for split, chosen in data.splits.items()} == {'train': 4, 'val': 2, 'test': 3}


def test_of_equal_names_the_picture_of_the_files_split_is_taken(tmp_path: Path) -> None:
    for split, count in dict(train=3, val=2).items():
        write(tmp_path, count, f'annotations/{split}.json', f'pictures/{split}')
    data = read_detection(tmp_path)
    assert {split: {str(Path(name).parent) for name in chosen} for split, chosen in data.splits.items()} == {
        split: {f'pictures/{split}'} for split in ('train', 'val')
    }
    assert 'are in several folders' not in notes(data)


def renamed(**entries: Any) -> Content:
    """Content whose first category, and all files, may be called otherwise."""
    data = content()
    data['categories'][0]['name'] = entries.get('category', 'cat')
    for entry in data['images']:
        entry['file_name'] = entries.get('prefix', '') + entry['file_name']
    return data


def lay(root: Path, files: dict[str, list[str]], pictures: str, turned: str = '') -> None:
    """Annotation files that name pictures, with a cat in each, and the pictures that there are."""
    for index, path in enumerate(pictures.split()):
        image(root / path, (48, 32 + index), 6 if path in turned.split() else None)
    for number, (file, listed) in enumerate(files.items()):
        sizes = [dict(width=48, height=32 + pictures.split().index(path)) if path in pictures.split() else {}
                 for path in listed]  # fmt: skip
        part = dict(
            images=[dict(id=index, file_name=name, **sizes[index]) for index, name in enumerate(listed)],
            categories=[dict(id=1, name='cat')],
            annotations=[
                dict(id=index, image_id=index, category_id=1, bbox=[2 + number, 3 + index, 10, 12])
                for index in range(len(listed))
            ],
        )
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(part), 'utf-8-sig')


# Files, which of them name which pictures; what there is; options; and the picture of every entry in the splits' order.
PLACES: dict[str, tuple[dict[str, list[str]], str, dict[str, Any], str]] = {
    'a drive': ({'a.json': ['c:\\x\\i\\0.jpg', 'D:/i/1.jpg']}, 'i/0.jpg i/1.jpg', {}, 'i/0.jpg i/1.jpg'),
    'below the root and beside the file': (
        {'x/a.json': ['i/0.jpg', 'i/1.jpg']},
        'i/0.jpg i/1.jpg x/i/0.jpg x/i/1.jpg',
        {},
        'i/0.jpg i/1.jpg',
    ),
    'below the root, from the file': (
        {'x/a.json': ['../i/0.jpg', '/i/1.jpg']},
        'a/i/0.jpg a/i/1.jpg i/0.jpg i/1.jpg',
        {},
        'i/0.jpg i/1.jpg',
    ),
    'beside the file alone': (
        {'x/a.json': ['0.jpg', '1.jpg']},
        'x/0.jpg x/1.jpg y/0.jpg y/1.jpg',
        {},
        'x/0.jpg x/1.jpg',
    ),
    'folders that agree longer': (
        {'a.json': ['q/b/c/0.jpg', 'q/b/c/1.jpg']},
        'a/c/0.jpg a/b/c/0.jpg c/1.jpg b/c/1.jpg',
        {},
        'a/b/c/0.jpg b/c/1.jpg',
    ),
    'the root is given': ({'a.json': ['0.jpg', '1.jpg']}, '0.jpg 1.jpg z/0.jpg', dict(images='.'), '0.jpg 1.jpg'),
    'the root is given, below it': ({'a.json': ['0.jpg', '1.jpg']}, 'y/0.jpg 1.jpg', dict(images='.'), 'y/0.jpg 1.jpg'),
    'a folder is given': (
        {'a.json': ['0.jpg', '1.jpg']},
        'a/0.jpg a/1.jpg ab/0.jpg ab/1.jpg',
        dict(images='ab/'),
        'ab/0.jpg ab/1.jpg',
    ),
    'the split of the file': (
        {'annotations/train.json': ['0.jpg', '1.jpg'], 'annotations/test.json': ['0.jpg']},
        'p/test/0.jpg p/train/0.jpg p/train/1.jpg',
        {},
        'p/train/0.jpg p/train/1.jpg p/test/0.jpg',
    ),
    'the split of the folder, not of the picture': (
        {'annotations/train.json': ['test_0.jpg', 'test_1.jpg']},
        'a/test_0.jpg b/train_x/test_0.jpg b/train_x/test_1.jpg',
        {},
        'b/train_x/test_0.jpg b/train_x/test_1.jpg',
    ),
    'the split of its folder': (
        {'train/a.json': ['0.jpg', '1.jpg'], 'val/a.json': ['0.jpg']},
        'p/train/0.jpg p/train/1.jpg p/val/0.jpg',
        {},
        'p/train/0.jpg p/train/1.jpg p/val/0.jpg',
    ),
    'the name of the file before that of its folder': (
        {'val/train.json': ['0.jpg', '1.jpg'], 'val/test.json': ['0.jpg']},
        'p/val/0.jpg p/train/0.jpg p/test/0.jpg p/val/1.jpg',
        {},
        'p/train/0.jpg p/val/1.jpg p/test/0.jpg',
    ),
    'three places': ({'a.json': ['0.jpg', '1.jpg']}, 'a/0.jpg b/0.jpg c/0.jpg c/1.jpg', {}, 'a/0.jpg c/1.jpg'),
    'listed to train and to test': (
        {'train.json': ['i/0.jpg', 'i/1.jpg', 'i/2.jpg'], 'test.json': ['i/1.jpg']},
        'i/0.jpg i/1.jpg i/2.jpg',
        {},
        'i/0.jpg i/1.jpg i/2.jpg i/1.jpg',
    ),
    'other folders than written': (
        {'a.json': ['x/0.jpg', 'x/1.jpg', 'y/2.jpg']},
        'i/0.jpg i/1.jpg i/2.jpg',
        {},
        'i/0.jpg i/1.jpg i/2.jpg',
    ),
    'one other folder than written': (
        {'a.json': ['x/0.jpg', 'x/1.jpg']},
        'i/0.jpg i/1.jpg',
        {},
        'i/0.jpg i/1.jpg',
    ),
    'names that begin with splits': (
        {'a.json': ['train_0.jpg', 'val_1.jpg', 'val_2.jpg']},
        'i/train_0.jpg i/val_1.jpg i/val_2.jpg',
        {},
        'i/train_0.jpg i/val_1.jpg i/val_2.jpg',
    ),
    'written folders whose end agrees': (
        {'a.json': ['x/i/0.jpg', 'y/i/1.jpg']},
        'i/0.jpg i/1.jpg',
        {},
        'i/0.jpg i/1.jpg',
    ),
}


@pytest.mark.parametrize(('files', 'pictures', 'options', 'expected'), PLACES.values(), ids=PLACES)
@pytest.mark.usefixtures('all_that_is_read')
def test_where_pictures_are(
    files: dict[str, list[str]], pictures: str, options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """Files may begin with the mark that Windows sets."""
    lay(tmp_path, files, pictures)
    data = read_detection(tmp_path, **options)
    contents = data.details['contents']
    found = [
        image['file_name'] for split in ('train', 'val', 'test') for image in contents.get(split, {}).get('images', ())
    ]
    assert sorted(found) == sorted(expected.split())


@pytest.mark.parametrize('stored', ['0', '0 1', '2', '0 2', ''])
@pytest.mark.usefixtures('all_that_is_read')
def test_rotations_of_several_files(stored: str, tmp_path: Path) -> None:
    """What the first file says is not forgotten; sizes that are not given are those of the turned pictures."""
    _write_turned(tmp_path, stored)
    read_detection(tmp_path)


def test_files_that_disagree_on_rotations_are_refused(tmp_path: Path) -> None:
    _write_turned(tmp_path, '2 3')
    with pytest.raises(UserError, match=r"'i/2.jpg' are those of the picture as stored, and those of 'i/0.jpg'"):
        read_detection(tmp_path)


def _write_turned(tmp_path: Path, stored: str) -> None:
    pictures = [f'i/{index}.jpg' for index in range(6)]
    lay(tmp_path, {'train.json': [*pictures[:2], 'i/4.jpg'], 'val.json': [*pictures[2:4], 'i/5.jpg']},
        ' '.join(pictures), ' '.join(pictures[:5]))  # fmt: skip
    for file, first in (('train.json', 0), ('val.json', 2)):
        part = json.loads((tmp_path / file).read_text('utf-8-sig'))
        for index, entry in enumerate(part['images'][:2], first):
            if str(index) not in stored:
                entry['width'], entry['height'] = entry['height'], entry['width']
        if file == 'train.json':
            del part['images'][2]['width']
        (tmp_path / file).write_text(json.dumps(part))


@pytest.mark.parametrize(('key', 'change'), [
    ('reach out', lambda entry: dict(bbox=[40, 3, 20, 12])),
    ('not around', lambda entry: dict(bbox=[3, 4, 22, 20], segmentation=[[4, 5, 14, 5, 14, 14]])),
])  # fmt: skip
@pytest.mark.parametrize(('some', 'of'), [(1, 1), (1, 2), (1, 3), (2, 3), (2, 4), (2, 20), (3, 20), (3, 30), (11, 20)])
def test_how_many_boxes_make_a_question(
    key: str, change: Callable[[dict[str, Any]], dict[str, Any]], some: int, of: int, tmp_path: Path
) -> None:
    boxes = content(max(of, 2))
    boxes['annotations'] = boxes['annotations'][::2][:of] if of > 1 else boxes['annotations'][:1]
    outline = [[2, 3, 12, 3, 12, 15, 2, 15]]
    for index, entry in enumerate(boxes['annotations']):
        entry |= dict(bbox=[2, 3, 10, 12], segmentation=outline) if key == 'not around' else dict(bbox=[2, 3, 10, 12])
        if index < some:
            entry |= change(entry)
    if of == 1:  # one to validate on
        boxes['annotations'].append(dict(id=99, image_id=11, category_id=7, bbox=[2, 3, 10, 12]))
        of = 2 if key == 'reach out' else 1
    data = read_detection(write(tmp_path, boxes))
    asked = some > max(1, 0.1 * of) if key == 'reach out' else 2 * some > of
    assert (key in notes(data, 'question')) is asked


@pytest.mark.parametrize(('gap', 'asked'), [(3.5, False), (4.5, True)])
@pytest.mark.parametrize('wide', [True, False])
def test_outlines_may_differ_by_a_twentieth_of_the_longer_side(
    gap: float, asked: bool, wide: bool, tmp_path: Path
) -> None:
    data = content()
    for entry in data['images']:
        entry['width'], entry['height'] = (48, 48)
    for entry in data['annotations']:
        corners = np.array([[4 + gap, 4], [44, 4], [44, 12]])
        entry['bbox'] = [4, 4, 40, 8] if wide else [4, 4, 8, 40]
        entry['segmentation'] = [(corners if wide else corners[:, ::-1]).ravel().tolist()]
    write(tmp_path, data)
    for entry in data['images']:
        image(tmp_path / 'images' / entry['file_name'], (48, 48))
    assert ('are not around their outlines' in notes(read_detection(tmp_path), 'question')) is asked


@pytest.mark.parametrize(('outline', 'apart'), [
    ([[2, 20, 12, 20, 12, 30]], True), ([[20, 3, 30, 3, 30, 15]], True), ([[2, 15, 12, 15, 12, 20]], True),
    ([[2, 14, 12, 14, 12, 20]], False), ([[11, 3, 20, 3, 20, 15]], False), ([[0, 0, 40, 0, 40, 30]], False),
    ([[2, 3, 12, 3], [2, 3, 12, 15, 2, 15]], False),
])  # fmt: skip
def test_outlines_beside_their_box_on_one_side(outline: list[list[float]], apart: bool, tmp_path: Path) -> None:
    beside = content()
    beside['annotations'][0]['segmentation'] = outline
    data = read_detection(write(tmp_path, beside))
    assert ('outline beside their box' in notes(data)) is apart
    assert len(kept(data)) == 10 - apart
    assert sum(len(entry.get('segmentation', ())) for entry in kept(data)) == (not apart)


def test_a_group_that_has_objects_is_a_class(tmp_path: Path) -> None:
    grouped = content()
    grouped['categories'][0]['supercategory'] = 'dog'
    assert read_detection(write(tmp_path / 'one', grouped)).classes == ['cat', 'dog']
    write(tmp_path / 'two', grouped, 'val.json', 'val')
    del grouped['annotations'][1::2]
    assert read_detection(write(tmp_path / 'two', grouped, 'train.json', 'train')).classes == ['cat', 'dog']


def test_pictures_of_an_archive_beside_those_of_the_folder(tmp_path: Path) -> None:
    """Their paths are absolute, and have no folder in common with the others."""
    part = content(4)
    write(tmp_path / 'data', part)
    write(tmp_path / 'out', content(2), folder='pictures')
    for index, entry in enumerate(part['images']):
        entry['file_name'] = (
            f'images/{index}.jpg' if index < 2 else str(tmp_path / 'out' / 'pictures' / f'{index - 2}.jpg')
        )
    files = {split: tmp_path / f'{split}.json' for split in ('train', 'val')}
    for path in files.values():
        path.write_text(json.dumps(part))
    data = read_detection(tmp_path / 'data', converted=dict(files={split: str(path) for split, path in files.items()}))
    assert data.details['folders'] == dict(train='', val='')
    assert data.splits['val'] == [entry['file_name'] for entry in part['images']]
    # Folders above the archive's say no split.
    (tmp_path / 'data' / 'images').rename(tmp_path / 'data' / 'val')
    above = (tmp_path / 'out').rename(tmp_path / 'train')
    for index, entry in enumerate(part['images']):
        entry['file_name'] = f'val/{index}.jpg' if index < 2 else str(above / 'pictures' / f'{index - 2}.jpg')
    files['train'].write_text(json.dumps(part))
    data = read_detection(tmp_path / 'data', converted=dict(files=dict(default=str(files['train']))))
    assert 'drawn at random' in notes(data, 'decision')


def test_twins_are_asked_for_unless_their_names_are_given(tmp_path: Path) -> None:
    write(tmp_path, renamed(category='Dog '))
    assert 'differ in capital letters' in notes(read_detection(tmp_path), 'question')
    assert 'differ in capital letters' not in notes(read_detection(tmp_path, classes='dog,Dog'), 'question')


# Files, and which of them are named.
REFUSED: dict[str, tuple[Callable[[Path], Any], list[str] | None]] = {
    'nothing': (lambda r: None, None),
    'another format': (lambda r: (r / 'x.json').write_text('{}'), ['x.json']),
    'damaged': (lambda r: (write(r, 5, 'train.json') / 'val.json').write_text('{"images": ['), None),
    'no pictures': (lambda r: (r / 'labels.json').write_text(json.dumps(renamed(prefix='gone_'))), None),
    'two without a split': (lambda r: (write(r), write(r, 5, 'other.json')), None),
    'one more without a split': (
        lambda r: [write(r, count, f'{name}.json') for name, count in dict(train=4, val=2, more=3).items()],
        None,
    ),
    'two of a split': (lambda r: [write(r, 5, f'{name}.json') for name in ('train', 'train_old', 'val')], None),
    'other numbers': (
        lambda r: (
            write(r),
            write(r, content() | dict(categories=[dict(id=7, name='cat'), dict(id=3, name='dog')]), 'x.json'),
        ),
        ['labels.json', 'x.json'],
    ),
    'other categories': (
        lambda r: (write(r), write(r, renamed(category='cow'), 'other.json')),
        ['labels.json', 'other.json'],
    ),
}


@pytest.mark.parametrize(('make', 'named'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused(
    make: Callable[[Path], Any], named: list[str] | None, tmp_path: Path, refuses: Any
) -> None:
    make(tmp_path)
    with refuses():
        read_detection(tmp_path, named)


WRONG: dict[str, Callable[[Content], Any]] = {
    'box of words': alter(bbox=dict(x=1, y=2)),
    'box of five': alter(bbox=[1, 2, 3, 4, 0.5]),
    'shared id': lambda d: d['images'][1].update(id=d['images'][0]['id']),
    'listed twice': lambda d: d['images'].append(dict(d['images'][0], id=99)),
    'no id': lambda d: d['images'][0].pop('id'),
    'categories of words': lambda d: d.update(categories=['cat', 'dog']),
    'no image': lambda d: d['images'].clear(),
    'no name': lambda d: d['categories'][0].update(name=None),
    'an empty name': lambda d: d['categories'][1].update(name=''),
    'crowds alone': lambda d: [entry.update(iscrowd=1) for entry in d['annotations']],
    'no category': lambda d: [entry.update(category_id='x') for entry in d['annotations']],
    'other sizes': lambda d: [entry.update(width=99) for entry in d['images']],
}


@pytest.mark.parametrize('spoil', WRONG.values(), ids=WRONG)
def test_content_that_cannot_work_is_refused(spoil: Callable[[Content], Any], tmp_path: Path, refuses: Any) -> None:
    wrong = content()
    spoil(wrong)
    with refuses():
        read_detection(write(tmp_path, wrong))
