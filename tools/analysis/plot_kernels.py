"""Pictures of sharing grids, learnt kernels and positional embeddings (Fig. 1 and 3).

python tools/analysis/plot_kernels.py grid --grid 2 1 2 --kernel-size 31 --center-size 5
python tools/analysis/plot_kernels.py kernel CHECKPOINT --config CONFIG --stage 0 --block 0 --channels 0 1 2
python tools/analysis/plot_kernels.py kernel CHECKPOINT --key stages.0.0.mixer.large.weight --kernel-size 51
python tools/analysis/plot_kernels.py embedding CHECKPOINT --config CONFIG --stage 0 --map-size 32 32
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from mmengine.config import DictAction
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmpelk.analysis.kernel_figures import draw_embedding, draw_grids, draw_kernel
from mmpelk.analysis.kernels import LearntKernel, backbone_tensors, kernel_from_key, learnt_embedding, learnt_kernel
from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import exit_on_user_error, load_config, parse_options
from mmpelk.models import PeLK
from mmpelk.models.deploy import deploy_state_dict
from mmpelk.ops.sharing_grid import check_sharing_grid, sharing_grid


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    grid = commands.add_parser('grid', help='which positions of a kernel share a parameter')
    grid.add_argument(
        '--grid', nargs='+', type=int, action='append', metavar='S', help='ring widths of a grid; may be repeated'
    )
    grid.add_argument('--kernel-size', nargs='+', type=int, default=[], metavar='K', help="sides of Eq. 2's grids")
    grid.add_argument('--center-size', type=int, default=5, help='side of their fine-grained centre; 5 by default')

    kernel = commands.add_parser('kernel', help='learnt kernels, as parameters and expanded')
    kernel.add_argument('--key', help='name of the kernel in the checkpoint, instead of --config, --stage and --block')
    kernel.add_argument('--grid', nargs='+', type=int, metavar='S', help='with --key: its sharing grid')
    kernel.add_argument('--kernel-size', type=int, metavar='K', help='with --key: side of the kernel, for the rule')
    kernel.add_argument('--center-size', type=int, default=5, help='with --key and --kernel-size: side of the centre')

    embedding = commands.add_parser('embedding', help='h of a stage, and what it adds to a map')
    embedding.add_argument(
        '--map-size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='of the feature map; as large as the kernel by default',
    )
    for command, name in ((kernel, 'learnt_kernels'), (embedding, 'positional_embedding')):
        command.add_argument('checkpoint', help='trained or deployed')
        command.add_argument('--config', help='path of the config that it was trained with')
        command.add_argument('--stage', type=int, default=0, help='counted from 0, the default')
        command.add_argument('--block', type=int, default=0, help='of the stage, counted from 0, the default')
        command.add_argument(
            '--channels', nargs='+', type=int, metavar='C', help='which ones; the first four by default'
        )
        command.add_argument(
            '--deploy', action='store_true', help='merge norms and small kernels of a trained checkpoint first'
        )
        command.add_argument(
            '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
        )
        command.set_defaults(name=name)
    grid.set_defaults(name='sharing_grids')
    for command in (grid, kernel, embedding):
        command.add_argument('--out', type=Path, help='the figure; in work_dirs/analysis by default')
    parser.set_defaults(launcher='none', work_dir=None, local_rank=0)  # what load_config and parse_options look for
    return parse_options(parser)


def grids_of(args: argparse.Namespace) -> list[tuple[int, ...]]:
    """The grids that the options of ``grid`` name; Fig. 1's without any."""
    grids = [check_sharing_grid(grid) for grid in args.grid or []]
    grids += [sharing_grid(side, args.center_size) for side in args.kernel_size]
    return grids or [(2, 1, 2), sharing_grid(31, args.center_size)]


def backbone_of(args: argparse.Namespace) -> PeLK:
    """The backbone of ``--config``, with no weights loaded."""
    if not args.config:
        raise ValueError('which sharing grid is it? Give --config CONFIG (or, for a kernel, its --key)')
    cfg = load_config(args)
    config = dict(cfg.model.get('backbone', cfg.model), init_cfg=None)
    backbone = MODELS.build(config) if config['type'] == 'mmpelk.PeLK' else None
    if not isinstance(backbone, PeLK):
        raise ValueError(
            f"the backbone of '{args.config}' is {config['type']}; only mmpelk.PeLK has peripheral kernels"
        )
    return backbone


def read(args: argparse.Namespace, backbone: PeLK | None = None) -> dict[str, Tensor]:
    """Tensors of the checkpoint's backbone; with a backbone and ``--deploy``, of its merged form."""
    check_checkpoint(args.checkpoint)
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, map_location='cpu')
    tensors = backbone_tensors(checkpoint.get('state_dict', checkpoint))
    if backbone is None or not args.deploy:
        return tensors
    try:
        return deploy_state_dict(backbone, tensors)
    except RuntimeError as error:
        raise ValueError(
            f"--deploy: '{args.checkpoint}' is no trained checkpoint of '{args.config}' (or has been merged already)"
        ) from error


def kernel_of(args: argparse.Namespace) -> LearntKernel:
    """What the options of ``kernel`` name."""
    if not args.key:
        backbone = backbone_of(args)
        return learnt_kernel(backbone, read(args, backbone), args.stage, args.block)
    if args.deploy:
        raise ValueError('--deploy merges by the config: give --config, --stage and --block instead of --key')
    grid = args.grid or (sharing_grid(args.kernel_size, args.center_size) if args.kernel_size else None)
    return kernel_from_key(read(args), args.key.removeprefix('backbone.'), grid)


def figure_of(args: argparse.Namespace) -> Figure:
    """The figure that a command line asks for."""
    if args.command == 'grid':
        return draw_grids(grids_of(args))
    if args.command == 'kernel':
        return draw_kernel(kernel_of(args), args.channels)
    backbone = backbone_of(args)
    tensors = read(args, backbone)
    side = sum(learnt_kernel(backbone, tensors, args.stage, args.block).grid)
    learnt = learnt_embedding(backbone, tensors, args.stage, args.block, args.map_size or (side, side))
    return draw_embedding(learnt, args.channels)


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        out = args.out or Path('work_dirs/analysis') / f'{args.name}.png'
        figure = figure_of(args)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=100, bbox_inches='tight')
        print(out)


if __name__ == '__main__':
    main()
