"""Shares of the FLOPs: of head and backbone, and of the backbone's parts (the paper's Fig. 5)."""

from dataclasses import dataclass

from .complexity import Complexity
from .paper import STATEMENTS

__all__ = ['PAPER_SHARES', 'FlopShares', 'Share', 'flop_shares']

# Names in Fig. 5b of the components that count_complexity tells apart.
_NAMES = dict(
    ffn='FFN',
    large_kernels='large kernels',
    stem='downsampling, stem included',
    downsampling='downsampling, stem included',
)
_EMBEDDING = 'positional embedding'
#: What Section 6.2 states for UperNet PeLK-T at 2048x512, in per cent of the backbone: "approximately 25%", "only
#: 0.05%". Its text has no other share; the rest of Fig. 5 is in the pictures only.
PAPER_SHARES = {
    'large kernels': STATEMENTS['fig5_large_kernels'].value,
    _EMBEDDING: STATEMENTS['fig5_embedding'].value,
}


@dataclass(frozen=True)
class Share:
    """A piece of Fig. 5.

    Attributes:
        name: As in the figure.
        flops: Multiply-adds, each layer times its density; for the embedding, additions and multiplications.
        percent: Of the whole that it is a share of.
        counted: Whether the whole contains it. The embedding's term is outside: additions and look-ups are no
            convolution, and the paper's totals come out without it.
    """

    name: str
    flops: int
    percent: float
    counted: bool = True


@dataclass(frozen=True)
class FlopShares:
    """Fig. 5 as data.

    Attributes:
        total: FLOPs of the model.
        backbone_total: FLOPs of its backbone.
        parts: Fig. 5a: backbone, neck, heads, in the order of the model.
        components: Fig. 5b: FFN, large kernels and what else the backbone has, the largest first.
    """

    total: int
    backbone_total: int
    parts: tuple[Share, ...]
    components: tuple[Share, ...]


def flop_shares(complexity: Complexity) -> FlopShares:
    """Fig. 5 of any model.

    Args:
        complexity: From :func:`mmpelk.analysis.complexity.count_complexity`, with the densities to count with.

    Returns:
        Shares of the model's parts, and of the backbone's components.
    """
    total, backbone = complexity.flops_sparse, complexity.part('backbone')
    assert backbone, 'every model has a backbone with convolutions'
    names = dict.fromkeys(component.part for component in complexity.components)
    parts = [Share(name, complexity.part(name), 100 * complexity.part(name) / total) for name in names]

    sums: dict[str, int] = {}
    for component in complexity.components:
        if component.part == 'backbone' and component.flops_sparse:
            name = _NAMES.get(component.name, component.name.replace('_', ' '))
            sums[name] = sums.get(name, 0) + component.flops_sparse
    components = [Share(name, flops, 100 * flops / backbone) for name, flops in sums.items()]
    components.sort(key=lambda share: -share.flops)
    components += [
        Share(_EMBEDDING, left_out.flops, 100 * left_out.flops / backbone, counted=False)
        for left_out in complexity.left_out
        if left_out.name == 'embedding'
    ]
    return FlopShares(total, backbone, tuple(part for part in parts if part.flops), tuple(components))
