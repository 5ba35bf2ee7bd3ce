"""Warm starts: exactly ConvNeXt's function, SLaK's by projection, and what does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmpretrain.models import ConvNeXt
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.models import PeLK
from mmpelk.models.weights.inflation import Inflated, inflate
from mmpelk.ops.sharing_grid import expand_kernel, mirror_half_grid, project_kernel
from mmpelk.registry import MODELS

NANO = dict(depths=(1, 1, 2, 1), channels=(8, 12, 16, 20))
FORM = dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False)


def _convnext(arch: str | dict) -> ConvNeXt:
    """mmpretrain's, with random weights that keep the maps' size, and layer scales that let every block count."""
    torch.manual_seed(0)
    model = ConvNeXt(arch, layer_scale_init_value=1.0, **FORM)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    model.eval()  # returns None
    return model


def _save(path: Path, state: dict[str, Tensor], prefix: str = 'backbone.') -> str:
    torch.save(dict(state_dict={prefix + name: value for name, value in state.items()}), path)
    return str(path)


def _inflated(checkpoint: str, **arguments: Any) -> PeLK:
    model = MODELS.build(
        dict(type='mmpelk.PeLK', **FORM, **arguments, init_cfg=dict(type='mmpelk.Inflated', checkpoint=checkpoint))
    )
    model.init_weights()
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arch', 'size'),
    [('tiny', (224, 224)), ('small', (97, 131))],
    ids=str,
)
@torch.no_grad()
def test_equals_convnext_at_every_stage(arch: str, size: tuple[int, int], tmp_path: Path) -> None:
    theirs = _convnext(arch)
    ours = _inflated(_save(tmp_path / 'convnext.pth', theirs.state_dict()), arch=f'convnext-{arch}')
    assert ours.stages[0][0].mixer.large.weight.shape == (theirs.channels[0], 1, 15, 15)
    x = torch.randn(1, 3, *size)
    wanted = theirs(x)
    for mode in (True, False):  # there is nothing that the mode changes
        for out, want in zip(ours.train(mode)(x), wanted, strict=True):
            # float32 in two orders of summation, over up to 36 blocks.
            assert (out - want).norm() <= 1e-5 * want.norm()


def test_mmpretrains_names() -> None:
    """Bare or under ``backbone.``; a classifier's is not of the backbone."""
    state = _convnext(dict(NANO)).state_dict()
    ours = PeLK('convnext-tiny', **NANO, **FORM)
    expected = inflate({f'backbone.{name}': value for name, value in state.items()}, ours)
    found = inflate(state | {'head.fc.weight': torch.ones(5, 20)}, ours)
    assert found.state.keys() == expected.state.keys() == ours.state_dict().keys()
    assert found.dropped == ['head.fc.weight']
    assert set(found.kept.values()) == {1.0}


