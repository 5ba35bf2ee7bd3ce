"""``tools/mmcv_operators.py``: joined files hold every source once, and a wrong operator is found."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import mmcv
import pytest
import torch
import torchvision.ops

from tools import mmcv_operators
from tools.mmcv_operators import check, join


def test_joined_files_hold_every_file_once(tmp_path: Path) -> None:
    folder = tmp_path / 'mmcv/ops/csrc/pytorch'
    names = ['nms', 'pybind', 'cpu/nms', 'cpu/psamask', 'cpu/roi_align', 'cpu/pixel_group']
    (folder / 'cpu').mkdir(parents=True)
    for name in [*names, 'cpu/roi_align_rotated', 'cpu/rotated_feature_align']:
        (folder / f'{name}.cpp').write_text(name)
    join(tmp_path)
    units = sorted(folder.rglob('*.cpp'))
    assert [unit.name for unit in units] == ['joined_cpu.cpp', 'joined_dispatch.cpp', 'joined_pybind.cpp']
    included = {unit.name[7:-4]: [line.split('"')[1] for line in unit.read_text().splitlines()] for unit in units}
    # Those of cpu/ that define the same names are apart from one another, psamask, which has macros, at the end.
    apart = ['cpu/pixel_group.inc', 'cpu/roi_align_rotated.inc', 'cpu/rotated_feature_align.inc', 'cpu/psamask.inc']
    assert included == dict(
        cpu=['cpu/nms.inc'], dispatch=['nms.inc', *apart], pybind=['pybind.inc', 'cpu/roi_align.inc']
    )
    assert all((folder / name).read_text() == name.removesuffix('.inc') for unit in included.values() for name in unit)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no source of mmcv's operators"):
        join(tmp_path)


@pytest.mark.parametrize('words', [['check'], ['join', 'mmcv-2.3.6']], ids=str)
@pytest.mark.parametrize('error', [ImportError('odd'), FileNotFoundError('odd'), RuntimeError('odd'), None], ids=str)
def test_command(words: list[str], error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {name: mock.Mock(side_effect=error) for name in ('check', 'join')}
    for name, function in asked.items():
        monkeypatch.setattr(mmcv_operators, name, function)
    monkeypatch.setattr(sys, 'argv', ['mmcv_operators.py', *words])
    with pytest.raises(SystemExit, match='error: odd') if error else nullcontext():
        mmcv_operators.main()
    assert {name: function.call_args for name, function in asked.items() if function.called} == {
        words[0]: mock.call(*map(Path, words[1:]))
    }


def operators(damaged: str = '', damage: Callable[..., Any] = lambda out, *inputs: out) -> SimpleNamespace:
    """mmcv's operators, computed by torchvision's; one of them damaged."""

    def nms(boxes: Any, scores: Any, threshold: float) -> Any:
        return None, torchvision.ops.nms(boxes, scores, threshold)

    def roi_align(x: Any, rois: Any, size: Any, scale: float, samples: int, mode: str, aligned: bool) -> Any:
        assert mode == 'avg'
        return torchvision.ops.roi_align(x, rois, size, scale, samples, aligned)

    def deform(x: Any, offset: Any, weight: Any, stride: int, padding: int) -> Any:
        return torchvision.ops.deform_conv2d(x, offset, weight, None, stride, padding)

    def modulated(x: Any, offset: Any, mask: Any, weight: Any, bias: Any, stride: int, padding: int) -> Any:
        return torchvision.ops.deform_conv2d(x, offset, weight, bias, stride, padding, mask=mask)

    own = dict(nms=nms, roi_align=roi_align, deform_conv2d=deform, modulated_deform_conv2d=modulated)
    if damaged:
        right = own[damaged]
        own[damaged] = lambda *given: damage(right(*given), *given)
    return SimpleNamespace(**own, get_compiling_cuda_version=lambda: 'not available')


def with_gradient_of(position: int) -> Callable[..., Any]:
    """The right values, and a wrong gradient of one input, which the plain sum of the outputs does not show."""

    def damage(out: Any, *inputs: Any) -> Any:
        nothing = inputs[position].sum() - inputs[position].sum().detach()
        return out + nothing * torch.linspace(-1, 1, out.numel()).view_as(out)

    return damage


DAMAGED = {
    'nms': [lambda out, *_: (None, out[1][1:]), lambda out, *_: (None, out[1].flip(0))],
    'roi_align': [lambda out, *_: out * 1.01, lambda out, *_: out + 1e-3, with_gradient_of(0)],
    'deform_conv2d': [lambda out, *_: out * 1.01, *(with_gradient_of(position) for position in (0, 1, 2))],
    'modulated_deform_conv2d': [lambda out, *_: out * 1.01, *(with_gradient_of(position) for position in (0, 1, 2, 3))],
}


@pytest.mark.parametrize('name', ['', *DAMAGED])
def test_wrong_operators_and_gradients_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for damage in DAMAGED.get(name, [lambda out, *_: out]):
        monkeypatch.setitem(sys.modules, 'mmcv.ops', own := operators(name, damage))
        monkeypatch.setattr(mmcv, 'ops', own, raising=False)
        if name:
            with pytest.raises(RuntimeError, match=rf"mmcv's {name} differs from torchvision's on the cpu"):
                check()
        else:
            check()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    with pytest.raises(RuntimeError, match='compiled for the CPU alone'):
        check()
