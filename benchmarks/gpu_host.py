"""What the host does for the Triton backends on a GPU, measured without one.

    python -m benchmarks.gpu_host

Triton's own compiler, binder and launcher run over a CUDA driver that launches nothing (``benchmarks/stub_driver``;
needs gcc), with CPU tensors in the place of a GPU's. Printed: microseconds of a call, the fastest tenth of many; and
how many operators and launches a network of PeLK-T dispatches, those inside our operators counted, over the same
network without convolution. Arithmetic that torch does on the CPU in between is part of the times.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import stub_driver

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {'inference': 40, 'forward and backward': 150}  # microseconds
OPERATORS = {'inference, frozen': 1.3, 'training': 1.6}  # over those of the network without convolution


def microseconds(call: Callable[[], Any], repeats: int) -> float:
    """Of the fastest tenth."""
    for _ in range(20):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * sorted(times)[repeats // 10]


def host_times(repeats: int) -> None:
    """Print the times of calls on stage 1 of PeLK-T, two images in bfloat16."""
    from mmpelk.ops import force_backend, peripheral_conv2d, sharing_grid
    from mmpelk.ops.prepared import prepare

    grid = sharing_grid(51)
    x = torch.randn(2, 46, 56, 56).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(46, 1, len(grid), len(grid)).bfloat16()
    grad = torch.ones_like(x)
    leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()

    def step() -> None:
        torch.autograd.grad(peripheral_conv2d(*leaves, grid), leaves, grad)

    prepared = prepare(x, weight, grid, None)  # by the backend that is chosen
    with torch.no_grad():
        print(f'chosen, inference, frozen: {microseconds(lambda: prepared(x), repeats):.0f} us')
    for backend in ('triton', 'triton_dft', None):
        with force_backend(backend):
            for what, call in (
                ('inference', lambda: peripheral_conv2d(x, weight, grid)),
                ('forward and backward', step),
            ):
                with torch.set_grad_enabled(call is step):
                    taken = microseconds(call, repeats)
                print(f'{backend or "chosen"}, {what}: {taken:.0f} us, the target is {TARGETS[what]}', flush=True)


class _OperatorCounter(TorchDispatchMode):
    """Counts the operators that are no views; ours, and torch's composite ones, count as those that they call."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.count, self._functions = 0, functions

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function = self._functions.get(func._schema.name)
        if function is not None:
            with self:
                return function(*args, **(kwargs or {}))
        with self:  # a copy by ``to`` or ``contiguous``, which are views where nothing is copied
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        self.count += not (func.is_view or 'empty' in func._schema.name or func._schema.name == 'aten::detach')
        return func(*args, **(kwargs or {}))


def operators(launches: Any) -> None:
    """Print operators and launches of a network over those of the network without convolution."""
    from benchmarks.backbone import inference, training_step
    from benchmarks.ceiling import without_mixer
    from mmpelk import freeze
    from mmpelk.models import PeLK, pelk
    from mmpelk.ops import branches, custom_op, mixed_norm, positional_op, training_norm
    from mmpelk.ops.backends import calls

    functions: dict[str, Callable[..., Any]] = {
        'mmpelk::peripheral_conv2d': custom_op._conv,
        'mmpelk::peripheral_conv2d_backward': custom_op._conv_backward,
        'mmpelk::peripheral_conv2d_prepared': custom_op._conv_prepared,
        'mmpelk::peripheral_branches': branches.forward,
        'mmpelk::peripheral_branches_backward': branches.backward,
        'mmpelk::positional_term': positional_op.term,
        'mmpelk::positional_term_grads': positional_op.term_grads,
    }
    calls._largest_error = lambda *args: 0.0  # the driver computes nothing
    mixed_norm._largest_error = lambda *args: 0.0
    training_norm._forward_error = lambda *args: 0.0
    training_norm._backward_error = lambda *args: 0.0
    training_norm.needs_operators = lambda grad: torch.is_grad_enabled()
    branches._in_planes = lambda x: True
    pelk.is_fused = lambda x, training=False: torch.is_grad_enabled() == training
    networks = {
        'inference, as trained': (inference, lambda: PeLK('tiny')),
        'inference, deployed': (inference, lambda: PeLK('tiny', deploy=True)),
        'inference, frozen': (inference, lambda: freeze(PeLK('tiny', deploy=True))),
        'training': (training_step, lambda: PeLK('tiny')),
    }
    for what, (step, make) in networks.items():
        counts = []
        for model in (make(), without_mixer(PeLK('tiny'))):
            model.train(what == 'training')
            x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
            step(model, None, x, torch.bfloat16)
            before = launches.value
            with _OperatorCounter(functions) as inside:
                step(model, None, x, torch.bfloat16)
            counts.append(inside.count + launches.value - before)
        ours, plain = counts
        goal = f', the target is {OPERATORS[what]}' if what in OPERATORS else ''
        print(f'{what}: {ours} operators and launches, {plain} without convolution: {ours / plain:.2f} times{goal}')


def main(arguments: Sequence[str]) -> None:
    if arguments:
        launches = stub_driver.install()
        operators(launches)
        host_times(int(arguments[0]))
        return
    with tempfile.TemporaryDirectory() as folder:
        stub_driver.build(Path(folder))
        environment = stub_driver.environment(Path(folder))
        command = [sys.executable, '-m', 'benchmarks.gpu_host', '400']
        subprocess.run(command, cwd=ROOT, env=environment, check=True)


if __name__ == '__main__':
    main(sys.argv[1:])
