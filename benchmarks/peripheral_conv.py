"""The peripheral convolution against its peers, in one run.

    python -m benchmarks.peripheral_conv                      # CPU, some minutes
    python -m benchmarks.peripheral_conv --device cuda --dtype bfloat16
    python -m benchmarks.peripheral_conv --stages             # the choice against its peers at every stage

Peers: ``F.conv2d`` with the dense kernel, in NCHW, channels last, and with the channels filled up to a multiple of 16,
a plain FFT convolution (both transforms in full, the kernel expanded), the Fourier transform as products of matrices
(complex, from both sides, the kernel's spectrum given), SLaK's pair of stripes (K x 5 and 5 x K), and ConvNeXt's 7 x 7.
Peers that compute another function are there for their cost. Ours runs in both layouts.
Writes a table, ``benchmarks/results/peripheral_conv_*.json`` and a plot of time against kernel size.
"""

import argparse
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.timing import interleaved_medians, peak_memory
from mmpelk.analysis.machine import environment_info
from mmpelk.analysis.table import Table
from mmpelk.models import ARCHITECTURES
from mmpelk.ops import available_backends, expand_kernel, peripheral_conv2d, sharing_grid

RESULTS = Path(__file__).resolve().parent / 'results'
# Convolved channels and maps of PeLK-T's stages at 224 x 224, a stage 1 of segmentation at 2048 x 512, and one of
# PeLK-101 at 384 x 384.
CPU_CASES = [
    (2, 46, 56, 56, 51, 5),
    (2, 93, 28, 28, 49, 5),
    (2, 187, 14, 14, 47, 5),
    (2, 374, 7, 7, 13, 5),
    (1, 62, 96, 96, 101, 7),
    (1, 46, 128, 512, 51, 5),
]
GPU_CASES = [
    (64, 46, 56, 56, 51, 5),
    (64, 46, 56, 56, 101, 7),
    (64, 93, 28, 28, 49, 5),
    (64, 187, 14, 14, 47, 5),
    (64, 374, 7, 7, 13, 5),
    (16, 62, 96, 96, 101, 7),
    (1, 46, 128, 512, 51, 5),
]
SWEEP = [7, 13, 21, 31, 51, 71, 101, 151]
RESOLUTIONS = [(224, 224), (384, 384), (512, 512), (800, 1280), (512, 2048)]

# Those that compute the same function, and ours; a network's layout first.
PEERS = ('conv2d channels last', 'conv2d channels last, padded', 'matrix dft', 'conv2d')
OURS = ('mmpelk channels last', 'mmpelk')

Methods = dict[str, tuple[Callable[[], Tensor], tuple[Tensor, ...]]]


@dataclass
class Case:
    """Inputs of one shape."""

    kernel_size: int
    x: Tensor
    channels_last: Tensor
    weight: Tensor
    dense: Tensor
    stripes: tuple[Tensor, Tensor]
    seven: Tensor
    grad: Tensor
    grid: tuple[int, ...]


def make_case(spec: Sequence[int], device: str, dtype: torch.dtype) -> Case:
    """Random inputs for ``(N, C, H, W, K, centre)``."""
    *shape, kernel_size, center_size = spec
    channels = shape[1]
    grid = sharing_grid(kernel_size, min(center_size, kernel_size))
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype).requires_grad_()

    weight = normal(channels, 1, len(grid), len(grid))
    x = normal(*shape)
    return Case(
        kernel_size,
        x,
        x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(),
        weight,
        expand_kernel(weight.detach(), grid).requires_grad_(),
        (normal(channels, 1, kernel_size, 5), normal(channels, 1, 5, kernel_size)),
        normal(channels, 1, 7, 7),
        normal(*shape).detach(),
        grid,
    )


