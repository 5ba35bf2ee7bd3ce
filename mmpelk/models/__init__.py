"""The PeLK backbone and its modules."""

from .architectures import ARCHITECTURES
from .enlarge import Enlarged, EnlargedConv2d
from .mixers import MIXERS, ConvNeXtMixer, DenseMixer, Mixer, MixerSpec, PeripheralMixer, StripeMixer
from .pelk import PeLK, PeLKBlock
from .peripheral_conv import PeripheralConv2d
from .weights.inflation import Inflated

__all__ = [
    'ARCHITECTURES',
    'MIXERS',
    'ConvNeXtMixer',
    'DenseMixer',
    'Enlarged',
    'EnlargedConv2d',
    'Inflated',
    'Mixer',
    'MixerSpec',
    'PeLK',
    'PeLKBlock',
    'PeripheralConv2d',
    'PeripheralMixer',
    'StripeMixer',
]
