"""Drop the smallest weights, grow as many at random: one update of the masks, and its rate."""

import math

import torch
from torch import Tensor


def cosine_prune_rate(iteration: int, max_iters: int, start: float, end: float = 0.005) -> float:
    """Share of the active weights that an update replaces: a cosine from ``start`` to ``end`` over the whole run.

    Args:
        iteration: Iterations done, 0 … ``max_iters``.
        max_iters: Iterations of the run.
        start: Rate at iteration 0.
        end: Rate at the end (0.005 in SLaK).

    Returns:
        The rate. It depends on nothing else, so that a resumed run continues with the same one.
    """
    return end + (start - end) * (1 + math.cos(math.pi * iteration / max_iters)) / 2


@torch.no_grad()
def prune_and_grow(weight: Tensor, mask: Tensor, prune_rate: float, generator: torch.Generator) -> int:
    """Change a layer's mask in place: drop the smallest active weights, and grow as many inactive ones.

    What grows is drawn among the weights that were inactive *before*, so that none returns in the update that drops it.
    A layer with fewer inactive weights than there are to drop replaces only so many, and a dense layer none. The
    weights are not touched: zero the inactive ones afterwards. A grown weight then starts at zero, with zero moments
    (RigL's convention).

    Args:
        weight: The layer's weights.
        mask: Its mask, boolean, of the same shape; changed in place.
        prune_rate: Share of the active weights to drop, rounded to the nearest count.
        generator: Source of the random growth, on the mask's device.

    Returns:
        How many weights were dropped, and so how many were grown.
    """
    assert mask.is_contiguous(), 'view(-1) below must not be a copy'
    flat = mask.view(-1)
    active = flat.nonzero().squeeze(1)
    inactive = (~flat).nonzero().squeeze(1)
    count = min(round(prune_rate * active.numel()), inactive.numel())
    # A stable sort: equal magnitudes (weights just grown are exactly zero) fall in the same order on every rank and
    # run.
    magnitude = weight.detach().reshape(-1)[active].abs()
    dropped = active[magnitude.argsort(stable=True)[:count]]
    grown = inactive[torch.randperm(inactive.numel(), generator=generator, device=inactive.device)[:count]]
    flat[dropped] = False
    flat[grown] = True
    return count
