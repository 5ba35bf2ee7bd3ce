"""The Triton kernels through the compiler, without a GPU: registers, shared memory, loads, number of kernels."""

import math
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmpelk.ops import sharing_grid
from mmpelk.ops.backends import triton as backend

if backend.interpreted():
    pytest.skip(
        "the kernels are the interpreter's in this process; run without TRITON_INTERPRET", allow_module_level=True
    )
triton = pytest.importorskip('triton', minversion='3.4')

from mmpelk.ops.backends.triton import kernels, launch  # noqa: E402

KERNELS = ('toeplitz_kernel', 'conv_kernel', 'weight_grad_kernel')
# Bytes of shared memory that a block can have, by compute capability (CUDA C++ Programming Guide, technical
# specifications per compute capability).
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}


class _Device:
    """Stands in for Triton's driver where there is no GPU: enough of one to compile for a compute capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget('cuda', self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], dict[str, Any]]:
    """``pretend(90)``: calls of the backend compile for compute capability 9.0 and launch nothing; kernels by name."""

    def pretend_device(capability: int) -> dict[str, Any]:
        compiled: dict[str, Any] = {}

        class Compiling:
            def __init__(self, kernel: Any) -> None:
                self.kernel = kernel

            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                def compile_only(*args: Any, **options: Any) -> None:
                    compiled[self.kernel.__name__ + f'-bias{options.get("BIAS", "")}'] = self.kernel.warmup(
                        *args, grid=grid, **options
                    )

                return compile_only

        stand_ins = {name: Compiling(getattr(kernels, name)) for name in KERNELS}
        monkeypatch.setattr(launch, 'kernels', SimpleNamespace(**stand_ins))
        # Private, because ``reset_active`` looks for a GPU.
        monkeypatch.setattr(triton.runtime.driver, '_active', _Device(capability))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: divmod(capability, 10))
        launch._is_hopper.cache_clear()
        for name in KERNELS:  # what was compiled for another device
            getattr(kernels, name).device_caches.clear()
        return compiled

    return pretend_device


def _stack_bytes(kernel: Any, folder: Path) -> int:
    """Bytes per thread that the assembler spilled, as ``cuobjdump`` reads them from the binary."""
    binary = folder / 'kernel.cubin'
    binary.write_bytes(kernel.asm['cubin'])
    command = [triton.knobs.nvidia.cuobjdump.path, '-res-usage', binary]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r'STACK:(\d+)', usage)[1])  # type: ignore[index]


def _call(shape: tuple[int, ...], kernel_size: int, dtype: torch.dtype, channels_last: bool, mixed: int) -> None:
    """The operator and its gradients on the first ``mixed`` channels of a map."""
    grid = sharing_grid(kernel_size, 7 if kernel_size > 51 else 5)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, device='meta').contiguous(memory_format=layout)[:, :mixed]
    weight = torch.empty(mixed, 1, len(grid), len(grid), dtype=dtype, device='meta')
    if channels_last:  # the gradient of the input; in NCHW it spills four registers, outside of the loops
        launch.forward(x, weight, None, grid)
    launch.forward(x, weight, torch.empty(x.shape[1:], dtype=dtype, device='meta'), grid)
    launch.weight_grad(x, x, grid)


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
    pretend: Callable[[int], dict[str, Any]],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    kernel_size: int,
    tmp_path: Path,
) -> None:
    """The compiler sees types and layouts that the interpreter does not, and its output decides the speed."""
    compiled = pretend(90)
    _call(shape, kernel_size, dtype, False, shape[1])
    assert {name.split('-')[0] for name in compiled} == set(KERNELS)
    assert 'wgmma.mma_async' in compiled['conv_kernel-bias2'].asm['ptx']
    for name, kernel in compiled.items():
        assert kernel.metadata.shared <= SHARED_MEMORY[90], name
        if dtype != torch.float32:
            assert _stack_bytes(kernel, tmp_path) == 0, name
        if not name.startswith('toeplitz_kernel'):  # which gathers
            assert not re.search(r'ld\.global\.b16', kernel.asm['ptx']), f'{name} reads single numbers'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('capability', 'shape', 'kernel_size'),
    [
        *((capability, (64, 124, 56, 56), 51) for capability in SHARED_MEMORY),
        (90, (2, 124, 128, 512), 101),
        (86, (2, 124, 128, 128), 151),
    ],
)
def test_no_gpu_runs_out_of_shared_memory_or_registers(
    pretend: Callable[[int], dict[str, Any]],
    capability: int,
    shape: tuple[int, ...],
    kernel_size: int,
    tmp_path: Path,
) -> None:
    """In the layout of the networks, in bfloat16. A few registers, of addresses outside of the loops, may spill."""
    compiled = pretend(capability)
    _call(shape, kernel_size, torch.bfloat16, True, 46)
    for name, kernel in compiled.items():
        assert kernel.metadata.shared <= SHARED_MEMORY[capability], name
        assert _stack_bytes(kernel, tmp_path) <= 32, name


def test_fewer_stages_where_shared_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    tried = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def run(*args: Any, num_stages: int) -> None:
                tried.append(num_stages)
                if num_stages > 1:
                    raise OutOfResources(200 << 10, 99 << 10, 'shared memory')

            return run

    monkeypatch.setattr(launch, '_stages_that_fit', {})
    kernel, x = Kernel(), torch.ones(1)
    launch._launch(kernel, 1, x, num_stages=3)
    launch._launch(kernel, 1, x, num_stages=3)
    assert tried == [3, 2, 1, 1]


@pytest.mark.slow
def test_sizes_that_change_compile_few_kernels(
    pretend: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO's multi-scale training, two images a GPU, in the layout of the networks: 300 iterations as compiled keys."""
    from triton.runtime.jit import JITFunction

    pretend(90)
    keys = set()

    def count(self: Any, key: str, signature: Any, device: int, *_: Any) -> Any:
        keys.add((self.__name__, key))
        return self.device_caches[device][0].setdefault(key, SimpleNamespace())

    # Private, because Triton has no other place that is told of every compilation before it happens.
    monkeypatch.setattr(JITFunction, '_do_compile', count)
    generator = random.Random(0)
    counts = []
    for _ in range(300):
        sides = [_resized(generator) for _ in range(2)]
        height, width = (math.ceil(max(side) / 32) * 32 for side in zip(*sides, strict=True))
        for stage, (channels, kernel_size) in enumerate(zip((124, 249, 499, 998), (51, 49, 47, 13), strict=True)):
            shape = (2, channels, height >> 2 + stage, width >> 2 + stage)
            _call(shape, kernel_size, torch.bfloat16, True, channels * 3 // 8)
        counts.append(len(keys))
    print(f'kernels after 1, 10, 100 and 300 iterations: {[counts[i - 1] for i in (1, 10, 100, 300)]}')
    assert counts[-1] <= 40


def _resized(generator: random.Random) -> tuple[float, float]:
    """Size of one training image after the recipe's resizing: short side 480 to 800, long side at most 1333."""
    short, ratio = generator.choice(range(480, 801, 32)), generator.uniform(0.5, 2)
    height, width = (short, short * ratio) if ratio > 1 else (short / ratio, short)
    factor = min(1, 1333 / max(height, width))
    return height * factor, width * factor
