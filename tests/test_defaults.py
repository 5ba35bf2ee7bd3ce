"""Defaults of everything public, constants and options of commands are those of ``expected/test_defaults.txt``."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from tests.paths import ROOT

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


def _constants(source: str) -> Iterator[str]:
    """Numbers, collections and calls of literals in capital letters, and literals of classes; as they are written."""
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for owner, nodes in [('', tree.body), *((f'{each.name}.', each.body) for each in classes)]:
        for node in nodes:
            targets = getattr(node, 'targets', [getattr(node, 'target', None)])
            value = getattr(node, 'value', None) if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if value is None or len(targets) != 1 or not (owner or ast.unparse(targets[0]).isupper()):
                continue
            inner = list(ast.walk(value))
            called = {name for call in inner if isinstance(call, ast.Call) for name in ast.walk(call.func)}
            names = {each for each in inner if isinstance(each, ast.Name) and not each.id.isupper()} - called
            if names or any(isinstance(each, ast.JoinedStr | ast.Lambda) for each in inner):
                continue
            constants = [each.value for each in inner if isinstance(each, ast.Constant)]
            has_numbers = any(isinstance(each, int | float) for each in constants)
            if (
                owner
                or has_numbers
                or isinstance(value, ast.Tuple | ast.List | ast.Set | ast.Dict | ast.Call | ast.BinOp)
            ):
                lines = (ast.get_source_segment(source, node) or '').splitlines()
                yield owner + ' '.join(' '.join(re.sub(r'(^|\s)#.*', '', line) for line in lines).split())


@pytest.mark.parametrize('folder', ['mmpelk', 'reproduction', 'tools'])
def test_constants_are_as_recorded(folder: str, compare: Callable[[str], None]) -> None:
    """A tolerance, a limit or a rounding that changes shows in the diff, too."""
    lines = [
        f'{path.relative_to(ROOT)}: {constant}'
        for path in sorted((ROOT / folder).rglob('*.py'))
        for constant in _constants(path.read_text(encoding='utf-8'))
    ]
    compare('\n'.join(lines))


@pytest.mark.parametrize('folder', ['mmpelk', 'reproduction', 'tools'])
def test_options_of_commands_are_as_recorded(folder: str, compare: Callable[[str], None]) -> None:
    """Their defaults, types, choices and numbers of words; the help is free."""
    lines = []
    for path in sorted((ROOT / folder).rglob('*.py')):
        source = path.read_text(encoding='utf-8')
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == 'add_argument':
                given = [*call.args, *(each for each in call.keywords if each.arg not in ('help', 'metavar'))]
                words = [' '.join((ast.get_source_segment(source, each) or '').split()) for each in given]
                lines.append(f'{path.relative_to(ROOT)}: {", ".join(words)}')
    compare('\n'.join(lines))
