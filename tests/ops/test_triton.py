"""The Triton backend: its cases in the interpreter, its kernels through the compiler for Hopper, its refusals."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmpelk.ops import sharing_grid
from mmpelk.ops.backends import triton as backend

ROOT = Path(__file__).resolve().parents[2]


def _import_triton() -> Any:
    if backend.interpreted():
        pytest.skip("the kernels are the interpreter's in this process; run without TRITON_INTERPRET")
    return pytest.importorskip('triton', minversion='3.0')


@pytest.mark.slow
def test_cases_in_the_interpreter() -> None:
    """In a process of their own: the variable has to be set before Triton is imported."""
    pytest.importorskip('triton', minversion='3.0')
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


class _Hopper:
    """Stands in for Triton's driver where there is no GPU: enough of one to compile for compute capability 9.0."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget('cuda', 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Kernels that a call of the backend would launch, compiled for Hopper instead, by name."""
    triton = _import_triton()
    from mmpelk.ops.backends.triton import kernels, launch

    found: dict[str, Any] = {}

    class Compiling:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch_nothing(*args: Any, **options: Any) -> None:
                key = f'{self.kernel.__name__}{"-wide" if options.get("WIDE") else ""}'
                found[key] = self.kernel.warmup(*args, grid=grid, **options)

            return launch_nothing

    names = ('toeplitz_kernel', 'conv_kernel', 'weight_grad_kernel')
    monkeypatch.setattr(
        launch, 'kernels', SimpleNamespace(**{name: Compiling(getattr(kernels, name)) for name in names})
    )
    # Private, because ``reset_active`` looks for a GPU.
    monkeypatch.setattr(triton.runtime.driver, '_active', _Hopper())
    return found


def _stack_bytes(kernel: Any, folder: Path) -> int:
    """Bytes per thread that the assembler spilled, as ``cuobjdump`` reads them from the binary."""
    from triton import knobs

    binary = folder / 'kernel.cubin'
    binary.write_bytes(kernel.asm['cubin'])
    usage = subprocess.run(
        [knobs.nvidia.cuobjdump.path, '-res-usage', binary], capture_output=True, text=True, check=True
    ).stdout
    return int(re.search(r'STACK:(\d+)', usage)[1])  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('dtype', 'shape', 'kernel_size'),
    [
        pytest.param(torch.bfloat16, (64, 46, 56, 56), 51, id='bfloat16-56x56'),
        pytest.param(torch.bfloat16, (2, 46, 128, 128), 51, id='bfloat16-128x128'),
        pytest.param(torch.float16, (64, 187, 14, 14), 47, id='float16-14x14'),
        pytest.param(torch.float32, (64, 46, 56, 56), 51, id='float32-56x56'),
    ],
)
def test_kernels_compile_for_hopper(
    compiled: dict[str, Any], dtype: torch.dtype, shape: tuple[int, ...], kernel_size: int, tmp_path: Path
) -> None:
    """The compiler sees types and layouts that the interpreter does not, and its output decides the speed."""
    grid = sharing_grid(kernel_size)
    x = torch.empty(shape, dtype=dtype, device='cpu')
    weight = torch.empty(shape[1], 1, len(grid), len(grid), dtype=dtype)
    from mmpelk.ops.backends.triton import launch

    launch.forward(x, weight, torch.empty(shape[1:], dtype=dtype), grid)
    launch.weight_grad(x, x, grid)
    assert set(compiled) == {'toeplitz_kernel', 'conv_kernel', 'weight_grad_kernel', 'weight_grad_kernel-wide'}
    assert 'wgmma.mma_async' in compiled['conv_kernel'].asm['ptx']
    for name, kernel in compiled.items():
        assert kernel.metadata.shared <= 227 << 10, name  # a Hopper block's limit
        if dtype != torch.float32:
            assert _stack_bytes(kernel, tmp_path) == 0, name
        if name != 'toeplitz_kernel':  # which gathers
            assert not re.search(r'ld\.global\.b16', kernel.asm['ptx']), f'{name} reads single numbers'


def test_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    for version, reason in (
        (not_found, 'triton is not installed'),
        (lambda name: '2.1.0', '2.1.0 is older'),
        (lambda name: '3.6.0', 'no CUDA device'),
    ):
        monkeypatch.setattr(importlib.metadata, 'version', version)
        assert reason in (backend.unavailable_reason() or '')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert backend.unavailable_reason() is None


def test_unsupported_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    assert 'x is on cpu' in (backend.unsupported_reason(x, weight, [1]) or '')
    assert 'float64' in (backend.unsupported_reason(x.double(), weight.double(), [1]) or '')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert backend.unsupported_reason(x, weight, [1]) is None
