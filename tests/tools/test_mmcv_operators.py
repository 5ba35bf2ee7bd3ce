"""``tools/mmcv_operators.py``: joined files hold every source once."""

from pathlib import Path

import pytest

from tools.mmcv_operators import join


def test_joined_files_hold_every_file_once(tmp_path: Path) -> None:
    folder = tmp_path / 'mmcv/ops/csrc/pytorch'
    names = ['nms', 'pybind', 'cpu/nms', 'cpu/psamask', 'cpu/roi_align', 'cpu/pixel_group']
    (folder / 'cpu').mkdir(parents=True)
    for name in [*names, 'cpu/roi_align_rotated', 'cpu/rotated_feature_align']:
        (folder / f'{name}.cpp').write_text(name)
    join(tmp_path)
    units = sorted(folder.rglob('*.cpp'))
    assert [unit.name for unit in units] == ['joined_cpu.cpp', 'joined_dispatch.cpp', 'joined_pybind.cpp']
    included = [line.split('"')[1] for unit in units for line in unit.read_text().splitlines()]
    assert len(included) == len(set(included)) == 8
    assert all((folder / name).read_text() == name.removesuffix('.inc') for name in included)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no source of mmcv's operators"):
        join(tmp_path)
