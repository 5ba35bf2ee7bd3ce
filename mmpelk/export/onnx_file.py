"""An ONNX file of a network, and its comparison with the network."""

import copy
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpelk.errors import UserError

from .network import ExportedNetwork
from .plain import make_plain
from .tables import onnx_translation_table

__all__ = ['OPSETS', 'Comparison', 'compare_onnx', 'export_onnx', 'in_half', 'open_onnx']

OPSETS = range(18, 24)
"""Opsets that files are written in: from the exporter's own on, as far as onnxruntime of the tested set reads."""


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
    if opset not in OPSETS:
        raise UserError(f'opset {opset} is not supported; known: {OPSETS[0]} to {OPSETS[-1]}')
    table = onnx_translation_table()
    network = make_plain(copy.deepcopy(exported.network), None if dynamic else image)
    channels_last = image.shape[-1] == 3
    vary = dict.fromkeys((0, 1, 2) if channels_last else (0, 2, 3), torch.export.Dim.DYNAMIC)
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
            custom_translation_table=table,
            dynamic_shapes=(vary,) if dynamic else None,
            verbose=False,
        )
    preprocessing = exported.preprocessing
    meta = dict(
        task=exported.task,
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
        channel_order='rgb' if preprocessing.rgb else 'bgr',
        preprocessing='in the file' if channels_last else 'before the file',
        **exported.meta,
    )
    program.model.metadata_props.update({key: json.dumps(value) for key, value in meta.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path))


def open_onnx(path: Path, threads: int = 0) -> Any:
    """An onnxruntime session of a file on the CPU.

    Args:
        path: The file.
        threads: Number of threads; 0 takes torch's.

    Raises:
        ImportError: If onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('running ONNX files takes the package onnxruntime: pip install "mmpelk[export]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


@dataclass(frozen=True)
class Comparison:
    """A file beside its network, on one image.

    Attributes:
        difference: Largest of any output, relative to that output's largest value.
        same_labels: Share of pixels, or images, whose best class agrees; 1 where there are no classes.
        seconds: That the file takes in onnxruntime.
        torch_seconds: That the network takes in eager torch.
    """

    difference: float
    same_labels: float
    seconds: float
    torch_seconds: float


def compare_onnx(session: Any, exported: ExportedNetwork, image: Tensor) -> Comparison:
    """Run a file and its network on an image, each twice, the second time with a clock.

    Args:
        session: Of :func:`open_onnx`.
        exported: The network that was exported, in the precision to compare with.
        image: As the file takes it.
    """
    given = {session.get_inputs()[0].name: image.numpy()}
    with torch.no_grad():
        wanted = image if image.dtype == torch.uint8 else image.to(next(exported.network.parameters()).dtype)
        (want, torch_seconds), (got, seconds) = (
            _timed(call) for call in (lambda: exported.network(wanted), lambda: session.run(None, given))
        )
    floats = [
        (np.asarray(out, np.float64), out_want.double().numpy())
        for out, out_want in zip(got, want, strict=True)
        if out_want.is_floating_point()
    ]
    difference = max(float(np.abs(out - out_want).max() / np.abs(out_want).max()) for out, out_want in floats)
    same = 1.0
    if exported.task == 'segmentation':
        same = float((got[1] == want[1].numpy()).mean())
    elif exported.task == 'classification':
        same = float((floats[0][0].argmax(1) == floats[0][1].argmax(1)).mean())
    return Comparison(difference, same, seconds, torch_seconds)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    call()
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def in_half(exported: ExportedNetwork) -> ExportedNetwork:
    """A copy in half precision; the transforms of large kernels stay in float32 inside."""
    return replace(exported, network=copy.deepcopy(exported.network).half())
