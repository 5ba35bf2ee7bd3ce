"""What the commands that draw a figure share: where it goes, and the numbers beside it."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ['figure_parser', 'write_figure']


def figure_parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with ``--out`` and ``--json``.

    Args:
        doc: Docstring of the command.
        name: Stem of the figure's file, in ``work_dirs/analysis`` by default.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path(f'work_dirs/analysis/{name}.png'), help='the figure')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the numbers there, too')
    return parser


def write_figure(figure: Figure, args: argparse.Namespace, numbers: Any) -> None:
    """Write what the options of :func:`figure_parser` ask for, and print where the figure is."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(numbers, indent=2) + '\n')
    print(args.out)
