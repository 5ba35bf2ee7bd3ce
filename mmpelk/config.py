"""The recipes, found by name wherever the project is installed. Nothing here imports mmengine before it is called."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config

_PACKAGE = Path(__file__).resolve().parent
# As in every OpenMMLab package: links into the repository in a checkout, files in a wheel.
_RECIPES = _PACKAGE / '.mim' / 'configs'
_ADAPTERS = _PACKAGE / 'configs'


def list_configs() -> list[str]:
    """Names of all recipes, such as ``'seg/upernet_pelk_t_ade20k.py'``."""
    names = (path.relative_to(_RECIPES) for path in _RECIPES.glob('*/*.py'))
    return sorted(name.as_posix() for name in names if name.parts[0] != '_base_')


def config_path(name: str) -> str:
    """Path of a recipe, for ``_base_`` and for command lines.

    Args:
        name: A name of :func:`list_configs`, with or without ``.py``, with or without its folder; or the whole name of
            a recipe that is not listed there, such as ``'cls/ablations/table6_center_3.py'``; or one of an installed
            toolbox, such as ``'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'``, a form that
            mmengine's ``_base_`` knows for mmdet alone where the packages are OneDL's.

    Returns:
        The absolute path of the recipe's file.

    Raises:
        ValueError: If there is no such recipe; the message lists those that there are.
    """
    toolbox, separator, file = name.rpartition('::')
    if separator:
        return _of_toolbox(toolbox, file)
    known = list_configs()
    wanted = name if name.endswith('.py') else f'{name}.py'
    found = [known_name for known_name in known if wanted in (known_name, Path(known_name).name)]
    if not found and '/' in wanted and (_RECIPES / wanted).is_file():
        found = [wanted]
    if not found:
        raise ValueError(f'no recipe {name!r}; known: {", ".join(known)}')
    return str((_RECIPES / found[0]).resolve())


def _of_toolbox(toolbox: str, file: str) -> str:
    spec = importlib.util.find_spec(toolbox)
    if spec is None or spec.origin is None:
        raise ValueError(f"no toolbox '{toolbox}' is installed here; it has the recipe {file!r}")
    folder = Path(spec.origin).parent / '.mim' / 'configs'
    path = folder / (file if file.endswith('.py') else f'{file}.py')
    if not path.is_file():
        raise ValueError(f'no recipe {file!r} in {folder}')
    return str(path)


def get_config(name: str, cfg_options: dict[str, Any] | None = None) -> 'Config':
    """A recipe as mmengine's ``Config``.

    Args:
        name: A name of :func:`list_configs`.
        cfg_options: What to change, with dotted keys, as ``--cfg-options``.

    Returns:
        The config, all of its ``_base_`` merged.

    Raises:
        ValueError: If there is no such recipe.
    """
    from mmengine.config import Config

    cfg = Config.fromfile(config_path(name))
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    return cfg


def resolve_recipe(adapter: str) -> dict[str, Any]:
    """Content of the recipe that a module of :mod:`mmpelk.configs` stands for.

    mmengine reads a pure-Python config without following a text-style ``_base_``. The modules of
    :mod:`mmpelk.configs` therefore hold nothing but a call of this function.

    Args:
        adapter: The module's ``__file__``.

    Returns:
        The recipe's variables, all of its ``_base_`` merged, as plain dictionaries.
    """
    name = Path(adapter).resolve().relative_to(_ADAPTERS).as_posix()
    return get_config(name).to_dict()
