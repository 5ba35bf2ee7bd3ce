"""The wheel and the source distribution: what they hold, and that what was installed from them works."""

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.commands import run
from tests.paths import RECIPES, ROOT

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name('use_wheel.py')


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the source distribution of a copy of the project, and of the wheel made from that, as `build` does."""
    pytest.importorskip('setuptools', minversion='77')
    folder = tmp_path_factory.mktemp('distributions')
    ignore = shutil.ignore_patterns('.*venv*', '.git', '*cache*', 'data', 'work_dirs', 'build', 'dist', '*.egg-info')
    shutil.copytree(ROOT, folder / 'source', symlinks=True, ignore=ignore)
    for path in ('configs/seg', 'tools', 'mmpelk/ops'):  # what Python leaves behind in a checkout
        (folder / 'source' / path / '__pycache__').mkdir()
        (folder / 'source' / path / '__pycache__' / 'left_over.cpython-311.pyc').touch()
    code = "import setuptools.build_meta as backend; backend.build_sdist('../dist')"
    run(sys.executable, '-c', code, cwd=folder / 'source')
    (archive,) = (folder / 'dist').glob('*.tar.gz')
    with tarfile.open(archive) as tar:
        tar.extractall(folder / 'unpacked', filter='data')
    (source,) = (folder / 'unpacked').iterdir()
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', source]
    run(*command, '--wheel-dir', 'dist', cwd=folder)
    return folder / 'dist'


@pytest.fixture(scope='module')
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the wheel, without what it depends on."""
    site = tmp_path_factory.mktemp('site')
    (wheel,) = built.glob('*.whl')
    run(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', site, wheel, cwd=site)
    return site


def test_source_distribution_holds_what_a_wheel_is_built_from(built: Path) -> None:
    (archive,) = built.glob('*.tar.gz')
    with tarfile.open(archive) as tar:
        names = {name.partition('/')[2] for name in tar.getnames()}
        assert not any(member.issym() or member.islnk() for member in tar)
    for name in ('LICENSE', 'README.md', 'CHANGELOG.md', 'pyproject.toml', 'requirements.txt', 'requirements/dev.txt'):
        assert name in names
    assert not [name for name in names if name.startswith(('tests', 'reproduction', 'benchmarks'))]
    assert not [name for name in names if 'pycache' in name or name.endswith('.pyc')]


def test_wheel_holds_recipes_and_tools(built: Path) -> None:
    (wheel,) = built.glob('*.whl')
    assert wheel.name.endswith('-py3-none-any.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition('/')[0].partition('-')[0] for name in names} == {'mmpelk'}
    for name in RECIPES:
        assert f'mmpelk/.mim/configs/{name}' in names
    for name in ('tools/train.py', 'tools/dist_train.sh', 'configs/_base_/default_runtime.py', 'model-index.yml'):
        assert f'mmpelk/.mim/{name}' in names
    assert 'mmpelk/py.typed' in names
    assert any(name.endswith('licenses/LICENSE') for name in names)
    assert 'mmpelk/.mim/tools/setup_env.sh' not in names
    assert not [name for name in names if 'pycache' in name]
    for info in zipfile.ZipFile(wheel).infolist():
        if info.filename.endswith('/tools/dist_train.sh'):
            assert info.external_attr >> 16 & 0o111


def test_installed_wheel_requires_nothing_and_works(installed: Path, tmp_path: Path) -> None:
    """In this environment; `make test-stock` does the same in one of OpenMMLab's stock line."""
    (metadata,) = installed.glob('*.dist-info/METADATA')
    required = [line for line in metadata.read_text().splitlines() if line.startswith('Requires-Dist')]
    assert required
    assert all('extra ==' in line for line in required)
    # Before this environment's own editable installation.
    printed = run(sys.executable, SCRIPT, 'mmseg', 'mmdet', 'mmpretrain', cwd=tmp_path, PYTHONPATH=installed)
    assert f'from {installed}' in printed
    assert printed.count('a training step') == 3
