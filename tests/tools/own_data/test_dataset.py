"""What the readers of all tasks share: headers, lists of a split, copies, and what is held out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import DataSet
from own_data.dataset import (
    Header,
    ask_depth,
    ask_twins,
    complete_splits,
    find_copies,
    find_images,
    make_palette,
    original_of,
    read_header,
    read_text,
    same_files,
    say_drawn,
    split_by_lists,
    split_names,
    split_of,
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
    (save('>u2', 40000), '.tif', Header(5, 3, peak=40000)),  # type: ignore[arg-type]
    (save(np.uint8, 200), '.tif', Header(5, 3)),
    (save(np.int32, 70000), '.tif', 'training reads pictures of 8 bits, and it has 32: convert them'),
    (save(np.float32, 1), '.tif', 'training reads pictures of 8 bits, and it has 32: convert them'),
    (lambda path: image(path, (5, 3)), '.jpg', Header(5, 3)),  # less than an eighth of it has no pixel
])  # fmt: skip
def test_kinds_of_pictures(make: Callable[[Path], None], end: str, expected: Header | str, tmp_path: Path) -> None:
    make(tmp_path / f'a{end}')
    header = read_header(tmp_path / f'a{end}')
    assert header.error.removeprefix('ValueError: ') == expected if isinstance(expected, str) else header == expected


@pytest.mark.parametrize('number', range(10))
def test_orientations_are_those_of_exif(number: int, tmp_path: Path) -> None:
    image(tmp_path / 'a.jpg', (5, 3), number)
    assert read_header(tmp_path / 'a.jpg') == Header(5, 3, number if 1 <= number <= 8 else 1)


@pytest.mark.parametrize(('peaks', 'kind', 'text'), [
    ((0, 0), '', ''),
    ((0, 4095), 'question', '1 pictures have 16 bits, .* is 4095, read as 15 of 255; convert'),
    ((100, 2**15 - 1), 'question', '2 pictures have 16 bits, .* is 32767, read as 127 of 255; convert'),
    ((2**15, 100), 'decision', '2 pictures have 16 bits, .* is 32768, read as 128 of 255$'),
])  # fmt: skip
def test_sixteen_bits_are_asked_for_where_half_of_them_are_dark(peaks: tuple[int, ...], kind: str, text: str) -> None:
    data = empty()
    ask_depth(data, ((f'{index}.png', Header(peak=peak)) for index, peak in enumerate(peaks)))
    assert [note.kind for note in data.notes] == ([kind] if kind else [])
    for note in data.notes:
        assert re.match(text, note.text)
        assert note.files == tuple(f'{index}.png' for index, peak in enumerate(peaks) if peak)


@pytest.mark.parametrize(('left_out', 'total', 'kind'), [
    (0, 5, ''), (1, 2, 'mistake'), (2, 20, 'mistake'), (2, 19, 'question'), (3, 29, 'question'), (3, 30, 'mistake'),
])  # fmt: skip
def test_more_than_a_tenth_is_left_out_with_a_question(left_out: int, total: int, kind: str) -> None:
    data = empty()
    data.leave_out('pictures are grey', [f'{index}.jpg' for index in range(left_out)], total)
    assert [note.kind for note in data.notes] == ([kind] if kind else [])


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16-le', 'utf-16-be', 'latin-1'])
def test_encodings_of_texts(encoding: str, tmp_path: Path) -> None:
    mark = '\ufeff' if encoding.startswith('utf-16') else ''
    (tmp_path / 'a.txt').write_bytes(f'{mark}Straße\n'.encode(encoding))
    if encoding == 'latin-1':
        with pytest.raises(UserError, match='no text in UTF-8: save it'):
            read_text(tmp_path / 'a.txt')
    else:
        assert read_text(tmp_path / 'a.txt') == 'Straße\n'


def test_files_are_found_once(tmp_path: Path) -> None:
    """Links that lead out are followed; what is hidden, or behind a link to what is here, is not read."""
    here, there = tmp_path / 'data', tmp_path / 'elsewhere'
    for path in ('a.jpg', '.b.jpg', '.c/d.jpg', '__MACOSX/e.jpg', 'f/g.jpg', 'folder.jpg/h.png'):
        image(here / path)
    image(there / 'i.jpg')
    links = {'again': there, 'out': there, 'inside': here / 'f', 'itself': here, 'j.jpg': there / 'i.jpg'}
    for name, target in {**links, 'gone.jpg': there / 'gone.jpg', '.k': tmp_path}.items():
        (here / name).symlink_to(target)
    assert find_images(here) == ['a.jpg', 'again/i.jpg', 'f/g.jpg', 'folder.jpg/h.png', 'j.jpg']


SPLITS = {
    'train': 'train training train2017 trn trainset Train images/TRAIN/city train_images labels-train train/test_tube '
    'train_station test_2/train_data x_train.v2 labels_train/val_old test/train',
    'val': 'val valid validation val2017 dev valset Valid img/val2017/x val_images train_data/images/val '
    'val/train_station val.data',
    'test': 'test testing test2017 tst testset TEST/a test_set train/test train_set/test_set test/valid_7',
    '': 'trainval trainee contest testament/x value devil a/b 2017 validate . x',
}


@pytest.mark.parametrize('split', SPLITS)
def test_splits_that_folders_say(split: str) -> None:
    """Of several the one that says nothing else, then the deepest."""
    for path in SPLITS[split].split():
        assert (split_of(path) or '') == split, path


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
    **{
        f'in {folder}': (
            {f'{folder}/train': 'a/0\n\na/1\n', f'{folder}/Val': 'b/0\n'},
            dict(train='a/0 a/1', val='b/0'),
        )
        for folder in ('ImageSets/Segmentation', 'ImageSets/Main', 'splits', 'lists', 'annotations')
    },
    **{
        f'called {name}': ({name: 'a/0\na/1\nb/0\n', 'VALID': 'a/1\n'}, dict(train='a/0 b/0', val='a/1'))
        for name in ('trainval', 'train_val', 'Train+Val')
    },
    'joined above others': (
        {'trainval': 'a/0\na/1', 'ImageSets/Main/train': 'b/0', 'ImageSets/Main/val': 'b/1'},
        dict(train='a/0 a/1'),
    ),
    'of two tasks': (
        {'ImageSets/Main/train': 'a/0', 'ImageSets/Segmentation/train': 'b/0', 'ImageSets/Segmentation/val': 'b/1'},
        dict(train='b/0', val='b/1'),
    ),
    'of other letters': (dict(train='a/0.JPG\nc:\\set\\a\\1.Png', val='b/0'), dict(train='a/0 a/1', val='b/0')),
    'two of one split': (dict(train='a/0', training='a/1', val='b/0'), dict(train='a/0', val='b/0')),
    'joined, without a validation': (dict(trainval='a/0\na/1\nb/0', test='a/1'), dict(train='a/0 b/0', test='a/1')),
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
    assert 'lines of the lists name no picture' not in notes(data)
    unused = len(PICTURES) - sum(len(part.split()) for part in shown.values()) if expected else 0
    assert (f'{unused} pictures are in no list' in notes(data, 'remark')) is (unused > 0)


@pytest.mark.parametrize(('count', 'share', 'held_out'), [(3, 0.01, 1), (3, 0.99, 2), (2, 0.2, 1), (10, 0.25, 2)])
def test_neither_part_is_empty(count: int, share: float, held_out: int) -> None:
    drawn = split_names([f'{index}.jpg' for index in range(count)], share)
    assert [len(drawn[split]) for split in ('train', 'val')] == [count - held_out, held_out]


@pytest.mark.parametrize('share', [0.05, 0.2, 0.25, 0.33, 0.5, 0.9])
def test_the_share_is_that_of_the_pictures_and_not_of_their_copies(share: float) -> None:
    for count in range(2, 30):
        names = [f'{index}.rf.{copy * 16}.jpg' for index in range(count) for copy in 'ab'[: 1 + index % 2]]
        drawn = split_names(names, share)
        assert sorted(drawn['train'] + drawn['val']) == sorted(names)
        parts = [{original_of(name) for name in drawn[split]} for split in ('train', 'val')]
        assert not parts[0] & parts[1]
        assert len(parts[1]) == min(max(1, round(share * count)), count - 1)


# Names to train and to validate on, and those that are of a trained series.
SERIES: dict[str, tuple[str, str, str]] = {
    'clips': ('clip1_0020 clip2_0001', 'clip1_0019', 'clip1_0019'),
    'clips in folders': ('clip1/0020 clip2/0001', 'clip1/0019', 'clip1/0019'),
    'other clips': ('clip1_01 clip1_02', 'clip2_01 clip3_01', ''),
    'half of them': ('clip1_01 clip1_02', 'clip1_03 clip2_01', ''),
    'more than half': ('clip1_01 clip1_02', 'clip1_03 clip1_04 clip2_01', 'clip1_03 clip1_04'),
    'copies': ('7 9_x', '7_flip', '7_flip'),
    'copies behind a hyphen': ('7 9-x', '7-flip', '7-flip'),
    'pictures of copies': ('7_flip 9', '7', '7'),
    'copies of frames': ('clip1_01 clip2_01', 'clip1_02 clip1_02_flip', 'clip1_02 clip1_02_flip'),
    'copies whose picture is away': ('7_turned', '7_flip', ''),
    'numbers alone': ('1 2 3', '4', ''),
    'one beginning': ('img_1 img_2', 'img_3', ''),
}


@pytest.mark.parametrize(('train', 'val', 'shared'), SERIES.values(), ids=SERIES)
def test_series_of_which_a_part_is_trained(train: str, val: str, shared: str) -> None:
    data, splits = (
        empty(),
        {split: [f'{n}.jpg' for n in names.split()] for split, names in dict(train=train, val=val).items()},
    )
    say_drawn(data, splits)
    told = [file for note in data.notes if 'of a series of names' in note.text for file in note.files]
    assert told == [f'{name}.jpg' for name in shared.split()]


def test_what_all_names_of_a_class_begin_with_is_no_series() -> None:
    splits = dict(train=['cat/a1_1.jpg', 'cat/a1_2.jpg', 'dog/b1_1.jpg'], val=['cat/a1_3.jpg'])
    for task, told in dict(det=True, cls=False).items():
        data = empty(task=task)
        say_drawn(data, splits)
        assert ('of a series of names' in notes(data)) is told


# A file beside 0.jpg to 3.jpg and test_4.jpg, and whether it looks like a list of a split that is not read.
UNREAD = {
    'test_list.csv': ('0.jpg,3\n1.jpg,2\n', True),
    'my_val.lst': ('0\n1\n', True),
    'half/test_a.txt': ('0.jpg\nx.jpg\n', True),
    'less/test_a.txt': ('0.jpg\nx.jpg\ny.jpg\n', False),
    'train_list.txt': ('0.jpg\n', False),
    'test_4.txt': ('0 0.5 0.5 0.1 0.1\n', False),
    'empty_test.txt': ('', False),
    'test_long.txt': ('0.jpg\n' * 20 + 'x\n' * 99, True),
}


@pytest.mark.parametrize('file', UNREAD)
def test_lists_that_are_not_read_are_asked_for(file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(UNREAD[file][0])
    data = empty(tmp_path)
    say_drawn(data, dict(train=['0.jpg', '1.jpg', 'test_4.jpg'], val=['2.jpg', '3.jpg']))
    assert [note.files for note in data.questions] == ([(file,)] if UNREAD[file][1] else [])


@pytest.mark.parametrize(('begun', 'asked'), [
    ('train_1 test_1 x', 'train_1 test_1'), ('train_1 train_2 x', ''), ('a/val-1 a/train-2', 'a/val-1 a/train-2'),
])  # fmt: skip
def test_names_that_begin_with_splits_are_asked_for(begun: str, asked: str) -> None:
    data = empty()
    say_drawn(data, dict(train=[f'{name}.jpg' for name in begun.split()], val=['y.jpg']))
    assert [list(note.files) for note in data.questions] == [[f'{n}.jpg' for n in asked.split()]] * bool(asked)


def test_equal_files_are_equal_to_their_ends(tmp_path: Path) -> None:
    for name, end in dict(a=1, b=2, c=1, d=2, e=3).items():
        (tmp_path / name).write_bytes(bytes(5000) + bytes([end]))
    (tmp_path / 'f').write_bytes(bytes(5000))
    assert same_files(tmp_path, [*'abcdef', 'a']) == [['a', 'c'], ['b', 'd']]


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
