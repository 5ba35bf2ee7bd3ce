"""Which backend computes a call: the choice, forcing one, and what the log says."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmpelk.ops import available_backends, backends, force_backend, peripheral_conv2d, sharing_grid
from mmpelk.ops.backends import BACKENDS as TABLE
from mmpelk.ops.backends import fastest_backend
from tests.ops.inputs import BACKENDS, make_inputs, needs_custom_op


@pytest.mark.parametrize('backend', BACKENDS)
def test_forcing_a_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 10, 9)
    used: list[str] = []
    monkeypatch.setattr('mmpelk.ops.custom_op.BACKENDS', _recording(used))
    x.requires_grad_()
    weight.requires_grad_()
    with force_backend(backend):
        out = peripheral_conv2d(x, weight, grid)
        peripheral_conv2d(x, weight, grid, backend='dense')
    out.sum().backward()  # both gradients, outside the block
    assert used == [backend, 'dense', backend, backend]
    peripheral_conv2d(x, weight, grid)
    assert used[-1] == fastest_backend(x, grid)


def test_forcing_is_of_a_thread() -> None:
    inside, leave = threading.Event(), threading.Event()

    def force() -> None:
        with force_backend('dense'):
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=force)
    thread.start()
    assert inside.wait(60)
    with force_backend('fft'):  # blocks that overlap
        leave.set()
        thread.join()
        assert backends.forced_backend() == 'fft'
    assert backends.forced_backend() is None


@needs_custom_op
def test_compiled_code_sees_what_is_forced() -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 10, 9)
    names: list[str] = []

    def record(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        calls = [node for node in graph.graph.nodes if 'peripheral_conv2d' in str(node.target)]
        names.extend(str(call.args[-1]) for call in calls)
        return graph

    compiled = torch.compile(lambda x: peripheral_conv2d(x, weight, grid), fullgraph=True, backend=record)
    compiled(x)
    with force_backend('dense'):
        compiled(x)
    assert names == ['None', 'dense']


def test_inputs_that_a_named_backend_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = replace(TABLE['fft'], unsupported_reason=lambda x, weight, grid: f'no {x.dtype}')
    monkeypatch.setitem(TABLE, 'fft', stub)
    x, weight, _ = make_inputs((1,), 4, 4)
    with pytest.raises(ValueError, match="'fft' cannot compute this call: no"):
        peripheral_conv2d(x, weight, (1,), backend='fft')


@pytest.mark.slow
def test_backend_from_the_environment() -> None:
    program = (
        'import torch\nfrom mmpelk.ops.backends import requested_backend\n'
        'print(requested_backend(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 1, 1), [1], None))'
    )
    environment = {**os.environ, 'MMPELK_BACKEND': 'fft'}
    assert subprocess.check_output([sys.executable, '-c', program], env=environment, text=True) == 'fft\n'


def test_the_choice_is_said_once_per_shape(caplog: pytest.LogCaptureFixture) -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 11, 23)
    with caplog.at_level('DEBUG', 'mmpelk.ops'):
        for _ in range(3):
            peripheral_conv2d(x, weight.requires_grad_(), grid).sum().backward()
    said = [record.getMessage() for record in caplog.records if '11, 23' in record.getMessage()]
    assert len(said) == 2, said
    assert (
        said[0] == f'convolution of {tuple(x.shape)} {x.dtype} on cpu with K = 13: backend {fastest_backend(x, grid)!r}'
    )
    assert said[1].startswith('gradient of the weight of')


def _recording(used: list[str]):
    class Recording(dict):
        def __getitem__(self, name: str):
            used.append(name)
            return TABLE[name]

    return Recording()


@pytest.mark.parametrize(
    ('channels', 'size', 'kernel_size', 'dtype', 'output', 'weight_grad'),
    [
        (46, 128, 51, torch.float32, 'fft', 'fft'),
        (46, 56, 51, torch.float32, 'dft', 'fft'),
        (46, 256, 51, torch.float32, 'fft', 'fft'),
        (93, 28, 49, torch.float32, 'dft', 'dft'),
        (187, 14, 47, torch.float32, 'dft', 'dft'),
        (187, 14, 47, torch.bfloat16, 'dft', 'dft'),
        (374, 7, 13, torch.float32, 'dense', 'dft'),
        (46, 128, 13, torch.bfloat16, 'fft', 'fft'),
        (374, 16, 13, torch.bfloat16, 'dense', 'dft'),
        (46, 56, 13, torch.float64, 'dft', 'fft'),
        (46, 56, 5, torch.float32, 'dense', 'dense'),
    ],
)
def test_choice_on_a_cpu(
    channels: int,
    size: int,
    kernel_size: int,
    dtype: torch.dtype,
    output: str,
    weight_grad: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, 'COSTS', backends.AVX2)
    x, grid = torch.empty(1, dtype=dtype).expand(1, channels, size, size), sharing_grid(kernel_size, 1)
    assert fastest_backend(x, grid) == output
    assert fastest_backend(x, grid, weight_grad=True) == weight_grad
    assert {'dense', 'dft', 'fft'} <= set(available_backends())


def test_choice_where_depthwise_kernels_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, 'COSTS', backends.AVX512)
    assert fastest_backend(torch.empty(1).expand(1, 187, 14, 14), sharing_grid(47)) == 'dense'


@pytest.mark.parametrize(
    ('kernel_size', 'unavailable', 'unsupported', 'choice'),
    [
        (51, None, None, 'triton'),
        (51, 'no triton', None, 'fft'),
        (51, None, 'float64', 'fft'),
        (5, None, None, 'dense'),
    ],
)
def test_choice_on_cuda(
    kernel_size: int, unavailable: str | None, unsupported: str | None, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = replace(
        TABLE['triton'], unavailable_reason=lambda: unavailable, unsupported_reason=lambda *args: unsupported
    )
    monkeypatch.setitem(TABLE, 'triton', stub)
    x = SimpleNamespace(is_cuda=True, dtype=torch.float32, shape=(1, 1, 56, 56))
    for weight_grad in (False, True):
        assert fastest_backend(x, sharing_grid(kernel_size), weight_grad=weight_grad) == choice
