"""What a machine with a GPU can tell about the operator and the networks, in about ten minutes.

    make gpu-check                 # on a machine with an NVIDIA GPU
    make gpu-check DRY=1           # on a CPU: every step with tiny maps, no figure of use; finds what is broken
    python -m benchmarks.gpu_check --steps operator peers

Every step is a process of its own with a budget of seconds; it writes a line after each figure, and one that fails or
runs over its budget stops no other. At the end what fell short of the targets is printed, and the table of
``benchmarks/gpu.md`` is written. Results: ``benchmarks/results/gpu_<device>.jsonl``.

Times are those of the device alone: calls are captured in a CUDA graph, over inputs that together exceed the cache, and
the replay is timed. Where a call cannot be captured, it is timed as it is launched, and its line says so.
"""

import argparse
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
PAGE = ROOT / 'benchmarks' / 'gpu.md'
MARKS = ('<!-- table of gpu_check -->', '<!-- end of the table -->')
# Seconds; ten minutes together. A dry run on a busy CPU may take ten times as long.
BUDGETS = {
    'machine': 30,
    'correctness': 130,
    'host': 20,
    'operator': 120,
    'peers': 80,
    'choice': 30,
    'networks': 110,
    'ddp': 30,
    'recipes': 60,
}
DRY_FACTOR = 10


@dataclass(frozen=True)
class Stage:
    """What one stage of a network hands to the operator: ``channels`` of which ``mixed`` are convolved."""

    images: int
    channels: int
    mixed: int
    side: int
    kernel_size: int
    center_size: int = 5


STAGES = {
    'stage 1': Stage(64, 124, 46, 56, 51),
    'stage 2': Stage(64, 249, 93, 28, 49),
    'stage 3': Stage(64, 499, 187, 14, 47),
    'stage 4': Stage(64, 998, 374, 7, 13),
    'stage 1, K 101': Stage(64, 124, 46, 56, 101, 7),
    'stage 1, 512 x 512': Stage(8, 124, 46, 128, 51),
}
DRY_STAGES = {'stage 1': Stage(2, 5, 2, 9, 13)}
# Microseconds on an H200: targets, set before anything was measured.
TARGETS = {
    ('stage 1', 'forward', 'bfloat16'): 60,
    ('stage 2', 'forward', 'bfloat16'): 28,
    ('stage 3', 'forward', 'bfloat16'): 18,
    ('stage 4', 'forward', 'bfloat16'): 12,
    ('stage 1', 'gradient of the weight', 'bfloat16'): 80,
    ('stage 1', 'forward', 'float32'): 120,
    ('stage 1, 512 x 512', 'forward', 'bfloat16'): 60,
}
HOST_TARGETS = {'host, inference': 40, 'host, forward and backward': 150}  # microseconds, the fastest tenth
# Images per second of PeLK-T over those of the same network without convolution.
OF_THE_CEILING = {'inference': 0.88, 'training': 0.75}


