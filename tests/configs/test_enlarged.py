"""Recipes of enlarged networks against the toolboxes' own: checkpoints, groups of the optimizer, frozen stages."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmpelk.analysis.complexity import count_complexity
from mmpelk.analysis.inference import build_model
from mmpelk.engine import adapt_to_machine
from mmpelk.export import ExportedNetwork, load_deployed, make_plain
from mmpelk.models import EnlargedConv2d
from tests.paths import CONFIGS, RECIPES


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for child in value:
            yield from tensors(child)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in RECIPES if 'enlarged' in name])
def test_checkpoint_and_groups_of_the_plain_network(name: str) -> None:
    """Its checkpoint loads, with the same outputs; every parameter has the same decay, and rate but for the kernels."""
    cfg = Config.fromfile(CONFIGS / name)
    pytest.importorskip(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    cfg.launcher = 'none'
    adapt_to_machine(cfg)
    cfg.model.backbone.init_cfg = None

    def built(**backbone: Any) -> nn.Module:
        model = copy.deepcopy(cfg.model)
        model.backbone = backbone
        return revert_sync_batchnorm(MODELS.build(model))

    def groups(model: nn.Module) -> dict[str, tuple[float, float]]:
        names = {parameter: name for name, parameter in model.named_parameters()}
        optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer
        return {
            names[parameter]: (group['lr'], group['weight_decay'])
            for group in optimizer.param_groups
            for parameter in group['params']
        }

    plain, enlarged = built(**{**cfg.model.backbone.backbone, 'init_cfg': None}), built(**cfg.model.backbone)
    assert any(isinstance(module, EnlargedConv2d) for module in enlarged.backbone.modules())
    large = {f'{name}.weight' for name, module in enlarged.named_modules() if isinstance(module, EnlargedConv2d)}
    of_plain, of_enlarged = groups(plain), groups(enlarged)
    assert of_plain.keys() == of_enlarged.keys()
    for name, (rate, decay) in of_plain.items():
        wanted = rate * (0.1 if name in large else 1), decay
        assert of_enlarged[name] == pytest.approx(wanted, rel=1e-12), name
    for parameter in plain.backbone.parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter)
    enlarged.load_state_dict(plain.state_dict())
    plain.train(False)
    enlarged.train(False)
    with torch.no_grad():
        image = torch.randn(1, 3, 96, 64)
        outputs = [list(tensors(model(image, mode='tensor'))) for model in (plain, enlarged)]
    assert outputs[0]
    for want, got in zip(*outputs, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['det/rtmdet_tiny_enlarged_coco.py', 'cls/mobilenet_v2_enlarged_in1k.py'])
def test_export_and_counts(name: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / name)
    pytest.importorskip(cfg.default_scope)
    model = build_model(cfg)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    exported = ExportedNetwork.of(cfg, load_deployed(cfg, str(tmp_path / 'model.pth')))
    image = torch.rand(1, exported.channels, 64, 64)
    with torch.no_grad():
        want, got = exported.network(image), make_plain(copy.deepcopy(exported.network), image)(image)
    assert len(want) == len(exported.outputs)
    for before, after in zip(want, got, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * before.abs().max().item())

    counted = count_complexity(model, (64, 64))
    (component,) = (each for each in counted.components if each.name == 'large_kernels')
    assert component.flops == sum(call.dense_flops for call in counted.calls)
    assert counted.executed_by_component()['backbone', 'large_kernels'] == counted.executed()


@pytest.mark.scope('mmdet')
def test_frozen_and_chosen_stages() -> None:
    inner = dict(type='mmdet.CSPNeXt', deepen_factor=0.167, widen_factor=0.125, frozen_stages=2, out_indices=(1, 4))
    network = MODELS.build(dict(type='mmpelk.Enlarged', backbone=inner, kernel_size=13))
    network.train()
    assert len(network(torch.rand(2, 3, 64, 64))) == 2
    convs = {name: conv for name, conv in network.named_modules() if isinstance(conv, EnlargedConv2d)}
    assert {conv.weight.requires_grad for name, conv in convs.items() if name[:6] in ('stage1', 'stage2')} == {False}
    assert {conv.weight.requires_grad for name, conv in convs.items() if name[:6] in ('stage3', 'stage4')} == {True}
