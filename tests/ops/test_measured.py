"""The choice by measuring: what is timed, what is kept, and where the rule stays."""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpelk import ops
from mmpelk.ops import peripheral_conv2d, sharing_grid
from mmpelk.ops.backends import BACKENDS as TABLE
from mmpelk.ops.backends import fastest_backend, measured, table
from mmpelk.ops.prepared import prepare
from mmpelk.ops.sharing_grid import mirror_half_grid
from tests.ops.inputs import Recording

GRID = sharing_grid(13)


class Clock:
    """Stands in for timing: the seconds of each backend, and what was timed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = {'dense': 3.0, 'dft': 2.0, 'fft': 1.0}
        self.timed: list[str] = []
        monkeypatch.setattr(measured, '_seconds', self.time)
        monkeypatch.setattr('mmpelk.ops.backends.calls.BACKENDS', table := Recording())
        self.used = table.used

    def time(self, x: Tensor, call: Callable[[], Any], in_a_row: int = 1) -> float:
        name = call.args[0]  # type: ignore[attr-defined]
        self.timed.append(name)
        return self.seconds[name]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / 'cache' / 'folder' / 'answers.json'
    monkeypatch.setenv('MMPELK_BENCHMARK_CACHE', str(path))
    monkeypatch.setattr(ops, 'benchmark', True)
    _forget(monkeypatch)
    return path


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(measured, '_answers', {})
    monkeypatch.setattr(measured, '_shapes', {})


def _call(clock: Clock, height: int = 9, channels: int = 2, grid: Sequence[int] = GRID, **tensor: Any) -> str:
    """The backend that computes a call in the end."""
    x, weight = torch.randn(1, channels, height, 8, **tensor), torch.randn(channels, 1, len(grid), len(grid), **tensor)
    peripheral_conv2d(x, weight, grid)
    return clock.used[-1]


def test_the_fastest_is_taken_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert _call(clock) == 'fft'
    assert set(clock.timed) == {'dense', 'dft', 'fft'}
    clock.timed.clear()
    assert _call(clock) == 'fft'
    _forget(monkeypatch)
    clock.seconds['dense'] = 0.1
    assert _call(clock) == 'fft'  # of the file
    assert not clock.timed
    assert _call(clock, 10) == 'dense'
    assert sorted(json.loads(cache.read_text(encoding='utf-8'))['answers'].values()) == ['dense', 'fft']
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]  # nothing temporary is left


@pytest.mark.parametrize(
    ('of', 'value'),
    [
        ('torch.get_num_threads', lambda: 99),
        ('torch.__version__', '99.0'),
        ('torch.backends.cpu.get_cpu_capability', lambda: 'other'),
    ],
)
def test_an_answer_of_another_machine_does_not_count(
    of: str, value: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    assert _call(clock) == 'fft'
    _forget(monkeypatch)
    clock.seconds['dense'] = 0.1
    monkeypatch.setattr(of, value)
    assert _call(clock) == 'dense'


@pytest.mark.parametrize('new_process', [False, True])
def test_what_an_answer_is_of(new_process: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert _call(clock) == 'fft'
    clock.seconds['dense'] = 0.1
    for changes in (
        dict(height=8),
        dict(channels=3),
        dict(grid=mirror_half_grid([4, 1, 1, 1])),
        dict(dtype=torch.double),
    ):
        if new_process:
            _forget(monkeypatch)
        assert _call(clock) == 'fft'
        clock.timed.clear()
        assert _call(clock, **changes) == 'dense', changes
        assert clock.timed
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 99)
    assert _call(clock) == 'dense'


def test_how_often_each_backend_is_timed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    # Once, and again for 0.3 s at most, at most five times; but not what takes more than four times the fastest's.
    for height, slowest, times in ((8, 0.05, 1), (9, 0.035, 1 + 5)):
        clock.seconds = {'dense': slowest, 'dft': 0.07, 'fft': 0.01}
        clock.timed.clear()
        assert _call(clock, height) == 'fft'
        assert Counter(clock.timed) == {'dft': 1 + 4, 'fft': 1 + 5, 'dense': times}
        assert clock.timed[-1] == 'dense', 'the slowest last'
    for most, timed in ((10 * 2 * 8 * 13**2, True), (10 * 2 * 8 * 13**2 - 1, False)):  # multiply-adds
        monkeypatch.setattr(measured, '_MOST_DENSE', most)
        _forget(monkeypatch)
        monkeypatch.setenv('MMPELK_BENCHMARK_CACHE', '')
        clock.timed.clear()
        _call(clock, 10)
        assert ('dense' in clock.timed) == timed


def test_a_backend_that_has_failed_is_neither_timed_nor_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    x = torch.empty(1, 2, 9, 8)
    assert _call(clock) == 'fft'
    monkeypatch.setattr(table, '_refusals', {})
    table.refuse('fft', x, True, 'of the gradient of the weight')
    table.refuse('fft', x.double(), False, 'of another dtype')
    assert _call(clock) == 'fft'
    table.refuse('fft', x, False, 'a driver')
    assert _call(clock) == fastest_backend(x, GRID) != 'fft', 'the rule'
    clock.timed.clear()
    assert _call(clock, 10) == 'dft'
    assert 'fft' not in clock.timed


def test_a_gradient_that_has_failed_is_not_taken_from_an_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    x, run = torch.empty(1, 2, 9, 8), lambda name: name
    monkeypatch.setattr(table, '_refusals', {})
    kinds: tuple[measured.What, ...] = ('forward', 'prepared', 'weight_grad')
    assert [measured.measured_backend(x, GRID, run, what) for what in kinds] == ['fft'] * 3
    table.refuse('fft', x, True, 'a driver')
    assert [measured.measured_backend(x, GRID, run, what) for what in kinds] == ['fft', 'fft', None]
    table.refuse('fft', x, False, 'a driver')
    assert [measured.measured_backend(x, GRID, run, what) for what in kinds] == [None] * 3


def test_where_answers_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv('MMPELK_BENCHMARK_CACHE', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert measured.cache_file() == tmp_path / 'xdg' / 'mmpelk' / 'fastest_backends.json'
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert measured.cache_file() == tmp_path / '.cache' / 'mmpelk' / 'fastest_backends.json'
    for given, path in (('', None), ('other.json', Path('other.json'))):
        monkeypatch.setenv('MMPELK_BENCHMARK_CACHE', given)
        assert measured.cache_file() == path


def test_a_file_of_another_format_is_written_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert _call(clock) == 'fft'
    content = json.loads(cache.read_text(encoding='utf-8'))
    cache.write_text(json.dumps(content | dict(format=content['format'] + 1)), encoding='utf-8')
    _forget(monkeypatch)
    clock.seconds['dense'] = 0.1
    assert _call(clock) == 'dense'
    assert json.loads(cache.read_text(encoding='utf-8'))['format'] == content['format']


def test_the_new_name_of_the_flag_of_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is set, torch refuses to tell the old flag."""
    matmul, device = torch.backends.cuda.matmul, torch.device('cuda', 0)
    monkeypatch.setitem(measured._machines, device, 'a GPU')
    assert measured._machine(device) == f'a GPU, tf32 {matmul.allow_tf32}'
    try:
        before = matmul.fp32_precision
    except (AttributeError, AssertionError):
        pytest.skip('it came with torch 2.9')
    try:
        matmul.fp32_precision = 'tf32'
        with pytest.raises(RuntimeError):
            _ = matmul.allow_tf32
        assert measured._machine(device) == 'a GPU, tf32 True'
    finally:
        matmul.fp32_precision = before


