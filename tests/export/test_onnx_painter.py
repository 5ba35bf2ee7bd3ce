"""``OnnxPainter``: what it feeds to a file and draws of its outputs, with files of a few nodes."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest

pytest.importorskip('onnx', reason='pip install -e .[export]')
pytest.importorskip('onnxruntime', reason='pip install -e .[export]')
import onnx
from onnx import TensorProto, helper

from mmpelk.export.onnx_painter import OnnxPainter

MEAN, STD = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]
PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
ARGMAX = helper.make_node('ArgMax', ['logits'], ['labels'], axis=1, keepdims=0)
LABELS = helper.make_tensor_value_info('labels', TensorProto.INT64, None)


def write(path: Path, nodes: list[Any], shape: list[Any], outputs: list[Any], kind: int, **meta: Any) -> Path:
    graph = helper.make_graph(nodes, 'g', [helper.make_tensor_value_info('image', kind, shape)], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    given = dict(task='segmentation', mean=MEAN, std=STD, channel_order='rgb', palette=PALETTE) | meta
    helper.set_model_props(model, {key: json.dumps(value) for key, value in given.items() if value is not None})
    onnx.save(model, str(path))
    return path


def segmentor(path: Path, height: Any = 'H', width: Any = 'W', kind: int = TensorProto.FLOAT, **meta: Any) -> Path:
    """The logits are the normalised channels, so that the label is the brightest of them."""
    shape = ['N', 3, height, width]
    outputs = [helper.make_tensor_value_info('logits', kind, shape), LABELS]
    return write(path, [helper.make_node('Identity', ['image'], ['logits']), ARGMAX], shape, outputs, kind, **meta)


def picture(height: int = 9, width: int = 14) -> np.ndarray:
    """Blue, green, red."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize('kind', [TensorProto.FLOAT, TensorProto.FLOAT16], ids=['float32', 'float16'])
@pytest.mark.parametrize('order', ['rgb', 'bgr'])
def test_label_map_of_the_normalised_picture(order: str, kind: int, tmp_path: Path) -> None:
    image = picture()
    seen = image[..., ::-1] if order == 'rgb' else image
    labels = ((seen - np.array(MEAN)) / STD).astype(np.float16 if kind == TensorProto.FLOAT16 else float).argmax(-1)
    drawn = OnnxPainter(segmentor(tmp_path / 'm.onnx', kind=kind, channel_order=order), opacity=1.0)(image)
    assert np.array_equal(drawn, np.array(PALETTE, np.uint8)[labels][..., ::-1])
    half = OnnxPainter(tmp_path / 'm.onnx', opacity=0.5)(image)
    assert np.abs(half - (image / 2 + drawn / 2)).max() <= 0.5


def test_file_of_one_size_draws_in_the_pictures_own(tmp_path: Path) -> None:
    path = segmentor(tmp_path / 'm.onnx', 4, 6, mean=[0.0] * 3, std=[1.0] * 3)
    image = np.zeros((12, 18, 3), np.uint8)
    image[:, :9, 2], image[:, 9:, 0] = 200, 200  # red on the left, blue on the right
    drawn = OnnxPainter(path, opacity=1.0)(image)
    assert np.array_equal(drawn[:, :8, 2], np.full((12, 8), 255))
    assert np.array_equal(drawn[:, 10:, 0], np.full((12, 8), 255))
    assert not drawn[..., 1].any()  # green is the class between them


@pytest.mark.parametrize('size', [('H', 'W'), (5, 9)], ids=str)
def test_preprocessing_in_the_file(size: tuple[Any, Any], tmp_path: Path) -> None:
    nodes = [
        helper.make_node('Cast', ['image'], ['float'], to=TensorProto.FLOAT),
        helper.make_node('Transpose', ['float'], ['logits'], perm=[0, 3, 1, 2]),
        ARGMAX,
    ]
    outputs = [helper.make_tensor_value_info('logits', TensorProto.FLOAT, ['N', 3, *size]), LABELS]
    path = write(tmp_path / 'm.onnx', nodes, ['N', *size, 3], outputs, TensorProto.UINT8)
    image = picture()
    seen = image if size == ('H', 'W') else cv2.resize(image, size[::-1])
    drawn = OnnxPainter(path, opacity=1.0)(image)
    colours = np.array(PALETTE, np.uint8)[seen[..., ::-1].argmax(-1)]
    assert np.array_equal(drawn[..., ::-1], colours[nearest(9, seen.shape[0])][:, nearest(14, seen.shape[1])])


def nearest(pixels: int, labels: int) -> np.ndarray:
    """Which of so many labels the middle of each pixel lies in; of an odd number, so that it is on no border."""
    return ((2 * np.arange(pixels) + 1) * labels) // (2 * pixels)


