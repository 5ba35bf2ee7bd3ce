"""Every option and every environment variable of ours stands on a page, and every argument has a help text."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.paths import ROOT

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'benchmarks' / 'gpu.md', *(ROOT / 'docs').glob('*.md')]
SOURCES = [
    path
    for room in ('mmpelk', 'tools', 'benchmarks', 'reproduction', 'configs')
    for path in sorted((ROOT / room).rglob('*'))
    if path.suffix in ('.py', '.sh') and '.mim' not in path.parts
]
TEXTS = {path: path.read_text() for path in (*PAGES, *SOURCES)}


class Argument(NamedTuple):
    """What a program adds to its parser.

    Attributes:
        names: Its names; of one that is computed, the expression in parentheses.
        help: The expression of its help text.
    """

    names: list[str]
    help: str


def arguments(tree: ast.Module) -> Iterator[Argument]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'add_argument':
            names = [str(arg.value) if isinstance(arg, ast.Constant) else f'({ast.unparse(arg)})' for arg in node.args]
            yield Argument(names, ''.join(ast.unparse(each.value) for each in node.keywords if each.arg == 'help'))


def texts_about(source: Path) -> list[str]:
    """The pages that name a program; for one that none names, the scripts that run it; for a part, all pages."""
    pages = [TEXTS[page] for page in PAGES]
    if "if __name__ == '__main__'" not in TEXTS[source]:
        return pages
    path = source.relative_to(ROOT)
    module = re.escape('.'.join(path.with_suffix('').parts).removesuffix('.__main__'))
    named = rf'(?<![\w/]){re.escape(str(path))}|-m {module}(?![\w.])|`{module}`'
    scripts = [text for script, text in TEXTS.items() if script.suffix == '.sh' or script.name == 'foreign.py']
    return [text for text in pages if re.search(named, text)] or [
        text for text in scripts if re.search(rf"{named}|'{path.name}'", text)
    ]


def faults(source: Path) -> Iterator[str]:
    for names, about in arguments(ast.parse(TEXTS[source])):
        if about == 'argparse.SUPPRESS':
            continue
        if not about:
            yield f'{names[0]} has no help text'
        if names[0].startswith('('):
            yield f'{names[0]} is computed: write it as a literal, so that it is found here'
        # Settings of a config are explained once, for all programs.
        texts = [TEXTS[page] for page in PAGES] if '--cfg-options' in names else texts_about(source)
        if names[0].startswith('-') and not any(
            re.search(rf'(?<![\w-]){re.escape(name)}(?![\w-])', text) for name in names for text in texts
        ):
            yield f'{names[0]} stands on no page that names the program'


def test_options_stand_on_pages_and_have_help() -> None:
    sources = [path for path in SOURCES if path.suffix == '.py' and 'add_argument' in TEXTS[path]]
    assert len(sources) > 30
    found = [f'{path.relative_to(ROOT)}: {fault}' for path in sources for fault in faults(path)]
    assert not found, '\n'.join(found)


def test_environment_variables_stand_on_pages() -> None:
    names = {name for path in SOURCES for name in re.findall(r'MMPELK_[A-Z_]*[A-Z]', TEXTS[path])}
    assert len(names) > 5
    pages = '\n'.join(TEXTS[page] for page in PAGES)
    assert not [name for name in sorted(names) if not re.search(rf'\b{name}\b', pages)]
