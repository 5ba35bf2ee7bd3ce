"""The interpreter of pickles: what torch.save writes comes back, and no instruction does more than build data."""

import argparse
import collections
import decimal
import io
import itertools
import pathlib
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from mmpelk.fault_tolerance import pickled_data
from mmpelk.fault_tolerance.pickled_data import read_pickled
from mmpelk.fault_tolerance.safe_loading import CheckpointError, load_data
from tests.fault_tolerance.fuzz import examples, fuzz


def saved(content: Any, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    buffer.seek(0)
    return buffer


FORMATS: dict[str, dict[str, Any]] = dict(
    archive={},
    protocol4=dict(pickle_protocol=4),
    protocol5=dict(pickle_protocol=5),
    legacy=dict(_use_new_zipfile_serialization=False),
)
VALUES: dict[str, Any] = {
    'numbers': [0, -1, 255, 70000, 2**40, -(2**70), 1.5, float('inf'), True, False, None, 1 + 2j],
    'texts': ['', 'é\n', 'x' * 300, b'', b'\x80\xff', bytearray(b'a')],
    'containers': [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {1, 'a'}, frozenset([2]), {(1, 'a'): {}}],
    'keys': [
        {1 + 2j: 1, frozenset([1, 'a']): 2, b'\xe9': 3},
        {frozenset([frozenset([1])])},
        {np.int64(1): 2, torch.float32: 3},
    ],
    'many': [f't{index}' for index in range(300)] * 2,
    'deques': [collections.deque([1, [2]], 3), collections.deque('ab')],
    'kinds of dict': [collections.OrderedDict(a=1), collections.Counter('aab'), ConfigDict(a=dict(b=[1]))],
    'defaultdict': [collections.defaultdict(kind, a=[1]) for kind in (list, tuple, None)],
    'options': argparse.Namespace(lr=0.1, deep=dict(a=[1])),
    'slice': slice(1, None, 2),
    'torch': [torch.float32, torch.bfloat16, torch.Size([2, 3]), torch.device('cpu'), torch.device('cuda', 1)],
    'types': [int, float],
    'arrays': [
        *(
            np.arange(6).reshape(2, 3),
            np.arange(6.0).reshape(2, 3).T,
            np.zeros((0, 3)),
            np.zeros(0, np.int8),
            np.array(3, np.uint8),
        ),
        *(np.array(['a', 'bcd']), np.array([b'x']), np.array([True]), np.array([1 + 1j], np.complex64)),
    ],
    'array numbers': [np.float32(0.5), np.int64(-3), np.bool_(True), np.float16(2)],
    'dtype': np.dtype('float32'),
}


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('name', VALUES)
def test_values_come_back(name: str, form: str) -> None:
    got = read_pickled(saved(VALUES[name], **FORMATS[form]))
    assert repr(got) == repr(VALUES[name])
    assert type(got) is type(VALUES[name])


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('dtype', [
    *('float32', 'float64', 'float16', 'bfloat16', 'complex64', 'complex128'),
    *('int64', 'int32', 'int16', 'int8', 'uint8', 'bool'),
    *('uint16', 'uint64', 'float8_e4m3fn'),  # which torch saves by their bytes, and the type beside them
])  # fmt: skip
def test_tensors_come_back(dtype: str, form: str) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f'this torch has no {dtype}')
    whole = (torch.arange(24) % 2).view(4, 6).to(getattr(torch, dtype))
    views = [whole, whole.T, whole[1:, ::2], whole[:0], whole[2, 3], nn.Parameter(whole, requires_grad=False)]
    for tensor in views:
        got = read_pickled(saved(tensor, **FORMATS[form]))
        assert type(got) is type(tensor)
        assert (got.dtype, got.stride(), got.shape) == (tensor.dtype, tensor.stride(), tensor.shape)
        assert got.requires_grad == tensor.requires_grad
        assert got.tolist() == tensor.tolist()


@pytest.mark.parametrize('form', FORMATS)
def test_what_is_trained_stays_so(form: str) -> None:
    """Of no numbers, of numbers that are left where they are, and with what somebody has set on it."""
    marked = nn.Parameter(torch.ones(2))
    marked.of_somebody = 1  # type: ignore[attr-defined]
    for given in (torch.ones(2), torch.ones(0), nn.Parameter(torch.ones(2)), marked):
        for trained, where in itertools.product((True, False), (None, 'meta', torch.device('meta'))):
            got = read_pickled(saved(given.requires_grad_(trained), **FORMATS[form]), where)
            assert (type(got), got.requires_grad, got.is_meta) == (type(given), trained, where is not None)
            assert not hasattr(got, 'of_somebody')