@pytest.mark.parametrize('mixer', ['stripe', 'dense'])
def test_slaks_cross_and_dense_kernels_are_projected(mixer: str) -> None:
    """By the names of SLaK's repository, which has RepLKNet's kernels, too; a grid of ones holds either exactly."""
    torch.manual_seed(0)
    arguments = dict(NANO, kernel_sizes=(31, 15, 9, 5), layer_scale_init_value=1.0, conv_ratio=1.0)
    theirs = PeLK(mixer=mixer, positional_embedding=None, **arguments, **FORM).eval()
    for value in theirs.state_dict().values():
        if value.is_floating_point() and value.dim() == 1:
            value.copy_(torch.rand_like(value) + 0.5)
    names = {
        '.mixer.large.0.': '.large_kernel.LoRA1.conv.',
        '.mixer.large_norm.0.': '.large_kernel.LoRA1.bn.',
        '.mixer.large.1.': '.large_kernel.LoRA2.conv.',
        '.mixer.large_norm.1.': '.large_kernel.LoRA2.bn.',
        '.mixer.large.': '.large_kernel.lkb_origin.conv.',
        '.mixer.large_norm.': '.large_kernel.lkb_origin.bn.',
        '.mixer.small.': '.large_kernel.small_conv.conv.',
        '.mixer.small_norm.': '.large_kernel.small_conv.bn.',
        '.pointwise_conv': '.pwconv',
    }
    state = {}
    for name, value in theirs.state_dict().items():
        for ours, published in names.items():
            name = name.replace(ours, published)
        state[name] = value
    form = dict(arguments, small_kernel_size=0, positional_embedding=None, branch_norms=False, **FORM)
    exact = PeLK(**form, sharing_grids=[[1] * size for size in arguments['kernel_sizes']]).eval()
    found = inflate(state, exact)
    assert list(found.kept.values()) == pytest.approx([1.0] * 5)
    exact.load_state_dict(found.state | {name: state[name] for name in state if name in exact.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for out, want in zip(exact(x), theirs(x), strict=True):
            torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)  # float32 in another order
    kept = inflate(state, PeLK(**form)).kept
    assert 0 < kept['stages.0.0.mixer.large.weight'] < 1


@pytest.mark.parametrize('names', [('small_conv', 'LoRA1', 'LoRA2'), ('small_conv', 'lkb_origin')], ids=str)
def test_norms_of_slak_are_folded_with_their_own_epsilon(names: tuple[str, ...]) -> None:
    """Batch norms of torch tell what is computed. SLaK's deployed form, one kernel with a bias, is taken as it is; of
    the trained one nothing may miss."""
    torch.manual_seed(0)
    sizes = dict(LoRA1=(7, 3), LoRA2=(3, 7), small_conv=(3, 3), lkb_origin=(7, 7))
    state = {f'{name.removeprefix("backbone.")}': value for name, value in _convnext(dict(NANO)).state_dict().items()}
    kernels: dict[str, tuple[Tensor, Tensor]] = {}
    for name in [name for name in state if name.endswith('.depthwise_conv.weight')]:
        block, channels = name.removesuffix('.depthwise_conv.weight'), len(state.pop(name))
        state.pop(f'{block}.depthwise_conv.bias')
        total, shift = torch.zeros(channels, 1, 7, 7, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
        for branch in names:
            conv = nn.Conv2d(channels, channels, sizes[branch], groups=channels, bias=branch == names[-1])
            norm = nn.BatchNorm2d(channels).double().eval()
            for value in (norm.weight, norm.bias, norm.running_mean):
                nn.init.uniform_(value, -1, 1)
            nn.init.uniform_(norm.running_var, 1e-6, 1e-4)  # about as large as the epsilon
            layers = dict(conv=conv, bn=norm)
            state |= {
                f'{block}.large_kernel.{branch}.{part}.{key}': value.detach().clone()
                for part, layer in layers.items()
                for key, value in layer.state_dict().items()
            }
            factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            rows, columns = ((7 - side) // 2 for side in sizes[branch])
            padded = nn.functional.pad(conv.weight.double(), [columns, columns, rows, rows])
            total = total + padded * factor.view(-1, 1, 1, 1)
            shift = shift + norm.bias - norm.running_mean * factor
            if conv.bias is not None:
                shift = shift + conv.bias.double() * factor
        kernels[block] = total.detach(), shift.detach()
    merged = {name: value for name, value in state.items() if '.large_kernel.' not in name}
    for block, (kernel, bias) in kernels.items():
        merged |= {
            f'{block}.large_kernel.lkb_reparam.{key}': value for key, value in (('weight', kernel), ('bias', bias))
        }
    grids = [[1] * 7] * 4
    ours = PeLK('convnext-tiny', **NANO, **FORM, kernel_sizes=(7, 7, 7, 7), sharing_grids=grids)
    state, merged = (
        {name.replace('pointwise_conv', 'pwconv'): value for name, value in form.items()} for form in (state, merged)
    )
    branch = 'stages.2.1.large_kernel.' + names[-1]
    for part in ('conv.weight', 'bn', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var'):
        lacking = {name: value for name, value in state.items() if not name.startswith(f'{branch}.{part}')}
        missing = r'mixer\.large' + '_norm' * ('bn' in part) + r'(\.\d)?\.' + (part.partition('.')[2] or 'weight')
        with pytest.raises(UserError, match=rf'the file is incomplete: it has no stages\.2\.1\.{missing}$'):
            inflate(lacking, ours)
    for form in (state, merged):
        found = inflate(form, ours).state
        for block, (kernel, bias) in kernels.items():
            torch.testing.assert_close(found[f'{block}.mixer.large.weight'].double(), kernel, rtol=1e-6, atol=1e-5)
            torch.testing.assert_close(found[f'{block}.mixer.large.bias'].double(), bias, rtol=1e-6, atol=1e-5)


grids = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(lambda half: mirror_half_grid([*half, 1]))


@given(grids, st.integers(0, 1000))
def test_projection_is_the_nearest_kernel_on_the_grid(grid: tuple[int, ...], seed: int) -> None:
    """The residual is orthogonal to every kernel of the grid, and so no other is nearer."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(2, 1, sum(grid), sum(grid), generator=generator, dtype=torch.float64)
    projected = project_kernel(dense, grid)
    residual = dense - expand_kernel(projected, grid)
    other = torch.randn(projected.shape, generator=generator, dtype=torch.float64)
    assert abs((residual * expand_kernel(other, grid)).sum()) < 1e-9 * dense.numel()
    assert (dense - expand_kernel(projected + other, grid)).norm() > residual.norm()
    torch.testing.assert_close(project_kernel(expand_kernel(other, grid), grid), other)


def test_projection_refuses_another_size() -> None:
    with pytest.raises(ValueError, match='a grid of sum 5 needs a kernel of that side'):
        project_kernel(torch.zeros(1, 1, 7, 7), [2, 1, 2])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / 'convnext.pth', _convnext(dict(NANO)).state_dict())
    for arguments, message in (
        (dict(arch='convnext-tiny', **NANO | dict(channels=(8, 12, 16, 24))), '8-12-16-20 channels.* has .*8-12-16-24'),
        (dict(arch='convnext-tiny', **NANO | dict(depths=(1, 1, 3, 1))), '1-1-2-1 blocks.* has .*1-1-3-1 blocks'),
        (dict(arch='convnext-tiny', **NANO, use_grn=True), "has ConvNeXt's form V2"),
        (dict(arch='convnext-tiny', **NANO, layer_scale_init_value=0), 'with layer scale: give layer_scale'),
        (dict(arch='convnext-tiny', **NANO, kernel_sizes=(13, 11, 9, 5)), 'is 7 wide, that of the backbone 5'),
        (dict(arch='tiny', **NANO), "arch='inflated'"),
        (dict(arch='convnext-tiny', **NANO, mixer='stripe', conv_ratio=1.0), "arch='inflated'"),
    ):
        with pytest.raises(ValueError, match=message):
            _inflated(path, **arguments)
    mixed = PeLK('convnext-tiny', **NANO, **FORM)
    mixed.stages[1][0].mixer = PeLK('convnext-tiny', **NANO, mixer='stripe').stages[1][0].mixer
    with pytest.raises(ValueError, match="arch='inflated'"):
        Inflated(path)(mixed)
    with pytest.raises(UserError, match='initialises a PeLK backbone, not a Linear'):
        Inflated(path)(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'stages.0.0.norm.weight': torch.tensor([1.0] * 7 + [torch.nan])},
            'NaN or infinite weights in stages.0.0.norm.weight',
        ),
        (
            {'stages.0.0.depthwise_conv.bias': torch.tensor([0.0] * 7 + [torch.inf])},
            'infinite weights in stages.0.0.mixer.large',
        ),
        ({'stages.0.0.attn.qkv.weight': torch.ones(24, 8)}, 'PeLK does not have: stages.0.0.attn.qkv.weight'),
        ({'stages.0.0.depthwise_conv.weight_mask': torch.ones(8, 1, 7, 7)}, r'not have: .*mixer\.large\.weight_mask'),
        ({'stages.0.0.depthwise_conv.lora.weight': torch.ones(8, 1, 1, 1)}, r'not have: .*mixer\.large\.lora\.weight'),
        ({'downsample_layers.1.2.weight': torch.ones(8)}, 'not have: downsample_layers.1.2.weight'),
    ],
    ids=['NaN', 'infinite', 'attention', 'pruned', 'adapter', 'downsampling'],
)
def test_damaged_weights_and_unknown_layers_are_refused(changes: dict[str, Tensor], message: str) -> None:
    state = _convnext(dict(NANO)).state_dict()
    with pytest.raises(UserError, match=message):
        inflate(state | changes, PeLK('convnext-tiny', **NANO, **FORM))


def test_every_tensor_of_a_convnext_has_to_be_there_and_of_its_shape() -> None:
    """But for the norms of the stages' outputs, which classification trains but the last of."""
    state, ours = _convnext(dict(NANO)).state_dict(), PeLK('convnext-tiny', **NANO, **FORM)
    for key, value in state.items():
        lacking = {name: other for name, other in state.items() if name != key}
        if key.startswith('norm'):
            assert inflate(lacking, ours).state.keys() == ours.state_dict().keys() - {key}
        elif not key.endswith('depthwise_conv.bias'):  # a convolution without one has zeros
            with pytest.raises(UserError):
                inflate(lacking, ours)
        with pytest.raises((UserError, RuntimeError)):
            inflate(state | {key: torch.cat([value, value])}, ours)


def test_a_kernel_of_zeros_loses_nothing() -> None:
    state = _convnext(dict(NANO)).state_dict()
    state['stages.0.0.depthwise_conv.weight'].zero_()
    assert set(inflate(state, PeLK('convnext-tiny', **NANO, **FORM)).kept.values()) == {1.0}


@pytest.mark.parametrize(('trained', 'averaged'), [('state_dict', 'state_dict_ema'), ('model', 'model_ema')])
def test_averaged_weights_are_chosen_by_key(trained: str, averaged: str, tmp_path: Path) -> None:
    state, path = _convnext(dict(NANO)).state_dict(), str(tmp_path / 'twice.pth')
    weights = {trained: state, averaged: {name: value + 1 for name, value in state.items()}}
    torch.save(weights, path)

    def bias(**key: str) -> Tensor:
        init_cfg = dict(type='mmpelk.Inflated', checkpoint=path, **key)
        ours = MODELS.build(dict(type='mmpelk.PeLK', arch='inflated', **FORM, init_cfg=init_cfg))
        ours.init_weights()
        return ours.stages[0][0].norm.bias.detach()

    assert torch.equal(bias(key=averaged), bias(key=trained) + 1)
    start, other = dict(checkpoint=path, key=trained), dict(type=Inflated, checkpoint='nowhere.pth')
    # However it is spelt; the last of several is what stays.
    for init_cfg in ([dict(type=Inflated, **start)], (dict(type='Inflated', **start),), [other, other | start]):
        ours = PeLK('inflated', **FORM, init_cfg=init_cfg)
        assert (ours.depths, ours.channels) == (NANO['depths'], NANO['channels'])
    with pytest.raises(UserError, match=f"averaged weights in '{averaged}' beside '{trained}'.*key='{averaged}'"):
        bias()
    with pytest.raises(UserError, match=f"no entry 'other'; it has {trained}, {averaged}"):
        bias(key='other')
    torch.save({trained: state, averaged: None}, path)  # as of a training without averages
    assert torch.equal(bias(), state['stages.0.0.norm.bias'])


def test_files_that_are_no_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))  # where what is downloaded goes
    with pytest.raises(FileNotFoundError, match=r"'nowhere\.pth' does not exist"):
        _inflated('nowhere.pth', arch='convnext-tiny', **NANO)
    (tmp_path / 'corrupt.pth').write_bytes(b'no checkpoint')
    with pytest.raises(ValueError, match='is not a checkpoint'):
        _inflated(str(tmp_path / 'corrupt.pth'), arch='convnext-tiny', **NANO)
    torch.save(dict(meta={}), tmp_path / 'empty.pth')
    with pytest.raises(ValueError, match='holds no weights'):
        _inflated(str(tmp_path / 'empty.pth'), arch='convnext-tiny', **NANO)
    with pytest.raises(ValueError, match='cannot be downloaded'):
        _inflated('http://127.0.0.1:9/convnext.pth', arch='convnext-tiny', **NANO)
