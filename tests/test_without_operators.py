"""Where mmcv's operators are not compiled: detection says what to type, nothing else misses them."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpelk.engine.checks import check_operators
from mmpelk.errors import UserError
from tests.commands import run
from tests.paths import CONFIGS, ROOT, TOOLS

DETECTOR = CONFIGS / 'det' / 'mask_rcnn_pelk_t_coco_1x.py'
PROGRAM = """
import importlib, pkgutil, sys
from pathlib import Path
import mmpelk
from tests.commands import call

try:
    import mmcv._ext
except ImportError:
    print('no operators')
for module in pkgutil.walk_packages(mmpelk.__path__, 'mmpelk.'):
    if not module.name.startswith(('mmpelk.configs.', 'mmpelk.ops.backends.triton')):
        importlib.import_module(module.name)
tools, segment, classify, detect = sys.argv[1:]
call(Path(tools, 'train.py'), segment, '--work-dir', 'work', cwd=Path.cwd())
checkpoint = Path('work/last_checkpoint').read_text()
print(call(Path(tools, 'test.py'), segment, checkpoint, '--work-dir', 'tested', cwd=Path.cwd()))
print(call(Path(tools, 'get_flops.py'), classify, '--shape', 64, 64, cwd=Path.cwd()))
print('DETECTION')
for tool, *arguments in (
    ('train.py', detect),
    ('test.py', detect, 'x.pth'),
    ('demo_image.py', 'x.jpg', '--config', detect, '--checkpoint', 'x.pth'),
    ('get_flops.py', detect, '--shape', '64', '64'),
):
    print(call(Path(tools, tool), *arguments, cwd=Path.cwd(), code=1))
"""


@pytest.mark.slow
def test_detection_alone_needs_them_and_says_what_to_type(tiny_config: Path, tmp_path: Path) -> None:
    """An mmcv without operators, for every Python that is started and those that it starts."""
    spec = importlib.util.find_spec('mmcv')
    assert spec is not None
    assert spec.origin is not None
    ignore = shutil.ignore_patterns('_ext*', '__pycache__')
    shutil.copytree(Path(spec.origin).parent, tmp_path / 'path/mmcv', ignore=ignore, copy_function=os.symlink)
    for name in ('x.jpg', 'x.pth'):
        (tmp_path / name).touch()
    (tmp_path / 'script.py').write_text(PROGRAM)
    words = ['script.py', TOOLS, tiny_config, CONFIGS / 'cls' / 'pelk_t_in1k.py', DETECTOR]
    printed = run(sys.executable, *words, cwd=tmp_path, PYTHONPATH=f'{tmp_path}/path:{ROOT}')
    needless, _, detection = printed.partition('DETECTION\n')
    for line in ('no operators', 'mIoU', 'large_kernels'):
        assert line in needless
    said = [line for line in detection.splitlines() if line]
    assert len(said) == 4, 'a line each, without the advice of the libraries'
    for line in said:
        assert line.startswith("error: detection needs mmcv's operators, which are not compiled here")
        assert '`tools/setup_env.sh det`' in line
        assert 'pip install --no-build-isolation' in line


def test_compiled_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError('_ext.so: undefined symbol: _ZN2at', name='mmcv._ext')
    monkeypatch.setattr('mmpelk.engine.checks.import_error', lambda: error)
    with pytest.raises(UserError, match=r'compiled for another torch .*undefined symbol.* here'):
        check_operators(Config(dict(default_scope='mmdet')))
    for scope in ('mmseg', 'mmpretrain', None):
        check_operators(Config(dict(default_scope=scope)))
