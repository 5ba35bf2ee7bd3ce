"""Defaults of the arguments of everything public are those of ``expected/test_defaults.txt``."""

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

ROOMS = [
    *('mmpelk', 'mmpelk.hub', 'mmpelk.timm', 'mmpelk.ops', 'mmpelk.ops.executed', 'mmpelk.models', 'mmpelk.engine'),
    *('mmpelk.models.weights.inflation', 'mmpelk.sparsity', 'mmpelk.export', 'mmpelk.fault_tolerance.safe_loading'),
    *(f'mmpelk.analysis.{name}' for name in ('complexity', 'erf', 'kernels', 'receptive_field', 'inference')),
]


def _public(room: ModuleType) -> Iterator[tuple[str, Callable]]:
    """Functions, classes and their new methods, of ``__all__`` and of the module's own code."""
    own = (name for name, value in vars(room).items() if getattr(value, '__module__', None) == room.__name__)
    for name in sorted({*getattr(room, '__all__', ()), *own}):
        value = getattr(room, name, None)  # the names of architectures in `mmpelk.timm` are in timm's registry alone
        if name.startswith('_') or not callable(value) or not value.__module__.startswith('mmpelk'):
            continue
        yield name, value
        if inspect.isclass(value):
            for method in sorted(vars(value).keys() - {each for base in value.__mro__[1:] for each in vars(base)}):
                if not method.startswith('_') and inspect.isroutine(getattr(value, method)):
                    yield f'{name}.{method}', getattr(value, method)


def _text(default: Any) -> str:
    return default.__qualname__ if inspect.isfunction(default) or inspect.isclass(default) else repr(default)


@pytest.mark.parametrize('name', ROOMS)
def test_defaults_are_as_recorded(name: str, compare: Callable[[str], None]) -> None:
    if name == 'mmpelk.timm':
        pytest.importorskip('timm')
    lines = []
    for public, value in _public(import_module(name)):
        parameters = inspect.signature(value).parameters.values()
        defaults = [f'{each.name}={_text(each.default)}' for each in parameters if each.default is not each.empty]
        if defaults:
            lines.append(f'{public}: {", ".join(defaults)}')
    compare('\n'.join(lines))
