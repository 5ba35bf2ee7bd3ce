"""Print Tables 1, 5, 6, 7 and Fig. 2 of the paper with what ``python -m reproduction.run_ablations`` measured.

python -m reproduction.collect_ablations [WORK_DIR ...] [--out benchmarks/results/ablations.json]

The JSON keeps what it has of rows of which nothing was trained in these folders, such as those of another machine.
"""

import argparse
from pathlib import Path

from mmpelk.engine.command_line import exit_on_user_error

from . import RESULTS
from .ablation_results import ablation_table, collect, load, merge, save
from .ablations import ABLATIONS
from .marks import Results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m reproduction.collect_ablations',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'work_dirs',
        nargs='*',
        type=Path,
        default=[Path('work_dirs/ablations')],
        help='folders given to run_ablations as --work-dir; work_dirs/ablations by default',
    )
    parser.add_argument('--tables', nargs='+', choices=list(ABLATIONS), default=list(ABLATIONS), help='all by default')
    parser.add_argument('--out', type=Path, default=RESULTS / 'ablations.json', help='the JSON; %(default)s by default')
    args = parser.parse_args()
    with exit_on_user_error():
        trainings, results = collect(args.work_dirs), Results()
        for key in args.tables:
            ablation_table(key, trainings, results).print()
        if results.runs:
            results.listing().print()
        if not trainings:
            folders = ', '.join(map(str, args.work_dirs))
            print(f'no training in {folders}: every figure is a target, and {args.out} is left as it is')
            return
        save(merge(trainings, load(args.out)), args.out)
        print(args.out)


if __name__ == '__main__':
    main()
