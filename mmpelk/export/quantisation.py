"""INT8 by onnxruntime's static post-training quantisation, and a recipe's test with a file in place of its weights."""

import copy
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from mmpelk.errors import UserError

from .network import task_of
from .onnx_file import runner_of

_LEAST_SIDE = 16  # of a matrix of weights; smaller ones are pooling's, and save nothing


def calibration_images(cfg: Config, count: int) -> Iterator[Tensor]:
    """Images of a recipe's training set as its network sees them in training, one by one: ``(1, 3, H, W)``."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        preprocessor = MODELS.build(copy.deepcopy(cfg.model.get('data_preprocessor') or cfg.data_preprocessor))
        loader = copy.deepcopy(cfg.train_dataloader)
        loader.update(batch_size=1, num_workers=0, persistent_workers=False)
        for batch in itertools.islice(Runner.build_dataloader(loader, seed=0), count):
            yield preprocessor(batch, training=False)['inputs']


def quantize_onnx(path: Path, out: Path, images: Iterable[Tensor]) -> int:
    """Write a file whose linear layers and convolutions compute in 8-bit integers; its inputs and outputs stay floats.

    The transforms of large kernels stay in float32: their sums are many times as large as what they are made of. Both
    weights, which have a scale per channel, and maps are symmetric, as TensorRT requires.

    Args:
        path: A float32 file of :func:`~mmpelk.export.export_onnx` without folded preprocessing.
        out: File to write.
        images: To calibrate on, ``(1, 3, H, W)``; resized to the file's size if it has one.

    Returns:
        How many layers were quantised.

    Raises:
        ImportError: If onnxruntime is not installed.
        UserError: If the file takes pixels or half precision.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / 'prepared.onnx')
        quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        given = model.graph.input[0]
        if given.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise UserError(f"'{path}' takes no float32; export it without --fold-preprocessing and --half")
        size = [dimension.dim_value for dimension in given.type.tensor_type.shape.dim[2:]]
        layers = _layers(model)
        quantize_static(
            prepared,
            str(out),
            _Reader(given.name, size, images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=layers,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=dict(ActivationSymmetric=True, WeightSymmetric=True),
        )
    return len(layers)


def _layers(model: Any) -> list[str]:
    """Names of the nodes that multiply with trained matrices or kernels, but depthwise ones, which are slower so."""
    sides = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    names = []
    for node in model.graph.node:
        shape = sides.get(node.input[1], ()) if len(node.input) > 1 else ()
        is_linear = node.op_type in ('MatMul', 'Gemm') and len(shape) == 2 and min(shape) >= _LEAST_SIDE
        groups = next((attribute.i for attribute in node.attribute if attribute.name == 'group'), 1)
        if is_linear or (node.op_type == 'Conv' and len(shape) == 4 and groups == 1):
            names.append(node.name)
    return names


class _Reader:
    """onnxruntime's ``CalibrationDataReader``, by its two methods."""

    def __init__(self, name: str, size: list[int], images: Iterable[Tensor]) -> None:
        self.feeds = ({name: self._fit(image, size)} for image in images)

    @staticmethod
    def _fit(image: Tensor, size: list[int]) -> np.ndarray:
        if all(size) and list(image.shape[-2:]) != size:
            image = F.interpolate(image, size, mode='bilinear')
        return image.numpy()

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.feeds


def replace_weights(model: Any, session: Any) -> None:
    """Let a recipe's segmentor or classifier take its logits from a file; in place.

    What the toolbox does before and after, sliding windows and flips too, stays.

    Args:
        model: Model of the recipe.
        session: Session from :func:`~mmpelk.export.open_onnx`; its file takes normalised images.

    Raises:
        UserError: If the file takes pixels, or the model is a detector, whose boxes no file computes.
    """
    given = session.get_inputs()[0]
    if given.type == 'tensor(uint8)':
        raise UserError('the file takes pixels, but the recipe normalises them: export it without --fold-preprocessing')
    task = task_of(model)
    if task == 'segmentation':
        model.decode_head = _IdentityHead(model.decode_head.threshold)
    elif task == 'classification' and hasattr(model.head, 'fc'):
        model.head.fc = nn.Identity()
    elif task == 'classification':
        raise UserError(f'{type(model.head).__name__} has no layer fc: its recipe cannot be tested with a file')
    else:
        raise UserError("a detector's file has no boxes: its recipe cannot be tested with it")
    model.backbone, model.neck = _FileBackbone(session), None


class _FileBackbone(nn.Module):
    """Gives the logits of a file in place of features."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.run = runner_of(session)
        self.dtype = torch.float16 if session.get_inputs()[0].type == 'tensor(float16)' else torch.float32

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        images = inputs.cpu().to(self.dtype).numpy()
        return (torch.cat([torch.from_numpy(self.run(image[None])[0].astype(np.float32)) for image in images]),)


class _IdentityHead(nn.Module):
    """A decode head of mmseg's that takes logits for features."""

    def __init__(self, threshold: float | None) -> None:
        super().__init__()
        self.threshold = threshold

    def predict(self, features: tuple[Tensor], batch_img_metas: list[dict], test_cfg: Any) -> Tensor:
        return features[0]
