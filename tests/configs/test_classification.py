"""Classification recipes: counts and parameter groups of the networks that they build."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from tests.configs.resolved import config

pytestmark = pytest.mark.scope('mmpretrain')


def test_weight_decay_is_for_matrices_and_kernels_alone() -> None:
    cfg = Config.fromfile(config('cls/pelk_t_in1k'))
    cfg.model.backbone.update(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20))
    cfg.model.head.in_channels = 20
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(parameter): group['weight_decay'] for group in groups for parameter in group['params']}
    for name, parameter in model.named_parameters():
        # Norms, biases and layer scales have one dimension, the embedding has three.
        assert decay[id(parameter)] == (0.05 if parameter.dim() in (2, 4) else 0), name


def test_demo_networks_have_equal_parameters() -> None:
    counts = {}
    for name in ('pelk', 'conv7', 'stripe'):
        with torch.device('meta'):
            model = MODELS.build(Config.fromfile(config(f'demo/{name}_nano_digits')).model)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    assert max(counts.values()) < 1.005 * min(counts.values()), counts
