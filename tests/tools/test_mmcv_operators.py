"""``tools/mmcv_operators.py``: joined files give what the ordinary build gives, to the last bit."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import mmengine
import pytest
import torch

from tests.commands import run
from tests.paths import CONFIGS, TOOLS, sample_data
from tools.mmcv_operators import join

# A Python with the same packages but an mmcv that pip built file by file.
ORDINARY = 'MMPELK_ORDINARY_PYTHON'
CONFIG = CONFIGS / 'demo' / 'mask_rcnn_pelk_nano_coco_overfit.py'
SINGLE_OPERATORS = """
import sys
import torch
from mmcv import _ext, ops

generator = torch.Generator().manual_seed(0)

def draw(*shape):
    return torch.rand(*shape, generator=generator).requires_grad_()

corners = draw(2000, 2).detach() * 60
boxes = torch.cat([corners, corners + 1 + draw(2000, 2).detach() * 30], 1)
scores, x = draw(2000).detach(), draw(2, 8, 50, 67)
rois = torch.cat([torch.arange(2000).view(-1, 1) % 2, boxes], 1)
offset, mask, weight = draw(2, 18, 50, 67), draw(2, 9, 50, 67), draw(6, 8, 3, 3)
results = dict(
    file=_ext.__file__,
    nms=ops.nms(boxes, scores, 0.5),
    soft_nms=ops.soft_nms(boxes, scores, 0.5, method='gaussian'),
    batched_nms=ops.batched_nms(boxes, scores, torch.arange(2000) % 80, dict(type='nms', iou_threshold=0.5)),
    overlaps=ops.bbox_overlaps(boxes, boxes),
)
for name, out, inputs in (
    ('roi_align', ops.roi_align(x, rois, (7, 7), 0.5, 0, 'avg', True), (x,)),
    ('roi_align_max', ops.roi_align(x, rois, (14, 14), 0.25, 2, 'max', False), (x,)),
    ('deform_conv2d', ops.deform_conv2d(x, offset, weight, 1, 1), (x, offset, weight)),
    ('modulated', ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1), (x, offset, mask, weight)),
):
    cotangent = torch.rand(out.shape, generator=generator)
    results[name] = (out.detach(), *torch.autograd.grad(out, inputs, cotangent))
torch.save(results, sys.argv[1])
"""


def results(python: str, folder: Path) -> dict[str, Any]:
    """Single operators, and a nano Mask R-CNN on the COCO sample: weights after an epoch, predictions, AP."""
    folder.mkdir()
    data = sample_data('coco_sample')
    truth = data / 'annotations' / 'instances_train2017.json'
    options = [
        '--cfg-options',
        *(f'{loader}_dataloader.dataset.data_root={data}' for loader in ('train', 'val', 'test')),
        *(f'{loader}_evaluator.ann_file={truth}' for loader in ('val', 'test')),
        *('train_cfg.max_epochs=3', 'train_cfg.val_interval=3', 'default_hooks.checkpoint.interval=3'),
        'param_scheduler.0.end=5',
        'model.test_cfg.rcnn.score_thr=0.001',
    ]
    run(python, '-W', 'ignore', '-c', SINGLE_OPERATORS, 'operators.pth', cwd=folder)
    run(python, TOOLS / 'train.py', CONFIG, '--work-dir', 'train', *options, cwd=folder)
    log = run(
        *(python, TOOLS / 'test.py', CONFIG, 'train/epoch_3.pth', '--work-dir', 'test', '--out', 'found.pkl', *options),
        cwd=folder,
    )
    found = mmengine.load(folder / 'found.pkl')
    return dict(
        operators=torch.load(folder / 'operators.pth'),
        weights=torch.load(folder / 'train' / 'epoch_3.pth', weights_only=False)['state_dict'],
        predictions=[image['pred_instances'] for image in found],
        average_precision=re.findall(r'coco/(\w+: -?[\d.]+)', log),
    )


def differences(ours: Any, theirs: Any, path: str = '') -> list[str]:
    """Where two nested results differ in any bit."""
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [path]
        return [found for key in ours for found in differences(ours[key], theirs[key], f'{path}.{key}')]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [path]
        pairs = zip(ours, theirs, strict=True)
        return [found for index, pair in enumerate(pairs) for found in differences(*pair, f'{path}.{index}')]
    same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    return [] if same else [path]


@pytest.mark.slow
@pytest.mark.skipif(ORDINARY not in os.environ, reason=f'{ORDINARY} names no Python with the ordinary build of mmcv')
def test_a_detector_does_the_same_with_the_ordinary_build(tmp_path: Path) -> None:
    joined, ordinary = results(sys.executable, tmp_path / 'joined'), results(os.environ[ORDINARY], tmp_path / 'other')
    assert joined['operators'].pop('file') != ordinary['operators'].pop('file')
    assert sum(len(image['scores']) for image in joined['predictions']) > 100
    assert joined['average_precision']
    assert differences(joined, ordinary) == []


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
