"""An ONNX file of a network, and a session that runs it."""

import copy
import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpelk.errors import UserError

from .network import ExportedNetwork
from .plain import make_plain

OPSETS = range(18, 24)
"""Opsets that files are written in: from the exporter's own on, as far as onnxruntime of the tested set reads."""


def check_opset(opset: int) -> None:
    """Refuse an opset that files are not written in.

    Raises:
        UserError: If it is none of :data:`OPSETS`.
    """
    if opset not in OPSETS:
        raise UserError(f'opset {opset} is not supported; known: {OPSETS[0]} to {OPSETS[-1]}')


def export_onnx(exported: ExportedNetwork, image: Tensor, path: Path, opset: int = 18, dynamic: bool = False) -> None:
    """Write an ONNX file of standard operators.

    Args:
        exported: The network; it is not changed. In half precision where its parameters are.
        image: An input of the size of the file, or with ``dynamic`` any input.
        path: File to write. Its metadata holds task, preprocessing and class names.
        opset: One of :data:`OPSETS`.
        dynamic: Let batch, height and width vary.

    Raises:
        ImportError: If onnx or onnxscript are not installed.
        UserError: If the opset is none of ours.
    """
    check_opset(opset)
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ImportError(
            'exporting to ONNX takes the packages onnx and onnxscript: pip install "mmpelk[export]"'
        ) from error
    network = make_plain(copy.deepcopy(exported.network), None if dynamic else image)
    vary = dict.fromkeys((0, 1, 2) if exported.takes_pixels else (0, 2, 3), torch.export.Dim.DYNAMIC)
    if dynamic:
        image = image[:1].repeat(2, 1, 1, 1)  # a batch of one would be taken for a constant
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of torch about its own deprecations
        program: Any = torch.onnx.export(
            network,
            (image,),
            dynamo=True,
            opset_version=opset,
            input_names=['image'],
            output_names=list(exported.outputs),
            custom_translation_table={torch.ops.aten.gelu.default: gelu_translation},
            dynamic_shapes=(vary,) if dynamic else None,
            verbose=False,
        )
    preprocessing = exported.preprocessing
    meta = dict(
        task=exported.task,
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
        channel_order='rgb' if preprocessing.rgb else 'bgr',
        preprocessing='in the file' if exported.takes_pixels else 'before the file',
        **exported.meta,
    )
    program.model.metadata_props.update({key: json.dumps(value) for key, value in meta.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path))


def gelu_translation(x: Any, approximate: str = 'none') -> Any:
    """``aten::gelu`` with its factors in the order that onnxruntime fuses; it does not fuse the exporter's.

    A translation for ``custom_translation_table``.
    """
    import onnxscript

    op: Any = onnxscript.opset18

    def number(value: float) -> Any:
        return op.CastLike(op.Constant(value_float=value), x)

    half, one, root, cubed = (number(value) for value in (0.5, 1.0, math.sqrt(2), 0.044715))
    if approximate == 'none':
        inner = op.Erf(op.Div(x, root))
    else:
        inner = op.Tanh(op.Mul(number(math.sqrt(2 / math.pi)), op.Add(x, op.Mul(cubed, op.Mul(x, op.Mul(x, x))))))
    return op.Mul(op.Mul(x, op.Add(inner, one)), half)


def open_onnx(path: Path, threads: int = 0, spin: bool = True) -> Any:
    """An onnxruntime session of a file on the CPU.

    Args:
        path: The file.
        threads: Number of threads; 0 takes torch's.
        spin: Let threads spin between runs, as onnxruntime does by default: faster, but they take time from others.

    Raises:
        ImportError: If onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('running ONNX files takes the package onnxruntime: pip install "mmpelk[export]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    if not spin:
        options.add_session_config_entry('session.force_spinning_stop', '1')
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def onnx_operators(path: Path) -> list[str]:
    """Names of the operators in a file, sorted; those that are not ONNX's own have their domain in front.

    Args:
        path: The file; its weights are not read.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    graphs = [model.graph, *model.functions]
    names = set()
    while graphs:
        for node in graphs.pop().node:
            names.add(f'{node.domain}.{node.op_type}' if node.domain else node.op_type)
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField('g')]
    return sorted(names)


def runner_of(session: Any) -> Callable[[np.ndarray], Sequence[np.ndarray]]:
    """An onnxruntime session as a function of one image."""
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})
