"""What a second signal does; whole runs are in test_exact_resume.py and in tests/tools/test_launchers.py."""

import logging
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from mmpelk.fault_tolerance import preemption
from mmpelk.fault_tolerance.checkpoint_hook import CheckpointHook
from mmpelk.fault_tolerance.preemption import PREEMPTED, SIGNALS, PreemptionHook


def test_exit_code_is_that_of_a_temporary_failure() -> None:
    """Which launchers and batch systems requeue on."""
    assert PREEMPTED == os.EX_TEMPFAIL


@pytest.mark.parametrize('due', [[True], [False], [True, True], [True, False]])
def test_it_waits_for_the_step_of_every_optimizer(due: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks, and stops one iteration later at the earliest; in the end the handlers are those of before."""
    wrappers = [SimpleNamespace(optimizer=None, should_update=lambda one=one: one) for one in due]
    several = SimpleNamespace(values=lambda: wrappers)
    runner: Any = SimpleNamespace(optim_wrapper=several if len(due) > 1 else wrappers[0])
    stopped: list[Any] = []
    before = [signal.getsignal(number) for number in SIGNALS]
    hook = PreemptionHook()
    monkeypatch.setattr(hook, '_save_and_exit', stopped.append)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    signal.raise_signal(signal.SIGUSR1)
    hook.after_train_iter(runner, 1)
    assert not stopped
    hook.after_train_iter(runner, 2)
    assert stopped == [runner] * all(due)
    hook.after_train(runner)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_wish_to_stop_outlasts_steps_that_accumulate(monkeypatch: pytest.MonkeyPatch) -> None:
    due: list[bool] = []
    runner: Any = SimpleNamespace(optim_wrapper=SimpleNamespace(optimizer=None, should_update=lambda: due[-1]))
    hook, stopped = PreemptionHook(), []
    monkeypatch.setattr(hook, '_save_and_exit', stopped.append)
    hook._agreement = mock.Mock(**{'answer.side_effect': [True, False, False]})
    for steps in (False, False, True):
        assert not stopped
        due.append(steps)
        hook.after_train_iter(runner, 0)
    assert stopped == [runner]


@pytest.mark.parametrize(('saves', 'processes', 'heard'), [(True, 1, 1), (False, 1, 1), (True, 2, 1), (True, 2, 0)])
def test_it_says_what_is_saved_and_hears_no_more_signals(
    saves: bool, processes: int, heard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the launcher, which sees the first process end."""
    saving = mock.create_autospec(CheckpointHook, instance=True)
    saving.save_now.return_value = 'iter_5.pth'
    logger = mock.Mock()
    visualizer = mock.Mock()
    hooks = [object(), *([saving] if saves else [])]
    runner: Any = SimpleNamespace(hooks=hooks, iter=4, logger=logger, visualizer=visualizer)
    ignored: list[Any] = []
    # Until all have saved.
    monkeypatch.setattr(preemption, 'barrier', lambda: ignored.append('all have saved'))
    monkeypatch.setattr(signal, 'signal', lambda number, handler: ignored.append((number, handler)))
    # One of several leaves past the interpreter's shutdown, with everything written.
    monkeypatch.setattr(preemption, 'is_distributed', lambda: processes > 1)
    monkeypatch.setattr(logging, 'shutdown', lambda: ignored.append('log is written'))
    monkeypatch.setattr(os, '_exit', lambda code: sys.exit(-code))
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, 'flush', lambda: ignored.append('printed'))
    hook = PreemptionHook()
    if heard:
        hook._receive(signal.SIGUSR1, None)
    with pytest.raises(SystemExit) as caught:
        hook._save_and_exit(runner)
    assert caught.value.code == (PREEMPTED if processes == 1 else -PREEMPTED)
    visualizer.close.assert_called_once_with()
    said = 'iter_5.pth is saved, --resume goes on from there' if saves else 'nothing saved, no mmpelk.CheckpointHook'
    logger.info.assert_called_once_with(
        f'Stopped by {"SIGUSR1" if heard else "a signal in another process"} after iteration 5: {said}'
    )
    written = ['log is written', 'printed', 'printed'] if processes > 1 else []
    assert ignored == ['all have saved', *((number, signal.SIG_IGN) for number in SIGNALS), *written]


def test_a_training_beside_the_main_thread_is_told_that_it_hears_no_signals() -> None:
    said: list[str] = []
    runner: Any = SimpleNamespace(logger=SimpleNamespace(warning=said.append))
    hook = PreemptionHook()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(hook.before_train, runner).result()
    assert [line.startswith('Signals reach the main thread alone') for line in said] == [True]
    hook._agreement = mock.Mock()
    hook.after_train(runner)
    hook._agreement.answer.assert_called_once_with()  # to what was asked last, in which all take part


@pytest.mark.parametrize(('seconds', 'ends'), [(0.5, False), (1.9, False), (2.1, True), (60.0, True)])
def test_a_second_signal_ends_the_process_after_two_seconds(
    seconds: float, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = [100.0], []
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(os, 'kill', lambda process, number: calls.append((process, number)))
    monkeypatch.setattr(signal, 'signal', lambda number, handler: calls.append(handler))
    hook = PreemptionHook()
    hook._receive(signal.SIGTERM, None)
    now[0] += seconds
    hook._receive(signal.SIGTERM, None)
    assert calls == ([signal.SIG_DFL, (os.getpid(), signal.SIGTERM)] if ends else [])
