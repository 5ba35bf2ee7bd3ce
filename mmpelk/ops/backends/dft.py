"""The DFT backend: Fourier transforms as products of matrices, channels last.

On small and middling maps a product with a matrix of sines and cosines runs closer to the machine's peak than a fast
transform, and along an axis that is not the last it needs no transposition. Three things make it cheap:

- The spectrum is real, a cosine and a sine part along either axis. About the middle of the map a cosine sees the even
  part of a row only and a sine the odd part: with both taken apart first, each product has half the size. (On the
  smallest maps that is not worth its operations.)
- The frequencies are the odd multiples of half a step, so that there are as many sines as cosines. What would wrap
  around comes back with the other sign, and nothing wraps around into the map.
- A peripheral kernel's spectrum is a product of small matrices with the spectra of the rings, as in :mod:`.fft`.

Along one axis the spectrum of a correlation is ``Yc = Kc Xc + Ks Xs`` and ``Ys = Kc Xs - Ks Xc``.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ..layout import empty_as
from ..sharing_grid import reachable_rings
from ..workspace import piece_sizes

# Where dense sums fewer terms than these, transforms in float32 would be the less exact of the two.
_FEW = 128
# Largest map whose products are cheaper than taking even and odd parts apart.
_WHOLE_UP_TO = 32 * 32


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: Sequence[int],
    out: Tensor | None = None,
    kernel: Tensor | None = None,
) -> Tensor:
    """Correlate through the frequency domain. Shapes as in :func:`mmpelk.ops.peripheral_conv2d`.

    Args:
        x: The maps; any strides, fastest channels last.
        weight: The parameters.
        bias: To be added.
        grid: The sharing grid.
        out: Where the result goes, of the shape of ``x``; ``None`` allocates it.
        kernel: What :func:`prepare` made of ``weight``.
    """
    out = empty_as(x) if out is None else out
    plan = _plan(x, grid, torch.float32)
    for images, channels in plan.pieces(x):
        spectrum = plan.kernel_spectrum(weight[channels]) if kernel is None else kernel[..., channels]
        target = out[images, channels].permute(0, 2, 3, 1)
        product = _product(plan.spectrum(x[images, channels]), spectrum)
        added = None if bias is None else bias[channels]
        if added is not None and added.dim() == 3:
            added = added.permute(1, 2, 0)
        plan.inverse(product, target, added)
    return out


def prepare(weight: Tensor, grid: Sequence[int], x: Tensor) -> Tensor:
    """The kernel's spectrum for maps of the size of ``x``, ``(2, F, 2, G, C)``: of use while ``weight`` stays."""
    return _plan(x, grid, torch.float32).kernel_spectrum(weight)


def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Gradient of the ``(C, 1, k', k')`` weight from ``x`` and the output's gradient, both ``(N, C, H, W)``."""
    # A sum over all positions, which dense accumulates to the last bit of float32 where the maps have a mean.
    plan = _plan(x, grid, torch.float64)
    grad = torch.zeros(x.shape[1], 1, len(grid), len(grid), dtype=plan.dtype, device=x.device)
    for images, channels in plan.pieces(x):
        cross = _cross(plan.spectrum(x[images, channels]), plan.spectrum(grad_out[images, channels]))
        grad[channels, 0, plan.rows.rings, plan.columns.rings] += plan.ring_sums(cross)
    return grad.to(x.dtype)


