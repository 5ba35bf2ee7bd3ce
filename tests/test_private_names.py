"""Private names of other libraries, and methods that we replace on other libraries' objects, are the listed ones.

Read from the syntax alone. Not seen are names that are computed (``setattr(x, name, f)``, parts of f-strings),
functions behind a variable or an import, and what a call returns that is not given the old value
(``x.step = make()``). Patches of modules of our own are not on the list.
"""

import ast
import builtins
import re
from collections.abc import Iterator

from tests.paths import ROOT

ROOMS = ('mmpelk', 'tools', 'benchmarks', 'reproduction')
PATHS = [path for room in ROOMS for path in sorted((ROOT / room).rglob('*.py')) if '.mim' not in path.parts]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in PATHS}
BUILTINS = set(dir(builtins))
# Of named tuples; a key of mmengine's configs; a class of data sets; endings of Cityscapes' files.
PUBLIC = {'_fields', '_replace', '_asdict', '_make', '_scope_', '_background_'}
PUBLIC |= {'_gtfine_labelids', '_gtfine_labeltrainids'}


def is_private(name: str) -> bool:
    return any(part.startswith('_') and not part.endswith('__') for part in name.split('.')) and name not in PUBLIC


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ('self', 'cls')


def is_of_ours(node: ast.ImportFrom) -> bool:
    return bool(node.level) or (node.module or '').partition('.')[0] in ROOMS


def imported_of_ours(tree: ast.Module) -> set[str]:
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and is_of_ours(node)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


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


def stores(tree: ast.Module) -> Iterator[tuple[ast.expr, str, ast.expr]]:
    """What a module writes to attributes: the object, the attribute's name and the value, for each way to write it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'setattr' and len(node.args) == 3:
            owner, name, written = node.args
            if isinstance(name, ast.Constant):
                yield owner, str(name.value), written
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))  # one may be starred
            for left, right in pairs:
                if isinstance(left, ast.Attribute):
                    yield left.value, left.attr, right
                elif isinstance(left, ast.Subscript) and isinstance(left.slice, ast.Constant):
                    if isinstance(left.value, ast.Attribute) and left.value.attr == '__dict__':
                        yield left.value.value, str(left.slice.value), right
                    elif isinstance(left.value, ast.Call) and getattr(left.value.func, 'id', '') == 'vars':
                        yield left.value.args[0], str(left.slice.value), right


def replaced(tree: ast.Module) -> Iterator[str]:
    """Attributes of others to which a module writes a function, a class, or what it makes of the attribute's value."""
    ours = imported_of_ours(tree)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for owner, name, value in stores(tree):
        if ast.unparse(owner) in ours:
            continue
        attribute = f'{ast.unparse(owner)}.{name}'
        if name == '__class__':
            yield attribute
        elif not is_own(owner):
            called = ast.unparse(value.func) if isinstance(value, ast.Call) else ''
            given = value.args if isinstance(value, ast.Call) and called not in BUILTINS else []
            wraps = any(f'{ast.unparse(arg)}.'.startswith(f'{attribute}.') for arg in given)  # or takes a part of it
            is_function = isinstance(value, ast.Lambda) or called.rpartition('.')[2] == 'partial'
            if wraps or is_function or getattr(value, 'id', getattr(value, 'attr', None)) in defined:
                yield attribute


LOOKUPS = {'getattr', 'setattr', 'hasattr', 'delattr', 'get', 'pop', 'setdefault', 'attrgetter', 'methodcaller'}


def named(node: ast.AST) -> Iterator[str]:
    """Private names in strings: keys, what attributes are looked up by, elements of collections, and dotted names."""
    values: list[ast.expr] = []
    if isinstance(node, ast.Subscript):
        values = [node.slice]
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):  # codespell:ignore notin
        values = [node.left]
    elif isinstance(node, ast.Call):
        is_lookup = getattr(node.func, 'id', getattr(node.func, 'attr', None)) in LOOKUPS
        values = node.args if is_lookup else []
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        values = node.elts
    elif isinstance(node, ast.Constant) and (dotted := re.fullmatch(r'([A-Za-z]\w*)(\.\w+)+', str(node.value))):
        yield from filter(is_private, [dotted[0]] if dotted[1] not in ROOMS else [])
    for value in values:
        name = value.value if isinstance(value, ast.Constant) else None
        if isinstance(name, str) and name.isidentifier() and is_private(name):
            yield name


def foreign(tree: ast.Module) -> Iterator[str]:
    """Private names of other libraries that a module reads, imports or overrides, and methods that it replaces."""
    yield from replaced(tree)
    here = set(members(tree))
    ours = imported_of_ours(tree)
    for node in ast.walk(tree):
        yield from (name for name in named(node) if name not in here)
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr not in (OWN if is_own(node.value) else here) and ast.unparse(node.value) not in ours:
                yield node.attr
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.ImportFrom) and not is_of_ours(node):
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
    names = {
        'import lib._hidden': 'lib._hidden',
        'from lib import _name': 'lib._name',
        'from lib._part import thing': 'lib._part.thing',
        'x._state': '_state',
        'x.step = f': 'x.step',
        'x.run, x.n = f, 3': 'x.run',
        'x.call = lambda: 0': 'x.call',
        'x.go = wrap(x.go)': 'x.go',
        'x.pipe = Wrapper(x.pipe.parts, 3)': 'x.pipe',
        'x.init = partial(g, x)': 'x.init',
        'x.__class__ = f': 'x.__class__',
        'x.Kind = A': 'x.Kind',
        'x.own = self._hook': 'x.own',
        "setattr(K, 'method', f)": 'K.method',
        "x.__dict__['forward'] = f": 'x.forward',
        "vars(x)['late'] = f": 'x.late',
        "vars(lib)['_key']": '_key',
        "getattr(lib, '_read')": '_read',
        "setattr(lib, '_set', 3)": '_set',
        "attrgetter('_got')": '_got',
        "any(lib.get(name) for name in ('_first', 'b'))": '_first',
        "'_there' in x": '_there',
        "import_module('lib._dotted')": 'lib._dotted',
    }
    harmless = (
        "x.value = 3\nx.n = int(x.n)\nx.weight = Parameter(x.weight * 2)\na.replace('_', '')\nTypeVar('_Own')\n"
        "from mmpelk import ops\nops._ours\nops.run = f\n'mmpelk._ours'\n'a sentence, lib._not_a_name'\n"
    )
    frame = 'def f(): pass\nclass A(B):\n    def _hook(self): pass\n'
    assert set(foreign(ast.parse(frame + harmless))) == {'_hook'}
    seen = {line: set(foreign(ast.parse(frame + line))) - {'_hook'} for line in names}
    assert seen == {line: {name} for line, name in names.items()}
