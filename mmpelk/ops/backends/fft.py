"""The FFT backend: the cost does not depend on the kernel size, and the kernel is never expanded.

A peripheral kernel's spectrum is ``A w B^T``, where the columns of ``A`` and ``B`` are the spectra of the rings'
indicators along either axis. So the kernel costs two small matrix products instead of a transform, and the gradient of
``w`` is the adjoint product with the cross-spectrum of input and output gradient.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ..layout import empty_as
from ..sharing_grid import reachable_rings
from ..workspace import channel_chunks, image_chunks

# Below so many positions dense sums so few terms that a float32 transform would be the less exact of the two.
_FEW = 256
# dtype.to_complex() loses a reference at every call in torch 2.1, until the interpreter crashes.
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], out: Tensor | None = None) -> Tensor:
    """Correlate through the frequency domain. Shapes as in :func:`mmpelk.ops.peripheral_conv2d`."""
    plan = _Plan(x, grid, torch.float64 if x.shape[-2] * x.shape[-1] < _FEW else torch.float32)
    out = empty_as(x) if out is None else out
    for channels in channel_chunks(x, plan.plane_bytes):
        kernel = plan.kernel_spectrum(weight[channels])
        added = None if bias is None else bias[channels] if bias.dim() == 3 else bias[channels, None, None]
        for images in image_chunks(x[:, channels], plan.plane_bytes):
            planes = plan.inverse(plan.spectra(x[images, channels])[0].mul_(kernel))
            out[images, channels] = planes if added is None else planes.add_(added)
    return out


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``."""
    # A sum over all positions, which dense accumulates to the last bit of float32 where the maps have a mean; a float32
    # transform would not.
    plan = _Plan(x, grid, torch.float64)
    rings = len(grid)
    grad = torch.zeros(x.shape[1], 1, rings, rings, dtype=x.dtype, device=x.device)
    for channels in channel_chunks(x, plan.plane_bytes):
        cross: Tensor | None = None
        for images in image_chunks(x[:, channels], plan.plane_bytes):
            planes, others = plan.spectra(x[images, channels], grad_out[images, channels])
            # Not the lazy conj(): compiled graphs call the operator below the fallback that resolves its bit.
            product = others.conj_physical_().mul_(planes)
            product = product[0] if len(product) == 1 else product.sum(0)
            cross = product if cross is None else cross.add_(product)
        if cross is not None:
            grad[channels, 0, plan.rows.rings, plan.columns.rings] = plan.ring_sums(cross).to(x.dtype)
    return grad


class _Axis:
    """Transform length and ring spectra along one axis."""

    def __init__(self, grid: Sequence[int], extent: int) -> None:
        self.rings, self.edges = reachable_rings(grid, extent)
        radius = -self.edges[0]
        self.extent = extent
        self.length = fast_length(extent + radius)  # long enough that nothing wraps around into the map


class _Plan:
    """Everything about a call that does not depend on the values."""

    def __init__(self, x: Tensor, grid: Sequence[int], dtype: torch.dtype) -> None:
        self.dtype = torch.promote_types(x.dtype, dtype)
        self.rows, self.columns = _Axis(grid, x.shape[-2]), _Axis(grid, x.shape[-1])
        half = self.columns.length // 2 + 1
        args = (_COMPLEX[self.dtype], x.device)
        self.row_basis = _ring_spectra(self.rows.edges, self.rows.length, *args)
        self.column_basis = _ring_spectra(self.columns.edges, self.columns.length, *args)[:half]
        # Of two maps, or a map and its way back, the padded planes and the spectra; the sum over the images.
        self.plane_bytes = 5 * self.rows.length * self.columns.length * self.dtype.itemsize
        self._padded = torch.empty(0)

    def spectra(self, *maps: Tensor) -> Tensor:
        """Zero-padded transforms of maps ``(n, c, H, W)``, ``(maps, n, c, F, G)``.

        A copy that converts, transposes and pads at once, and one call for all transforms: torch's own padding and
        every axis by itself are so many passes over memory that they take longer than the transforms.
        """
        size = (len(maps), *maps[0].shape[:2], self.rows.length, self.columns.length)
        if self._padded.shape != size:
            self._padded = torch.zeros(size, dtype=self.dtype, device=maps[0].device)
        for target, planes in zip(self._padded, maps, strict=True):
            target[..., : self.rows.extent, : self.columns.extent] = planes
        return torch.fft.rfft2(self._padded)

    def inverse(self, spectrum: Tensor) -> Tensor:
        """The map's part of the inverse transform, ``(..., H, W)``."""
        rows = torch.fft.ifft(spectrum, dim=-2)[..., : self.rows.extent, :]
        return torch.fft.irfft(rows, n=self.columns.length)[..., : self.columns.extent]

    def kernel_spectrum(self, weight: Tensor) -> Tensor:
        """Spectrum of the expanded kernel, from ``(c, 1, k', k')``."""
        reachable = weight[:, 0, self.rows.rings, self.columns.rings].to(self.row_basis.dtype)
        return self.row_basis @ reachable @ self.column_basis.T

    def ring_sums(self, cross: Tensor) -> Tensor:
        """Sums of a cross-correlation over the regions of the grid, from its half spectrum ``(c, F, G)``."""
        length = self.columns.length
        # A real signal's half spectrum stands for two frequencies each, but for the first and an even length's last.
        twice = torch.full((cross.shape[-1], 1), 2.0, dtype=self.dtype, device=cross.device)
        twice[0] = 1
        if length % 2 == 0:
            twice[-1] = 1
        sums = self.row_basis.T @ (cross @ (self.column_basis * twice))
        return sums.real / (self.rows.length * length)


def fast_length(at_least: int) -> int:
    """Next multiple of four whose prime factors the FFT libraries have fast kernels for."""
    length = -(-at_least // 4) * 4  # MKL takes twice as long for a power of three
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 4


@lru_cache(maxsize=256)
def _ring_spectra(edges: tuple[int, ...], length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Conjugate spectra of the rings' indicators, ``(length, rings)``: correlation, not convolution."""
    frequency = torch.arange(length, dtype=torch.float64)[:, None]
    spectra = [
        torch.exp(2j * torch.pi / length * (frequency * torch.arange(low, high) % length)).sum(1)
        for low, high in pairwise(edges)
    ]
    return torch.stack(spectra, 1).to(device=device, dtype=dtype)
