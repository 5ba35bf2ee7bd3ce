"""``tools/quantize_onnx.py`` and ``tools/test_onnx.py``: an INT8 file, and a file in place of the network."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.commands import call
from tests.paths import TOOLS
from tests.tools.conftest import DEMO_RECIPE as RECIPE

pytestmark = pytest.mark.slow  # exports, and draws a small set


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that point the recipe to a few pictures of the demo's set."""
    folder = tmp_path_factory.mktemp('pictures')
    call(TOOLS / 'demo' / 'make_segmentation_data.py', '--out', folder, '--training', 4, '--validation', 2, cwd=folder)
    names = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    return ['--cfg-options', *(f'{name}.dataset.data_root={folder}' for name in names)]


def miou(printed: str) -> float:
    return float(re.findall(r'mIoU: ([\d.]+)', printed)[-1])


def test_integers_keep_the_metric(demo_checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name, reason='pip install -e .[export]')
    import onnx

    from mmpelk.export import onnx_operators

    call(TOOLS / 'export_onnx.py', RECIPE, demo_checkpoint, 'demo.onnx', '--shape', 128, 128, cwd=tmp_path)
    options = ['demo.onnx', 'int8.onnx', '--images', 3, *pictures]
    printed = call(TOOLS / 'quantize_onnx.py', RECIPE, *options, cwd=tmp_path)
    assert re.search(r'int8.onnx: [1-9]\d* layers in INT8, calibrated on 3 images', printed)
    assert {'QuantizeLinear', 'DequantizeLinear'} <= set(onnx_operators(tmp_path / 'int8.onnx'))
    graph = onnx.load(tmp_path / 'int8.onnx').graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (image,) = [tensors[node.input[1]] for node in graph.node if node.input[0] == 'image']
    # The largest value of a normalised picture, of which an 8-bit integer has 127 steps.
    assert 1 < 127 * image < 3
    scales = [tensors[node.input[1]] for node in graph.node if tensors.get(node.input[0], image).dtype == np.int8]
    assert all(scale.size > 1 for scale in scales), 'a scale a channel'
    assert scales
    scores = {name: miou(call(TOOLS / 'test_onnx.py', RECIPE, name, *pictures, cwd=tmp_path)) for name in options[:2]}
    weights = miou(call(TOOLS / 'test.py', RECIPE, demo_checkpoint, *pictures, cwd=tmp_path))
    assert scores['demo.onnx'] == pytest.approx(weights, abs=0.05)
    assert scores['int8.onnx'] == pytest.approx(weights, abs=3)


def test_refusals(demo_checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    pytest.importorskip('onnxscript', reason='pip install -e .[export]')
    shape = ['--shape', 64, 64, '--fold-preprocessing']
    call(TOOLS / 'export_onnx.py', RECIPE, demo_checkpoint, 'folded.onnx', *shape, cwd=tmp_path)
    for tool, out in (('quantize_onnx', ['int8.onnx']), ('test_onnx', [])):
        printed = call(TOOLS / f'{tool}.py', RECIPE, 'folded.onnx', *out, *pictures, cwd=tmp_path, code=1)
        assert 'without --fold-preprocessing' in printed
        printed = call(TOOLS / f'{tool}.py', RECIPE, 'nowhere.onnx', *out, *pictures, cwd=tmp_path, code=1)
        assert "there is no file 'nowhere.onnx'" in printed
    assert not (tmp_path / 'int8.onnx').exists()
