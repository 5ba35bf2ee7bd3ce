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
    assert {name.split('/')[0] for name in data.splits['val']} == {'val2017'}
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
    assert [str(Path(names[0]).parent) for names in data.splits.values()] == list(folders)
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
    'ignored': (alter(ignore=1), '1 objects are marked to be ignored', 9),
    'twice': (lambda d: d['annotations'].append(dict(d['annotations'][0], id=99)), '1 objects are there twice', 10),
    'two corners': (alter(segmentation=[[2, 3, 12, 15]]), '1 objects have an outline of fewer than three corners', 9),
    'odd outline': (alter(segmentation=[[2, 3, 12, 3, 12, 15, 4]]), 'an outline of fewer than three corners', 9),
    'code of another size': (
        alter(segmentation=dict(size=[48, 32], counts=[100, 20, 1416])),
        'or of another size and are left out',
        9,
    ),
    'outline elsewhere': (alter(segmentation=[[30, 20, 40, 20, 40, 30]]), '1 objects have an outline beside their', 9),
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


def test_nothing_is_chosen_on_the_test_split(tmp_path: Path) -> None:
    for split, count in (('train', 4), ('valid', 2), ('test', 3)):
        write(tmp_path, content(count), f'{split}/_annotations.coco.json', split)
    data = read_detection(tmp_path)
    assert {split: {name.split('/')[0] for name in names} for split, names in data.splits.items()} == {
        'train': {'train'},
        'val': {'valid'},
        'test': {'test'},
    }
    (tmp_path / 'valid/_annotations.coco.json').unlink()
    data = read_detection(tmp_path)
    assert {split: len(names) for split, names in data.splits.items()} == {'train': 3, 'val': 1, 'test': 3}


def test_lists_split_one_file(tmp_path: Path) -> None:
    write(tmp_path, content())
    (tmp_path / 'train.txt').write_text('0\n4\n')
    (tmp_path / 'val.txt').write_text('1.jpg\n2.jpg\n')
    data = read_detection(tmp_path)
    assert data.splits == {'train': ['images/0.jpg', 'images/4.jpg'], 'val': ['images/1.jpg', 'images/2.jpg']}


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
        names = {image['id']: image['file_name'] for image in part['images']}
        assert len(names) == len(part['images'])
        for entry in part['annotations']:
            assert names[entry['image_id']] in data.splits['train'] + data.splits['val']


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


def test_equal_names_in_two_folders(tmp_path: Path) -> None:
    for split in ('train', 'val'):
        write(tmp_path, content(3), f'annotations/instances_{split}.json', f'images/{split}')
    data = read_detection(tmp_path)
    assert data.splits['train'] == [f'images/train/{index}.jpg' for index in range(3)]
    assert data.splits['val'] == [f'images/val/{index}.jpg' for index in range(3)]


def test_sizes_and_boxes_are_completed(tmp_path: Path) -> None:
    bare = content()
    outline = [[2, 3, 12, 3, 12, 15, 2, 15]]
    for entry in bare['images']:
        del entry['width'], entry['height']
    for entry in bare['annotations']:
        del entry['bbox']
        entry['segmentation'] = outline
    data = read_detection(write(tmp_path, bare))
    assert set(data.sizes) == {(48, 32)}
    kept = [entry for part in data.details['contents'].values() for entry in part['annotations']]
    assert [entry['bbox'] for entry in kept] == [[2, 3, 10, 12]] * 10
    assert data.details['masks']
    assert '5 images without a size' in notes(data, 'decision')
    assert '10 objects without a box' in notes(data, 'decision')


def test_box_of_a_run_length_code(tmp_path: Path) -> None:
    coded = content()
    mask = np.zeros((32, 48), np.uint8)
    mask[3:15, 2:12] = 1
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.T.ravel(), 2])))
    for entry in coded['annotations']:
        del entry['bbox']
        entry['segmentation'] = dict(size=[32, 48], counts=runs.tolist())
    data = read_detection(write(tmp_path, coded))
    kept = [entry for part in data.details['contents'].values() for entry in part['annotations']]
    assert {tuple(entry['bbox']) for entry in kept} == {(2, 3, 10, 12)}


def test_crowds_stay_crowds_and_areas_those_of_the_file(tmp_path: Path) -> None:
    crowded = content()
    crowded['annotations'][0] |= dict(iscrowd=1, area=77.5)  # of the outline, which fills no box
    data = read_detection(write(tmp_path, crowded))
    kept = [entry for part in data.details['contents'].values() for entry in part['annotations']]
    assert sum(entry['iscrowd'] for entry in kept) == 1
    assert {entry['area'] for entry in kept} == {77.5, 10 * 12, 16 * 20}


