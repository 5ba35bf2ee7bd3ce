"""Every family of heads that reads a pyramid, on PeLK and on an enlarged network: loss, gradients, prediction."""

import numpy as np
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmpelk.models import PeLK, PeripheralConv2d
from tests.configs.heads import ENLARGED, HEADS, NORMALISATION, PAGE, PELK, Head, page_with, small_model, table
from tests.packaging.use_wheel import SIZE, sample


def test_page_has_the_table() -> None:
    assert PAGE.read_text() == page_with(table()), 'run python -m tests.configs.heads'


@pytest.mark.slow
@pytest.mark.parametrize('network', ['pelk', 'enlarged'])
@pytest.mark.parametrize('head', HEADS, ids=lambda head: f'{head.scope}-{head.name}')
def test_head_trains_and_predicts(head: Head, network: str) -> None:
    pytest.importorskip(head.scope)
    pytest.importorskip('mmcv.ops')
    init_default_scope(head.scope)
    torch.manual_seed(0)
    np.random.seed(0)
    cfg = small_model(head, PELK if network == 'pelk' else ENLARGED[head.scope])
    assert {key: cfg.data_preprocessor[key] for key in NORMALISATION} == NORMALISATION
    model: nn.Module = revert_sync_batchnorm(MODELS.build(cfg))
    model.init_weights()
    images = [torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in range(2)]
    batch = dict(inputs=images, data_samples=[sample(head.scope), sample(head.scope)])
    for each in batch['data_samples']:
        each.set_metainfo(dict(scale_factor=(1.0, 1.0)))
        if head.scope == 'mmdet' and 'loss_mask' not in str(cfg):
            del each.gt_instances.masks

    model.train()
    loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode='loss'))
    loss.backward()
    assert loss.isfinite()
    # All of them, or several processes could not train it.
    assert [name for name, value in model.backbone.named_parameters() if value.grad is None] == []
    kernels = [part.weight.grad for part in model.backbone.modules() if isinstance(part, PeripheralConv2d)]
    assert kernels
    assert all(gradient.isfinite().all() and gradient.any() for gradient in kernels)
    assert isinstance(model.backbone, PeLK) == (network == 'pelk')

    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(batch, training=False), mode='predict')
    assert len(results) == 2
    for result in results:
        if head.scope == 'mmseg':
            assert result.pred_sem_seg.data.shape == (1, SIZE, SIZE)
        else:
            found = result.pred_instances
            assert found.bboxes.shape == (len(found), 4)
            assert len(found)
            assert 'masks' not in found or found.masks.shape == (len(found), SIZE, SIZE)
