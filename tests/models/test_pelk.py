"""The backbone: architectures, interface, deployment, pretrained weights, and what it refuses."""

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from mmcv.cnn.bricks import DropPath as DropPathOfMmcv
from torch import nn

from mmpelk.models import ARCHITECTURES, MIXERS, PeLK
from mmpelk.models.deploy import deploy_state_dict
from mmpelk.models.layers import DropPath
from mmpelk.models.pelk import GlobalResponseNorm
from mmpelk.ops import sharing_grid
from mmpelk.sparsity import apply_masks, remove_masks
from tests.sparsity.tiny import draw_masks

NANO = dict(depths=(1, 1, 2, 1), channels=(16, 24, 32, 40), kernel_sizes=(31, 15, 9, 5))
DENSE = dict(arch=NANO, out_indices=(0, 1, 2, 3), gap_before_final_norm=False)


def _nano(**arguments: object) -> PeLK:
    torch.manual_seed(0)
    return PeLK(**(DENSE | dict(layer_scale_init_value=1.0) | arguments))


def _moved(model: PeLK) -> PeLK:
    """After a few training steps, which move every parameter and every norm's statistics."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
        optimizer.step()
    return model


# Parameters without the sparsity, in millions: sums over the architecture table of the paper (1.3 times ConvNeXt's
# width, 3/8 of the channels convolved, k' x k' parameters per kernel), counted by hand below rather than by the model.
def _expected_parameters(arch: dict) -> int:
    depths, channels, kernels, center = (arch[key] for key in ('depths', 'channels', 'kernel_sizes', 'center_size'))
    total = 3 * channels[0] * 16 + channels[0] + 2 * channels[0]
    for before, after in pairwise(channels):
        total += 2 * before + 4 * before * after + after
    for depth, width, kernel in zip(depths, channels, kernels, strict=True):
        mixed = 3 * width // 8
        rings = len(sharing_grid(kernel, min(center, kernel)))
        mixer = mixed * rings**2 + mixed * 25 + 4 * mixed
        total += depth * (mixer + 2 * width + 8 * width**2 + 5 * width + width) + mixed * kernel**2
    return total + 2 * channels[-1]


def test_architectures_of_the_paper() -> None:
    deep, base = (3, 3, 27, 3), (166, 332, 665, 1331)
    kernels = {51: (51, 49, 47, 13), 101: (101, 69, 67, 13), 151: (151, 89, 87, 13)}
    keys = ('depths', 'channels', 'kernel_sizes', 'center_size')
    assert {
        name: tuple(arch[key] for key in keys)
        for name, arch in ARCHITECTURES.items()
        if not name.startswith('convnext')
    } == {
        'tiny': ((3, 3, 9, 3), (124, 249, 499, 998), kernels[51], 5),
        'small': (deep, (124, 249, 499, 998), kernels[51], 5),
        'base': (deep, base, kernels[51], 5),
        'tiny-101': ((3, 3, 9, 3), (124, 249, 499, 998), kernels[101], 7),
        'base-101': (deep, base, kernels[101], 7),
        'tiny-151': ((3, 3, 9, 3), (124, 249, 499, 998), kernels[151], 7),
    }


@pytest.mark.parametrize('arch', [arch for arch in ARCHITECTURES if not arch.startswith('convnext')])
def test_parameters_of_the_architectures(arch: str) -> None:
    with torch.device('meta'):
        model = PeLK(arch)
    assert sum(parameter.numel() for parameter in model.parameters()) == _expected_parameters(ARCHITECTURES[arch])


OVERRIDES = dict(
    depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), kernel_sizes=(31, 13, 9, 5), center_size=7, sharing_grids=[None] * 4
)


@pytest.mark.parametrize('arch', ['tiny-101', ARCHITECTURES['tiny-151']], ids=['name', 'dict'])
@pytest.mark.parametrize('changed', [*OVERRIDES, 'nothing', 'everything'])
def test_architecture_with_overrides(arch: str | dict, changed: str) -> None:
    overrides = {key: value for key, value in OVERRIDES.items() if changed in (key, 'everything')}
    whole = (ARCHITECTURES[arch] if isinstance(arch, str) else arch) | overrides
    with torch.device('meta'):
        model, want = PeLK(arch, **overrides), PeLK(whole)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in want.state_dict().items()
    }
    grids = [stage[0].mixer.large.sharing_grid for stage in model.stages]
    assert grids == [sharing_grid(size, min(whole['center_size'], size)) for size in whole['kernel_sizes']]


@pytest.mark.parametrize(
    ('key', 'value', 'other'),
    [
        ('center_size', 3, 5),
        ('sharing_grids', [[5, 6, 2, 1, 1, 1, 1, 1, 2, 6, 5], None, None, None], [None] * 4),
        ('conv_ratio', 0.5, 1.0),
        ('small_kernel_size', 0, 3),
        ('positional_embedding', 'constant', 'in_bounds'),
        ('positional_embedding', None, 'constant'),
        ('use_grn', True, False),
        ('use_grn', False, True),
    ],
)
def test_an_option_of_the_architecture_or_of_the_call(key: str, value: object, other: object) -> None:
    """The same network; of both the call's counts."""
    models = [
        _nano(**arguments).eval()
        for arguments in (
            {key: value},
            dict(arch=NANO | {key: value}),
            {'arch': NANO | {key: other}, key: value},
            {key: other},
        )
    ]
    results = [[*model.state_dict().values(), *model(torch.ones(1, 3, 64, 64))] for model in models]
    alike = [len(result) == len(results[0]) and all(map(torch.equal, result, results[0])) for result in results]
    assert alike == [True, True, True, False]


