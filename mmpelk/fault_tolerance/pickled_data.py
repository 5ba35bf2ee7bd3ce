"""An interpreter for the pickles of ``torch.save`` that can build data only.

Python's own unpicklers call what a file names. This one reads the instructions (``pickletools.genops``) and has a
function of its own for each of the few names that stand for data: no class of the process is called with a state from a
file, nothing is imported, nothing is kept between two files. Archives are read with ``zipfile``, which compares the
checksums.
"""

import io
import math
import pickletools
import re
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sized
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from .pickled_values import (
    CALLED_TYPES,
    HISTORY,
    MAKERS,
    MOST_DIMENSIONS,
    ONE_CYCLE,
    VALUES,
    Name,
    Pending,
    Storage,
    check,
    decode,
    hashable,
    index,
    make_array_of_state,
    make_history,
    set_items,
)

Location = str | torch.device | Mapping[str, str] | Callable | None

# What torch.save wrote before its archives: a number, a version and facts of the machine before the data.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    'Float': torch.float32,
    'Double': torch.float64,
    'Half': torch.float16,
    'BFloat16': torch.bfloat16,
    'Long': torch.int64,
    'Int': torch.int32,
    'Short': torch.int16,
    'Char': torch.int8,
    'Byte': torch.uint8,
    'Bool': torch.bool,
    'ComplexFloat': torch.complex64,
    'ComplexDouble': torch.complex128,
    'Untyped': torch.uint8,
}
_CHUNK = 2**22  # bytes read at a time
_MOST_COPIED = 16  # items, for each byte of the file
_DEEPEST = 100  # containers in each other


def read_pickled(file: BinaryIO, map_location: Location = None) -> Any:
    """Read what ``torch.save`` wrote, an archive or the format before.

    Args:
        file: Open, at its beginning; seekable.
        map_location: As ``torch.load`` takes it. ``'meta'`` leaves the numbers of tensors where they are, and their
            checksums unseen.

    Raises:
        Exception: Of any kind, if the file is damaged; ``UnpicklingError`` with ``GLOBAL NAME`` if it names what is not
            data.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_archive = zipfile.is_zipfile(file)
    file.seek(0)
    if not is_archive and file.read(2) == b'PK':
        raise zipfile.BadZipFile('an archive without an end')
    file.seek(0)
    return _read_archive(file, size, map_location) if is_archive else _read_legacy(file, size, map_location)


def _read_archive(file: BinaryIO, size: int, map_location: Location) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        if any(name.endswith('/constants.pkl') for name in records):
            raise UnpicklingError('TorchScript')
        found = [name for name in records if re.fullmatch('[^/]+/data.pkl', name)]
        if len(found) != 1 or any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
            raise UnpicklingError('an archive that torch.save has not written')
        if sum(record.file_size for record in records.values()) > size:
            raise UnpicklingError('less than it claims')
        root = found[0].partition('/')[0]
        if f'{root}/byteorder' in records and archive.read(f'{root}/byteorder').decode() != sys.byteorder:
            raise UnpicklingError('numbers in another byte order')

        def read(storage: Storage) -> Tensor | None:
            name = f'{root}/data/{storage.key}'
            if records[name].file_size != storage.nbytes:
                raise UnpicklingError(f'{name} has another size')
            if map_location == 'meta':
                return None
            with archive.open(name) as record:
                return _move(_read_bytes(record, storage.nbytes), storage.location, map_location)

        return _Interpreter(read).run(io.BytesIO(archive.read(found[0])))


class _BoundedFile:
    """A file that is never asked for more bytes than it has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int = -1) -> bytes:
        left = self.size - self.file.tell()
        return self.file.read(left if count < 0 else min(count, left))


