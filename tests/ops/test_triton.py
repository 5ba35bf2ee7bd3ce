"""The Triton backend: its cases in the interpreter, and its refusals."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmpelk.ops import branches, sharing_grid
from mmpelk.ops.backends import BACKENDS
from mmpelk.ops.backends import triton as backend

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_cases_in_the_interpreter() -> None:
    """In a process of their own: the variable has to be set before Triton is imported."""
    pytest.importorskip('triton', minversion='3.4')
    if (reason := backend._interpreter_reason()) is not None:
        pytest.skip(reason)
    words = ['-q', '-W', 'ignore', '-p', 'no:cacheprovider', '--confcutdir=tests/ops', 'tests/ops/triton_cases.py']
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}
    cases = subprocess.run(
        [sys.executable, '-m', 'pytest', *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert cases.returncode == 0, cases.stdout[-6000:] + cases.stderr[-2000:]
    assert re.search(r'\d{2,} passed', cases.stdout), cases.stdout


@pytest.mark.slow
def test_importing_the_operator_does_not_import_triton() -> None:
    """torch's own modules may import it; so it is hidden, and the operator has to work all the same."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        'import mmpelk.ops, mmpelk.ops.backends.triton as backend, torch\n'
        'x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)\n'
        'assert torch.equal(mmpelk.ops.peripheral_conv2d(x, weight, [1]), x)\n'
        'assert "mmpelk.ops.backends.triton.kernels" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)


def test_maps_of_another_alignment_have_another_kernel() -> None:
    pytest.importorskip('triton', minversion='3.4')
    numbers, key_of = torch.zeros(2 * 3 * 16 * 16 + 8, dtype=torch.float16), BACKENDS['triton'].kernel_key
    assert key_of is not None
    first, unaligned, aligned = (
        key_of(numbers[start : start + 1536].view(2, 3, 16, 16), sharing_grid(13)) for start in (0, 1, 8)
    )
    assert first == aligned != unaligned


def test_more_images_than_a_launch_takes_and_weights_of_another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('triton', minversion='3.4')
    from mmpelk.ops.backends.triton import launch

    launched: list[tuple[int, ...]] = []

    def start(kernel: object, programs: tuple[int, ...], *args: object, **options: object) -> Callable[..., None]:
        launched.append(programs)
        return lambda *tensors: launched.append(programs)

    monkeypatch.setattr(launch, 'start', start)
    monkeypatch.setattr(launch, '_calls', {})
    monkeypatch.setattr(launch, 'is_hopper', lambda device: True)
    x, weight = torch.empty(70000, 1, 3, 3, dtype=torch.float16, device='meta'), torch.empty(1, 1, 1, 1, device='meta')
    launch.forward(x, weight, None, [1])
    launch.weight_grad(x, x, [1])
    assert max(side for programs in launched for side in programs[1:]) <= 65535
    calls = len(launch._calls)
    launch.forward(x, weight.half(), None, [1])  # not by what was compiled for float32
    assert len(launch._calls) > calls


def test_terms_of_a_stage_are_read_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('triton', minversion='3.4')
    from mmpelk.ops.backends.triton import launch

    monkeypatch.setattr(branches, '_in_planes', lambda x: True)
    grid, size = sharing_grid(13), (3, 5, 7)
    x, weight, small = torch.ones(2, *size), torch.ones(3, 1, len(grid), len(grid)), torch.ones(3, 1, 5, 5)
    with torch.autocast('cpu', torch.bfloat16):
        stacked = branches.stacked_branches(x, [weight] * 2, [small] * 2, grid, torch.ones(3, 13, 13))
    for _, _, term in stacked:
        assert term is not None
        assert term.shape == size
        assert launch._is_padded_bias(term)


def test_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    for version, reason in (
        (not_found, 'triton is not installed'),
        (lambda name: '3.3.1', '3.3.1 is older than 3.4'),
        (lambda name: '3.4.0', 'no CUDA device'),
        (lambda name: '3.6.0', 'no CUDA device'),
    ):
        monkeypatch.setattr(importlib.metadata, 'version', version)
        assert reason in (backend.unavailable_reason() or '')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for cuda, reason in ((None, 'no CUDA device'), ('12.8', None)):  # that of ROCm says so, too, but has no CUDA
        monkeypatch.setattr(torch.version, 'cuda', cuda)
        assert (backend.unavailable_reason() is None) if reason is None else reason in backend.unavailable_reason()
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    for numpy, reason in (('2.4.6', None), ('2.5.0', 'numpy 2.5.0')):
        monkeypatch.setattr(importlib.metadata, 'version', {'triton': '3.6.0', 'numpy': numpy}.__getitem__)
        got = backend.unavailable_reason()
        assert got is None if reason is None else reason in (got or '')


def test_unsupported_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
    for value in ('', '0', 'off'):
        monkeypatch.setenv('TRITON_INTERPRET', value)
        assert 'x is on cpu' in (backend.unsupported_reason(x, weight, [1]) or '')
    for dtype in (torch.float64, torch.complex64, torch.float8_e4m3fn):
        for refuses in (backend, BACKENDS['triton'], BACKENDS['triton_dft']):
            assert str(dtype) in (refuses.unsupported_reason(x.to(dtype), weight.to(dtype), [1]) or '')
    for value in ('1', 'true', 'True', 'on', 'yes', 'Y'):  # as Triton reads it
        monkeypatch.setenv('TRITON_INTERPRET', value)
        assert backend.unsupported_reason(x, weight, [1]) is None
        assert BACKENDS['triton'].unsupported_reason(x, weight, [1]) is None
    assert 'factors in float16' in (BACKENDS['triton_dft'].unsupported_reason(x, weight, [1]) or '')
    assert BACKENDS['triton_dft'].unsupported_reason(x.bfloat16(), weight.bfloat16(), [1]) is None


class _Matmul:
    """``torch.backends.cuda.matmul`` of some release: what it says, and what it raises when the new name is read."""

    def __init__(self, precision: str | Exception, allow_tf32: bool | Exception) -> None:
        self._values = dict(fp32_precision=precision, allow_tf32=allow_tf32)

    def __getattr__(self, name: str) -> object:
        if isinstance(value := self._values[name], Exception):
            raise value
        return value


def test_tf32_in_every_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, allow_tf32, allows in (
        ('tf32', RuntimeError(), True),
        ('ieee', RuntimeError(), False),
        ('none', RuntimeError(), False),
        (AttributeError(), True, True),  # before torch 2.9
        (AttributeError(), False, False),
        (AssertionError(), True, True),  # torch 2.1
        (AssertionError(), False, False),
    ):
        monkeypatch.setattr(torch.backends.cuda, 'matmul', _Matmul(precision, allow_tf32))
        assert backend.allows_tf32() is allows


@pytest.mark.parametrize(
    ('capability', 'known'),
    [
        ((7, 5), False),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), False),
        ((11, 0), False),
        ((12, 0), True),
    ],
)
def test_devices_that_nobody_compiled_for(
    capability: tuple[int, int], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    monkeypatch.setattr(backend, 'capability', lambda device: capability)
    x = SimpleNamespace(is_cuda=True, dtype=torch.float32, device=torch.device('cuda', 0))
    reason = backend.unsupported_reason(x, x, [1])  # type: ignore[arg-type]
    assert (reason is None) == known
    assert known or f'cuda:0 has compute capability {capability[0]}.{capability[1]}' in (reason or '')