def test_default_centre() -> None:
    """Five without one in the dict; that of a named architecture is cut to smaller kernels."""
    assert _nano().stages[0][0].mixer.large.sharing_grid == sharing_grid(31, 5)
    with torch.device('meta'):
        assert PeLK('tiny', kernel_sizes=(3, 3, 3, 3)).stages[0][0].mixer.large.sharing_grid == (1, 1, 1)


def test_stochastic_depth_rises_linearly_over_all_blocks() -> None:
    model = _nano(drop_path_rate=0.4)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    'size', [(64, 64), (65, 47), (224, 33), (9, 9), (3, 3), (1, 2)], ids=lambda s: f'{s[0]}x{s[1]}'
)
@pytest.mark.parametrize('patch', [2, 4])
def test_maps_of_any_size(patch: int, size: tuple[int, int]) -> None:
    model = _nano(stem_patch_size=patch).eval()
    outs = model(torch.randn(2, 3, *size))
    height, width = (max(1, extent // patch) for extent in size)
    for out, channels in zip(outs, NANO['channels'], strict=True):
        assert out.shape == (2, channels, height, width)
        assert out.is_contiguous()  # RoIAlign ignores strides
        height, width = max(1, height // 2), max(1, width // 2)


def test_classification_output_is_the_normed_mean() -> None:
    model = PeLK(NANO).eval()
    x = maps = torch.randn(2, 3, 64, 64)
    for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
        maps = stage(downsample(maps))
    want = nn.functional.layer_norm(maps.mean((2, 3)), (40,), model.norm3.weight, model.norm3.bias, 1e-6)
    torch.testing.assert_close(model(x), (want,))


@pytest.mark.parametrize('activation', ['gelu', 'relu'])
def test_block_follows_the_equations(activation: str) -> None:
    """Eq. 4 to 6 and the inverted bottleneck, written out."""
    model = _nano(act_cfg=None if activation == 'gelu' else dict(type='ReLU')).eval().double()
    block, embedding = model.stages[0][0], model.stages[0].positional_embedding
    x = torch.randn(2, 16, 10, 9, dtype=torch.float64)
    mixed = torch.cat([block.mixer(x[:, :6], embedding), x[:, 6:]], 1)
    out = nn.functional.layer_norm(mixed.movedim(1, -1), (16,), block.norm.weight, block.norm.bias, 1e-6)
    out = getattr(nn.functional, activation)(out @ block.pointwise_conv1.weight.T + block.pointwise_conv1.bias)
    out = (out @ block.pointwise_conv2.weight.T + block.pointwise_conv2.bias) * block.gamma
    torch.testing.assert_close(block(x, embedding), x + out.movedim(-1, 1))


@pytest.mark.parametrize('mixer', ['peripheral', 'stripe'])
def test_settings_of_norms_and_activations_reach_all_of_them(mixer: str) -> None:
    norm, act = dict(type='BN', eps=0.1, momentum=0.3), dict(type='LeakyReLU', negative_slope=0.7)
    model = _nano(mixer=mixer, positional_embedding=None, norm_cfg=norm, act_cfg=act)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 5 * (3 if mixer == 'stripe' else 2)
    assert {(module.eps, module.momentum) for module in norms} == {(0.1, 0.3)}
    assert {block.act.negative_slope for stage in model.stages for block in stage} == {0.7}


def test_train_and_eval_return_self_and_arguments_stay() -> None:
    arguments = copy.deepcopy(DENSE) | dict(norm_cfg=dict(type='BN', eps=1e-4), out_indices=[-1, 0])
    before = copy.deepcopy(arguments)
    model = PeLK(**arguments)
    assert model.train() is model
    assert model.eval() is model
    assert arguments == before
    assert model.out_indices == (0, 3) == PeLK(**DENSE | dict(out_indices=(3, 0, -1))).out_indices
    arguments['norm_cfg']['eps'] = 1.0  # the caller's own
    assert model.arguments()['norm_cfg'] == before['norm_cfg']
    model.stages[1].switch_to_deploy()
    assert model.arguments()['deploy'] is False, 'not as a whole'
    model.stages[0][0].pointwise_conv1 = nn.Sequential(model.stages[0][0].pointwise_conv1)  # a wrapper
    assert model.arguments()['hidden_channels'] is None


NETWORKS = [
    *(dict(positional_embedding=mode) for mode in ('in_bounds', 'constant')),
    *(dict(mixer=name, positional_embedding=None, conv_ratio=ratio) for name in MIXERS for ratio in (3 / 8, 1.0)),
]


@pytest.mark.parametrize('arguments', NETWORKS, ids=lambda arguments: '-'.join(map(str, arguments.values())))
def test_trains_and_deploys(arguments: dict) -> None:
    model = _moved(_nano(**arguments))
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []
    model.eval()
    x = torch.randn(2, 3, 70, 50)
    want, trained = model(x), copy.deepcopy(model.state_dict())
    model.switch_to_deploy()
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
    left_over = ('small', 'large_norm', 'positional_embedding')
    assert not any(part in name for name, _ in model.named_parameters() for part in left_over)

    built = _nano(**arguments, deploy=True).eval()
    built.load_state_dict(deploy_state_dict(_nano(**arguments), trained), strict=True)
    torch.testing.assert_close(built(x), model(x))


@pytest.mark.parametrize('mixer', ['peripheral', 'stripe'])
def test_masks_do_not_outlive_the_kernels_that_they_were_for(mixer: str) -> None:
    model = _nano(mixer=mixer, positional_embedding=None)
    parameters = draw_masks(model, None)
    apply_masks(parameters)
    model = _moved(model).eval()
    apply_masks(parameters)
    x = torch.randn(2, 3, 64, 64)
    want = model(x)
    model.switch_to_deploy()
    assert not any('.mixer.' in name for name, _ in model.named_buffers())
    remove_masks(model)  # folds what is left
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


def test_share_of_mixed_channels_is_cut_to_an_integer() -> None:
    model = PeLK(dict(depths=(1, 1), channels=(20, 21), kernel_sizes=(7, 7)))  # three eighths: 7.5 and 7.875
    assert [stage[0].mixer.large.weight.shape[0] for stage in model.stages] == [7, 7]


@pytest.mark.parametrize('layer_scale', [0, 1.0])
def test_dropped_paths_and_layer_scale(layer_scale: float) -> None:
    """A block scales its residual map and drops it for some images, however it computes both."""
    stage = _nano(drop_path_rate=0.5, layer_scale_init_value=layer_scale).double().stages[-1]
    block, embedding = stage[-1], stage.positional_embedding
    x = torch.randn(6, 40, 5, 4, dtype=torch.float64)
    for mode in (True, False):
        block.train(mode)
        torch.manual_seed(1)
        out = block(x, embedding) - x
        with torch.no_grad():
            torch.manual_seed(1)
            out_without_grad = block(x, embedding) - x
            torch.manual_seed(1)
            mixed = torch.cat([block.mixer(x[:, :15], embedding), x[:, 15:]], 1).permute(0, 2, 3, 1)
            units = block.act(block.pointwise_conv1(block.norm(mixed)))
            path = block.pointwise_conv2(units) * (block.gamma if layer_scale else 1)
            want = block.drop_path(path.permute(0, 3, 1, 2))
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(out_without_grad, want)
        assert (want.flatten(1).abs().amax(1) == 0).any() == block.training


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_paths_are_dropped_by_the_random_numbers_of_mmcv(dtype: torch.dtype) -> None:
    """Which differ between dtypes; and the generator goes on from the same place."""
    x, results = torch.ones(64, 2, 1, 1, dtype=dtype), []
    for kind in (DropPath, DropPathOfMmcv):
        torch.manual_seed(0)
        results.append([kind(0.3)(x), torch.rand(1)])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize('scale', [1.0, 1e-6, 0.0])
def test_response_norm_follows_its_equation(scale: float) -> None:
    """Also where the energy is as small as what keeps the share finite, or zero."""
    norm = GlobalResponseNorm(3).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = scale * torch.randn(2, 4, 5, 3, dtype=torch.float64)
    energy = x.square().sum((1, 2)).sqrt()
    share = energy / (energy.sum(1, keepdim=True) / 3 + 1e-6)
    want = norm.gamma * x * share[:, None, None] + norm.beta + x
    torch.testing.assert_close(norm(x), want, rtol=1e-12, atol=1e-18)


def test_initialisation_leaves_what_it_was_given() -> None:
    one, other = (dict(type='Constant', layer=layer, val=0.25) for layer in ('Conv2d', 'Linear'))
    for given in (one, [one, other]):
        model = _nano(init_cfg=copy.deepcopy(given))
        model.init_weights()
        assert model.init_cfg == given
        assert (model.downsample_layers[0][0].weight == 0.25).all()
        assert (model.stages[0][0].pointwise_conv1.weight == 0.25).all() == (given is not one)


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('mixer', MIXERS)
def test_every_number_of_a_new_network_is_written(mixer: str, deploy: bool) -> None:
    embedding = 'in_bounds' if mixer == 'peripheral' else None
    torch.use_deterministic_algorithms(True)  # under which torch fills new memory with NaN
    try:
        model = _nano(mixer=mixer, positional_embedding=embedding, deploy=deploy, use_grn=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_what_a_file_lacks_is_initialised_as_the_others_of_a_list_say(tmp_path: Path) -> None:
    state = _nano(out_indices=(3,)).state_dict()
    torch.save(state, tmp_path / 'a.pth')
    others = [dict(type='Constant', layer=layer, val=val) for layer, val in (('LayerNorm2d', 2), ('Linear', 3))]
    model = _nano(init_cfg=[*others, dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))])
    model.init_weights()
    assert (model.norm0.weight == 2).all()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize('mixer', MIXERS)
def test_initial_weights_and_embedding_have_one_deviation(mixer: str) -> None:
    """And kernels that have a bias begin without."""
    model = _nano(mixer=mixer, positional_embedding='in_bounds' if mixer == 'peripheral' else None)
    model.init_weights()
    for name, value in model.named_parameters():
        if value.dim() > 1:  # within four sigmas
            assert value.std().item() == pytest.approx(0.02, rel=4 / (2 * value.numel()) ** 0.5), name
        assert not name.endswith(('large.bias', 'small.bias')) or not value.any(), name


def test_checkpointed_blocks_are_computed_again_with_the_same_gradients() -> None:
    x, gradients, calls = torch.randn(2, 3, 64, 64), [], []
    for with_cp in (False, True):
        model = _nano(drop_path_rate=0.3, with_cp=with_cp)
        model.stages[1][0].mixer.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(1)
        sum(out.square().mean() for out in model(x)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert len(calls) == 1 + 2
    torch.testing.assert_close(*gradients)


def test_frozen_stages_do_not_train() -> None:
    whole = _nano(frozen_stages=4)
    assert [name for name, value in whole.named_parameters() if value.requires_grad] == [
        f'norm{stage}.{name}' for stage in range(4) for name in ('weight', 'bias')
    ]
    model = _nano(frozen_stages=2)
    model.train()
    frozen = [*model.downsample_layers[:2], *model.stages[:2]]
    assert not any(p.requires_grad for module in frozen for p in module.parameters())
    assert not any(module.training for part in frozen for module in part.modules())
    assert all(p.requires_grad for p in model.stages[2].parameters())
    before = copy.deepcopy(model.state_dict())
    _moved(model)
    for name, value in model.state_dict().items():
        if name.startswith(('stages.0', 'stages.1', 'downsample_layers.0', 'downsample_layers.1')):
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize('mixer', ['peripheral', 'stripe'])
def test_frozen_stages_stay_frozen_when_deployed(mixer: str) -> None:
    model = _nano(mixer=mixer, positional_embedding=None, frozen_stages=2)
    model.eval().switch_to_deploy()
    assert not any(p.requires_grad for p in model.stages[:2].parameters())
    assert all(p.requires_grad for p in model.stages[2:].parameters())


def test_norm_eval_keeps_the_statistics() -> None:
    model = _nano(norm_eval=True).train()
    before = copy.deepcopy({name: b for name, b in model.named_buffers() if 'running' in name})
    _moved(model)
    assert before
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers() if name in before)
    assert model.stages[0][0].drop_path.training


@pytest.mark.parametrize('frozen_stages', [0, 1])
@pytest.mark.parametrize('kind', ['BN', 'SyncBN'])
def test_norm_eval_holds_for_every_norm_with_statistics(kind: str, frozen_stages: int) -> None:
    model = _nano(norm_eval=True, norm_cfg=dict(type=kind), frozen_stages=frozen_stages).train()
    found = {(type(module).__name__, module.training) for module in model.modules() if hasattr(module, 'running_mean')}
    assert found == {('SyncBatchNorm' if kind == 'SyncBN' else 'BatchNorm2d', False)}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='huge'), 'known: tiny, small, base, tiny-101, base-101, tiny-151, convnext-tiny'),
        (dict(arch=dict(depths=(1,), channels=(8,))), 'an arch dict has the keys'),
        (dict(arch=dict(depths=(1, 1), channels=(8,), kernel_sizes=(5, 5))), '2 depths but 1 channels'),
        (dict(arch=NANO | dict(kernel_sizes=(30, 15, 9, 5))), 'odd positive integer'),
        (dict(arch=NANO | dict(kernel_sizes=31)), 'a sequence with a value per stage'),
        (dict(arch=NANO | dict(center_size=33)), 'center_size 33 is larger than every kernel'),
        (dict(arch='tiny', center_size=53), 'center_size 53 is larger than every kernel'),
        (dict(arch='tiny', channels=(8, 16)), '4 depths but 2 channels'),
        (dict(arch='tiny', kernel_sizes=31), 'a sequence with a value per stage'),
        *((dict(sharing_grids=[None] * count), f'4 depths but {count} sharing_grids') for count in (3, 5)),
        (dict(arch=NANO | dict(sharing_grids=([9, 1], None, None, None))), 'kernel_size 31 needs'),
        (dict(mixer='peripherial'), "unknown mixer 'peripherial'; known: peripheral, dense, stripe, conv7"),
        (dict(out_indices=(0, 4)), r'out_indices \(0, 4\)'),
        (dict(out_indices=-5), r'in \[-4, 3\]'),
        (dict(frozen_stages=5), r'in \[0, 4\]'),
        *((dict(conv_ratio=ratio), 'conv_ratio is in') for ratio in (0.0, 1.1)),
        (dict(arch=NANO | dict(window=7)), 'an arch dict has the keys'),
        (dict(hidden_channels=[[64], [96], [128, 0], [160]]), 'with a positive number for each'),
        *((dict(drop_path_rate=rate), 'drop_path_rate') for rate in (-0.1, 1.0)),
        (dict(branch_norms=False), 'needs small_kernel_size=0'),
        (dict(branch_norms=False, small_kernel_size=0), 'positional_embedding=None'),
        (dict(branch_norms=False, small_kernel_size=0, positional_embedding='constant'), 'positional_embedding=None'),
        (dict(branch_norms=False, positional_embedding=None), 'small_kernel_size=0'),
        (dict(positional_embedding='everywhere'), "'in_bounds', 'constant' or None"),
    ],
    ids=lambda value: ', '.join(value) if isinstance(value, dict) else None,
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PeLK(**(DENSE | arguments))


@pytest.mark.parametrize('depths', [(1, 1), (1, 1, 40, 1), (1, 1, 1, 1, 1)], ids=len)
def test_layer_depth_of_other_depths(depths: tuple[int, ...]) -> None:
    count = len(depths)
    model = PeLK(dict(depths=depths, channels=(8,) * count, kernel_sizes=(3,) * count))
    ids = {model.get_layer_depth(name) for name, _ in model.named_parameters()}
    assert {total for _, total in ids} == {14 if depths[-2] > 9 else 8}
    assert all(0 <= layer < total for layer, total in ids)
    assert model.get_layer_depth('head.fc.weight', 'backbone.')[0] == max(layer for layer, _ in ids)


@pytest.mark.parametrize('mixer', MIXERS)
def test_trains_under_autocast(mixer: str) -> None:
    model = _nano(mixer=mixer, positional_embedding='in_bounds' if mixer == 'peripheral' else None)
    x = torch.randn(2, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        loss = sum(out.float().square().mean() for out in model(x))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
