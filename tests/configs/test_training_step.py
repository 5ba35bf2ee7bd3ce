"""Every recipe under ``configs/`` builds and takes one training step at a small size."""

from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmpelk.engine import adapt_to_machine
from tests.packaging.use_wheel import SIZE, sample
from tests.paths import CONFIGS, RECIPES

pytestmark = pytest.mark.slow

# One of each task with all of its blocks.
WHOLE = ('cls/pelk_t_in1k.py', 'seg/upernet_pelk_t_ade20k.py', 'det/cascade_mask_rcnn_pelk_t_coco.py')


# Others differ by hooks (unit), kernels (101), depth and drop path (s), image size (384) or weights (dinov3) alone
# (test_recipes.py).
OTHERS = ('unit', '_101_', '_s_', '_384', 'dinov3_t_ade', 'dinov3_t_coco', 'dinov3_b', 'dinov3_l_frozen')


@pytest.fixture(params=[name for name in RECIPES if not any(part in name for part in OTHERS)])
def recipe(request: pytest.FixtureRequest) -> Config:
    """The recipe; most with one block a stage, which has the stage's width and kernel."""
    cfg = Config.fromfile(CONFIGS / request.param)
    if request.param not in WHOLE and not request.param.startswith('demo/') and 'enlarged' not in request.param:
        cfg.model.backbone.depths = (1, 1, 1, 1)
    cfg.launcher = 'none'
    adapt_to_machine(cfg)
    return cfg


def make_small(cfg: Config) -> None:
    """Adapt a recipe to images of this size, with one object each."""
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (SIZE, SIZE)  # to which it pads
    elif cfg.model.type == 'DINO':
        cfg.model.num_queries = 40  # of 85 positions
    elif 'roi_head' in cfg.model:
        cfg.model.train_cfg.rpn_proposal.update(nms_pre=64, max_per_img=16)
        stages, heads = cfg.model.train_cfg.rcnn, cfg.model.roi_head.bbox_head
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16
        for head in heads if isinstance(heads, list) else [heads]:
            head.fc_out_channels = 64  # three quarters of the weights otherwise


def test_recipe_trains_one_step(recipe: Config) -> None:
    scope = recipe.default_scope
    pytest.importorskip(scope)
    init_default_scope(scope)
    torch.manual_seed(0)
    np.random.seed(0)
    make_small(recipe)
    images = [torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in range(2)]
    samples: list[Any] = [sample(scope), sample(scope)]
    if recipe.model.get('bbox_head', {}).get('type') == 'RTMDetSepBNHead':
        for each in samples:
            each.gt_instances.pop('masks')  # which a detector of boxes does not load
    batch = dict(inputs=images, data_samples=samples)
    recipe.model.backbone.init_cfg = None
    # A step is a step here, also in a recipe that adds up the gradients of several.
    recipe.optim_wrapper.pop('accumulative_counts', None)
    model: nn.Module = revert_sync_batchnorm(MODELS.build(recipe.model)).train()
    if recipe.model.type == 'DINO':
        model.init_weights()  # mmdet leaves its embedding of levels as the memory was until then
    optimizer = build_optim_wrapper(model, recipe.optim_wrapper)
    before = {name: value.detach().clone() for name, value in model.backbone.named_parameters()}

    losses = model.train_step(batch, optimizer)

    assert losses['loss'].isfinite()
    after = dict(model.backbone.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    # AdamW moves every parameter that has a gradient. Drop path leaves some blocks out of so small a batch.
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    frozen = recipe.model.backbone.get('frozen_stages')
    if frozen is not None and frozen == len(model.backbone.stages):
        assert moved
        assert all(name.startswith('norm') for name in moved)
        return
    assert len(moved) > 0.3 * len(after)
    assert next(iter(after)) in moved  # of the stem
