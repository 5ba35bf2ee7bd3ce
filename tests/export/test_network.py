"""What the exporters read: a trained or a deployed checkpoint of a recipe."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmpelk.export import load_deployed
from tests.paths import CONFIGS


@pytest.mark.slow
@pytest.mark.scope('mmseg')
@pytest.mark.parametrize('mode', ['in_bounds', 'constant', None])
def test_a_deployed_checkpoint_is_read_as_the_trained_one(mode: str | None, tmp_path: Path) -> None:
    """Whether or not its embedding has left a table."""
    cfg = Config.fromfile(CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py')
    cfg.model.backbone.update(positional_embedding=mode, norm_cfg=dict(type='BN'), layer_scale_init_value=1.0)
    model: Any = MODELS.build(cfg.model).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    model.backbone.switch_to_deploy()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'deployed.pth')
    one, other = (cast(Any, load_deployed(cfg, str(tmp_path / f'{form}.pth'))) for form in ('trained', 'deployed'))
    image = torch.rand(1, 3, 64, 64)
    for out, want in zip(other.backbone(image), one.backbone(image), strict=True):
        torch.testing.assert_close(out, want)
