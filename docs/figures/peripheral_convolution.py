"""Draws ``peripheral_convolution.png``: a dense and a peripheral kernel of the same size, their parameters, their cost.

python docs/figures/peripheral_convolution.py
"""

import json
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from mmpelk.ops.sharing_grid import expand_kernel, project_kernel, sharing_grid

matplotlib.use('Agg')

KERNEL_SIZE = 51
RESULTS = Path(__file__).parents[2] / 'benchmarks/results/peripheral_conv_cpu_float32.json'
CASE = [1, 46, 128, 512, KERNEL_SIZE]  # images, channels, height, width, kernel size
BARS = {'mmpelk channels last': 'peripheral,\nmmpelk', 'conv2d channels last': 'dense,\ntorch'}


def _example_kernel() -> Tensor:
    """``(K, K)``: an oriented wave under a wide envelope, as large kernels often become."""
    axis = torch.arange(KERNEL_SIZE) - KERNEL_SIZE // 2
    y, x = torch.meshgrid(axis.float(), axis.float(), indexing='ij')
    radius = (x**2 + y**2).sqrt()
    wave = torch.cos((0.9 * x + 0.55 * y) * 0.9 / (1 + radius / 9))
    return wave * torch.exp(-(radius**2) / (2 * 16**2))


def _show(axes: Axes, kernel: Tensor, borders: list[int], title: str) -> None:
    limit = float(kernel.abs().max())
    axes.imshow(kernel, cmap='RdBu_r', vmin=-limit, vmax=limit, interpolation='nearest')
    for border in borders:
        axes.axvline(border - 0.5, color='black', linewidth=0.5)
        axes.axhline(border - 0.5, color='black', linewidth=0.5)
    axes.set_title(title, fontsize=12)
    axes.set(xticks=[], yticks=[])


def _times(axes: Axes) -> None:
    cases = json.loads(RESULTS.read_text())['cases']
    (methods,) = (case['methods'] for case in cases if case['case'][:5] == CASE)
    times = [methods[name]['forward_ms'] for name in BARS]
    bars = axes.barh(list(BARS.values()), times, color=['tab:blue', '0.6'], height=0.55)
    axes.bar_label(bars, [f' {time:.0f} ms' for time in times], fontsize=12)
    axes.invert_yaxis()
    axes.set_title(f'one layer on {CASE[2]} x {CASE[3]} maps, 2 cores', fontsize=12)
    axes.set(xlim=(0, 1.3 * max(times)), xticks=[])
    axes.tick_params(axis='y', labelsize=11, length=0)
    for side in ('top', 'right', 'bottom'):
        axes.spines[side].set_visible(False)


def main() -> None:
    grid = sharing_grid(KERNEL_SIZE)
    dense = _example_kernel()
    parameters = project_kernel(dense[None, None], grid)
    peripheral = expand_kernel(parameters, grid)[0, 0]
    borders = torch.tensor([0, *grid]).cumsum(0).tolist()
    positions = list(range(KERNEL_SIZE + 1))

    figure = plt.figure(figsize=(11, 4.1), layout='constrained')
    left, middle, right = figure.subplots(1, 3, gridspec_kw=dict(width_ratios=(1, 1, 1)))
    _show(left, dense, positions, f'dense {KERNEL_SIZE} x {KERNEL_SIZE}: {dense.numel()} parameters')
    _show(middle, peripheral, borders, f'peripheral {KERNEL_SIZE} x {KERNEL_SIZE}: {parameters.numel()} parameters')
    left.set_xlabel('one parameter for each position', fontsize=11)
    middle.set_xlabel('one parameter for each rectangle:\nfine in the centre, coarse at the rim', fontsize=11)
    _times(right)
    figure.savefig(Path(__file__).with_suffix('.png'), dpi=110)


if __name__ == '__main__':
    main()
