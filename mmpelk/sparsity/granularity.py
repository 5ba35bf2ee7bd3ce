"""Mask granularities: single weights, hidden units, or two of every four weights."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from mmengine.dist import broadcast
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.models.hidden_units import PAIRS, HiddenUnits, find_hidden_units

from .initialisation import active_total, random_mask, uniform
from .masks import MaskedParameter, find_parameters
from .two_of_four import is_two_of_four, prune_and_grow_two_of_four, random_two_of_four
from .update import prune_and_grow

Target = str | Sequence[str] | None


class Layer:
    """Masks that are drawn and updated together; here each weight of a parameter has a mask of its own.

    Attributes:
        name: Name of the parameter, or of the block.
        parameters: The parameters that are masked.
        shape: Shape of the weights as an initialisation counts them.
    """

    name: str
    parameters: tuple[MaskedParameter, ...]
    shape: tuple[int, ...]

    def __init__(self, entry: MaskedParameter) -> None:
        self.name, self.parameters, self.shape = entry.name, (entry,), tuple(entry.weight.shape)

    def score(self, scores: Sequence[Tensor]) -> Tensor:
        """Scores of :attr:`shape` from those of the parameters."""
        return scores[0]

    def draw(self, active: int, generator: torch.Generator) -> None:
        """Draw the masks at random, with about ``active`` active weights; the generator is on the CPU."""
        self.parameters[0].mask.copy_(random_mask(self.shape, active, generator))

    def update(self, prune_rate: float, generator: torch.Generator) -> int:
        """Drop and grow; the generator is on the masks' device. Returns the weights that were replaced."""
        return prune_and_grow(self.parameters[0].weight, self.parameters[0].mask, prune_rate, generator)

    def start_grown(self, averages: Sequence[BaseAveragedModel], generator: torch.Generator) -> None:
        """Give what the last update grew its first values, if those are not zero; the generator is on the CPU."""

    def misfit(self) -> str | None:
        """Why the masks of a checkpoint are not of this granularity, or ``None``."""
        return None


class TwoOfFourLayer(Layer):
    """Two of every four weights along the input of a linear layer; the density is fixed."""

    def draw(self, active: int, generator: torch.Generator) -> None:
        rows, columns = self.shape
        self.parameters[0].mask.copy_(random_two_of_four((rows, columns), generator))

    def update(self, prune_rate: float, generator: torch.Generator) -> int:
        return prune_and_grow_two_of_four(self.parameters[0].weight, self.parameters[0].mask, prune_rate, generator)

    def misfit(self) -> str | None:
        return None if is_two_of_four(self.parameters[0].mask) else f'more than two of four in {self.name}'


# Matrix products are slow on rows of an odd length: on a CPU, 283 units of PeLK-T's first stage take 1.36 times as long
# as 288. Where the next multiple is at most 2 % away, a block keeps as many.
_MULTIPLE = 8
_ROUNDED_FROM = 200


