"""``python -m mmpelk doctor``: is this environment fit to train?"""

import argparse
import sys

from mmpelk import doctor


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m mmpelk', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('doctor', help=doctor.__doc__.splitlines()[0] if doctor.__doc__ else None)
    command.add_argument('--json', action='store_true', help='for bug reports and scripts')
    args = parser.parse_args()
    sys.exit(doctor.report(doctor.examine(), as_json=args.json))


if __name__ == '__main__':
    main()
