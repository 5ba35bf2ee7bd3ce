"""Every recipe under ``configs/`` parses, builds, and takes one training step at a small size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.structures import PixelData
from torch import nn

import mmpelk
from mmpelk.engine import adapt_to_machine
from tests.paths import CONFIGS, RECIPES, ROOT

SIZE = 64


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Config:
    cfg = Config.fromfile(CONFIGS / request.param)
    cfg.launcher = 'none'
    adapt_to_machine(cfg)
    return cfg


@pytest.fixture(autouse=True)
def _leave_no_scope() -> Any:
    """The scope is global in mmengine; give the next test the one that it would have had."""
    scope = DefaultScope.get_current_instance()
    yield
    if scope is not None:
        init_default_scope(scope.scope_name)


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


@pytest.mark.parametrize('name', [name for name in RECIPES if not name.startswith('demo/')])
def test_pretrained_weights_come_from_one_place(name: str) -> None:
    init_cfg = Config.fromfile(CONFIGS / name).model.backbone.get('init_cfg')
    if init_cfg is not None:
        assert init_cfg.type == 'Pretrained'
        assert Path(init_cfg.checkpoint).parent == Path('checkpoints')


@pytest.mark.parametrize('name', [name for name in RECIPES if name.startswith(('seg/', 'det/'))])
def test_downstream_recipes_keep_the_masks(name: str) -> None:
    (hook,) = Config.fromfile(CONFIGS / name).custom_hooks
    assert hook == dict(type='mmpelk.SparsityHook', mode='fixed')


def test_package_lists_every_recipe() -> None:
    assert mmpelk.list_configs() == RECIPES


def test_model_index_names_existing_recipes() -> None:
    load = pytest.importorskip('modelindex.load_model_index').load
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    configs = {model.config for model in index.models}
    assert {f'configs/{name}' for name in RECIPES if not name.startswith('demo/')} <= configs
    assert all((ROOT / config).is_file() for config in configs)


@pytest.mark.parametrize(
    ('name', 'drop_path_rate', 'num_layers', 'channels'),
    [('t', 0.4, 6, 499), ('s', 0.3, 12, 499), ('b', 0.4, 12, 665), ('b_101', 0.4, 12, 665)],
)
def test_segmentation_recipes_follow_convnext(name: str, drop_path_rate: float, num_layers: int, channels: int) -> None:
    cfg = mmpelk.get_config(f'seg/upernet_pelk_{name}_ade20k.py')
    assert cfg.model.backbone.drop_path_rate == drop_path_rate
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_rate=0.9, decay_type='stage_wise', num_layers=num_layers)
    assert cfg.model.auxiliary_head.in_channels == channels
    assert cfg.model.decode_head.in_channels[2] == channels
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    assert cfg.train_cfg.max_iters == 160_000
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16
