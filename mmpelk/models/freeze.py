"""Deployed networks whose weights stay: what depends on the weights alone is computed once."""

from typing import TypeVar

from torch import nn

from .mixers import PeripheralMixer

__all__ = ['freeze']

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
        mode: Freeze, or take the promise back.

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
    if mode:
        model.requires_grad_(False)
    for mixer in mixers:
        mixer.freeze(mode)
    return model