def _read_legacy(file: BinaryIO, size: int, map_location: Location) -> Any:
    bounded: Any = _BoundedFile(file, size)
    if _Interpreter(_nothing).run(bounded) != _LEGACY_MAGIC:
        raise UnpicklingError('a pickle that torch.save has not written')
    _Interpreter(_nothing).run(bounded)  # version of the format
    if _Interpreter(_nothing).run(bounded)['little_endian'] != (sys.byteorder == 'little'):
        raise UnpicklingError('numbers in another byte order')
    # The numbers come last: first which there are, then what they are for.
    start, known = file.tell(), {}

    def note(storage: Storage) -> None:
        known[storage.key] = storage

    content = _Interpreter(note).run(bounded)
    keys = _Interpreter(_nothing).run(bounded)
    if map_location == 'meta':
        return content
    numbers = {}
    for key in keys:
        storage = known[key]
        numel = int.from_bytes(bounded.read(8), sys.byteorder)
        if numel != storage.numel or storage.nbytes > size:
            raise UnpicklingError(f'storage {key} has another size')
        numbers[key] = _move(_read_bytes(bounded, storage.nbytes), storage.location, map_location)
    file.seek(start)
    return _Interpreter(lambda storage: numbers[storage.key]).run(bounded)


def _nothing(storage: Storage) -> None:
    return None


def _read_bytes(file: Any, count: int) -> Tensor:
    """Read a number of bytes of a file as a tensor."""
    numbers = torch.empty(count, dtype=torch.uint8)
    view: Any = memoryview(numbers.numpy())  # type: ignore[arg-type]
    for start in range(0, count, _CHUNK):
        part = file.read(min(_CHUNK, count - start))
        view[start : start + len(part)] = part
        if len(part) < min(_CHUNK, count - start):
            raise EOFError
    if isinstance(file, zipfile.ZipExtFile):
        file.read(1)  # the end, where zipfile compares the checksum of an empty record, too
    return numbers


def _move(numbers: Tensor, location: str, map_location: Location) -> Tensor:
    """The bytes of a storage on the device that it is wanted on."""
    if isinstance(map_location, Mapping):
        location = map_location.get(location, location)
    elif callable(map_location):
        moved = map_location(numbers.untyped_storage(), location)
        if moved is not None:
            return torch.empty(0, dtype=torch.uint8, device=moved.device).set_(moved)
    elif map_location is not None:
        location = str(map_location)
    return numbers.to(location)


