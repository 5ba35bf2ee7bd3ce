"""``tools/export_onnx.py``: files of the demo's network that compute the same, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from tests.commands import call
from tests.paths import CONFIGS, ROOT, TOOLS

pytestmark = pytest.mark.slow  # an export takes seconds
RECIPE = CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py'
TOOL = TOOLS / 'export_onnx.py'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo's network, random but whole, with names of classes."""
    pytest.importorskip('mmseg')
    cfg = Config.fromfile(RECIPE)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    path = tmp_path_factory.mktemp('export') / 'model.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=cfg.metainfo.classes))), path)
    return path


def requires_the_extra() -> None:
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name, reason='pip install -e .[export]')


def test_file_of_one_size_runs_with_onnxruntime_and_numpy_alone(checkpoint: Path, tmp_path: Path) -> None:
    requires_the_extra()
    options = ['--shape', '61', '83', '--fold-preprocessing']
    printed = call(TOOL, RECIPE, checkpoint, 'demo.onnx', *options, cwd=tmp_path)
    assert '61 x 83: differs by' in printed
    # The program of the documentation, with everything but onnxruntime and numpy out of reach.
    page = (ROOT / 'docs' / 'deployment.md').read_text()
    program = page.split('```python\n', 2)[1].split('```')[0]
    np.save(tmp_path / 'image.npy', np.zeros((1, 61, 83, 3), np.uint8))
    block = 'import sys\nfor name in ("torch", "mmengine", "mmpelk", "onnx"): sys.modules[name] = None\n'
    done = subprocess.run([sys.executable, '-c', block + program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '(1, 61, 83)' in done.stdout


def test_dynamic_file_takes_other_sizes_and_batches(checkpoint: Path, tmp_path: Path) -> None:
    requires_the_extra()
    import onnxruntime

    shapes = ['--dynamic', '--shape', '96', '96', '--shape', '70', '101']
    printed = call(TOOL, RECIPE, checkpoint, 'demo.onnx', *shapes, cwd=tmp_path)
    assert printed.count('differs by') == 2
    session = onnxruntime.InferenceSession(str(tmp_path / 'demo.onnx'))
    logits, labels = session.run(None, {'image': np.zeros((3, 3, 33, 50), np.float32)})
    assert logits.shape == (3, 11, 33, 50)
    assert labels.shape == (3, 33, 50)
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta['task']) == 'segmentation'
    assert json.loads(meta['classes'])[0] == 'sand'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--shape', '3', '64'], 'smaller than the 4 x 4 patch'),
        (['--opset', '11'], 'opset 11 is not supported; known: 18 to'),
        (['--shape', '64', '64', '--shape', '32', '32'], '--dynamic makes one for any'),
    ],
    ids=['below the stem', 'opset', 'two sizes'],
)
def test_refusals(checkpoint: Path, tmp_path: Path, options: list[str], message: str) -> None:
    printed = call(TOOL, RECIPE, checkpoint, 'demo.onnx', *options, cwd=tmp_path, code=1)
    assert message in printed
    assert 'Traceback' not in printed
    assert not list(tmp_path.glob('*.onnx'))


def test_checkpoint_that_is_missing_or_of_another_network(checkpoint: Path, tmp_path: Path) -> None:
    assert 'nowhere.pth' in call(TOOL, RECIPE, 'nowhere.pth', 'demo.onnx', cwd=tmp_path, code=1)
    smaller = ['--cfg-options', 'model.backbone.kernel_sizes=(7,7)']
    printed = call(TOOL, RECIPE, checkpoint, 'demo.onnx', *smaller, cwd=tmp_path, code=1)
    assert 'is not a checkpoint of this recipe: they differ in backbone.' in printed
