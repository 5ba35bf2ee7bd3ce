"""A folder of pictures for every class: splits, and what is wrong."""

import shutil
from pathlib import Path

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
    assert data.classes == ['cat', 'dog']
    assert data.counts == [10, 5]
    assert [sum(name.startswith(label) for name in data.splits['val']) for label in data.classes] == [2, 1]
    assert data.splits == read_classification(tmp_path).splits
    assert not notes(data, 'mistake')


def test_split_of_the_folders(tmp_path: Path) -> None:
    data = read_classification(write(tmp_path, train__cat=4, train__dog=3, val__cat=2, val__dog=1))
    assert names(data) == {'train': 7, 'val': 3}
    assert data.classes == ['cat', 'dog']


def test_mistakes_are_told(tmp_path: Path) -> None:
    write(tmp_path, cat=30, dog=2, bird=1)
    (tmp_path / 'fish').mkdir()
    image(tmp_path / 'loose.jpg')
    (tmp_path / 'cat' / '0.jpg').write_text('no picture')
    data = read_classification(tmp_path)
    told = notes(data, 'mistake')
    for said in ('1 pictures are in no folder of a class', '1 folders hold no picture and are no classes (fish)',
                 '1 files cannot be read', '1 classes have a single picture'):  # fmt: skip
        assert said in told
    assert 'the largest class has 29 pictures, the smallest 1' in notes(data, 'remark')
    assert '1 of 3 classes have no val picture (bird)' in notes(data, 'remark')


def test_copies_between_the_splits_are_found(tmp_path: Path) -> None:
    write(tmp_path, train__cat=3, train__dog=3, val__cat=1, val__dog=1)
    shutil.copy(tmp_path / 'train' / 'cat' / '2.jpg', tmp_path / 'val' / 'dog' / 'new_name.jpg')
    assert 'are copies of pictures to train on' in notes(read_classification(tmp_path), 'mistake')


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='at least two classes'):
        read_classification(write(tmp_path, cat=3))
