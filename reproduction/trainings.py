"""Trainings as processes: several at a time, each after those that it needs, and all stopped with the command."""

import fcntl
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_POLL = 0.25  # seconds between two looks at the processes
_GRACE = 60.0  # seconds to end in after SIGTERM; torchrun gives its workers 30


@dataclass(eq=False)
class Training:
    """A training that a command runs.

    Attributes:
        name: For messages.
        command: What starts it.
        folder: Its work folder, of no other training.
        is_finished: Whether its result is there.
        environment: Environment variables to add.
        needs: The training that has to be finished first.
        prepare: Called right before it starts, while no other process trains in the folder.
    """

    name: str
    command: Sequence[str]
    folder: Path
    is_finished: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: 'Training | None' = None
    prepare: Callable[[], None] | None = None

    @property
    def log(self) -> Path:
        """Everything that the command prints, of all starts, each below its command."""
        return self.folder / 'console.log'

    def shell(self) -> str:
        """The command as one types it."""
        return ' '.join([*(f'{name}={value}' for name, value in self.environment.items()), shlex.join(self.command)])

    def start(self) -> subprocess.Popen:
        """Start it in a process group of its own.

        Raises:
            BlockingIOError: If another process trains in the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open('ab') as log:
            # The processes inherit the log, and with it the lock: it lasts as long as any of them.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # a file system without locks
                pass
            if self.prepare:
                self.prepare()
            log.write(f'\n$ {self.shell()}\n'.encode())
            log.flush()
            return subprocess.Popen(
                self.command,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def failure(self, code: int) -> str | None:
        """Why it failed, given the exit code of its command; ``None`` if it did not."""
        if code == 0:
            return None if self.is_finished() else f'ended without its last test; all of it: {self.log}'
        printed = self.log.read_text(encoding='utf-8', errors='replace').rpartition('\n$ ')[2]  # by this start
        errors = [line for line in printed.splitlines() if line.startswith('error: ')]
        return f'{errors[-1] if errors else f"exit code {code}"}; all of it: {self.log}'


def run_trainings(trainings: Iterable[Training], at_a_time: int = 1, keep_going: bool = True) -> dict[str, str]:
    """Run the trainings that are not finished, in their order, and print what happens.

    SIGINT, SIGTERM and SIGHUP stop the trainings, too: their process groups are sent SIGTERM and waited for.

    Args:
        trainings: One that another needs stands before it, or is finished.
        at_a_time: How many run at once.
        keep_going: Whether those that do not need a failed training go on; otherwise the running ones are stopped, and
            the others are not started.

    Returns:
        Why those that failed did, by their names.

    Raises:
        KeyboardInterrupt: If a signal stopped them.
    """
    waiting, count = list(trainings), 0
    total = len(waiting)
    running: dict[Training, subprocess.Popen] = {}
    failed: dict[str, str] = {}

    def begin(training: Training) -> str | None:
        """Why the training cannot start."""
        if training.needs and training.needs.name in failed:
            return f'{training.needs.name} failed'
        if training.is_finished():
            print(f'[{count}/{total}] {training.name}: finished before', flush=True)
            return None
        try:
            running[training] = training.start()
        except BlockingIOError:
            return f'another process trains in {training.folder}'
        print(f'[{count}/{total}] {training.name}: started, {training.log}', flush=True)
        return None

    def fail(training: Training, reason: str) -> None:
        failed[training.name] = reason
        print(f'{training.name}: failed: {reason}', flush=True)

    with _stop_signal() as stopped:
        try:
            while (waiting or running) and not stopped.is_set() and (keep_going or not failed):
                for training in [*waiting]:
                    if len(running) < at_a_time and training.needs not in [*waiting, *running]:
                        waiting.remove(training)
                        count += 1
                        if reason := begin(training):
                            fail(training, reason)
                for training, process in [*running.items()]:
                    if (code := process.poll()) is not None:
                        _stop([running.pop(training)])
                        if reason := training.failure(code):
                            fail(training, reason)
                        else:
                            print(f'{training.name}: finished', flush=True)
                if running:
                    stopped.wait(_POLL)
        finally:
            _stop(running.values())
    if stopped.is_set():
        raise KeyboardInterrupt
    return failed


def _stop(processes: Iterable[subprocess.Popen]) -> None:
    """End the process groups: with SIGTERM, and with SIGKILL those that outlive their leader or the time of grace."""
    for process in processes:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that is set by the signals that ask a command to end, where handlers can be set: in the main thread."""
    event = threading.Event()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
