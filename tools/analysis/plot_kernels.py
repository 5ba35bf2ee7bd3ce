"""Pictures of sharing grids, learnt kernels and positional embeddings (Fig. 1 and 3).

python tools/analysis/plot_kernels.py grid --grid 2 1 2 --kernel-size 31 --center-size 5
python tools/analysis/plot_kernels.py kernel CHECKPOINT --config CONFIG --stage 0 --block 0 --channels 0 1 2
python tools/analysis/plot_kernels.py embedding CHECKPOINT --config CONFIG --stage 0 --map-size 32 32
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from mmengine.registry import MODELS

from mmpelk.analysis.kernel_figures import draw_embedding, draw_grids, draw_kernel
from mmpelk.analysis.kernels import backbone_tensors, learnt_embedding, learnt_kernel
from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import add_cfg_options, exit_on_user_error, parse_options, read_config
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.models import PeLK
from mmpelk.models.weights.checkpoint import state_dict_of
from mmpelk.models.weights.identify import without_checkpoint
from mmpelk.ops.sharing_grid import check_sharing_grid, sharing_grid


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    grid = commands.add_parser('grid', help='which positions of a kernel share a parameter')
    grids = 'ring widths of a grid; may be repeated'
    grid.add_argument('--grid', nargs='+', type=int, action='append', metavar='S', help=grids)
    grid.add_argument('--kernel-size', nargs='+', type=int, default=[], metavar='K', help="sides of Eq. 2's grids")
    grid.add_argument('--center-size', type=int, default=5, help='side of their fine-grained centre; 5 by default')

    kernel = commands.add_parser('kernel', help='learnt kernels, as parameters and expanded')
    embedding = commands.add_parser('embedding', help='h of a stage, and what it adds to a map')
    size = 'height and width of the feature map; as large as the kernel by default'
    embedding.add_argument('--map-size', nargs=2, type=int, metavar=('H', 'W'), help=size)

    for command in (kernel, embedding):
        command.add_argument('checkpoint', help='trained or deployed')
        command.add_argument('--config', required=True, help='path of the config that it was trained with')
        command.add_argument('--stage', type=int, default=0, help='counted from 0, the default')
        command.add_argument('--block', type=int, default=0, help='of the stage, counted from 0, the default')
        channels = 'which ones; the first four by default'
        command.add_argument('--channels', nargs='+', type=int, metavar='C', help=channels)
        add_cfg_options(command)
    for command, name in ((grid, 'sharing_grids'), (kernel, 'learnt_kernels'), (embedding, 'positional_embedding')):
        out = Path(f'work_dirs/analysis/{name}.png')
        command.add_argument('--out', type=Path, default=out, help='the figure; %(default)s by default')
    return parse_options(parser)


def grids_of(args: argparse.Namespace) -> list[tuple[int, ...]]:
    """The grids that the options of ``grid`` name; Fig. 1's without any."""
    grids = [check_sharing_grid(grid) for grid in args.grid or []]
    grids += [sharing_grid(side, args.center_size) for side in args.kernel_size]
    return grids or [(2, 1, 2), sharing_grid(31, args.center_size)]


def backbone_of(args: argparse.Namespace) -> PeLK:
    """The backbone of ``--config``, with no weights loaded."""
    cfg = read_config(args.config, args.cfg_options)
    config = without_checkpoint(cfg.model.get('backbone', cfg.model))
    backbone = MODELS.build(config) if config['type'] == 'mmpelk.PeLK' else None
    if not isinstance(backbone, PeLK):
        raise ValueError(
            f"the backbone of '{args.config}' is {config['type']}; only mmpelk.PeLK has peripheral kernels"
        )
    return backbone


def figure_of(args: argparse.Namespace) -> Figure:
    """The figure that a command line asks for."""
    if args.command == 'grid':
        return draw_grids(grids_of(args))
    check_checkpoint(args.checkpoint)
    backbone = backbone_of(args)
    tensors = backbone_tensors(state_dict_of(read_checkpoint(args.checkpoint), args.checkpoint))
    kernel = learnt_kernel(backbone, tensors, args.stage, args.block)
    if args.command == 'kernel':
        return draw_kernel(kernel, args.channels)
    size = args.map_size or kernel.dense.shape[-2:]
    return draw_embedding(learnt_embedding(backbone, tensors, args.stage, args.block, size), args.channels)


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        figure = figure_of(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.out, dpi=100, bbox_inches='tight')
        print(args.out)


if __name__ == '__main__':
    main()
