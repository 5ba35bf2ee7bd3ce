"""PeLK, parameter-efficient large kernel ConvNets with peripheral convolution, as an OpenMMLab plugin."""

__version__ = '0.1.0'
