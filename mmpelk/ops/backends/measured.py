"""The choice of a backend by measuring, as ``torch.backends.cudnn.benchmark`` chooses a convolution.

With ``mmpelk.ops.benchmark`` the first call with a shape times the backends that can compute it, forward and gradient
of the weight each by itself, and later calls take the fastest. Answers are kept in a small file per user, by device and
versions; in a distributed run all processes take that of the first. The rule of :mod:`.choice` stays where measuring
has no sense: in deterministic mode, while a CUDA graph is captured, and once many shapes have come by.
"""

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..layout import is_channels_last
from .table import BACKENDS, refusal
from .triton import allows_tf32

__all__ = ['cache_file', 'measured_backend']

_LOGGER = logging.getLogger('mmpelk.ops')
_ENVIRONMENT_VARIABLE = 'MMPELK_BENCHMARK_CACHE'
_FORMAT = 1
# Shapes of one kernel after which more are not worth the time: those of a training with changing sizes.
_MOST_SHAPES = 8
_SECONDS = 0.3  # for the repetitions of one backend
_REPETITIONS = 5
_IN_A_ROW = 4
_SLOWER = 4  # times the fastest: not repeated
# Multiply-adds up to which the dense kernel is tried: some tenths of a second by torch's slowest.
_MOST_DENSE = 2**33

_OPERATOR = __name__.rsplit('.', 2)[0]
_lock = threading.RLock()
_RULE = 'rule'
What = Literal['forward', 'prepared', 'weight_grad']
_WEIGHT_GRAD: What = 'weight_grad'
_answers: dict[Hashable, str] = {}
_shapes: dict[Hashable, set[str]] = {}


def is_on(x: Tensor) -> bool:
    """Whether calls are to be measured: ``mmpelk.ops.benchmark``, or on CUDA cuDNN's flag where that is ``None``."""
    wanted = sys.modules[_OPERATOR].benchmark  # the package is imported before its backends are called
    return x.is_cuda and torch.backends.cudnn.benchmark if wanted is None else bool(wanted)


def measured_backend(x: Tensor, grid: Sequence[int], run: Callable[[str], Any], what: What) -> str | None:
    """The backend that was measured to be the fastest for such a call, after measuring it if it is the first.

    Args:
        x: The call's map.
        grid: Its sharing grid.
        run: Computes the call with a backend.
        what: What it computes; ``'prepared'`` is ``'forward'`` with what a backend has prepared of the weight.

    Returns:
        A name, or ``None`` where the rule is to decide.
    """
    if not is_on(x) or type(x) is not Tensor or torch.are_deterministic_algorithms_enabled():
        return None
    call = what, tuple(grid), x.shape, x.stride(), x.dtype, x.device, torch.get_num_threads()
    name = _answers.get(call)
    if name is None and not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        with _lock:
            try:
                name = _answers.get(call) or _ask(x, grid, run, what)
            except Exception as error:  # of a store that is gone, for instance: no reason to end a training
                _LOGGER.warning('no backend is measured for %s: %s: %s', what, type(error).__name__, error)
            _answers[call] = name or _RULE
    if name is None or name == _RULE or refusal(name, x, what == _WEIGHT_GRAD) is not None:
        return None
    return name


def _ask(x: Tensor, grid: Sequence[int], run: Callable[[str], Any], what: What) -> str | None:
    """An answer of the file or of a measurement; ``None`` after too many shapes."""
    key, path = _key(x, grid, what), cache_file()
    known = None if path is None else _read(path).get(key)
    if known is None:
        shapes = _shapes.setdefault((tuple(grid), x.shape[1], x.dtype, x.device, what), set())
        if len(shapes) >= _MOST_SHAPES:
            return None
        shapes.add(key)
    name = _agreed(key, lambda: known or _measure(x, grid, run, what))
    if name not in BACKENDS:
        return None
    if path is not None and name != known:
        _write(path, key, name)
    return name


