"""The Triton kernels through the compiler, without a GPU: registers, shared memory, loads, number of kernels."""

import math
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
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

from mmpelk.ops.backends.triton import (  # noqa: E402
    dft,
    dft_kernels,
    kernels,
    launch,
    norm,
    norm_kernels,
    training_norm,
    training_norm_kernels,
)

KERNELS = ('toeplitz_kernel', 'conv_kernel', 'weight_grad_kernel', 'add_shares_kernel', 'planes_kernel')
DFT_KERNELS = ('dft_spectrum_kernel', 'dft_conv_kernel', 'dft_weight_grad_kernel', 'dft_add_shares_kernel')
# Bytes of shared memory that a block can have, by compute capability (CUDA C++ Programming Guide, technical
# specifications per compute capability).
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}

# Bytes of a thread's registers that may lie in memory: what the kernels of float32 were brought down to.
SPILLED = {torch.bfloat16: 0, torch.float16: 0, torch.float32: 64}


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
                    which = options.get('BIAS_MAP', options.get('BACK', ''))
                    compiled[f'{self.kernel.__name__}-{which}'] = self.kernel.warmup(*args, grid=grid, **options)

                return compile_only

        norms = norm, ('mixed_norm_kernel',), norm_kernels
        training = training_norm, training_norm_kernels.__all__, training_norm_kernels
        for module, names, of in ((launch, KERNELS, kernels), (dft, DFT_KERNELS, dft_kernels), norms, training):
            stand_ins = {name: Compiling(getattr(of, name)) for name in names}
            monkeypatch.setattr(module, of.__name__.rsplit('.', 1)[1], SimpleNamespace(**stand_ins))
            for name in names:  # what was compiled for another device
                getattr(of, name).device_caches.clear()
        # Private, because ``reset_active`` looks for a GPU.
        monkeypatch.setattr(triton.runtime.driver, '_active', _Device(capability))
        for module in (backend, launch):
            monkeypatch.setattr(module, 'capability', lambda device: divmod(capability, 10))
        monkeypatch.setattr(launch, '_calls', {})
        monkeypatch.setattr(dft, '_tables', {})
        return compiled

    return pretend_device


def _stack_bytes(kernel: Any, folder: Path) -> int:
    """Bytes per thread that the assembler spilled, as ``cuobjdump`` reads them from the binary."""
    binary = folder / 'kernel.cubin'
    binary.write_bytes(kernel.asm['cubin'])
    command = [triton.knobs.nvidia.cuobjdump.path, '-res-usage', binary]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r'STACK:(\d+)', usage)[1])  # type: ignore[index]


def _call(
    shape: tuple[int, ...],
    kernel_size: int,
    dtype: torch.dtype,
    layout: str,
    mixed: int,
    weight_grad: bool = True,
    of: ModuleType = launch,
) -> None:
    """The operator on the first ``mixed`` channels of a map, and its gradients.

    In training the networks hand over those channels alone, channels last; deployed a slice of all; never ``planes``.
    """
    grid = sharing_grid(kernel_size, 7 if kernel_size > 51 else 5)
    memory_format = torch.contiguous_format if layout == 'planes' else torch.channels_last
    x = torch.empty(shape, dtype=dtype, device='meta').contiguous(memory_format=memory_format)[:, :mixed]
    x = x if layout == 'slice' else x.contiguous(memory_format=memory_format)
    weight = torch.empty(mixed, 1, len(grid), len(grid), dtype=dtype, device='meta')
    of.forward(x, weight, None, grid, torch.empty_strided(x.shape, x.stride(), dtype=dtype, device='meta'))
    bias = torch.empty(*x.shape[2:], mixed, dtype=dtype, device='meta').permute(2, 0, 1)  # as the positional term is
    of.forward(x, weight, bias.contiguous() if layout == 'planes' else bias, grid)
    if weight_grad:
        of.weight_grad(x, x, grid)


