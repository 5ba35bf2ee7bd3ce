"""PeLK, parameter-efficient large kernel ConvNets with peripheral convolution, as an OpenMMLab plugin."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmpelk.config import config_path, get_config, list_configs, resolve_recipe

if TYPE_CHECKING:
    from mmpelk.models.enlarge import dense, enlarge, shrink
    from mmpelk.models.freeze import freeze
    from mmpelk.models.learning_rates import parameter_groups

__all__ = [
    '__version__',
    'config_path',
    'dense',
    'enlarge',
    'freeze',
    'get_config',
    'list_configs',
    'parameter_groups',
    'resolve_recipe',
    'shrink',
]
__version__ = '0.1.0'

_LAZY = dict.fromkeys(('dense', 'enlarge', 'shrink'), 'enlarge') | {
    'freeze': 'freeze',
    'parameter_groups': 'learning_rates',
}


def __getattr__(name: str) -> Any:
    """Import the functions of ``_LAZY`` at their first use, with torch and mmengine."""
    if name in _LAZY:
        return getattr(import_module(f'mmpelk.models.{_LAZY[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
