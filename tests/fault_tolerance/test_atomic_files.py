"""In which order a file is written, synced and renamed."""

import os
from pathlib import Path
from typing import Any

import pytest

from mmpelk.fault_tolerance.atomic_files import write_atomically


@pytest.mark.parametrize('synced', [True, False])
def test_content_is_on_the_disk_before_it_has_the_name(
    synced: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[tuple[str, ...]] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(opened: int) -> None:
        done.append(('sync', Path(os.readlink(f'/proc/self/fd/{opened}')).name))
        fsync(opened)

    def record_replace(source: Any, target: Any) -> None:
        assert Path(source).read_bytes() == b'content'
        done.append(('rename', Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', record_fsync)
    monkeypatch.setattr(os, 'replace', record_replace)
    write_atomically(tmp_path / 'a.pth', b'content', synced)
    rename = [('rename', 'a.pth')]
    assert done == ([('sync', '.a.pth.tmp'), *rename, ('sync', tmp_path.name)] if synced else rename)
    assert (tmp_path / 'a.pth').read_bytes() == b'content'