def _product(x: Tensor, kernel: Tensor) -> Tensor:
    """Spectrum of the correlation, from ``(2w, 2h, n, F, G, c)`` and the kernel's ``(2h, F, 2w, G, c)``."""
    (cc, sc), (cs, ss) = (part.unbind(1) for part in kernel.unbind(0))  # along the columns, along the rows
    out = x * cc
    # Every half and quarter of both, taken apart once: a view costs as much as a pass over a small map.
    x_of_columns, x_of_rows = x.unbind(0), x.unbind(1)
    out_of_columns, out_of_rows = out.unbind(0), out.unbind(1)
    out_of_columns[0].addcmul_(x_of_columns[1], sc)
    out_of_columns[1].addcmul_(x_of_columns[0], sc, value=-1)
    out_of_rows[0].addcmul_(x_of_rows[1], cs)
    out_of_rows[1].addcmul_(x_of_rows[0], cs, value=-1)
    (x_cc, x_cs), (x_sc, x_ss) = (part.unbind(0) for part in x_of_columns)
    (out_cc, out_cs), (out_sc, out_ss) = (part.unbind(0) for part in out_of_columns)
    out_cc.addcmul_(x_ss, ss)
    out_ss.addcmul_(x_cc, ss)
    out_cs.addcmul_(x_sc, ss, value=-1)
    out_sc.addcmul_(x_cs, ss, value=-1)
    return out