class Step:
    """A step's process: where it computes and writes."""

    def __init__(self, name: str, results: Path, dry: bool) -> None:
        import torch

        self.name, self.results, self.dry = name, results, dry
        self.device = 'cpu' if dry else 'cuda'
        self.stages = DRY_STAGES if dry else STAGES
        self.dtypes = [torch.bfloat16, torch.float16, torch.float32]

    def report_warnings(self) -> None:
        """Lines of the operator's warnings, as of a kernel that fails or is wrong: others take its place in silence."""
        write = self.write

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                write(what='warning', failed=record.getMessage())

        logging.getLogger('mmpelk.ops').addHandler(Handler(logging.WARNING))

    def write(self, **figures: Any) -> None:
        """A line of results."""
        line = json.dumps({'step': self.name, **figures})
        with self.results.open('a', encoding='utf-8') as file:
            file.write(line + '\n')
        print(line, flush=True)

    @contextmanager
    def guarded(self, **what: Any) -> Iterator[None]:
        """An error becomes a line, and the step goes on."""
        try:
            yield
        except Exception as error:
            self.write(**what, failed=f'{type(error).__name__}: {str(error)[:300]}')
            traceback.print_exc(limit=4)

    def time(self, call: Callable[[int], Any], sets: int, **what: Any) -> None:
        """Microseconds of ``call(i)`` for inputs ``i < sets``; written with ``what``."""
        with self.guarded(**what):
            microseconds, how = self._microseconds(call, sets)
            self.write(**what, us=round(microseconds, 1), how=how)

    def _microseconds(self, call: Callable[[int], Any], sets: int) -> tuple[float, str]:
        import torch

        for _ in range(3):  # compiles, plans, and what a library tries out
            call(0)
        one = self.seconds(partial(call, 0))
        if self.dry or one > 0.05:
            return 1e6 * one, 'one call'
        count = max(sets, min(40, int(0.004 / one)))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                call(0)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(count):
                    call(i % sets)
            graph.replay()
            replay, how = graph.replay, 'graph'
        except Exception:
            torch.cuda.synchronize()
            replay, how = (lambda: [call(i % sets) for i in range(count)]), 'launched'  # type: ignore[assignment]
        times = [self.seconds(replay) / count for _ in range(7)]
        return 1e6 * statistics.median(times), how

    def seconds(self, call: Callable[[], Any]) -> float:
        """Of one call."""
        import torch

        if self.dry:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        start_event, stop_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start_event.record()
        call()
        stop_event.record()
        stop_event.synchronize()
        return start_event.elapsed_time(stop_event) / 1e3

    def inputs(self, stage: Stage, dtype: Any, layout: str) -> tuple[tuple[int, ...], list[Any], Any, Any]:
        """Sharing grid, maps that together exceed the cache, weight, and a map as bias."""
        import torch

        from mmpelk.ops import sharing_grid

        grid = sharing_grid(stage.kernel_size, stage.center_size)
        map_bytes = stage.images * stage.mixed * stage.side**2 * dtype.itemsize
        count = 1 if self.dry else max(2, min(12, int(2.5e8 / map_bytes)))
        channels = stage.channels if layout == 'slice' else stage.mixed
        memory_format = torch.contiguous_format if layout == 'planes' else torch.channels_last
        size = stage.images, channels, stage.side, stage.side
        maps = [
            torch.randn(size, device=self.device, dtype=dtype).contiguous(memory_format=memory_format)[:, : stage.mixed]
            for _ in range(count)
        ]
        weight = torch.randn(stage.mixed, 1, len(grid), len(grid), device=self.device, dtype=dtype) / len(grid)
        bias = torch.randn(stage.side, stage.side, stage.mixed, device=self.device, dtype=dtype).permute(2, 0, 1)
        return grid, maps, weight, bias


def machine(step: Step) -> None:
    """Device, versions, what memory and tensor cores reach; how long a first call takes."""
    import torch

    from mmpelk.analysis.machine import environment_info

    step.write(**environment_info(step.device))
    if not step.dry:
        properties = torch.cuda.get_device_properties(0)
        query = ['nvidia-smi', '--query-gpu=driver_version,clocks.max.sm,power.limit', '--format=csv,noheader']
        smi = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        step.write(multiprocessors=properties.multi_processor_count, memory=properties.total_memory, smi=smi)
    size = 2 ** (16 if step.dry else 29)
    a = torch.empty(size, device=step.device, dtype=torch.bfloat16)
    b = torch.empty_like(a)
    step.time(lambda _: b.copy_(a), 1, what='copy', bytes=2 * a.nbytes)
    side = 64 if step.dry else 8192
    square = torch.randn(side, side, device=step.device, dtype=torch.bfloat16)
    step.time(lambda _: square @ square, 1, what='product of matrices', multiply_adds=side**3)
    from mmpelk.ops.backends import weight_gradient
    from mmpelk.ops.backends.calls import convolve

    grid, (x, *_), weight, bias = step.inputs(step.stages['stage 1'], torch.bfloat16, 'channels_last')
    calls = {
        'first forward': lambda: convolve(None, x, weight, bias, grid),
        'first gradient of the weight': lambda: weight_gradient(None, x, x, grid),
    }
    for what, call in calls.items():
        with step.guarded(what=what):
            step.write(what=what, seconds=round(step.seconds(call), 2))


