"""The check of a machine with a GPU, dry: every step runs, and what falls short is reported."""

import json
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks import gpu_check
from mmpelk import ops
from tests.commands import call
from tests.paths import ROOT


@pytest.mark.slow
def test_dry_run_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which saves nine imports of torch and the toolboxes; the next test has the processes."""

    def run_steps(names: Sequence[str], results: Path, dry: bool) -> None:
        for name in names:
            gpu_check.STEPS[name](gpu_check.Step(name, results, dry))

    monkeypatch.setattr(gpu_check, 'run_steps', run_steps)
    monkeypatch.setattr(ops, 'benchmark', None)  # these two the step of the choice changes
    monkeypatch.setenv('MMPELK_BENCHMARK_CACHE', '')
    page = gpu_check.PAGE.read_text()
    printed = call('benchmarks.gpu_check', '--dry', '--out', tmp_path, cwd=ROOT)
    assert printed.endswith('what fell short:\n  nothing\n')
    rows = [json.loads(line) for line in (tmp_path / 'gpu_dry.jsonl').read_text().splitlines()]
    for step in gpu_check.STEPS:
        assert any(row['step'] == step for row in rows), step
    assert '| stage 1 | forward | bfloat16 |' in (tmp_path / 'gpu.md').read_text()
    assert gpu_check.PAGE.read_text() == page  # a dry run publishes nothing


@pytest.mark.slow
def test_a_step_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / 'results.jsonl'
    monkeypatch.setitem(gpu_check.BUDGETS, 'ddp', 0.1)
    monkeypatch.setattr(gpu_check, 'DRY_FACTOR', 1)
    monkeypatch.setitem(gpu_check.BUDGETS, 'choice', 300)
    gpu_check.run_steps(['ddp', 'choice'], results, dry=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert rows[0]['ended'] == 'over its budget of 0.1 s'
    assert rows[-1] == {**rows[-1], 'step': 'choice', 'ended': 0}
    assert gpu_check.shortfalls(rows) == ['ddp: ended with over its budget of 0.1 s']


def test_what_falls_short_is_said() -> None:
    ours = dict(step='operator', stage='stage 1', what='forward', dtype='bfloat16', layout='channels_last')
    speeds = dict(step='networks', what='training', dtype='bfloat16')
    rows = [
        {**ours, 'backend': 'triton', 'us': 61},
        {**ours, 'backend': 'fft', 'us': 50},
        {**ours, 'backend': 'triton_dft', 'us': 62},
        {**ours, 'backend': 'triton', 'what': 'gradient of the weight', 'us': 81},
        {**ours, 'backend': 'triton_dft', 'what': 'gradient of the weight', 'us': 79},
        {**ours, 'backend': 'triton', 'stage': 'stage 2', 'us': 20},
        {**ours, 'backend': 'triton', 'failed': 'RuntimeError: no'},
        {**speeds, 'network': 'PeLK-T', 'images_per_second': 70.0},
        {**speeds, 'network': 'PeLK-T without convolution', 'images_per_second': 100.0},
    ]
    short = gpu_check.shortfalls(rows)
    missing = [line for line in short if line.endswith('no figure of a Triton backend')]
    assert len(missing) == len(gpu_check.TARGETS) - 3
    short = [line for line in short if line not in missing]
    assert len(short) == 3, short
    assert '61 microseconds, the target is 60' in short[1]
    assert '70% of the network without convolution, the target is 75%' in short[2]
    assert not gpu_check.shortfalls(rows[-2:-1])  # of other steps


@pytest.mark.parametrize('missed', [False, True])
def test_every_target_is_held_by_its_own_figure(missed: bool) -> None:
    """Figures of other layouts, dtypes and backends hold none."""
    rows: list[dict[str, Any]] = []
    for (stage, what, dtype), target in gpu_check.TARGETS.items():
        case = dict(step='operator', stage=stage, what=what, dtype=dtype)
        rows += [
            dict(case, layout='channels_last', backend='triton', us=target + missed),
            dict(case, layout='planes', backend='triton', us=target / 2),
            dict(case, layout='planes', backend='triton_dft', us=2 * target),
            dict(case, layout='channels_last', backend='fft', us=target / 2),
            dict(case, layout='channels_last', backend='triton', dtype='float16', us=target / 2),
        ]
    rows += [dict(step='host', what=what, us=target + missed) for what, target in gpu_check.HOST_TARGETS.items()]
    for what, share in gpu_check.OF_THE_CEILING.items():
        for dtype, ceiling in (('bfloat16', 1000.0), ('float32', 100.0)):
            case = dict(step='networks', what=what, dtype=dtype)
            rows += [
                dict(case, network='PeLK-T', images_per_second=ceiling * share - missed),
                dict(case, network='PeLK-T without convolution', images_per_second=ceiling),
                dict(case, network='SLaK-T', images_per_second=1.0),
            ]
    rows += [dict(step='ddp', passed=True, summary='fine'), dict(step='ddp', ended=0, seconds=1)]
    if missed:
        rows += [dict(step='recipes', passed=False, summary='losses'), dict(step='ddp', ended=1, seconds=1)]
    short = gpu_check.shortfalls(rows)
    assert len(short) == (len(gpu_check.TARGETS) + len(gpu_check.HOST_TARGETS) + 4 + 2) * missed, short
    assert gpu_check.shortfalls(rows, targets=False) == ['ddp: ended with 1', 'recipes: losses'] * missed


def test_the_page_has_the_layout_of_the_networks(tmp_path: Path) -> None:
    case = dict(step='operator', stage='stage 1', what='forward', dtype='bfloat16', backend='triton', us=55.0)
    rows = [dict(case, layout=layout) for layout in ('channels_last', 'slice', 'planes')]
    rows.append(dict(step='networks', network='PeLK-T', what='training', dtype='float32', images_per_second=9.0))
    gpu_check.write_page(gpu_check.page_table(rows), tmp_path / 'gpu.md')
    page = (tmp_path / 'gpu.md').read_text()
    assert page.count('| stage 1 | forward | bfloat16 | triton | 55.0 | 60 |') == 1
    assert '| PeLK-T | training | float32 | 9.0 |' in page
    own = gpu_check.PAGE.read_text()
    start, end = gpu_check.MARKS
    assert page.split(start)[0] == own.split(start)[0]
    assert page.split(end)[1] == own.split(end)[1]


def test_a_kernel_that_is_replaced_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, results = logging.getLogger('mmpelk.ops'), tmp_path / 'results.jsonl'
    monkeypatch.setattr(logger, 'handlers', [])
    gpu_check.Step('machine', results, True).report_warnings()
    logger.warning('backend %r fails', 'triton')
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert gpu_check.shortfalls(rows) == ["machine: warning: backend 'triton' fails"]


def test_how_steps_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each within its budget, ten times as much when dry; what it has not ended with is said."""
    ends = {'machine': 0, 'host': -9, 'operator': 2}
    given = {}

    def run(command: list[str], timeout: float, **options: Any) -> SimpleNamespace:
        step = command[command.index('--step') + 1]
        given[step, '--dry' in command] = timeout
        if step not in ends:
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=ends[step])

    monkeypatch.setattr(subprocess, 'run', run)
    results = tmp_path / 'results.jsonl'
    for dry in (False, True):
        gpu_check.run_steps(['machine', 'host', 'operator', 'ddp'], results, dry)
    assert given == {
        (step, dry): gpu_check.BUDGETS[step] * (10 if dry else 1) for dry in (False, True) for step in (*ends, 'ddp')
    }
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line for line in gpu_check.shortfalls(rows) if 'ended' in line] == [
        f'{step}: ended with {end}'
        for budget in (30, 300)
        for step, end in (('host', -9), ('operator', 2), ('ddp', f'over its budget of {budget} s'))
    ]
    missing = [line for line in gpu_check.shortfalls([*rows[2:3], dict(step='operator')]) if 'no figure' in line]
    assert len(missing) == len(gpu_check.TARGETS)


