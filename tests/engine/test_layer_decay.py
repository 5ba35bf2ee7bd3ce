"""Parameter groups against those of the toolboxes' own constructor on a ConvNeXt of the same depth."""

import pytest
import torch
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as Mmdets
from mmengine.optim import DefaultOptimWrapperConstructor
from mmpretrain.models import ConvNeXt, ImageClassifier, SwinTransformer
from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor as Mmsegs
from torch import nn

import mmpelk
from mmpelk.engine import LayerDecayOptimWrapperConstructor
from mmpelk.models import PeLK, PeripheralConv2d


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
@pytest.mark.parametrize(('decay_type', 'decay_rate'), [('stage_wise', 0.9), ('layer_wise', 0.7), ('layer_wise', 1.0)])
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
        *((dict(decay_rate=rate), r'in \(0, 1\]') for rate in (1.5, 0)),
        (dict(decay_rate=0.9, decay_type='block_wise'), 'layer_wise'),
    ):
        with pytest.raises(ValueError, match=message):
            LayerDecayOptimWrapperConstructor(OPTIM_WRAPPER, cfg)


def test_backbone_without_depths() -> None:
    with pytest.raises(ValueError, match='get_layer_depth'):
        LayerDecayOptimWrapperConstructor(OPTIM_WRAPPER, dict(decay_rate=0.9)).add_params(
            [], _Segmentor(nn.Conv2d(3, 4, 1))
        )


def _groups(model: nn.Module, **paramwise_cfg: object) -> dict[str, tuple[float, ...]]:
    optimizer = LayerDecayOptimWrapperConstructor(OPTIM_WRAPPER, dict(decay_rate=0.8) | paramwise_cfg)(model).optimizer
    assert len({group['group_name'] for group in optimizer.param_groups}) == len(optimizer.param_groups)
    return _rates(optimizer.param_groups)


@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
def test_backbones_of_any_name(decay_type: str) -> None:
    """Of several sensors, or of a teacher: each parameter trains at the rate of its own backbone's layer."""
    want = _groups(_Segmentor(PeLK(SMALL)), decay_type=decay_type)
    deeper = _groups(_Segmentor(PeLK(SMALL | dict(depths=(1, 1, 27, 1)))), decay_type=decay_type)
    model = nn.Module()
    model.img_backbone = PeLK(SMALL)
    if decay_type == 'layer_wise':
        model.backbone = PeLK(SMALL)  # whose name is the end of the other's
    model.student = _Segmentor(PeLK(SMALL | dict(depths=(1, 1, 27, 1))))
    model.fusion = nn.Linear(3, 3)
    got = _groups(model, decay_type=decay_type)
    assert got.keys() == {name for name, _ in model.named_parameters()}
    for name, rates in got.items():
        if name.startswith('fusion.'):
            assert rates[1] == 1
        elif name.startswith('student.'):
            assert rates == pytest.approx(deeper[name.removeprefix('student.')]), name
        else:
            assert rates == pytest.approx(want[name.replace('img_backbone', 'backbone')]), name


@pytest.mark.scope('mmpretrain')
def test_backbone_alone_and_in_a_classifier() -> None:
    want = _groups(_Segmentor(PeLK(SMALL)))
    alone = _groups(PeLK(SMALL))
    assert alone == {name.removeprefix('backbone.'): want[name] for name in want if name.startswith('backbone.')}
    head = dict(type='LinearClsHead', num_classes=2, in_channels=8)
    classifier = _groups(ImageClassifier(backbone=dict(type='mmpelk.PeLK', arch=SMALL), head=head))
    assert {name: rates for name, rates in classifier.items() if name in want} == {
        name: rates for name, rates in want.items() if name.startswith('backbone.')
    }
    assert classifier['head.fc.weight'][1] == 1


@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
def test_enlarged_network(decay_type: str) -> None:
    arch = dict(depths=(1, 1, 2, 1), channels=(8,) * 4)
    want = _groups(_Segmentor(ConvNeXt(arch)), decay_type=decay_type)
    enlarged = _Segmentor(ConvNeXt(arch))
    mmpelk.enlarge(enlarged, 13)
    assert any(isinstance(module, PeripheralConv2d) for module in enlarged.modules())
    assert _groups(enlarged, decay_type=decay_type) == want
    undecayed = _groups(enlarged, decay_type=decay_type, dwconv_decay_mult=0.0)
    changed = {name for name in want if undecayed[name] != want[name]}
    assert changed == {name for name in want if name.endswith('depthwise_conv.weight')}


def test_stages_of_another_kind_are_refused() -> None:
    swin = _Segmentor(SwinTransformer(arch=dict(embed_dims=8, depths=[1], num_heads=[1]), out_indices=(0,)))
    assert len({rates[1] for rates in _groups(swin).values()}) > 2
    with pytest.raises(ValueError, match=r"stage_wise.*SwinTransformer takes 'layer_wise'"):
        _groups(swin, decay_type='stage_wise')


def test_one_stage_has_layers() -> None:
    rates = _groups(PeLK(depths=(2,), channels=(8,), kernel_sizes=(5,), out_indices=(0,)))
    scales = [rates[name][1] for name in ('downsample_layers.0.0.weight', 'stages.0.0.gamma', 'norm0.weight')]
    assert scales == sorted(scales)
    assert len(set(scales)) == 3


MULTIPLIERS = dict(
    bias_lr_mult=2.0, bias_decay_mult=0.3, norm_decay_mult=0.5, dwconv_decay_mult=0.2, flat_decay_mult=0.1,
    bypass_duplicate=True,
    custom_keys={'decode_head': dict(lr_mult=10.0), 'stages.1': dict(decay_mult=0.7, lr_mult=0.5)},
)  # fmt: skip


def test_keys_of_mmengine() -> None:
    """As its own constructor has them, times the layer's rate; the large kernel is as depthwise as the small one."""
    model, groups = _Segmentor(PeLK(SMALL)), []
    DefaultOptimWrapperConstructor(OPTIM_WRAPPER, MULTIPLIERS).add_params(groups, model)
    rules = {id(group['params'][0]): group for group in groups}
    parameters, base = dict(model.named_parameters()), OPTIM_WRAPPER['optimizer']
    plain, got = _groups(model), _groups(model, **MULTIPLIERS)
    assert got.keys() == plain.keys()
    for name, (_, scale, decay) in plain.items():
        rule = rules[id(parameters[name.replace('large.weight', 'small.weight')])]
        lr = rule.get('lr', base['lr'])
        assert got[name] == pytest.approx((scale * lr, scale * lr / base['lr'], rule.get('weight_decay', decay))), name


def test_single_keys_of_mmengine() -> None:
    model = _Segmentor(PeLK(SMALL))
    plain = _groups(model)
    kernels = {name for name in plain if name.endswith(('large.weight', 'small.weight'))}
    changed = _groups(model, dwconv_decay_mult=0.0)
    assert {name for name in plain if changed[name] != plain[name]} == kernels
    merged = dict(branch_norms=False, small_kernel_size=0, positional_embedding=None)  # kernels with a bias
    changed = _groups(_Segmentor(PeLK(SMALL | merged)), bias_decay_mult=0.3, dwconv_decay_mult=0.2)
    kernel = 'backbone.stages.0.0.mixer.large'
    assert [changed[f'{kernel}.{name}'][2] / 0.05 for name in ('weight', 'bias')] == pytest.approx([0.2, 0.3])
    changed = _groups(model, custom_keys={'positional_embedding': dict(decay_mult=1.0)})
    assert {name for name in plain if changed[name] != plain[name]} == {
        name for name in plain if name.endswith('positional_embedding')
    }
