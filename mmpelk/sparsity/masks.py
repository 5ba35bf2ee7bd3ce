"""Masks as state of the model: which parameters have one, where it is stored, how it is applied.

The mask of ``module.weight`` is the boolean buffer ``module.weight_mask``. Being a buffer, it is saved in and restored
from checkpoints, moved by ``.to()`` and copied with the model (``EMAHook`` deep-copies it). Being boolean, it costs
one byte a weight, survives ``.half()``, and is never averaged by an EMA that also averages floating-point buffers.
A mask of whole rows or columns has the size 1 along the others.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.dist import broadcast, get_world_size
from torch import Tensor, nn

from mmpelk.models.weights.checkpoint import MASK_SUFFIX
from mmpelk.models.weights.facts import facts_of, with_facts


@dataclass(frozen=True, eq=False)
class MaskedParameter:
    """A parameter that has, or can have, a mask.

    Attributes:
        module_name: Name of the owner in the model, such as ``'backbone.stages.0.0.pointwise_conv1'``.
        module: The owner.
        attribute: Name of the parameter in its owner, such as ``'weight'``.
        unit_dim: Dimension along which hidden units lie, each of which has one mask; None if every weight has its own.
    """

    module_name: str
    module: nn.Module
    attribute: str
    unit_dim: int | None = None

    @property
    def name(self) -> str:
        """Name of the parameter in the model's ``state_dict``."""
        return f'{self.module_name}.{self.attribute}' if self.module_name else self.attribute

    @property
    def mask_attribute(self) -> str:
        """Name of the mask in its owner."""
        return self.attribute + MASK_SUFFIX

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        return self.module.get_parameter(self.attribute)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape of the mask: the parameter's, or 1 in all dimensions but :attr:`unit_dim`."""
        return tuple(size if self.unit_dim in (None, dim) else 1 for dim, size in enumerate(self.weight.shape))

    @property
    def mask(self) -> Tensor:
        """The mask: boolean, of the shape :attr:`mask_shape`, true where the weight is active."""
        return self.module.get_buffer(self.mask_attribute)


def find_parameters(
    model: nn.Module, target: str | Sequence[str] | None = 'backbone', exclude: Collection[str] = ()
) -> list[MaskedParameter]:
    """The parameters that the masks cover: every 2-D and 4-D one of the target.

    That is SLaK's convention: weights of linear layers and 2-D convolutions, but not norms, biases and layer scales
    (1-D), nor a positional embedding of shape (C, K, K). A parameter that several modules share is listed once.

    Args:
        model: The model, unwrapped.
        target: Name of the submodule, or names of several; None for the whole model.
        exclude: Parameters whose name contains one of these strings stay dense (as ``custom_keys`` of mmengine match).

    Returns:
        The parameters in the model's order.

    Raises:
        ValueError: If the model has no such submodule, or nothing in it can be masked.
    """
    targets = [''] if target is None else [target] if isinstance(target, str) else list(target)
    found: list[MaskedParameter] = []
    seen: set[int] = set()
    for prefix in targets:
        try:
            root = model.get_submodule(prefix)
        except AttributeError:
            known = ', '.join(name for name, _ in model.named_children())
            raise ValueError(
                f'{type(model).__name__} has no submodule {prefix!r} to make sparse; it has: {known}. '
                'Name one of them as `target`, or use `target=None` for the whole model.'
            ) from None
        for module_name, module in root.named_modules(prefix=prefix):
            for attribute, parameter in module.named_parameters(recurse=False):
                if parameter.ndim not in (2, 4) or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                entry = MaskedParameter(module_name, module, attribute)
                if not any(text in entry.name for text in exclude):
                    found.append(entry)
    if not found:
        raise ValueError(f'nothing to make sparse: no 2-D or 4-D parameter in {targets} that is not in {list(exclude)}')
    return found


def attach_masks(parameters: Iterable[MaskedParameter]) -> None:
    """Register a mask of ones for every parameter that has none yet.

    Args:
        parameters: The parameters; an existing mask is left as it is.
    """
    for parameter in parameters:
        if parameter.mask_attribute not in dict(parameter.module.named_buffers(recurse=False)):
            ones = torch.ones(parameter.mask_shape, dtype=torch.bool, device=parameter.weight.device)
            parameter.module.register_buffer(parameter.mask_attribute, ones)


@torch.no_grad()
def apply_masks(parameters: Iterable[MaskedParameter]) -> None:
    """Set the inactive weights of every parameter to zero."""
    for parameter in parameters:
        parameter.weight.mul_(parameter.mask)


def remove_masks(model: nn.Module) -> None:
    """Multiply every mask of a model into its weights, and take the masks off: the model computes the same.

    Do so before weights are merged or converted, since a mask that stays would not fit what becomes of them.

    Args:
        model: The model or a part of it; changed in place. Without masks, nothing happens.
    """
    for module in model.modules():
        masks = dict(module.named_buffers(recurse=False))
        for attribute, weight in list(module.named_parameters(recurse=False)):
            mask = masks.get(attribute + MASK_SUFFIX)
            if mask is not None and is_mask_of(mask, weight):
                apply_masks([MaskedParameter('', module, attribute)])
                delattr(module, attribute + MASK_SUFFIX)


@torch.no_grad()
def broadcast_masks(parameters: Sequence[MaskedParameter]) -> None:
    """Give every rank the masks of rank 0, in one message. Without a process group, nothing happens.

    The ranks compute equal masks anyhow, but random numbers on accelerators may depend on the model of the accelerator.
    """
    if get_world_size() < 2:
        return
    packed = torch.cat([parameter.mask.flatten() for parameter in parameters]).to(torch.uint8)
    broadcast(packed, src=0)
    sizes = [parameter.mask.numel() for parameter in parameters]
    for parameter, values in zip(parameters, packed.split(sizes), strict=True):
        parameter.mask.copy_(values.view_as(parameter.mask))


def is_mask_of(mask: Tensor, weight: Tensor) -> bool:
    """Whether a tensor can be the mask of a parameter: boolean, and as large or 1 in every dimension."""
    return (
        mask.dtype == torch.bool
        and mask.dim() == weight.dim()
        and all(size in (1, whole) for size, whole in zip(mask.shape, weight.shape, strict=True))
    )


def mask_keys(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """The masks in a state dict.

    Args:
        state_dict: State dict of a model, or of a part of one.

    Returns:
        From each mask's key to the key of its parameter. A boolean entry of another sort, such as the attention mask of
        a transformer, is not among them: a mask has a parameter that it fits beside it.
    """
    keys: dict[str, str] = {}
    for key, value in state_dict.items():
        owner = key.removesuffix(MASK_SUFFIX)
        if owner != key and owner in state_dict and is_mask_of(value, state_dict[owner]):
            keys[key] = owner
    return keys


def fold_masks(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply the masks into their weights and leave them out.

    Args:
        state_dict: State dict of a model with masks; it is not changed.

    Returns:
        A state dict that the same model without masks loads strictly, and that computes the same.
    """
    masks = mask_keys(state_dict)
    folded = {key: value for key, value in state_dict.items() if key not in masks}
    for mask, owner in masks.items():
        folded[owner] = state_dict[owner] * state_dict[mask]
    return with_facts(folded, facts_of(state_dict))
