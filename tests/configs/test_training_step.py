"""Every recipe under ``configs/`` builds and takes one training step at a small size."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from torch import nn

from mmpelk.engine import adapt_to_machine
from tests.paths import CONFIGS, RECIPES

pytestmark = pytest.mark.slow

SIZE = 64
# One of each task with all of its blocks.
WHOLE = ('cls/pelk_t_in1k.py', 'seg/upernet_pelk_t_ade20k.py', 'det/cascade_mask_rcnn_pelk_t_coco.py')


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Config:
    """The recipe; most with one block a stage, which has the stage's width and kernel."""
    cfg = Config.fromfile(CONFIGS / request.param)
    if request.param not in WHOLE and not request.param.startswith('demo/'):
        cfg.model.backbone.depths = (1, 1, 1, 1)
    cfg.launcher = 'none'
    adapt_to_machine(cfg)
    return cfg


def segmentation_batch(cfg: Config) -> dict:
    from mmseg.structures import SegDataSample

    # SegDataPreProcessor pads to this size.
    cfg.model.data_preprocessor.size = (SIZE, SIZE)
    samples = []
    for _ in range(2):
        label = torch.randint(cfg.model.decode_head.num_classes, (1, SIZE, SIZE))
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=dict(img_shape=(SIZE, SIZE))))
    return dict(inputs=images(2), data_samples=samples)


def detection_batch(cfg: Config) -> dict:
    from mmdet.testing import demo_mm_inputs

    # Two objects an image need no thousand proposals.
    cfg.model.train_cfg.rpn_proposal.update(nms_pre=64, max_per_img=16)
    stages = cfg.model.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 16
    heads = cfg.model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.fc_out_channels = 64  # three quarters of the weights otherwise
    return demo_mm_inputs(2, [(3, SIZE, SIZE)] * 2, num_items=[2, 2], num_classes=2, with_mask=True)


def classification_batch(cfg: Config) -> dict:
    from mmpretrain.structures import DataSample

    return dict(inputs=images(2), data_samples=[DataSample().set_gt_label(label) for label in (0, 1)])


def images(number: int) -> list[torch.Tensor]:
    return [torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in range(number)]


BATCHES = {'mmseg': segmentation_batch, 'mmdet': detection_batch, 'mmpretrain': classification_batch}


def test_recipe_trains_one_step(recipe: Config) -> None:
    scope = recipe.default_scope
    pytest.importorskip(scope)
    init_default_scope(scope)
    torch.manual_seed(0)
    np.random.seed(0)
    batch = BATCHES[scope](recipe)
    recipe.model.backbone.init_cfg = None
    # A step is a step here, also in a recipe that adds up the gradients of several.
    recipe.optim_wrapper.pop('accumulative_counts', None)
    model: nn.Module = revert_sync_batchnorm(MODELS.build(recipe.model)).train()
    optimizer = build_optim_wrapper(model, recipe.optim_wrapper)
    before = {name: value.detach().clone() for name, value in model.backbone.named_parameters()}

    losses = model.train_step(batch, optimizer)

    assert losses['loss'].isfinite()
    after = dict(model.backbone.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    # AdamW moves every parameter that has a gradient. Drop path leaves some blocks out of so small a batch.
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(moved) > 0.3 * len(after)
    assert any(name.startswith('downsample_layers.0') for name in moved)
