"""Record what a checkpoint holds: weights with masks, or without."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmpelk.models.hidden_units import HiddenUnits, fit_hidden_units

from .masks import MASK_SUFFIX, MaskedParameter, is_mask_of


@dataclass
class Loaded:
    """What the latest loads held.

    Attributes:
        weights: Names of the parameters whose weights were loaded.
        masks: Names of the parameters whose masks were loaded with them.
        misfits: Names of the parameters with masks of another granularity, which were left out.
    """

    weights: set[str] = field(default_factory=set)
    masks: set[str] = field(default_factory=set)
    misfits: set[str] = field(default_factory=set)

    @property
    def without_masks(self) -> set[str]:
        """Names of the parameters whose weights were loaded from a checkpoint that has no mask for them."""
        return self.weights - self.masks


class LoadTracker:
    """Watch the loading of checkpoints into a model, by any way.

    A checkpoint can come through ``load_from``, ``resume``, or a backbone's ``init_cfg=dict(type='Pretrained', ...)``.
    All of them end in ``Module._load_from_state_dict``, where this class has hooks. Masks of whole units are taken for
    single weights, too; masks for which the model has no place are taken out of what is loaded. A model with masks
    loads state dicts without them as well, even strictly, and keeps the masks that it has.

    Args:
        parameters: The parameters to watch.
        units: Blocks that become as narrow as what is loaded, where that is a shrunk checkpoint.
    """

    def __init__(self, parameters: Sequence[MaskedParameter], units: Sequence[HiddenUnits] = ()) -> None:
        self.loaded = Loaded()
        self._handles = [_before_loading(block.block, _make_fitter(block)) for block in units]
        self._handles += [_before_loading(entry.module, _make_listener(entry, self.loaded)) for entry in parameters]

    def close(self) -> Loaded:
        """Stop watching.

        Returns:
            What was loaded.
        """
        for handle in self._handles:
            handle.remove()
        return self.loaded


def _before_loading(module: nn.Module, listener: Callable[..., None]) -> RemovableHandle:
    if hasattr(module, 'register_load_state_dict_pre_hook'):
        return module.register_load_state_dict_pre_hook(listener)
    # Public since torch 2.5. Before, only the private name exists; the public one calls it with the same arguments.
    return module._register_load_state_dict_pre_hook(listener, with_module=True)


def _make_fitter(units: HiddenUnits) -> Callable[..., None]:
    names = units.first_name, units.second_name

    def fit(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        fit_hidden_units(HiddenUnits('', module, *names), state_dict, prefix)

    return fit


def _make_listener(entry: MaskedParameter, loaded: Loaded) -> Callable[..., None]:
    # A plain function, not a bound method: deep copies of the model (EMA) copy its hooks, and share functions as they
    # are.
    def listen(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        weight, mask = (state_dict.get(prefix + name) for name in (entry.attribute, entry.mask_attribute))
        for name, _parameter in module.named_parameters(recurse=False):
            # Masks that the model has no place for: inactive weights are zero anyway.
            if not hasattr(module, name + MASK_SUFFIX):
                state_dict.pop(prefix + name + MASK_SUFFIX, None)
        own = getattr(module, entry.mask_attribute, None)
        misfit = mask is not None and own is not None and not is_mask_of(mask, own)
        if weight is not None and own is not None:
            # No key is missing then, even in a strict load; the hook judges it when training starts.
            state_dict[prefix + entry.mask_attribute] = own if mask is None or misfit else mask.expand_as(own)
        if module is not entry.module or weight is None or weight.shape != entry.weight.shape:
            return  # a copy of the model, or nothing that will be loaded
        loaded.weights.add(entry.name)
        loaded.masks.discard(entry.name)
        loaded.misfits.discard(entry.name)
        if mask is not None and is_mask_of(mask, weight):
            (loaded.misfits if misfit else loaded.masks).add(entry.name)

    return listen