class UnitLayer(Layer):
    """The hidden units of a block: a row of the first layer, its bias, and a column of the second.

    - The saliency of a unit is the norm of its row times the norm of its column. Scaling the one up and the other down
      by a factor leaves it as it is, and, where the activation is homogeneous, the network as well.
    - What grows starts with a random row, as large as the others' are on average, no bias and a column of zeros: the
      network's outputs stay as they were. With a row of zeros, too, the gradients of both would stay zero.
    """

    def __init__(self, units: HiddenUnits) -> None:
        self.units, self.name = units, units.block_name
        self.parameters = tuple(
            MaskedParameter(f'{units.block_name}.{name}'.lstrip('.'), layer, attribute, dim)
            for name, layer, attribute, dim in (
                (units.first_name, units.first, 'weight', 0),
                (units.first_name, units.first, 'bias', 0),
                (units.second_name, units.second, 'weight', 1),
            )
            if getattr(layer, attribute, None) is not None
        )
        self.shape = units.count, sum(entry.weight.numel() for entry in self.parameters) // units.count
        self._before_growth: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Mask of the units, ``(hidden,)``: true where one is active."""
        return self.parameters[0].mask.flatten()

    @mask.setter
    def mask(self, active: Tensor) -> None:
        for entry in self.parameters:
            entry.mask.copy_(active.view(entry.mask_shape))

    def score(self, scores: Sequence[Tensor]) -> Tensor:
        """Every weight of a unit has the mean score of all of its weights."""
        per_unit = sum(
            score.transpose(0, entry.unit_dim or 0).flatten(1).sum(1) if score.dim() > 1 else score
            for score, entry in zip(scores, self.parameters, strict=True)
        )
        assert isinstance(per_unit, Tensor)
        return (per_unit / self.shape[1])[:, None].expand(self.shape)

    def units_of(self, weights: int) -> int:
        """How many units have about so many weights; at least one, and of hundreds a multiple of 8."""
        count, cost = self.shape
        units = min(max(1, round(weights / cost)), count)
        return units if units < _ROUNDED_FROM else min(_MULTIPLE * round(units / _MULTIPLE), count)

    def draw(self, active: int, generator: torch.Generator) -> None:
        self.mask = random_mask(self.shape[:1], self.units_of(active), generator)

    def saliency(self) -> Tensor:
        """Norm of the row times norm of the column of every unit, ``(hidden,)``."""
        row, column = self.parameters[0].weight.detach(), self.parameters[-1].weight.detach()
        return row.flatten(1).norm(dim=1) * column.transpose(0, 1).flatten(1).norm(dim=1)

    def update(self, prune_rate: float, generator: torch.Generator) -> int:
        before, after = self.mask.clone(), self.mask.clone()
        count = prune_and_grow(self.saliency(), after, prune_rate, generator)
        self._before_growth, self.mask = before, after
        return count * self.shape[1]

    def start_grown(self, averages: Sequence[BaseAveragedModel], generator: torch.Generator) -> None:
        assert self._before_growth is not None, 'update comes first'
        before, self._before_growth = self._before_growth, None
        grown = self.mask & ~before
        weight = self.parameters[0].weight
        with torch.no_grad():
            scale = weight[before].square().mean().sqrt()
            rows = torch.randn((int(grown.sum()), *weight.shape[1:]), generator=generator).to(weight) * scale
            broadcast(rows, src=0)  # each rank would draw the same, but its own scale may differ in the last digit
            for model in (None, *averages):
                # An average starts at the grown values; from zero it would need its whole horizon to reach them.
                first = (
                    self.units.first if model is None else model.module.get_submodule(self.parameters[0].module_name)
                )
                first.get_parameter('weight')[grown] = rows


def _weights(model: nn.Module, target: Target, exclude: Collection[str]) -> list[Layer]:
    return [Layer(entry) for entry in find_parameters(model, target, exclude)]


def _units(model: nn.Module, target: Target, exclude: Collection[str]) -> list[Layer]:
    find_parameters(model, target, exclude)  # raises for a wrong target
    found = find_hidden_units(model, target, exclude)
    if not found:
        raise UserError(
            f"granularity='unit', but no block in {target!r} has two linear layers named "
            f'{" or ".join(", ".join(pair) for pair in PAIRS)} with nothing but an activation between them; '
            "take granularity='weight'"
        )
    return [UnitLayer(units) for units in found]


def _two_of_four(model: nn.Module, target: Target, exclude: Collection[str]) -> list[Layer]:
    linear = [entry for entry in find_parameters(model, target, exclude) if isinstance(entry.module, nn.Linear)]
    if not linear:
        raise UserError(f"granularity='2:4', but there is no linear layer in {target!r}; take granularity='weight'")
    return [TwoOfFourLayer(entry) for entry in linear]


GRANULARITIES: Mapping[str, Callable[[nn.Module, Target, Collection[str]], list[Layer]]] = {
    'weight': _weights,
    'unit': _units,
    '2:4': _two_of_four,
}
"""Finds the layers of a model, by granularity: a function of the model, the target and what to exclude."""


def active_in_units(
    layers: Sequence[Layer], model: nn.Module, density: float, target: Target = None, exclude: Collection[str] = ()
) -> int:
    """Active weights of hidden units that make the whole target as sparse as single weights would.

    Args:
        layers: The model's :class:`UnitLayer`, within the target.
        model: The model.
        density: Share of the weights of the whole target that are active.
        target: As :func:`.masks.find_parameters` takes it.
        exclude: Likewise.

    Raises:
        ValueError: If the units have too few weights.
    """
    whole = [entry.weight.numel() for entry in find_parameters(model, target, exclude)]
    inside = sum(math.prod(layer.shape) for layer in layers)
    active = inside - sum(whole) + active_total(whole, density)
    if active < sum(layer.shape[1] for layer in layers):
        raise UserError(
            f'density={density} is too low for units: they hold {inside / sum(whole):.0%} of the weights of the '
            "target, and the others are all active; raise it, or take granularity='weight'"
        )
    return active


def uniform_units(model: nn.Module, density: float, target: Target = None) -> dict[str, int]:
    """Hidden units of every block that ``SparsityHook(granularity='unit', initialisation='uniform')`` keeps active.

    Args:
        model: The model.
        density: Share of the weights of the whole target that are active.
        target: As :func:`.masks.find_parameters` takes it.

    Returns:
        The numbers by the names of the blocks, in the model's order.
    """
    layers = [layer for layer in _units(model, target, ()) if isinstance(layer, UnitLayer)]
    active = uniform([math.prod(layer.shape) for layer in layers], active_in_units(layers, model, density, target))
    return {layer.name: layer.units_of(weights) for layer, weights in zip(layers, active, strict=True)}
