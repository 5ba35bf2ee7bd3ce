"""Every table and figure of the paper: run what a CPU can do in minutes, and write docs/reproduction.md.

python -m reproduction                 # `make report`
python -m reproduction --render-only   # the page alone, from what is computed and stored
"""

import argparse

from rich.console import Console

from mmpelk.engine.command_line import exit_on_user_error

from . import ROOT
from .page import render
from .steps import run_steps


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m reproduction', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--render-only', action='store_true', help='write the page without running anything')
    args = parser.parse_args()
    console = Console()
    if not args.render_only:
        run_steps(console)
    page = ROOT / 'docs/reproduction.md'
    with exit_on_user_error():
        page.write_text(render(), encoding='utf-8')
    console.print(f'written to {page.relative_to(ROOT)}')


if __name__ == '__main__':
    main()
