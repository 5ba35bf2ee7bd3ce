"""Large kernels in any network: its depthwise convolutions become peripheral ones that compute the same function.

A depthwise kernel is the fine-grained centre of a larger peripheral kernel whose other regions are zero. The network
computes what it computed before, its public weights load as before, and the periphery is ready to learn.
"""

from .convolution import EnlargedConv2d
from .network import Enlarged, dense, enlarge, shrink
from .report import Enlargement

__all__ = ['Enlarged', 'EnlargedConv2d', 'Enlargement', 'dense', 'enlarge', 'shrink']
