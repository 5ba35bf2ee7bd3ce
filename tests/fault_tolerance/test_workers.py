"""Worker processes of a loader end when the process that they load for is killed."""

import itertools
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from torch.utils.data import DataLoader

from mmpelk.fault_tolerance import workers
from mmpelk.fault_tolerance.resume import ResumeHook
from mmpelk.fault_tolerance.workers import end_workers_with_parent
from tests.commands import is_running, wait_for
from tests.paths import ROOT

PROGRAM = """
import os
import sys
import time
import torch
from torch.utils.data import DataLoader
from mmpelk.fault_tolerance.workers import end_workers_with_parent

class Large(torch.utils.data.Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return bytes(2**20)  # by the queue, whose pipe is full at once

loader = DataLoader(Large(), batch_size=1, num_workers=2, collate_fn=list)
end_workers_with_parent(loader)
prepare, parent = loader.worker_init_fn, os.getpid()

def prepare_late(worker):
    while os.getppid() == parent:
        time.sleep(0.05)
    prepare(worker)

if late := sys.argv[1] == 'late':
    loader.worker_init_fn = prepare_late
batches = iter(loader)
if not late:
    next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
time.sleep(600)
"""


def test_workers_are_prepared_as_their_loader_says(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = mock.Mock()
    prepared: list[int] = []
    monkeypatch.setattr(workers.threading, 'Thread', watched)
    loader: DataLoader = DataLoader([1], num_workers=1, worker_init_fn=prepared.append)  # type: ignore[arg-type]
    for _ in range(2):
        end_workers_with_parent(loader)
    assert loader.worker_init_fn is not None
    loader.worker_init_fn(3)
    assert prepared == [3]
    watched.assert_called_once()
    assert watched.call_args.kwargs['args'] == (os.getppid(),)
    assert watched.call_args.kwargs['daemon']
    alone: DataLoader = DataLoader([1])  # type: ignore[arg-type]
    end_workers_with_parent(alone)
    assert alone.worker_init_fn is None


@pytest.mark.parametrize('stage', ['val', 'test'])
def test_workers_of_validation_and_test_are_watched_too(stage: str) -> None:
    loader: DataLoader = DataLoader([1], num_workers=1)  # type: ignore[arg-type]
    runner: Any = SimpleNamespace(**{f'{stage}_loop': SimpleNamespace(dataloader=loader)})
    getattr(ResumeHook(), f'before_{stage}')(runner)
    watching = loader.worker_init_fn
    assert watching is not None
    getattr(ResumeHook(), f'before_{stage}')(runner)
    assert loader.worker_init_fn is watching, 'once, however often it is validated'


@pytest.mark.parametrize('gone', ['replaced as the parent', 'before the worker looked'])
def test_a_worker_kills_itself_when_its_parent_is_gone(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, killed, looked = os.getppid(), [], itertools.count()
    replaced = gone.startswith('replaced')
    monkeypatch.setattr(workers.os, 'getppid', lambda: 1 if replaced and next(looked) > 1 else parent)
    monkeypatch.setattr(workers.os, 'kill', lambda *words: killed.append(words))
    started_by = SimpleNamespace(is_alive=lambda: replaced)
    monkeypatch.setattr(workers.multiprocessing, 'parent_process', lambda: started_by)
    monkeypatch.setattr(workers.time, 'sleep', mock.Mock(side_effect=[None] * 3))  # and no fourth one
    workers._exit_with(parent)
    assert killed == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.slow
@pytest.mark.parametrize('prepared', ['early', 'late'])
def test_workers_end_with_a_killed_process(prepared: str) -> None:
    """Also those that are prepared when it is gone."""
    environment = os.environ | dict(PYTHONPATH=str(ROOT))
    with subprocess.Popen(
        [sys.executable, '-c', PROGRAM, prepared], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(is_running, workers))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    try:
        wait_for(lambda: not any(map(is_running, workers)), lambda: 'workers are left')
    finally:
        for worker in filter(is_running, workers):
            os.kill(worker, signal.SIGKILL)
