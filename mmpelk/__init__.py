"""PeLK, parameter-efficient large kernel ConvNets with peripheral convolution, as an OpenMMLab plugin."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmpelk.config import config_path, get_config, list_configs, resolve_recipe

if TYPE_CHECKING:
    from mmpelk.models.enlarge import dense, enlarge, shrink
    from mmpelk.models.freeze import freeze

__all__ = [
    '__version__',
    'config_path',
    'dense',
    'enlarge',
    'freeze',
    'get_config',
    'list_configs',
    'resolve_recipe',
    'shrink',
]
__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
    """``enlarge``, ``shrink``, ``dense``, ``freeze`` are imported when they are asked for, with torch and mmengine."""
    if name in ('dense', 'enlarge', 'freeze', 'shrink'):
        return getattr(import_module(f'mmpelk.models.{"freeze" if name == "freeze" else "enlarge"}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
