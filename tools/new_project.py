"""Look through a data set of your own, and write a config that fits it and this machine.

python tools/new_project.py flowers --task seg --data FOLDER     images and label maps
python tools/new_project.py flowers --task det --data FOLDER     images and annotations in COCO's format
python tools/new_project.py flowers --task cls --data FOLDER     a folder of images for every class

It writes projects/flowers/flowers.py, the split into training and validation, what it found, and prints the commands
to train and to look at the result. docs/your_own_data.md says more.
"""

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from own_data import (
    Answers,
    DataSet,
    Machine,
    UnknownLayoutError,
    config_path,
    convert,
    has_outlines,
    make_plan,
    print_report,
    read_classification,
    read_detection,
    read_segmentation,
    write_findings,
    write_project,
)

from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='name of the project')
    parser.add_argument('--task', required=True, choices=['seg', 'det', 'cls'], help='what to train')
    parser.add_argument('--data', required=True, type=Path, metavar='FOLDER', help='folder of the data set')
    parser.add_argument('--out', type=Path, metavar='FOLDER', help='folder of the project; projects/NAME by default')
    parser.add_argument('--overwrite', action='store_true', help='replace a config that is there')
    parser.add_argument('--yes', action='store_true', help='accept every guess that would be asked as a question')
    parser.add_argument(
        '--classes',
        metavar='NAMES',
        help='in the order of their indices: a,b,c or a list file; segmentation: a=VALUE or a=#rrggbb, too',
    )
    parser.add_argument(
        '--ignore',
        nargs='+',
        metavar='VALUE',
        help="segmentation: values, colours or names that are no class; 'none': 255 is one, too",
    )
    parser.add_argument(
        '--background', metavar='VALUE', help='segmentation: the value or colour of the background, a class of its own'
    )
    parser.add_argument(
        '--soft-edges',
        action='store_true',
        help='segmentation: values between those of the classes are blurred contours',
    )
    parser.add_argument('--format', metavar='NAME', help='of the data set, as Datumaro calls it; found by default')
    parser.add_argument('--images', metavar='FOLDER', help='folder of the images in --data, where it is not found')
    parser.add_argument('--labels', metavar='FOLDER', help='segmentation: folder of the label maps in --data')
    parser.add_argument(
        '--annotations', nargs='+', metavar='FILE', help='detection: files in --data: all, or TRAIN VAL [TEST]'
    )
    parser.add_argument(
        '--val-share',
        type=float,
        metavar='SHARE',
        default=0.2,
        help='drawn to validate on, without a split; %(default)s',
    )
    parser.add_argument(
        '--weights',
        default='none',
        help="start from ConvNeXt's weights: a file, a URL of ConvNeXt-T's, or 'public' to download those; "
        "'%(default)s' by default",
    )
    parser.add_argument(
        '--size', choices=['nano', 'tiny'], help='network: PeLK-T, or one for a CPU; by default what the machine trains'
    )
    parser.add_argument('--batch-size', type=int, help='images of one process; by default what fits')
    parser.add_argument(
        '--gpu-memory', type=float, metavar='GB', help='fit the config to a GPU of so much memory; 0: to a CPU'
    )
    return parser.parse_args()


def read(args: argparse.Namespace, out: Path) -> DataSet:
    if not args.data.is_dir():
        raise FileNotFoundError(f"there is no folder '{args.data}'")
    if not 0 < args.val_share < 1:
        raise UserError(f'--val-share is a share between 0 and 1, got {args.val_share:g}')
    if args.format is None:
        try:
            return read_as(args, None)
        except UnknownLayoutError as error:
            if args.task == 'seg' and args.classes and not has_outlines(args.data):
                raise  # the user has said what is to be read
            reason = str(error)
    else:
        reason = f'the format is to be {args.format}'
    converted = convert(args.data, args.task, out / 'converted', reason, args.format, args.classes)
    data = read_as(args, converted)
    data.note('decision', f'the data set is read as one of the format {converted["format"]}')
    for kind, text in converted.get('said', ()):
        data.note(kind, text)
    if unused := converted.get('unused'):
        data.note('decision', f'{len(unused)} classes that the format lists have no object and are left out', unused)
    return data


def read_as(args: argparse.Namespace, converted: dict[str, Any] | None) -> DataSet:
    """Read a layout that is known here, or what was converted."""
    if args.task == 'seg':
        answers = Answers(args.ignore, args.background, args.soft_edges)
        return read_segmentation(args.data, args.classes, args.images, args.labels, answers, args.val_share, converted)
    if args.task == 'det':
        return read_detection(args.data, args.annotations, args.images, args.val_share, converted, args.classes)
    return read_classification(args.data, args.val_share, converted=converted, classes=args.classes)


def next_steps(config: Path) -> str:
    tools, name, work = Path(__file__).parent, shlex.quote(os.path.relpath(config)), f'work_dirs/{config.stem}'
    last = f'"$(cat {shlex.quote(f"{work}/last_checkpoint")})"'
    train, test = (shlex.quote(str(tools / tool)) for tool in ('train.py', 'test.py'))
    return f'train:            python {train} {name}\nlook at results:  python {test} {name} {last} --show-dir drawn\n'


def answer(data: DataSet, yes: bool) -> None:
    """Turn the questions into decisions.

    Raises:
        UserError: If there are some, and the user has not accepted them.
    """
    if data.questions and not yes:
        raise UserError(
            f'{len(data.questions)} of the lines above are questions, so no config is written: answer them with the '
            'options that they name, or accept them all with --yes'
        )
    data.notes = [replace(note, kind='decision') if note.kind == 'question' else note for note in data.notes]


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        out = args.out or Path('projects') / args.name
        config_path(out, args.overwrite)
        machine = Machine.here(args.gpu_memory)
        data = read(args, out)
        plan = make_plan(data, machine, args.weights, args.size, args.batch_size)
        print_report(data)
        write_findings(data, out)
        answer(data, args.yes)
        config = write_project(data, plan, out, args.overwrite)
    print(
        f'\n{os.path.relpath(config)}: {plan.summary(machine)}; look at {os.path.relpath(config.parent / "data.png")}\n'
    )
    print(next_steps(config), end='')


if __name__ == '__main__':
    main()
