"""Checkpoints with mutated bytes: each is read or refused, none crashes the process, writes, imports or runs anything.

python -m tests.fault_tolerance.fuzz --files 100000 --seed 0
"""

import argparse
import codecs
import collections
import io
import random
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import save_file
from torch import nn

from mmpelk.fault_tolerance.safe_loading import CheckpointError, load_data

# What Python's audit reports when a file does something. `open` counts only for writing.
_EVENTS = ('exec', 'compile', 'import', 'os.', 'subprocess.', 'shutil.', 'socket.', 'ctypes.', 'marshal.', 'pickle.')
_CLASSES: tuple[type, ...] = (argparse.Namespace, HistoryBuffer, ConfigDict, torch.Tensor, nn.Parameter)
_INTERESTING = [b'\x00', b'\xff', b'\x7f', b'\x80', b'(', b'R', b'b', b'\x81', b'.', b'Q', b's', b'u', b'e', b'a', b'0']

_watching = False
_seen: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == 'open':
        mode, flags = str(arguments[1] or ''), arguments[2]
        if set(mode) & set('wax+') or (flags and flags & 3):
            _seen.append(f'{event} {arguments[0]!r} {mode}')
    elif event.startswith(_EVENTS):
        _seen.append(f'{event} {arguments!r:.100}')


@contextmanager
def _watched() -> Iterator[None]:
    """Refuse everything that Python's audit reports inside.

    A hook of the audit stays for good; it looks only between the two.
    """
    global _watching
    before = [dict(vars(kind)) for kind in _CLASSES]
    _seen.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert not _seen, _seen[:5]
    assert before == [dict(vars(kind)) for kind in _CLASSES], 'a class has changed'


def examples(folder: Path) -> dict[str, bytes]:
    """Good files of every format, with everything that is read."""
    hub = MessageHub('fuzz')
    for value in (1.0, 2.0):
        hub.update_scalar('train/loss', value)
    hub.update_info('array', np.arange(6, dtype=np.float64).reshape(2, 3).T)
    weight = torch.arange(12.0).view(3, 4)
    content = dict(
        meta=dict(epoch=1, iter=2, dataset_meta=ConfigDict(classes=('a', 'b')), cfg='model = dict()', f=np.float32(1)),
        state_dict=nn.BatchNorm2d(2).state_dict() | dict(w=weight, view=weight[1:, ::2], p=nn.Parameter(weight)),
        optimizer=dict(state={0: dict(step=torch.tensor(1.0), lr=1e-3)}, groups=[dict(betas=(0.9, 0.99))]),
        message_hub=hub.state_dict(),
        run_state=dict(python=random.Random(0).getstate(), numpy=('MT19937', torch.arange(9), 1, 0, 0.0)),
        other=[
            *(argparse.Namespace(a=[1]), collections.defaultdict(list, a=[2]), {1, 2}, slice(1), b'\x80x'),
            *(
                torch.bfloat16,
                torch.device('cpu'),
                torch.Size([2]),
                1 + 2j,
                np.array(['a', 'bc']),
                2**80,
                frozenset('a'),
            ),
        ],
    )
    files = {}
    for name, options in dict(
        zip={}, zip4=dict(pickle_protocol=4), legacy=dict(_use_new_zipfile_serialization=False)
    ).items():
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        files[name] = buffer.getvalue()
    save_file(dict(w=weight), str(folder / 'a.safetensors'), metadata=dict(dataset_meta='{"classes": ["a", ["b"]]}'))
    files['safetensors'] = (folder / 'a.safetensors').read_bytes()
    return files


def _mutate(content: bytes, draw: random.Random) -> bytes:
    """Some bytes replaced, put in, left out or repeated."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
        at, length = draw.randrange(len(changed) + 1), draw.choice([1, 1, 2, 4, 30])
        new = draw.choice([draw.randbytes(length), draw.choice(_INTERESTING)])
        where = draw.randrange(len(content))
        changed[at : at + draw.choice([0, len(new), len(new), length])] = draw.choice(
            [new, content[where : where + 40]]
        )
    return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.05 else changed)


def _repack(content: bytes, draw: random.Random) -> bytes:
    """An archive whose checksums are right, although its pickle is mutated."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, 'w') as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, _mutate(part, draw) if name.endswith('data.pkl') else part)
    return out.getvalue()


def fuzz(folder: Path, files: int, seed: int) -> Mapping[str, int]:
    """Read so many mutated files.

    Returns:
        How many were read and how many were refused.

    Raises:
        AssertionError: If one did anything else.
    """
    sys.addaudithook(_audit)
    draw, good, counts = random.Random(seed), examples(folder), collections.Counter[str]()
    path = folder / 'mutated.pth'
    for name, content in good.items():  # what is imported late is imported here
        load_data(_write(folder / f'good.{"safetensors" if name == "safetensors" else "pth"}', content))
    for codec in ('ascii', 'latin1', 'raw_unicode_escape', 'unicode_escape'):  # of pickle's texts
        codecs.lookup(codec)
    for _ in range(files):
        name = draw.choice(list(good))
        content = _repack(good[name], draw) if name.startswith('zip') and draw.random() < 0.8 else None
        path = folder / ('mutated.safetensors' if name == 'safetensors' else 'mutated.pth')
        _write(path, content or _mutate(good[name], draw))
        try:
            with _watched():
                load_data(path)
            counts['read'] += 1
        except CheckpointError:
            counts['refused'] += 1
    return counts


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--files', type=int, default=100_000, help='%(default)s')
    parser.add_argument('--seed', type=int, default=0, help='%(default)s')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(Path(folder), args.files, args.seed)
    print(
        f'{args.files} mutated files (seed {args.seed}): {counts["read"]} read, {counts["refused"]} refused, no crash'
    )


if __name__ == '__main__':
    main()
