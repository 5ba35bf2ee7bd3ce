"""The hidden units of inverted bottlenecks: where they are in a network, and blocks that have fewer of them.

A unit is a row of the first linear layer with its bias, and a column of the second. A unit whose column is zero adds
nothing to any output, so it can be taken out of the tensors.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from mmpelk.errors import UserError

PAIRS = (
    ('pointwise_conv1', 'pointwise_conv2'),  # PeLK, mmpretrain's ConvNeXt
    ('fc1', 'fc2'),  # timm's Mlp
    ('layers.0.0', 'layers.1'),  # mmcv's FFN: Swin, ViT
    ('linear1', 'linear2'),  # torch's transformer layers
)
"""Names, in their block, of two linear layers with only an activation and dropout between them."""


@dataclass(frozen=True, eq=False)
class HiddenUnits:
    """The hidden units of one block.

    Attributes:
        block_name: Name of the block in the model.
        block: The module that owns both layers.
        first_name: Name, in the block, of the layer whose rows the units are.
        second_name: Name of the layer whose columns they are.
    """

    block_name: str
    block: nn.Module
    first_name: str
    second_name: str

    @property
    def first(self) -> nn.Module:
        """A linear layer or 1 x 1 convolution, weight ``(hidden, C)`` or ``(hidden, C, 1, 1)``."""
        return self.block.get_submodule(self.first_name)

    @property
    def second(self) -> nn.Module:
        """The other one, weight ``(C, hidden)`` or ``(C, hidden, 1, 1)``."""
        return self.block.get_submodule(self.second_name)

    @property
    def count(self) -> int:
        """How many units there are."""
        return self.first.get_parameter('weight').shape[0]

    def resize(self, count: int) -> None:
        """Give the layers another number of units, of undefined values, masks included.

        The parameters stay the same objects, so that an optimizer that has them keeps them. Only the hooks of
        data-parallel training know the old sizes: such a training is refused at its first forward.
        """
        for module, dim, sizes in (
            (self.first, 0, ('out_features', 'out_channels')),
            (self.second, 1, ('in_features', 'in_channels')),
        ):
            old = self.count if module is self.first else module.get_parameter('weight').shape[1]
            for tensor in (*module.parameters(recurse=False), *_masks(module)):
                if dim < tensor.dim() and tensor.shape[dim] == old:
                    shape = [count if i == dim else size for i, size in enumerate(tensor.shape)]
                    tensor.data = torch.ones(shape, dtype=tensor.dtype, device=tensor.device)
            for name in sizes:
                if hasattr(module, name):
                    setattr(module, name, count)
        if get_world_size() > 1:
            self.block.register_forward_pre_hook(_refuse_training)


def _masks(module: nn.Module) -> list[Tensor]:
    return [buffer for buffer in module.buffers(recurse=False) if buffer.dtype == torch.bool]


def _refuse_training(module: nn.Module, inputs: object) -> None:
    if module.training and torch.is_grad_enabled():
        raise UserError(
            'a shrunk checkpoint was loaded into a network of full width, which several processes cannot train: build '
            "it as narrow as the checkpoint, with --cfg-options model.backbone.hidden_channels='pretrained' or a list"
        )


def find_hidden_units(
    model: nn.Module, target: str | Sequence[str] | None = None, exclude: Collection[str] = ()
) -> list[HiddenUnits]:
    """The hidden units of every block that has them.

    A block has hidden units if two of its linear layers, or 1 x 1 convolutions, have one of the pairs of names
    :data:`PAIRS`, the second takes what the first gives, and no module of the block has a parameter for every unit
    besides: a norm over the units, such as ConvNeXt V2's, makes them depend on one another.

    Args:
        model: The model.
        target: Name of the submodule to look in, or names of several; None for the whole model.
        exclude: Layers whose weight's name contains one of these strings are left out, with their block.

    Returns:
        The units in the model's order, those of a block once.
    """
    targets = [''] if target is None else [target] if isinstance(target, str) else list(target)
    found: list[HiddenUnits] = []
    seen: set[nn.Module] = set()
    for prefix in targets:
        for name, module in model.get_submodule(prefix).named_modules(prefix=prefix):
            if module in seen:
                continue
            seen.add(module)
            for first, second in PAIRS:
                units = HiddenUnits(name, module, first, second)
                weights = [f'{name}.{layer}.weight'.lstrip('.') for layer in (first, second)]
                if _is_pair(units) and not any(text in weight for text in exclude for weight in weights):
                    found.append(units)
    return found


def _is_pair(units: HiddenUnits) -> bool:
    modules = dict(units.block.named_modules())
    first, second = modules.get(units.first_name), modules.get(units.second_name)
    if first is None or second is None or not (_is_linear(first) and _is_linear(second)):
        return False
    hidden, channels = first.get_parameter('weight').shape[:2]
    if second.get_parameter('weight').shape[1] != hidden:
        return False
    others = [child for child in units.block.children() if child is not first and child is not second]
    per_unit = (p for child in others for p in child.parameters(recurse=False) if tuple(p.shape) == (hidden,))
    return hidden == channels or next(per_unit, None) is None


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def fit_hidden_units(units: HiddenUnits, state_dict: Mapping[str, Tensor], prefix: str = '') -> None:
    """Give a block as many units as a checkpoint has for it, if that has all tensors of the units and another number.

    Args:
        units: Those of the block.
        state_dict: State dict of a model with the block.
        prefix: What stands before the block's own names in it.
    """
    weights = [state_dict.get(f'{prefix}{name}.weight') for name in (units.first_name, units.second_name)]
    if all(weight is not None and weight.dim() >= 2 for weight in weights):
        first, second = (weight for weight in weights if weight is not None)
        own = units.first.get_parameter('weight').shape
        # Of another width in its other dimensions, it is no checkpoint of this network, which loading reports.
        bias = units.first.bias is None or f'{prefix}{units.first_name}.bias' in state_dict
        if bias and first.shape[0] == second.shape[1] != own[0] and first.shape[1:] == own[1:]:
            units.resize(first.shape[0])


def fit_all_hidden_units(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """:func:`fit_hidden_units` for every block of a model, whose checkpoint is given."""
    for units in find_hidden_units(model):
        fit_hidden_units(units, state_dict, f'{units.block_name}.'.lstrip('.'))


def shrink_hidden_units(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Take the inactive units, whose column is zero, out of every block, by the rule of :func:`find_hidden_units`.

    Args:
        state_dict: State dict of a model, with masks folded in; it is not changed.

    Returns:
        State dict of the same function with narrower blocks, and the number of units of every block that became so.
    """
    shrunk, counts = dict(state_dict), {}
    for key, first in state_dict.items():
        for first_name, second_name in PAIRS:
            block = key.removesuffix(f'{first_name}.weight')
            second = state_dict.get(f'{block}{second_name}.weight')
            if block == key or (block and block[-1] != '.') or second is None or not _fit(first, second):
                continue
            bias = f'{block}{first_name}.bias'
            others = {name for name in state_dict if name.startswith(block) and name.count('.') == block.count('.') + 1}
            per_unit = {name for name in others - {bias} if tuple(state_dict[name].shape) == (len(first),)}
            active = second.flatten(2).any(-1).any(0) if second.dim() > 2 else second.any(0)
            if active.all() or (per_unit and len(first) != first.shape[1]):
                continue
            active[0] |= ~active.any()  # a layer has at least one
            shrunk[key], shrunk[f'{block}{second_name}.weight'] = first[active], second[:, active]
            if bias in state_dict:
                shrunk[bias] = state_dict[bias][active]
            counts[block.removesuffix('.')] = int(active.sum())
    return shrunk, counts


def _fit(first: Tensor, second: Tensor) -> bool:
    """Whether two weights can be those of a pair: linear layers or 1 x 1 convolutions."""
    shapes = first.dim() == second.dim() in (2, 4) and first.shape[2:].numel() == second.shape[2:].numel() == 1
    return shapes and len(first) == second.shape[1]
