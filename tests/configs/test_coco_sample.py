"""PeLK-T's recipe on real COCO images, as a user runs it: two processes, checkpoint, resume, evaluation through mim.

The recipe's network is whole; the images are small and the boxes few.
"""

import re
from pathlib import Path

import pytest

from tests.commands import mim, run
from tests.paths import CONFIGS, TOOLS, sample_data

pytest.importorskip('mmdet')
pytestmark = pytest.mark.slow

RECIPE = CONFIGS / 'det' / 'cascade_mask_rcnn_pelk_t_coco.py'


def options(data: Path) -> list[str]:
    """``--cfg-options`` that bring the recipe to two CPU cores."""
    few_boxes = [f'model.train_cfg.rcnn.{stage}.sampler.num=16' for stage in range(3)]
    # Both branches of the recipe's augmentation, at a short side of 64 instead of 480 to 800.
    branches = 'train_dataloader.dataset.pipeline.3.transforms'
    scales = [
        f'{branches}.0.0.scales=[(64,96)]',
        f'{branches}.1.0.scales=[(64,96)]',
        f'{branches}.1.1.crop_size=(48,64)',
        f'{branches}.1.2.scales=[(64,96)]',
        *(f'{loader}_dataloader.dataset.pipeline.1.scale=(96,64)' for loader in ('val', 'test')),
    ]
    roots = [f'{loader}_dataloader.dataset.data_root={data}' for loader in ('train', 'val', 'test')]
    annotations = [f'{split}_evaluator.ann_file={data}/annotations/instances_val2017.json' for split in ('val', 'test')]
    loaders = [
        f'{loader}_dataloader.{key}'
        for loader in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ]
    return [
        '--cfg-options',
        'model.backbone.init_cfg=None',
        'model.train_cfg.rpn_proposal.max_per_img=64',
        'model.test_cfg.rpn.max_per_img=32',
        'model.test_cfg.rcnn.max_per_img=10',
        'model.test_cfg.rcnn.score_thr=0.0',
        'default_hooks.logger.interval=1',
        *few_boxes,
        *scales,
        *roots,
        *annotations,
        *loaders,
    ]


def mim_name() -> str:
    """What mim calls mmdet: onedl-mim 0.5.1 refuses 'mmdet' as ambiguous and knows 'mmdetection'."""
    utils = pytest.importorskip('mim.utils')
    return 'mmdet' if utils.module_full_name('mmdet') else 'mmdetection'


def test_recipe_trains_resumes_and_is_evaluated(tmp_path: Path) -> None:
    data = sample_data('coco_sample')
    train = ['bash', TOOLS / 'dist_train.sh', RECIPE, 2, '--work-dir', tmp_path / 'work']
    short = ['train_dataloader.dataset.indices=8', 'train_dataloader.batch_size=2']
    first = run(*train, *options(data), *short, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=9', cwd=tmp_path)
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\].*loss: \d', first)
    assert (tmp_path / 'work' / 'epoch_1.pth').is_file()

    second = run(
        *train, '--resume', *options(data), *short, 'train_cfg.max_epochs=2', 'train_cfg.val_interval=9', cwd=tmp_path
    )
    assert 'resumed epoch: 1' in second
    assert re.search(r'Epoch\(train\)\s+\[2\]\[2/2\].*loss: \d', second)
    assert 'Epoch(train)  [1]' not in second

    checkpoint = tmp_path / 'work' / 'epoch_2.pth'
    tested = run(mim(), 'test', mim_name(), RECIPE, '--checkpoint', checkpoint, *options(data), cwd=tmp_path)
    for metric in ('bbox_mAP', 'segm_mAP'):
        assert re.search(rf'Epoch\(test\).*coco/{metric}: \d', tested), metric
    assert re.search(r'Epoch\(test\)\s+\[7/7\]', tested)
