"""How many weights of each layer are active at the start, and which: SNIP, ERK, uniform.

Every function returns counts, which add up to the total *exactly*; a density is a count divided by the layer's size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

INITIALISATIONS = ('snip', 'erk', 'uniform')


def active_total(sizes: Sequence[int], density: float) -> int:
    """Active weights of all layers together: ``density`` of all, to the nearest one.

    Raises:
        ValueError: If ``density`` is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f'density must be in (0, 1], but is {density}: it is the share of active weights')
    return max(1, round(density * sum(sizes)))


def uniform(sizes: Sequence[int], total: int) -> list[int]:
    """The same density in every layer.

    Args:
        sizes: Weights of each layer.
        total: Active weights of all layers together.

    Returns:
        Active weights of each layer; they add up to ``total``.
    """
    share = total / sum(sizes)
    return _round_to_total([share * size for size in sizes], sizes, total)


def erk(shapes: Sequence[Sequence[int]], total: int) -> list[int]:
    """Erdős-Rényi-Kernel: density in proportion to (sum of the sides) / (product of the sides), at most 1.

    Source: Evci et al., "Rigging the Lottery" (ICML 2020), section 3; the sides are those of the stored parameter, as
    in SLaK.

    Args:
        shapes: Shape of each layer's parameter.
        total: Active weights of all layers together.

    Returns:
        Active weights of each layer; they add up to ``total``.
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while True:
        open_layers = [index for index in range(len(sizes)) if index not in dense]
        if not open_layers:
            break
        remaining = total - sum(sizes[index] for index in dense)
        scale = remaining / sum(raw[index] * sizes[index] for index in open_layers)
        over = {index for index in open_layers if scale * raw[index] > 1}
        if not over:
            break
        # A layer whose share exceeds 1 becomes dense, and the others share what it could not take: their scale rises,
        # so that others may exceed 1 now, and none that did comes back below it.
        dense.add(max(over, key=lambda index: raw[index]))
    ideal = [float(size) if index in dense else scale * raw[index] * size for index, size in enumerate(sizes)]
    return _round_to_total(ideal, sizes, total)


def snip(scores: Sequence[Tensor], total: int) -> list[int]:
    """How many of the globally largest scores lie in each layer.

    Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity" (ICLR 2019), with the score
    ``|w · ∂L/∂w|``. As in SLaK only the layers' shares are taken from it; the mask inside a layer is random.

    Args:
        scores: Score of every weight, a tensor of any shape for each layer.
        total: Active weights of all layers together.

    Returns:
        Active weights of each layer; they add up to ``total``. Among equal scores the earlier layer wins.

    Raises:
        ValueError: If a score is not finite.
    """
    flat = [score.detach().flatten().float().cpu() for score in scores]
    everything = torch.cat(flat)
    if not bool(everything.isfinite().all()):
        raise ValueError(
            'SNIP met a gradient that is not finite in its first batch; use initialisation="erk", '
            'or look for the cause: training would meet it too'
        )
    smallest_kept = everything.kthvalue(everything.numel() - total + 1).values
    counts = [int((score > smallest_kept).sum()) for score in flat]
    missing = total - sum(counts)
    for index, score in enumerate(flat):
        ties = min(missing, int((score == smallest_kept).sum()))
        counts[index] += ties
        missing -= ties
    assert missing == 0, f'{missing} weights too few'
    return counts


def random_mask(shape: Sequence[int], active: int, generator: torch.Generator) -> Tensor:
    """A mask of the given shape with exactly ``active`` true entries, each choice equally likely.

    Args:
        shape: Shape of the parameter.
        active: How many weights are active.
        generator: On the CPU, so that the same seed gives the same mask on every machine.

    Returns:
        The boolean mask, on the CPU.
    """
    size = math.prod(shape)
    assert 0 <= active <= size, f'{active} active weights in a layer of {size}'
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=generator)[:active]] = True
    return mask.view(*shape)


def _round_to_total(ideal: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Round to integers that add up to ``total``, by largest remainders, none above its layer's size."""
    counts = [min(int(value), size) for value, size in zip(ideal, sizes, strict=True)]
    missing = total - sum(counts)
    assert missing >= 0, f'{-missing} weights too many'
    by_remainder = sorted(range(len(ideal)), key=lambda index: counts[index] - ideal[index])
    while missing:
        for index in by_remainder:
            if missing and counts[index] < sizes[index]:
                counts[index] += 1
                missing -= 1
    return counts
