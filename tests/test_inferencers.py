"""The toolboxes' own inferencers take recipes by name and a checkpoint, on real pictures."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

import mmpelk
from tests.paths import sample_data

pytestmark = pytest.mark.slow  # a detector's takes seconds


@pytest.mark.parametrize(
    ('scope', 'name', 'inferencer', 'data'),
    [
        ('mmseg', 'demo/upernet_pelk_nano_synthetic', 'apis.MMSegInferencer', 'ade20k_sample'),
        ('mmdet', 'demo/mask_rcnn_pelk_nano_synthetic', 'apis.DetInferencer', 'coco_sample'),
        ('mmpretrain', 'demo/pelk_nano_digits', 'ImageClassificationInferencer', 'ade20k_sample'),
    ],
    ids=['mmseg', 'mmdet', 'mmpretrain'],
)
def test_inferencer(scope: str, name: str, inferencer: str, data: str, tmp_path: Path) -> None:
    pytest.importorskip(scope)
    init_default_scope(scope)
    cfg = mmpelk.get_config(name)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model: Any = MODELS.build(cfg.model)
    classes = tuple(f'class {index}' for index in range(11))
    meta = dict(dataset_meta=dict(classes=classes, palette=[(index, 0, 0) for index in range(11)]))
    weights, out = tmp_path / 'model.pth', tmp_path / 'out'
    torch.save(dict(state_dict=model.state_dict(), meta=meta), weights)
    module, _, kind = f'{scope}.{inferencer}'.rpartition('.')
    make = getattr(importlib.import_module(module), kind)
    pictures = sorted(map(str, sample_data(data).rglob('*.jpg')))[:2]
    if scope == 'mmpretrain':
        infer = make(mmpelk.config_path(name), pretrained=str(weights), device='cpu')
        assert [one['pred_class'].split()[0] for one in infer(pictures, show_dir=str(out))] == ['class', 'class']
    else:
        infer = make(model=mmpelk.config_path(name), weights=str(weights), device='cpu', show_progress=False)
        first, second = infer(pictures, out_dir=str(out))['predictions']
        if scope == 'mmseg':
            assert max(first.max(), second.max()) < 11
        else:
            assert first.keys() & second.keys() >= {'bboxes', 'labels', 'scores', 'masks'}
    assert len(list((out if scope == 'mmpretrain' else out / 'vis').iterdir())) == 2
