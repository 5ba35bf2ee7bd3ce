"""What the exporters read: a trained or a deployed checkpoint of a recipe."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS

from mmpelk.export import load_deployed
from mmpelk.export.network import Preprocessing
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


@pytest.mark.parametrize('swap', [True, False])
def test_pixels_become_what_the_recipe_makes_of_them(swap: bool) -> None:
    """Ours are red, green, blue; those of the recipe as OpenCV reads them."""
    numbers = dict(mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0])
    cfg = Config(dict(model=dict(data_preprocessor=dict(**numbers, bgr_to_rgb=swap))))
    pixels = torch.randint(256, (1, 5, 6, 3), dtype=torch.uint8)
    read = pixels.flip(-1).permute(0, 3, 1, 2)
    want = ImgDataPreprocessor(**numbers, bgr_to_rgb=swap)(dict(inputs=[read[0]]))['inputs']
    torch.testing.assert_close(Preprocessing.of(cfg).apply(pixels), want)