@pytest.mark.parametrize('form', FORMATS)
def test_views_that_change_numbers_come_back(form: str) -> None:
    number = torch.tensor([[1 + 2j, 3 - 4j]])
    for tensor in (number.conj(), number.conj().imag, number.mH):
        assert tensor.is_conj() or tensor.is_neg(), 'has a bit of its own'
        assert torch.equal(read_pickled(saved(tensor, **FORMATS[form])), tensor)


@pytest.mark.parametrize('form', FORMATS)
def test_tensors_share_memory_lose_attributes_and_go_to_the_given_device(form: str) -> None:
    whole = torch.zeros(4)
    whole.of_somebody = 1  # type: ignore[attr-defined]
    got = read_pickled(saved([whole, whole[1:], whole, torch.ones(2, 3).T], **FORMATS[form]))
    got[0].fill_(1)
    assert torch.equal(got[1], torch.ones(3))
    assert got[0] is got[2]
    assert not hasattr(got[0], 'of_somebody')

    def read(where: Any) -> Tensor:
        return read_pickled(saved(torch.ones(2, 3).T, **FORMATS[form]), where)

    assert (read('meta').device.type, read('meta').shape, read('meta').stride()) == ('meta', (3, 2), (1, 3))
    assert (read({'cpu': 'meta'}).device.type, read({'cuda:0': 'meta'}).device.type) == ('meta', 'cpu')
    for where in (None, 'cpu', torch.device('cpu'), {'cpu': 'cpu'}, lambda storage, place: storage, lambda *_: None):
        assert torch.equal(read(where), torch.ones(3, 2))


def test_places_that_a_map_does_not_name_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.serialization, 'location_tag', lambda storage: 'meta')
    for where, device in (({'cuda:0': 'cpu'}, 'meta'), ({'meta': 'cpu'}, 'cpu'), (None, 'meta')):
        assert read_pickled(saved(torch.ones(2)), where).device.type == device


def test_what_scripts_store_beside_weights_comes_back_as_text() -> None:
    assert read_pickled(saved([pathlib.PosixPath('/a/b.c'), torch.__version__])) == ['/a/b.c', str(torch.__version__)]


def test_what_modules_say_of_their_version_comes_back() -> None:
    state = nn.BatchNorm2d(1).state_dict()
    assert read_pickled(saved(state))._metadata == state._metadata
    for kind in (dict, collections.OrderedDict):  # of somebody who has made it
        state._metadata = kind(a=dict(version=1))  # type: ignore[assignment]
        assert read_pickled(saved(state))._metadata == {'a': {'version': 1}}


def archive_of(pickled: bytes, numbers: bytes = bytes(4)) -> bytes:
    """A checkpoint of these instructions, and of one storage."""
    with zipfile.ZipFile(buffer := io.BytesIO(), 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02' + pickled + b'.')
        archive.writestr('a/data/0', numbers)
    return buffer.getvalue()


def archived(folder: Path, pickled: bytes, numbers: bytes = bytes(4)) -> Path:
    (folder / 'a.pth').write_bytes(archive_of(pickled, numbers))
    return folder / 'a.pth'


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


# What the sentence has to name.
REFUSED: dict[str, Any] = {
    '_rebuild_sparse_tensor.*to_dense': torch.eye(2).to_sparse(),
    '_rebuild_qtensor.*dequantize': torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8),
    '_rebuild_meta_tensor': torch.ones(2, device='meta'),
    'another byte order': np.arange(3).astype('>f4'),
    'NumPy of another kind, O8': np.array([1, 'a'], dtype=object),
    'decimal.Decimal': decimal.Decimal(1),
    'tuple as a key': {(((1,),),): 2},
    'without an end': nested(200),
}


@pytest.mark.parametrize('named', REFUSED)
def test_what_is_refused_is_named(named: str, tmp_path: Path) -> None:
    torch.save(REFUSED[named], tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=rf'a\.pth.*{named}'):
        load_data(tmp_path / 'a.pth')