def plain_fft(x: Tensor, dense: Tensor) -> Tensor:
    """The textbook: transform input and dense kernel padded for the linear convolution, multiply, transform back."""
    height, width, side = *x.shape[-2:], dense.shape[-1]
    size = (height + side - 1, width + side - 1)
    spectrum = torch.fft.rfft2(x.float(), s=size) * torch.fft.rfft2(dense[:, 0].float(), s=size).conj()
    out = torch.fft.irfft2(spectrum, s=size).roll((side // 2, side // 2), (-2, -1))
    return out[..., :height, :width].to(x.dtype)


def matrix_dft(x: Tensor, spectrum: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """The transform as onnxruntime runs it: real products for the real and imaginary parts, in NCHW.

    Args:
        x: ``(N, C, H, W)``.
        spectrum: Real and imaginary part of the kernel's, ``(2, C, F, G)``.
        matrices: Of :func:`dft_matrices`.
    """
    columns, rows, back_rows, back_columns = matrices
    half = x @ columns  # (N, C, H, 2 G): real and imaginary
    half = torch.cat(half.chunk(2, -1), -2)  # (N, C, 2 H, G)
    real, imaginary = (rows @ half).chunk(2, -2)
    product = torch.cat(
        [real * spectrum[0] - imaginary * spectrum[1], real * spectrum[1] + imaginary * spectrum[0]], -2
    )
    return torch.cat((back_rows @ product).chunk(2, -2), -1) @ back_columns


def dft_matrices(size: Sequence[int], side: int) -> tuple[list[Tensor], tuple[int, ...]]:
    """Matrices of :func:`matrix_dft` along columns, rows, and back, and the lengths of the transforms."""
    lengths = tuple(extent + min(side // 2, extent - 1) for extent in size)
    (row_cos, row_sin), (column_cos, column_sin) = (
        (torch.cos(angle), torch.sin(angle))
        for extent, length in zip(size, lengths, strict=True)
        for angle in [2 * torch.pi / length * (torch.arange(length)[:, None] * torch.arange(extent) % length).double()]
    )
    half = lengths[1] // 2 + 1
    weights = torch.full((half, 1), 2.0, dtype=torch.float64)
    weights[0] = 1
    if lengths[1] % 2 == 0:
        weights[-1] = 1
    columns = torch.cat([column_cos[:half], -column_sin[:half]]).mT
    rows = torch.cat([torch.cat([row_cos, row_sin], 1), torch.cat([-row_sin, row_cos], 1)])
    back_rows = torch.cat([torch.cat([row_cos.mT, -row_sin.mT], 1), torch.cat([row_sin.mT, row_cos.mT], 1)])
    back_columns = torch.cat([weights * column_cos[:half], -weights * column_sin[:half]]) / (lengths[0] * lengths[1])
    return [matrix.float().contiguous() for matrix in (columns, rows, back_rows, back_columns)], lengths


def methods(case: Case) -> Methods:
    """Name to forward function and the tensors that its backward differentiates."""
    x, channels, side = case.x, case.x.shape[1], case.kernel_size
    conv = partial(F.conv2d, x, groups=channels)
    padded, padded_dense = fill_channels(case)
    matrices, lengths = dft_matrices(x.shape[-2:], side)
    matrices = [matrix.to(x) for matrix in matrices]
    transform = torch.fft.rfft2(trimmed(case.dense.detach().float(), x)[:, 0], s=lengths)
    radii = [min(side // 2, extent - 1) for extent in x.shape[-2:]]
    shift = torch.polar(*torch.broadcast_tensors(torch.ones(()).to(transform.real), phase(lengths, radii, x.device)))
    spectrum = torch.view_as_real((transform * shift).conj().resolve_conj()).movedim(-1, 0).contiguous().to(x)
    table: Methods = {
        'conv2d': (lambda: conv(case.dense, padding=side // 2), (x, case.dense)),
        'conv2d channels last': (
            lambda: F.conv2d(case.channels_last, case.dense, padding=side // 2, groups=channels),
            (case.channels_last, case.dense),
        ),
        'conv2d channels last, padded': (
            lambda: F.conv2d(padded, padded_dense, padding=side // 2, groups=padded.shape[1]),
            (padded, padded_dense),
        ),
        'matrix dft': (lambda: matrix_dft(x, spectrum, matrices), (x, spectrum.requires_grad_())),
        'plain fft': (lambda: plain_fft(x, case.dense), (x, case.dense)),
        'stripes': (
            lambda: conv(case.stripes[0], padding=(side // 2, 2)) + conv(case.stripes[1], padding=(2, side // 2)),
            (x, *case.stripes),
        ),
        '7x7': (lambda: conv(case.seven, padding=3), (x, case.seven)),
        'mmpelk': (lambda: peripheral_conv2d(x, case.weight, case.grid), (x, case.weight)),
        'mmpelk channels last': (
            lambda: peripheral_conv2d(case.channels_last, case.weight, case.grid),
            (case.channels_last, case.weight),
        ),
    }
    for name in available_backends():
        if name != 'dense':
            call = partial(peripheral_conv2d, case.channels_last, case.weight, case.grid, backend=name)
            table[f'mmpelk {name}, channels last'] = (call, (case.channels_last, case.weight))
    return table


def trimmed(dense: Tensor, x: Tensor) -> Tensor:
    """The taps of a kernel that reach a map of the size of ``x``."""
    margins = [-max(0, dense.shape[-1] // 2 - (extent - 1)) for extent in reversed(x.shape[-2:]) for _ in range(2)]
    return F.pad(dense, margins)


def phase(lengths: Sequence[int], radii: Sequence[int], device: torch.device) -> Tensor:
    """Angles that move a kernel's middle to the origin."""
    rows = torch.arange(lengths[0], device=device)[:, None] * (2 * torch.pi * radii[0] / lengths[0])
    return rows + torch.arange(lengths[1] // 2 + 1, device=device) * (2 * torch.pi * radii[1] / lengths[1])


def fill_channels(case: Case) -> tuple[Tensor, Tensor]:
    """Input channels last and dense kernel with the channels filled up to a multiple of 16."""
    fill = -case.x.shape[1] % 16
    x = F.pad(case.x.detach(), (0, 0, 0, 0, 0, fill)).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(), F.pad(case.dense.detach(), (0, 0, 0, 0, 0, 0, 0, fill)).requires_grad_()


def no_grad(function: Callable[[], Tensor]) -> None:
    """The forward alone, as inference runs it."""
    with torch.no_grad():
        function()


def backward(function: Callable[[], Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> None:
    """Forward and the gradients of input and weights."""
    out = function()
    fill = out.shape[1] - grad.shape[1]
    torch.autograd.grad(out, inputs, F.pad(grad, (0, 0, 0, 0, 0, fill)) if fill else grad)


def relative_error(function: Callable[[], Tensor], case: Case) -> float:
    """Error of the output's first channels against ``F.conv2d`` in float64, relative in the Euclidean norm."""
    few, side = min(4, case.x.shape[1]), case.kernel_size
    with torch.no_grad():
        want = F.conv2d(case.x[:1, :few].double(), case.dense[:few].double(), padding=side // 2, groups=few)
        return ((function()[:1, :few].double() - want).norm() / want.norm()).item()


def measure(case: Case, device: str, rounds: int, names: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Times, memory and error of methods on one case, of all by default.

    The backward is left out of peers whose forward alone takes longer than ours takes for both: minutes, for some.
    """
    table = {name: entry for name, entry in methods(case).items() if name in names or not names}
    both = {name: partial(backward, function, inputs, case.grad) for name, (function, inputs) in table.items()}
    forward = {name: partial(no_grad, function) for name, (function, _) in table.items()}
    seconds = interleaved_medians(forward, device, rounds)
    limit = min(interleaved_medians({name: both[name] for name in OURS}, device, 1).values())
    both = {name: call for name, call in both.items() if name.startswith('mmpelk') or seconds[name] < limit}
    seconds_both = interleaved_medians(both, device, rounds)
    return {
        name: {
            'forward_ms': 1e3 * seconds[name],
            'forward_backward_ms': 1e3 * seconds_both[name] if name in both else None,
            'peak_memory': peak_memory(both[name], device) if seconds_both.get(name, 11) < 10 else None,
            'error': relative_error(function, case) if name not in ('stripes', '7x7') else None,
        }
        for name, (function, _) in table.items()
    }


def sweep(device: str, dtype: torch.dtype, batch: int, rounds: int) -> dict[str, list[float]]:
    """Forward milliseconds at 56 x 56 against the kernel size."""
    curves: dict[str, list[float]] = {}
    for kernel_size in track(SWEEP, 'time against K', transient=True):
        case = make_case((batch, 46, 56, 56, kernel_size, 5), device, dtype)
        functions = {name: partial(no_grad, function) for name, (function, _) in methods(case).items()}
        for name, seconds in interleaved_medians(functions, device, rounds).items():
            curves.setdefault(name, []).append(1e3 * seconds)
    return curves


def stage_cases() -> list[tuple[str, tuple[int, ...]]]:
    """Every stage of PeLK-T (whose stages are those of S) and PeLK-B, one image at every resolution of the paper."""
    cases: list[tuple[str, tuple[int, ...]]] = []
    for arch in ('tiny', 'base'):
        table = ARCHITECTURES[arch]
        for height, width in RESOLUTIONS:
            for stage, (channels, side) in enumerate(zip(table['channels'], table['kernel_sizes'], strict=True)):
                shape = (1, 3 * channels // 8, height // 2 ** (stage + 2), width // 2 ** (stage + 2))
                cases.append((f'{arch}, {height}x{width}, stage {stage + 1}', (*shape, side, table['center_size'])))
    return cases


def compare_stages(device: str, dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """Ours and the peers that compute the same function; see :func:`measure`."""
    names = (*PEERS, *OURS)
    return [
        {'stage': label, 'case': spec, 'methods': measure(make_case(spec, device, dtype), device, rounds, names)}
        for label, spec in track(stage_cases(), 'stages', transient=True)
    ]


def milliseconds(methods: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, float]:
    """A figure of the methods that have it."""
    return {name: figures[key] for name, figures in methods.items() if figures[key] is not None}


def fastest_peer(times: Mapping[str, float]) -> str | None:
    """The fastest of those that compute the same function, of those that were timed."""
    return min((name for name in PEERS if name in times), key=lambda name: times[name], default=None)


def stages_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How many times as fast as the fastest peer the automatic choice is, in either layout."""
    columns = ['stage', 'map and kernel']
    for what in ('forward', 'with backward'):
        columns += [f'{what}, channels last', f'{what}, NCHW', 'peer']
    table = Table(columns, title='times as fast as the fastest peer', labels=2)
    for row in rows:
        _, channels, height, width, side, _ = row['case']
        cells: list[str] = []
        for key in ('forward_ms', 'forward_backward_ms'):
            times = milliseconds(row['methods'], key)
            peer = fastest_peer(times)
            cells += [f'{times[peer] / times[name]:.2f}' if peer else '-' for name in OURS] + [peer or 'none']
        table.add(row['stage'], f'{channels}x{height}x{width}, K = {side}', *cells)
    return table


def make_table(cases: Sequence[Mapping[str, Any]]) -> Table:
    """The measured cases: ours, channels last as networks have it, and the peers; ``-`` of a backward left out."""
    ratio = 'times as fast as the fastest'
    table = Table(['input', 'K', 'ours', *PEERS, ratio, 'with backward: ours', *PEERS[:3], ratio], labels=2)
    for one in cases:
        *shape, side, _ = one['case']
        cells = ['\N{MULTIPLICATION SIGN}'.join(map(str, shape)), str(side)]
        for key, peers in (('forward_ms', PEERS), ('forward_backward_ms', PEERS[:3])):
            times = milliseconds(one['methods'], key)
            peer, ours = fastest_peer(times), times[OURS[0]]
            cells += [_time(times.get(name)) for name in (OURS[0], *peers)]
            cells.append(f'{times[peer] / ours:.1f}' if peer else '-')
        table.add(*cells)
    return table


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return '-'
    return f'{milliseconds / 1e3:.1f} s' if milliseconds >= 1e3 else f'{milliseconds:.1f} ms'


def plot(curves: dict[str, list[float]], title: str, path: str) -> None:
    """Time against K of our choice, in either layout, and of the peers; readable in grey."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 4.5), layout='constrained')
    shown = [name for name in curves if name in OURS or not name.startswith('mmpelk')]
    for name, marker in zip(shown, 'os^vDXP*p', strict=True):
        ours = name in OURS
        axes.plot(SWEEP, curves[name], marker=marker, ls='-' if ours else '--', lw=2 if ours else 1, label=name)
    axes.set(xlabel='kernel size K', ylabel='forward, milliseconds', yscale='log', title=title)
    axes.grid(which='both', alpha=0.3)
    figure.legend(loc='outside right upper')
    figure.savefig(RESULTS / path, dpi=150)


def print_case(console: Console, spec: Sequence[int], result: dict[str, dict[str, Any]]) -> None:
    """One table."""
    batch, channels, height, width, kernel_size, _ = spec
    columns = ('', 'forward', 'forward and backward', 'peak MB', 'error')
    table = Table(columns, title=f'{batch}x{channels}x{height}x{width}, K = {kernel_size}')
    for name, row in result.items():
        memory = '-' if row['peak_memory'] is None else f'{row["peak_memory"] / 2**20:.1f}'
        error = '-' if row['error'] is None else f'{row["error"]:.1e}'
        table.add(name, _time(row['forward_ms']), _time(row['forward_backward_ms']), memory, error)
    table.print(console)


def write(path: Path, data: Any) -> None:
    """Write the results, and say where."""
    path.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    print(f'written to {path}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='%(default)s')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16', 'float16'], help='%(default)s')
    parser.add_argument('--stages', action='store_true', help='compare every stage of every size instead')
    args = parser.parse_args()
    on_gpu = args.device == 'cuda'
    rounds, batch = (50, 64) if on_gpu else (9, 1)
    dtype = getattr(torch, args.dtype)
    console = Console()
    where = environment_info(args.device)
    console.print(where)
    name = f'peripheral_conv_{args.device}_{args.dtype}'
    data: dict[str, Any] = {'machine': where, 'dtype': args.dtype, 'rounds': rounds}
    if args.stages:
        data['stages'] = compare_stages(args.device, dtype, rounds)
        stages_table(data['stages']).print(console)
        write(RESULTS / f'{name}_stages.json', data)
        return
    data['cases'] = []
    for spec in GPU_CASES if on_gpu else CPU_CASES:
        result = measure(make_case(spec, args.device, dtype), args.device, rounds)
        print_case(console, spec, result)
        data['cases'].append({'case': spec, 'methods': result})
    curves = sweep(args.device, dtype, batch, rounds)
    data['sweep'] = {'batch': batch, 'kernel_sizes': SWEEP, 'forward_ms': curves}
    plot(curves, f'{batch}x46x56x56, {args.dtype}, {where["device"]}', f'{name}.png')
    write(RESULTS / f'{name}.json', data)


if __name__ == '__main__':
    main()
