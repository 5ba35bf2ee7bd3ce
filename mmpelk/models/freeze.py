"""Deployed networks whose weights do not change: what depends on the weights alone is computed once."""

from typing import TypeVar

from torch import nn

from .mixers import PeripheralMixer

_TRAINED = '_trained_before_freeze'  # attribute of a frozen module: names of the parameters that had gradients
_Module = TypeVar('_Module', bound=nn.Module)


def freeze(model: _Module, mode: bool = True) -> _Module:
    """Promise that the weights of a deployed network do not change, so that inference on a GPU computes with less.

    What the large kernels compute of their weights and tables alone (Toeplitz matrices, spectra, positional maps) is
    then made once for a map size, for at most four sizes, and kept on the device. Without this it is made at every call
    on a GPU, because finding out whether a weight has changed would wait for the device. Gradients are turned off.

    A write that torch counts (``load_state_dict``, an optimizer, in-place operations) or another parameter in the place
    of one raises at the next call. Writes through ``.data`` or NumPy are not seen: call ``freeze`` again after them.
    Copies and pickles of the network are not frozen.

    Args:
        model: A network with merged PeLK mixers, after ``switch_to_deploy``; frozen in place.
        mode: Freeze, or take the promise back: parameters that had gradients before have them again.

    Returns:
        The model.

    Raises:
        ValueError: If it has no PeLK mixer, or one that is not merged.
    """
    mixers = [module for module in model.modules() if isinstance(module, PeripheralMixer)]
    if not mixers or not all(mixer.deployed for mixer in mixers):
        raise ValueError(
            'freeze takes a network whose PeLK mixers are merged: call backbone.eval().switch_to_deploy() first'
        )
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        trained = set(module.__dict__.get(_TRAINED, ()))  # of itself: wrappers give out their network's attributes
        if mode:
            module.__dict__[_TRAINED] = trained | {name for name, value in own.items() if value.requires_grad}
            for value in own.values():
                value.requires_grad_(False)
        elif trained:
            del module.__dict__[_TRAINED]
            for name in trained & own.keys():
                own[name].requires_grad_()
    for mixer in mixers:
        mixer.freeze(mode)
    return model
