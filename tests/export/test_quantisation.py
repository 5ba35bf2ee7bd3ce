"""Which layers of a file compute in 8-bit integers, with a file of a few nodes."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('onnx', reason='pip install -e .[export]')
pytest.importorskip('onnxruntime', reason='pip install -e .[export]')
import onnx
from onnx import TensorProto, helper

from mmpelk.export.quantisation import quantize_onnx


def test_depthwise_kernels_stay_floats(tmp_path: Path) -> None:
    """They are slower in integers."""
    numbers = np.random.default_rng(0)
    shapes = dict(dense=(16, 3, 1, 1), depthwise=(16, 1, 3, 3))
    nodes = [
        helper.make_node('Conv', ['image', 'dense'], ['middle'], 'dense layer'),
        helper.make_node('Conv', ['middle', 'depthwise'], ['out'], 'depthwise layer', group=16, pads=[1, 1, 1, 1]),
    ]
    image, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8])
        for name, channels in (('image', 3), ('out', 16))
    )
    weights = [
        onnx.numpy_helper.from_array(numbers.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph(nodes, 'g', [image], [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    onnx.save(model, str(tmp_path / 'floats.onnx'))
    images = [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    assert quantize_onnx(tmp_path / 'floats.onnx', tmp_path / 'integers.onnx', images) == 1
    written = onnx.load(tmp_path / 'integers.onnx').graph
    kinds = {tensor.name: tensor.data_type for tensor in written.initializer}
    assert kinds['depthwise'] == TensorProto.FLOAT
    assert TensorProto.INT8 in kinds.values()