def test_each_memory_format_is_measured_by_itself(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert _call(clock) == 'fft'
    clock.seconds['dense'] = 0.1
    x = torch.randn(1, 2, 9, 8).contiguous(memory_format=torch.channels_last)
    peripheral_conv2d(x, torch.randn(2, 1, len(GRID), len(GRID)), GRID)
    assert clock.used[-1] == 'dense'
    assert _call(clock) == 'fft'


def test_each_gradient_is_measured_by_itself(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    x, weight = torch.randn(1, 2, 9, 8), torch.randn(2, 1, len(GRID), len(GRID), requires_grad=True)
    out = peripheral_conv2d(x, weight, GRID)
    clock.seconds = {'dense': 1.0, 'dft': 0.5, 'fft': 2.0}
    out.sum().backward()
    assert clock.used[-1] == 'dft'
    assert sorted(json.loads(cache.read_text(encoding='utf-8'))['answers'].values()) == ['dft', 'fft']


@pytest.mark.parametrize(
    'content',
    [
        *('{', '[]', '{"format": 1, "answers": {"a": "no backend"}}', '{"format": 1}', '\x00'),
        *('{"format": 1, "answers": ["dft"]}', '[' * 100_000),
    ],
    ids=lambda content: content[:40],
)
def test_a_broken_file_is_ignored(
    content: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content, encoding='utf-8')
    clock = Clock(monkeypatch)
    assert _call(clock) == 'fft'
    assert f'{cache} is ignored' in caplog.text
    assert list(json.loads(cache.read_text(encoding='utf-8'))['answers'].values()) == ['fft']


def test_a_file_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text('not a folder')
    clock = Clock(monkeypatch)
    assert _call(clock) == _call(clock) == 'fft'
    assert sorted(clock.timed) == ['dense', 'dft', 'fft']  # seconds long: none is repeated, and the answer lasts


def test_a_file_that_cannot_be_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left beside it: another disk's file could not take its place at once."""
    folders: list[Path] = []

    def replace_file(source: str, target: Path) -> None:
        folders.append(Path(source).parent)
        raise PermissionError(source)

    monkeypatch.setattr(os, 'replace', replace_file)
    assert _call(Clock(monkeypatch)) == 'fft'
    assert folders == [cache.parent]
    assert not list(cache.parent.iterdir())


def test_what_is_timed_has_run_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call compiles, plans and allocates."""
    did: list[str] = []
    monkeypatch.setattr(measured, '_seconds', lambda x, call, in_a_row=1: did.append('is timed') or 1.0)
    measured._measure(torch.empty(1, 2, 9, 8), GRID, did.append, 'forward')
    assert sorted(did[::2]) == ['dense', 'dft', 'fft']
    assert did[1::2] == ['is timed'] * 3


def test_the_least_of_all_times_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        name: iter(each) for name, each in dict(dft=[0.03, 0.03, 0.001, 0.03, 0.03, 0.03], fft=[0.003] * 6).items()
    }
    timed: list[tuple[str, int]] = []

    def time(x: Tensor, call: Callable[[], Any], in_a_row: int = 1) -> float:
        name = call.args[0]  # type: ignore[attr-defined]
        timed.append((name, in_a_row))
        return next(seconds[name])

    monkeypatch.setattr(measured, '_seconds', time)
    monkeypatch.setattr(measured, '_candidates', lambda *_: ['dft', 'fft'])
    assert measured._measure(torch.empty(1, 2, 9, 8), GRID, str, 'forward') == 'dft'
    assert timed == [(name, in_a_row) for name in ('dft', 'fft') for in_a_row in (1, 4, 4, 4, 4, 4)]


@pytest.mark.parametrize('triton', ['3.5.1', None])
def test_what_a_measurement_on_cuda_holds_for(triton: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if triton is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return {'triton': triton}[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    monkeypatch.setattr(torch.cuda, 'get_device_name', {torch.device('cuda', 1): 'H200'}.__getitem__)
    monkeypatch.setattr(torch.backends.cudnn, 'version', lambda: 91002)
    monkeypatch.setattr(measured, '_machines', {})
    for tf32 in (True, False):
        monkeypatch.setattr(measured, 'allows_tf32', lambda tf32=tf32: tf32)
        versions = f'torch {torch.__version__}, cudnn 91002, triton {triton or "none"}, tf32 {tf32}'
        assert measured._machine(torch.device('cuda', 1)) == f'H200, {versions}'


def test_seconds_of_calls_in_a_row_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host launches them while the device computes."""
    did: list[Any] = []
    x: Any = SimpleNamespace(is_cuda=True, device='cuda:1')
    monkeypatch.setattr(torch.cuda, 'synchronize', did.append)
    monkeypatch.setattr(measured.time, 'perf_counter', iter((1.0, 7.0)).__next__)
    assert measured._seconds(x, lambda: did.append('call'), 3) == 2.0
    assert did == ['cuda:1', 'call', 'call', 'call', 'cuda:1']


def test_a_subclass_is_not_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    x: Tensor = torch.nn.Parameter(torch.empty(1, 2, 9, 8))
    assert measured.measured_backend(x, GRID, str, 'forward') is None
    assert measured.measured_backend(x.data, GRID, str, 'forward') == 'fft'


@pytest.mark.parametrize('reason', ['unavailable_reason', 'unsupported_reason'])
def test_what_cannot_compute_the_call_is_not_timed(reason: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setitem(TABLE, 'fft', replace(TABLE['fft'], **{reason: lambda *_: 'no plan'}))
    assert _call(clock) == 'dft'
    assert 'fft' not in clock.timed


def test_a_backend_that_fails_is_left_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def broken(*args: Any) -> Tensor:
        raise RuntimeError('no plan')

    monkeypatch.setitem(TABLE, 'fft', type(TABLE['fft'])('fft', broken, broken))
    assert _call(clock) == 'dft'


def test_the_rule_where_measuring_has_no_sense(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.seconds = {name: float(name != 'fft') for name in clock.seconds}
    rule = fastest_backend(torch.empty(1, 2, 9, 8), GRID)
    assert rule != 'fft'
    monkeypatch.setattr(ops, 'benchmark', None)
    assert _call(clock) == rule
    monkeypatch.setattr(ops, 'benchmark', True)
    torch.use_deterministic_algorithms(True)
    try:
        assert _call(clock) == rule
    finally:
        torch.use_deterministic_algorithms(False)
    assert not clock.timed
    for height in range(9, 9 + measured._MOST_SHAPES):
        assert _call(clock, height) == 'fft'
    clock.timed.clear()
    assert _call(clock, 100) != 'fft' or not clock.timed
    assert not clock.timed  # sizes that change are not measured
    assert _call(clock, channels=3) == 'fft', 'those of another kernel are'
    x, run = torch.empty(1, 2, 101, 8), lambda name: name
    assert measured.measured_backend(x, GRID, run, 'forward') is None
    assert measured.measured_backend(x, GRID, run, 'weight_grad') == 'fft', 'and those of its gradient'


def test_follows_the_flag_of_cudnn_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    x: Any = SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(ops, 'benchmark', None)
    for flag in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, 'benchmark', flag)
        assert measured.is_on(x) is flag
        assert not measured.is_on(torch.ones(1)), 'on a CPU'
    monkeypatch.setattr(ops, 'benchmark', True)
    assert measured.is_on(x)


def test_all_processes_take_the_answer_of_the_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import distributed_c10d

    keys: set[str] = set()

    class Store(torch.distributed.HashStore):
        def compare_set(self, key: str, *values: str) -> bytes:
            keys.add(key)
            return super().compare_set(key, *values)

    store = Store()
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 2)
    monkeypatch.setattr(distributed_c10d, '_get_default_store', lambda: store)
    monkeypatch.setenv('MMPELK_BENCHMARK_CACHE', '')  # on machines of their own
    clock = Clock(monkeypatch)
    assert _call(clock) == 'fft'
    _forget(monkeypatch)
    clock.timed.clear()
    clock.seconds['dense'] = 0.1
    assert _call(clock) == 'fft'
    assert not clock.timed  # nor is anything measured again
    assert _call(clock, 10) == 'dense', 'of each call its own'
    assert len(keys) == 2
    for key in keys:
        store.set(key, 'a later version')
    _forget(monkeypatch)
    assert _call(clock) == fastest_backend(torch.empty(1, 2, 9, 8), GRID)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 1)
    assert _call(clock, 11) == 'dense'
    assert len(keys) == 2, 'one process asks nobody'


def test_prepared_kernels_are_measured_as_such(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert _call(clock) == 'fft'
    clock.seconds['dft'] = 0.5
    x, weight = torch.randn(1, 2, 9, 8), torch.randn(2, 1, len(GRID), len(GRID))
    given: list[Tensor | None] = []
    forward = TABLE['dft'].forward

    def record(*arguments: Any, kernel: Tensor | None = None) -> Tensor:
        given.append(kernel)
        return forward(*arguments, kernel=kernel)

    monkeypatch.setitem(TABLE, 'dft', replace(TABLE['dft'], forward=record))
    prepared = prepare(x, weight, GRID, None)
    assert given
    assert all(kernel is not None for kernel in given)
    assert prepared.backend == 'dft'
    assert prepared.kernel is not None
    torch.testing.assert_close(prepared(x), peripheral_conv2d(x, weight, GRID, backend='dense'))
    monkeypatch.setattr(ops, 'benchmark', False)
    assert prepare(x, weight, GRID, None).backend == fastest_backend(x, GRID)


PROCESS = """
import sys, time, torch
from mmpelk import ops
from mmpelk.ops.backends import measured
rank, port = map(int, sys.argv[1:])
torch.distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
seconds = [{'dense': 3, 'dft': 2, 'fft': 1}, {'dense': 1, 'dft': 2, 'fft': 3}][rank]
measured._seconds = lambda x, call, in_a_row=1: seconds[call.args[0]]
ops.benchmark = True
grid = ops.sharing_grid(13)
for height in (9, 10, 11) if rank else (11, 10, 9):  # in another order each: nobody waits for the other
    ops.peripheral_conv2d(torch.randn(1, 2, height, 8), torch.randn(2, 1, len(grid), len(grid)), grid)
torch.distributed.barrier()
print(*(name for _, name in sorted(((call[2], name) for call, name in measured._answers.items()))))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason='torch was built without torch.distributed')
def test_two_processes_agree() -> None:
    """Over a real store, with clocks that do not agree."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        port = str(found.getsockname()[1])
    environment = {**os.environ, 'MMPELK_BENCHMARK_CACHE': '', 'OMP_NUM_THREADS': '1'}
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', PROCESS, str(rank), port], env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert said[0] == said[1]
    assert len(said[0]) == 3


def test_a_store_that_is_gone_ends_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(key: str, measure: Callable[[], str]) -> str:
        raise RuntimeError('Connection reset by peer')

    monkeypatch.setattr(measured, '_agreed', gone)
    clock = Clock(monkeypatch)
    assert _call(clock) == _call(clock) == fastest_backend(torch.empty(1, 2, 9, 8), GRID)
    assert caplog.text.count('Connection reset by peer') == 1
