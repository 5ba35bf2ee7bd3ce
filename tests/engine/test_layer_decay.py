"""Parameter groups against those of the toolboxes' own constructor on a ConvNeXt of the same depth."""

import pytest
import torch
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as Mmdets
from mmpretrain.models import ConvNeXt
from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor as Mmsegs
from torch import nn

from mmpelk.engine import LayerDecayOptimWrapperConstructor
from mmpelk.models import PeLK


class _Segmentor(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Conv2d(4, 4, 1)


OPTIM_WRAPPER = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))


def _rates(groups: list[dict]) -> dict[str, tuple[float, ...]]:
    keys = ('lr', 'lr_scale', 'weight_decay')
    return {name: tuple(group[key] for key in keys) for group in groups for name in group['param_names']}


@pytest.mark.parametrize(('depth', 'num_layers'), [(9, 6), (27, 12)])
@pytest.mark.parametrize(('decay_type', 'decay_rate'), [('stage_wise', 0.9), ('layer_wise', 0.7)])
@pytest.mark.parametrize('constructor', [Mmsegs, Mmdets])
def test_rates_of_convnexts_recipe(
    depth: int, num_layers: int, decay_type: str, decay_rate: float, constructor: type
) -> None:
    arch, maps = dict(depths=(3, 3, depth, 3), channels=(8,) * 4), (0, 1, 2, 3)
    ours = _Segmentor(PeLK(arch | dict(kernel_sizes=(5,) * 4), out_indices=maps, gap_before_final_norm=False))
    theirs = _Segmentor(ConvNeXt(arch, out_indices=maps, gap_before_final_norm=False))
    paramwise_cfg = dict(decay_rate=decay_rate, decay_type=decay_type)
    got, want = [], []
    LayerDecayOptimWrapperConstructor(OPTIM_WRAPPER, paramwise_cfg).add_params(got, ours)
    constructor(OPTIM_WRAPPER, paramwise_cfg | dict(num_layers=num_layers)).add_params(want, theirs)
    got_rates, want_rates = _rates(got), _rates(want)
    assert set(got_rates) == {name for name, _ in ours.named_parameters()}
    for name, rates in got_rates.items():
        # The parts that only PeLK has train as the depthwise convolution of the same block does.
        other = name.replace('positional_embedding', '0.gamma')
        if '.mixer.' in name:
            is_kernel = name.endswith(('large.weight', 'small.weight'))
            other = f'{name[: name.index(".mixer.")]}.depthwise_conv.{"weight" if is_kernel else "bias"}'
        assert rates == pytest.approx(want_rates[other]), name


SMALL = dict(depths=(1,) * 4, channels=(8,) * 4, kernel_sizes=(5,) * 4)


def test_frozen_parameters_are_left_out() -> None:
    groups: list[dict] = []
    model = _Segmentor(PeLK(SMALL, frozen_stages=1))
    LayerDecayOptimWrapperConstructor(OPTIM_WRAPPER, dict(decay_rate=0.9)).add_params(groups, model)
    assert not any(name.startswith('backbone.stages.0') for name in _rates(groups))


def test_weight_decay_left_to_the_optimizer() -> None:
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4))
    optimizer = LayerDecayOptimWrapperConstructor(wrapper, dict(decay_rate=0.9))(_Segmentor(PeLK(SMALL))).optimizer
    default = torch.optim.AdamW([torch.zeros(1)]).defaults['weight_decay']
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.0, default}


def test_refuses() -> None:
    for cfg, message in (
        (dict(), 'needs decay_rate'),
        (dict(decay_rate=0.9, num_layer=6), 'may have'),
        (dict(decay_rate=1.5), r'in \(0, 1\]'),
        (dict(decay_rate=0.9, decay_type='block_wise'), 'layer_wise'),
    ):
        with pytest.raises(ValueError, match=message):
            LayerDecayOptimWrapperConstructor(OPTIM_WRAPPER, cfg)


def test_backbone_without_depths() -> None:
    with pytest.raises(ValueError, match='get_layer_depth'):
        LayerDecayOptimWrapperConstructor(OPTIM_WRAPPER, dict(decay_rate=0.9)).add_params(
            [], _Segmentor(nn.Conv2d(3, 4, 1))
        )