class _Interpreter:
    """Interprets one pickle.

    Args:
        read: Gives the bytes of a storage, on its device; None for tensors without numbers (``meta``).
    """

    def __init__(self, read: Callable[[Storage], Tensor | None]) -> None:
        self._read = read
        self._numbers: dict[str, Tensor | None] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._copied = 0  # items and bytes that were given to makers
        self._position: Callable[[], int] = int
        self._memo: dict[int, Any] = {}
        self._makers: dict[str, Callable[..., Any]] = MAKERS | {
            'torch._utils._rebuild_tensor': self._make_tensor,
            'torch._utils._rebuild_tensor_v2': self._make_tensor,
            'torch._utils._rebuild_tensor_v3': self._make_tensor_of_dtype,
            'torch._tensor._rebuild_from_type_v2': self._make_with_attributes,
        }

    def run(self, file: BinaryIO) -> Any:
        """Build what the pickle at a file's position describes."""
        push, stack, self._position = self._stack.append, self._stack, file.tell
        argument: Any
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name in _CONSTANTS:
                push(argument)
            elif name in _TEXTS_OF_PYTHON_2:
                push(decode(argument))
            elif name in _FIXED:
                push(_FIXED[name]())
            elif name in _PUTS:
                self._remember(len(self._memo) if name == 'MEMOIZE' else argument)
            elif name in _GETS:
                push(self._memo[argument])
            elif name == 'MARK':
                self._marks.append(len(stack))
            elif name in ('PROTO', 'FRAME'):
                continue
            elif name == 'STOP':
                (content,) = stack
                _refuse_placeholders(content)
                return content
            else:
                # By name, so that a file can reach no other function.
                handle = getattr(self, f'_do_{name.lower()}', None)
                if handle is None:
                    raise UnpicklingError(f'instruction {name}')
                handle(argument)
        raise EOFError

    def _remember(self, key: int) -> None:
        value = self._memo[key] = self._stack[-1]
        if isinstance(value, Pending):
            value.memo_keys.append(key)

    def _pop_marked(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _do_tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_marked()))

    def _do_tuple1(self, _: None) -> None:
        self._stack[-1:] = [tuple(self._stack[-1:])]

    def _do_tuple2(self, _: None) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _do_tuple3(self, _: None) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _do_append(self, _: None) -> None:
        value = self._stack.pop()
        check(self._stack[-1], list, deque).append(value)

    def _do_appends(self, _: None) -> None:
        values = self._pop_marked()
        check(self._stack[-1], list, deque).extend(values)

    def _do_setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        set_items(self._stack[-1], [key, value])

    def _do_setitems(self, _: None) -> None:
        values = self._pop_marked()
        set_items(self._stack[-1], values)

    def _do_additems(self, _: None) -> None:
        values = self._pop_marked()
        check(self._stack[-1], set).update(map(hashable, values))

    def _do_frozenset(self, _: None) -> None:
        self._stack.append(frozenset(map(hashable, self._pop_marked())))

    def _do_global(self, argument: str) -> None:
        self._stack.append(self._find(*argument.split(' ', 1)))

    def _do_stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._find(check(module, str), check(name, str)))

    def _find(self, module: str, name: str) -> Any:
        # As Python 2 called them, and pickles of protocol 2 still do.
        name = {'long': 'int', 'unicode': 'str'}.get(name, name) if module == '__builtin__' else name
        full_name = f'{module.replace("__builtin__", "builtins")}.{name}'
        if full_name in VALUES:
            return VALUES[full_name]
        if re.fullmatch(
            rf'({re.escape(HISTORY)}|{re.escape(ONE_CYCLE)})\.\w+', full_name
        ):  # a method, as protocol 4 has it
            return name.rpartition('.')[2]
        storage = re.fullmatch(r'torch\.(?:cuda\.|storage\.)?(\w+)Storage', full_name)
        if full_name in self._makers or (storage and storage[1] in _STORAGES):
            return Name(full_name)
        raise UnpicklingError(f'GLOBAL {full_name} is not data')

    def _do_reduce(self, _: None) -> None:
        arguments, maker = self._stack.pop(), self._stack.pop()
        # Copies of a list that the file has once: a small file would fill the memory.
        self._copied += sum(len(each) for each in check(arguments, tuple) if isinstance(each, Sized))
        if self._copied > _MOST_COPIED * (self._position()) + _CHUNK:
            raise UnpicklingError('an object that copies itself too often')
        self._stack.append(self._call(maker, arguments))

    _do_newobj = _do_reduce

    def _call(self, maker: Any, arguments: Any) -> Any:
        if maker in CALLED_TYPES:
            maker = Name(f'builtins.{maker.__name__}')
        if not isinstance(maker, Name) or maker.name not in self._makers:
            raise UnpicklingError('a call of something that is not a name')
        return self._makers[maker.name](*check(arguments, tuple))

    def _make_with_attributes(self, maker: Any, kind: Any, arguments: Any, _: Any) -> Any:
        """Build a tensor and drop the attributes that were set on it."""
        if kind not in (Name('torch.Tensor'), Name('torch._tensor.Tensor')):
            raise UnpicklingError('a tensor of another kind')
        return self._call(maker, arguments)

    def _do_build(self, _: None) -> None:
        state, built = self._stack.pop(), self._stack[-1]
        if type(built) is OrderedDict:  # of a module's state dict
            metadata = check(check(state, dict).get('_metadata', {}), OrderedDict, dict)
            built._metadata = OrderedDict((key, check(value, dict)) for key, value in metadata.items())  # type: ignore[attr-defined]
        elif type(built) is Namespace:
            vars(built).update((check(key, str), value) for key, value in check(state, dict).items())
        elif isinstance(built, np.dtype):
            if state[1] not in ('|', '=', '<' if sys.byteorder == 'little' else '>'):
                raise UnpicklingError('an array of NumPy in another byte order')
            if state[2:5] != (None,) * 3:
                raise UnpicklingError('a dtype of NumPy of another kind')
        elif isinstance(built, Pending):
            made = make_history(state) if built.kind is HistoryBuffer else make_array_of_state(*state)
            self._stack[-1] = made
            self._memo.update(dict.fromkeys(built.memo_keys, made))
        else:
            raise UnpicklingError(f'a state for {type(built).__name__}')

    def _do_binpersid(self, _: None) -> None:
        kind, maker, key, location, numel, *view = check(self._stack.pop(), tuple)
        if kind != 'storage' or view not in ([], [None]) or not isinstance(maker, Name):
            raise UnpicklingError('a storage of another kind')
        dtype = _STORAGES[maker.name.rpartition('.')[2].removesuffix('Storage')]
        storage = Storage(check(key, str), dtype, index(numel), check(location, str))
        if key not in self._numbers:
            self._numbers[key] = self._read(storage)
        self._stack.append(storage)

    def _make_tensor(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
    ) -> Tensor:
        return self._make_tensor_of_dtype(storage, offset, size, stride, requires_grad, hooks, None, metadata)

    def _make_tensor_of_dtype(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> Tensor:
        storage = check(storage, Storage)
        bits = {} if metadata is None else check(metadata, dict)
        if not bits.keys() <= {'conj', 'neg'}:
            raise UnpicklingError('a tensor with metadata of another kind')
        dtype = storage.dtype if dtype is None else check(dtype, torch.dtype)
        size, stride = (tuple(map(index, check(value, tuple, torch.Size))) for value in (size, stride))
        furthest = index(offset) + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if len(size) > MOST_DIMENSIONS or (math.prod(size) and (furthest + 1) * dtype.itemsize > storage.nbytes):
            raise UnpicklingError('a tensor beyond its storage')
        numbers = self._numbers[storage.key]
        if numbers is None:
            return torch.empty_strided(size, stride, dtype=dtype, device='meta', requires_grad=bool(requires_grad))
        if not math.prod(size):
            return torch.empty(size, dtype=dtype, device=numbers.device, requires_grad=bool(requires_grad))
        if numbers.numel() < storage.nbytes:
            raise UnpicklingError('a storage of another size')
        tensor = torch.empty(0, dtype=dtype, device=numbers.device)
        tensor.set_(numbers.untyped_storage(), offset, size, stride)
        # torch stores the numbers of a conjugate or negative view as they are without it.
        tensor = tensor.conj() if bits.get('conj') else tensor
        tensor = tensor.neg() if bits.get('neg') else tensor
        return tensor.requires_grad_(bool(requires_grad))


_CONSTANTS = {
    *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT'),
    *('UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8'),
    *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
}
_TEXTS_OF_PYTHON_2 = {'STRING', 'BINSTRING', 'SHORT_BINSTRING'}
_FIXED: dict[str, Callable[[], Any]] = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_DICT': dict,
    'EMPTY_LIST': list,
    'EMPTY_TUPLE': tuple,
    'EMPTY_SET': set,
}
_PUTS, _GETS = {'PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'}, {'GET', 'BINGET', 'LONG_BINGET'}


def _refuse_placeholders(content: Any) -> None:
    """Refuse content that still holds a name or a storage from which no value was made."""
    seen: set[int] = set()
    left = [(0, content)]
    while left:
        depth, value = left.pop()
        if depth > _DEEPEST:  # what reads it later calls itself at each level
            raise UnpicklingError('containers nested without an end')
        if isinstance(value, Name | Storage | Pending):
            raise UnpicklingError('a name or a storage as a value')
        if not isinstance(value, dict | list | tuple | set | frozenset | deque | Namespace) or id(value) in seen:
            continue
        seen.add(id(value))
        inner: Any = vars(value).values() if isinstance(value, Namespace) else value
        if isinstance(value, dict):
            inner = [*dict.values(value), getattr(value, '_metadata', None) if type(value) is OrderedDict else None]
        left += [(depth + 1, each) for each in inner]