def _measure(x: Tensor, grid: Sequence[int], run: Callable[[str], Any], what: What) -> str:
    """Time every backend that can compute the call; those that fail are left out."""
    seconds: dict[str, float] = {}
    for name in _candidates(x, grid, what):
        try:
            call = partial(run, name)
            call()  # compiles, plans, allocates
            first = _seconds(x, call)
            slow = first > _SLOWER * min(seconds.values(), default=first)
            count = 0 if slow else min(_REPETITIONS, int(_SECONDS / max(first, 1e-6)))
            seconds[name] = min([first, *(_seconds(x, call, _IN_A_ROW) for _ in range(count))])
        except Exception as error:  # a compiler, the device's memory: the others can do it
            _LOGGER.debug('backend %r is not timed: %s: %s', name, type(error).__name__, error)
    fastest = min(seconds, key=seconds.__getitem__)
    _LOGGER.debug(
        'measured %s: %s',
        _key(x, grid, what),
        {name: f'{1e3 * value:.3f} ms' for name, value in seconds.items()},
    )
    return fastest


def _candidates(x: Tensor, grid: Sequence[int], what: What) -> list[str]:
    names = []
    for name, backend in BACKENDS.items():
        usable = (
            backend.unavailable_reason() is None
            and backend.unsupported_reason(x, x, grid) is None
            and refusal(name, x, what == _WEIGHT_GRAD) is None
        )
        if usable and (name != 'dense' or x.numel() * sum(grid) ** 2 <= _MOST_DENSE):
            names.append(name)
    return sorted(names, key='dense'.__eq__)  # the slowest of large kernels last, so that it is cut short


def _seconds(x: Tensor, call: Callable[[], Any], in_a_row: int = 1) -> float:
    """Of one call; on CUDA of several in a row, which the host launches while the device computes."""
    if not x.is_cuda:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    torch.cuda.synchronize(x.device)
    start = time.perf_counter()
    for _ in range(in_a_row):
        call()
    torch.cuda.synchronize(x.device)
    return (time.perf_counter() - start) / in_a_row


def _key(x: Tensor, grid: Sequence[int], what: What) -> str:
    layout = 'channels_last' if is_channels_last(x) else 'planes'
    where = _machine(x.device)
    return f'{where} | {what} {"x".join(map(str, x.shape))} {str(x.dtype)[6:]} {layout} {"+".join(map(str, grid))}'


def _machine(device: torch.device) -> str:
    """Device and versions that a measurement holds for."""
    if device.type == 'cuda':
        import importlib.metadata

        if device not in _machines:
            try:
                triton = importlib.metadata.version('triton')
            except importlib.metadata.PackageNotFoundError:
                triton = 'none'
            flags = f'cudnn {torch.backends.cudnn.version()}, triton {triton}'
            _machines[device] = f'{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {flags}'
        return f'{_machines[device]}, tf32 {allows_tf32()}'
    return f'{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, threads {torch.get_num_threads()}'


_machines: dict[torch.device, str] = {}


def _agreed(key: str, measure: Callable[[], str]) -> str:
    """In a distributed run the answer of the process that was first, so that all use the same backend."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return measure()
    # Private: the store of the process group is the only way to agree without waiting. A collective would hang as
    # soon as two processes have maps of different sizes.
    store = distributed.distributed_c10d._get_default_store()
    name = f'mmpelk/{key}'
    known = store.compare_set(name, '', '').decode()  # torch 2.1 has no store.check
    return known or store.compare_set(name, '', measure()).decode()


def cache_file() -> Path | None:
    """Where answers are kept: ``MMPELK_BENCHMARK_CACHE``, by default in the user's cache; ``None`` if that is empty."""
    given = os.environ.get(_ENVIRONMENT_VARIABLE)
    if given is not None:
        return Path(given) if given else None
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(home) / 'mmpelk' / 'fastest_backends.json'


def _read(path: Path) -> dict[str, str]:
    """Answers of a file, which is data: names of backends by key. Anything else is ignored, with a warning."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        answers = content['answers'] if content['format'] == _FORMAT else {}
        if not all(isinstance(key, str) and name in BACKENDS for key, name in answers.items()):
            raise ValueError('not a table of backends')
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _LOGGER.warning('%s is ignored and will be written anew: %s: %s', path, type(error).__name__, error)
        return {}
    return dict(answers)


def _write(path: Path, key: str, name: str) -> None:
    """Add an answer to the file, whole or not at all. Where it cannot be written, answers last as long as the run."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        answers = (_read(path) if path.exists() else {}) | {key: name}
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(descriptor, 'w', encoding='utf-8') as file:
            json.dump({'format': _FORMAT, 'answers': answers}, file, indent=1)
        os.replace(temporary, path)
    except OSError as error:
        _LOGGER.debug('%s is not written: %s', path, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
