"""Fit the costs by which a backend is chosen on a CPU, and say what the choice loses with them.

    python -m benchmarks.cpu_costs            # a minute or two; pin it to a core where others work: taskset -c 0 ...

Every backend computes each stage of PeLK-T, PeLK-B and PeLK-101 in float32, channels last, on few enough channels that
a call takes about a millisecond; the fastest of many counts, which other processes disturb least. What it prints is for
``mmpelk/ops/backends/choice.py``.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmpelk.analysis.machine import environment_info
from mmpelk.analysis.table import Table
from mmpelk.ops import sharing_grid
from mmpelk.ops.backends import BACKENDS, choice, fastest_backend

# Channels, side, kernel size. The stages, at the resolutions of the paper, each with fewer channels than it has.
CASES = [
    *((channels, 7, 13) for channels in (16, 64, 256)),
    *((channels, 12, 13) for channels in (16, 128)),
    *((channels, 16, 13) for channels in (16, 128, 384)),
    *((channels, 14, 47) for channels in (16, 64, 192)),
    *((channels, 24, 47) for channels in (16, 64)),
    *((channels, 32, 47) for channels in (16, 48)),
    *((channels, 28, 49) for channels in (16, 48)),
    *((channels, 48, 49) for channels in (16, 32)),
    *((channels, 56, 51) for channels in (16, 32)),
    *((16, side, 51) for side in (96, 128)),
    (16, 64, 49),
    (48, 14, 67),
    (32, 24, 67),
    (16, 28, 69),
    *((16, side, 101) for side in (56, 96)),
]
NAMES = ('dense', 'dft', 'fft')
SECONDS = 0.5  # of calls, for each backend and case
_SLOW = 8  # times the fastest: not repeated

Row = dict[str, Any]


def fastest_ns(call: Callable[[], Any], seconds: float) -> float:
    """Nanoseconds of the fastest of the calls that fit into ``seconds``, at least three after one to warm up."""
    call()
    best, count, end = float('inf'), 0, time.perf_counter() + seconds
    while count < 3 or time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        best, count = min(best, time.perf_counter_ns() - start), count + 1
    return best


@torch.no_grad()
def measure(cases: Sequence[tuple[int, int, int]]) -> list[Row]:
    """Nanoseconds of every backend on every case: of the convolution, and of the gradient of the weight."""
    rows, here = [], choice.PROCESSORS[choice.THIS_PROCESSOR]
    for channels, side, kernel_size in cases:
        grid = sharing_grid(kernel_size, min(kernel_size, 5))
        x, grad = (_map(channels, side) for _ in range(2))
        weight, out = torch.randn(channels, 1, len(grid), len(grid)), torch.empty_like(x)
        row: Row = {'case': (channels, side, kernel_size), 'forward': {}, 'weight_grad': {}}
        for name in ('dft', 'fft', 'dense'):  # the slowest on large maps last, and once
            calls = {'forward': partial(BACKENDS[name].forward, x, weight, None, grid, out)}
            if name != 'dense':
                calls['weight_grad'] = partial(BACKENDS[name].weight_grad, x, grad, grid)
            for what, call in calls.items():
                times = row[what]
                expected = choice.dense_ns(side, side, kernel_size, here) * channels
                slow = name == 'dense' and expected > _SLOW * times['dft']
                times[name] = fastest_ns(call, 0 if slow else SECONDS)
        rows.append(row)
    return rows


def _map(channels: int, side: int) -> Tensor:
    return torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)


def fit(rows: Sequence[Row]) -> choice.Costs:
    """The costs whose predictions have the least relative squared error."""
    none = choice.Costs(dense_tap=0, dft_product=0, dft_number=0, fft_number=0)
    tap, row_of_taps = replace(none, dense_tap=1), replace(none, dense_row=1)
    product, number, complex_number = (
        replace(none, dft_product=1),
        replace(none, dft_number=1),
        replace(none, fft_number=1),
    )

    def solve(what: str, name: str, ns: Callable[..., float], *units: choice.Costs) -> list[float]:
        terms, times = [], []
        for row in rows:
            channels, side, kernel_size = row['case']
            terms.append([1.0, *(channels * ns(side, side, kernel_size, unit) for unit in units)])
            times.append(row[what][name])
        scale = torch.tensor(times, dtype=torch.float64)[:, None]
        relative = torch.tensor(terms, dtype=torch.float64) / scale
        kept = list(range(relative.shape[1]))
        while True:  # none is negative
            found = torch.linalg.lstsq(relative[:, kept], torch.ones_like(scale)).solution[:, 0].tolist()
            if min(found) >= 0:
                return [found[kept.index(i)] if i in kept else 0.0 for i in range(relative.shape[1])]
            del kept[found.index(min(found))]

    dense = solve('forward', 'dense', choice.dense_ns, tap, row_of_taps)
    dft = solve('forward', 'dft', choice.dft_ns, product, number)
    fft = solve('forward', 'fft', choice.fft_ns, complex_number)
    costs = choice.Costs(dense[1], dft[1], dft[2], fft[1], (dense[0], dft[0], fft[0]), dense_row=dense[2])
    grads = [solve('weight_grad', name, ns, costs)[1] for name, ns in (('dft', choice.dft_ns), ('fft', choice.fft_ns))]
    return replace(costs, weight_grad=(grads[0], grads[1]))


def losses(rows: Sequence[Row], processor: str) -> Table:
    """The choice for a class of processors, and by how much the fastest backend beats it, of every case."""
    table = Table(['channels', 'map', 'K', 'choice', 'of the fastest', 'gradient of the weight', 'of the fastest'])
    for row in rows:
        channels, side, kernel_size = row['case']
        x, grid = torch.empty(1).expand(1, channels, side, side), sharing_grid(kernel_size, min(kernel_size, 5))
        cells = []
        for what in ('forward', 'weight_grad'):
            name = fastest_backend(x, grid, weight_grad=what == 'weight_grad', processor=processor)
            cells += [name, f'{row[what][name] / min(row[what].values()):.2f}']
        table.add(str(channels), f'{side}x{side}', str(kernel_size), *cells)
    return table


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    rows = measure(CASES)
    print(environment_info('cpu'))
    losses(rows, choice.THIS_PROCESSOR).print()
    choice.PROCESSORS['fitted'] = fit(rows)
    print(f'fitted: {choice.PROCESSORS["fitted"]}')
    losses(rows, 'fitted').print()


if __name__ == '__main__':
    main()
