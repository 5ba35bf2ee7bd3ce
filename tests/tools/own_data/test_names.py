"""Lists of classes as annotation tools write them, line by line."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from own_data.names import order_names, pack, read_names, unpack

from mmpelk.errors import UserError

COLOUR = 0x01020A  # of 1, 2, 10
# What a file holds: of each class the name, its value or colour, and whether that is a colour.
LISTS: dict[str, list[tuple[str, int | None, bool]]] = {
    '\ufeffsky\r\n\r\n  wet road \n': [('sky', None, False), ('wet road', None, False)],
    '# of a tool\n// and another\nsky\nroad\n': [('sky', None, False), ('road', None, False)],
    # A title is one before two names at least.
    'class\nsky\n': [('class', None, False), ('sky', None, False)],
    '"Class"\n"sky"\n"road, wet"\n': [('sky', None, False), ('road, wet', None, False)],
    '"road, wet",1,2,10\nsky,0,0,255\n': [('road, wet', COLOUR, True), ('sky', 255, True)],
    '1 2 10 wet road\n0 0 255\tsky\n': [('wet road', COLOUR, True), ('sky', 255, True)],
    'wet road:1,2,10:wheel:turn\nsky:0,0,255::\n': [('wet road', COLOUR, True), ('sky', 255, True)],
    'road = #01020A\nsky=#0000ff\n': [('road', COLOUR, True), ('sky', 255, True)],
    'road = 7\nsky=5\n': [('road', 7, False), ('sky', 5, False)],
    '"road";7\n"sky";5\n': [('road', 7, False), ('sky', 5, False)],
    'wet road,127\nsky,15\n': [('wet road', 127, False), ('sky', 15, False)],
    'road 2=127\nsky=15\n': [('road 2', 127, False), ('sky', 15, False)],
    'wet road;1;2;10\nsky;0;0;255\n': [('wet road', COLOUR, True), ('sky', 255, True)],
    '1,2,10,road 2\n0,0,255,sky\n': [('road 2', COLOUR, True), ('sky', 255, True)],
    'road: 7\nsky: 5\n': [('road', 7, False), ('sky', 5, False)],
    '127: wet road\n15: sky\n': [('wet road', 127, False), ('sky', 15, False)],
    '7: road\n5: sky\n': [('road', 7, False), ('sky', 5, False)],
    'name,r,g,b\nroad,1,2,10\n': [('road', COLOUR, True)],
}


@pytest.mark.parametrize(('text', 'expected'), LISTS.items(), ids=map(repr, LISTS))
def test_what_a_list_says(text: str, expected: Sequence[tuple[str, int | None, bool]], tmp_path: Path) -> None:
    (tmp_path / 'obj.names').write_text(text, 'utf-8')
    for found in (read_names(None, tmp_path), read_names(str(tmp_path / 'obj.names'), Path('elsewhere'))):
        assert [(name.name, name.key, name.coloured) for name in found] == expected
    assert (pack(1, 2, 10), unpack(COLOUR)) == (COLOUR, (1, 2, 10))


def test_the_list_with_values_comes_before_that_of_names(tmp_path: Path) -> None:
    (tmp_path / 'classes.txt').write_text('sky\nroad\n')
    (tmp_path / 'labelmap.txt').write_text('# label:color_rgb:parts:actions\nroad:1,2,10::\n')
    assert [name.key for name in read_names(None, tmp_path)] == [COLOUR]


@pytest.mark.parametrize(('text', 'said'), [
    ('sky,0,0,256\nroad,0,0,1\n', r"the colour \[0, 0, 256\] of the class 'sky' is beyond 255"),
    ('sky\nroad\nsky\n', r"has \['sky'\] twice"),
    ('sky=1\nroad\n', "'sky=1' says what means the class, others do not"),
    ('sky=#000001\nroad\n', "'sky=#000001' says what means the class, others do not"),
])  # fmt: skip
def test_what_a_list_cannot_mean(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / 'names.txt').write_text(text)
    with pytest.raises(UserError, match=said):
        read_names(None, tmp_path)


def test_the_order_is_that_of_the_file_whatever_its_values(tmp_path: Path) -> None:
    (tmp_path / 'mine.txt').write_text('2 dog\n1 cat\n')
    assert order_names(['cat', 'dog'], str(tmp_path / 'mine.txt'), tmp_path) == ['dog', 'cat']
    with pytest.raises(UserError, match='no values: give --classes'):
        order_names(['cat', 'dog'], 'dog=2,cat=1', tmp_path)


@pytest.mark.parametrize('given', ['cat', 'cat,dog,cow', 'cat,cow', 'Cat,dog'])
def test_the_names_are_all_of_the_data_set(given: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='give the same names, in the order of their indices'):
        order_names(['cat', 'dog'], given, tmp_path)
    (tmp_path / 'twice.txt').write_text('1 cat\n2 cat\n3 dog\n')
    with pytest.raises(UserError, match='give the same names, in the order of their indices'):
        order_names(['cat', 'dog'], str(tmp_path / 'twice.txt'), tmp_path)
    assert order_names(['cat', 'dog'], 'dog, cat', tmp_path) == ['dog', 'cat']
    assert order_names(['dog', 'cat'], None, tmp_path) == ['dog', 'cat']
