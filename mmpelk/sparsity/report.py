"""Densities layer by layer, as data and as a table for the log."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .masks import MaskedParameter, mask_keys


@dataclass(frozen=True)
class LayerDensity:
    """How many weights of a parameter are active.

    Attributes:
        name: Name of the parameter.
        shape: Its shape.
        active: Active weights.
        size: All of its weights.
    """

    name: str
    shape: tuple[int, ...]
    active: int
    size: int

    @property
    def density(self) -> float:
        """Share of the weights that are active, 0 … 1."""
        return self.active / self.size


def layer_densities(parameters: Sequence[MaskedParameter]) -> list[LayerDensity]:
    """Count the active weights of each parameter. Waits for the device, once."""
    active = torch.stack([_count(entry.mask, entry.weight) for entry in parameters]).tolist()
    return [
        LayerDensity(entry.name, tuple(entry.weight.shape), count, entry.weight.numel())
        for entry, count in zip(parameters, active, strict=True)
    ]


def state_dict_densities(state_dict: Mapping[str, Tensor]) -> list[LayerDensity]:
    """Count the active weights of each parameter of a checkpoint that has a mask in it."""
    layers = [(owner, state_dict[owner], state_dict[mask]) for mask, owner in mask_keys(state_dict).items()]
    return [
        LayerDensity(owner, tuple(weight.shape), int(_count(mask, weight)), weight.numel())
        for owner, weight, mask in layers
    ]


def _count(mask: Tensor, weight: Tensor) -> Tensor:
    """Active weights: those of a unit are active together."""
    return mask.sum() * (weight.numel() // mask.numel())


def overall_density(layers: Sequence[LayerDensity]) -> float:
    """Share of all weights that are active, 0 … 1."""
    return sum(layer.active for layer in layers) / sum(layer.size for layer in layers)


def density_table(layers: Sequence[LayerDensity], grown: Mapping[str, int] | None = None) -> str:
    """A table of the layers, the sum below.

    Args:
        layers: One row each.
        grown: Weights that an update has replaced, by the parameter's name; None leaves the column out.

    Returns:
        The table as plain text, without a trailing newline.
    """
    table = Table(show_footer=True, box=None, pad_edge=False)
    total, active = sum(layer.size for layer in layers), sum(layer.active for layer in layers)
    table.add_column('parameter', 'all', no_wrap=True)
    table.add_column('shape', no_wrap=True)
    table.add_column('weights', str(total), justify='right', no_wrap=True)
    table.add_column('active', str(active), justify='right', no_wrap=True)
    table.add_column('density', f'{active / total:.4f}', justify='right', no_wrap=True)
    if grown is not None:
        table.add_column('dropped, grown', str(sum(grown.values())), justify='right', no_wrap=True)
    for layer in layers:
        shape = 'x'.join(map(str, layer.shape))
        row = [layer.name, shape, str(layer.size), str(layer.active), f'{layer.density:.4f}']
        table.add_row(*row, *([] if grown is None else [str(grown.get(layer.name, 0))]))
    text = io.StringIO()
    Console(file=text, width=1000, color_system=None).print(table)
    return '\n'.join(line.rstrip() for line in text.getvalue().splitlines())
