"""Shares of the FLOPs (Fig. 5): of head and backbone, and of the backbone's parts, of any recipe.

python tools/analysis/plot_flops.py --out flop_shares.png
python tools/analysis/plot_flops.py configs/det/cascade_mask_rcnn_pelk_t_coco.py --shape 800 1280
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import DictAction
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.table import Table

from mmpelk.analysis.complexity import count_complexity, uniform_densities
from mmpelk.analysis.shares import PAPER_SHARES, FlopShares, Share, flop_shares
from mmpelk.engine.command_line import exit_on_user_error, load_config, parse_options

ROOT = Path(__file__).resolve().parents[2]
RECIPE = 'configs/seg/upernet_pelk_t_ade20k.py'
# Greys from dark to light, and hatches: either tells neighbours apart.
FILLS = [('0.25', ''), ('0.6', '//'), ('0.85', '..'), ('0.45', 'xx'), ('0.95', '\\\\'), ('0.75', '--')]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', nargs='?', default=str(ROOT / RECIPE), help=f'path of the config; {RECIPE} by default'
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        default=(512, 2048),
        metavar=('H', 'W'),
        help="height and width of the image; 512 2048 by default, the paper's",
    )
    parser.add_argument(
        '--density',
        type=float,
        default=0.6,
        help="share of live weights in the backbone's and a classifier's 2-D and 4-D parameters; 0.6 by default, the "
        "paper's",
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/analysis/flop_shares.png'), help='the figure')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the shares there, too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config')
    parser.set_defaults(launcher='none', work_dir=None, local_rank=0)  # what load_config and parse_options look for
    return parse_options(parser)


def compute(args: argparse.Namespace) -> FlopShares:
    """Shares of the recipe that the options describe."""
    cfg = load_config(args)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = MODELS.build(cfg.model)
    return flop_shares(count_complexity(model, tuple(args.shape), uniform_densities(model, args.density)))


def shares_table(shares: FlopShares) -> Table:
    """Both halves of Fig. 5, and what the paper's text says of them."""
    table = Table(title='Shares of the FLOPs, one per multiply-add')
    table.add_column('of')
    table.add_column('share')
    for column in ('FLOPs, G', '%', 'paper: UperNet PeLK-T'):
        table.add_column(column, justify='right')
    wholes = (('all', shares.total, shares.parts), ('backbone', shares.backbone_total, shares.components))
    for name, total, pieces in wholes:
        for piece in pieces:
            paper = PAPER_SHARES.get(piece.name) if name == 'backbone' else None
            digits = 1 if piece.percent >= 1 else 2
            table.add_row(
                name,
                piece.name if piece.counted else f'{piece.name} (beside the whole)',
                f'{piece.flops / 1e9:.2f}',
                f'{piece.percent:.{digits}f}',
                '' if paper is None else f'{paper:g}',
            )
        table.add_row(name, 'whole', f'{total / 1e9:.2f}', '100', '', end_section=True)
    return table


def draw(shares: FlopShares, title: str) -> Figure:
    """Fig. 5 as two stacked bars: (a) the model's parts, (b) the backbone's.

    Args:
        shares: What to draw.
        title: Above both: the recipe, its input, the density.
    """
    figure = Figure(figsize=(10, 5), layout='constrained')
    figure.suptitle(title)
    parts, components = figure.subplots(1, 2)
    _stack(parts, shares.parts)
    parts.set_title(f'(a) Head and backbone: {shares.total / 1e9:.1f} G', loc='left')
    _stack(components, shares.components)
    components.set_title(f'(b) The backbone: {shares.backbone_total / 1e9:.1f} G', loc='left')
    return figure


def _stack(axes: Axes, shares: Sequence[Share]) -> None:
    """One bar, the first share at the foot, and a legend in the bar's order."""
    bottom = 0.0
    for index, share in enumerate(share for share in shares if share.counted):
        color, hatch = FILLS[index % len(FILLS)]
        label = f'{share.name}: {share.percent:.1f} %, {share.flops / 1e9:.1f} G'
        axes.bar(0, share.percent, 0.9, bottom, color=color, hatch=hatch, edgecolor='black', label=label)
        bottom += share.percent
    for share in shares:
        if not share.counted:  # too thin to see, and no part of the whole
            label = f'beside the 100 %, {share.name}:\n{share.percent:.2f} %, {share.flops / 1e9:.2f} G of additions'
            axes.bar(0, 0, label=label, color='none')
    axes.set(xlim=(-0.55, 0.55), ylim=(0, 100), xticks=[], xlabel='one image', ylabel='share of the FLOPs, %')
    axes.legend(
        loc='center left',
        bbox_to_anchor=(1, 0.5),
        reverse=True,
        frameon=False,
        handlelength=2.5,
        handleheight=2,
        labelspacing=1,
    )
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        shares = compute(args)
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(shares_table(shares))
        height, width = args.shape
        title = f'{Path(args.config).stem}, {width} x {height}, density {args.density:g}'
        args.out.parent.mkdir(parents=True, exist_ok=True)
        draw(shares, title).savefig(args.out, dpi=110)
        console.print(str(args.out))
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            path = Path(args.config).resolve()
            config = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else args.config
            report = dict(config=config, shape=list(args.shape), density=args.density, **asdict(shares))
            args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
