"""The peripheral convolution by products with cosine and sine matrices: standard operators that every runtime knows.

A map has at most a few hundred rows and columns. There a discrete Fourier transform as a product of matrices is faster
than runtimes' own transforms, and far cheaper than a large kernel. Only frequencies that are not conjugate to others
are computed: ``f >= 0`` along the rows and both signs of ``g >= 0`` along the columns, from one quarter plane of real
sums. Channels are innermost, so that each step is one large product.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Waves(NamedTuple):
    """Cosines and sines along one axis, each ``(frequencies, positions)``."""

    cos: Tensor
    sin: Tensor


class Spectrum(NamedTuple):
    """Sums over a map times ``exp(-i(fy + gx))`` and ``exp(-i(fy - gx))``: ``real - i * imag``.

    Each is ``(..., frequencies along the rows, frequencies along the columns, C)``.
    """

    real: Tensor
    imag: Tensor
    real_mirrored: Tensor
    imag_mirrored: Tensor


def even_length(extent: int, reach: int) -> Any:
    """Period that holds ``extent`` positions and ``reach`` zeros behind them: what a kernel reads beyond a border."""
    return (extent + reach + 1) // 2 * 2


def _waves(positions: Tensor, length: int, dtype: torch.dtype) -> Waves:
    frequencies = torch.arange(length // 2 + 1, device=positions.device)
    period = torch.full((), length, device=positions.device)  # exporters want a tensor where it is a symbol
    # The remainder of whole numbers: large arguments would lose digits.
    angle = (frequencies[:, None] * positions % period).to(dtype) * (2 * math.pi) / period
    return Waves(angle.cos(), angle.sin())


def map_waves(extent: int, length: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Waves:
    """Waves of period ``length`` at the positions of a map."""
    return _waves(torch.arange(extent, device=device), length, dtype)


def ring_matrix(grid: Sequence[int], dtype: torch.dtype, device: Any = None) -> Tensor:
    """``(K, k')`` of 0 and 1: which ring a tap belongs to. Built of a range: exporters refuse constants."""
    tap = torch.arange(sum(grid), device=device)
    edges = pairwise(accumulate(grid, initial=0))
    return torch.stack([(tap >= low) & (tap < high) for low, high in edges], 1).to(dtype)


def _ring_waves(grid: Sequence[int], reach: int, length: int, dtype: torch.dtype, device: Any) -> Waves:
    """Waves summed over the rings of a kernel, weighted for the inverse transform: ``(frequencies, k')``.

    Taps further than ``reach`` from the centre are left out.
    """
    taps = torch.arange(-reach, reach + 1, device=device)
    margin = sum(grid) // 2 - reach
    rings = ring_matrix(grid, dtype, device)[margin : sum(grid) - margin]
    frequencies = torch.arange(length // 2 + 1, device=device)[:, None]
    # All but the first and the last frequency stand for their conjugates, too.
    ends = (frequencies == 0) | (frequencies == length // 2)
    weight = torch.where(ends, 1.0, 2.0).to(dtype) / length
    cos, sin = _waves(taps, length, dtype)
    return Waves(weight * (cos @ rings), weight * (sin @ rings))


def _spectrum(x: Tensor, rows: Waves, columns: Waves) -> Spectrum:
    """Spectrum of a map ``(N, H, W, C)``."""
    batch, height, width, channels = x.shape
    flat = x.reshape(batch, height, width * channels)
    cos, sin = ((wave @ flat).reshape(batch, -1, width, channels) for wave in rows)
    cos_cos, cos_sin, sin_cos, sin_sin = (wave @ half for half in (cos, sin) for wave in columns)
    return Spectrum(cos_cos - sin_sin, cos_sin + sin_cos, cos_cos + sin_sin, sin_cos - cos_sin)


def kernel_spectrum(
    weight: Tensor, grid: Sequence[int], reach: tuple[int, int], length: tuple[Any, Any], dtype: torch.dtype
) -> Spectrum:
    """Spectrum of a peripheral kernel, scaled so that :func:`convolve` needs no division.

    Args:
        weight: ``(C, 1, k', k')``.
        grid: ``k'`` ring widths.
        reach: Taps above and below the centre that meet the map, and to the left and right.
        length: Periods along rows and columns.
        dtype: To compute in.
    """
    rows, columns = (_ring_waves(grid, *axis, dtype, weight.device) for axis in zip(reach, length, strict=True))
    # Halved, because both signs of g are summed.
    return _spectrum(weight.to(dtype).permute(1, 2, 3, 0) / 2, rows, columns)


def convolve(x: Tensor, kernel: Spectrum, rows: Waves, columns: Waves) -> Tensor:
    """Correlate a map with the kernel of a spectrum.

    Args:
        x: ``(N, H, W, C)``.
        kernel: Spectrum from :func:`kernel_spectrum`, with the periods of the waves.
        rows: Waves from :func:`map_waves`, for ``H``.
        columns: Waves for ``W``.

    Returns:
        ``(N, H, W, C)``.
    """
    batch, height, width, channels = x.shape
    real, imag, real_mirrored, imag_mirrored = _spectrum(x, rows, columns)
    # Times the conjugate, as a correlation.
    p, q = real * kernel.real + imag * kernel.imag, real * kernel.imag - imag * kernel.real
    p_mirrored = real_mirrored * kernel.real_mirrored + imag_mirrored * kernel.imag_mirrored
    q_mirrored = real_mirrored * kernel.imag_mirrored - imag_mirrored * kernel.real_mirrored
    cos, sin = (wave.transpose(0, 1) for wave in columns)
    along_cos = cos @ (p + p_mirrored) + sin @ (q_mirrored - q)
    along_sin = sin @ (p_mirrored - p) - cos @ (q + q_mirrored)
    flat = [half.reshape(batch, -1, width * channels) for half in (along_cos, along_sin)]
    out = rows.cos.transpose(0, 1) @ flat[0] + rows.sin.transpose(0, 1) @ flat[1]
    return out.reshape(batch, height, width, channels)


def fourier_conv2d(x: Tensor, weight: Tensor, grid: Sequence[int]) -> Tensor:
    """:func:`mmpelk.ops.peripheral_conv2d` for maps of any size, without a bias; in float32 inside.

    Args:
        x: ``(N, C, H, W)``; ``H`` and ``W`` may be symbols of a trace.
        weight: ``(C, 1, k', k')``.
        grid: ``k'`` ring widths.

    Returns:
        ``(N, C, H, W)``.
    """
    radius, size = sum(grid) // 2, x.shape[-2:]
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = even_length(size[0], radius), even_length(size[1], radius)
    rows, columns = (map_waves(*axis, dtype, x.device) for axis in zip(size, length, strict=True))
    kernel = kernel_spectrum(weight, grid, (radius, radius), length, dtype)
    return convolve(x.to(dtype).permute(0, 2, 3, 1), kernel, rows, columns).permute(0, 3, 1, 2).to(x.dtype)
