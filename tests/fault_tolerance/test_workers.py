"""Worker processes of a loader end when the process that they load for is killed."""

import os
import signal
import subprocess
import sys

import pytest

from tests.commands import is_running, wait_for
from tests.paths import ROOT

PROGRAM = """
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
batches = iter(loader)
next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_process() -> None:
    environment = os.environ | dict(PYTHONPATH=str(ROOT))
    with subprocess.Popen(
        [sys.executable, '-c', PROGRAM], stdout=subprocess.PIPE, text=True, env=environment
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
