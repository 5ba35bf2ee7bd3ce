"""A folder of pictures for every class: splits, and what is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_data import read_classification

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


# Pictures of folders, and how many each split has.
LAYOUTS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    'splits': (dict(train__cat=4, train__dog=3, val__cat=2, val__dog=1), dict(train=7, val=3)),
    'splits below the classes': (dict(cat__train=4, cat__val=2, dog__train=3, dog__val=1), dict(train=7, val=3)),
    'wrapped splits': (dict(a__train__cat=3, a__train__dog=2, a__val__cat=2), dict(train=5, val=2)),
    'with a test': (dict(train__cat=3, train__dog=3, valid__cat=2, valid__dog=2, test__cat=2, test__dog=2),
        dict(train=6, val=4, test=4)),
    'no validation': (dict(train__cat=3, train__dog=3, test__cat=2, test__dog=2), dict(train=4, val=2, test=4)),
    'a flat test': (dict(train__cat=5, train__dog=5, test=3), dict(train=8, val=2)),
}  # fmt: skip


@pytest.mark.parametrize(('counts', 'expected'), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.usefixtures('all_that_is_read')
def test_layouts(counts: dict[str, int], expected: dict[str, int], tmp_path: Path) -> None:
    """Nothing is chosen on the test split."""
    data = read_classification(write(tmp_path, **counts))
    assert (data.classes, names(data)) == (['cat', 'dog'], expected)
    assert all(name.startswith('test') for name in data.splits.get('test', []))
    assert not any(name.startswith('test') for name in data.splits['train'] + data.splits['val'])
    assert not data.questions
    assert 'test' not in counts or '3 pictures of the test split have no class' in notes(data, 'remark')


def test_pictures_beside_the_splits_of_their_class_are_told(tmp_path: Path) -> None:
    data = read_classification(write(tmp_path, cat__train=4, cat__val=2, dog__train=3, dog__val=1, dog=1))
    assert (names(data), data.counts) == (dict(train=7, val=3), [6, 4])
    assert '1 pictures of a class are in no folder of a split and are left out (dog/0.jpg)' in notes(data, 'mistake')


def test_classes_called_like_splits(tmp_path: Path) -> None:
    """A folder ``train_station`` is a class."""
    assert read_classification(write(tmp_path, train_station=3, test_tube=3)).classes == ['test_tube', 'train_station']


@pytest.mark.usefixtures('all_that_is_read')
def test_lists_beside_the_folders(tmp_path: Path) -> None:
    write(tmp_path, cat=5, dog=5)
    (tmp_path / 'test.txt').write_text('cat/0.jpg\ndog/4.jpg\nfish/0.jpg\n')
    data = read_classification(tmp_path)
    assert data.splits['test'] == ['cat/0.jpg', 'dog/4.jpg']
    assert names(data) == {'train': 6, 'val': 2, 'test': 2}
    assert 'what is in none is trained on' in notes(data, 'decision')
    assert '1 lines of the lists name no picture that is here' in notes(data, 'mistake')
    (tmp_path / 'val.txt').write_text('cat/0.jpg\ndog/3.jpg\n')
    data = read_classification(tmp_path)
    assert names(data) == {'train': 7, 'val': 1, 'test': 2}
    assert '1 pictures are in several lists' in notes(data, 'question')
    (tmp_path / 'test.txt').unlink()
    (tmp_path / 'train.txt').write_text('cat/1.jpg 0\ncat/2.jpg 0\ndog/0.jpg 1\n')
    (tmp_path / 'val.txt').write_text('cat/0.jpg 0\ndog/2.jpg 1\n')
    data = read_classification(tmp_path)
    assert data.splits == {'train': ['cat/1.jpg', 'cat/2.jpg', 'dog/0.jpg'], 'val': ['cat/0.jpg', 'dog/2.jpg']}


@pytest.mark.usefixtures('all_that_is_read')
def test_mistakes_are_told(tmp_path: Path) -> None:
    write(tmp_path, cat=30, dog=2)
    for copy in 'ab':
        image(tmp_path / 'bird' / f'0_jpg.rf.{copy * 32}.jpg')
    (tmp_path / 'fish').mkdir()
    image(tmp_path / 'loose.jpg')
    (tmp_path / 'cat' / '0.jpg').write_text('no picture')
    data = read_classification(tmp_path)
    told = notes(data, 'mistake')
    for said in ('1 pictures are in no folder of a class', '1 folders hold no picture and are no classes (fish)',
                 '1 pictures cannot be read', '1 classes have a single picture'):  # fmt: skip
        assert said in told
    assert 'the largest class has 29 pictures, the smallest 2' in notes(data, 'remark')
    assert '1 of 3 classes have no val picture (bird)' in notes(data, 'remark')


@pytest.mark.parametrize(('counts', 'asked'), [
    (dict(seg_train__sea=3, seg_test__sea=2), '2 classes are called like a split'),
    (dict(fold1__sea=3, fold2__sea=2), '5 pictures are in folders below that of their class'),
    (dict(cat=3, unlabeled=2), '1 folders are called like no class'),
    (dict(Cat=3, cat=2), '2 classes differ in capital letters or blanks alone'),
    (dict(train__cat=3, train__dog=3, extra__cat=3), '3 pictures are in folders beside those of the splits'),
])  # fmt: skip
@pytest.mark.usefixtures('all_that_is_read')
def test_folders_that_may_be_no_classes_are_a_question(counts: dict[str, int], asked: str, tmp_path: Path) -> None:
    data = read_classification(write(tmp_path, **counts))
    assert asked in notes(data, 'question')
    if 'beside' not in asked:
        assert not read_classification(tmp_path, classes=','.join(data.classes)).questions


def unread(root: Path) -> None:
    for index in range(3):
        (root / 'cat' / f'{index}.jpg').rename(root / 'cat' / f'{index}.jfif')


@pytest.mark.parametrize(('counts', 'spoil', 'kind', 'said'), [
    (dict(train__cat=3, train__dog=3, val__cat=1, val__dog=1),
        lambda root: shutil.copy(root / 'train/cat/2.jpg', root / 'val/dog/new_name.jpg'),
        'mistake', 'are copies of pictures to train on'),
    (dict(cat=5, dog=5), lambda root: shutil.copy(root / 'cat/2.jpg', root / 'dog/new_name.jpg'),
        'question', 'of several classes'),
    (dict(cat=4, dog=4), unread,
        'question', '3 pictures are of kinds that are not read (.jfif; convert them to .jpg or .png)'),
])  # fmt: skip
@pytest.mark.usefixtures('all_that_is_read')
def test_pictures_that_are_spoilt(
    counts: dict[str, int], spoil: Callable[[Path], Any], kind: str, said: str, tmp_path: Path
) -> None:
    assert said not in notes(read_classification(write(tmp_path, **counts)))
    spoil(tmp_path)
    assert said in notes(read_classification(tmp_path), kind)


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='at least two classes'):
        read_classification(write(tmp_path, cat=3))


@pytest.mark.usefixtures('all_that_is_read')
def test_augmented_copies_stay_with_their_picture(tmp_path: Path) -> None:
    for label in ('cat', 'dog'):
        for index in range(12):
            image(tmp_path / label / f'{index // 3}_png.rf.{index:032x}.jpg')
    data = read_classification(tmp_path)
    assert '16 augmented copies with the pictures' in notes(data, 'decision')
    assert names(data) == {'train': 18, 'val': 6}
    (tmp_path / 'val.txt').write_text(data.splits['train'][0])
    said = '1 pictures to validate or test on are called like augmented copies'
    assert said in notes(read_classification(tmp_path), 'mistake')
