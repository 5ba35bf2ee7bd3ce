"""A detector around PeLK, and batches for it."""

from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from tests.paths import CONFIGS

pytest.importorskip('mmdet')

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks

NANO = CONFIGS / 'demo' / 'mask_rcnn_pelk_nano_synthetic.py'


def detector(pad_size_divisor: int = 32, **backbone: Any) -> nn.Module:
    """The demo's Mask R-CNN with the large kernels of PeLK-T."""
    torch.manual_seed(0)
    cfg = Config.fromfile(NANO).model
    cfg.backbone.kernel_sizes = (51, 49, 47, 13)
    cfg.backbone.update(backbone)
    cfg.data_preprocessor.pad_size_divisor = pad_size_divisor
    model = MODELS.build(cfg)
    model.init_weights()
    return model.train()


def batch(*sizes: tuple[int, int]) -> dict[str, list]:
    """Random images ``(H, W)`` with one box each, as a data loader gives them."""
    generator = torch.Generator().manual_seed(0)
    samples, inputs = [], []
    for height, width in sizes:
        inputs.append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
        mask = np.zeros((1, height, width), np.uint8)
        mask[:, height // 4 : height, width // 4 : width] = 1
        box = torch.tensor([[width // 4, height // 4, width, height]], dtype=torch.float32)
        sample = DetDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1, 1)))
        sample.gt_instances = InstanceData(bboxes=box, labels=torch.zeros(1, dtype=torch.long))
        sample.gt_instances.masks = BitmapMasks(mask, height, width)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def loss_of(model: nn.Module, data: dict[str, list]) -> Tensor:
    torch.manual_seed(1)  # mmdet samples boxes at random
    total, _ = model.parse_losses(model(**model.data_preprocessor(data, training=True), mode='loss'))
    return total
