"""The wheel: recipes and tools go with it as files, and are found there."""

import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.commands import run
from tests.paths import RECIPES, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of a copy of the project."""
    pytest.importorskip('setuptools', minversion='64')
    folder = tmp_path_factory.mktemp('wheel')
    ignore = shutil.ignore_patterns('.*venv*', '.git', '*cache*', 'data', 'work_dirs', 'build', '*.egg-info')
    shutil.copytree(ROOT, folder / 'source', symlinks=True, ignore=ignore)
    build = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', './source']
    run(*build, '--wheel-dir', 'dist', cwd=folder)
    (wheel,) = (folder / 'dist').glob('*.whl')
    zipfile.ZipFile(wheel).extractall(folder / 'site')
    return folder / 'site'


def test_wheel_holds_recipes_and_tools(installed: Path) -> None:
    assert not any(path.is_symlink() for path in installed.rglob('*'))
    for name in RECIPES:
        assert (installed / 'mmpelk' / '.mim' / 'configs' / name).is_file()
    for name in ('tools/train.py', 'tools/dist_train.sh', 'configs/_base_/default_runtime.py', 'model-index.yml'):
        assert (installed / 'mmpelk' / '.mim' / name).is_file()
    assert (installed / 'mmpelk' / 'py.typed').is_file()
    assert not any((installed / name).exists() for name in ('tests', 'reproduction', 'benchmarks'))


def test_wheel_requires_no_package_of_the_users_environment(installed: Path) -> None:
    (metadata,) = installed.glob('*.dist-info/METADATA')
    assert 'Requires-Dist: torch' not in metadata.read_text()


def test_installed_recipes_are_found(installed: Path, tmp_path: Path) -> None:
    code = (
        'import mmpelk\ncfg = mmpelk.get_config("seg/upernet_pelk_t_ade20k.py")\n'
        'print(mmpelk.__file__, cfg.filename, cfg.model.backbone.type)'
    )
    # -S keeps this environment's own editable installation away; its packages are added behind the wheel.
    packages = next(path for path in sys.path if path.endswith('site-packages'))
    code = f'import sys; sys.path[:0] = [{str(installed)!r}, {packages!r}]\n{code}'
    printed = run(sys.executable, '-S', '-c', code, cwd=tmp_path)
    assert printed.count(str(installed)) == 2
    assert 'mmpelk.PeLK' in printed