@pytest.mark.parametrize(('content', 'key'), [(b'\xc3\xa9', 'é'), (b'\xe9', 'é'), (b'conv', 'conv')])
def test_texts_of_python_2(content: bytes, key: str, tmp_path: Path) -> None:
    assert load_data(archived(tmp_path, b'}U' + bytes([len(content)]) + content + b'K\x01s')) == {key: 1}


@pytest.mark.parametrize(
    'broken', [dict(max_length=0), dict(_log_history=np.ones((2, 2))), dict(_log_history=np.array('a'))]
)
def test_history_buffers_of_another_kind_are_refused(broken: dict[str, Any]) -> None:
    buffer = HistoryBuffer([1.0], [1])
    vars(buffer).update(broken)
    with pytest.raises(pickle.UnpicklingError, match='history buffer'):
        read_pickled(saved(buffer))


def test_other_metadata_of_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._utils, 'get_tensor_metadata', lambda tensor: {'twice': True})
    with pytest.raises(pickle.UnpicklingError, match='metadata'):
        read_pickled(saved(torch.ones(1)))


def test_empty_texts_come_back() -> None:
    """NumPy makes room for a character of them, which is not in the file."""
    for _ in range(50):
        np.full(1, b'x')  # what memory holds that is used again
        assert read_pickled(saved([np.bytes_(b''), np.str_('')])) == [b'', '']


@pytest.mark.parametrize('value', [torch.Size, collections.OrderedDict, torch.FloatStorage, nn.Parameter])
@pytest.mark.parametrize('where', ['alone', 'list', 'dict', 'deque', 'deep', 'metadata'])
def test_a_class_is_no_value(value: type, where: str) -> None:
    content: Any = dict(
        alone=value,
        list=[value],
        dict={'a': value},
        deque=collections.deque([value]),
        deep=argparse.Namespace(a=[({'b': value},)]),
    )
    if where == 'metadata':
        content['metadata'] = collections.OrderedDict()
        content['metadata']._metadata = {'a': {'version': value}}
    content = content[where]
    with pytest.raises(pickle.UnpicklingError, match='as a value'):
        read_pickled(saved(content))


# Instructions that no torch.save writes, each a whole pickle.
def name(full: str) -> bytes:
    module, _, last = full.rpartition('.')
    return f'c{module}\n{last}\n'.encode()


def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def dtype(state: bytes) -> bytes:
    return name('numpy.dtype') + b'(' + text('V8') + b'\x89\x88tR(K\x03' + state + b'tb'


