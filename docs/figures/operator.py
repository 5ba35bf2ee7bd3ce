"""Draws ``operator.png``: a peripheral kernel as a product of three small matrices, and its spectrum likewise.

python docs/figures/operator.py
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from mmpelk.ops.sharing_grid import expand_kernel, sharing_grid

matplotlib.use('Agg')

KERNEL_SIZE, LENGTH = 31, 48


def _show(axes: Axes, matrix: torch.Tensor, title: str, rows: str, columns: str) -> None:
    axes.imshow(matrix, cmap='gray', interpolation='nearest')
    axes.set(title=title, xlabel=columns, ylabel=rows)
    axes.tick_params(labelsize=7)


def main() -> None:
    grid = sharing_grid(KERNEL_SIZE)
    rings = len(grid)
    torch.manual_seed(3)
    weight = torch.randn(rings, rings)
    expansion = torch.eye(rings).repeat_interleave(torch.tensor(grid), 0)
    dense = expand_kernel(weight[None, None], grid)[0, 0]
    assert torch.equal(dense, expansion @ weight @ expansion.T)
    spectra = torch.fft.fft(expansion, n=LENGTH, dim=0)
    spectrum = torch.fft.fft2(dense, s=(LENGTH, LENGTH))
    torch.testing.assert_close(spectrum, spectra @ weight.to(spectra.dtype) @ spectra.T, rtol=1e-3, atol=1e-2)

    figure, axes = plt.subplots(2, 4, figsize=(11, 6), layout='constrained')
    position, ring = f'position, 0 to {KERNEL_SIZE - 1}', f'ring, 0 to {rings - 1}'
    frequency = f'frequency, 0 to {LENGTH - 1}'
    _show(axes[0, 0], dense, 'dense kernel W', position, position)
    _show(axes[0, 1], expansion, '= E', position, ring)
    _show(axes[0, 2], weight, 'w (the parameters)', ring, ring)
    _show(axes[0, 3], expansion.T, r'E$^T$', ring, position)
    _show(axes[1, 0], spectrum.abs(), 'its spectrum (magnitude)', frequency, frequency)
    _show(axes[1, 1], spectra.abs(), '= A, spectra of the rings', frequency, ring)
    _show(axes[1, 2], weight, 'w', ring, ring)
    _show(axes[1, 3], spectra.T.abs(), r'A$^T$', ring, frequency)
    figure.suptitle(f'A {KERNEL_SIZE} x {KERNEL_SIZE} peripheral kernel has {rings} x {rings} parameters')
    figure.savefig(Path(__file__).with_suffix('.png'), dpi=130)


if __name__ == '__main__':
    main()
