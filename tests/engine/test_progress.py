"""What a training prints while it runs: in a terminal and in a log, once, and never at the training's cost."""

import importlib.util
import io
import logging
import os
import pty
import re
import resource
import subprocess
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop

from mmpelk.engine import ProgressLineHook, RunEstimateHook, progress
from mmpelk.engine.progress import _duration, add_vis_backend
from mmpelk.errors import UserError
from tests.commands import call
from tests.paths import TOOLS


def test_duration_and_an_estimate_without_iterations() -> None:
    texts = {0: '0 s', 59.6: '1 min 0 s', 3700: '1 h 1 min', 200_000: '2 d 7 h', 86_400: '1 d 0 h'}
    assert {seconds: _duration(seconds) for seconds in texts} == texts
    for skipped in (0, 5):
        with pytest.raises(ValueError, match='at least one, and fewer than after=5'):
            RunEstimateHook(after=5, skipped=skipped)


def estimates(monkeypatch: pytest.MonkeyPatch, val_interval: int) -> list[str]:
    """Of a run of a hundred iterations of a second, with validations of a minute."""
    clock, said = [0.0], []
    monkeypatch.setattr(progress.time, 'monotonic', lambda: clock[0])
    runner = SimpleNamespace(
        max_iters=100,
        iter=0,
        train_loop=SimpleNamespace(max_iters=100, val_interval=val_interval, val_begin=1),
        val_loop=object(),
        logger=SimpleNamespace(info=said.append),
    )
    hook = RunEstimateHook(after=10, skipped=2)
    for iteration in range(100):
        clock[0] += 1.0
        runner.iter = iteration
        hook.after_train_iter(runner, iteration)  # type: ignore[arg-type]
        runner.iter = iteration + 1
        if runner.iter % val_interval == 0:
            hook.before_val_epoch(runner)  # type: ignore[arg-type]
            clock[0] += 60.0
            hook.after_val_epoch(runner)  # type: ignore[arg-type]
    return said


def test_estimate_is_corrected_by_the_first_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one knows no validation; a second one counts those to come, and there is no third."""
    said = estimates(monkeypatch, 20)
    assert len(said) == 2
    assert '1 min 30 s for 90 more without the validations' in said[0]
    # 80 iterations of a second, and four validations of a minute.
    assert '5 min 20 s for 80 more with validations of 60 s' in said[1]
    # mmengine validates at the end, too: after 60, 90 and 100.
    assert '4 min 10 s for 70 more with validations of 60 s' in estimates(monkeypatch, 30)[1]
    # One at the end has nothing to correct.
    assert len(estimates(monkeypatch, 100)) == 1
    # Those among and before the iterations that are timed count for none of them.
    for val_interval in (5, 3, 1):
        assert 'whole run: 1 s an iteration' in estimates(monkeypatch, val_interval)[0]
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None: 1)
    assert not estimates(monkeypatch, 20), 'the first process tells'


def test_estimate_counts_validations_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, 'datetime', SimpleNamespace(now=lambda: datetime(2026, 1, 31, 23, 40)))
    loop, said = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop), []
    loop._max_epochs, loop.val_interval, loop.val_begin = 10, 3, 1
    log = SimpleNamespace(info=said.append)
    runner: Any = SimpleNamespace(max_iters=1000, epoch=2, train_loop=loop, val_loop=object(), logger=log)
    hook = RunEstimateHook()
    hook._seconds, hook._validations = 2.0, [20.0, 40.0]
    hook._log(runner, 150)
    # After the epochs 3, 6, 9 and 10, half a minute each.
    assert '2 s an iteration, 30 min 20 s for 850 more with validations of 30 s, so until 2026-02-01 00:10;' in said[0]
    loop.val_begin = 8  # after 9 and 10
    hook._log(runner, 150)
    assert '29 min 20 s for 850 more with validations' in said[1]
    runner.val_loop = None
    hook._log(runner, 150)
    assert '28 min 20 s for 850 more, so until' in said[2]


class Terminal(io.StringIO):
    """What is printed to it; ``terminal`` says whether it is one."""

    terminal = True

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize('kind', ['terminal', 'file', 'without movement', 'of another process'])
def test_line_at_the_bottom_of_a_terminal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log goes through it until the end, and a resumed training begins in the middle."""
    output, logger, is_terminal = Terminal(), logging.Logger('progress'), kind == 'terminal'
    output.terminal = kind != 'file'
    monkeypatch.setattr(progress, 'is_main_process', lambda: kind != 'of another process')
    for name, value in dict(TERM='dumb' if kind == 'without movement' else 'xterm', COLUMNS='100').items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, 'stdout', output)
    monkeypatch.setattr(progress, '_REFRESH', -1.0)
    handler, other = logging.StreamHandler(output), logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    logger.addHandler(other)
    scalars: dict[str, Any] = {}
    runner: Any = SimpleNamespace(
        max_iters=5, iter=2, logger=logger, message_hub=SimpleNamespace(log_scalars=scalars), val_dataloader=range(7)
    )
    before, hook = other.stream, ProgressLineHook()
    at_exit: list[Any] = []
    monkeypatch.setattr(progress.atexit, 'register', at_exit.append)
    hook.before_train(runner)
    assert at_exit == [hook._stop] * is_terminal, 'an interrupted training leaves the terminal as it was'
    assert (handler.stream is output) is not is_terminal
    assert other.stream is before
    hook.after_train_iter(runner, 2)  # by an optimizer that logs no loss
    scalars['train/loss'] = SimpleNamespace(current=lambda: 0.25)
    hook.after_train_iter(runner, 2)
    hook.after_val_iter(runner, 3)
    hook.after_train(runner)
    assert handler.stream is sys.stdout is output
    shown = re.sub(r'\x1b\[[\d;?]*[a-zA-Z]', '', output.getvalue())
    parts = ['training', '2/5', '3/5', 'loss 0.25', 'validation 4/7']
    assert [part in shown for part in parts] == [is_terminal] * len(parts)
    assert shown or not is_terminal


