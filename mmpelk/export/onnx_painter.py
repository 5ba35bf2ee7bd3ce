"""Draw the predictions of an exported ONNX file, which holds preprocessing, classes and colours itself."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmpelk.errors import UserError

from .onnx_file import open_onnx


class OnnxPainter:
    """Runs a file of :func:`mmpelk.export.export_onnx` on a picture and draws the result into it.

    A file of one size gets the picture stretched to it; the drawing has the picture's own size.

    Args:
        path: The file, of a segmentor or a classifier.
        opacity: Opacity of drawn label maps, 0 to 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If onnxruntime is not installed.
        UserError: If it is no such file.
    """

    def __init__(self, path: Path, opacity: float = 0.5) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"the checkpoint '{path}' does not exist")
        try:
            self.session = open_onnx(path)
        except ImportError:
            raise
        except Exception as error:  # onnxruntime's own, which have no common base
            raise UserError(f"'{path}' is not readable as an ONNX file: {str(error).splitlines()[0]}") from error
        try:
            meta = self.session.get_modelmeta().custom_metadata_map
            self.meta: dict[str, Any] = {key: json.loads(meta[key]) for key in ('task', 'mean', 'std', 'channel_order')}
            self.classes: list[str] = json.loads(meta.get('classes', 'null')) or []
            self.palette: list[list[int]] = json.loads(meta.get('palette', 'null')) or []
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(
                f"'{path}' does not say what it takes ({error}): files of tools/export_onnx.py do"
            ) from error
        if self.meta['task'] not in ('segmentation', 'classification'):
            raise UserError(
                f"'{path}' is of the task {self.meta['task']} and gives no boxes: draw with --config and the "
                'checkpoint that it was exported from'
            )
        self.opacity = opacity
        (self.input,) = self.session.get_inputs()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """``(H, W, 3)`` of uint8, blue, green, red, to a drawing of the same size.

        Raises:
            UserError: If the file does not run on it, such as on one smaller than a patch of the stem.
        """
        outputs = dict(zip((out.name for out in self.session.get_outputs()), self._run(image), strict=True))
        if self.meta['task'] == 'classification':
            return self._with_class(image, outputs['logits'][0].astype(np.float64))
        labels = outputs['labels'][0].astype(np.uint16)  # a type that OpenCV resizes
        labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        colours = self._colours(outputs['logits'].shape[1])[labels][..., ::-1]
        return np.rint(image * (1 - self.opacity) + colours * self.opacity).astype(np.uint8)

    def _run(self, image: np.ndarray) -> list[np.ndarray]:
        shape = self.input.shape
        is_folded = self.input.type == 'tensor(uint8)'  # the preprocessing is in the file
        height, width = shape[1:3] if is_folded else shape[2:]
        if isinstance(height, int) and isinstance(width, int):
            image = cv2.resize(image, (width, height))
        pixels = image[..., ::-1]
        if not is_folded:
            pixels = pixels if self.meta['channel_order'] == 'rgb' else image
            pixels = ((pixels - np.array(self.meta['mean'])) / np.array(self.meta['std'])).transpose(2, 0, 1)
            pixels = pixels.astype(np.float16 if self.input.type == 'tensor(float16)' else np.float32)
        try:
            return self.session.run(None, {self.input.name: np.ascontiguousarray(pixels[None])})
        except Exception as error:  # onnxruntime's own
            reason = str(error).splitlines()[0]
            raise UserError(f'a picture of {image.shape[0]} x {image.shape[1]} does not run: {reason}') from error

    def _colours(self, count: int) -> np.ndarray:
        """``(classes, 3)`` of red, green, blue; where the file has none, the same random ones every time."""
        count = max(count, 2)  # one logit tells two classes apart
        colours = np.random.default_rng(0).integers(0, 256, (count, 3))
        known = np.array(self.palette[:count], int).reshape(-1, 3)
        colours[: len(known)] = known
        return colours

    def _with_class(self, image: np.ndarray, logits: np.ndarray) -> np.ndarray:
        shares = np.exp(logits - logits.max())
        best = int(shares.argmax())
        name = self.classes[best] if best < len(self.classes) else f'class {best}'
        text = f'{name}: {shares[best] / shares.sum():.2f}'
        scale = max(0.4, min(image.shape[:2]) / 500)
        drawn, where = image.copy(), (5, round(5 + 22 * scale))
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # legible on every ground
            cv2.putText(drawn, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
        return drawn
