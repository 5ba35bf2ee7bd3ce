"""What was found in a data set, as text."""

from typing import TextIO

from rich.console import Console

from mmpelk.analysis.table import Table

from .dataset import DataSet

_VALUES = 60  # values of label maps
_ROWS = 20  # classes shown before the table is cut
_TASKS = {'seg': 'segmentation', 'det': 'detection', 'cls': 'classification'}


def print_report(data: DataSet, file: TextIO | None = None) -> None:
    """Print an overview, the classes with their shares, and a sentence for each note.

    Args:
        data: The data set.
        file: Where to; the terminal by default.
    """
    console = Console(file=file)
    areas = sorted(data.sizes, key=lambda size: size[0] * size[1])
    overview = Table(['', 'found'], title=f'{_TASKS[data.task]} in {data.root}')
    for split, purpose in (('train', 'train on'), ('val', 'validate on'), ('test', 'test on at the end')):
        if split in data.splits:
            overview.add(f'pictures to {purpose}', str(len(data.splits[split])))
    shown = (areas[0], data.median_size, areas[-1])
    overview.add('sizes: smallest, middle, largest', ', '.join(f'{width}x{height}' for width, height in shown))
    overview.add('classes', str(len(data.classes)))
    if data.task == 'seg':
        overview.add('pixels without a class', f'{data.unlabelled:.1%}')
    if data.task == 'det':
        overview.add('pictures without an object', f'{data.unlabelled:.1%}')
        overview.add('outlines for masks', 'yes' if data.details['masks'] else 'no: boxes alone')
        sides = sorted(data.details['sides'])
        quantiles = (sides[len(sides) * tenth // 10] for tenth in (1, 5, 9))
        overview.add('sides of boxes: 10 %, middle, 90 %', ', '.join(f'{side:.0f} px' for side in quantiles))
    overview.print(console)
    total = max(sum(data.counts), 1)
    order = sorted(range(len(data.classes)), key=lambda index: -data.counts[index])
    classes = Table(['class', 'index', data.unit, 'share'])
    for index in order[:_ROWS]:
        classes.add(
            _plain(data.classes[index]), str(index), str(data.counts[index]), f'{data.counts[index] / total:.2%}'
        )
    if rest := order[_ROWS:]:
        count = sum(data.counts[index] for index in rest)
        classes.add(f'{len(rest)} more', '', str(count), f'{count / total:.2%}')
    classes.print(console)
    if rows := data.details.get('values'):
        values = Table(['in the label maps', 'is the class', 'index', 'share of the pixels'], labels=2)
        for row in rows[:_VALUES]:
            values.add(*map(_plain, row))
        if len(rows) > _VALUES:
            values.add(f'{len(rows) - _VALUES} more', '', '', '')
        values.print(console)
    for note in sorted(data.notes, key=lambda note: note.kind != 'question'):
        console.print(f'- {note}', markup=False, highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """On one line."""
    return ''.join(letter if letter.isprintable() else ' ' for letter in text)
