"""What of an ONNX file, and of a program of torch, is ours to write."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

from mmpelk.errors import UserError
from mmpelk.export import ExportedNetwork
from mmpelk.export.network import Preprocessing
from mmpelk.export.onnx_file import OPSETS, check_opset, export_onnx, gelu_translation, onnx_operators, open_onnx
from mmpelk.export.torch_program import compile_program, export_program
from mmpelk.models import PeripheralConv2d


@pytest.mark.parametrize('approximate', ['none', 'tanh'])
def test_gelu_is_torchs(approximate: str) -> None:
    onnxscript = pytest.importorskip('onnxscript', reason='pip install -e .[export]')
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    got = np.asarray(gelu_translation(onnxscript.tensor.Tensor(x), approximate).value)
    np.testing.assert_allclose(got, gelu(torch.from_numpy(x), approximate=approximate).numpy(), rtol=1e-5, atol=1e-5)


class Network(nn.Sequential):
    """Of images in either layout, with an operator that is replaced, so that a change of it shows."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(2), PeripheralConv2d(2, 31))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image.permute(0, 3, 1, 2) if image.shape[-1] == 3 else image)


def exported(takes_pixels: bool) -> ExportedNetwork:
    network = Network()
    numbers = Preprocessing([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], rgb=not takes_pixels)
    meta = dict(classes=['a', 'b'], palette=[[0, 0, 0], [1, 2, 3]])
    task = 'detection' if takes_pixels else 'segmentation'
    return ExportedNetwork(network, ('logits', 'labels'), task, numbers, 1, meta, takes_pixels)


def image(size: tuple[int, int], takes_pixels: bool) -> torch.Tensor:
    return torch.zeros((1, *size, 3) if takes_pixels else (1, 3, *size))


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('takes_pixels', [False, True])
def test_what_the_exporters_get_and_what_stands_in_the_file(
    takes_pixels: bool, dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('onnxscript', reason='pip install -e .[export]')
    asked: list[Any] = []
    model = SimpleNamespace(metadata_props={})
    program = SimpleNamespace(model=model, save=lambda path: Path(path).touch())
    monkeypatch.setattr(torch.onnx, 'export', lambda *given, **options: asked.append((given, options)) or program)
    monkeypatch.setattr(torch.export, 'export', lambda *given, **options: asked.append((given, options)))
    network, given = exported(takes_pixels), image((64, 70), takes_pixels)
    export_onnx(network, given, tmp_path / 'new' / 'a.onnx', 19, dynamic)
    export_program(network, given, dynamic)
    assert (tmp_path / 'new' / 'a.onnx').is_file()
    sides = (1, 2) if takes_pixels else (2, 3)
    for (plain, (example,)), options in asked:
        kinds = ['Conv2d', 'PlainAveragePool', 'AnySizeForm' if dynamic else 'FourierForm']
        assert [type(module).__name__ for module in plain] == kinds
        assert example.shape == (1 + dynamic, *given.shape[1:])
        vary = options['dynamic_shapes']
        assert vary is None if not dynamic else vary[0].keys() == {0, *sides}
    assert isinstance(network.network[1], nn.AdaptiveAvgPool2d), 'a copy is changed'
    options = asked[0][1]
    assert (options['opset_version'], options['input_names'], options['output_names']) == (
        *(19, ['image'], ['logits', 'labels']),
    )
    assert {key: json.loads(value) for key, value in model.metadata_props.items()} == dict(
        task=network.task,
        mean=[1.0, 2.0, 3.0],
        std=[4.0, 5.0, 6.0],
        channel_order='bgr' if takes_pixels else 'rgb',
        preprocessing='in the file' if takes_pixels else 'before the file',
        **network.meta,
    )
    with pytest.raises(UserError, match='known: 18 to 23'):
        export_onnx(network, given, tmp_path / 'b.onnx', 17)
    if dynamic:
        with pytest.raises(UserError, match='from 64 x 64 on'):
            export_program(network, image((64, 63), takes_pixels), dynamic=True)


def test_programs_that_cannot_be_compiled_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(program: Any, package_path: str) -> None:
        raise RuntimeError(f'no g++ for {package_path}\nand more')

    monkeypatch.setattr(torch._inductor, 'aoti_compile_and_package', fail)
    with pytest.raises(UserError, match=r'cannot compile the program: no g\+\+ for a.pt2 \(it needs'):
        compile_program(SimpleNamespace(), Path('a.pt2'))


def test_opsets() -> None:
    for opset in OPSETS:
        check_opset(opset)
    for opset in (17, 24):
        with pytest.raises(UserError, match=f'opset {opset} is not supported; known: 18 to 23'):
            check_opset(opset)


def test_operators_and_threads_of_a_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip('onnx', reason='pip install -e .[export]')
    pytest.importorskip('onnxruntime', reason='pip install -e .[export]')
    make = onnx.helper
    number = make.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [])
    branches = {
        f'{word}_branch': make.make_graph([make.make_node(kind, ['x'], ['y'])], word, [], [number])
        for word, kind in (('then', 'Sqrt'), ('else', 'Abs'))
    }
    takes = [
        make.make_tensor_value_info(name, kind, [])
        for name, kind in (('c', onnx.TensorProto.BOOL), ('x', onnx.TensorProto.FLOAT))
    ]
    nodes = [make.make_node('If', ['c'], ['y'], **branches)]
    for name, more in (('own', []), ('other', [make.make_node('Gelu', ['x'], ['z'], domain='com.microsoft')])):
        graph = make.make_graph([*nodes, *more], 'g', takes, [number])
        opsets = [make.make_opsetid('', 18), make.make_opsetid('com.microsoft', 1)]
        onnx.save(make.make_model(graph, opset_imports=opsets, ir_version=9), str(tmp_path / f'{name}.onnx'))
    assert onnx_operators(tmp_path / 'own.onnx') == ['Abs', 'If', 'Sqrt']
    assert onnx_operators(tmp_path / 'other.onnx') == ['Abs', 'If', 'Sqrt', 'com.microsoft.Gelu']
    # Operators of a function count, and weights beside the file are not read.
    made = make.make_function('own', 'F', ['x'], ['z'], [make.make_node('Exp', ['x'], ['z'])], opsets)
    weight = onnx.numpy_helper.from_array(np.ones(9, np.float32), 'w')
    nodes = [make.make_node('F', ['x'], ['f'], domain='own'), make.make_node('Add', ['f', 'w'], ['y'])]
    model = make.make_model(make.make_graph(nodes, 'g', takes, [number], [weight]), functions=[made])
    away = dict(save_as_external_data=True, location='weights', size_threshold=0)
    onnx.save(model, str(tmp_path / 'function.onnx'), **away)
    (tmp_path / 'weights').unlink()
    assert onnx_operators(tmp_path / 'function.onnx') == ['Add', 'Exp', 'own.F']
    for threads in (0, 3):
        session = open_onnx(tmp_path / 'own.onnx', threads, spin=not threads)
        options = session.get_session_options()
        assert options.intra_op_num_threads == (threads or torch.get_num_threads())
        if threads:
            assert options.get_session_config_entry('session.force_spinning_stop') == '1'
