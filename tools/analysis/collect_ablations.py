"""Print Tables 1, 5, 6, 7 and Fig. 2 of the paper with what tools/analysis/run_ablations.py measured beside it.

python tools/analysis/collect_ablations.py [WORK_DIR ...] [--out benchmarks/results/ablations.json]

The JSON keeps what it has of rows that nothing was trained of in these folders, such as those of another machine.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmpelk.analysis.ablation_results import Measured, collect, gain, merge, report
from mmpelk.analysis.ablations import ABLATIONS, METRICS, AblationTable, computed
from mmpelk.engine.command_line import exit_on_user_error

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
    parser.add_argument('--tables', nargs='+', choices=list(ABLATIONS), default=list(ABLATIONS), help='all by default')
    parser.add_argument('--out', type=Path, default=RESULTS, help='the JSON; %(default)s by default')
    return parser.parse_args()


def draw(table: AblationTable, results: Mapping[str, Mapping[str, Measured]]) -> Table:
    """A table: labels, computed columns and metrics, each beside the paper's figure."""
    printed = Table(title=table.title, caption='\n'.join(table.notes) or None)
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


def stored(out: Path) -> dict[str, Any]:
    """What the JSON holds by now.

    Raises:
        ValueError: If it is no JSON.
    """
    if not out.exists():
        return dict(tables={})
    try:
        return json.loads(out.read_text())
    except ValueError as error:
        raise ValueError(f"'{out}' is no report of ablations ({error}); give another --out") from error


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        results = collect(args.work_dirs)
        console = Console(width=None if sys.stdout.isatty() else 140)
        for key in args.tables:
            console.print(draw(ABLATIONS[key], results))
        if not any(measured.runs for stages in results.values() for measured in stages.values()):
            folders = ', '.join(map(str, args.work_dirs))
            print(f'no training in {folders}: every figure is a target, and {args.out} is left as it is')
            return
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(merge(report(args.work_dirs), stored(args.out)), indent=1, ensure_ascii=False)
        args.out.write_text(text + '\n')
        print(args.out)


if __name__ == '__main__':
    main()