def correctness(step: Step) -> None:
    """Every case of the interpreter compiled for this GPU; dry: two of them, in the interpreter."""
    environment = {**os.environ, **({'TRITON_INTERPRET': '1'} if step.dry else {})}
    words = ['-q', '-p', 'no:cacheprovider', '--confcutdir=tests/ops', '--tb=short', 'tests/ops/triton_cases.py']
    if step.dry:
        words += ['-k', 'test_empty']
    elif find_spec('xdist'):  # most of the time is the compiler's, on the CPU
        words += ['-n', str(min(8, os.cpu_count() or 1))]
    result = subprocess.run([sys.executable, '-m', 'pytest', *words], cwd=ROOT, env=environment, text=True, stdout=-1)
    print(result.stdout[-6000:])
    step.write(what='triton_cases', passed=result.returncode == 0, summary=result.stdout.strip().splitlines()[-1])


def host(step: Step) -> None:
    """Microseconds that the host takes to launch a call, on a map too small to wait for the device."""
    import torch

    from mmpelk.ops import peripheral_conv2d

    grid, (x, *_), weight, bias = step.inputs(Stage(2, 8, 8, 14, 47), torch.bfloat16, 'channels_last')
    inputs = x.detach().requires_grad_(), weight.detach().requires_grad_()
    grad = torch.ones_like(x)
    calls = {
        'host, inference': lambda: torch.no_grad()(peripheral_conv2d)(x, weight, grid, bias),
        'host, forward and backward': lambda: torch.autograd.grad(peripheral_conv2d(*inputs, grid), inputs, grad),
    }
    for what, call in calls.items():
        with step.guarded(what=what):
            times = []
            for _ in range(20 if step.dry else 400):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
                if not step.dry:
                    torch.cuda.synchronize()
            step.write(what=what, us=round(1e6 * sorted(times)[len(times) // 10], 1))


def operator(step: Step) -> None:
    """Every backend at every stage, in the layouts that the networks hand over and in planes."""
    import torch

    from mmpelk.ops.backends import BACKENDS, available_backends

    known = ('fft', 'dft') if step.dry else ('triton', 'triton_dft', 'fft')
    names = [name for name in known if name in available_backends()]
    for dtype in step.dtypes:
        for label, stage in step.stages.items():
            for layout in ('channels_last', 'slice', 'planes'):
                with step.guarded(stage=label, dtype=str(dtype)[6:], layout=layout):
                    grid, maps, weight, bias = step.inputs(stage, dtype, layout)
                    out, sets = torch.empty_like(maps[0]), len(maps)
                    for name in names if layout != 'planes' else names[:-1]:
                        backend = BACKENDS[name]
                        if backend.unsupported_reason(maps[0], weight, grid) is not None:
                            continue
                        forward = partial(_forward, backend, maps, weight, bias, grid, out)
                        gradient = partial(_weight_grad, backend, maps, grid)
                        row = dict(stage=label, dtype=str(dtype)[6:], layout=layout, backend=name)
                        step.time(forward, sets, what='forward', **row)
                        if layout != 'slice':
                            step.time(gradient, sets, what='gradient of the weight', **row)


def _forward(backend: Any, maps: Sequence[Any], weight: Any, bias: Any, grid: Sequence[int], out: Any, i: int) -> None:
    backend.forward(maps[i], weight, bias, grid, out)


def _weight_grad(backend: Any, maps: Sequence[Any], grid: Sequence[int], i: int) -> None:
    backend.weight_grad(maps[i], maps[(i + 1) % len(maps)], grid)


def peers(step: Step) -> None:
    """torch's depthwise convolution in every mode it has: dense kernels of a sixteenth of the batch, and 7 x 7."""
    import torch
    import torch.nn.functional as F

    from mmpelk.ops import expand_kernel

    cudnn = torch.backends.cudnn
    modes: dict[str, Any] = {'cuDNN': nullcontext, 'native': partial(cudnn.flags, enabled=False)}
    if hasattr(cudnn, 'depthwise_kernel'):  # newer than torch 2.11
        flags_of_new: Any = cudnn.flags
        modes['cuDNN, depthwise'] = partial(flags_of_new, enabled=True, depthwise_kernel=True)
    for dtype in step.dtypes[::2]:
        for label, stage in step.stages.items():
            for layout in ('channels_last', 'planes'):
                grid, maps, weight, _ = step.inputs(stage, dtype, layout)
                few = [x[: max(1, stage.images // 16)] for x in maps]
                seven = torch.randn(stage.mixed, 1, 7, 7, device=step.device, dtype=dtype)
                for mode, flags in modes.items():
                    row = dict(stage=label, dtype=str(dtype)[6:], layout=layout, mode=mode)
                    for what, kernel, inputs in (
                        ('dense, a sixteenth of the batch', expand_kernel(weight, grid), few),
                        ('7 x 7', seven, maps),
                    ):
                        padding = kernel.shape[-1] // 2
                        with flags():
                            step.time(
                                lambda i, x=inputs, w=kernel, p=padding: F.conv2d(x[i], w, padding=p, groups=len(w)),  # type: ignore[misc]
                                len(inputs),
                                what=what,
                                **row,
                            )


def choice(step: Step) -> None:
    """What measuring chooses, and what the rule says."""
    import torch

    from mmpelk import ops
    from mmpelk.ops.backends import fastest_backend
    from mmpelk.ops.backends.measured import measured_backend

    os.environ['MMPELK_BENCHMARK_CACHE'] = ''
    ops.benchmark = True
    for dtype in step.dtypes[::2]:
        for label, stage in step.stages.items():
            grid, maps, weight, bias = step.inputs(stage, dtype, 'channels_last')
            x, out = maps[0], torch.empty_like(maps[0])
            for what in ('forward', 'gradient of the weight'):
                with step.guarded(stage=label, dtype=str(dtype)[6:], what=what):
                    weight_grad = what != 'forward'
                    run = partial(_compute, weight_grad, maps, weight, bias, grid, out)
                    measured = measured_backend(x, grid, run, 'weight_grad' if weight_grad else 'forward')
                    rule = fastest_backend(x, grid, weight_grad=weight_grad)
                    step.write(stage=label, dtype=str(dtype)[6:], what=what, measured=measured, rule=rule)


def _compute(
    weight_grad: bool, maps: Sequence[Any], weight: Any, bias: Any, grid: Sequence[int], out: Any, name: str
) -> None:
    from mmpelk.ops.backends import BACKENDS

    if weight_grad:
        _weight_grad(BACKENDS[name], maps, grid, 0)
    else:
        _forward(BACKENDS[name], maps, weight, bias, grid, out, 0)


def _networks(step: Step, deploy: bool) -> Iterator[tuple[str, Any]]:
    from benchmarks.ceiling import without_mixer
    from mmpelk import freeze
    from mmpelk.models import PeLK

    tiny: Any = 'tiny'
    tiny_101: Any = 'tiny-101'
    if step.dry:
        tiny = tiny_101 = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 11, 9, 7))
    plain: dict[str, Any] = dict(conv_ratio=1.0, positional_embedding=None, deploy=deploy)
    for name, make in {
        'PeLK-T': lambda: PeLK(tiny, deploy=deploy),
        **({'PeLK-T, frozen': lambda: freeze(PeLK(tiny, deploy=True))} if deploy else {}),
        'PeLK-T without convolution': lambda: without_mixer(PeLK(tiny)),
        'PeLK-101-T': lambda: PeLK(tiny_101, deploy=deploy),
        '7 x 7': lambda: PeLK(tiny, mixer='conv7', **plain),
        'SLaK-T': lambda: PeLK(tiny, mixer='stripe', **plain),
    }.items():
        import torch

        with step.guarded(network=name):
            yield name, make().to(step.device, memory_format=torch.channels_last).train(not deploy)


def networks(step: Step) -> None:
    """Whole networks, channels last: inference and a training step, images per second and peak memory."""
    import torch

    batch, side = (2, 32) if step.dry else (64, 224)
    x = torch.randn(batch, 3, side, side, device=step.device).contiguous(memory_format=torch.channels_last)
    for dtype in step.dtypes:
        for what in ('inference', 'training'):
            for name, network in _networks(step, what == 'inference'):
                row = dict(network=name, what=what, dtype=str(dtype)[6:])
                call = partial(_inference if what == 'inference' else _training, network, x, dtype)
                with step.guarded(**row):
                    for _ in range(3):
                        call()
                    if not step.dry:
                        torch.cuda.reset_peak_memory_stats()
                    seconds = statistics.median(step.seconds(call) for _ in range(3 if step.dry else 10))
                    peak = None if step.dry else torch.cuda.max_memory_allocated()
                    step.write(**row, images_per_second=round(batch / seconds, 1), peak_bytes=peak)


def _autocast(x: Any, dtype: Any) -> Any:
    import torch

    return torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32)


def _inference(network: Any, x: Any, dtype: Any) -> None:
    import torch

    with torch.no_grad(), _autocast(x, dtype):
        network(x)


def _training(network: Any, x: Any, dtype: Any) -> None:
    with _autocast(x, dtype):
        loss = sum(out.float().square().mean() for out in network(x))
    loss.backward()
    for parameter in network.parameters():
        parameter.grad = None


def ddp(step: Step) -> None:
    """Steps of mixed-precision training under DistributedDataParallel, with synchronised batch norms on a GPU."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group('gloo' if step.dry else 'nccl', store=store, rank=0, world_size=1)
    batch, side = (2, 32) if step.dry else (32, 224)
    x = torch.randn(batch, 3, side, side, device=step.device).contiguous(memory_format=torch.channels_last)
    for name, network in _networks(step, False):
        for dtype in step.dtypes[:2]:
            with step.guarded(network=name, dtype=str(dtype)[6:]):
                module = network if step.dry else torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
                model = DistributedDataParallel(module)
                optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
                scaler = torch.amp.GradScaler(step.device, enabled=dtype == torch.float16 and not step.dry)
                losses = []
                for _ in range(3):
                    with _autocast(x, dtype):
                        loss = sum(out.float().square().mean() for out in model(x))
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    losses.append(float(loss.detach()))
                step.write(
                    network=name,
                    dtype=str(dtype)[6:],
                    losses=losses,
                    passed=bool(torch.tensor(losses).isfinite().all()),
                    summary=f'losses of {name} in {str(dtype)[6:]}: {losses}',
                )
    torch.distributed.destroy_process_group()


RECIPES = ('cls/pelk_t_in1k.py', 'seg/upernet_pelk_t_ade20k.py', 'det/mask_rcnn_pelk_t_coco_1x.py')


def recipes(step: Step) -> None:
    """A training step of a recipe of every task as its runner takes it: mixed precision, DDP, synchronised batch norms.

    Dry: in float32 with plain batch norms, one block a stage and 16 regions an image, on images of 64 x 64.
    """
    import torch
    from mmengine.config import Config
    from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
    from mmengine.optim import AmpOptimWrapper, OptimWrapper
    from mmengine.registry import MODELS, init_default_scope

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group('gloo' if step.dry else 'nccl', store=store, rank=0, world_size=1)
    for recipe in RECIPES:
        for dtype in (None,) if step.dry else ('float16', 'bfloat16'):
            with step.guarded(recipe=recipe, dtype=dtype):
                config = Config.fromfile(ROOT / 'configs' / recipe)
                if step.dry:
                    config.model.backbone.depths = (1, 1, 1, 1)
                    if 'roi_head' in config.model:
                        config.model.train_cfg.rcnn.sampler.num = 16
                init_default_scope(config.default_scope)
                model = MODELS.build(config.model)
                model = revert_sync_batchnorm(model) if step.dry else model
                model = MMDistributedDataParallel(model.to(step.device).train(), find_unused_parameters=True)
                optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
                wrapper = (
                    OptimWrapper(optimizer) if dtype is None else AmpOptimWrapper(dtype=dtype, optimizer=optimizer)
                )
                batch = _batch(config.default_scope, 64 if step.dry else 256)
                losses = [model.train_step(batch, wrapper) for _ in range(1 if step.dry else 2)]
                finite = all(
                    bool(torch.isfinite(torch.as_tensor(value)).all())
                    for step_losses in losses
                    for value in step_losses.values()
                )
                step.write(
                    recipe=recipe,
                    dtype=dtype,
                    loss=float(torch.as_tensor(losses[-1]['loss']).detach()),
                    passed=finite,
                    summary=f'losses of {recipe} in {dtype}',
                )
    torch.distributed.destroy_process_group()


def _batch(scope: str, side: int) -> dict[str, Any]:
    """Two random images with the labels of a task, as its data loader gives them."""
    import torch

    images = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in range(2)]
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(2, [[3, side, side]] * 2, num_classes=80, with_mask=True)
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        meta = dict(img_shape=(side, side), ori_shape=(side, side))
        labels = [PixelData(data=torch.randint(0, 150, (1, side, side))) for _ in images]
        return dict(inputs=images, data_samples=[SegDataSample(gt_sem_seg=label, metainfo=meta) for label in labels])
    from mmpretrain.structures import DataSample

    return dict(inputs=images, data_samples=[DataSample().set_gt_label(label) for label in range(2)])


STEPS: dict[str, Callable[[Step], None]] = {
    'machine': machine,
    'correctness': correctness,
    'host': host,
    'operator': operator,
    'peers': peers,
    'choice': choice,
    'networks': networks,
    'ddp': ddp,
    'recipes': recipes,
}


def run_steps(names: Sequence[str], results: Path, dry: bool) -> None:
    """Run each step in a process of its own, and write a line with its end."""
    for name in names:
        command = [sys.executable, '-u', '-m', 'benchmarks.gpu_check', '--step', name, '--results', str(results)]
        print(f'== {name}', flush=True)
        start, budget = time.monotonic(), BUDGETS[name] * (DRY_FACTOR if dry else 1)
        try:
            code: Any = subprocess.run([*command, *(['--dry'] if dry else [])], cwd=ROOT, timeout=budget).returncode
        except subprocess.TimeoutExpired:
            code = f'over its budget of {budget} s'
        with results.open('a', encoding='utf-8') as file:
            file.write(json.dumps({'step': name, 'ended': code, 'seconds': round(time.monotonic() - start)}) + '\n')


def shortfalls(rows: Sequence[dict[str, Any]], targets: bool = True) -> list[str]:
    """What failed, and what misses a target."""
    short = [f'{row["step"]}: ended with {row["ended"]}' for row in rows if row.get('ended', 0) != 0]
    short += [f'{row["step"]}: {_words(row)}: {row["failed"]}' for row in rows if 'failed' in row]
    short += [f'{row["step"]}: {row["summary"]}' for row in rows if row.get('passed') is False]
    if not targets:
        return short
    ours: dict[tuple[str, str, str], dict[str, Any]] = {}  # the faster of the Triton backends
    for row in rows:
        if row.get('layout') == 'channels_last' and row.get('backend', '').startswith('triton') and 'us' in row:
            case = row['stage'], row['what'], row['dtype']
            ours[case] = min(ours.get(case, row), row, key=lambda row: row['us'])
    for case, row in ours.items():
        target = TARGETS.get(case)
        if target and row['us'] > target:
            short.append(f'{_words(row)}: {row["us"]} microseconds, the target is {target}')
    if any(row['step'] == 'operator' for row in rows):
        short += [f'operator: {", ".join(case)}: no figure of a Triton backend' for case in TARGETS if case not in ours]
    for row in rows:
        target = HOST_TARGETS.get(row.get('what', ''))
        if target and row.get('us', 0) > target:
            short.append(f'{_words(row)}: {row["us"]} microseconds, the target is {target}')
    speeds = {
        (row['network'], row['what'], row['dtype']): row['images_per_second']
        for row in rows
        if 'images_per_second' in row
    }
    for (network, what, dtype), speed in speeds.items():
        ceiling = speeds.get(('PeLK-T without convolution', what, dtype))
        if network == 'PeLK-T' and ceiling and speed < OF_THE_CEILING[what] * ceiling:
            short.append(
                f'PeLK-T, {what}, {dtype}: {speed / ceiling:.0%} of the network without convolution, '
                f'the target is {OF_THE_CEILING[what]:.0%}'
            )
    return short


def _words(row: dict[str, Any]) -> str:
    keys = ('network', 'stage', 'what', 'dtype', 'layout', 'backend', 'mode')
    return ', '.join(str(row[key]) for key in keys if key in row)


def page_table(rows: Sequence[dict[str, Any]]) -> str:
    """The operator's times in the layout of the networks, and the networks' speed."""
    lines = ['| stage | what | dtype | backend | microseconds | target, H200 |', '|---|---|---|---|---|---|']
    for row in rows:
        if row['step'] == 'operator' and row.get('layout') == 'channels_last' and 'us' in row:
            target = TARGETS.get((row['stage'], row['what'], row['dtype']), '')
            cells = row['stage'], row['what'], row['dtype'], row['backend'], row['us'], target
            lines.append(f'| {" | ".join(map(str, cells))} |')
    lines += ['', '| network | what | dtype | images/s |', '|---|---|---|---|']
    for row in rows:
        if 'images_per_second' in row:
            lines.append(f'| {row["network"]} | {row["what"]} | {row["dtype"]} | {row["images_per_second"]} |')
    return '\n'.join(lines)


def write_page(table: str, page: Path) -> None:
    """Put the table between the marks of the page."""
    start, end = MARKS
    text = PAGE.read_text(encoding='utf-8')
    head, tail = text[: text.index(start) + len(start)], text[text.index(end) :]
    page.write_text(f'{head}\n\n{table}\n\n{tail}', encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dry', action='store_true', help='on a CPU, with tiny maps')
    parser.add_argument('--steps', nargs='+', choices=STEPS, default=list(STEPS), help='all by default')
    parser.add_argument(
        '--out', type=Path, help='folder of the results; default: benchmarks/results, dry: build/gpu_check'
    )
    parser.add_argument('--step', choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument('--results', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step = Step(args.step, args.results, args.dry)
        step.report_warnings()
        STEPS[args.step](step)
        return
    import torch

    if not args.dry and not torch.cuda.is_available():
        parser.error('there is no CUDA device; DRY=1 (--dry) runs every step on the CPU')
    name = 'dry' if args.dry else re.sub(r'\W+', '_', torch.cuda.get_device_name().lower())
    folder = args.out or (ROOT / 'build' / 'gpu_check' if args.dry else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f'gpu_{name}.jsonl'
    results.write_text('', encoding='utf-8')
    run_steps(args.steps, results, args.dry)
    rows = [json.loads(line) for line in results.read_text(encoding='utf-8').splitlines()]
    write_page(page_table(rows), folder / 'gpu.md' if args.dry else PAGE)
    short = shortfalls(rows, targets=not args.dry)
    print('\n'.join(['', f'results: {results}', 'what fell short:', *(f'  {line}' for line in short or ['nothing'])]))
    if args.dry and short:
        sys.exit(1)


if __name__ == '__main__':
    main()
