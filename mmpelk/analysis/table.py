"""Tables: made once, printed on a terminal or written as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box, table
from rich.console import Console

_WIDTH = 140  # characters, where the output is no terminal


@dataclass
class Table:
    """Rows of text under headings."""

    columns: Sequence[str]  # headings
    rows: list[Sequence[str]] = field(default_factory=list)  # cells of each row, as many as there are columns
    title: str = ''  # printed above; Markdown leaves it to the page
    notes: Sequence[str] = ()  # sentences below
    # number of columns, from the left, that name the row; the others are aligned to the right on a terminal
    labels: int = 1

    def add(self, *cells: str) -> None:
        """Append a row.

        Raises:
            ValueError: If there are not as many cells as columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f'{len(self.columns)} columns, but a row of {len(cells)} cells: {list(cells)}')
        self.rows.append(cells)

    def markdown(self) -> str:
        """GitHub's Markdown, without the title, the notes as paragraphs below."""
        lines = [
            f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in line)} |'
            for line in (self.columns, ['---'] * len(self.columns), *self.rows)
        ]
        return '\n\n'.join(['\n'.join(lines), *self.notes])

    def print(self, console: Console | None = None) -> None:
        """Print to a terminal, in its width; elsewhere in 140 columns."""
        console = console or Console()
        if not console.is_terminal:
            console = Console(file=console.file, width=_WIDTH)
        drawn = table.Table(title=self.title or None, caption='\n'.join(self.notes) or None, box=box.SIMPLE_HEAD)
        for index, column in enumerate(self.columns):
            drawn.add_column(column, justify='left' if index < self.labels else 'right')
        for row in self.rows:
            drawn.add_row(*row)
        console.print(drawn, markup=False)
