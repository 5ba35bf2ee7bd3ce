"""Shares of the FLOPs (Fig. 5) of UperNet PeLK-T: of head and backbone, and of the backbone's parts.

python -m reproduction.shares --out flop_shares.png

``tools/get_flops.py`` has those of any recipe.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmpelk.analysis.complexity import Complexity
from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error

from .counts import upernet
from .figures import figure_path, write_figure
from .marks import computed, deviation, paper, with_deviation
from .paper import SHARES

MODEL, BACKBONE, BESIDE = 'the model', 'the backbone', 'the backbone, beside it'
# Names in Fig. 5b of the components that count_complexity tells apart.
_NAMES = dict(
    ffn='FFN',
    large_kernels='large kernels',
    stem='downsampling, stem included',
    downsampling='downsampling, stem included',
    embedding='positional embedding',
)
# Greys from dark to light, and hatches: either tells neighbours apart.
_FILLS = [('0.25', ''), ('0.6', '//'), ('0.85', '..'), ('0.45', 'xx'), ('0.95', '\\\\'), ('0.75', '--')]


@dataclass(frozen=True)
class Share:
    """A piece of Fig. 5."""

    # what it is a share of: :data:`MODEL` in Fig. 5a, :data:`BACKBONE` in Fig. 5b; :data:`BESIDE` for the
    # embedding, whose additions and look-ups are no convolution: the paper's totals come out without them
    whole: str
    name: str  # as in the figure
    flops: int  # multiply-adds, each layer times its density; for the embedding, additions and multiplications
    percent: float  # of the whole


def flop_shares(complexity: Complexity) -> list[Share]:
    """Fig. 5 of any model.

    Args:
        complexity: From :func:`mmpelk.analysis.complexity.count_complexity`, with the densities to count with.

    Returns:
        The model's parts in its order, then what the backbone has, the largest first.
    """
    parts: Counter[str] = Counter()
    components: Counter[str] = Counter()
    for component in complexity.components:
        parts[component.part] += component.flops_sparse
        if component.part == 'backbone':
            name = _NAMES.get(component.name, component.name.replace('_', ' '))
            components[name] += component.flops_sparse
    beside = [(_NAMES[one.name], one.flops) for one in complexity.left_out if one.name == 'embedding']
    backbone = parts['backbone']
    return [
        Share(whole, name, flops, 100 * flops / total)
        for whole, total, pieces in (
            (MODEL, complexity.flops_sparse, parts.items()),
            (BACKBONE, backbone, components.most_common()),
            (BESIDE, backbone, beside),
        )
        for name, flops in pieces
        if flops
    ]


def shares_table(shares: Sequence[Share]) -> Table:
    """Both halves of Fig. 5, of UperNet PeLK-T at 2048 x 512, for which the paper states two."""
    heads = ['part', 'of', 'FLOPs [G]', 'paper [%]', 'here [%]']
    table = Table(heads, title='Shares of the FLOPs, one per multiply-add', labels=2)
    for share in shares:
        printed = SHARES.get(share.name)
        digits = 0 if printed and printed >= 1 else 2
        table.add(
            share.name.replace('_', ' '),
            share.whole,
            computed(share.flops / 1e9, 2),
            paper(printed, digits),
            with_deviation(
                computed(share.percent, 1 if share.percent >= 1 else 3), deviation(share.percent, printed, digits)
            ),
        )
    return table


def draw(shares: Sequence[Share]) -> Figure:
    """Fig. 5 as two stacked bars: (a) the model's parts, (b) the backbone's."""
    figure = Figure(figsize=(10, 5), dpi=110, layout='constrained')
    figure.suptitle('upernet_pelk_t_ade20k, 2048 x 512, density 0.6')
    panels = (('(a) Head and backbone', MODEL, ''), ('(b) The backbone', BACKBONE, BESIDE))
    for axes, (name, whole, beside) in zip(figure.subplots(1, 2), panels, strict=True):
        pieces = [share for share in shares if share.whole == whole]
        axes.set_title(f'{name}: {sum(share.flops for share in pieces) / 1e9:.1f} G', loc='left')
        _stack(axes, pieces, [share for share in shares if share.whole == beside])
    return figure


def _stack(axes: Axes, shares: Sequence[Share], beside: Sequence[Share]) -> None:
    """One bar, the first share at the foot, and a legend in the bar's order."""
    bottom = 0.0
    for index, share in enumerate(shares):
        color, hatch = _FILLS[index % len(_FILLS)]
        label = f'{share.name}: {share.percent:.1f} %, {share.flops / 1e9:.1f} G'
        axes.bar(0, share.percent, 0.9, bottom, color=color, hatch=hatch, edgecolor='black', label=label)
        bottom += share.percent
    for share in beside:  # too thin to see
        label = f'beside the 100 %, {share.name}:\n{share.percent:.2f} %, {share.flops / 1e9:.2f} G of additions'
        axes.bar(0, 0, label=label, color='none')
    axes.set(xlim=(-0.55, 0.55), ylim=(0, 100), xticks=[], xlabel='one image', ylabel='share of the FLOPs, %')
    legend = dict(frameon=False, handlelength=2.5, handleheight=2, labelspacing=1)
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), reverse=True, **legend)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)


def main() -> None:
    path = figure_path('shares', __doc__)
    with exit_on_user_error():
        shares = flop_shares(upernet('PeLK-T')[1])
    shares_table(shares).print()
    write_figure(draw(shares), path)


if __name__ == '__main__':
    main()