TENSOR = name('torch._utils._rebuild_tensor_v2') + b'((' + text('storage') + name('torch.FloatStorage')
EVIL: Mapping[str, bytes] = {
    'slots of an object': name('argparse.Namespace') + b')R(N}' + text('__class__') + name('builtins.dict') + b'stb',
    'slots of a class': name('argparse.Namespace') + b'(N}' + text('__init__') + name('builtins.dict') + b'stb',
    'state of a function': name('torch._utils._rebuild_tensor_v2') + b'}' + text('__code__') + b'Nsb',
    'a number as the name of an option': name('argparse.Namespace') + b')R}K\x01K\x02sb',
    'an odd number of items': b'}(K\x01K\x02K\x03u',
    'state of a dict': b'}}' + text('a') + b'Nsb',
    'a call of a value': b'K\x01K\x02\x85R',
    'a call of a method': name('builtins.getattr') + name('builtins.dict') + text('get') + b'\x86R',
    'array of objects': name('numpy.dtype') + b'(' + text('O8') + b'\x89\x88tR',
    'dtype with fields': dtype(text('|') + b'N' + text('a') + b'\x85}K\x08K\x01K\x1b'),
    'dtype with a subdtype': dtype(text('|') + b'K\x01K\x02\x86NNK\x08K\x01K\x1b'),
    'tensor beyond its storage': TENSOR
    + text('0')
    + text('cpu')
    + b'K\x01tQK\x00J\xff\xff\xff\x7f\x85K\x01\x85\x89}tR',
    'tensor before its storage': TENSOR
    + text('0')
    + text('cpu')
    + b'K\x01tQJ\xff\xff\xff\xffK\x01\x85K\x01\x85\x89}tR',
    'storage of another size': TENSOR + text('0') + text('cpu') + b'K\x63tQK\x00K\x01\x85K\x01\x85\x89}tR',
    'storage of another file': TENSOR + text('../x') + text('cpu') + b'K\x01tQK\x00K\x01\x85K\x01\x85\x89}tR',
    'tensor of seventy dimensions': TENSOR
    + text('0')
    + text('cpu')
    + b'K\x01tQK\x00'
    + 2 * (b'(' + b'K\x01' * 70 + b't')
    + b'\x89}tR',
    'instance': b'(' + b'iargparse\nNamespace\n',
    'object': b'(' + name('argparse.Namespace') + b'o',
    'extension': b'\x82\x01',
    'buffer of another process': b'\x97',
    'key of nested tuples': b')' + b'2\x86' * 60 + b'}2Ns',
    'copies that fill the memory': b']q\0('
    + b'K\x01' * 50_000
    + b'e('
    + (name('builtins.list') + b'h\0\x85R') * 2000
    + b't',
    'endless list': b'](' + b'K\x01' * 3,
    'bytes in another encoding': name('_codecs.encode') + text('e') + text('utf-8') + b'\x86R',
    'bytes of a number': name('builtins.bytes') + b'K\x63\x85R',
    'a text of a list': name('builtins.str') + b']\x85R',
    'a number of a list': name('builtins.int') + b']\x85R',
    'a list of a text': name('builtins.list') + text('ab') + b'\x85R',
    'a set of a text': name('builtins.set') + text('ab') + b'\x85R',
    'a frozen set of a text': name('builtins.frozenset') + text('ab') + b'\x85R',
    'a set of lists': name('builtins.frozenset') + b']]a\x85R',
    'a size of texts': name('torch.Size') + b'(' + text('a') + b't\x85R',
    'a size of truths': name('torch.Size') + b'\x88\x85\x85R',
    'a size of no machine': name('torch.Size') + b'\x8a\x07' + (2**50).to_bytes(7, 'little') + b'\x85\x85R',
    'a size below nothing': name('torch.Size') + b'J\xff\xff\xff\xff\x85\x85R',
    'a queue of a text': name('collections.deque') + text('ab') + b'\x85R',
    'a queue shorter than nothing': name('collections.deque') + b']J\xff\xff\xff\xff\x86R',
    'a defaultdict of calls': name('collections.defaultdict') + name('torch.float32') + b'\x85R',
    'a path of a number': name('pathlib.PosixPath') + b'K\x01\x85R',
    'a parameter without numbers': name('torch._utils._rebuild_parameter') + b'K\x01\x88}\x87R',
    **{
        f'an array of {kind}': name('numpy.core.numeric._frombuffer')
        + b'(C'
        + bytes([size])
        + bytes(size)
        + name('numpy.dtype')
        + b'('
        + text('u2')
        + b'\x89\x88tR'
        + b'K'
        + bytes([length])
        + b'\x85'
        + text(order)
        + b'tR'
        for kind, size, length, order in (
            ('too few bytes', 3, 2, 'C'),
            ('too many bytes', 6, 2, 'C'),
            ('another order', 4, 2, 'A'),
        )
    },
    'an array of a text as its type': name('numpy.core.numeric._frombuffer')
    + b'(C\x02ab'
    + text('u1')
    + b'K\x02\x85tR',
    'a value below the end': b'K\x01K\x02',
}


def number(value: int) -> bytes:
    return b'K' + bytes([value])


def test_tensors_end_with_their_storage(tmp_path: Path) -> None:
    """Of every offset, size and step, those are read whose last number is there, and they have torch's numbers."""
    storage, counts = torch.arange(4.0), collections.Counter[bool]()
    for offset, *sizes in itertools.product(range(6), range(3), range(4), range(3), range(3)):
        size, stride = sizes[:2], sizes[2:]
        view = [b''.join(map(number, values)).join([b'(', b't']) for values in (size, stride)]
        begun = TENSOR + text('0') + text('cpu') + number(4) + b'tQ' + number(offset)
        archived(tmp_path, begun + b''.join(view) + b'\x89}tR', storage.numpy().tobytes())
        furthest = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        fits = furthest < 4 or 0 in size
        counts[fits] += 1
        if fits:
            expected = torch.as_strided(storage, size, stride, offset) if 0 not in size else torch.empty(size)
            assert load_data(tmp_path / 'a.pth').tolist() == expected.tolist()
        else:
            with pytest.raises(CheckpointError, match='beyond its storage'):
                load_data(tmp_path / 'a.pth')
    assert min(counts[True], counts[False]) > 100


