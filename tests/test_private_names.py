"""Private names of other libraries, and methods that we replace on other libraries' objects, are the listed ones."""

import ast
import builtins
import re
from collections.abc import Iterator

from tests.paths import ROOT

PATHS = [
    path for room in ('mmpelk', 'tools') for path in sorted((ROOT / room).rglob('*.py')) if '.mim' not in path.parts
]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in PATHS}
BUILTINS = set(dir(builtins))
PUBLIC = {'_fields', '_replace', '_asdict', '_make', '_background_'}  # of named tuples; a class of data sets


def is_private(name: str) -> bool:
    return any(part.startswith('_') and not part.endswith('__') for part in name.split('.')) and name not in PUBLIC


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ('self', 'cls')


def members(tree: ast.Module) -> Iterator[str]:
    """Attributes and methods that the classes of a module define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (part.name for part in node.body if isinstance(part, ast.FunctionDef))
            yield from (
                name.id
                for part in node.body
                for name in ast.walk(part)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            )
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr


OWN = {name for tree in TREES.values() for name in members(tree)}
# Methods that our code calls. A private method that nothing calls overrides one of the base class.
USED = {
    node.attr
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) != 'super()'
}


def replaced(tree: ast.Module) -> Iterator[str]:
    """``object.method = function``: what is assigned to an object of others and is a function, or wraps what it was."""
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for left, right in pairs:
                if not isinstance(left, ast.Attribute) or is_own(left.value):
                    if isinstance(left, ast.Attribute) and left.attr == '__class__':
                        yield ast.unparse(left)
                    continue
                name = getattr(right, 'id', getattr(right, 'attr', None))
                wrapped = [] if not isinstance(right, ast.Call) or ast.unparse(right.func) in BUILTINS else right.args
                is_function = isinstance(right, ast.Lambda) or name in functions
                if is_function or left.attr == '__class__' or ast.unparse(left) in map(ast.unparse, wrapped):
                    yield ast.unparse(left)


LOOKUPS = {'getattr', 'setattr', 'hasattr', 'delattr', 'get'}


def named(node: ast.expr) -> Iterator[str]:
    """Private names in strings by which attributes are looked up: keys, arguments, and elements of collections."""
    if isinstance(node, ast.Subscript):
        values = [node.slice]
    elif isinstance(node, ast.Call):
        is_lookup = getattr(node.func, 'id', getattr(node.func, 'attr', None)) in LOOKUPS
        values = node.args if is_lookup else []
    else:
        values = getattr(node, 'elts', [])
    for value in values:
        name = value.value if isinstance(value, ast.Constant) else None
        if isinstance(name, str) and name.isidentifier() and is_private(name):
            yield name


def foreign(tree: ast.Module) -> Iterator[str]:
    """Private names of other libraries that a module reads, imports or overrides, and methods that it replaces."""
    yield from replaced(tree)
    here = set(members(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr not in (OWN if is_own(node.value) else here):
                yield node.attr
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Subscript | ast.Call | ast.Tuple | ast.List | ast.Set):
            yield from (name for name in named(node) if name not in here)
        elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or '').startswith('mmpelk'):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
            yield from filter(is_private, names)
        elif isinstance(node, ast.ClassDef) and node.bases:
            methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            yield from (name for name in methods if is_private(name) and name not in USED)


def test_private_names_and_replaced_methods_are_listed() -> None:
    found = {(path, name) for path, tree in TREES.items() for name in foreign(tree)}
    text = (ROOT / 'CONTRIBUTING.md').read_text().partition('## Private names')[2].partition('\n## ')[0]
    rows = re.findall(r'^\| `([\w/.]+\.py)` \| (.+?) \| (.+?) \|$', text, re.MULTILINE)
    listed = {(path, name) for path, names, _ in rows for name in re.findall(r'`([^`]+)`', names)}
    assert found - listed == set(), 'not on the list of CONTRIBUTING.md: is there a public way?'
    assert listed - found == set(), 'gone from the code: take it off the list of CONTRIBUTING.md'


def test_the_walk_finds_each_kind() -> None:
    code = (
        'import lib._hidden\nfrom lib import _name\nfrom lib._part import thing\n'
        'def f(): pass\nx._state\nx.step = f\nx.go = wrap(x.go)\nx.__class__ = f\nx.call = lambda: 0\nx.value = 3\n'
        'class A(B):\n    def _hook(self): pass\n'
        "vars(lib)['_key'], getattr(lib, '_read'), setattr(lib, '_set', 3)\n"
        "any(lib.get(name) for name in ('_first', 'b')), a.replace('_', ''), TypeVar('_Own')\n"
    )
    assert set(foreign(ast.parse(code))) == {
        *(
            'lib._hidden',
            'lib._name',
            'lib._part.thing',
            '_state',
            'x.step',
            'x.go',
            'x.__class__',
            'x.call',
            '_hook',
            '_key',
            '_read',
            '_set',
            '_first',
        ),
    }
