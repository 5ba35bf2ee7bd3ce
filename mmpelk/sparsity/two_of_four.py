"""Two of four: of every four consecutive inputs of a linear layer at most two are active, as sparse tensor cores ask.

Where a layer's inputs are no multiple of four, the last group is shorter: filled up with zeros, it keeps the pattern.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUP, _ACTIVE = 4, 2
_TILE = 64  # rows and columns that torch's kernels take for half precision come in multiples of it, or of less


def _grouped(values: Tensor, fill: float) -> Tensor:
    """``(out, in)`` to ``(out, groups, 4)``, the last group filled up."""
    return F.pad(values, (0, -values.shape[1] % _GROUP), value=fill).view(len(values), -1, _GROUP)


def is_two_of_four(active: Tensor) -> bool:
    """Whether ``(out, in)``, a mask or a weight, has at most two active or non-zero values in every group."""
    return bool((_grouped(active != 0, False).sum(-1) <= _ACTIVE).all())


def random_two_of_four(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A mask ``(out, in)`` with two of every four active, each choice equally likely; a last group of up to two whole.

    Args:
        shape: Outputs and inputs.
        generator: On the CPU, so that the same seed gives the same mask on every machine.
    """
    order = _grouped(torch.rand(shape, generator=generator), fill=1.0).argsort(dim=-1, stable=True)
    active = torch.zeros(order.shape, dtype=torch.bool).scatter_(-1, order[..., :_ACTIVE], True)
    return active.flatten(1)[:, : shape[1]].contiguous()


@torch.no_grad()
def prune_and_grow_two_of_four(weight: Tensor, mask: Tensor, prune_rate: float, generator: torch.Generator) -> int:
    """As :func:`.update.prune_and_grow`, within groups: the smaller active weight drops, an inactive one grows.

    One weight of a group can be replaced at a time, so that at most half of the active ones are.

    Args:
        weight: ``(out, in)``.
        mask: Its mask, of this pattern; changed in place.
        prune_rate: Share of the active weights to drop: those groups give one whose smaller weights are smallest.
        generator: Source of the random growth, on the mask's device.

    Returns:
        How many weights were dropped, and so how many were grown.
    """
    active, inactive = _grouped(mask, False), _grouped(~mask, False)
    magnitude = torch.where(active, _grouped(weight.detach().abs(), 0.0), torch.inf)
    drop = magnitude.argsort(dim=-1, stable=True)[..., :1]
    grow = torch.where(inactive, torch.rand(inactive.shape, generator=generator, device=inactive.device), -1.0).argmax(
        -1, True
    )
    smallest = torch.where(inactive.any(-1), magnitude.gather(-1, drop).squeeze(-1), torch.inf).flatten()
    count = min(round(prune_rate * int(mask.sum())), int(smallest.isfinite().sum()))
    chosen = torch.zeros_like(smallest, dtype=torch.bool)
    chosen[smallest.argsort(stable=True)[:count]] = True
    chosen = chosen.view(*inactive.shape[:2], 1)
    active = active.scatter(-1, drop, active.gather(-1, drop) & ~chosen)
    active = active.scatter(-1, grow, active.gather(-1, grow) | chosen)
    mask.copy_(active.flatten(1)[:, : mask.shape[1]])
    return count


class SemiStructuredLinear(nn.Module):
    """A linear layer whose weight torch stores as two of four, for inference in half precision on a GPU.

    Sides are filled up to what the kernels take, the input as well.

    Args:
        linear: A layer with a weight of that pattern, in half precision, on a GPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self.missing = -linear.in_features % _TILE
        weight = F.pad(linear.weight.detach(), (0, self.missing, 0, -linear.out_features % _TILE))
        self.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(weight), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        rows = F.pad(x, (0, self.missing)).flatten(0, -2)
        out = F.linear(rows, self.weight)[:, : self.out_features].view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def to_semi_structured(model: nn.Module) -> list[str]:
    """Replace, in place, every linear layer of the pattern two of four by one that uses torch's sparse kernels.

    Call it on a model on a GPU, in half precision, with masks folded in.

    Returns:
        Names of the layers; those that have too many weights in some group are left.
    """
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and is_two_of_four(module.weight.detach())
    ]
    for name in names:
        owner, _, attribute = name.rpartition('.')
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(owner), attribute, SemiStructuredLinear(linear))
    return names
