"""PeLK as the backbone of models of transformers, through timm's registry: each way of ``docs/transformers.md``.

They are skipped where transformers is not installed, as in the environment of the toolboxes, which version 5 breaks.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmpelk.models import PeLK, PeripheralConv2d
from tests.paths import ROOT, sample_data

pytest.importorskip('transformers', reason='pip install mmpelk[transformers]')
pytest.importorskip('timm', reason='pip install mmpelk[transformers]')
import timm
import transformers
from timm.models import register_model

import mmpelk.timm  # noqa: F401

pytestmark = pytest.mark.slow  # importing transformers takes seconds

SIZE = 64


@register_model
def pelk_nano(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """A name of one's own, as the page has it, with arguments that transformers has no place for."""
    small = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 11, 9, 7))
    return timm.create_model('pelk_tiny', **small, drop_path_rate=0.1, layer_scale_init_value=1.0, **arguments)


def backbone(*stages: int) -> Any:
    return transformers.TimmBackboneConfig(backbone='pelk_nano', out_indices=list(stages))


def upernet() -> tuple[Any, dict[str, Any]]:
    config = transformers.UperNetConfig(
        backbone_config=backbone(0, 1, 2, 3),
        hidden_size=16,
        auxiliary_channels=8,
        auxiliary_in_channels=16,
        num_labels=5,
    )
    return transformers.UperNetForSemanticSegmentation(config), dict(labels=torch.randint(5, (2, SIZE, SIZE)))


def mask2former() -> tuple[Any, dict[str, Any]]:
    small = dict(feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, dim_feedforward=32)
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone(0, 1, 2, 3),
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        train_num_points=64,
        num_labels=5,
        **small,
    )
    masks = torch.zeros(1, SIZE, SIZE)
    masks[:, 8:40, 8:40] = 1
    targets = dict(mask_labels=[masks, masks], class_labels=[torch.tensor([1]), torch.tensor([2])])
    return transformers.Mask2FormerForUniversalSegmentation(config), targets


BOXES = [dict(class_labels=torch.tensor([1]), boxes=torch.tensor([[0.4, 0.4, 0.5, 0.5]]))] * 2


def detr() -> tuple[Any, dict[str, Any]]:
    config = transformers.DetrConfig(
        backbone_config=backbone(3),
        d_model=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_labels=5,
    )
    return transformers.DetrForObjectDetection(config), dict(labels=BOXES)


def rt_detr() -> tuple[Any, dict[str, Any]]:
    config = transformers.RTDetrV2Config(
        backbone_config=backbone(1, 2, 3),
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[12, 16, 20],
        encoder_hidden_dim=32,
        encoder_ffn_dim=32,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_layers=2,
        num_queries=5,
        num_denoising=0,
        num_labels=5,
    )
    return transformers.RTDetrV2ForObjectDetection(config), dict(labels=BOXES)


@pytest.mark.parametrize('build', [upernet, mask2former, detr, rt_detr], ids=lambda build: build.__name__)
def test_model_trains_and_is_saved_and_loaded(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, targets = build()
    pictures = torch.rand(2, 3, SIZE, SIZE)
    loss = model.train()(pixel_values=pictures, **targets).loss
    assert loss.isfinite()
    loss.backward()
    (network,) = (part for part in model.modules() if isinstance(part, PeLK))
    kernels = [part.weight.grad for part in network.modules() if isinstance(part, PeripheralConv2d)]
    assert len(kernels) == 4
    assert all(gradient is not None and gradient.any() for gradient in kernels)

    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    before, after = (_tensors(each, pictures) for each in (model, loaded))
    assert len(before) == len(after) > 0
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    # Merged for deployment: sums in another order.
    deployed = _tensors(timm.utils.reparameterize_model(model), pictures)
    for old, new in zip(before, deployed, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-4)


def _tensors(model: nn.Module, pictures: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = model(pixel_values=pictures)
    names = ('logits', 'pred_boxes', 'class_queries_logits', 'masks_queries_logits')
    return [out[name] for name in names if name in out]


BLOCKED = 'import sys\nfor name in ("mmcv", "mmseg", "mmdet", "mmpretrain"): sys.modules[name] = None\n'
DATA = """
import sys
from pathlib import Path
import numpy as np, torch, transformers
from PIL import Image
from tests.test_transformers import pelk_nano

torch.manual_seed(0)
dataset = []
for path in sorted((Path(sys.argv[1]) / 'images' / 'training').glob('*.jpg'))[:4]:
    labels = Image.open(str(path).replace('images', 'annotations').replace('.jpg', '.png')).resize((64, 64), 0)
    pixels = np.asarray(Image.open(path).convert('RGB').resize((64, 64)), np.float32).transpose(2, 0, 1) / 255 - 0.5
    labels = torch.from_numpy(np.asarray(labels, np.int64)) - 1
    dataset.append(dict(pixel_values=torch.from_numpy(pixels), labels=labels.where(labels >= 0, 255)))
"""
RUN = 'trainer = Trainer(model, arguments, train_dataset=dataset)\ntrainer.train()'
CHECK = """
losses = [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]
assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5]), losses
assert not [name for name, module in sys.modules.items() if name.startswith('mmcv') and module]
"""


def test_trainer_trains_on_photographs_without_mmcv(tmp_path: Path) -> None:
    """The page's own lines, with a smaller network and a learning rate for twenty steps."""
    pytest.importorskip('accelerate')
    page = (ROOT / 'docs' / 'transformers.md').read_text()
    lines = page.replace('pelk_tiny', 'pelk_nano').replace('auxiliary_in_channels=499', 'auxiliary_in_channels=16')
    build, train = re.findall(r'```python\n(.*?)```', lines, re.DOTALL)[:2]
    train = train.replace('learning_rate=1e-4', "learning_rate=1e-3, report_to='none', save_steps=10")
    train = train.replace('Trainer(model, arguments, train_dataset=dataset).train()', RUN)
    script = tmp_path / 'train.py'
    script.write_text(BLOCKED + DATA + build + train + CHECK)
    command = [sys.executable, script, sample_data('ade20k_sample')]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in (tmp_path / 'work').iterdir()} == {'checkpoint-10', 'checkpoint-20'}


def test_weights_are_loaded_into_a_built_model(tmp_path: Path) -> None:
    model, _ = upernet()
    other, _ = upernet()
    (network,), (source,) = ([part for part in each.modules() if isinstance(part, PeLK)] for each in (model, other))
    torch.save({f'backbone.{name}': value for name, value in source.state_dict().items()}, tmp_path / 'pelk.pth')
    network.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'pelk.pth'), prefix='backbone.')
    network.init_weights()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in network.state_dict().items())
