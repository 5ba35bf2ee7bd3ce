"""Notice what a checkpoint brings: weights with masks, or without."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .masks import MaskedParameter

__all__ = ['LoadTracker', 'Loaded']


@dataclass
class Loaded:
    """What the latest loads brought.

    Attributes:
        weights: Names of the parameters whose weights were loaded.
        masks: Names of the parameters whose masks were loaded with them.
    """

    weights: set[str] = field(default_factory=set)
    masks: set[str] = field(default_factory=set)

    @property
    def without_masks(self) -> set[str]:
        """Names of the parameters whose weights were loaded from a checkpoint that has no mask for them."""
        return self.weights - self.masks


class LoadTracker:
    """Watch the loading of checkpoints into a model, whatever starts it.

    A checkpoint can come through ``load_from``, ``resume``, or a backbone's ``init_cfg=dict(type='Pretrained', ...)``.
    All of them end in ``Module._load_from_state_dict``, where this class listens.

    Args:
        parameters: The parameters to watch.
        drop_masks: Whether to take the masks out of what is loaded, for a model that has none. Otherwise a model with
            masks loads state dicts without them as well, even strictly, and keeps the masks that it has.
    """

    def __init__(self, parameters: Sequence[MaskedParameter], drop_masks: bool = False) -> None:
        self.loaded = Loaded()
        self._handles = [
            _before_loading(entry.module, _make_listener(entry, self.loaded, drop_masks)) for entry in parameters
        ]

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


def _make_listener(entry: MaskedParameter, loaded: Loaded, drop_masks: bool) -> Callable[..., None]:
    # A plain function, not a bound method: deep copies of the model (EMA) copy its hooks, and share functions as they
    # are.
    def listen(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        weight, mask = (state_dict.get(prefix + name) for name in (entry.attribute, entry.mask_attribute))
        if drop_masks:
            state_dict.pop(prefix + entry.mask_attribute, None)
        elif weight is not None and mask is None:
            # Nothing is missing for whoever loads, strictly or not; what it means is decided when training starts.
            state_dict[prefix + entry.mask_attribute] = module.get_buffer(entry.mask_attribute)
        if module is not entry.module or weight is None or weight.shape != entry.weight.shape:
            return  # a copy of the model, or nothing that will be loaded
        loaded.weights.add(entry.name)
        if mask is None or mask.shape != weight.shape:
            loaded.masks.discard(entry.name)
        else:
            loaded.masks.add(entry.name)

    return listen
