"""The PeLK backbone and its modules."""

from .large_kernel import PeripheralMixer
from .pelk import PeLK, PeLKBlock
from .peripheral_conv import PeripheralConv2d

__all__ = ['PeLK', 'PeLKBlock', 'PeripheralConv2d', 'PeripheralMixer']