@pytest.mark.parametrize('numel', [2, 4])
def test_storages_of_before_the_archives_have_the_length_that_is_said_of_them(numel: int) -> None:
    content = saved(torch.ones(3), _use_new_zipfile_serialization=False).getvalue()
    length = (3).to_bytes(8, sys.byteorder)
    assert content[-20:-12] == length
    changed = content[:-20] + numel.to_bytes(8, sys.byteorder) + content[-12:] + bytes(4)
    with pytest.raises(pickle.UnpicklingError, match='another size'):
        read_pickled(io.BytesIO(changed))


def test_an_array_that_is_named_several_times_is_one() -> None:
    array, buffer = np.arange(3), HistoryBuffer([1.0], [1])
    for value in (array, buffer):
        for protocol in (2, 4):
            got = read_pickled(saved([value, (value, dict(a=value))], pickle_protocol=protocol))
            assert got[0] is got[1][0] is got[1][1]['a']
    # By a pickle that keeps it under two numbers before its content comes.
    begun = name('numpy.core.multiarray._reconstruct') + name('numpy.ndarray') + number(0) + b'\x85C\x01b\x87R'
    kept = b'q\x05q\x06'
    state = b'(' + number(1) + number(1) + b'\x85' + name('numpy.dtype') + text('u1') + b'\x89\x88\x87R\x89C\x01\x07tb'
    got = read_pickled(io.BytesIO(archive_of(b'(' + begun + kept + state + b'h\x05h\x06t')))
    assert [each.tolist() for each in got] == [[7]] * 3
    assert got[0] is got[1] is got[2]


@pytest.mark.parametrize(('pickled', 'value'), [
    (name('__builtin__.long') + b'K\x03\x85R', 3),
    (name('__builtin__.unicode') + text('a') + b'\x85R', 'a'),
    *(
        (begun.replace(b'torch\nFloatStorage', old) + text('0') + text('cpu') + number(1) + b'tQK\0))' + end, 7.0)
        for begun, end in ((TENSOR, b'\x89}tR'), (TENSOR.replace(b'_v2', b''), b'tR'))
        for old in (b'torch\nFloatStorage', b'torch.cuda\nFloatStorage', b'torch.storage\nFloatStorage')
    ),
])  # fmt: skip
def test_what_older_versions_have_written_is_read(pickled: bytes, value: object, tmp_path: Path) -> None:
    got = load_data(archived(tmp_path, pickled, struct.pack('f', 7)))
    assert (got.item() if isinstance(got, Tensor) else got) == value


def test_attributes_of_a_tensor_by_its_name_in_older_versions(tmp_path: Path) -> None:
    given = torch.full((1,), 7.0)
    given.of_somebody = 1  # type: ignore[attr-defined]
    with zipfile.ZipFile(saved(given)) as archive:
        record = next(each for each in archive.namelist() if each.endswith('data.pkl'))
        pickled = archive.read(record)[2:-1]
    assert pickled.count(b'torch\nTensor\n') == 1
    pickled = pickled.replace(b'torch\nTensor\n', b'torch._tensor\nTensor\n')
    assert load_data(archived(tmp_path, pickled, struct.pack('f', 7))).tolist() == [7]


@pytest.mark.parametrize('kind', EVIL)
def test_instructions_that_are_refused(kind: str, tmp_path: Path) -> None:
    before = dict(vars(argparse.Namespace))
    with pytest.raises(CheckpointError, match=r'a\.pth'):
        load_data(archived(tmp_path, EVIL[kind]))
    assert vars(argparse.Namespace) == before


ODD_ARCHIVES: dict[str, Any] = {
    'compressed': dict(compression=zipfile.ZIP_DEFLATED),
    'of two pickles': dict(more={'b/data.pkl': b'N.'}),
    'of another byte order': dict(more={'a/byteorder': b'big' if sys.byteorder == 'little' else b'little'}),
    'of code': dict(more={'a/constants.pkl': b'N.'}),
    'of this byte order': dict(more={'a/byteorder': sys.byteorder.encode()}),
    'with something beside it': dict(more={'a/version': b'3', 'a/.data/serialization_id': b'1'}),
}