@pytest.mark.parametrize(('used', 'hint'), [(35, True), (37, False)])
def test_memory_of_a_gpu(used: int, hint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as much has to leave a tenth of it free."""
    device = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'max_memory_reserved', lambda: used * 2**30)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda index: device)
    more = '; a batch twice as large would fit' if hint else ''
    assert progress._memory() == f'{used}.0 of 80.0 GB of GPU memory at most{more}'


def test_memory_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux gives the most that was used in kilobytes."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(
        progress.resource, 'getrusage', lambda who: {resource.RUSAGE_SELF: SimpleNamespace(ru_maxrss=3 * 2**20)}[who]
    )
    monkeypatch.setattr(os, 'sysconf', dict(SC_PHYS_PAGES=2**21, SC_PAGE_SIZE=2**12).get)
    assert progress._memory() == '3.0 of 8.0 GB of memory at most, worker processes aside'


@pytest.mark.parametrize('name', ['tensorboard', 'wandb'])
def test_visualize_adds_a_backend_once_or_names_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config(dict(visualizer=dict(vis_backends=[dict(type='LocalVisBackend')])))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda package: None)
    with pytest.raises(UserError, match=f'pip install {name}'):
        add_vis_backend(cfg, name)
    # One of several packages is enough.
    monkeypatch.setattr(importlib.util, 'find_spec', lambda package: package in ('tensorboardX', 'wandb') or None)
    for _ in range(2):
        add_vis_backend(cfg, name)
    kinds = [backend['type'] for backend in cfg.visualizer.vis_backends]
    assert kinds == ['LocalVisBackend', f'{name.capitalize()}VisBackend']
    bare = Config(dict(visualizer=dict(type='A')))
    add_vis_backend(bare, name)
    assert bare.visualizer.vis_backends == cfg.visualizer.vis_backends[1:]
    given = cfg.visualizer.vis_backends[-1].get('init_kwargs')
    assert given == (dict(project='mmpelk') if name == 'wandb' else None)


@pytest.fixture(scope='module')
def log(tiny_config: Path) -> str:
    """The log of a training whose output is no terminal, with curves, and an estimate after two iterations."""
    words = ['--work-dir', 'progress', *(['--visualize', 'tensorboard'] if find_spec('tensorboard') else [])]
    words += ['--cfg-options', 'default_hooks.run_estimate.after=2', 'default_hooks.run_estimate.skipped=1']
    return call(TOOLS / 'train.py', tiny_config, *words, cwd=tiny_config.parent)


@pytest.mark.slow
def test_tensorboard_reads_the_curves(log: str, tiny_config: Path) -> None:
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    (events,) = (tiny_config.parent / 'progress').rglob('events.out.tfevents.*')
    curves = accumulator.EventAccumulator(str(events.parent)).Reload()
    assert [event.step for event in curves.Scalars('loss')] == [1, 2, 3, 4]
    assert len(curves.Scalars('mIoU')) == 1


@pytest.mark.slow
def test_a_log_has_the_estimate_once_and_no_progress_line(log: str) -> None:
    said = re.findall(
        r'estimate of the whole run: [\d.e-]+ s an iteration, (.+) for 2 more without the validations', log
    )
    assert len(said) == 1
    memory = re.search(r'([\d.]+) of ([\d.]+) GB of (GPU )?memory at most', log)
    assert memory is not None
    assert 0 < float(memory[1]) <= float(memory[2])
    assert 'Iter(train) [4/4]' in log
    assert '━' not in log
    assert 'training' not in log.splitlines()[-1]


@pytest.mark.slow
def test_a_terminal_has_one(tiny_config: Path) -> None:
    """In a terminal of its own; log lines stay whole above the line, and the cursor comes back."""
    ours, theirs = pty.openpty()
    command = [sys.executable, str(TOOLS / 'train.py'), str(tiny_config), '--work-dir', 'terminal']
    env = os.environ | {'TERM': 'xterm', 'COLUMNS': '200', 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, cwd=tiny_config.parent, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    printed = io.BytesIO()
    while True:
        try:
            printed.write(os.read(ours, 65536))
        except OSError:  # Linux's end of a terminal
            break
    os.close(ours)
    text = printed.getvalue().decode(errors='replace')
    assert process.wait() == 0, text[-3000:]
    assert re.search(r'training .*━.* 4/4 .*loss [\d.]+', re.sub(r'\x1b\[[\d;?]*[a-zA-Z]', '', text))
    assert text.rfind('\x1b[?25h') > text.rfind('\x1b[?25l') >= 0
    assert re.search(r'Iter\(train\) \[4/4\]', text)
