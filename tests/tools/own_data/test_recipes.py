"""The text of a config: every name is data, and rates, lengths and batches are what they are meant to be."""

import string
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from own_data import DataSet
from own_data.dataset import make_palette, read_header, split_names, split_of
from own_data.recipes import literal

from mmpelk.errors import UserError
from tests.tools.own_data.pictures import image

# What mmengine replaces, Python ends a string by, or a shell and a template would take for theirs.
PIECES = [
    *('{{ fileDirname }}', '{{_base_.model}}', '{{$HOME:x}}', '{{', '}}', '{', "'", '"', "'''", '\\', '\\x7b', '\n'),
    *('$HOME', '%s', '%(x)s', '#', '\r\n', '\u2028', '\x00', 'é', '日本', '\U0001f600', ' ', '[red]'),
]
NAMES = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5), st.sampled_from(string.printable)), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(NAMES.map(''.join), max_size=4))
def test_every_name_is_data(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.py'
        text = f'names = [{", ".join(map(literal, names))}]\n'
        path.write_text(text, encoding='utf-8')
        assert Config.fromfile(path).names == names


def test_colours_are_told_apart() -> None:
    for count in (2, 20, 40, 150):
        palette = np.array(make_palette(count), float)
        assert palette.shape == (count, 3)
        assert np.linalg.norm(palette, axis=1).min() > 60  # none is black
        between = np.linalg.norm(palette[:, None] - palette[None], axis=-1) + 1e3 * np.eye(count)
        assert between.min() > (60 if count <= 40 else 30)
    kept = make_palette(3, [None, (1, 2, 3), None])
    assert kept[1] == (1, 2, 3)
    assert len(set(kept)) == 3


@pytest.mark.parametrize('orientation', range(10))
def test_orientations_that_swap_the_sides(orientation: int, tmp_path: Path) -> None:
    """EXIF's 5 to 8 turn by a quarter; it has no 0 and no 9."""
    image(tmp_path / 'a.jpg', (40, 30), orientation)
    assert read_header(tmp_path / 'a.jpg').upright == ((30, 40) if orientation in (5, 6, 7, 8) else (40, 30))


@pytest.mark.parametrize(
    ('lost', 'total', 'kinds'),
    [(0, 5, []), (1, 2, ['mistake']), (2, 20, ['mistake']), (2, 19, ['question']), (9, 10, ['question'])],
)
def test_more_than_a_tenth_left_out_is_a_question(lost: int, total: int, kinds: list[str]) -> None:
    data = DataSet('cls', Path(), [], [], {}, [], [], 'pictures')
    data.leave_out('pictures are gone', [f'{index}.jpg' for index in range(lost)], total)
    assert [note.kind for note in data.notes] == kinds
    assert all(note.text.startswith(f'{lost} pictures are gone and are left out') for note in data.notes)


@pytest.mark.parametrize(('path', 'split'), [
    ('images/val2017', 'val'), ('Training', 'train'), ('trnset', None), ('my-dev.1', 'val'), ('latest', None),
    # What says nothing else comes first, then plain words, then all others; of two alike the deepest.
    ('val/test_set', 'val'), ('val_split/train_station', 'val'), ('val_dataset/train_1', 'val'),
    ('val_set/train_a', 'val'), ('test_images/train_a', 'test'), ('train_masks/val_labels', 'val'),
    ('train_data/images/val', 'val'), ('train/val', 'val'), ('', None),
])  # fmt: skip
def test_what_folders_say_of_the_split(path: str, split: str | None) -> None:
    assert split_of(path) == split


def test_the_drawn_split_is_not_the_beginning() -> None:
    names = [f'{index:03}' for index in range(100)]
    drawn = split_names(names, 0.2)
    assert len(drawn['val']) == 20
    assert drawn['val'] != names[:20]
    # Frames of a video follow each other: a fair draw takes some of every quarter.
    assert all(any(name in drawn['val'] for name in names[start : start + 25]) for start in range(0, 100, 25))


def test_copies_of_a_picture_are_drawn_together() -> None:
    names = [f'{index}_jpg.rf.{copy:032x}.jpg' for index in range(10) for copy in range(3)]
    drawn = split_names(names, 0.2)
    assert {split: len(part) for split, part in drawn.items()} == {'train': 24, 'val': 6}
    originals = [{name.split('.rf.')[0] for name in part} for part in drawn.values()]
    assert not originals[0] & originals[1]
    with pytest.raises(UserError, match='1 usable picture'):
        split_names(names[:3], 0.2)
