"""Tables as Markdown and on a terminal."""

import io

import pytest
from rich.console import Console

from mmpelk.analysis.table import Table


def test_table_in_both_forms() -> None:
    table = Table(['network', 'task', 'mIoU'], title='Results', notes=['Of one run.', 'On a CPU.'], labels=2)
    table.add('[a]', 'x|y', '1')
    table.add('longer', 'z', '12.34')
    assert table.markdown().splitlines() == [
        '| network | task | mIoU |',
        '| --- | --- | --- |',
        '| [a] | x\\|y | 1 |',
        '| longer | z | 12.34 |',
        '',
        'Of one run.',
        '',
        'On a CPU.',
    ]
    written = io.StringIO()
    table.print(Console(file=written, width=20))  # no terminal: wider than that
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    assert lines[0].strip() == 'Results'
    assert [line.strip() for line in lines[-2:]] == ['Of one run.', 'On a CPU.']
    first, second = (next(line for line in lines if name in line) for name in ('[a]', 'longer'))
    assert first.index('[a]') == second.index('longer')
    assert first.index('x|y') == second.index('z')
    assert len(first) == len(second), 'numbers end below each other'
    narrow = io.StringIO()
    table.print(Console(file=narrow, width=20, force_terminal=True, color_system=None))
    assert max(map(len, narrow.getvalue().splitlines())) <= 20


def test_row_of_another_length() -> None:
    for cells in ([], ['a', 'b', 'c']):
        with pytest.raises(ValueError, match='2 columns, but a row of'):
            Table(['x', 'y']).add(*cells)
