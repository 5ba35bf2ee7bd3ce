"""A convolution whose weight stays: what depends on the weight and the map's size alone is computed once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import autocast_dtype, cast_under_autocast, without_autocast
from .backends import BACKENDS, fastest_backend, forced_backend, requested_backend
from .backends.first_results import is_capturing
from .backends.measured import measured_backend
from .custom_op import conv, conv_prepared
from .functional import check
from .layout import is_channels_last

_SIZES = 4  # map sizes that a cache keeps
_BYTES = 64 * 2**20  # that it keeps at most


@dataclass(frozen=True)
class Prepared:
    """A partial convolution for inference on maps of one size: the channels beyond the weight's pass unchanged."""

    weight: Tensor
    bias: Tensor | None
    grid: list[int]
    backend: str | None
    kernel: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape and memory format."""
        x, *_ = cast_under_autocast(x, self.weight, None)
        if self.kernel is None:
            return conv(x, self.weight, self.bias, self.grid, self.backend)
        return conv_prepared(x, self.weight, self.bias, self.grid, self.backend, self.kernel)


def _settings_of(x: Tensor, backend: str | None) -> tuple[Any, ...]:
    """What a prepared convolution depends on beside its tensors."""
    dtype = autocast_dtype(x.device.type)
    return x.shape, x.dtype, x.device, is_channels_last(x), dtype, backend or forced_backend()


@dataclass(frozen=True)
class _Entry:
    prepared: Prepared
    copies: list[Tensor | None]

    @property
    def bytes(self) -> int:
        tensors = [*self.copies, self.prepared.weight, self.prepared.bias, self.prepared.kernel]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)

    def is_of(self, tensors: Sequence[Tensor | None]) -> bool:
        pairs = zip(tensors, self.copies, strict=True)
        return all(a is b if a is None or b is None else _is_equal(a, b) for a, b in pairs)


@dataclass(frozen=True)
class _TensorVersion:
    """Identity, address and write counter of a tensor: they reveal a change without reading its numbers."""

    tensor: Tensor | None
    address: int
    version: int

    @classmethod
    def of(cls, tensor: Tensor | None) -> '_TensorVersion':
        if tensor is None:
            return cls(None, 0, 0)
        # Private: torch has no public count of writes. Inference tensors have none at all.
        return cls(tensor, tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)

    def is_of(self, tensor: Tensor | None) -> bool:
        other = _TensorVersion.of(tensor)
        return tensor is self.tensor and (other.address, other.version) == (self.address, self.version)


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


class PreparedCache:
    """The prepared convolutions of one kernel, for the last few settings of its maps.

    An entry counts only while the tensors that it was made of hold the same numbers. They are compared with copies, so
    that no write passes unseen: ``.data`` and inference tensors count no writes. On a CPU that takes microseconds;
    elsewhere it would wait for the device, so that nothing is kept there unless the cache is frozen. Threads may share
    a cache. Copies and pickles of it are empty and not frozen.

    A frozen cache relies on torch's counts of writes, and raises where they tell of one. What it holds stays until
    :meth:`freeze` is called again, since a captured CUDA graph may read it; sizes beyond its limits are made anew.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._frozen: dict[Any, tuple[Prepared, list[_TensorVersion]]] | None = None
        self._lock = threading.Lock()

    def freeze(self, mode: bool) -> None:
        """Keep what is made on every device, or compare numbers again; either way begin empty."""
        with self._lock:
            self._entries.clear()
            self._frozen = {} if mode else None

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedCache, ()

    def __len__(self) -> int:
        return len(self._entries) + len(self._frozen or {})

    def get(
        self,
        x: Tensor,
        tensors: Sequence[Tensor | None],
        backend: str | None,
        make: Callable[[], Prepared],
        grid: Sequence[int] = (),
    ) -> Prepared:
        """What ``make`` returns, or returned before for a map like ``x`` and the same ``tensors``.

        Args:
            x: A map of the size, layout, dtype and device of those to convolve.
            tensors: All tensors that ``make`` reads.
            backend: The backend that ``make`` asks for.
            make: Prepares the convolution.
            grid: Ring widths that ``make`` reads.

        Raises:
            RuntimeError: If the cache is frozen and one of the tensors was written to or replaced.
        """
        frozen = self._frozen
        if frozen is None and x.device.type != 'cpu':
            return make()
        key = *_settings_of(x, backend), tuple(grid)
        if frozen is not None:
            return self._get_frozen(frozen, key, tensors, make)
        entry = self._entries.get(key)
        if entry is not None and entry.is_of(tensors):
            with self._lock:
                if key in self._entries:
                    self._entries.move_to_end(key)  # what is used least makes room
            return entry.prepared
        # Copied first: a write while `make` reads then leaves an entry that nobody takes.
        copies = [None if tensor is None else tensor.detach().clone() for tensor in tensors]
        entry = _Entry(make(), copies)
        with self._lock:
            self._entries.pop(key, None)
            while self._entries and (len(self._entries) >= _SIZES or self._bytes + entry.bytes > _BYTES):
                self._entries.popitem(last=False)
            if entry.bytes <= _BYTES:
                self._entries[key] = entry
        return entry.prepared

    def _get_frozen(
        self,
        frozen: dict[Any, tuple[Prepared, list[_TensorVersion]]],
        key: tuple[Any, ...],
        tensors: Sequence[Tensor | None],
        make: Callable[[], Prepared],
    ) -> Prepared:
        kept = frozen.get(key)
        if kept is not None:
            prepared, marks = kept
            if all(mark.is_of(tensor) for mark, tensor in zip(marks, tensors, strict=True)):
                return prepared
            raise RuntimeError(
                'the weights of a frozen network have changed: call mmpelk.freeze(model) again after a change, and '
                'capture CUDA graphs again'
            )
        marks = [_TensorVersion.of(tensor) for tensor in tensors]
        prepared = make()
        with self._lock:
            # Memory of a graph that is being captured is written at every replay.
            if len(frozen) < _SIZES and not is_capturing(prepared.weight):
                frozen.setdefault(key, (prepared, marks))
        return prepared

    @property
    def _bytes(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())


