"""The toolboxes' own inferencers take recipes by name and a checkpoint, on real pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import mmpelk
from tests.paths import sample_data

pytestmark = pytest.mark.slow  # a detector's takes seconds
Checkpoint = Callable[[str, str], Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Writes a random checkpoint of a recipe."""

    def write(scope: str, name: str) -> Path:
        pytest.importorskip(scope)
        cfg = mmpelk.get_config(name)
        with DefaultScope.overwrite_default_scope(scope):
            cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
            model: Any = MODELS.build(cfg.model)
        classes = tuple(f'class {index}' for index in range(11))
        meta = dict(dataset_meta=dict(classes=classes, palette=[(index, 0, 0) for index in range(11)]))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'model.pth')
        return tmp_path / 'model.pth'

    return write


def photographs(folder: str, count: int = 2) -> list[str]:
    return sorted(map(str, sample_data(folder).rglob('*.jpg')))[:count]


def test_segmentation(checkpoint: Checkpoint, tmp_path: Path) -> None:
    name = 'demo/upernet_pelk_nano_synthetic'
    weights = checkpoint('mmseg', name)
    from mmseg.apis import MMSegInferencer

    infer = MMSegInferencer(model=mmpelk.config_path(name), weights=str(weights), device='cpu', show_progress=False)
    found = infer(photographs('ade20k_sample'), out_dir=str(tmp_path / 'out'))
    assert len(found['predictions']) == 2
    assert found['predictions'][0].max() < 11
    assert len(list((tmp_path / 'out' / 'vis').iterdir())) == 2


def test_detection(checkpoint: Checkpoint, tmp_path: Path) -> None:
    name = 'demo/mask_rcnn_pelk_nano_synthetic'
    weights = checkpoint('mmdet', name)
    from mmdet.apis import DetInferencer

    infer = DetInferencer(model=mmpelk.config_path(name), weights=str(weights), device='cpu', show_progress=False)
    found = infer(photographs('coco_sample'), out_dir=str(tmp_path / 'out'))
    assert [set(prediction) >= {'bboxes', 'labels', 'scores', 'masks'} for prediction in found['predictions']] == [
        True
    ] * 2
    assert len(list((tmp_path / 'out' / 'vis').iterdir())) == 2


@pytest.mark.scope('mmpretrain')
def test_classification(checkpoint: Checkpoint, tmp_path: Path) -> None:
    name = 'demo/pelk_nano_digits'
    weights = checkpoint('mmpretrain', name)
    from mmpretrain import ImageClassificationInferencer

    infer = ImageClassificationInferencer(mmpelk.config_path(name), pretrained=str(weights), device='cpu')
    found = infer(photographs('ade20k_sample'), show_dir=str(tmp_path / 'out'))
    assert [one['pred_class'].split()[0] for one in found] == ['class', 'class']
    assert len(list((tmp_path / 'out').iterdir())) == 2


@pytest.mark.parametrize('name', ['seg/upernet_pelk_t_ade20k', 'upernet_pelk_b_101_ade20k', 'pelk_t_in1k.py'])
def test_names_of_the_papers_recipes(name: str) -> None:
    assert Path(mmpelk.config_path(name)).is_file()
