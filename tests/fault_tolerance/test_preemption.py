"""What a second signal does; whole runs are in test_exact_resume.py and in tests/tools/test_launchers.py."""

import os
import signal
import time

import pytest

from mmpelk.fault_tolerance.preemption import PreemptionHook


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
