"""Model size against kernel size (Fig. 6): peripheral, stripe and dense kernels in all stages of ConvNeXt-T.

python -m reproduction.scaling --out model_size.png

The network is ConvNeXt-T with its 7x7 kernels replaced, as Section 6.4 says, and with nothing else: all channels are
convolved, there is no 5x5 branch, no norm per branch, and one bias per channel and block. It is built without memory,
and what it has is counted. With a dense 7x7 kernel it is ConvNeXt-T to the last parameter.

What grows how, per kernel and channel:

====================  ==================  =======================================================
mixer                 parameters          order
====================  ==================  =======================================================
dense ``K x K``       ``K**2``            quadratic
stripes               ``10 K``            linear
peripheral            ``k'**2``           ``log(K)**2``, ``k'`` being the number of rings
====================  ==================  =======================================================

The paper writes ``O(log K)``. That is the number of rings ``k'`` along an axis; the kernel has ``k'`` by ``k'``
parameters. And its positional embedding (Eq. 3) has ``K**2`` per channel and stage: it is quadratic,
though shared by the blocks of a stage and by none of the curves of Fig. 6.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from mmengine.registry import MODELS
from torch import nn

from mmpelk.analysis.table import Table
from mmpelk.config import get_config
from mmpelk.models import PeLK
from mmpelk.ops import sharing_grid

from .figures import figure_path, write_figure
from .marks import computed, deviation, paper
from .paper import GROWTH, PARAMETERS_SAVED

#: From 7 to 151, as in Fig. 6; the paper does not list its points.
KERNEL_SIZES = (7, 13, 21, 31, 41, 51, 61, 71, 81, 91, 101, 111, 121, 131, 141, 151)
_SHOWN = (7, 13, 31, 51, 101, 151)  # of these, in the table
_MIXERS = ('peripheral', 'stripe', 'dense')
_EMBEDDING = 'peripheral with h'
# By curve: what its legend adds in (a) and (b); line, marker and grey, each of which alone tells the curves apart.
CURVES: dict[str, tuple[str, str, dict[str, str]]] = {
    'dense': ('dense $K \\times K$', '$K^2$', dict(linestyle='-', marker='s', color='0.0')),
    'stripe': ('stripe $K \\times 5 + 5 \\times K$', '$10\\,K$', dict(linestyle='--', marker='^', color='0.3')),
    'peripheral': ('peripheral', "$k'^2 = O(\\log^2 K)$", dict(linestyle='-', marker='o', color='tab:red')),
    _EMBEDDING: ('peripheral, with the embeddings $h$ of Eq. 3', '', dict(linestyle=':', marker='x', color='0.3')),
}


class Size(NamedTuple):
    """Parameters of ConvNeXt-T with other kernels; biases and norms are no part of a kernel."""

    kernel: int  # of one kernel of the first stage, per channel
    kernels: int  # of all kernels
    network: int  # of the whole network, classifier included


@functools.cache
def measure(curve: str, kernel_sizes: int | tuple[int, ...], center_size: int = 5) -> Size:
    """Build ConvNeXt-T with other kernels and count its parameters.

    Args:
        curve: A name of :data:`CURVES`. ``'peripheral with h'``, which the paper's figure does not have, is the network
            as it is trained with the positional embedding: a norm per block instead of a bias, ``h`` in every stage.
        kernel_sizes: One side ``K`` for all stages, or one per stage; odd.
        center_size: Side of the fine-grained centre of peripheral kernels, odd; cut to ``K``.

    Raises:
        ValueError: If a size is not odd and positive, or the sizes are not one per stage.
    """
    convnext, trained = _convnext(), curve == _EMBEDDING
    sides = (kernel_sizes,) * len(convnext.depths) if isinstance(kernel_sizes, int) else kernel_sizes
    arch = dict(depths=convnext.depths, channels=convnext.channels, kernel_sizes=sides)
    with torch.device('meta'):
        network = PeLK(
            arch=arch | dict(center_size=min(center_size, max(sides))),
            mixer='peripheral' if trained else curve,
            conv_ratio=1.0,
            small_kernel_size=0,
            positional_embedding='in_bounds' if trained else None,
            deploy=not trained,
        )
        classifier = nn.Linear(convnext.channels[-1], 1000)
    large = [block.mixer.large for stage in network.stages for block in stage]
    kernels = [_count(weight for weight in one.parameters() if weight.dim() > 1) for one in large]
    return Size(
        kernels[0] // convnext.channels[0],
        sum(kernels),
        _count(network.parameters()) + _count(classifier.parameters()),
    )


@functools.cache
def _convnext() -> PeLK:
    """The backbone of the project's ConvNeXt-T recipe, for its depths and widths."""
    with torch.device('meta'):
        return MODELS.build(get_config('cls/convnext_t_in1k.py').model.backbone)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def size_table() -> Table:
    """Fig. 6 in numbers, at the kernel sizes of the paper's networks."""
    curves = [*_MIXERS, _EMBEDDING]
    heads = ['K', "rings k'", *(f'{curve} [M]' for curve in curves)]
    table = Table(heads, title='Parameters of ConvNeXt-T with its kernels replaced in all stages')
    for side in _SHOWN:
        sizes = [measure(curve, side) for curve in curves]
        rings = computed(len(sharing_grid(side, 5)), 0)
        table.add(str(side), rings, *(computed(size.network / 1e6, 1) for size in sizes))
    return table