def with_labels(path: Path, labels: np.ndarray, classes: int, **meta: Any) -> Path:
    """A file that gives the same label map, whatever it is shown."""
    logits = onnx.numpy_helper.from_array(np.zeros((1, classes, 1, 1), np.float32), 'logits')
    nodes = [
        helper.make_node('Constant', [], ['logits'], value=logits),
        helper.make_node('Constant', [], ['labels'], value=onnx.numpy_helper.from_array(labels[None])),
    ]
    outputs = [helper.make_tensor_value_info('logits', TensorProto.FLOAT, None), LABELS]
    return write(path, nodes, ['N', 3, *labels.shape], outputs, TensorProto.FLOAT, **meta)


@pytest.mark.parametrize('size', [(5, 7), (3, 13), (21, 31)], ids=str)
@pytest.mark.parametrize('classes', [3, 300])
def test_every_pixel_has_the_colour_of_the_label_that_it_lies_in(
    classes: int, size: tuple[int, int], tmp_path: Path
) -> None:
    """Whatever the size of the label map, with more classes than a byte counts, too, and more colours than classes."""
    numbers = np.random.default_rng(0)
    labels, palette = numbers.integers(0, classes, size), numbers.integers(0, 256, (classes + 2, 3))
    path = with_labels(tmp_path / 'm.onnx', labels, classes, palette=palette.tolist())
    drawn = OnnxPainter(path, opacity=1.0)(picture())
    stretched = labels[nearest(9, size[0])][:, nearest(14, size[1])]
    assert np.array_equal(drawn[..., ::-1], palette[stretched])


@pytest.mark.parametrize('opacity', [0.0, 0.2, 0.7])
def test_opacity_mixes_the_colour_with_the_picture(opacity: float, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (9, 14))
    path = with_labels(tmp_path / 'm.onnx', labels, 1, palette=PALETTE[:2])  # one logit tells two classes apart
    want = (1 - opacity) * picture() + opacity * np.array(PALETTE)[labels][..., ::-1]
    assert np.abs(OnnxPainter(path, opacity=opacity)(picture()) - want).max() <= 0.5 + 1e-9


def test_classes_without_colours_get_some(tmp_path: Path) -> None:
    path = segmentor(tmp_path / 'm.onnx', palette=None)
    drawn = OnnxPainter(path, opacity=1.0)(picture())
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 3
    assert np.array_equal(drawn, OnnxPainter(path, opacity=1.0)(picture()))


@pytest.mark.parametrize('scale', [1.0, 1000.0])  # the exponential of 1000 is no number
@pytest.mark.parametrize('classes', [['cat', 'dog', 'owl'], ['cat'], None], ids=['named', 'one name', 'unnamed'])
def test_class_is_written_into_the_picture(classes: list[str] | None, scale: float, tmp_path: Path) -> None:
    nodes = [
        helper.make_node('Constant', [], ['axes'], value_ints=[2, 3]),
        helper.make_node('ReduceMean', ['image', 'axes'], ['logits'], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info('logits', TensorProto.FLOAT, ['N', 3])]
    meta = dict(task='classification', classes=classes, palette=None, std=[value / scale for value in STD])
    path = write(tmp_path / 'm.onnx', nodes, ['N', 3, 64, 64], outputs, TensorProto.FLOAT, **meta)
    image = np.full((120, 160, 3), (30, 24, 10), np.uint8)  # of the logits 0, 1, 0
    with mock.patch.object(cv2, 'putText', wraps=cv2.putText) as put:
        drawn = OnnxPainter(path)(image)
    best = f'{"dog" if classes and classes[1:] else "class 1"}: {1 / (1 + 2 * np.exp(-scale)):.2f}'
    assert {call.args[1] for call in put.call_args_list} == {best}
    assert drawn.shape == image.shape
    assert (drawn != image)[:60].any()
    assert (drawn == image)[60:].all()


def test_files_that_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere'):
        OnnxPainter(tmp_path / 'nowhere.onnx')
    (tmp_path / 'text.onnx').write_text('no model')
    with pytest.raises(ValueError, match='not readable as an ONNX file'):
        OnnxPainter(tmp_path / 'text.onnx')
    with pytest.raises(ValueError, match='does not say what it takes'):
        OnnxPainter(segmentor(tmp_path / 'other.onnx', mean=None))
    with pytest.raises(ValueError, match='of the task detection'):
        OnnxPainter(segmentor(tmp_path / 'detector.onnx', task='detection'))
    path = segmentor(tmp_path / 'm.onnx', 'H', 6)  # of one width, and of any height
    with pytest.raises(ValueError, match='a picture of 9 x 14 does not run'):
        OnnxPainter(path)(picture())
