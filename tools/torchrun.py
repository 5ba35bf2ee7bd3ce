"""``torchrun``, without its forty lines about a process that has already said what went wrong."""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

try:
    run(parse_args(sys.argv[1:]))
except ChildFailedError as error:
    rank, failure = error.get_first_failure()
    print(f'stopped: process {rank} exited with code {failure.exitcode}', file=sys.stderr)
    # A signal stands there as its negative number; a shell wants 128 more than the number.
    sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
