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


def name_of(program: Path) -> str:
    """A pattern of how a page names a program."""
    path = program.relative_to(ROOT)
    module = re.escape('.'.join(path.with_suffix('').parts).removesuffix('.__main__'))
    return rf'(?<![\w/]){re.escape(str(path))}|-m {module}(?![\w.])|`{module}`'


PROGRAMS = {
    path: re.compile(name_of(path))
    for path in SOURCES
    if path.suffix == '.py' and "if __name__ == '__main__'" in TEXTS[path]
}


def parts_of(page: str) -> Iterator[list[str]]:
    """The commands of each block of code, each row of a table, and each sentence of the rest."""
    for index, part in enumerate(re.split(r'^ *```.*\n', page, flags=re.MULTILINE)):
        if index % 2:
            yield part.replace('\\\n', ' ').splitlines()
        else:
            for each in re.split(r'\n\n+|\n(?=\||- |    )', part):
                yield from ([text] for text in ([each] if each.startswith('|') else re.split(r'(?<=[.:;])\s+', each)))


def texts_by_program(page: str) -> dict[Path, str]:
    """What a page says of each program: the parts that name it, or name none and follow those that do.

    What names no program belongs also to the one that the page names first, which is its subject.
    """
    texts = dict.fromkeys(PROGRAMS, '')
    first: set[Path] = set()
    last: set[Path] = set()
    for part in parts_of(page):
        named = [{program for program, name in PROGRAMS.items() if name.search(line)} for line in part]
        for line, programs in zip(part, named, strict=True):
            for program in programs or last | first:
                texts[program] += f'{line}\n'
        last = set().union(*named) or last
        first = first or next(filter(None, named), first)
    return texts


ON_PAGES = [texts_by_program(TEXTS[page]) for page in PAGES]


def texts_about(source: Path) -> list[str]:
    """What the pages say of a program; for one that none names, the scripts that run it; for a part, all pages."""
    if source not in PROGRAMS:
        return [TEXTS[page] for page in PAGES]
    scripts = [text for script, text in TEXTS.items() if script.suffix == '.sh' or script.name == 'foreign.py']
    return [texts[source] for texts in ON_PAGES if texts[source]] or [
        text for text in scripts if re.search(rf"{name_of(source)}|'{source.name}'", text)
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
            yield f'{names[0]} stands on no page beside the name of the program'


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