def _call_norms_in_training(shape: tuple[int, ...], mixed: int, dtype: torch.dtype, of_map: torch.dtype) -> None:
    """Norms of a block of ``mixed`` channels in ``dtype``, whose map has another."""
    images, channels, height, width = shape

    def draw(channels: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(images, height, width, channels, dtype=dtype, device='meta').permute(0, 3, 1, 2)

    maps = draw(mixed, dtype), draw(mixed, dtype), draw(channels, of_map)
    parameters = [torch.empty(width, device='meta') for width in [mixed] * 4 + [channels] * 2]
    running = [*parameters[:2], torch.empty((), dtype=torch.int64, device='meta')] * 2
    assert training_norm.takes(maps[2], parameters, running, dtype)
    out, stats = training_norm.forward(maps, parameters, running, [0.1, 0.1], [1e-5, 1e-5, 1e-6], dtype)
    training_norm.backward(out, maps, stats, parameters, 1e-6)


def _narrow_accesses(kernel: Any) -> list[str]:
    """Reads and writes of single 16-bit numbers of the device's memory."""
    return re.findall(r'(?:ld|st)\.global\.[a-z0-9_.:]*b16', kernel.asm['ptx'])


# Batch 64 at 224 x 224, and two images of segmentation; PeLK-101 and PeLK-151 at 384 x 384, whose windows are the
# largest. Channels: all, and those that are convolved.
STAGES = {
    'T-stage1': ((64, 124, 56, 56), 51, 46),
    'T-stage2': ((64, 249, 28, 28), 49, 93),
    'T-stage3': ((64, 499, 14, 14), 47, 187),
    'T-stage4': ((64, 998, 7, 7), 13, 374),
    'ade-stage1': ((2, 124, 128, 128), 51, 46),
    'B-101-stage1': ((64, 166, 96, 96), 101, 62),
    'T-151-stage1': ((32, 124, 96, 96), 151, 46),
}


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('stage', STAGES)
def test_kernels_of_the_networks_compiled_for_hopper(
    pretend: Callable[[int], dict[str, Any]], dtype: torch.dtype, stage: str, tmp_path: Path
) -> None:
    """The compiler sees types and layouts that the interpreter does not, and its output decides the speed."""
    compiled = pretend(90)
    shape, kernel_size, mixed = STAGES[stage]
    for layout in ('slice', 'channels_last'):
        _call(shape, kernel_size, dtype, layout, mixed, layout == 'channels_last')
        assert 'wgmma.mma_async' in compiled['conv_kernel-True'].asm['ptx']
        for name, kernel in compiled.items():
            assert kernel.metadata.shared <= SHARED_MEMORY[90], name
            assert _stack_bytes(kernel, tmp_path) == 0, (name, layout)
            if name.startswith(('conv', 'weight')):
                assert not _narrow_accesses(kernel), (name, layout)
            if name.startswith('planes'):
                # An odd number of channels begins at any even address; neighbouring threads still move neighbours.
                wide = 'st' if name.endswith('False') else 'ld'
                assert not [found for found in _narrow_accesses(kernel) if found.startswith(wide)], (name, layout)
                if mixed % 2 == shape[1] % 2 == 0:
                    assert not _narrow_accesses(kernel), (name, layout)
    assert {name.split('-')[0] for name in compiled} == set(KERNELS)


@pytest.mark.slow
def test_planes_are_read_where_they_are(pretend: Callable[[int], dict[str, Any]]) -> None:
    compiled = pretend(90)
    _call((64, 46, 56, 56), 51, torch.bfloat16, 'planes', 46)
    assert {name.split('-')[0] for name in compiled} == set(KERNELS) - {'planes_kernel'}


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('capability', SHARED_MEMORY)
def test_no_gpu_runs_out_of_shared_memory_or_registers(
    pretend: Callable[[int], dict[str, Any]], capability: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    compiled = pretend(capability)
    for stage in ('T-stage1', 'T-stage3', 'B-101-stage1', 'T-151-stage1'):
        shape, kernel_size, mixed = STAGES[stage]
        _call(shape, kernel_size, dtype, 'channels_last', mixed)
        for name, kernel in compiled.items():
            assert kernel.metadata.shared <= SHARED_MEMORY[capability], name
            spilled = _stack_bytes(kernel, tmp_path)
            print(f'{capability} {dtype} {stage} {name}: {spilled} bytes spilled')
            assert spilled <= SPILLED[dtype], name
            assert not name.startswith(('conv', 'weight')) or not _narrow_accesses(kernel), (name, stage)


# Bytes that the kernels of ``triton_dft`` spill at most, where they spill any.
DFT_SPILLED = {
    (90, 'T-stage1', torch.float16): 56,
    (80, 'ade-stage1', torch.float16): 8,
    (80, 'T-stage2', torch.bfloat16): 16,
    (80, 'T-stage3', torch.bfloat16): 8,
}


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('capability', [80, 86, 90, 120])
def test_dft_kernels_compiled(
    pretend: Callable[[int], dict[str, Any]],
    capability: int,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = pretend(capability)
    of_large_maps = 'ade-stage1', 'B-101-stage1', 'T-151-stage1'
    for stage in ('T-stage1', 'T-stage2', 'T-stage3', *of_large_maps):
        shape, kernel_size, mixed = STAGES[stage]
        if stage in of_large_maps and capability not in (80, 90):  # which refuse them
            continue
        x = SimpleNamespace(dtype=dtype, device=torch.device('cuda'), shape=shape, is_cuda=True)
        if backend.dft_unsupported_reason(x, sharing_grid(kernel_size)) is not None:  # type: ignore[arg-type]
            assert dtype == torch.float16
            assert shape[-1] > 64
            continue
        compiled.clear()
        _call(shape, kernel_size, dtype, 'channels_last', mixed, of=dft)
        assert {name.split('-')[0] for name in compiled} == {*DFT_KERNELS, 'planes_kernel'}
        for name, kernel in compiled.items():
            assert kernel.metadata.shared <= SHARED_MEMORY[capability], name
            spilled = _stack_bytes(kernel, tmp_path)
            print(f'{capability} {dtype} {stage} {name}: {spilled} bytes spilled')
            assert spilled <= DFT_SPILLED.get((capability, stage, dtype), 0), (stage, name)
            if name.startswith(('dft_conv', 'dft_weight')):
                assert ('wgmma.mma_async' if capability == 90 else 'mma.sync') in kernel.asm['ptx']
                # The weight is read once.
                wide = [found for found in _narrow_accesses(kernel) if found.startswith('st')]
                assert not wide, (stage, name)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('capability', SHARED_MEMORY)
def test_norms_of_a_block_compiled(
    pretend: Callable[[int], dict[str, Any]], capability: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """No spills, and neighbouring threads read and write neighbouring channels, at least 4 bytes each."""
    compiled = pretend(capability)
    for channels, mixed in ((124, 46), (499, 187), (1331, 499)):
        large, small, x = (
            torch.empty(2, 7, 7, width, dtype=dtype, device='meta').permute(0, 3, 1, 2)
            for width in (mixed, mixed, channels)
        )
        of_mixed, of_all = (torch.empty(width, device='meta') for width in (mixed, channels))
        norm.mixed_norm(large, small, x, [([of_mixed] * 4, 1e-5)] * 2, ([of_all] * 2, 1e-6), dtype)
        (kernel,) = compiled.values()
        assert _stack_bytes(kernel, tmp_path) == 0, channels
        layout = re.search(r'threadsPerWarp = \[1, 32\].*order = \[1, 0\]', kernel.asm['ttgir'])
        assert layout, channels
        assert not _narrow_accesses(kernel), channels


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('capability', SHARED_MEMORY)
def test_norms_of_a_block_in_training_compiled(
    pretend: Callable[[int], dict[str, Any]], capability: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """No spills in 16 bits; and no access of 2 bytes, for odd channels either, but for more of them than two pixels of
    a row may have. Under autocast the map is in float32 or not.

    Maps are of an even number of pixels, as the networks' are for images of sides that are multiples of 32.
    """
    compiled = pretend(capability)
    for channels, mixed in ((124, 46), (249, 93), (1331, 499)):
        for of_map in {dtype, torch.float32}:
            _call_norms_in_training((64, channels, 14, 14), mixed, dtype, of_map)
            assert len(compiled) == 6
            for name, kernel in compiled.items():
                spilled = _stack_bytes(kernel, tmp_path)
                assert spilled <= (SPILLED[dtype] if name.startswith('norm_grads') else 0), (name, channels)
                assert channels > 1024 or not _narrow_accesses(kernel), (name, channels)


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
    launch.start(kernel, (1,), (x,), num_stages=3)
    launch.start(kernel, (1,), (x,), num_stages=3)
    assert tried == [3, 2, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_sizes_that_change_compile_few_kernels(
    pretend: Callable[[int], dict[str, Any]], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO's multi-scale training, two images a GPU, in the layout of the networks: 1000 iterations as compiled keys.

    Under autocast the map of a stage's first block is in ``dtype``, those of the others in float32.
    """
    from triton.runtime.jit import JITFunction

    pretend(90)
    keys = set()

    def count(self: Any, key: str, signature: Any, device: int, *_: Any) -> Any:
        keys.add((self.__name__, key))
        return self.device_caches[device][0].setdefault(key, SimpleNamespace())

    # Private, because Triton has no other place that sees every compilation before it happens.
    monkeypatch.setattr(JITFunction, '_do_compile', count)
    generator = random.Random(0)
    counts, seen = [], set()
    for _ in range(1000):
        sides = [_resized(generator) for _ in range(2)]
        height, width = (math.ceil(max(side) / 32) * 32 for side in zip(*sides, strict=True))
        stages = [] if (height, width) in seen else zip((124, 249, 499, 998), (51, 49, 47, 13), strict=True)
        seen.add((height, width))
        for stage, (channels, kernel_size) in enumerate(stages):
            shape = (2, channels, height >> 2 + stage, width >> 2 + stage)
            _call(shape, kernel_size, dtype, 'channels_last', channels * 3 // 8)
            for of_map in {dtype, torch.float32}:
                _call_norms_in_training(shape, channels * 3 // 8, dtype, of_map)
        counts.append(len(keys))
    print(f'{dtype}: kernels after 1, 10, 100 and 1000 iterations: {[counts[i - 1] for i in (1, 10, 100, 1000)]}')
    assert {'conv_kernel', 'weight_grad_kernel', 'apply_kernel', 'grads_kernel'} <= {name for name, _ in keys}
    assert counts[-1] <= 40


def _resized(generator: random.Random) -> tuple[float, float]:
    """Size of one training image after the recipe's resizing: short side 480 to 800, long side at most 1333."""
    short, ratio = generator.choice(range(480, 801, 32)), generator.uniform(0.5, 2)
    height, width = (short, short * ratio) if ratio > 1 else (short / ratio, short)
    factor = min(1, 1333 / max(height, width))
    return height * factor, width * factor
