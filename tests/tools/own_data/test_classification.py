"""A folder of pictures for every class: splits, and what is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_data import UnknownLayoutError, read_classification

from mmpelk.errors import UserError
from tests.tools.own_data.pictures import image, names, notes


def write(root: Path, **counts: int) -> Path:
    for row, (label, count) in enumerate(counts.items()):
        for index in range(count):
            # Sizes differ, so that no picture is the copy of another.
            image(root / label.replace('__', '/') / f'{index}.jpg', (40 + index, 30 + row))
    return root


def test_split_is_drawn_from_every_class(tmp_path: Path) -> None:
    data = read_classification(write(tmp_path, cat=10, dog=5))
    assert (data.classes, data.counts) == (['cat', 'dog'], [10, 5])
    assert [sum(name.startswith(label) for name in data.splits['val']) for label in data.classes] == [2, 1]
    assert data.splits == read_classification(tmp_path).splits
    assert not notes(data, 'mistake')
    data = read_classification(tmp_path, classes='dog,cat')
    assert (data.classes, data.counts) == (['dog', 'cat'], [5, 10])
    assert {data.classes[index] for name, index in data.details['labels'].items() if 'cat/' in name} == {'cat'}


# Numbers of pictures by folder.
LAYOUTS = {
    'splits': dict(train__cat=4, train__dog=3, val__cat=2, val__dog=1),
    'splits below the classes': dict(cat__train=4, cat__val=2, dog__train=3, dog__val=1),
    'wrapped splits': dict(a__train__cat=3, a__train__dog=2, a__val__cat=2),
    'with a test': dict(train__cat=3, train__dog=3, valid__cat=2, valid__dog=2, test__cat=2, test__dog=2),
    'no validation': dict(train__cat=3, train__dog=3, test__cat=2, test__dog=2),
    'a flat test': dict(train__cat=5, train__dog=5, test=3),
    'capitals': dict(Train__cat=3, Train__dog=3, VAL__cat=2, Val_images__dog=2),
    'capitals below the classes': dict(cat__Training=3, cat__VALID=2, dog__Training=3, dog__Test=2),
    'folders below a split': dict(cat__train__x=2, cat__train=3, cat__val=1, dog__train=3, dog__val=1),
    'folders below classes': dict(cat__x=2, cat=1, dog__x__y=3, dog=2),
    'folders below classes of splits': dict(train__cat__x=2, train__dog=3, val__cat=2, val__dog__val=2),
    'no training': dict(val__cat=3, val__dog=3, test__cat=2, test__dog=2),
    'wrapped twice': dict(a__b__cat=3, a__b__dog=3),
    'wrapped by a split': dict(train__a__x=3, train__b__x=3),
    'loose in splits and beside': dict(
        train__cat=30, train__dog=30, train=2, val__cat=2, val__dog=2, other__cat=1, val=1
    ),
}


@pytest.mark.parametrize('counts', LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.usefixtures('all_that_is_read')
def test_layouts(counts: dict[str, int], tmp_path: Path) -> None:
    """Nothing is chosen on the test split."""
    read_classification(write(tmp_path, **counts))


def test_pictures_beside_the_splits_of_their_class_are_told(tmp_path: Path) -> None:
    data = read_classification(write(tmp_path, cat__train=4, cat__val=2, dog__train=3, dog__val=1, dog=1))
    assert (names(data), data.counts) == (dict(train=7, val=3), [6, 4])
    assert '1 pictures of a class are in no folder of a split and are left out (dog/0.jpg)' in notes(data, 'mistake')


def test_folders_of_splits_come_before_lists(tmp_path: Path) -> None:
    write(tmp_path, train__cat=3, train__dog=3, val__cat=1, val__dog=2)
    (tmp_path / 'val.txt').write_text('train/cat/0.jpg\ntrain/dog/0.jpg\n')
    assert names(read_classification(tmp_path)) == {'train': 6, 'val': 3}


@pytest.mark.parametrize(('folder', 'split'), [
    ('trainset', True), ('Training_images', True), ('val', True), ('VALID', True), ('validation', True), ('dev', True),
    ('test-data', True), ('testing', True), ('train_station', False), ('test_tube', False), ('a_val', False),
    ('val_2', False),
])  # fmt: skip
def test_splits_below_the_classes(folder: str, split: bool, tmp_path: Path) -> None:
    data = read_classification(write(tmp_path, **{f'{label}__{folder}': 3 for label in ('cat', 'dog')}, cat__train=3))
    assert ('are in folders below that of their class' in notes(data, 'question')) is not split


def test_empty_classes_of_a_split_are_told(tmp_path: Path) -> None:
    write(tmp_path, train__cat=3, train__dog=3, val__cat=1, val__dog=1)
    for folder in ('train/fish', 'train/.cache', 'other', 'val/cow'):
        (tmp_path / folder).mkdir()
    assert '2 folders hold no picture and are no classes (cow, fish)' in notes(read_classification(tmp_path), 'mistake')


def test_classes_called_like_splits(tmp_path: Path) -> None:
    """A folder ``train_station`` is a class."""
    assert read_classification(write(tmp_path, train_station=3, test_tube=3)).classes == ['test_tube', 'train_station']


@pytest.mark.usefixtures('all_that_is_read')
def test_lists_beside_the_folders(tmp_path: Path) -> None:
    write(tmp_path, cat=5, dog=5)
    (tmp_path / 'test.txt').write_text('cat/0.jpg\ndog/4.jpg\nfish/0.jpg\n')
    read_classification(tmp_path)
    (tmp_path / 'val.txt').write_text('cat/0.jpg\ndog/3.jpg\n')
    read_classification(tmp_path)
    (tmp_path / 'test.txt').unlink()
    (tmp_path / 'train.txt').write_text('cat/1.jpg 0\ncat/2.jpg 0\ndog/0.jpg 1\n')
    (tmp_path / 'val.txt').write_text('cat/0.jpg 0\ndog/2.jpg 1\n')
    read_classification(tmp_path)


@pytest.mark.usefixtures('all_that_is_read')
def test_mistakes_are_told(tmp_path: Path) -> None:
    write(tmp_path, cat=30, dog=2)
    for copy in 'ab':
        image(tmp_path / 'bird' / f'0_jpg.rf.{copy * 32}.jpg')
    (tmp_path / 'fish').mkdir()
    (tmp_path / '.git').mkdir()
    image(tmp_path / 'loose.jpg')
    (tmp_path / 'cat' / '0.jpg').write_text('no picture')
    read_classification(tmp_path)


@pytest.mark.parametrize('counts', [
    dict(seg_train__sea=3, seg_test__sea=2),
    dict(fold1__sea=3, fold2__sea=2),
    dict(cat=3, unlabeled=2),
    dict(Cat=3, cat=2),
    dict(train__cat=3, train__dog=3, extra__cat=3),
], ids=str)  # fmt: skip
@pytest.mark.usefixtures('all_that_is_read')
def test_folders_that_may_be_no_classes_are_a_question(counts: dict[str, int], tmp_path: Path) -> None:
    """And with the classes that were found as answer none, but for pictures beside those of the splits."""
    data = read_classification(write(tmp_path, **counts))
    read_classification(tmp_path, classes=','.join(data.classes))


def unread(root: Path) -> None:
    for index in range(3):
        (root / 'cat' / f'{index}.jpg').rename(root / 'cat' / f'{index}.jfif')
    for suffix in ('avif', 'GIF', 'heic', 'jp2', 'dcm', 'exr', 'heif', 'jpe', 'jxl', 'pgm', 'pnm', 'tga'):
        (root / 'dog' / f'of another kind.{suffix}').touch()


SPOILT: dict[str, tuple[dict[str, int], Callable[[Path], Any]]] = {
    'copies to validate on': (
        dict(train__cat=3, train__dog=3, val__cat=1, val__dog=1),
        lambda root: shutil.copy(root / 'train/cat/2.jpg', root / 'val/dog/new_name.jpg'),
    ),
    'of several classes': (
        dict(cat=5, dog=5),
        lambda root: shutil.copy(root / 'cat/2.jpg', root / 'dog/new_name.jpg'),
    ),
    'not read': (dict(cat=4, dog=4), unread),
}


@pytest.mark.parametrize(('counts', 'spoil'), SPOILT.values(), ids=SPOILT)
@pytest.mark.usefixtures('all_that_is_read')
def test_pictures_that_are_spoilt(counts: dict[str, int], spoil: Callable[[Path], Any], tmp_path: Path) -> None:
    read_classification(write(tmp_path, **counts))
    spoil(tmp_path)
    read_classification(tmp_path)


def test_pictures_are_read_to_their_end_and_have_the_size_that_is_shown(tmp_path: Path) -> None:
    write(tmp_path, cat=4, dog=4)
    content = (tmp_path / 'cat' / '0.jpg').read_bytes()
    (tmp_path / 'cat' / '0.jpg').write_bytes(content[: len(content) // 2])
    image(tmp_path / 'dog' / '0.jpg', (50, 20), orientation=6)
    data = read_classification(tmp_path)
    assert 'pictures cannot be read' in notes(data)
    assert data.counts == [3, 4]
    assert (20, 50) in data.sizes
    assert (50, 20) not in data.sizes


@pytest.mark.parametrize('folder', ['JPEGImages', 'Images', 'annotations', 'MASKS'])
def test_folders_of_other_layouts_are_no_classes(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownLayoutError, match=f'the folders {folder} of .* are no classes'):
        read_classification(write(tmp_path, cat=2, **{folder: 2}))


def test_names_that_are_none_whatever_their_letters(tmp_path: Path) -> None:
    data = read_classification(write(tmp_path, cat=3, Unsorted=3, unlabelled_cat=3))
    assert '1 folders are called like no class' in notes(data, 'question')
    assert '(Unsorted)' in notes(data, 'question')


def test_one_class_is_refused(tmp_path: Path) -> None:
    """Also one with folders below it, as there is a picture beside them."""
    for folders in (dict(cat=3), dict(cat__a=2, cat__b=2)):
        with pytest.raises(UserError, match=r"at least two classes, found \['cat'\]"):
            read_classification(write(tmp_path, **folders))


@pytest.mark.parametrize(('most', 'told'), [(20, False), (21, True)])
def test_a_class_ten_times_as_large_is_told(most: int, told: bool, tmp_path: Path) -> None:
    data = read_classification(write(tmp_path, cat=most, dog=2))
    assert ('the largest class has 21 pictures, the smallest 2: ' in notes(data, 'remark')) is told
    assert ('(dog)' in notes(data, 'remark')) is told


@pytest.mark.usefixtures('all_that_is_read')
def test_augmented_copies_stay_with_their_picture(tmp_path: Path) -> None:
    for label in ('cat', 'dog'):
        for index in range(12):
            image(tmp_path / label / f'{index // 3}_png.rf.{index:032x}.jpg')
    data = read_classification(tmp_path)
    (tmp_path / 'val.txt').write_text(data.splits['train'][0])
    read_classification(tmp_path)
