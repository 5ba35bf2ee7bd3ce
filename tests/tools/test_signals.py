"""Signals to the launchers reach the processes; what these exit with is the launcher's exit code.

A training that saves is in test_launchers.py.
"""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmpelk.fault_tolerance.preemption import PREEMPTED
from tests.paths import TOOLS

pytestmark = pytest.mark.slow

# Says which signals it gets. It ends at the second, as a training does.
LISTENS = r"""
import os, signal, sys, time
def hear(number, frame):
    signal.signal(number, signal.SIG_DFL)  # before it says so: then the second comes
    os.write(1, f'heard {signal.Signals(number).name}\n'.encode())  # at once: two processes write
    if sys.argv[1] == 'once':  # torchrun stops the others as soon as one has ended
        open(f'heard{os.environ.get("RANK", 0)}', 'w').close()
        while sum(name.startswith('heard') for name in os.listdir()) < int(os.environ.get('WORLD_SIZE', 1)):
            time.sleep(0.01)
        sys.exit(75)
for name in ('SIGTERM', 'SIGUSR1', 'SIGINT'):
    signal.signal(getattr(signal, name), hear)
os.write(1, b'ready\n')
while True:
    time.sleep(1)
"""
SRUN = '#!/bin/sh\necho "$@" > arguments\nexec "$PYTHON" listens.py once\n'
SCONTROL = '#!/bin/sh\necho "$@" > scontrol_arguments\n'


class Command:
    """A command that runs in a folder, and what it prints."""

    def __init__(self, *words: object, folder: Path, **variables: object) -> None:
        env = os.environ | {'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
        env |= {name: str(value) for name, value in variables.items()}
        self.log = folder / 'log'
        with self.log.open('w') as log:
            # A shell cannot trap what was ignored when it started, as Ctrl-C is in the background.
            self.process = subprocess.Popen(
                [str(word) for word in words],
                cwd=folder,
                env=env,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def wait_for(self, fact: Callable[[], bool]) -> None:
        while not fact():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.01)

    def says(self, text: str, times: int = 1) -> Callable[[], bool]:
        return lambda: self.log.read_text().count(text) >= times

    def end(self) -> int:
        try:
            return self.process.wait(300)
        finally:
            self.process.kill()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
def test_torchrun_hands_signals_on(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / 'listens.py').write_text(LISTENS)
    words = [sys.executable, TOOLS / 'torchrun.py', '--standalone', '--nproc-per-node', 2, 'listens.py']
    how = 'twice' if number == signal.SIGTERM else 'once'
    command = Command(*words, how, folder=tmp_path)
    command.wait_for(command.says('ready', 2))
    command.process.send_signal(number)
    if how == 'twice':  # the processes go on after the first, and end by the second
        command.wait_for(command.says(f'heard {number.name}', 2))
        command.process.send_signal(number)
    assert command.end() == (PREEMPTED if how == 'once' else 128 + number)
    printed = command.log.read_text()
    assert printed.count(f'heard {number.name}') == 2
    assert 'Traceback' not in printed


def slurm_variables(folder: Path, program: str) -> dict[str, object]:
    """Of a batch job in which a program runs in the place of the training."""
    (folder / 'listens.py').write_text(program)
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return dict(PATH=f'{folder}:{os.environ["PATH"]}', REQUEUE=1, SLURM_JOB_ID=17)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.parametrize('sent_to', ['launcher', 'process'])
def test_slurm_requeues_what_a_signal_ended_before_it_listened(
    tmp_path: Path, number: signal.Signals, sent_to: str
) -> None:
    starting = "import os, time\nos.write(1, f'process {os.getpid()}.\\n'.encode())\ntime.sleep(600)\n"
    command = Command(
        *(TOOLS / 'slurm_train.sh', 'short', 'a job', 'config.py'),
        folder=tmp_path,
        **slurm_variables(tmp_path, starting),
    )
    command.wait_for(command.says('.\n'))
    if sent_to == 'launcher':
        command.process.send_signal(number)
    else:  # by Slurm, past the launcher
        os.kill(int(command.log.read_text().split()[1].rstrip('.')), number)
    tried_again = sent_to == 'launcher' or number == signal.SIGUSR1
    assert command.end() == (PREEMPTED if tried_again else 128 + number)
    assert (tmp_path / 'scontrol_arguments').exists() == tried_again


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_slurm_requeues_what_was_preempted(tmp_path: Path, number: signal.Signals) -> None:
    variables = slurm_variables(tmp_path, LISTENS)
    restarts = 2 if number == signal.SIGTERM else 0
    words = [TOOLS / 'slurm_train.sh', 'short', 'a job', 'config.py', '--amp']
    command = Command(*words, folder=tmp_path, SLURM_RESTART_COUNT=restarts, **variables)
    command.wait_for(command.says('ready'))
    command.process.send_signal(number)
    assert command.end() == PREEMPTED
    # A process in the background ignores Ctrl-C.
    heard = 'SIGTERM' if number == signal.SIGINT else number.name
    assert f'heard {heard}' in command.log.read_text()
    assert (tmp_path / 'scontrol_arguments').read_text() == 'requeue 17\n'
    given = (tmp_path / 'arguments').read_text()
    assert given.endswith('config.py --launcher slurm --amp' + ' --resume' * (restarts > 0) + '\n')
