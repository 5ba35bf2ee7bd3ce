"""Shared by the commands that draw a figure."""

from pathlib import Path

from matplotlib.figure import Figure

from . import argument_parser


def figure_path(module: str, doc: str | None) -> Path:
    """Parse the command line of ``python -m reproduction.MODULE``: the path of its figure."""
    parser = argument_parser(module, doc)
    default = Path(f'work_dirs/analysis/{module}.png')
    parser.add_argument('--out', type=Path, default=default, help='the figure; %(default)s by default')
    return parser.parse_args().out


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure, and print where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(path)
