"""The Dockerfile sets up as `make` does, and takes along what that needs."""

import re

from tests.paths import ROOT

DOCKERFILE = (ROOT / 'Dockerfile').read_text()


def test_the_set_up_is_the_only_installer_and_its_stages_are_known() -> None:
    assert 'tools/setup_env.sh "$STAGE"' in DOCKERFILE
    assert not re.search(r'\bpip3? install|conda', DOCKERFILE)
    known = re.search(r'setup_env\.sh \[([a-z|]+)\]', (ROOT / 'tools/setup_env.sh').read_text())
    (default,) = re.findall(r'^ARG STAGE=(\w+)$', DOCKERFILE, re.MULTILINE)
    assert known is not None
    assert default in known[1].split('|')


def test_every_base_is_an_image_of_a_device() -> None:
    bases = dict(re.findall(r'^FROM (\S+) AS base-(\w+)$', DOCKERFILE, re.MULTILINE))
    assert sorted(bases.values()) == ['cpu', 'cuda']
    assert 'FROM base-${DEVICE}\n' in DOCKERFILE
    assert all(re.search(r':\d', image) for image in bases), 'a version, not latest'


def test_nothing_of_git_that_the_set_up_needs_is_left_out() -> None:
    ignored = {line for line in (ROOT / '.dockerignore').read_text().splitlines() if line and line[0] != '#'}
    needed = {'tools', 'requirements', 'mmpelk', 'configs', 'model-index.yml', 'README.md', 'pyproject.toml'}
    assert not needed & ignored
    # Whatever git ignores as a folder of data or an environment is not sent to the builder either.
    folders = {line.strip('/') for line in (ROOT / '.gitignore').read_text().split() if line.endswith('/')}
    assert folders & {'data', 'work_dirs', 'checkpoints', 'projects', '.venv*'} <= ignored