def test_cases_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = []

    def run(words: list[str], env: dict[str, str], **options: Any) -> SimpleNamespace:
        environments.append(env.get('TRITON_INTERPRET'))
        return SimpleNamespace(returncode=1, stdout='one\n1 failed\n')

    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    results = tmp_path / 'results.jsonl'
    for dry in (True, False):
        gpu_check.correctness(gpu_check.Step('correctness', results, dry))
    assert environments == ['1', None]
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert gpu_check.shortfalls(rows) == ['correctness: 1 failed'] * 2


def test_times_of_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of replays of a graph; of the host the fastest tenth."""
    results, calls = tmp_path / 'results.jsonl', []
    step = gpu_check.Step('host', results, True)
    monkeypatch.setattr(gpu_check, 'Stage', lambda *_: gpu_check.DRY_STAGES['stage 1'])
    clock = iter([each for i in range(40) for each in (i, i + (1 + i % 20) * 1e-6)])
    monkeypatch.setattr(gpu_check, 'time', SimpleNamespace(perf_counter=lambda: next(clock)))
    gpu_check.host(step)
    assert [json.loads(line)['us'] for line in results.read_text().splitlines()] == [3.0, 3.0]
    monkeypatch.setattr(torch, 'cuda', mock.MagicMock())
    step.dry, times = False, iter([1e-3, *(4e-3 * t for t in (1, 1, 2, 3, 4, 90, 90))])
    monkeypatch.setattr(step, 'seconds', lambda call: next(times))
    step.time(calls.append, 3, what='copy')
    row = json.loads(results.read_text().splitlines()[-1])
    assert (row['us'], row['how']) == (3000.0, 'graph')
    assert calls == [0, 0, 0, 0, 0, 1, 2, 0]  # what warms up, and what is captured: of 4 milliseconds


@pytest.mark.parametrize('failed', [False, True])
def test_a_dry_run_that_fails_says_so(failed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_steps(names: Sequence[str], results: Path, dry: bool) -> None:
        step = gpu_check.Step('host', results, dry)
        with step.guarded(what='a call'):
            step.write(what='another', us=1)
            if failed:
                raise ValueError('no')

    monkeypatch.setattr(gpu_check, 'run_steps', run_steps)
    (tmp_path / 'gpu_dry.jsonl').write_text('{"step": "old", "failed": "long ago"}\n')
    page = gpu_check.PAGE.read_text()
    printed = call('benchmarks.gpu_check', '--dry', '--out', tmp_path, cwd=ROOT, code=int(failed))
    assert printed.endswith('what fell short:\n  host: a call: ValueError: no\n' if failed else '\n  nothing\n')
    rows = [json.loads(line) for line in (tmp_path / 'gpu_dry.jsonl').read_text().splitlines()]
    assert [row.get('failed') for row in rows] == [None, 'ValueError: no'][: 1 + failed]
    assert gpu_check.PAGE.read_text() == page
