"""Cells and tables of ``docs/reproduction.md``: every figure says where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ['Runs', 'computed', 'deviation', 'paper', 'table', 'target']

NOTHING = '-'
_FACTS = ('device', 'threads', 'torch', 'cudnn', 'python', 'mmpelk', 'date')


def _cell(value: float | str | None, places: int, mark: str) -> str:
    if value is None:
        return NOTHING
    return f'{value if isinstance(value, str) else f"{value:.{places}f}"} {mark}'


def paper(value: float | str | None, places: int = 0) -> str:
    """What the paper prints and this page compares with."""
    return _cell(value, places, '(p)')


def target(value: float | str | None, places: int = 1) -> str:
    """What the paper prints and nobody has reproduced here yet."""
    return _cell(value, places, '(target)')


def computed(value: float | str | None, places: int = 2) -> str:
    """What the command of the section computes, the same on any machine."""
    return _cell(value, places, '(c)')


def deviation(ours: float | None, theirs: float | None, places: int = 1) -> str:
    """Ours against the printed figure, in percent; it is computed from two marked cells.

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


@dataclass
class Runs:
    """The runs that measured something, numbered in the order in which their figures appear on the page."""

    seen: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

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
            machine: What :func:`mmpelk.analysis.timing.environment_info` says of the run.
            what: Name of the run, for the list of them.
            places: Decimal places.
            spread: Standard deviation.
        """
        if value is None:
            return NOTHING
        run = (what, machine)
        if run not in self.seen:
            self.seen.append(run)
        if spread is not None and not isinstance(value, str):
            value = f'{value:.{places}f} ± {spread:.{places}f}'
        return _cell(value, places, f'(m{self.seen.index(run) + 1})')

    def listing(self) -> str:
        """The list of the runs: what, machine, versions, date."""
        return table(
            ['run', 'what', 'machine', 'threads', 'torch', 'cuDNN', 'Python', 'mmpelk', 'date'],
            [
                [
                    f'm{number}',
                    what,
                    *(str(machine.get(key) or NOTHING) for key in _FACTS),
                ]
                for number, (what, machine) in enumerate(self.seen, start=1)
            ],
        )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in GitHub's Markdown.

    Raises:
        ValueError: If a row has not as many cells as there are columns.
    """
    if wrong := [row for row in rows if len(row) != len(columns)]:
        raise ValueError(f'{len(columns)} columns, but a row of {len(wrong[0])} cells: {wrong[0]}')
    lines = [columns, ['---'] * len(columns), *rows]
    return '\n'.join(f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in line)} |' for line in lines)