def test_corners_taken_for_sizes_are_a_question(tmp_path: Path) -> None:
    corners = content()
    for entry in corners['annotations']:
        entry['bbox'] = [20, 10, 44, 30]
    assert 'reach out of their images' in notes(read_detection(write(tmp_path, corners)), 'question')


def test_a_category_that_groups_the_others_is_no_class(tmp_path: Path) -> None:
    grouped = content()
    for entry in grouped['categories']:
        entry['supercategory'] = 'animals'
    grouped['categories'].insert(0, dict(id=0, name='animals', supercategory='none'))
    data = read_detection(write(tmp_path, grouped))
    assert data.classes == ['cat', 'dog']


def test_the_order_of_the_classes_is_the_users(tmp_path: Path) -> None:
    data = read_detection(write(tmp_path, content()), classes='dog,cat')
    assert data.classes == ['dog', 'cat']
    assert [entry['name'] for entry in data.details['contents']['train']['categories']] == ['dog', 'cat']
    with pytest.raises(UserError, match='give the same names'):
        read_detection(tmp_path, classes='dog,cow')


def test_unlisted_pictures_are_told(tmp_path: Path) -> None:
    image(write(tmp_path, content()) / 'images' / 'new.jpg')
    assert '1 pictures beside the others are in no annotation file (images/new.jpg)' in notes(read_detection(tmp_path))


@pytest.mark.parametrize(('size', 'ignored'), [((48, 32), True), ((32, 48), False)])
def test_exif_orientation(size: tuple[int, int], ignored: bool, tmp_path: Path) -> None:
    turned = content()
    turned['images'][0].update(width=size[0], height=size[1])
    image(write(tmp_path, turned) / 'images' / '0.jpg', orientation=6)
    data = read_detection(tmp_path)
    assert data.ignore_orientation is ignored
    assert 'the rotation in the EXIF data of 1 images' in notes(data, 'decision')
    assert sum(len(names) for names in data.splits.values()) == 5


def test_folders_of_the_pictures_split_one_file(tmp_path: Path) -> None:
    data = content()
    for index, entry in enumerate(data['images']):
        split = ('train', 'train', 'val', 'test', 'train')[index]
        image(tmp_path / 'pictures' / split / entry['file_name'], (entry['width'], entry['height']))
    (tmp_path / 'labels.json').write_text(json.dumps(data))
    found = read_detection(tmp_path).splits
    assert {split: {name.split('/')[-2] for name in names} for split, names in found.items()} == {
        'train': {'train'}, 'val': {'val'}, 'test': {'test'}
    }  # fmt: skip


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


@pytest.mark.parametrize(('spoil', 'message'), [
    (alter(bbox=dict(x=1, y=2)), 'COCO has .x, y, width, height'),
    (alter(bbox=[1, 2, 3, 4, 0.5]), 'COCO has .x, y, width, height'),
    (lambda d: d['images'][0].pop('id'), 'an image of .* has no id'),
    (lambda d: d.update(categories=['cat', 'dog']), 'has no id or no name'),
    (lambda d: d['categories'][0].update(name=None), 'has no id or no name'),
    (lambda d: [entry.update(iscrowd=1) for entry in d['annotations']], 'that is no crowd is left'),
    (lambda d: [entry.update(category_id='x') for entry in d['annotations']], 'on: .* no listed category'),
    (lambda d: [entry.update(width=99) for entry in d['images']], 'on: .* differ in size'),
])  # fmt: skip
def test_what_coco_does_not_mean_is_refused(spoil: Callable[[Content], Any], message: str, tmp_path: Path) -> None:
    wrong = content()
    spoil(wrong)
    with pytest.raises(UserError, match=message):
        read_detection(write(tmp_path, wrong))


@pytest.mark.parametrize(
    'nest', [lambda points: points.ravel(), lambda points: [points], lambda points: [points.ravel()]]
)
def test_outlines_however_they_are_nested(nest: Callable[[np.ndarray], Any], tmp_path: Path) -> None:
    """And a question where the boxes are corners or centres, as the outlines tell."""
    own = content()
    for entry in own['annotations']:
        x, y, w, h = entry['bbox']
        points = np.array([[x, y], [x + w, y], [x + w, y + h]], float)
        entry['segmentation'] = json.loads(json.dumps(nest(points), default=lambda array: array.tolist()))
    data = read_detection(write(tmp_path, own))
    assert data.details['masks']
    assert not data.questions
    for entry in own['annotations']:
        x, y, w, h = entry['bbox']
        entry['bbox'] = [x, y, x + w, y + h]
    assert 'boxes are not around their outlines' in notes(read_detection(write(tmp_path, own)), 'question')


