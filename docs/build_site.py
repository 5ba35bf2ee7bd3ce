"""What `make docs` adds to the pages of this folder: the README as the front page, pages from elsewhere, the API.

mkdocs.yml names this file as a hook of MkDocs and as an extension of griffe, which reads the docstrings.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site that lie elsewhere in the repository.
ELSEWHERE = {
    'index.md': 'README.md',
    'contributing.md': 'CONTRIBUTING.md',
    'changelog.md': 'CHANGELOG.md',
    'backends.md': 'mmpelk/ops/backends/README.md',
}
# Pages of the API: the first module's docstring is the introduction, the others follow under their names.
API = {
    'mmpelk': ['mmpelk', 'mmpelk.registry', 'mmpelk.fault_tolerance.safe_loading', 'mmpelk.errors'],
    # griffe takes the name for the submodule's.
    'ops': ['mmpelk.ops', 'mmpelk.ops.sharing_grid.sharing_grid', 'mmpelk.ops.executed'],
    'models': ['mmpelk.models'],
    'engine': ['mmpelk.engine'],
    'sparsity': ['mmpelk.sparsity'],
    'analysis': [
        'mmpelk.analysis',
        *(f'mmpelk.analysis.{name}' for name in ('complexity', 'erf', 'receptive_field', 'kernels')),
    ],
    'export': ['mmpelk.export'],
}
HEADING = '\n    options: {show_root_heading: true, show_root_toc_entry: true}'
# [text](target) and ![text](target) of a page; a text may hold an image's brackets.
LINK = re.compile(r'(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)')
CODE_BLOCK = re.compile(r'(^ *```.*?^ *```\s*$)', re.MULTILINE | re.DOTALL)
ROLE = re.compile(r':(?:func|class|data|mod|meth|attr|exc):`[~.]?([^`]+)`')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and those of the API."""
    for page, path in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for name, modules in API.items():
        blocks = [f'# {modules[0]}', f'::: {modules[0]}', *(f'::: {each}{HEADING}' for each in modules[1:])]
        files.append(File.generated(config, f'api/{name}.md', content='\n\n'.join(blocks)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links of the site.

    A picture from outside of this folder is taken along. A file that the site does not have is linked in the
    repository, where ``repo_url`` says where that is; else its name remains.
    """
    at = page.file.src_uri
    folder = posixpath.dirname(ELSEWHERE.get(at, f'docs/{at}'))
    places = {path: name for name, path in ELSEWHERE.items()}

    def replace(match: re.Match[str]) -> str:
        text, (target, hash_sign, anchor) = match[1], match[2].partition('#')
        if not target or re.match(r'[a-z]+:', target):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        place = places.get(path, path.removeprefix('docs/') if path.startswith('docs/') else None)
        if place is None and (ROOT / path).suffix in ('.png', '.svg'):
            place = f'elsewhere/{path}'
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
        if place is not None:
            return f'{text}({posixpath.relpath(place, posixpath.dirname(at) or ".")}{hash_sign}{anchor})'
        if not (ROOT / path).exists():
            return match[0]  # MkDocs says that it is missing
        if config.repo_url:
            return f'{text}({config.repo_url.rstrip("/")}/blob/main/{path}{hash_sign}{anchor})'
        return text[1:-1]

    parts = CODE_BLOCK.split(markdown)  # text and blocks in turns
    return ''.join(part if index % 2 else LINK.sub(replace, part) for index, part in enumerate(parts))


class Roles(griffe.Extension):
    """Show what the docstrings name as code: MkDocs knows no ``:func:``."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r'`\1`', obj.docstring.value)