def _cross(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the kernel's spectrum, ``(2h, F, 2w, G, c)``: the adjoint of :func:`_product`, over the images."""
    cross = x.new_empty(2, x.shape[3], 2, *x.shape[4:])
    parts = [part.unbind(1) for part in cross.unbind(0)]
    for n, (image, other) in enumerate(zip(x.unbind(2), grad.unbind(2), strict=True)):
        planes, grads = ([half.unbind(0) for half in spectrum.unbind(0)] for spectrum in (image, other))
        for w, h in ((0, 0), (0, 1), (1, 0), (1, 1)):  # of the kernel
            target = parts[h][w]
            for v, g in ((0, 0), (0, 1), (1, 0), (1, 1)):  # of the gradient; the input's is their difference
                if n == v == g == 0:
                    torch.mul(planes[w][h], grads[0][0], out=target)
                else:
                    target.addcmul_(planes[w ^ v][h ^ g], grads[v][g], value=-1 if (w & v) ^ (h & g) else 1)
    return cross


class _Axis:
    """The matrices along one axis; ``half`` is half the map's extent, with the middle, and ``frequencies`` half as many
    as the transform is long: long enough that nothing wraps around into the map."""

    def __init__(self, grid: Sequence[int], extent: int) -> None:
        self.rings, self.edges = reachable_rings(grid, extent)
        radius = -self.edges[0]
        self.extent, self.half, self.frequencies = extent, (extent + 1) // 2, (extent + radius + 1) // 2

    def waves(self, doubled: Tensor) -> Tensor:
        """Cosines and sines ``(2, frequencies, n)`` at ``n`` positions, given times two."""
        period = 8 * self.frequencies
        angle = torch.pi / period * 2 * ((2 * torch.arange(self.frequencies)[:, None] + 1) * doubled % period).double()
        return torch.stack([angle.cos(), angle.sin()])

    def matrices(self, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Transform ``(2, frequencies, half)``, inverse ``(2, half, frequencies)``, spectra of the rings
        ``(2 * frequencies, rings)``; ``whole``: the first two of all positions, cosines and sines in one."""
        rings = torch.stack(
            [self.waves(2 * torch.arange(low, high)).sum(-1) for low, high in pairwise(self.edges)], -1
        ).flatten(0, 1)
        inverse = self.waves(2 * torch.arange(self.extent if whole else self.half) - (self.extent - 1))
        if whole:
            inverse = inverse.flatten(0, 1)
            return inverse, inverse.mT / self.frequencies, rings
        transform = inverse.clone()
        if self.extent % 2:
            transform[..., -1] /= 2  # the middle comes from both sides
        return transform, inverse.mT / self.frequencies, rings


class _Plan:
    """Everything about a call that does not depend on the values."""

    def __init__(self, grid: Sequence[int], height: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.columns, self.dtype = _Axis(grid, height), _Axis(grid, width), dtype
        self.whole = height * width <= _WHOLE_UP_TO
        self.row_matrices, self.column_matrices = (
            [matrix.to(device=device, dtype=dtype).contiguous() for matrix in axis.matrices(self.whole)]
            for axis in (self.rows, self.columns)
        )
        self.scale = 1 / (self.rows.frequencies * self.columns.frequencies)
        size = torch.finfo(dtype).bits // 8
        # The spectrum and its product with the kernel's, or the other spectrum; what a transform begins with.
        self.touched_bytes = 10 * self.rows.frequencies * self.columns.frequencies * size
        self.plane_bytes = self._most_numbers() * size

    def _most_numbers(self) -> int:
        """Numbers that a plane of one image holds at most at a time, the kernel's spectrum (or its gradient) included.

        The stages are those of :meth:`spectrum` and :meth:`inverse`, with the copies that folding makes.
        """
        spectrum = 4 * self.rows.frequencies * self.columns.frequencies
        if self.whole:
            area, half = self.rows.extent * self.columns.extent, 2 * self.rows.extent * self.columns.frequencies
            return 2 * spectrum + max(area + half + spectrum, 2 * area + half)
        area, half = 4 * self.rows.half * self.columns.half, 4 * self.rows.half * self.columns.frequencies
        transform = max(area * 5 // 2, area + half, half + spectrum)
        return 2 * spectrum + max(transform, half + area, 3 * area)

    def pieces(self, x: Tensor) -> Iterator[tuple[slice, slice]]:
        """Images and channels to work on at a time: all channels, if they fit, so that the products are large."""
        images, channels = piece_sizes(x, self.plane_bytes, self.touched_bytes)
        for channel in range(0, x.shape[1], channels):
            for image in range(0, x.shape[0], images):
                yield slice(image, image + images), slice(channel, channel + channels)

    def spectrum(self, planes: Tensor) -> Tensor:
        """``(n, c, H, W)`` to ``(2, 2, n, F, G, c)``: cosine or sine along the columns, then along the rows."""
        x = planes.permute(0, 2, 3, 1)
        x = x.to(self.dtype) if x.stride(-1) == 1 or x.shape[-1] == 1 else x.to(self.dtype).contiguous()
        images, height, _, channels = x.shape
        rows, columns = self.rows, self.columns
        if self.whole:
            size = images, 2, rows.frequencies, 2, columns.frequencies, channels
            half = torch.matmul(self.column_matrices[0], x)
            return torch.matmul(self.row_matrices[0], half.flatten(2)).view(size).permute(3, 1, 0, 2, 4, 5)
        parts = x.new_empty(2, images, height, columns.half, channels)
        _fold(x, 2, parts[0], parts[1])
        del x  # perhaps a copy; each stage lets go of the one before
        quarters = parts.new_empty(2, 2, images, rows.half, columns.half, channels)
        _fold(parts, 2, quarters[:, 0], quarters[:, 1])
        half = parts.new_empty(2, 2, images, rows.half, columns.frequencies * channels)
        del parts
        for w in (0, 1):
            _products(
                self.column_matrices[0][w],
                quarters[w].view(-1, columns.half, channels),
                half[w].view(-1, columns.frequencies, channels),
            )
        del quarters
        out = half.new_empty(2, 2, images, rows.frequencies, half.shape[-1])
        for w, h in ((0, 0), (0, 1), (1, 0), (1, 1)):
            _products(self.row_matrices[0][h], half[w, h], out[w, h])
        return out.view(*out.shape[:4], columns.frequencies, channels)

    def inverse(self, spectrum: Tensor, out: Tensor, bias: Tensor | None) -> None:
        """:meth:`spectrum` backwards, plus ``bias``, into ``(n, H, W, c)``."""
        images, channels = out.shape[0], out.shape[-1]
        rows, columns = self.rows, self.columns
        if self.whole:
            spectrum = spectrum.permute(2, 1, 3, 0, 4, 5)
            half = torch.matmul(self.row_matrices[1], spectrum.reshape(images, 2 * rows.frequencies, -1))
            planes = torch.matmul(self.column_matrices[1], half.view(images, rows.extent, -1, channels))
            if bias is None:
                out.copy_(planes)
            else:
                torch.add(planes, bias, out=out) if out.dtype == planes.dtype == bias.dtype else out.copy_(
                    planes + bias
                )
            return
        spectrum = spectrum.flatten(4)
        half = spectrum.new_empty(2, 2, images, rows.half, spectrum.shape[-1])
        for w, h in ((0, 0), (0, 1), (1, 0), (1, 1)):
            _products(self.row_matrices[1][h], spectrum[w, h], half[w, h])
        quarters = spectrum.new_empty(2, 2, images, rows.half, columns.half, channels)
        for w in (0, 1):
            _products(
                self.column_matrices[1][w],
                half[w].view(-1, columns.frequencies, channels),
                quarters[w].view(-1, columns.half, channels),
            )
        del half
        parts = spectrum.new_empty(2, images, rows.extent, columns.half, channels)
        _unfold(quarters[:, 0], quarters[:, 1], 2, parts)
        del quarters
        if bias is not None and bias.dim() == 3:  # even and odd part of a map, too: no pass over the whole output
            _fold(bias.to(self.dtype), 1, even := torch.empty_like(parts[0, 0]), odd := torch.empty_like(even))
            parts.add_(torch.stack([even, odd])[:, None], alpha=0.5)
        elif bias is not None:
            parts[0].add_(bias)
        _unfold(parts[0], parts[1], 2, out)

    def kernel_spectrum(self, weight: Tensor) -> Tensor:
        """Of the expanded kernel, ``(2, F, 2, G, c)``, from ``(c, 1, k', k')``."""
        reachable = weight[:, 0, self.rows.rings, self.columns.rings].to(self.dtype).permute(1, 2, 0)
        rings, others, channels = reachable.shape
        half = self.row_matrices[2] @ reachable.reshape(rings, others * channels)
        spectrum = half.new_empty(half.shape[0], len(self.column_matrices[2]), channels)
        _products(self.column_matrices[2], half.view(-1, others, channels), spectrum)
        return spectrum.view(2, self.rows.frequencies, 2, self.columns.frequencies, channels)

    def ring_sums(self, cross: Tensor) -> Tensor:
        """Adjoint of :meth:`kernel_spectrum` and of the inverse's scale: ``(2h, F, 2w, G, c)`` to ``(c, k', k')``."""
        rows, columns = (axis[2].mT for axis in (self.row_matrices, self.column_matrices))
        half = (rows @ cross.view(rows.shape[1], -1)).view(rows.shape[0], columns.shape[1], -1)
        return torch.matmul(columns, half).permute(2, 0, 1) * self.scale


def _fold(x: Tensor, dim: int, even: Tensor, odd: Tensor) -> None:
    """Sums and differences of the positions at the same distance from the middle; the middle counts twice."""
    half = even.shape[dim]
    mirrored = x.narrow(dim, x.shape[dim] - half, half).flip(dim)
    torch.add(x.narrow(dim, 0, half), mirrored, out=even)
    torch.sub(x.narrow(dim, 0, half), mirrored, out=odd)


def _unfold(even: Tensor, odd: Tensor, dim: int, out: Tensor) -> None:
    """The map from its even and its odd part about the middle."""
    half, extent = even.shape[dim], out.shape[dim]
    out.narrow(dim, extent - half, half).copy_((even - odd).flip(dim))
    out.narrow(dim, 0, half).copy_(even + odd)


def _products(matrix: Tensor, x: Tensor, out: Tensor) -> None:
    """``out[i] = matrix @ x[i]``."""
    torch.bmm(matrix.expand(len(x), -1, -1), x, out=out)


def _plan(x: Tensor, grid: Sequence[int], dtype: torch.dtype) -> _Plan:
    height, width = x.shape[-2:]
    terms = min(height, sum(grid)) * min(width, sum(grid))
    dtype = torch.promote_types(x.dtype, torch.float64 if terms < _FEW else dtype)
    return _cached_plan(tuple(grid), height, width, dtype, x.device)


@lru_cache(maxsize=128)
def _cached_plan(grid: tuple[int, ...], height: int, width: int, dtype: torch.dtype, device: torch.device) -> _Plan:
    with torch.inference_mode(False):  # it outlives the call
        return _Plan(grid, height, width, dtype, device)
