"""What exporters ask for an operator that they do not know: its translation to ONNX, its decomposition to aten."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .fourier import fourier_conv2d, ring_matrix

__all__ = ['LARGEST_DENSE', 'decomposition_table', 'gelu_translation', 'onnx_translation_table']

LARGEST_DENSE = 13
"""Side of the kernel up to which a depthwise convolution is faster in onnxruntime than the transform."""


def _decomposition(
    x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None = None
) -> Tensor:
    if sum(grid) <= LARGEST_DENSE:
        rings = ring_matrix(grid, weight.dtype, weight.device)
        dense = rings @ weight @ rings.transpose(0, 1)
        out = torch.nn.functional.conv2d(x, dense, padding=sum(grid) // 2, groups=x.shape[1])
    else:
        out = fourier_conv2d(x, weight, grid)
    return out if bias is None else out + (bias if bias.dim() == 3 else bias[:, None, None])


def decomposition_table() -> dict[Any, Callable[..., Tensor]]:
    """For ``ExportedProgram.run_decompositions``: the peripheral convolution in aten's operators, maps of any size.

    Example:
        >>> program = torch.export.export(network, (image,)).run_decompositions(decomposition_table())
    """
    return {torch.ops.mmpelk.peripheral_conv2d.default: _decomposition}


def onnx_translation_table() -> dict[Any, Callable[..., Any]]:
    """For ``torch.onnx.export(..., dynamo=True, custom_translation_table=...)``: standard operators, maps of any size.

    Large kernels become the products with waves of :mod:`mmpelk.export.fourier`, small ones ``Conv``. Needs opset 18 or
    later and the package onnxscript.

    Raises:
        ImportError: If onnxscript is not installed.
    """
    try:
        import onnxscript
    except ImportError as error:
        raise ImportError(
            'exporting to ONNX takes the packages onnx and onnxscript: pip install "mmpelk[export]"'
        ) from error
    builder = _OnnxBuilder(onnxscript.opset18)

    def peripheral_conv2d(
        x: Any, weight: Any, bias: Any = None, grid: Sequence[int] = (), backend: str | None = None
    ) -> Any:
        return builder.convolution(x, weight, bias, grid)

    return {torch.ops.mmpelk.peripheral_conv2d.default: peripheral_conv2d}  # the exporter writes to it: no method


def gelu_translation(x: Any, approximate: str = 'none') -> Any:
    """``aten::gelu`` with its factors in the order that onnxruntime fuses; it knows not the exporter's.

    A translation for ``custom_translation_table``.
    """
    import onnxscript

    builder = _OnnxBuilder(onnxscript.opset18)
    op = builder.op
    half, one, root, cubed = (op.CastLike(builder._float(value), x) for value in (0.5, 1.0, math.sqrt(2), 0.044715))
    if approximate == 'none':
        inner = op.Erf(op.Div(x, root))
    else:
        scale = op.CastLike(builder._float(math.sqrt(2 / math.pi)), x)
        inner = op.Tanh(op.Mul(scale, op.Add(x, op.Mul(cubed, op.Mul(x, op.Mul(x, x))))))
    return op.Mul(op.Mul(x, op.Add(inner, one)), half)


class _OnnxBuilder:
    """:mod:`mmpelk.export.fourier` in ONNX's operators. ``op`` is onnxscript's operator set; values are symbolic."""

    def __init__(self, op: Any) -> None:
        self.op = op

    def convolution(self, x: Any, weight: Any, bias: Any, grid: Sequence[int]) -> Any:
        """Translation of ``mmpelk::peripheral_conv2d``."""
        op = self.op
        channels = int(weight.shape[0])
        if sum(grid) <= LARGEST_DENSE:
            out = self._dense(x, weight, grid)
        else:
            out = op.CastLike(self._fourier(op.Cast(x, to=1), op.Cast(weight, to=1), grid, channels), x)
        if bias is None:
            return out
        return op.Add(out, op.Reshape(bias, self._ints(channels, 1, 1)) if len(bias.shape) == 1 else bias)

    def _dense(self, x: Any, weight: Any, grid: Sequence[int]) -> Any:
        op, radius, channels = self.op, sum(grid) // 2, int(weight.shape[0])
        ring = self._ints(*(ring for ring, width in enumerate(grid) for _ in range(width)))
        padding = -channels % 16  # as mmpelk.export.plain.DenseForm
        kernel = self._pad(op.Gather(op.Gather(weight, ring, axis=2), ring, axis=3), 0, padding)
        out = op.Conv(self._pad(x, 1, padding), kernel, group=channels + padding, pads=[radius] * 4)
        return op.Slice(out, self._ints(0), self._ints(channels), self._ints(1))

    def _fourier(self, x: Any, weight: Any, grid: Sequence[int], channels: int) -> Any:
        op, radius = self.op, sum(grid) // 2
        maps, rings = [], []
        for axis in (2, 3):
            extent = op.Shape(x, start=axis, end=axis + 1)
            half = op.Div(op.Add(extent, self._ints(radius + 1)), self._ints(2))
            maps.append(self._waves(self._range(extent), half))
            rings.append(self._ring_waves(grid, half))
        kernel = self._spectrum(op.Mul(op.Transpose(weight, perm=[1, 2, 3, 0]), self._float(0.5)), rings, channels)
        real, imag, real_mirrored, imag_mirrored = self._spectrum(op.Transpose(x, perm=[0, 2, 3, 1]), maps, channels)
        p = op.Add(op.Mul(real, kernel[0]), op.Mul(imag, kernel[1]))
        q = op.Sub(op.Mul(real, kernel[1]), op.Mul(imag, kernel[0]))
        p_mirrored = op.Add(op.Mul(real_mirrored, kernel[2]), op.Mul(imag_mirrored, kernel[3]))
        q_mirrored = op.Sub(op.Mul(real_mirrored, kernel[3]), op.Mul(imag_mirrored, kernel[2]))
        (row_cos, row_sin), (cos, sin) = ([op.Transpose(wave, perm=[1, 0]) for wave in axis] for axis in maps)
        along_cos = op.Add(op.MatMul(cos, op.Add(p, p_mirrored)), op.MatMul(sin, op.Sub(q_mirrored, q)))
        along_sin = op.Sub(op.MatMul(sin, op.Sub(p_mirrored, p)), op.MatMul(cos, op.Add(q, q_mirrored)))
        along_cos, along_sin = (op.Reshape(half, self._ints(0, 0, -1)) for half in (along_cos, along_sin))
        out = op.Add(op.MatMul(row_cos, along_cos), op.MatMul(row_sin, along_sin))
        return op.Transpose(op.Reshape(out, self._ints(0, 0, -1, channels)), perm=[0, 3, 1, 2])

    def _spectrum(self, x: Any, waves: Sequence[Any], channels: int) -> tuple[Any, Any, Any, Any]:
        op, (rows, columns) = self.op, waves
        flat = op.Reshape(x, self._ints(0, 0, -1))
        halves = [op.Reshape(op.MatMul(wave, flat), self._ints(0, 0, -1, channels)) for wave in rows]
        cos_cos, cos_sin, sin_cos, sin_sin = (op.MatMul(wave, half) for half in halves for wave in columns)
        return (
            op.Sub(cos_cos, sin_sin),
            op.Add(cos_sin, sin_cos),
            op.Add(cos_cos, sin_sin),
            op.Sub(sin_cos, cos_sin),
        )

    def _waves(self, positions: Any, half: Any) -> tuple[Any, Any]:
        op = self.op
        period = op.Mul(half, self._ints(2))
        frequencies = op.Unsqueeze(self._range(op.Add(half, self._ints(1))), self._ints(1))
        remainder = op.Cast(op.Mod(op.Mul(frequencies, positions), period), to=1)
        angle = op.Div(op.Mul(remainder, self._float(2 * math.pi)), op.Cast(period, to=1))
        return op.Cos(angle), op.Sin(angle)

    def _ring_waves(self, grid: Sequence[int], half: Any) -> tuple[Any, Any]:
        op, radius = self.op, sum(grid) // 2
        frequencies = op.Unsqueeze(self._range(op.Add(half, self._ints(1))), self._ints(1))
        # 1 at the first and the last frequency, 2 between, over twice the half.
        ends = op.Cast(op.Equal(op.Mod(frequencies, half), self._ints(0)), to=1)
        weight = op.Div(op.Sub(self._float(1.0), op.Mul(ends, self._float(0.5))), op.Cast(half, to=1))
        rings = self._constant(np.repeat(np.eye(len(grid), dtype=np.float32), grid, axis=0))
        waves = self._waves(self._ints(*range(-radius, radius + 1)), half)
        cos, sin = (op.Mul(weight, op.MatMul(wave, rings)) for wave in waves)
        return cos, sin

    def _range(self, stop: Any) -> Any:
        zero, one = (self._constant(np.array(value, dtype=np.int64)) for value in (0, 1))
        return self.op.Range(zero, self.op.Squeeze(stop), one)

    def _pad(self, x: Any, axis: int, count: int) -> Any:
        pads = [0] * 8
        pads[4 + axis] = count
        return self.op.Pad(x, self._ints(*pads))

    def _ints(self, *values: int) -> Any:
        return self._constant(np.array(values, dtype=np.int64))

    def _float(self, value: float) -> Any:
        return self._constant(np.array(value, dtype=np.float32))

    def _constant(self, value: np.ndarray) -> Any:
        import onnx

        return self.op.Constant(value=onnx.numpy_helper.from_array(value))