@torch.no_grad()
def prepare(
    x: Tensor, weight: Tensor, sharing_grid: Sequence[int], bias: Tensor | None, backend: str | None = None
) -> Prepared:
    """The convolution that :func:`mmpelk.ops.peripheral_conv2d` computes with ``partial=True``, made ready.

    Args:
        x: A map of the size, layout, dtype and device of those to come.
        weight: ``(C, 1, k', k')``, whose values must not change any more.
        sharing_grid: ``k'`` ring widths.
        bias: ``(C,)`` or ``(C, H, W)``.
        backend: A name, or ``None`` for the fastest.

    Raises:
        ValueError: As :func:`mmpelk.ops.peripheral_conv2d`.
        RuntimeError: As :func:`mmpelk.ops.peripheral_conv2d`.
    """
    grid = [int(width) for width in sharing_grid]
    x, weight, bias = cast_under_autocast(x, weight.detach(), None if bias is None else bias.detach())
    mixed = x[:, : weight.shape[0]]
    check(mixed, weight, grid, bias)
    requested = requested_backend(mixed, weight, grid, backend)
    name = requested or _measured(mixed, weight, bias, grid) or fastest_backend(mixed, grid)
    backend_of = BACKENDS[name]
    # What is compiled may fail. Named, it shall raise where it is called; chosen, the call goes on with another.
    if backend_of.prepare is None or (requested and backend_of.kernel_key):
        return Prepared(weight, bias, grid, requested, None)
    if bias is not None and bias.dim() == 3 and backend_of.kernel_key:
        # Rows of multiples of 16 bytes, which compiled kernels read as they are.
        columns = bias.shape[2]
        bias = F.pad(bias.contiguous(), (0, -columns % (16 // bias.element_size())))[..., :columns]
    try:
        with without_autocast(x.device.type):
            return Prepared(weight, bias, grid, name, backend_of.prepare(weight, grid, mixed))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:
        if backend_of.kernel_key is None:
            raise
        return Prepared(weight, bias, grid, None, None)


def _measured(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int]) -> str | None:
    """The backend that is measured to be the fastest with a prepared kernel, if calls are to be measured."""
    kernels: dict[str, dict[str, Tensor]] = {}

    def run(name: str) -> Tensor:
        backend = BACKENDS[name]
        if name not in kernels:
            kernels[name] = {} if backend.prepare is None else {'kernel': backend.prepare(weight, grid, x)}
        return backend.forward(x, weight, bias, grid, **kernels[name])

    with without_autocast(x.device.type):
        return measured_backend(x, grid, run, what='prepared')
