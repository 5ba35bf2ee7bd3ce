"""What the names in pickles of ``torch.save`` stand for: a function of ours for each, which builds data.

Arguments come from a file: each function looks at their types before it uses them.
"""

import itertools
import math
import re
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

_ARRAY_KINDS = re.compile(r'[|<=]?([?bBhHiIlLqQefdFD]|[biufcSU]\d{1,6})')
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
MOST_DIMENSIONS = 64  # of torch's and NumPy's loops

CALLED_TYPES = (int, float, bool, str, bytes, bytearray, complex, list, tuple, dict, set, frozenset)


@dataclass(frozen=True)
class Name:
    """A name in a file that stands for one of our functions, or for a type."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers of tensors, by the key of their record."""

    key: str
    dtype: torch.dtype
    numel: int
    location: str

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass
class Pending:
    """An array of NumPy or a history buffer whose content has not come yet, and where in the memo it is."""

    kind: type
    memo_keys: list[int] = field(default_factory=list)


def check(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise UnpicklingError(f'{type(value).__name__} instead of {kinds[0].__name__}')
    return value


def index(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise UnpicklingError('a size that is not valid')
    return value


def hashable(key: Any, depth: int = 2) -> Any:
    """A key that is hashed and compared at once, unlike tuples of tuples of the same tuples."""
    if isinstance(key, tuple | frozenset) and depth:
        for part in key:
            hashable(part, depth - 1)
    elif not isinstance(key, str | int | float | complex | bytes | np.generic | torch.dtype | type(None)):
        raise UnpicklingError(f'{type(key).__name__} as a key')
    return key


def set_items(target: Any, values: list[Any]) -> None:
    check(target, dict, OrderedDict, defaultdict, Counter, ConfigDict)
    for key, value in _pairs(values):
        target[hashable(key)] = value


def _pairs(values: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(itertools.islice(values, 0, None, 2), itertools.islice(values, 1, None, 2), strict=True)


def _make_dict(kind: type[dict]) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        made = kind()
        for argument in arguments:  # one at most: pairs, or a dict
            items = argument.items() if isinstance(argument, dict) else check(argument, list, tuple)
            for key, value in items:
                made[hashable(key)] = value
        return made

    return make


def _make_defaultdict(factory: Any = None) -> Any:
    factory = OrderedDict if factory == Name('collections.OrderedDict') else factory
    if factory is not None and factory not in (OrderedDict, int, float, str, list, tuple, dict, set):
        raise UnpicklingError('a defaultdict of another kind')
    return defaultdict(factory)


def _make_deque(values: Any = (), length: Any = None) -> deque:
    return deque(check(values, list, tuple), None if length is None else index(length))


def decode(text: str) -> str:
    """A text of Python 2, whose bytes ``pickletools`` gives as characters, as ``torch.load`` has it."""
    try:
        return text.encode('latin1').decode()
    except UnicodeDecodeError:
        return text


def _method_name(owner: Any, name: Any) -> str:
    """Stands in for ``getattr``, which mmengine's files call for methods of history buffers and of OneCycleLR."""
    if owner not in (Name(HISTORY), Name(ONE_CYCLE)):
        raise UnpicklingError('GLOBAL builtins.getattr was asked for something else than a history buffer')
    return check(name, str)


def _encode(text: Any, encoding: Any) -> bytes:
    """How pickles of protocol 2 hold bytes."""
    if encoding != 'latin1':
        raise UnpicklingError('bytes in another encoding')
    return check(text, str).encode('latin1')


def _make_dtype(code: Any, *_: Any) -> np.dtype:
    if not _ARRAY_KINDS.fullmatch(check(code, str)):
        raise UnpicklingError(f'a dtype of NumPy of another kind, {code}')
    return np.dtype(code)


def _make_array(content: Any, dtype: Any, shape: Any, order: Any = 'C') -> np.ndarray:
    shape = tuple(map(index, check(shape, tuple)))
    if not isinstance(dtype, np.dtype) or order not in ('C', 'F') or len(shape) > MOST_DIMENSIONS // 2:
        raise UnpicklingError('an array of NumPy of another kind')
    content = check(content, bytes, bytearray)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise UnpicklingError('an array of NumPy of another size')
    if not content:
        return np.zeros(shape, dtype, order=order)
    return np.frombuffer(content, dtype).reshape(shape, order=order).copy(order='K')


def make_array_of_state(version: Any, shape: Any, dtype: Any, is_fortran: Any, content: Any) -> np.ndarray:
    return _make_array(content, dtype, shape, 'F' if is_fortran else 'C')


def make_history(state: Any) -> HistoryBuffer:
    """Without the functions that mmengine writes beside the numbers."""
    numbers, counts = (check(state[key], np.ndarray) for key in ('_log_history', '_count_history'))
    length = check(state['max_length'], int)
    if any(each.ndim != 1 or each.dtype.kind not in 'biuf' for each in (numbers, counts)) or length < 1:
        raise UnpicklingError('a history buffer of another kind')
    return HistoryBuffer(numbers, counts, length)


def _make_scalar(dtype: Any, content: Any) -> Any:
    return _make_array(content, dtype, ())[()]


def _make_parameter(data: Any, requires_grad: Any, *_: Any) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise UnpicklingError('a parameter without numbers')
    return nn.Parameter(data, bool(requires_grad))


VALUES: dict[str, Any] = {f'builtins.{kind.__name__}': kind for kind in CALLED_TYPES}
VALUES |= {f'torch.{name}': value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


def _plain(kind: type, *allowed: type) -> Callable[..., Any]:
    """A maker of values of a Python type, which accepts arguments of certain types only."""
    return lambda *arguments: kind(*(check(each, *allowed) for each in arguments))


def _make_path(*parts: Any) -> str:
    """As a text: the options that scripts store have paths of the machine that they ran on."""
    return '/'.join(check(part, str) for part in parts).replace('//', '/', 1)


MAKERS: dict[str, Callable[..., Any]] = {
    **{f'builtins.{kind.__name__}': _plain(kind, int, float, bool, str) for kind in (int, float, bool, complex)},
    'builtins.str': _plain(str, str),
    'builtins.list': _plain(list, list, tuple),
    'builtins.tuple': _plain(tuple, list, tuple),
    'builtins.dict': _make_dict(dict),
    'builtins.bytes': _plain(bytes, bytes),
    'builtins.bytearray': _plain(bytearray, bytes),
    'builtins.set': lambda values=(): {hashable(value) for value in check(values, list, tuple)},
    'builtins.frozenset': lambda values=(): frozenset(hashable(value) for value in check(values, list, tuple)),
    'builtins.slice': _plain(slice, int, type(None)),
    'builtins.getattr': _method_name,
    '_codecs.encode': _encode,
    'collections.deque': _make_deque,
    'collections.OrderedDict': _make_dict(OrderedDict),
    'collections.Counter': _make_dict(Counter),
    'collections.defaultdict': _make_defaultdict,
    'argparse.Namespace': lambda: Namespace(),  # ConvNeXt's, SLaK's and timm's scripts store their options
    HISTORY: lambda: Pending(HistoryBuffer),
    ONE_CYCLE: lambda *_: _refuse(ONE_CYCLE),
    'mmengine.config.config.ConfigDict': _make_dict(ConfigDict),
    **dict.fromkeys(('pathlib.PosixPath', 'pathlib.WindowsPath', 'pathlib._local.PosixPath'), _make_path),
    'torch.torch_version.TorchVersion': _plain(str, str),
    'torch.Size': lambda sizes: torch.Size(map(index, check(sizes, tuple, list))),
    'torch.device': _plain(torch.device, str, int),
    'torch.Tensor': lambda *_: _refuse('torch.Tensor'),
    'torch._tensor.Tensor': lambda *_: _refuse('torch.Tensor'),
    'torch.nn.parameter.Parameter': lambda *_: _refuse('torch.nn.parameter.Parameter'),
    'torch._utils._rebuild_parameter': _make_parameter,
    'torch._utils._rebuild_parameter_with_state': _make_parameter,
    'numpy.dtype': _make_dtype,
    'numpy.ndarray': lambda *_: _refuse('numpy.ndarray'),
}
for _package in ('numpy.core', 'numpy._core'):  # as numpy 1 and 2 call it
    MAKERS |= {
        f'{_package}.multiarray._reconstruct': lambda *_: Pending(np.ndarray),
        f'{_package}.multiarray.scalar': _make_scalar,
        f'{_package}.numeric._frombuffer': _make_array,
    }


def _refuse(name: str) -> Any:
    raise UnpicklingError(f'a call of {name}')
