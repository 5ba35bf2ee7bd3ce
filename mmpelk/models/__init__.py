"""The PeLK backbone and its modules."""

from .large_kernel import PeripheralMixer
from .mixers import MIXERS, ConvNeXtMixer, DenseMixer, StripeMixer
from .pelk import PeLK, PeLKBlock
from .peripheral_conv import PeripheralConv2d

__all__ = [
    'MIXERS',
    'ConvNeXtMixer',
    'DenseMixer',
    'PeLK',
    'PeLKBlock',
    'PeripheralConv2d',
    'PeripheralMixer',
    'StripeMixer',
]
