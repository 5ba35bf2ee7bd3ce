"""``tools/export_torch.py``: programs that run where mmpelk is not installed, from Python and from C++."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import call, program, run
from tests.paths import TOOLS
from tests.tools.conftest import DEMO_RECIPE as RECIPE

pytestmark = pytest.mark.slow  # an export takes seconds
TOOL = TOOLS / 'export_torch.py'
WITHOUT = 'import sys\nfor name in ("mmpelk", "mmengine", "mmcv", "mmseg"): sys.modules[name] = None\n'


def test_dynamic_program_runs_where_mmpelk_is_not_installed(demo_checkpoint: Path, tmp_path: Path) -> None:
    """With images of other sizes, and with several."""
    shapes = ['--dynamic', '--shape', '96', '96', '--shape', '70', '101', '--fold-preprocessing']
    printed = call(TOOL, RECIPE, demo_checkpoint, 'demo.pt2', *shapes, cwd=tmp_path)
    assert printed.count('differs by') == 2
    saved = torch.export.load(tmp_path / 'demo.pt2')
    assert not any('mmpelk' in str(node.target) for node in saved.graph.nodes)
    logits, labels = saved.module()(torch.zeros(3, 64, 93, 3, dtype=torch.uint8))
    assert logits.shape == (3, 11, 64, 93)
    assert labels.shape == (3, 64, 93)
    np.save(tmp_path / 'image.npy', np.zeros((1, 81, 83, 3), np.uint8))
    code = WITHOUT + program('torch.export.load')
    assert '(1, 81, 83)' in run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH='')


@pytest.mark.skipif(shutil.which('g++') is None, reason='no C++ compiler')
def test_compiled_package_runs_from_python_and_from_cpp(demo_checkpoint: Path, tmp_path: Path) -> None:
    options = ['--shape', '32', '48', '--fold-preprocessing', '--aot-inductor']
    printed = call(TOOL, RECIPE, demo_checkpoint, 'demo_compiled.pt2', *options, cwd=tmp_path)
    assert 'package of AOTInductor' in printed
    assert '32 x 48: differs by' in printed
    np.save(tmp_path / 'image.npy', np.zeros((1, 32, 48, 3), np.uint8))
    code = WITHOUT + program('aoti_load_package')
    shown = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH='')
    assert '(1, 32, 48)' in shown
    source = program('AOTIModelPackageLoader', 'cpp').replace('{1, 128, 128, 3}', '{1, 32, 48, 3}')
    (tmp_path / 'run.cpp').write_text(source)
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    in_cpp = run('bash', '-ec', program('run.cpp -o', 'bash'), cwd=tmp_path, PATH=path)
    assert '[1, 32, 48]' in in_cpp
    assert float(in_cpp.split()[-1]) == pytest.approx(float(shown.split()[-1]), rel=1e-5), 'the mean of the labels'


def test_refusals(demo_checkpoint: Path, tmp_path: Path) -> None:
    """Those of both formats are in test_export_onnx.py."""
    options = ['--shape', '40', '64', '--dynamic']
    for checkpoint, message in (
        (demo_checkpoint, 'a dynamic program takes images from 64 x 64 on'),
        ('nowhere.pth', 'nowhere.pth'),
    ):
        printed = call(TOOL, RECIPE, checkpoint, 'demo.pt2', *options, cwd=tmp_path, code=1)
        assert message in printed
        assert 'Traceback' not in printed
    assert not list(tmp_path.glob('*.pt2'))
