"""What the readers of all tasks share: headers, lists of a split, copies, and what is held out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import DataSet
from own_data.dataset import (
    Header,
    ask_twins,
    complete_splits,
    find_copies,
    find_images,
    make_palette,
    original_of,
    read_header,
    split_by_lists,
    split_names,
    spread,
)
from PIL import Image

from mmpelk.errors import UserError
from tests.tools.own_data.pictures import image, notes


def empty(root: Path = Path(), **more: Any) -> DataSet:
    data = DataSet('det', root, [], [], {}, [], [], 'objects')
    vars(data).update(more)
    return data


def test_orientations_from_5_on_swap_the_sides() -> None:
    assert [Header(3, 2, orientation).upright for orientation in range(1, 9)] == 4 * [(3, 2)] + 4 * [(2, 3)]


def test_the_middle_size_is_that_by_area() -> None:
    assert empty(sizes=[(10, 100), (20, 20), (30, 20)]).median_size == (30, 20)


@pytest.mark.parametrize('tested', [False, True])
def test_a_part_to_validate_on_leaves_what_is_tested_whole(tested: bool) -> None:
    def content(names: str) -> dict[str, Any]:
        return dict(
            images=[dict(id=index, file_name=name) for index, name in enumerate(names)],
            annotations=[dict(id=index, image_id=index) for index in range(len(names))],
            categories=[dict(id=1, name='cat')],
        )

    parts = dict(train='xyz', val='abcd') | (dict(test='efg') if tested else {})
    data = empty(splits={split: list(names) for split, names in parts.items()})
    contents = {split: content(names) for split, names in parts.items()}
    data.details |= dict(contents=contents, folders={split: f'of/{split}' for split in parts})
    data.validate_on(['b', 'd'])
    wanted = dict(train='xyz', val='bd', test='efg' if tested else 'abcd')
    assert {split: ''.join(names) for split, names in data.splits.items()} == wanted
    for split, names in wanted.items():
        part = data.details['contents'][split]
        assert [entry['file_name'] for entry in part['images']] == list(names)
        assert [entry['image_id'] for entry in part['annotations']] == [entry['id'] for entry in part['images']]
        assert part['categories'] == [dict(id=1, name='cat')]
    assert data.details['folders']['test'] == ('of/test' if tested else 'of/val')


def save(kind: type, value: int) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(np.full((3, 5), value, kind)).save(path)


@pytest.mark.parametrize(('make', 'end', 'expected'), [
    (save(np.uint16, 40000), '.png', Header(5, 3, peak=40000)),
    (save(np.uint16, 40000), '.tif', Header(5, 3, peak=40000)),
    (save(np.uint8, 200), '.tif', Header(5, 3)),
    (save(np.int32, 70000), '.tif', 'training reads pictures of 8 bits, and it has 32: convert them'),
    (save(np.float32, 1), '.tif', 'training reads pictures of 8 bits, and it has 32: convert them'),
    (lambda path: image(path, (5, 3)), '.jpg', Header(5, 3)),  # less than an eighth of it has no pixel
])  # fmt: skip
def test_kinds_of_pictures(make: Callable[[Path], None], end: str, expected: Header | str, tmp_path: Path) -> None:
    make(tmp_path / f'a{end}')
    header = read_header(tmp_path / f'a{end}')
    assert header.error.removeprefix('ValueError: ') == expected if isinstance(expected, str) else header == expected


def test_suffixes_of_cameras_are_in_capitals(tmp_path: Path) -> None:
    for name in ('b/IMG_1.JPG', 'a.Png', 'a.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ['a.Png', 'b/IMG_1.JPG']


PICTURES = ['a/0.jpg', 'a/1.jpg', 'b/0.jpg', 'b/1.jpg', 'v1.2/7.jpg', 'v1.2/8.jpg']
# Lists beside them, and the samples of each split, or the error.
LISTS: dict[str, tuple[dict[str, str], dict[str, str] | str | None]] = {
    'none': ({}, None),
    'beginnings': (dict(train='./a/0.jpg\n./a/1', val='./b/0.jpg'), dict(train='a/0 a/1', val='b/0')),
    'of another machine': (dict(train='/me/b/0.jpg\nC:\\set\\a\\1.jpg', val='/b/1'), dict(train='a/1 b/0', val='b/1')),
    'dots': (dict(train='v1.2/7', val='8.jpg'), dict(train='v1.2/7', val='v1.2/8')),
    'a class behind': (dict(train='a/0.jpg 3\na/1.jpg 4', val='b/0.jpg 3'), dict(train='a/0 a/1', val='b/0')),
    'joined': (
        dict(trainval='a/0\na/1\nb/0\nb/1', val='a/1', test='b/1\n7'),
        dict(train='a/0 b/0', val='a/1', test='b/1 v1.2/7'),
    ),
    'what is left is trained on': (dict(test='a/0\na/1'), dict(train='b/0 b/1 v1.2/7 v1.2/8', test='a/0 a/1')),
    'in two': (dict(train='a/0\na/1', test='a/0'), dict(train='a/1', test='a/0')),
    'joined above others': (
        {'trainval': 'a/0\na/1', 'ImageSets/Main/train': 'b/0', 'ImageSets/Main/val': 'b/1'},
        dict(train='a/0 a/1'),
    ),
    'of two tasks': (
        {'ImageSets/Main/train': 'a/0', 'ImageSets/Segmentation/train': 'b/0', 'ImageSets/Segmentation/val': 'b/1'},
        dict(train='b/0', val='b/1'),
    ),
    'of other pictures': (dict(val='c/9\n'), "no line of the lists beside the pictures names one: 'val.txt: c/9'"),
}


@pytest.mark.parametrize(('lists', 'expected'), LISTS.values(), ids=LISTS)
def test_lists_of_a_split(lists: dict[str, str], expected: dict[str, str] | str | None, tmp_path: Path) -> None:
    for name, text in lists.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f'{name}.txt').write_text(text)
    data = empty(tmp_path)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            split_by_lists(data, tmp_path, PICTURES, lambda path: [path])
        return
    found = split_by_lists(data, tmp_path, PICTURES, lambda path: [path])
    shown = {split: ' '.join(path[:-4] for path in part) for split, part in (found or {}).items() if part}
    assert shown == (expected or {})
    assert (found is None) is (expected is None)
    unused = len(PICTURES) - sum(len(part.split()) for part in shown.values()) if expected else 0
    assert (f'{unused} pictures are in no list' in notes(data, 'remark')) is (unused > 0)


@pytest.mark.parametrize(('count', 'share', 'held_out'), [(3, 0.01, 1), (3, 0.99, 2), (2, 0.2, 1), (10, 0.25, 2)])
def test_neither_part_is_empty(count: int, share: float, held_out: int) -> None:
    drawn = split_names([f'{index}.jpg' for index in range(count)], share)
    assert [len(drawn[split]) for split in ('train', 'val')] == [count - held_out, held_out]


def test_only_what_is_missing_is_drawn() -> None:
    for given in (dict(train=[*'abcde'], val=[*'xy'], test=[]), dict(train=[*'abcde'], val=[], test=[*'xy'])):
        data, splits = empty(), {split: list(part) for split, part in given.items()}
        complete_splits(data, splits, 0.4, str)
        assert len(splits['val']) == 2
        assert sorted(splits['train'] + splits['val']) == sorted(given['train'] + given['val'])
        assert splits.get('test', []) == given['test']
        assert ('drawn at random' in notes(data)) is not given['val']
    with pytest.raises(UserError, match='has samples to validate on, and none to train on'):
        complete_splits(empty(), dict(train=[], val=['a'], test=[]), 0.2, str)
    left_out = empty()
    left_out.note('mistake', 'all are gone')
    with pytest.raises(UserError, match='can be trained on: mistake: all are gone'):
        complete_splits(left_out, dict(train=[], val=[], test=[]), 0.2, str)


def test_copies_matter_between_the_parts_alone(tmp_path: Path) -> None:
    for name, width in dict(a=9, b=9, c=10, d=10, e=11, f=11, g=12, h=12).items():
        image(tmp_path / f'{name}.jpg', (width, 8))
    for test in ({}, dict(test=['f.jpg'])):
        data = empty(
            tmp_path, splits=dict(train=['a.jpg', 'b.jpg', 'c.jpg', 'e.jpg'], val=['d.jpg', 'g.jpg', 'h.jpg'], **test)
        )
        find_copies(data, [name for part in data.splits.values() for name in part])
        (note,) = data.notes
        assert (note.kind, sorted(note.files)) == ('mistake', ['d.jpg', *test.get('test', [])])
    # By their names, whatever the folders of the splits.
    copy = 'x_jpg.rf.{}.jpg'
    data = empty(
        tmp_path, splits=dict(train=[f'train/images/{copy.format("aZ" * 8)}'], val=[f'valid/{copy.format("bY" * 8)}'])
    )
    find_copies(data, [])
    assert [list(note.files) for note in data.notes] == [data.splits['val']]
    assert original_of(data.splits['val'][0]) == 'valid/x_jpg.jpg'
    assert original_of('x.rf.short.jpg') == 'x.rf.short.jpg'


def test_classes_that_may_be_one() -> None:
    data = empty(classes=['cat', 'Cat ', 'dog', 'cats'])
    ask_twins(data)
    assert [list(note.files) for note in data.questions] == [['cat', 'Cat ']]


def test_new_colours_are_far_from_the_given_ones() -> None:
    given = make_palette(5)
    palette = np.array(make_palette(10, given), float)
    assert palette[:5].tolist() == [list(colour) for colour in given]
    between = np.linalg.norm(palette[:, None] - palette[None], axis=-1) + 1e3 * np.eye(10)
    assert between.min() > 60


def test_samples_of_the_whole() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 3) == [0, 1, 2]
