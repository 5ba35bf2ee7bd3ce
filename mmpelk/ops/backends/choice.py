"""Which backend computes a call that names none."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..sharing_grid import reach
from . import dense, fft
from .table import BACKENDS, refusal

__all__ = ['PROCESSORS', 'REFERENCE_PROCESSOR', 'THIS_PROCESSOR', 'fastest_backend']

_LOGGER = logging.getLogger('mmpelk.ops')

# Largest kernel for which dense is the fastest where torch has no fast depthwise kernels of its own: in float64, for
# the gradient of the weight, on CUDA.
_DENSE_UP_TO = 5


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of the parts of a call in float32 on a CPU, fitted to one run of the stages of PeLK-T, B and 101.

    Attributes:
        dense_tap: A multiply-add of the dense kernel, channels last.
        dense_row: A row of the dense kernel at a position.
        dft_product: A multiply-add of the transforms' matrix products.
        dft_number: A number of the real spectrum through the kernel's product and the passes over it.
        fft_number: A complex number of the half spectrum through both transforms and the product.
        calls: Bookkeeping of a call: dense, dft, fft.
        weight_grad: How many times as long the gradient of the weight takes, in float64 and of two maps, but without a
            way back: dft, fft.
    """

    dense_tap: float
    dft_product: float
    dft_number: float
    fft_number: float
    calls: tuple[float, float, float] = (1e5, 2e5, 3e5)
    weight_grad: tuple[float, float] = (2.0, 1.5)
    dense_row: float = 0.0


#: By class of processor, in the words of ``torch.backends.cpu.get_cpu_capability``.
PROCESSORS: dict[str, Costs] = {
    # Two cores of an AMD EPYC (Zen 3), torch 2.11.
    'AVX2': Costs(dense_tap=0.060, dft_product=0.025, dft_number=4.0, fft_number=14.0),
    # One core of an AMD EPYC with AVX-512, torch 2.11: python -m benchmarks.cpu_costs.
    'AVX512': Costs(
        dense_tap=0.0043,
        dense_row=0.45,
        dft_product=0.030,
        dft_number=1.4,
        fft_number=8.4,
        calls=(4.7e4, 8.0e4, 7.8e4),
        weight_grad=(2.3, 1.75),
    ),
}
#: The class that figures on pages and in tests are of, on every machine.
REFERENCE_PROCESSOR = 'AVX2'
#: The class that the choice follows on this machine: the reference one, unless the table has a better.
THIS_PROCESSOR = torch.backends.cpu.get_cpu_capability()
if THIS_PROCESSOR not in PROCESSORS:
    THIS_PROCESSOR = REFERENCE_PROCESSOR


def fastest_backend(
    x: Tensor,
    grid: Sequence[int],
    *,
    weight_grad: bool = False,
    skip: Collection[str] = (),
    processor: str | None = None,
) -> str:
    """The backend expected to be the fastest for the inputs, by a rule on kernel size, map size, dtype and device.

    The output (and the gradient of the input, which is the same computation) and the gradient of the weight are chosen
    separately. The logger ``mmpelk.ops`` says each choice once per shape, at debug level.

    Args:
        x: The map, whose values are not read.
        grid: Ring widths.
        weight_grad: Choose for the gradient of the weight.
        skip: Backends that are not chosen; neither are those that failed here before.
        processor: A class of :data:`PROCESSORS` to choose for, if ``x`` is on a CPU; ``None`` is that of this machine.
    """
    if x.is_cuda:
        name = _fastest_on_cuda(x, grid, weight_grad, skip)
    else:
        name = _fastest_on_cpu(x, grid, weight_grad, skip, PROCESSORS[processor or THIS_PROCESSOR])
    if _LOGGER.isEnabledFor(logging.DEBUG):
        _say_choice(
            name, 'gradient of the weight' if weight_grad else 'convolution', x.shape, x.dtype, x.device, sum(grid)
        )
    return name


@lru_cache(maxsize=4096)
def _say_choice(name: str, what: str, shape: torch.Size, dtype: torch.dtype, device: torch.device, size: int) -> None:
    """Log a choice of :func:`fastest_backend`, the first time that it is made."""
    _LOGGER.debug('%s of %s %s on %s with K = %d: backend %r', what, tuple(shape), dtype, device, size, name)


def _fastest_on_cpu(x: Tensor, grid: Sequence[int], weight_grad: bool, skip: Collection[str], costs: Costs) -> str:
    kernel_size = sum(grid)
    if kernel_size <= _DENSE_UP_TO and (x.dtype == torch.float64 or weight_grad):
        return 'dense'
    size, planes = (int(x.shape[-2]), int(x.shape[-1])), int(x.shape[0] * x.shape[1])
    times = {
        'dft': costs.calls[1]
        + planes * dft_ns(*size, kernel_size, costs) * (costs.weight_grad[0] if weight_grad else 1),
        'fft': costs.calls[2]
        + planes * fft_ns(*size, kernel_size, costs) * (costs.weight_grad[1] if weight_grad else 1),
    }
    if x.dtype != torch.float64 and not weight_grad and (x.dtype == torch.float32 or kernel_size <= dense.NCHW_UP_TO):
        times['dense'] = costs.calls[0] + planes * dense_ns(*size, kernel_size, costs)
    return min(times, key=lambda name: times[name])


def dense_ns(height: int, width: int, kernel_size: int, costs: Costs) -> float:
    """Cost of the dense kernel on a plane: kernel rows outside the map are skipped, columns where none is inside."""
    radius = reach(kernel_size, height)
    rows = height + 2 * radius * height - radius * (radius + 1)  # inside the map, summed over the output rows
    return rows * width * (costs.dense_row + costs.dense_tap * (2 * reach(kernel_size, width) + 1))


def dft_ns(height: int, width: int, kernel_size: int, costs: Costs) -> float:
    """Cost of the matrix products of a plane and of the passes over its spectrum."""
    rows, columns = ((extent + reach(kernel_size, extent) + 1) // 2 for extent in (height, width))
    products = 2 * height * columns * (width + 2 * rows)
    return costs.dft_product * products + costs.dft_number * 4 * rows * columns


def fft_ns(height: int, width: int, kernel_size: int, costs: Costs) -> float:
    """Cost of the transforms of a plane."""
    rows, columns = (fft.fast_length(extent + reach(kernel_size, extent)) for extent in (height, width))
    return costs.fft_number * rows * (columns // 2 + 1)


def _fastest_on_cuda(x: Tensor, grid: Sequence[int], weight_grad: bool, skip: Collection[str]) -> str:
    """Triton wherever it runs; reasoned from memory traffic and operation counts, not measured."""
    if sum(grid) <= _DENSE_UP_TO:
        return 'dense'
    kernels = BACKENDS['triton']
    runs = (
        'triton' not in skip
        and kernels.unavailable_reason() is None
        and kernels.unsupported_reason(x, x, grid) is None
        and refusal('triton', x, weight_grad) is None
    )
    return 'triton' if runs else 'fft'
