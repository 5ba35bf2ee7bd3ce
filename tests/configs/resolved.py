"""What a recipe comes to: all bases merged, flattened to its values, compared with another one."""

import functools
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from tests.paths import CONFIGS

# Top-level entries that mmengine's Runner and our tools read. The others are variables of the config files.
READ = {*inspect.signature(Runner.__init__).parameters, 'auto_scale_lr', 'tta_model', 'tta_pipeline'}
# Lists and dictionaries that are compared as one value.
WHOLE = ('custom_hooks', 'norm_cfg', 'model.init_cfg', 'model.head.init_cfg')
ABSENT = '-'


def config(name: str) -> Path:
    """Path of a config: of ours (``'seg/...'``), or of a toolbox (``'mmseg::convnext/...'``)."""
    scope, _, file = name.rpartition('::')
    if not scope:
        return CONFIGS / f'{name}.py'
    spec = importlib.util.find_spec(scope)
    if spec is None or spec.origin is None:
        pytest.skip(f'{scope} is not installed')
    return Path(spec.origin).parent / '.mim' / 'configs' / f'{file}.py'


def flatten(value: Any, key: str) -> dict[str, Any]:
    """Values by their dotted keys. A list of numbers or strings is a value; in one of dictionaries or lists each is."""
    if isinstance(value, list | tuple) and not any(isinstance(child, dict | list | tuple) for child in value):
        return {key: tuple(value)}
    items: Any = {}
    if not key.endswith(WHOLE):
        items = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
    children = [flatten(child, f'{key}.{name}') for name, child in items.items()]
    return {k: v for child in children for k, v in child.items()} or {key: value}


def without_scopes(value: Any) -> Any:
    """A toolbox marks what comes from it with its scope."""
    if isinstance(value, dict):
        return {key: without_scopes(child) for key, child in value.items() if key != '_scope_'}
    return type(value)(map(without_scopes, value)) if isinstance(value, list | tuple) else value


@functools.cache
def resolved(*names: str) -> dict[str, Any]:
    """A config's values by their dotted keys; for reading only.

    What a test has in common with the validation is left out, and URLs are one and the same.

    Args:
        *names: Its name; those that follow are merged into it.
    """
    merged = Config.fromfile(config(names[0]))
    for name in names[1:]:
        merged.merge_from_dict(Config.fromfile(config(name)).to_dict())
    content = without_scopes(merged.to_dict())
    if 'data_preprocessor' in content:  # as the Runner does
        content['model'].setdefault('data_preprocessor', content.pop('data_preprocessor'))
    values = {k: v for name, value in content.items() if name in READ for k, v in flatten(value, name).items()}
    return {
        key: 'URL' if str(value).startswith('https://') else value
        for key, value in values.items()
        if not key.startswith('test_') or values.get(f'val_{key.removeprefix("test_")}', ABSENT) != value
    }


def difference(base: str | tuple[str, ...], name: str) -> dict[str, tuple[Any, Any]]:
    """The values that two configs do not share, by their dotted keys: of the base, and of the other.

    Args:
        base: Name of the base, or names to be merged.
        name: Name of the other config.
    """
    before, after = resolved(*([base] if isinstance(base, str) else base)), resolved(name)
    pairs = {key: (before.get(key, ABSENT), after.get(key, ABSENT)) for key in before.keys() | after.keys()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
