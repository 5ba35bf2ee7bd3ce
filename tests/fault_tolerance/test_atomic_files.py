"""Files that are written whole or not at all: in which order they are synced and renamed, and what a fault leaves."""

import io
import os
import resource
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import backends

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.atomic_files import AtomicBackend, register_atomic_backend, sync, write_atomically


@pytest.mark.parametrize('synced', [True, False])
def test_content_is_on_the_disk_before_it_has_the_name(
    synced: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[tuple[str, ...]] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(opened: int) -> None:
        path = Path(os.readlink(f'/proc/self/fd/{opened}'))
        assert path.is_dir() or path.read_bytes() == b'content', 'all of it, not what Python still holds'
        done.append(('sync', path.name))
        fsync(opened)

    def record_replace(source: Any, target: Any) -> None:
        assert Path(source).read_bytes() == b'content'
        done.append(('rename', Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', record_fsync)
    monkeypatch.setattr(os, 'replace', record_replace)
    write_atomically(tmp_path / 'a.pth', b'content', synced)
    rename, folder = ('rename', 'a.pth'), ('sync', tmp_path.name)
    assert done == ([('sync', '.a.pth.tmp'), rename, folder] if synced else [rename])
    assert (tmp_path / 'a.pth').read_bytes() == b'content'
    sync(tmp_path / 'a.pth')
    assert done[-2:] == [('sync', 'a.pth'), folder]
    # mmengine gives a backend the content in either form.
    written = io.BytesIO()
    written.write(b'content')
    for content in (b'content', written):
        done.clear()
        AtomicBackend(synced).put(content, tmp_path / 'a.pth')
        assert done == ([('sync', '.a.pth.tmp'), rename, folder] if synced else [rename])


def test_it_has_the_rights_of_other_files_and_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'other').touch()
    write_atomically(tmp_path / 'new' / 'b' / 'a.pth', b'content')
    write_atomically(tmp_path / 'new' / 'a.pth', b'content')
    shutil.rmtree(tmp_path / 'new' / 'b')
    assert (tmp_path / 'new' / 'a.pth').stat().st_mode == (tmp_path / 'other').stat().st_mode

    def interrupt(source: Any, target: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / 'new' / 'a.pth', b'other')
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.pth']
    assert (tmp_path / 'new' / 'a.pth').read_bytes() == b'content'


@pytest.mark.parametrize('fault', ['no room', 'halfway'])
def test_a_write_that_fails_leaves_the_old_file(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = tmp_path / 'a.pth', resource.getrlimit(resource.RLIMIT_FSIZE)
    write_atomically(path, b'old')
    usage = namedtuple('Usage', 'total used free')(90_000, 70_000, 8191 if fault == 'no room' else 20_000)
    monkeypatch.setattr(shutil, 'disk_usage', {tmp_path: usage}.__getitem__)
    said = 'No space left on device: 8,192 bytes are needed, 8,191 are free' if fault == 'no room' else 'File too large'
    try:
        if fault == 'halfway':
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(OSError, match=said):
            write_atomically(path, b'x' * 8192)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b'old'
    assert [file.name for file in tmp_path.iterdir()] == ['a.pth']
    write_atomically(path, b'x' * 8191)  # which there is room for


def test_a_backend_of_the_users_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(LocalBackend):
        pass

    monkeypatch.setitem(backends, 'atomic', Mine)
    with pytest.raises(UserError, match=r'test_atomic_files.*Mine is registered as .*under another name'):
        register_atomic_backend()
    assert backends['atomic'] is Mine
    monkeypatch.delitem(backends, 'atomic')
    for _ in range(2):
        register_atomic_backend()
        assert backends['atomic'] is AtomicBackend
