"""The supervisor of trainings, with shell scripts in their place; each test waits for facts, none for a time."""

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduction import trainings
from reproduction.trainings import Training, run_trainings

pytestmark = pytest.mark.slow

FINISH = 'touch done'
FOREVER = 'while :; do sleep 0.01; done'


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Training]:
    """A training whose command is a script that is run in its folder; it is finished once it has made a file there."""
    monkeypatch.setattr(trainings, '_POLL', 0.01)
    monkeypatch.setattr(trainings, '_GRACE', None)  # on a busy machine what is stopped may take long to end

    def make(name: str, script: str = FINISH, **fields: object) -> Training:
        folder = tmp_path / name
        command = ['sh', '-c', f'cd {folder}\necho {name} >> ../started\n{script}']
        return Training(name, command, folder, (folder / 'done').exists, **fields)

    return make


def started(folder: Path) -> list[str]:
    """In this order."""
    return (folder / 'started').read_text().split()


def wait_until_nobody_writes(log: Path) -> None:
    """The lock on a log lasts as long as any process of its training."""
    with log.open(encoding='utf-8') as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def test_what_is_finished_is_left_out_and_each_waits_for_what_it_needs(
    make: Callable[..., Training], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prepared: list[str] = []
    script = 'until test -e ../second/done; do sleep 0.01; done && touch done'
    first = make('first', script, prepare=lambda: prepared.append('first'))
    jobs = [first, make('after', needs=first), make('second')]
    # The first ends after the second, so that they run at the same time, and what needs the first comes last.
    assert run_trainings(jobs, 2) == {}
    assert sorted(started(tmp_path)[:2]) == ['first', 'second']
    assert started(tmp_path)[2:] == ['after']
    assert f'[1/3] first: started, {first.log}' in capsys.readouterr().out
    assert run_trainings(jobs, 2) == {}
    assert (len(started(tmp_path)), prepared) == (3, ['first']), 'prepared as often as started'
    assert 'after: finished before' in capsys.readouterr().out


def test_the_others_go_on_when_one_fails(make: Callable[..., Training], tmp_path: Path) -> None:
    failing = make('failing', 'echo said; echo error: no luck; exit 3', environment=dict(GPUS='2'))
    jobs = [failing, make('after', needs=failing), make('early', 'true'), make('crash', 'exit 7'), make('good')]
    jobs[3].folder.mkdir(parents=True)
    jobs[3].log.write_text('\n$ of an earlier start\nerror: mended since\n')
    assert run_trainings(jobs) == {
        'failing': f'error: no luck; all of it: {failing.log}',
        'after': 'failing failed',
        'early': f'ended without its last test; all of it: {tmp_path / "early" / "console.log"}',
        'crash': f'exit code 7; all of it: {tmp_path / "crash" / "console.log"}',
    }
    assert jobs[-1].is_finished()
    assert failing.log.read_text().startswith('\n$ GPUS=2 sh -c ')
    assert failing.log.read_text().endswith('\nsaid\nerror: no luck\n')


def test_the_others_are_stopped_when_one_fails(make: Callable[..., Training], tmp_path: Path) -> None:
    running = make('running', f'trap "touch ended; exit" TERM; touch ready; {FOREVER}')
    failing = make('failing', 'until test -e ../running/ready; do sleep 0.01; done; exit 3')
    failed = run_trainings([running, failing, make('never')], 2, keep_going=False)
    assert failed.keys() == {'failing'}
    assert (tmp_path / 'running' / 'ended').exists(), 'waited for'
    assert sorted(started(tmp_path)) == ['failing', 'running']


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_what_it_started(number: signal.Signals, make: Callable[..., Training], tmp_path: Path) -> None:
    """Whole groups: the script's own child, too, although it ignores SIGTERM. The script itself sends the signal."""
    before = signal.signal(number, signal.default_int_handler)  # a suite in the background ignores some
    script = f'(trap "" TERM; {FOREVER}) & kill -{number.value} {os.getpid()}; {FOREVER}'
    try:
        with pytest.raises(KeyboardInterrupt):
            run_trainings([make('running', script), make('never')])
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert started(tmp_path) == ['running']
    wait_until_nobody_writes(tmp_path / 'running' / 'console.log')


def test_no_two_processes_train_in_one_folder(make: Callable[..., Training], tmp_path: Path) -> None:
    other = make('shared', FOREVER)
    process = other.start()
    ours = make('shared')
    try:
        assert run_trainings([ours, make('free')]) == {'shared': f'another process trains in {ours.folder}'}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wait_until_nobody_writes(ours.log)
    assert run_trainings([ours]) == {}
