"""What runs elsewhere, on somebody's change or release, names targets and files that there are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmpelk
from tests.paths import ROOT

GITHUB = ROOT / '.github'
WORKFLOWS = sorted((GITHUB / 'workflows').glob('*.yml'))
ACTIONS = sorted((GITHUB / 'actions').glob('*/action.yml'))
TARGETS = set(re.findall(r'^([a-z0-9-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
# A path of the repository in a command or in an expression.
PATH = re.compile(
    r"""(?<![\w./~$@-])(?:tools|tests|docs|requirements|benchmarks|configs)/[\w./*-]+|\b[\w.-]+\.(?:toml|txt)\b"""
)
MADE = {'build/docs', 'dist', '.venv', '.venv/setup.log'}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def steps(path: Path) -> Iterator[dict[str, Any]]:
    content = read(path)
    groups = [content['runs']] if 'runs' in content else content['jobs'].values()
    for group in groups:
        yield from group['steps']


def commands(path: Path) -> list[str]:
    return [step['run'] for step in steps(path) if 'run' in step]


@pytest.mark.parametrize('path', [*WORKFLOWS, *ACTIONS], ids=lambda path: path.relative_to(GITHUB).as_posix())
def test_targets_and_files_are_there(path: Path) -> None:
    targets = {target for command in commands(path) for target in re.findall(r'\bmake ([a-z0-9-]+)', command)}
    assert targets <= TARGETS
    named = {name for name in PATH.findall(path.read_text(encoding='utf-8')) if name not in MADE}
    missing = [name for name in named if not any(ROOT.glob(name))]
    assert not missing
    for step in steps(path):
        used = step.get('uses', '')
        if used.startswith('./'):
            given, known = set(step['with']), read(ROOT / used / 'action.yml')['inputs']
            assert given <= set(known)
            assert {name for name, each in known.items() if each.get('required')} <= given
    # Actions of others are pinned to a commit.
    for line in re.findall(r'uses: (\S+.*)', path.read_text(encoding='utf-8')):
        assert line.startswith('./') or re.fullmatch(r'[\w./-]+@[0-9a-f]{40} # v[\d.]+', line), line


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.name)
def test_permissions_are_the_least(path: Path) -> None:
    content = read(path)
    assert content['permissions'] == {'contents': 'read'}
    assert 'concurrency' in content
    for name, job in content['jobs'].items():
        assert 'timeout-minutes' in job
        assert job.get('permissions', {}) == ({'id-token': 'write'} if name == 'publish' else {})
        for step in job['steps']:
            if step.get('uses', '').startswith('actions/checkout@'):
                assert step['with']['persist-credentials'] is False


def test_suites_lines_and_pythons_are_there() -> None:
    run = {command for path in WORKFLOWS for command in commands(path)}
    wanted = {'lint', 'test-fast', 'test', 'test-torch21', 'dist', 'test-wheel', 'test-stock', 'docs'}
    assert {f'make {target}' for target in wanted} <= run
    pythons = re.findall(r'Programming Language :: Python :: (3\.\d+)', (ROOT / 'pyproject.toml').read_text())
    assert read(GITHUB / 'workflows' / 'test.yml')['jobs']['fast']['strategy']['matrix']['python'] == pythons
    lines = read(GITHUB / 'workflows' / 'distributions.yml')['jobs']
    assert lines['maintained']['strategy']['matrix']['python'] == pythons


def test_every_page_is_in_the_navigation_and_the_version_is_the_same_everywhere() -> None:
    navigation = (ROOT / 'mkdocs.yml').read_text().partition('\nnav:')[2]
    pages = {path.name for path in (ROOT / 'docs').glob('*.md')}
    assert pages <= set(re.findall(r'[\w/]+\.md', navigation))
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version']
    changes = re.search(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    assert changes is not None
    assert citation == changes[1] == mmpelk.__version__
