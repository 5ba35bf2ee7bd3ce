"""Which layers of a file compute in 8-bit integers, with a file of a few nodes."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import nn

pytest.importorskip('onnx', reason='pip install -e .[export]')
pytest.importorskip('onnxruntime', reason='pip install -e .[export]')
import onnx
from onnx import TensorProto, helper
from onnxruntime import quantization

from mmpelk.errors import UserError
from mmpelk.export.quantisation import _layers, calibration_images, quantize_onnx, replace_weights


def test_depthwise_kernels_stay_floats(tmp_path: Path) -> None:
    """They are slower in integers."""
    numbers = np.random.default_rng(0)
    shapes = dict(dense=(16, 3, 1, 1), depthwise=(16, 1, 3, 3))
    nodes = [
        helper.make_node('Conv', ['image', 'dense'], ['middle'], 'dense layer'),
        helper.make_node('Conv', ['middle', 'depthwise'], ['out'], 'depthwise layer', group=16, pads=[1, 1, 1, 1]),
    ]
    image, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 6])
        for name, channels in (('image', 3), ('out', 16))
    )
    weights = [
        onnx.numpy_helper.from_array(numbers.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph(nodes, 'g', [image], [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    onnx.save(model, str(tmp_path / 'floats.onnx'))
    images = [torch.randn(1, 3, 11, 8, generator=torch.Generator().manual_seed(0))]  # of another size than the file
    with mock.patch.object(quantization, 'quantize_static', wraps=quantization.quantize_static) as asked:
        assert quantize_onnx(tmp_path / 'floats.onnx', tmp_path / 'integers.onnx', images) == 1
    assert asked.call_args.kwargs['calibrate_method'] == quantization.CalibrationMethod.MinMax, 'nothing is cut off'
    written = onnx.load(tmp_path / 'integers.onnx').graph
    kinds = {tensor.name: tensor.data_type for tensor in written.initializer}
    assert kinds['depthwise'] == TensorProto.FLOAT
    assert TensorProto.INT8 in kinds.values()
    numbers_of = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in written.initializer}
    zeros = [value for name, value in numbers_of.items() if name.endswith('zero_point')]
    assert zeros, 'of weights and of maps'
    assert not any(value.any() for value in zeros), 'symmetric, as TensorRT requires'
    assert any(value.shape == (16,) for name, value in numbers_of.items() if name.endswith('scale')), 'by channel'
    (scale,) = (numbers_of[node.input[1]] for node in written.node if node.input[0] == 'image')
    seen = torch.nn.functional.interpolate(images[0], (8, 6), mode='bilinear').abs().max()
    assert 127 * scale == pytest.approx(float(seen), rel=0.01), 'the largest number is an integer, too'


@pytest.mark.parametrize('kind', [TensorProto.FLOAT16, TensorProto.UINT8])
def test_files_that_take_no_float32_are_refused(kind: int, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, kind, [1, 3, 2, 2]) for name in ('image', 'out')]
    graph = helper.make_graph([helper.make_node('Identity', ['image'], ['out'])], 'g', values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    onnx.save(model, str(tmp_path / 'a.onnx'))
    with pytest.raises(UserError, match=r'a\.onnx. takes no float32'):
        quantize_onnx(tmp_path / 'a.onnx', tmp_path / 'b.onnx', [])


def test_layers_that_compute_in_integers() -> None:
    """Those that multiply with a trained matrix of 16 rows and columns at least, or a kernel of all channels."""
    weights = dict(
        small=(15, 99),
        matrix=(16, 17),
        batch=(2, 16, 16),
        kernel=(3, 2, 1, 1),
        own=(4, 1, 3, 3),
        row=(8, 8, 3),
        none=(64, 64),
    )
    nodes = [
        helper.make_node(kind, ['x', *given], ['y'], f'{kind} of {" and ".join(given)}', **group)
        for kind, given, group in (
            *(('MatMul', [name], {}) for name in ('small', 'matrix', 'batch', 'y')),
            *(('Gemm', [name, 'small'], {}) for name in ('matrix', 'small')),
            *(('Conv', [name], {}) for name in ('kernel', 'row')),
            *(('Conv', ['own'], dict(group=groups)) for groups in (1, 4)),
            *(('Add', ['none'], {}), ('Relu', [], {})),
        )
    ]
    initializer = [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, 'g', [], [], initializer))
    found = ['MatMul of matrix', 'Gemm of matrix and small', 'Conv of kernel', 'Conv of own']
    assert _layers(model) == found


class Preprocessor(BaseDataPreprocessor):
    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        assert not training, 'no mixing of images'
        return dict(inputs=2 * data['inputs'])


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(inputs=torch.full((3, 2, 2), float(index)))


@pytest.mark.parametrize('own', [False, True])
def test_images_to_calibrate_on_are_drawn_from_the_training_set(own: bool) -> None:
    loader = dict(
        dataset=Numbers(),
        batch_size=4,
        num_workers=2,
        persistent_workers=True,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
    )
    cfg: Any = ConfigDict(model={}, data_preprocessor=dict(type=Preprocessor), train_dataloader=loader)
    if own:  # the model's comes first
        cfg.model.data_preprocessor, cfg.data_preprocessor = cfg.data_preprocessor, dict(type=BaseDataPreprocessor)
    drawn, again = (torch.cat(list(calibration_images(cfg, 5)))[:, 0, 0, 0].tolist() for _ in range(2))
    assert drawn == again, 'the same every time'
    assert len(set(drawn)) == 5
    assert drawn != sorted(drawn)
    assert set(drawn) <= {2.0 * index for index in range(9)}
    assert cfg.train_dataloader.batch_size == 4


class Session:
    """Of a file in half precision, which computes what a classifier does."""

    def __init__(self, model: Any, kind: str = 'float16') -> None:
        self.model, self.kind, self.given = model, kind, []

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name='image', type=f'tensor({self.kind})')]

    def run(self, names: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.given.append(feed['image'])
        with torch.no_grad():
            features = self.model.extract_feat(torch.from_numpy(feed['image']).float())
            return [self.model.head(features).numpy()]


@pytest.mark.scope('mmpretrain')
def test_a_file_takes_the_place_of_a_classifiers_weights() -> None:
    backbone = dict(type='mmpelk.PeLK', depths=(1, 1), channels=(8, 12), kernel_sizes=(9, 7))
    head = dict(type='LinearClsHead', num_classes=3, in_channels=12)
    model: Any = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head)).eval()
    session, images = Session(copy.deepcopy(model)), torch.rand(3, 3, 32, 32)
    replace_weights(model, session)
    with torch.no_grad():
        found, want = model.predict(images), session.model.predict(images.half().float())
    for ours, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(ours.pred_score, theirs.pred_score)
    assert [(image.dtype, image.shape) for image in session.given] == [(np.float16, (1, 3, 32, 32))] * 3


def test_a_file_takes_the_place_of_a_segmentors_weights() -> None:
    """Its first output is the logits; what the toolbox makes of them, by a threshold too, it makes of these."""
    model: Any = SimpleNamespace(decode_head=SimpleNamespace(threshold=0.35), backbone=None, neck=nn.Identity())
    session = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name='image', type='tensor(float)')],
        run=lambda names, feed: [2 * feed['image'].astype(np.float16), feed['image'].argmax(1)],
    )
    replace_weights(model, session)
    images = torch.randn(2, 3, 4, 5)
    features = model.backbone(images)
    logits = model.decode_head.predict(features, [], None)
    assert (model.neck, model.decode_head.threshold, logits.dtype) == (None, 0.35, torch.float32)
    torch.testing.assert_close(logits, 2 * images, rtol=1e-3, atol=1e-3)


def test_files_and_models_that_do_not_fit_are_refused() -> None:
    detector, bare = nn.ModuleDict(dict(bbox_head=nn.Identity())), nn.ModuleDict(dict(head=nn.Identity()))
    for network, kind, message in ((bare, 'uint8', 'without --fold-pre'), (detector, 'float', 'no boxes')):
        with pytest.raises(UserError, match=message):
            replace_weights(network, Session(None, kind))
    with pytest.raises(UserError, match='Identity has no layer fc'):
        replace_weights(bare, Session(None, 'float'))
