"""The mixers that a block can be built with: the paper's, and those of the networks that it compares with.

A new one is a subclass of :class:`Mixer` in a file of its own, and a row of the table.
"""

from .base import EmbeddingMode, Mixer, MixerSpec
from .convnext import ConvNeXtMixer
from .dense import DenseMixer
from .peripheral import PeripheralMixer
from .stripe import StripeMixer

__all__ = [
    'MIXERS',
    'ConvNeXtMixer',
    'DenseMixer',
    'EmbeddingMode',
    'Mixer',
    'MixerSpec',
    'PeripheralMixer',
    'StripeMixer',
]

#: What ``PeLK(mixer=...)`` takes.
MIXERS: dict[str, type[Mixer]] = {
    mixer.name: mixer for mixer in (PeripheralMixer, DenseMixer, StripeMixer, ConvNeXtMixer)
}