def growth_table() -> Table:
    """The multiples of parameters that Section 3 and Fig. 2 state for 7 to 51.

    The paper's are those of one kernel. Those of the kernels of a whole ConvNeXt-T are smaller, because its last and
    widest stage goes to 13 only.
    """
    heads = ['mixer', 'parameters, K 51 to 7', 'one kernel', 'deviation', 'all kernels of ConvNeXt-T, 51-49-47-13 to 7']
    table = Table(heads, title='By what factor the parameters of large kernels grow')
    for mixer in _MIXERS:
        large, small = measure(mixer, (51, 49, 47, 13)), measure(mixer, 7)
        kernel, printed = round(large.kernel / small.kernel, 1), GROWTH.get(mixer)
        network = computed(large.kernels / small.kernels, 1)
        table.add(mixer, paper(printed, 1), computed(kernel, 1), deviation(kernel, printed), network)
    return table


def saved_table() -> Table:
    """Share of a dense kernel's parameters that the peripheral one does without."""
    table = Table(['kernel', 'parameters saved [%]', 'here'])
    for side, center_size in ((51, 5), (101, 7)):
        share = measure('peripheral', side, center_size).kernel / measure('dense', side).kernel
        table.add(f'{side} x {side}', paper(f'over {PARAMETERS_SAVED}'), computed(100 * (1 - share), 1))
    return table


def draw() -> Figure:
    """Fig. 6, and beside it what it rests on: the parameters of one kernel.

    The curves have markers at :data:`KERNEL_SIZES`; between them every odd size counts.
    """
    every = range(KERNEL_SIZES[0], KERNEL_SIZES[-1] + 1, 2)
    figure = Figure(figsize=(11, 4.8), dpi=110, layout='constrained')
    networks, kernels = figure.subplots(1, 2)
    for curve, (label, order, style) in CURVES.items():
        sizes = [measure(curve, side) for side in every]
        options = dict(markevery=[every.index(side) for side in KERNEL_SIZES], markersize=5, **style)
        networks.plot(every, [size.network / 1e6 for size in sizes], label=label, **options)
        if order:
            kernels.plot(every, [size.kernel for size in sizes], label=f'{label}: {order}', **options)
    networks.set(title='(a) ConvNeXt-T, kernels replaced in all stages', ylabel='parameters, M')
    networks.set_ylim(bottom=0)
    kernels.set(title='(b) One kernel', ylabel='parameters per channel', xscale='log', yscale='log')
    # Plain numbers on the logarithmic axis.
    ticks = (7, 13, 31, 51, 101, 151)
    kernels.set_xticks(ticks, map(str, ticks))
    kernels.set_xticks([], minor=True)
    for axes in (networks, kernels):
        axes.set_xlabel('kernel size $K$, positions')
        axes.grid(alpha=0.3)
        axes.legend(loc='upper left')
    return figure


def main() -> None:
    path = figure_path('scaling', __doc__)
    size_table().print()
    growth_table().print()
    write_figure(draw(), path)


if __name__ == '__main__':
    main()
