"""Cells of the page's tables: every figure is marked with its source."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmpelk.analysis.table import Table

from . import RESULTS

NOTHING = '-'
NOT_PRINTED = 'not printed'
_MARK = re.compile(r' \((?:p|c|target|m\d+)\)')
_FACTS = ('device', 'threads', 'torch', 'cudnn', 'python', 'mmpelk', 'date')


def _cell(value: float | str | None, places: int, mark: str) -> str:
    if value is None:
        return NOTHING
    return f'{value if isinstance(value, str) else f"{value:.{places}f}"} {mark}'


def paper(value: float | str | None, places: int = 0) -> str:
    """A figure that the paper prints, to compare with."""
    return _cell(value, places, '(p)')


def target(value: float | str | None) -> str:
    """A figure of the paper that is not reproduced here yet."""
    return _cell(value, 1, '(target)')


def computed(value: float | str | None, places: int = 2) -> str:
    """A figure that the command of the section computes, the same on any machine."""
    return _cell(value, places, '(c)')


def deviation(ours: float | None, theirs: float | None, places: int = 1) -> str:
    """Ours against the printed figure, in per cent; it is computed from two marked cells.

    Args:
        ours: Ours.
        theirs: The printed figure.
        places: Decimal places that it is printed with. From 1 % on the text is bold, unless ours rounds to the printed
            figure.
    """
    if ours is None or theirs is None:
        return NOTHING
    percent = round(100 * (ours / theirs - 1), 1)
    text = f'{percent:+.1f} %' if percent else '0.0 %'
    return f'**{text}**' if abs(percent) >= 1 and round(ours, places) != theirs else text


def with_deviation(cell: str, percent: str) -> str:
    """A computed cell with its :func:`deviation`, if that is more than rounding."""
    return f'{cell}, {percent}' if percent.startswith('**') else cell


def share_marks(table: Table) -> Table:
    """A table with the most frequent mark of each column in its heading; cells keep the marks that differ."""
    common = [Counter(_MARK.findall(' '.join(cells))).most_common(1) for cells in zip(*table.rows, strict=True)]
    shared = [found[0][0] if found else '' for found in common]
    rows: list[Sequence[str]] = [
        [
            _MARK.sub('', cell) if set(_MARK.findall(cell)) == {mark} else cell
            for cell, mark in zip(row, shared, strict=True)
        ]
        for row in table.rows
    ]
    headings = [heading + mark for heading, mark in zip(table.columns, shared, strict=True)]
    return replace(table, columns=headings, rows=rows)


@dataclass
class Results:
    """Results files, and their runs, numbered in the order in which the figures appear on the page."""

    folder: Path = RESULTS  # where the files are
    # what was measured, and on which machine; filled by :meth:`measured`
    runs: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def read(self, name: str) -> Any:
        """Content of a results file, or ``None`` if there is none."""
        path = self.folder / f'{name}.json'
        return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None

    def measured(
        self,
        value: float | str | None,
        machine: Mapping[str, Any],
        what: str,
        places: int = 1,
        spread: float | None = None,
    ) -> str:
        """A measured figure, with its standard deviation if it has one.

        Args:
            value: The figure; ``None`` for nothing.
            machine: Of :func:`mmpelk.analysis.machine.environment_info`, of the run.
            what: Name of the run, for the list of them.
            places: Decimal places.
            spread: Standard deviation.
        """
        if value is None:
            return NOTHING
        if (what, machine) not in self.runs:
            self.runs.append((what, machine))
        if spread is not None and not isinstance(value, str):
            value = f'{value:.{places}f} ± {spread:.{places}f}'
        return _cell(value, places, f'(m{self.runs.index((what, machine)) + 1})')

    def listing(self) -> Table:
        """The runs: what, machine, versions, date."""
        table = Table(['run', 'what', 'machine', 'threads', 'torch', 'cuDNN', 'Python', 'mmpelk', 'date'])
        for number, (what, machine) in enumerate(self.runs, start=1):
            table.add(f'm{number}', what, *(str(machine.get(key) or NOTHING) for key in _FACTS))
        return table
