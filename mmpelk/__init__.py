"""PeLK, parameter-efficient large kernel ConvNets with peripheral convolution, as an OpenMMLab plugin."""

from mmpelk.config import config_path, get_config, list_configs, resolve_recipe

__all__ = ['__version__', 'config_path', 'get_config', 'list_configs', 'resolve_recipe']
__version__ = '0.1.0'