def test_upright_pictures_are_not_touched(tmp_path: Path) -> None:
    data = read_detection(write(tmp_path, content()))
    assert set(data.sizes) == {(48, 32)}
    assert Image.open(tmp_path / 'images' / '0.jpg').size == (48, 32)


def test_a_picture_listed_twice_is_refused(tmp_path: Path) -> None:
    twice = content()
    twice['images'].append(dict(twice['images'][0], id=99))
    with pytest.raises(UserError, match=r"lists '0\.jpg' twice, with the ids 10 and 99"):
        read_detection(write(tmp_path, twice))


def test_pictures_of_another_folder_are_not_taken(tmp_path: Path) -> None:
    """Those of a second camera that are not there have the names of the first one's."""
    both = content(6)
    for index, entry in enumerate(both['images']):
        entry['file_name'] = f'cam{"AB"[index % 2]}/{index // 2}.jpg'
    data = read_detection(write(tmp_path, both, folder='camA'))
    assert '3 annotated images are not there' in notes(data, 'question')
    assert sum(map(len, data.splits.values())) == 3


def test_folders_that_disagree_and_names_in_two_folders_are_questions(tmp_path: Path) -> None:
    data = content()
    for entry in data['images']:
        entry['file_name'] = f'camB/{entry["file_name"]}'
    write(tmp_path / 'moved', data, folder='camB')
    (tmp_path / 'moved' / 'camA').mkdir()
    (tmp_path / 'moved' / 'camB' / '4.jpg').rename(tmp_path / 'moved' / 'camA' / '4.jpg')
    assert 'camA/4.jpg for camB/4.jpg' in notes(read_detection(tmp_path / 'moved'), 'question')
    for folder in ('a', 'b'):
        write(tmp_path / 'bare', content(), folder=folder)
    assert 'a/0.jpg or b/0.jpg' in notes(read_detection(tmp_path / 'bare'), 'question')
    assert not read_detection(tmp_path / 'bare', images='b').questions


def test_several_files_of_a_split_are_joined(tmp_path: Path) -> None:
    for name, count in (('site1/train', 3), ('site2/train', 4), ('site1/val', 2)):
        write(tmp_path, content(count), f'{name}/labels.json', name)
    data = read_detection(tmp_path)
    assert {split: len(names) for split, names in data.splits.items()} == {'train': 7, 'val': 2}
    assert sum(data.counts) == 18
    train = data.details['contents']['train']
    owners = {image['id']: image['file_name'] for image in train['images']}
    assert len({owners[entry['image_id']] for entry in train['annotations']}) == 7
    assert '2 annotation files are joined for the split train' in notes(data, 'decision')
    for part in data.details['contents'].values():
        numbers = {image['id'] for image in part['images']}
        assert {entry['image_id'] for entry in part['annotations']} == numbers


def test_a_picture_in_two_files_is_told(tmp_path: Path) -> None:
    write(tmp_path, content(), 'train.json')
    write(tmp_path, content(2), 'val.json')
    assert '2 pictures to train on are listed to validate' in notes(read_detection(tmp_path), 'question')
    write(tmp_path, content(), 'train_old.json')
    with pytest.raises(UserError, match='both for the split'):
        read_detection(tmp_path)


def test_a_damaged_annotation_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, content(), 'train.json')
    (tmp_path / 'val.json').write_text((tmp_path / 'train.json').read_text()[:-3])
    with pytest.raises(UserError, match=r"val\.json' is damaged"):
        read_detection(tmp_path)


def test_a_joined_list_is_the_training(tmp_path: Path) -> None:
    write(tmp_path, content(8))
    (tmp_path / 'trainval.txt').write_text('0\n1\n2\n3\n4\n5\n')  # 5 is tested on, too
    (tmp_path / 'test.txt').write_text('5\n6\n7\n')
    data = read_detection(tmp_path)
    assert {split: len(names) for split, names in data.splits.items()} == {'train': 4, 'val': 1, 'test': 3}
    assert sorted(Path(name).stem for name in data.splits['test']) == ['5', '6', '7']
    assert 'in several lists' not in notes(data)


def test_copies_between_the_splits_are_found(tmp_path: Path) -> None:
    for split, count in (('train', 3), ('valid', 2), ('test', 1)):  # every picture is the same noise
        write(tmp_path, content(count), f'{split}/labels.json', split)
    assert '3 pictures to validate or test on are copies' in notes(read_detection(tmp_path), 'mistake')
