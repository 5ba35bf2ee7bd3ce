"""What the tests of several tools start from."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from tests.paths import CONFIGS

DEMO_RECIPE = CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py'


@pytest.fixture(scope='session')
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo's network, random but whole, with names of classes."""
    pytest.importorskip('mmseg')
    cfg = Config.fromfile(DEMO_RECIPE)
    with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope('mmseg'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
    for stage in model.backbone.stages:
        for block in stage:
            torch.nn.init.constant_(block.gamma, 0.5)  # the initial one hides the mixers
    path = tmp_path_factory.mktemp('demo') / 'model.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=cfg.metainfo.classes))), path)
    return path
