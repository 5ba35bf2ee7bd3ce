"""Print Tables 1, 5, 6, 7 and Fig. 2 of the paper with what tools/analysis/run_ablations.py measured beside it.

python tools/analysis/collect_ablations.py [WORK_DIR ...] [--out benchmarks/results/ablations.json]
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed

from mmpelk.analysis.ablation_results import Measured, collect, gain, report
from mmpelk.analysis.ablations import METRICS, TABLES, Table, computed
from mmpelk.engine.command_line import errors_in_one_sentence

RESULTS = Path(__file__).resolve().parents[2] / 'benchmarks' / 'results' / 'ablations.json'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'work_dirs',
        nargs='*',
        type=Path,
        default=[Path('work_dirs/ablations')],
        help='folders given to run_ablations.py as --work-dir; work_dirs/ablations by default',
    )
    parser.add_argument('--tables', nargs='+', choices=list(TABLES), default=list(TABLES), help='all by default')
    parser.add_argument('--out', type=Path, default=RESULTS, help='the JSON; %(default)s by default')
    return parser.parse_args()


def draw(table: Table, results: Mapping[str, Mapping[str, Measured]]) -> Printed:
    """A table: labels, computed columns and metrics, each beside the paper's figure."""
    printed = Printed(title=table.title, caption='\n'.join(table.notes) or None)
    for heading in table.columns:
        printed.add_column(heading)
    stages = list(table.rows[0].paper)
    gains = any(row.gain_over for row in table.rows)
    for heading, _, _ in table.columns_computed:
        printed.add_column(heading, justify='right')
        printed.add_column('paper', justify='right')
    for stage in stages:
        printed.add_column(METRICS[stage][1], justify='right')
        printed.add_column('paper', justify='right')
    if gains:
        printed.add_column('gain in mIoU', justify='right')
        printed.add_column('paper', justify='right')
    for row in table.rows:
        cells = [*row.label]
        for column in computed(row, table):
            cells += [f'{column.value:.{column.digits}f}', _number(column.printed, column.digits)]
        for stage in stages:
            measured = results[row.name][stage]
            cells += [measured.text(), _number(measured.paper, 1)]
        if gains:
            cells += [_number(gain(row, results), 2), _number(row.paper_gain, 1)]
        printed.add_row(*cells)
    return printed


def _number(value: float | None, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def main() -> None:
    args = parse_args()
    with errors_in_one_sentence():
        results = collect(args.work_dirs)
        console = Console(width=None if sys.stdout.isatty() else 140)
        for key in args.tables:
            console.print(draw(TABLES[key], results))
        if not any(measured.runs for stages in results.values() for measured in stages.values()):
            folders = ', '.join(map(str, args.work_dirs))
            print(f'no training in {folders}: every figure is a target, and {args.out} is left as it is')
            return
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report(args.work_dirs), indent=1, ensure_ascii=False) + '\n')
        print(args.out)


if __name__ == '__main__':
    main()
