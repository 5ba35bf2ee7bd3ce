"""What all processes of a training have to agree on."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_comm_device, is_distributed, is_main_process
from torch import Tensor

from .errors import UserError

_Result = TypeVar('_Result')


def from_main(function: Callable[[], _Result]) -> _Result:
    """Call a function on the first process alone and return its result on all; every process has to call this."""
    result: list[Any] = [function() if is_main_process() else None]
    broadcast_object_list(result)
    return result[0]


@contextlib.contextmanager
def raise_on_all() -> Iterator[None]:
    """Raise a :class:`UserError` of the first process on all of them; every process has to enter this."""
    fault = ''
    try:
        yield
    except UserError as error:
        fault = str(error)
    fault = from_main(lambda: fault)
    if fault:
        raise UserError(fault)


class Agreement:
    """A non-blocking all-reduce of a flag: asked at one point of an iteration, answered at a later one.

    The flags are collected and copied to the host on a stream of their own, while the device computes. The answer waits
    for that copy alone, so that work which was launched after the question goes on in the meantime.
    """

    def __init__(self) -> None:
        self._flag: Tensor | None = None
        self._work: Any = None
        self._copied: Any = None
        self._stream = torch.cuda.Stream() if get_device() == 'cuda' else None

    def ask(self, flag: bool | Tensor) -> None:
        """Ask; every process has to, in the same order.

        Args:
            flag: What this process says: true or false, or a tensor of one element on any device.
        """
        value = flag.detach().reshape(1).float() if isinstance(flag, Tensor) else torch.full((1,), float(flag))
        if not is_distributed():
            self._flag = self._copy(value)
            return
        device = get_comm_device()
        if self._stream is None or device.type == 'cpu':
            self._flag = value.to(device)
            self._work = torch.distributed.all_reduce(self._flag, torch.distributed.ReduceOp.MAX, async_op=True)
            return
        value = value.to(device, non_blocking=True)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
            value.record_stream(self._stream)
        self._flag = self._copy(value)

    def answer(self) -> bool:
        """Whether the flag of the last :meth:`ask` was true on any process; false if nothing was asked."""
        if self._flag is None:
            return False
        if self._work is not None:
            self._work.wait()
        if self._copied is not None:
            self._copied.synchronize()
        said = bool(self._flag.item())
        self._flag = self._work = self._copied = None
        return said

    def _copy(self, value: Tensor) -> Tensor:
        """Start a copy of a tensor to the host, on this object's stream."""
        if not value.is_cuda or self._stream is None:
            return value
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            host = torch.empty(1, pin_memory=True).copy_(value, non_blocking=True)
            value.record_stream(self._stream)
            self._copied = torch.cuda.Event()
            self._copied.record()
        return host
