"""What OneDL's MIM does with a recipe's bare name, and that ``docs/mim-0.5.1.patch`` mends it."""

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import run
from tests.paths import CONFIGS, ROOT

VERSION = '0.5.1'
RECIPE = 'upernet_pelk_t_ade20k.py'
# Asks MIM what it would run, from a wheel and from an editable installation; the distributions are stand-ins.
ASK = """
import json, subprocess, sys
from unittest import mock

from mim.commands import test, train

def ask(function, *words, **more):
    subprocess.check_output = lambda *_, **__: b'--gpus'
    with mock.patch('subprocess.check_call', return_value=0) as called:
        try:
            function(*words, **more)
        except ValueError as error:
            return str(error)
    return called.call_args.args[0]

answers = [ask(train, 'mmpelk', sys.argv[1], gpus=0)]
answers.append(ask(test, 'mmdet', 'faster-rcnn_r50_fpn_1x_coco.py', checkpoint='x.pth'))
print(json.dumps(answers))
"""


@pytest.fixture(scope='module', params=['wheel', 'editable'])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages in which mmpelk is installed as pip does it."""
    folder = tmp_path_factory.mktemp(request.param)
    info = folder / 'mmpelk-0.1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: mmpelk\nVersion: 0.1.0\n')
    (info / 'top_level.txt').write_text('mmpelk\n')
    if request.param == 'editable':
        url = dict(dir_info=dict(editable=True), url=ROOT.as_uri())
        (info / 'direct_url.json').write_text(json.dumps(url))
    else:
        shutil.copytree(CONFIGS, folder / 'mmpelk/.mim/configs')
        shutil.copytree(ROOT / 'tools', folder / 'mmpelk/.mim/tools')
        shutil.copytree(ROOT / 'mmpelk/configs', folder / 'mmpelk/configs')
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
    (info / 'RECORD').write_text(''.join(f'{name},,\n' for name in files))
    return folder


def ask(*folders: Path) -> list[str | list[str]]:
    path = ':'.join(map(str, folders))
    elsewhere = folders[-1].parent  # Python looks into the folder that it is started in, too
    printed = run(sys.executable, '-W', 'ignore', '-c', ASK, RECIPE, cwd=elsewhere, PYTHONPATH=path)
    answers: list[str | list[str]] = json.loads(printed.splitlines()[-1])
    return answers


@pytest.fixture(scope='module')
def unpatched() -> Path:
    versions = [one.version for one in importlib.metadata.distributions(name='onedl-mim')]
    if VERSION not in versions:
        pytest.skip(f'the patch is for onedl-mim {VERSION}, here is {versions or "none"}')
    return Path(str(importlib.util.find_spec('mim').origin)).parent


@pytest.mark.slow
def test_bare_names_are_refused_and_the_patch_mends_it(unpatched: Path, site: Path, tmp_path: Path) -> None:
    train, test = ask(site)
    assert 'multiple config files' in train or 'can not find the config' in train
    assert "Can't determine a unique package" in test

    shutil.copytree(unpatched, tmp_path / 'mim')
    patch = (ROOT / 'docs' / f'mim-{VERSION}.patch').read_text()
    subprocess.run(['patch', '-p1'], input=patch, text=True, cwd=tmp_path, check=True, capture_output=True)
    train, test = ask(tmp_path, site)
    package = ROOT / 'mmpelk' if site.name.startswith('editable') else site / 'mmpelk'
    assert train[1:3] == [str(package / '.mim/tools/train.py'), str((package / '.mim/configs/seg' / RECIPE).resolve())]
    assert test[1].endswith('mmdet/.mim/tools/test.py')
    assert test[2].endswith('mmdet/.mim/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
