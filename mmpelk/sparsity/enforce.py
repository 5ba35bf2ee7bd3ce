"""Keep inactive weights, their optimizer moments and their averaged copies exactly zero."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn
from torch.optim import Optimizer

from .masks import MaskedParameter, apply_masks, attach_masks


class StepMasker:
    """Multiply the weights of one optimizer, and their moments, by the masks after each of its steps.

    It is called by the optimizer itself (``register_step_post_hook``): with gradient accumulation or a step that a
    gradient scaler skips it runs exactly as often as the weights change. All tensors go through one fused multiply,
    and nothing in it waits for the device. For optimizers that work weight by weight (SGD, Adam, AdamW, …) that equals
    masking the gradients, and it also holds for those that mix weights.

    The fused multiply needs masks in the weights' own dtype. They are kept here, derived from the model's boolean masks
    and never saved: one more copy of the masked weights in memory. Call :meth:`refresh` after a mask has changed.

    Args:
        optimizer: The optimizer.
        parameters: The masked parameters of the model; those that the optimizer does not update are left out.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[MaskedParameter]) -> None:
        updated = {id(weight) for group in optimizer.param_groups for weight in group['params']}
        self.optimizer = optimizer
        self.parameters = [parameter for parameter in parameters if id(parameter.weight) in updated]
        self._factors: list[tuple[nn.Parameter, Tensor]] = []
        self._handle = optimizer.register_step_post_hook(self._after_step)
        self.refresh()

    def refresh(self) -> None:
        """Take over the model's masks, and apply them to weights and moments."""
        self._factors = [(entry.weight, entry.mask.to(entry.weight.dtype)) for entry in self.parameters]
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the inactive weights, and every state of the optimizer that has their shape."""
        # A list for each dtype: a fused multiply takes tensors of one dtype, and moments may be kept in another.
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        # The lists are built anew each time, since the optimizer makes its state in the first step and replaces it on
        # loading.
        for weight, factor in self._factors:
            for tensor in (weight, *self.optimizer.state.get(weight, {}).values()):
                if isinstance(tensor, Tensor) and tensor.shape == weight.shape:
                    tensors, factors = groups.setdefault(tensor.dtype, ([], []))
                    tensors.append(tensor)
                    factors.append(factor)
        for tensors, factors in groups.values():
            # torch.optim's own multi-tensor kernels; there is no public name for them.
            torch._foreach_mul_(tensors, factors)

    def close(self) -> None:
        """Leave the optimizer alone from now on."""
        self._handle.remove()

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.apply()


def mask_average(average: BaseAveragedModel, parameters: Sequence[MaskedParameter]) -> None:
    """Give an averaged copy of the model the model's masks, and zero its inactive weights.

    Needed only when masks change: an average of zeros stays zero.

    Args:
        average: The averaged model, of the same structure as the model.
        parameters: The masked parameters of the model.
    """
    copies = [replace(entry, module=average.module.get_submodule(entry.module_name)) for entry in parameters]
    attach_masks(copies)
    for copy, entry in zip(copies, parameters, strict=True):
        copy.mask.copy_(entry.mask)
    apply_masks(copies)