@pytest.mark.parametrize('kind', ODD_ARCHIVES)
def test_archives_that_are_refused(kind: str, tmp_path: Path) -> None:
    settings = dict(ODD_ARCHIVES[kind])
    more = {'a/data.pkl': b'\x80\x02]K\x07a.'} | settings.pop('more', {})
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w', **settings) as archive:
        for record, content in more.items():
            archive.writestr(record, content)
    if kind.startswith(('of this', 'with')):
        assert load_data(tmp_path / 'a.pth') == [7]
    else:
        with pytest.raises(CheckpointError, match=r'a\.pth'):
            load_data(tmp_path / 'a.pth')


def test_old_files_of_another_byte_order_are_refused() -> None:
    content = saved([1], _use_new_zipfile_serialization=False).getvalue()
    at = content.index(b'little_endian') + len(b'little_endian')
    changed = content[:at] + content[at:].replace(b'\x88', b'\x89', 1)
    other = pickle.dumps(7, 2) + content[content.index(b'.') + 1 :]
    with pytest.raises(pickle.UnpicklingError, match=r'torch\.save has not written'):
        read_pickled(io.BytesIO(other))
    assert read_pickled(io.BytesIO(content)) == [1]
    with pytest.raises(pickle.UnpicklingError, match='byte order'):
        read_pickled(io.BytesIO(changed))


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('chunk', [1, 7, 96, 1000])
def test_numbers_are_read_in_pieces(chunk: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled_data, '_CHUNK', chunk)
    content = [torch.arange(24.0), torch.arange(5)]
    assert [each.tolist() for each in read_pickled(saved(content, **FORMATS[form]))] == [
        each.tolist() for each in content
    ]


def test_a_folder_of_functions_is_no_way_round(tmp_path: Path) -> None:
    """A name of ours called with what is not data."""
    got = load_data(archived(tmp_path, name('collections.defaultdict') + name('collections.OrderedDict') + b'\x85R'))
    assert got == collections.defaultdict(collections.OrderedDict)
    assert type(got['new']) is collections.OrderedDict


@pytest.mark.parametrize('where', ['data.pkl', 'data/0'])
def test_a_flipped_bit_is_noticed(where: str, tmp_path: Path) -> None:
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=dict(w=torch.arange(1000.0))), path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = archive.read(next(name for name in archive.namelist() if name.endswith(where)))
    content[content.index(record) + len(record) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='incomplete or damaged'):
        load_data(path)


def test_the_checksum_of_an_empty_record_counts() -> None:
    content = bytearray(saved(torch.empty(0)).getvalue())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        record = next(each for each in archive.infolist() if each.filename.endswith('/data/0'))
    assert record.CRC == record.file_size == 0
    at = content.rindex(record.filename.encode()) - 46  # of the folder of records at the end
    assert content[at : at + 4] == b'PK\1\2'
    content[at + 16] ^= 1
    with pytest.raises(zipfile.BadZipFile, match='CRC'):
        read_pickled(io.BytesIO(content))


def test_a_program_behind_a_comment_is_refused(tmp_path: Path) -> None:
    """Python's zipfile takes the comment for the beginning of another end, so that to it this is no archive at all."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / 'program.pt')
    content = (tmp_path / 'program.pt').read_bytes()
    assert content[-22:-18] == b'PK\5\6'
    (tmp_path / 'a.pth').write_bytes(content[:-2] + b'\x04\0' + b'PK\5\6')
    with pytest.raises(CheckpointError):
        load_data(tmp_path / 'a.pth')


def test_an_old_tar_is_refused(tmp_path: Path) -> None:
    """torch.load unpacks such archives into a folder, links included."""
    with tarfile.open(tmp_path / 'a.pth', 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))
    with pytest.raises(CheckpointError):
        load_data(tmp_path / 'a.pth')


def test_threads_read_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f'{index}.pth' for index in range(3)]
    for path, content in zip(paths, examples(tmp_path).values(), strict=False):
        path.write_bytes(content)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(load_data, paths * 8))) == 24


def test_the_pickles_are_those_of_python() -> None:
    """The instructions above are what they are meant to be: Python reads those that torch would write."""
    assert pickle.loads(b'\x80\x02' + text('a') + b'K\x01\x86.') == ('a', 1)


def test_mutated_files(tmp_path: Path) -> None:
    """As `make torture` does with a hundred thousand."""
    counts = fuzz(tmp_path, 300, 0)
    assert counts['read'] + counts['refused'] == 300
    assert min(counts['read'], counts['refused']) > 0
