"""Detection data that go wrong: images without usable boxes train, missing ones stop all processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from tests.commands import call, find_free_port
from tests.fault_tolerance.training import preload, start
from tests.models.detectors import NANO, detector, loss_of
from tests.paths import TOOLS

pytestmark = pytest.mark.scope('mmdet')

from mmdet.registry import DATASETS  # noqa: E402


@pytest.fixture(scope='module')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('shapes')
    call(TOOLS / 'demo' / 'make_detection_data.py', root, '--train', 4, '--val', 1, cwd=root)
    return root


def spoil(root: Path, out: Path, change: str) -> Path:
    """A copy of the annotation file in which something is wrong with the first image."""
    content = json.loads((root / 'annotations' / 'instances_train2017.json').read_text())
    first = content['images'][0]
    own = [annotation for annotation in content['annotations'] if annotation['image_id'] == first['id']]
    assert own
    content['categories'].append(dict(id=99, name='pentagon', supercategory='shape'))
    for annotation in own:
        annotation |= {'crowd': dict(iscrowd=1), 'unknown category': dict(category_id=99)}.get(change, {})
        if change == 'empty':
            content['annotations'].remove(annotation)
    if change == 'missing file':
        first['file_name'] = 'nowhere.png'
    path = out / 'spoilt.json'
    path.write_text(json.dumps(content))
    return path


def dataset_of(shapes: Path, annotations: Path, filter_empty_gt: bool) -> Any:
    cfg = Config.fromfile(NANO).train_dataloader.dataset
    cfg.update(data_root=str(shapes), ann_file=str(annotations), filter_cfg=dict(filter_empty_gt=filter_empty_gt))
    return DATASETS.build(cfg)


@pytest.mark.slow
@pytest.mark.parametrize('change', ['empty', 'crowd', 'unknown category'])
def test_image_without_usable_boxes(shapes: Path, tmp_path: Path, change: str) -> None:
    annotations = spoil(shapes, tmp_path, change)
    # mmdet drops an image without any annotation; a crowd or an unknown category counts as one.
    assert len(dataset_of(shapes, annotations, filter_empty_gt=True)) == (4 if change == 'crowd' else 3)
    data = dataset_of(shapes, annotations, filter_empty_gt=False)
    assert len(data) == 4
    item = data[0]
    assert len(item['data_samples'].gt_instances) == 0
    assert (len(item['data_samples'].ignored_instances) > 0) == (change == 'crowd')
    model = detector()
    loss = loss_of(model, dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
    loss.backward()
    assert torch.isfinite(loss)
    # Every parameter takes part, else a process with such an image would keep the others waiting.
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@pytest.mark.slow
def test_no_process_waits_for_one_that_stops(shapes: Path, tmp_path: Path) -> None:
    """Which would take mmengine's 30 minutes."""
    options = {
        'train_dataloader.dataset.data_root': shapes,
        'train_dataloader.dataset.ann_file': spoil(shapes, tmp_path, 'missing file'),
        'train_dataloader.batch_size': 1,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.dataset.data_root': shapes,
        'val_evaluator.ann_file': shapes / 'annotations' / 'instances_val2017.json',
        'train_cfg.max_epochs': 1,
    }
    words = ['--work-dir', 'work', '--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    preload('det')
    running = start(tmp_path, [NANO, *words], 2, port=find_free_port())
    assert running.wait() == [1, 1], running.printed()[-3000:]
    assert 'nowhere.png' in running.printed()
    assert not (tmp_path / 'work' / 'last_checkpoint').exists()
