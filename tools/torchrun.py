"""``torchrun`` that passes signals on, without its forty lines about a process that has printed its own error.

torchrun's own way with SIGTERM and Ctrl-C is to kill the processes after 30 seconds and to exit with 1; SIGUSR1 ends it
and leaves them behind. Here the processes get these three, and what they exit with is the exit code.
"""

import os
import signal
import sys
from subprocess import Popen
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
processes: list[Popen] = []
start = api.SubprocessHandler.__init__


def start_and_remember(self: api.SubprocessHandler, *args: Any, **kwargs: Any) -> None:
    start(self, *args, **kwargs)
    processes.append(self.proc)


def hand_on(number: int, frame: FrameType | None) -> None:
    if not processes:  # no process to pass it on to yet
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    for process in processes:
        process.send_signal(number)


def main() -> None:
    api.SubprocessHandler.__init__ = start_and_remember  # type: ignore[method-assign]
    for number in SIGNALS:
        signal.signal(number, hand_on)
    options = parse_args(sys.argv[1:])
    options.signals_to_handle = 'SIGHUP,SIGQUIT'  # by torchrun itself
    try:
        run(options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f'stopped: process {rank} exited with code {failure.exitcode}', file=sys.stderr)
        # A signal stands there as its negative number; a shell wants 128 more than the number.
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == '__main__':
    main()
