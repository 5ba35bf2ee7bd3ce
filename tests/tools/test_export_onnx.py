"""``tools/export_onnx.py``: files of the demo's network that compute the same, and what is refused."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from tests.commands import call, program, run
from tests.paths import TOOLS
from tests.tools.conftest import DEMO_RECIPE as RECIPE

pytestmark = pytest.mark.slow  # an export takes seconds
TOOL = TOOLS / 'export_onnx.py'
# Nothing but Python's own library and these can be imported.
RUNS_ON = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] not in {} | set(sys.stdlib_module_names):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Finder())
"""


for extra in ('onnxscript', 'onnxruntime'):
    pytest.importorskip(extra, reason='pip install -e .[export]')
onnx = pytest.importorskip('onnx', reason='pip install -e .[export]')


def test_file_of_one_size_runs_with_a_runtime_and_numpy_alone(demo_checkpoint: Path, tmp_path: Path) -> None:
    options = ['--shape', '61', '83', '--fold-preprocessing', '--opset', '19']
    printed = call(TOOL, RECIPE, demo_checkpoint, 'demo.onnx', *options, cwd=tmp_path)
    assert '61 x 83: differs by' in printed
    model = onnx.load(tmp_path / 'demo.onnx')
    assert [opset.version for opset in model.opset_import if not opset.domain] == [19]
    assert {'key': 'preprocessing', 'value': '"in the file"'} in [
        dict(key=prop.key, value=prop.value) for prop in model.metadata_props
    ]
    np.save(tmp_path / 'image.npy', np.zeros((1, 61, 83, 3), np.uint8))
    for runtime in ('onnxruntime', 'openvino'):
        if find_spec(runtime):
            code = RUNS_ON.format({'numpy', runtime}) + program(f'{runtime}.')
            assert '(1, 61, 83)' in run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH='')


def test_dynamic_file_takes_other_sizes_and_batches(demo_checkpoint: Path, tmp_path: Path) -> None:
    import onnxruntime

    shapes = ['--dynamic', '--shape', '96', '96', '--shape', '70', '101']
    printed = call(TOOL, RECIPE, demo_checkpoint, 'demo.onnx', *shapes, cwd=tmp_path)
    assert printed.count('differs by') == 2
    session = onnxruntime.InferenceSession(str(tmp_path / 'demo.onnx'))
    logits, labels = session.run(None, {'image': np.zeros((3, 3, 33, 50), np.float32)})
    assert logits.shape == (3, 11, 33, 50)
    assert labels.shape == (3, 33, 50)
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta['task']) == 'segmentation'
    assert json.loads(meta['classes'])[0] == 'sand'
    numbers = Config.fromfile(RECIPE).model.data_preprocessor
    told = {key: json.loads(meta[key]) for key in ('mean', 'std', 'channel_order', 'preprocessing')}
    assert told == dict(mean=numbers.mean, std=numbers.std, channel_order='rgb', preprocessing='before the file')


def test_file_in_half_precision(demo_checkpoint: Path, tmp_path: Path) -> None:
    import onnxruntime

    printed = call(TOOL, RECIPE, demo_checkpoint, 'demo.onnx', '--half', '--shape', '64', '64', cwd=tmp_path)
    assert '64 x 64: differs by' in printed
    session = onnxruntime.InferenceSession(str(tmp_path / 'demo.onnx'))
    assert [each.type for each in session.get_inputs()] == ['tensor(float16)']
    logits, _ = session.run(None, {'image': np.zeros((1, 3, 64, 64), np.float16)})
    assert logits.dtype == np.float16


def test_refusals(demo_checkpoint: Path, tmp_path: Path) -> None:
    for options, message in (
        (['--shape', '3', '64'], 'smaller than the 4 x 4 patch'),
        (['--opset', '11'], 'opset 11 is not supported; known: 18 to'),
        (['--shape', '64', '64', '--shape', '32', '32'], '--dynamic makes one for any'),
        (['--cfg-options', 'model.backbone.kernel_sizes=(7,7)'], 'checkpoint of this recipe: they differ in backbone.'),
    ):
        printed = call(TOOL, RECIPE, demo_checkpoint, 'demo.onnx', *options, cwd=tmp_path, code=1)
        assert message in printed
        assert 'Traceback' not in printed
    assert 'nowhere.pth' in call(TOOL, RECIPE, 'nowhere.pth', 'demo.onnx', cwd=tmp_path, code=1)
    assert not list(tmp_path.glob('*.onnx'))
