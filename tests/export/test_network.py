"""What the exporters read: a trained or a deployed checkpoint of a recipe."""

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmpelk.export import ExportedNetwork, compare, load_deployed
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
@pytest.mark.parametrize('toolbox', ['mmengine', 'mmpretrain'])
def test_pixels_become_what_the_recipe_makes_of_them(toolbox: str, swap: bool) -> None:
    """Ours are red, green, blue; those of the recipe as OpenCV reads them."""
    numbers = dict(mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0])
    if toolbox == 'mmengine':
        preprocessor: Any = ImgDataPreprocessor(**numbers, bgr_to_rgb=swap)
        cfg = Config(dict(model=dict(data_preprocessor=dict(**numbers, bgr_to_rgb=swap))))
    else:  # which calls the option otherwise, and has it beside the model
        preprocessor = pytest.importorskip('mmpretrain.models').ClsDataPreprocessor(**numbers, to_rgb=swap)
        cfg = Config(dict(model={}, data_preprocessor=dict(**numbers, to_rgb=swap)))
    pixels = torch.randint(256, (1, 5, 6, 3), dtype=torch.uint8)
    read = pixels.flip(-1).permute(0, 3, 1, 2)
    want = preprocessor(dict(inputs=[read[0]]))['inputs']
    torch.testing.assert_close(Preprocessing.of(cfg).apply(pixels), want)


@pytest.mark.scope('mmseg')
@pytest.mark.parametrize(('classes', 'align'), [(2, False), (3, False), (3, True)])
def test_logits_and_labels_are_the_toolboxs(classes: int, align: bool) -> None:
    """Two classes by one logit, too, whose threshold is not a half."""
    cfg = Config.fromfile(CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py')
    cfg.model.backbone.norm_cfg = cfg.model.decode_head.norm_cfg = dict(type='BN')
    cfg.model.decode_head.update(num_classes=classes, align_corners=align, loss_decode=dict(type='CrossEntropyLoss'))
    if classes == 2:
        cfg.model.decode_head.update(out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
    model: Any = MODELS.build(cfg.model).eval()
    model.dataset_meta = {}
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits, labels = ExportedNetwork.of(cfg, model).network(image)
        (want,) = model.predict(image)
    assert torch.equal(labels, want.pred_sem_seg.data)
    torch.testing.assert_close(logits if classes > 2 else logits.sigmoid(), want.seg_logits.data[None])
    assert classes > 2 or labels.sum() > (logits > 0).sum()


@pytest.mark.parametrize('wrong', ['logits', 'labels', 'no number', ''])
def test_the_worst_output_counts(wrong: str) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return image * self.scale, image.argmax(1), image * self.scale

    network = ExportedNetwork(Network(), ('logits', 'labels', 'more'), 'segmentation', Preprocessing(), 1)
    image = torch.eye(4)[None, :, :, None]

    def run(given: Any) -> list[Any]:
        logits, labels = given.copy(), given.argmax(1)
        logits[0, 0, 0] += 0.25 * (wrong == 'logits')
        labels[0, 0] += wrong == 'labels'
        return [logits, labels, given * (math.nan if wrong == 'no number' else 1)]

    found = compare(run, network, image)
    assert found.difference == pytest.approx({'logits': 0.25, 'no number': math.nan}.get(wrong, 0), nan_ok=True)
    assert found.same_labels == (0.75 if wrong == 'labels' else 1)


def test_best_classes_are_compared() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return (image.flatten(1) * self.scale,)

    network = ExportedNetwork(Network(), ('logits',), 'classification', Preprocessing(), 1)
    image = torch.tensor([[1.0, 3.0, 2.0], [2.0, 0.0, 1.0], [0.0, 4.0, 1.0]])[..., None, None]

    def run(given: Any) -> list[Any]:
        logits = given.reshape(3, 3).copy()
        logits[0] = logits[0, [0, 2, 1]]
        return [logits]

    found = compare(run, network, image)
    assert found.difference == 1 / 4
    assert found.same_labels == pytest.approx(2 / 3)
