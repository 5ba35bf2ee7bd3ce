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
from pathlib import Path

from own_data import (
    DataSet,
    Machine,
    make_plan,
    print_report,
    read_classification,
    read_detection,
    read_segmentation,
    write_project,
)

from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='name of the project')
    parser.add_argument('--task', required=True, choices=['seg', 'det', 'cls'])
    parser.add_argument('--data', required=True, type=Path, metavar='FOLDER', help='folder of the data set')
    parser.add_argument('--out', type=Path, metavar='FOLDER', help='folder of the project; projects/NAME by default')
    parser.add_argument('--overwrite', action='store_true', help='replace a config that is there')
    parser.add_argument(
        '--classes', metavar='NAMES', help='segmentation: a,b,c or a file with a name, or name,R,G,B, a line'
    )
    parser.add_argument(
        '--reduce-zero-label',
        action=argparse.BooleanOptionalAction,
        help='segmentation: the value 0 means "not labelled", and the classes begin at 1; guessed by default',
    )
    parser.add_argument('--images', metavar='FOLDER', help='folder of the images in --data, where it is not found')
    parser.add_argument('--labels', metavar='FOLDER', help='segmentation: folder of the label maps in --data')
    parser.add_argument(
        '--annotations', nargs='+', metavar='FILE', help='detection: files in --data: all, or TRAIN VAL'
    )
    parser.add_argument(
        '--val-share', type=float, default=0.2, help='share to validate on, where no folder says it; %(default)s'
    )
    parser.add_argument(
        '--weights',
        default='none',
        help="start from ConvNeXt-T's weights: a file, a URL, or 'public' to download them; '%(default)s' by default",
    )
    parser.add_argument(
        '--size', choices=['nano', 'tiny'], help='network: PeLK-T, or one for a CPU; by default what the machine trains'
    )
    parser.add_argument('--batch-size', type=int, help='images of one process; by default what fits')
    parser.add_argument(
        '--gpu-memory', type=float, metavar='GB', help='fit it to a GPU of another machine; 0: to a CPU'
    )
    return parser.parse_args()


def read(args: argparse.Namespace) -> DataSet:
    if not args.data.is_dir():
        raise FileNotFoundError(f"there is no folder '{args.data}'")
    if not 0 < args.val_share < 1:
        raise UserError(f'--val-share is a share between 0 and 1, got {args.val_share:g}')
    if args.task == 'seg':
        return read_segmentation(
            args.data, args.classes, args.images, args.labels, args.reduce_zero_label, args.val_share
        )
    if args.task == 'det':
        return read_detection(args.data, args.annotations, args.images, args.val_share)
    return read_classification(args.data, args.val_share)


def next_steps(config: Path) -> str:
    tools = Path(__file__).parent
    name = shlex.quote(os.path.relpath(config))
    work = f'work_dirs/{shlex.quote(config.stem)}'
    return (
        f'train:            python {tools / "train.py"} {name}\n'
        f'look at results:  python {tools / "test.py"} {name} $(cat {work}/last_checkpoint) --show-dir drawn\n'
    )


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        machine = Machine.here(args.gpu_memory)
        data = read(args)
        plan = make_plan(data, machine, args.weights, args.size, args.batch_size)
        config = write_project(data, plan, args.out or Path('projects') / args.name, args.overwrite)
    print_report(data)
    print(f'\n{os.path.relpath(config)}: {plan.summary(machine)}\n')
    print(next_steps(config), end='')


if __name__ == '__main__':
    main()
