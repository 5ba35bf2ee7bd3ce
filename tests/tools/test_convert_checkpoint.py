"""Public checkpoints to ours and back: names, values, outputs, and what the tools refuse to write."""

import argparse
import functools
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from mmpelk.export import load_deployed
from mmpelk.models.weights.downloads import PublicWeights
from mmpelk.models.weights.key_maps import detect_source, from_source
from mmpelk.sparsity import fold_masks
from tests.commands import call, load_tool
from tests.paths import CONFIGS, TOOLS
from tests.sparsity.tiny import draw_masks

pytestmark = pytest.mark.scope('mmpretrain')

DEPTHS, CHANNELS, KERNELS, CLASSES = (1, 1, 2, 1), (8, 12, 16, 20), (13, 11, 9, 7), 10
NANO = f"""
model = dict(
    backbone=dict(
        depths={DEPTHS}, channels={CHANNELS}, kernel_sizes={KERNELS},
        norm_cfg=dict(type='BN'),
        layer_scale_init_value=1.0,
    ),
    head=dict(num_classes={CLASSES}, in_channels={CHANNELS[-1]}),
    data_preprocessor=dict(num_classes={CLASSES}),
)
"""


def config(name: str, folder: Path) -> Path:
    """A recipe with a tiny network."""
    path = folder / f'{name}.py'
    path.write_text(f'_base_ = {str(CONFIGS / "cls" / f"{name}_in1k.py")!r}\n{NANO}')
    return path


def build(path: Path, **backbone: Any) -> nn.Module:
    """The network of a config, randomised."""
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(backbone)
    return randomised(MODELS.build(cfg.model))


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, with random numbers in every parameter and statistic."""
    torch.manual_seed(0)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.2 + 0.5 if value.dim() == 1 else torch.randn_like(value) * 0.1)
    return model.eval()


Tool = Callable[..., str]


@pytest.fixture
def convert(tmp_path: Path) -> Tool:
    """The tool, run in the test's folder."""
    return functools.partial(call, TOOLS / 'convert_checkpoint.py', cwd=tmp_path)


@pytest.fixture
def deploy(tmp_path: Path) -> Tool:
    return functools.partial(call, TOOLS / 'reparameterize_model.py', cwd=tmp_path)


def load(path: Path) -> dict[str, Tensor]:
    return torch.load(path)['state_dict']


# The networks of the public checkpoints: mmpretrain's ConvNeXt with facebookresearch's names, and SLaK's in it.


class SlakKernel(nn.Module):
    """Sum of three branches in SLaK's names, ``stripes`` those of the two long ones."""

    def __init__(self, channels: int, kernel_size: int, stripes: str) -> None:
        super().__init__()
        for name, size in (
            (f'{stripes}1', (kernel_size, 5)),
            (f'{stripes}2', (5, kernel_size)),
            ('small_conv', (5, 5)),
        ):
            conv = nn.Conv2d(
                channels, channels, size, padding=(size[0] // 2, size[1] // 2), groups=channels, bias=False
            )
            self.add_module(name, nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels))))

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.children())


def published(stripes: str | None = None) -> nn.Module:
    """A classifier of mmpretrain; with the name of SLaK's stripes its kernels are SLaK's. Random numbers everywhere."""
    arch = dict(depths=list(DEPTHS), channels=list(CHANNELS))
    head = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=CHANNELS[-1])
    model = MODELS.build(dict(type='ImageClassifier', backbone=dict(type='ConvNeXt', arch=arch), head=head))
    for stage, channels, kernel_size in zip(model.backbone.stages, CHANNELS, KERNELS, strict=True):
        for block in stage if stripes else ():
            block.depthwise_conv = SlakKernel(channels, kernel_size, stripes)
    return randomised(model)


def torchvisions() -> nn.Module:
    """torchvision's classifier, whose layer scales are of shape ``(C, 1, 1)``."""
    following = (*CHANNELS[1:], None)
    setting = [CNBlockConfig(*sizes) for sizes in zip(CHANNELS, following, DEPTHS, strict=True)]
    return randomised(ConvNeXt(setting, num_classes=CLASSES))


def facebook_names(model: nn.Module) -> dict[str, Tensor]:
    """Its tensors as facebookresearch's and SLaK's repositories write them."""
    state = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix('backbone.').replace('head.fc.', 'head.').replace('pointwise_conv', 'pwconv')
        inner = 'large_kernel' if '.conv.' in name or '.bn.' in name else 'dwconv'
        state[name.replace('depthwise_conv', inner).replace('norm3.', 'norm.')] = value
    return state


@pytest.mark.parametrize(
    ('names', 'stripes'),
    [('mmpretrain', None), ('convnext', None), ('torchvision', None), ('slak', 'Decom'), ('slak', 'LoRA')],
    ids=['mmpretrain', 'convnext', 'torchvision', 'slak', 'slak before'],
)
def test_import_computes_what_the_published_network_computes(
    names: str, stripes: str | None, convert: Tool, tmp_path: Path
) -> None:
    theirs = torchvisions() if names == 'torchvision' else published(stripes)
    if stripes == 'Decom':  # half of it zeros, which are counted
        for value in theirs.parameters():
            if value.dim() in (2, 4):
                value.data.view(-1)[:: value.dim()] = 0
    state = facebook_names(theirs) if names in ('convnext', 'slak') else theirs.state_dict()
    whole = dict(meta={}, state_dict=state) if names == 'mmpretrain' else dict(model=state, args=argparse.Namespace())
    torch.save(whole, tmp_path / 'public.pth')
    recipe = config('slak_t' if stripes else 'convnext_t', tmp_path)
    printed = convert('import', recipe, 'public.pth', 'ours.pth')
    assert f'names of {names}' in printed
    assert f'{len(state)} of {len(state)} tensors of the network matched' in printed
    (share,) = re.findall(r'([\d.]+) % of the weights of convolutions and linear layers are not zero', printed)
    kernels = [value for value in theirs.parameters() if value.squeeze().dim() >= 2]
    counts = [sum(int(count(value)) for value in kernels) for count in (torch.count_nonzero, torch.numel)]
    assert float(share) == pytest.approx(100 * counts[0] / counts[1], abs=0.051)
    assert (float(share) < 99) == (stripes == 'Decom')
    assert torch.load(tmp_path / 'ours.pth')['meta'] == dict(converted_from=names)
    ours, image = build(recipe), torch.randn(2, 3, 64, 96)
    ours.load_state_dict(load(tmp_path / 'ours.pth'), strict=True)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)


def test_names_of_replknet() -> None:
    dense = {'stages.0.1.large_kernel.lkb_origin.conv.weight': torch.zeros(1)}
    assert detect_source(dense) == 'slak'
    assert list(from_source(dense, 'slak').values()) == ['backbone.stages.0.1.mixer.large.weight']


def test_averaged_weights_on_request(convert: Tool, tmp_path: Path) -> None:
    last = facebook_names(published())
    averaged = last | {'head.bias': last['head.bias'] + 1}
    torch.save(dict(model=last, model_ema=averaged), tmp_path / 'public.pth')
    recipe = config('convnext_t', tmp_path)
    assert 'by --key model_ema' in convert('import', recipe, 'public.pth', 'ours.pth', code=1)
    for key, want in (('model', last), ('model_ema', averaged)):
        convert('import', recipe, 'public.pth', 'ours.pth', '--key', key)
        assert torch.equal(load(tmp_path / 'ours.pth')['head.fc.bias'], want['head.bias'])


def test_import_writes_nothing_but_complete_matches(convert: Tool, tmp_path: Path) -> None:
    whole = facebook_names(published())
    lacking = {name: value for name, value in whole.items() if name != 'stages.2.1.dwconv.bias'}
    for state, messages in (
        (lacking, ['the checkpoint lacks (1):', 'backbone.stages.2.1.mixer.large.bias', 'nothing is written']),
        (
            whole | {'stages.0.0.grn.gamma': torch.zeros(3)},
            ['the network lacks (1):', 'stages.0.0.grn.gamma (as backbone.stages.0.0.grn.gamma)', 'nothing is written'],
        ),
        (
            whole | {'head.weight': torch.zeros(21, 20)},
            ['shape (1):', 'head.weight (21, 20), in the network head.fc.weight (10, 20)', 'nothing is written'],
        ),
        (
            nn.Linear(3, 3).state_dict(),
            ["these are not the names of SLaK or RepLKNet, ConvNeXt's authors, mmpretrain, timm, torchvision"],
        ),
    ):
        torch.save(dict(model=state), tmp_path / 'public.pth')
        printed = convert('import', config('convnext_t', tmp_path), 'public.pth', 'ours.pth', code=1)
        assert all(message in printed for message in messages), printed
        assert 'Traceback' not in printed
        assert not (tmp_path / 'ours.pth').exists()


def test_export_with_timms_names(convert: Tool, tmp_path: Path) -> None:
    """Every name of timm's ConvNeXt, written out for the first and the third stage."""
    recipe = config('convnext_t', tmp_path)
    model = build(recipe)
    own = model.state_dict() | {'data_preprocessor.mean': torch.zeros(3)}  # which are the config's
    last = {name: torch.zeros_like(value) for name, value in own.items()}
    own['backbone.stages.2.1.pointwise_conv1.weight_mask'] = mask = torch.ones(64, 16, dtype=torch.bool)
    mask[:, 1] = 0
    torch.save(dict(state_dict=last, state_dict_ema=own), tmp_path / 'ours.pth')
    convert('export', recipe, 'ours.pth', 'timm.pth', '--key', 'state_dict_ema')
    state = torch.load(tmp_path / 'timm.pth', weights_only=True)
    block = ['gamma', *(f'{m}.{k}' for m in ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2') for k in ('weight', 'bias'))]
    downsample = {f'stages.{i}.downsample.{j}.{k}' for i in (1, 2, 3) for j in (0, 1) for k in ('weight', 'bias')}
    assert set(state) == {
        *(f'stem.{i}.{k}' for i in (0, 1) for k in ('weight', 'bias')),
        *downsample,
        *(f'stages.{i}.blocks.{j}.{name}' for i in range(4) for j in range(DEPTHS[i]) for name in block),
        *(f'head.{m}.{k}' for m in ('norm', 'fc') for k in ('weight', 'bias')),
    }
    block = model.backbone.stages[2][1]
    assert torch.equal(state['stages.2.blocks.1.conv_dw.weight'], block.mixer.large.weight)
    assert torch.equal(state['stages.2.blocks.1.mlp.fc1.weight'], block.pointwise_conv1.weight * mask)


@pytest.mark.parametrize(
    ('change', 'matched', 'said'),
    [
        ({}, 2, ''),
        ({'bias': None}, 1, 'the checkpoint lacks (1):\n  bias'),
        ({'more': (1,)}, 2, 'the network lacks (1):\n  more'),
        ({'weight': (3, 2)}, 1, 'of another shape (1):\n  old (3, 2), in the network weight (2, 3)'),
    ],
    ids=str,
)
def test_every_kind_of_mismatch_is_said(
    change: dict[str, Any], matched: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tool, model = load_tool(TOOLS / 'convert_checkpoint.py'), nn.Linear(3, 2)
    state = model.state_dict() | {name: torch.ones(shape) for name, shape in change.items() if shape}
    state = {name: value for name, value in state.items() if change.get(name, True)}
    # Whichever way it goes, nothing but a whole match is written.
    monkeypatch.setattr(tool, 'build_model', lambda args: model)
    monkeypatch.setattr(tool, 'read_weights', lambda path, key: state)
    monkeypatch.setattr(tool, 'to_timm', lambda network: {name: name for name in state})
    written = mock.Mock()
    monkeypatch.setattr(tool.torch, 'save', written)
    export = functools.partial(
        tool.export_checkpoint, argparse.Namespace(config='c.py', checkpoint='a', out=Path('b.pth'), key=None)
    )
    for function in (functools.partial(tool.check, state, model, dict(old='weight', bias='bias'), 'c.py'), export):
        with pytest.raises(ValueError, match=r"not one of 'c\.py': nothing is written") if change else nullcontext():
            function()
    assert written.called != bool(change)
    printed = capsys.readouterr().out
    assert printed.startswith(f'{matched} of 2 tensors of the network matched, 1 of them by another name\n{said}')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['pelk_t', 'slak_t', 'convnext_t'])
def test_export_and_import_again(name: str, convert: Tool, tmp_path: Path) -> None:
    recipe = config(name, tmp_path)
    model = build(recipe)
    if name != 'convnext_t':  # sparse, as the recipe trains it
        draw_masks(model, ['backbone', 'head'])
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'ours.pth')
    printed = convert('export', recipe, 'ours.pth', 'timm.pth')
    assert ('timm has no such mixer' in printed) == (name != 'convnext_t')
    convert('import', recipe, 'timm.pth', 'again.pth')
    want, got = fold_masks(model.state_dict()), load(tmp_path / 'again.pth')
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], value) for key, value in want.items())


# The deployed form


@pytest.mark.slow
@pytest.mark.parametrize('name', ['pelk_t', 'slak_t', 'convnext_t'])
def test_deployed_classifier(name: str, deploy: Tool, tmp_path: Path) -> None:
    recipe = config(name, tmp_path)
    model = build(recipe)
    torch.save(dict(meta=dict(epoch=300), state_dict=model.state_dict()), tmp_path / 'ours.pth')
    printed = deploy(recipe, 'ours.pth', 'deployed.pth')
    assert 'model.backbone.deploy=True' in printed
    deployed = build(recipe, deploy=True)
    deployed.load_state_dict(load(tmp_path / 'deployed.pth'), strict=True)
    image = torch.randn(2, 3, 64, 80)
    torch.testing.assert_close(deployed(image), model(image), rtol=1e-3, atol=1e-4)
    if name == 'pelk_t':
        again = deploy(recipe, 'deployed.pth', 'twice.pth', code=1)
        assert 'this is a deployed model already' in again
        wrong = deploy(config('slak_t', tmp_path), 'ours.pth', 'wrong.pth', code=1)
        assert "'ours.pth' is not one of" in wrong
        assert 'Traceback' not in wrong


def test_deployed_form_of_the_given_options(deploy: Tool, tmp_path: Path) -> None:
    """Synchronised norms, which no CPU runs, keep their other settings; masks are folded; other facts stay."""
    recipe, image = config('pelk_t', tmp_path), torch.randn(2, 3, 64, 80)
    model = build(recipe, norm_cfg=dict(type='BN', eps=0.1))
    weight = model.backbone.stages[2][1].pointwise_conv1.weight
    state = model.state_dict() | {'backbone.stages.2.1.pointwise_conv1.weight_mask': weight > 0}
    torch.save(dict(meta=dict(epoch=300), state_dict=state), tmp_path / 'ours.pth')
    weight.data *= weight > 0
    options = ['--cfg-options', 'model.backbone.norm_cfg.type=SyncBN', 'model.backbone.norm_cfg.eps=0.1']
    printed = deploy(recipe, 'ours.pth', 'deployed.pth', *options)
    assert printed.rstrip().endswith('--cfg-options model.backbone.deploy=True model.backbone.init_cfg=None')
    deployed = build(recipe, deploy=True)
    deployed.load_state_dict(load(tmp_path / 'deployed.pth'), strict=True)
    torch.testing.assert_close(deployed(image), model(image), rtol=1e-3, atol=1e-4)
    assert torch.load(tmp_path / 'deployed.pth')['meta'] == dict(epoch=300, deployed=True)
    again = deploy(recipe, 'ours.pth', 'no.pth', '--cfg-options', 'model.backbone.deploy=True', code=1)
    assert 'this is a deployed model already' in again
    state = model.state_dict()
    state['backbone.stages.3.0.pointwise_conv2.bias'][0] = torch.nan
    options += ['model.backbone.out_indices=(0,1,3)', 'model.backbone.gap_before_final_norm=False']
    state |= {f'backbone.norm{i}.{part}': torch.ones(CHANNELS[i]) for i in (0, 1) for part in ('weight', 'bias')}
    torch.save(dict(state_dict=state), tmp_path / 'damaged.pth')
    printed = deploy(recipe, 'damaged.pth', 'no.pth', *options, code=1)
    assert 'differs by nan of its largest output: not written' in printed
    assert not (tmp_path / 'no.pth').exists()


def test_the_output_that_differs_most_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool(TOOLS / 'reparameterize_model.py')
    monkeypatch.setattr(tool, 'image_channels', lambda backbone: 3)
    wanted = [torch.full((1, 1), 2.0), torch.full((1, 1), 4.0), torch.ones(1, 1)]
    for errors, worst in (((0, 0.25, 0.125), 0.25), ((0.5, 0, 0), 0.5)):
        given = [want * (1 + error) for want, error in zip(wanted, errors, strict=True)]
        assert tool.largest_difference(lambda image: wanted, lambda image, given=given: given) == worst


@pytest.mark.parametrize(
    ('mode', 'out'), [('import', 'a.safetensors'), ('inflate', 'a.safetensors'), ('export', 'a.bin'), ('export', 'a')]
)
def test_files_of_other_kinds_are_not_written(mode: str, out: str) -> None:
    tool = load_tool(TOOLS / 'convert_checkpoint.py')
    with pytest.raises(ValueError, match=rf"the name of '{out}' must end in \.pth"):
        getattr(tool, f'{mode}_checkpoint')(argparse.Namespace(out=Path(out)))


def test_recipes_of_other_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool(TOOLS / 'convert_checkpoint.py')
    monkeypatch.setattr(tool, 'read_config', lambda path: Config(dict(model=dict(type='EncoderDecoder'))))
    with pytest.raises(ValueError, match=r"'seg\.py' is no classification recipe"):
        tool.build_model(argparse.Namespace(config='seg.py'))


@pytest.mark.parametrize('address', ['timm://a', 'hf://a/b', 'a.pth'])
def test_licence_of_what_is_downloaded_is_printed(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tool, asked = load_tool(TOOLS / 'convert_checkpoint.py'), []
    public = PublicWeights(dict(a=torch.ones(1)), 'mit')
    monkeypatch.setattr(tool, 'read_public', lambda *given: asked.append(given) or public)
    assert tool.read_weights(address, 'key') is public.state
    assert asked == [(address, 'key')]
    assert capsys.readouterr().out == ('' if address == 'a.pth' else 'licence of the weights: mit\n')


def test_network_in_the_form_of_a_checkpoint_is_merged_exported_and_deployed(tmp_path: Path) -> None:
    recipe = CONFIGS / 'cls' / 'pelk_convnext_t_in1k.py'
    theirs = build(config('convnext_t', tmp_path), kernel_sizes=(7, 7, 7, 7)).backbone.state_dict()
    torch.save(
        {name.replace('.mixer.large.', '.depthwise_conv.'): value for name, value in theirs.items()},
        tmp_path / 'convnext.pth',
    )
    init_cfg = dict(type='mmpelk.Inflated', checkpoint=str(tmp_path / 'convnext.pth'))
    backbone = dict(arch='inflated', kernel_sizes=(13, 11, 9, 7), init_cfg=init_cfg)
    (tmp_path / 'inflated.py').write_text(
        f'_base_ = {str(recipe)!r}\nmodel = dict(backbone={backbone}, head=dict(in_channels={CHANNELS[-1]}))'
    )
    model = build(tmp_path / 'inflated.py')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    words = ('inflated.py', 'trained.pth', 'deployed.pth')
    printed = call(TOOLS / 'reparameterize_model.py', *words, cwd=tmp_path)
    assert printed.rstrip().endswith('--cfg-options model.backbone.deploy=True'), 'init_cfg has the form'
    words = ('export', 'inflated.py', 'trained.pth', 'timm.pth')
    assert '13' not in call(TOOLS / 'convert_checkpoint.py', *words, cwd=tmp_path)
    cfg = Config.fromfile(tmp_path / 'inflated.py')
    exported: Any = load_deployed(cfg, str(tmp_path / 'trained.pth'))
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(exported.backbone(image), model.backbone(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('classes', [CLASSES, 7, None])
def test_inflated_classifier_computes_convnext(classes: int | None, tmp_path: Path) -> None:
    """And a classifier of other classes, or none, is dropped, with a word; of several states the key's is taken."""
    small, large = config('convnext_t', tmp_path), tmp_path / 'large.py'
    recipe = CONFIGS / 'cls' / 'pelk_convnext_t_in1k.py'
    kernels = NANO.replace(f'kernel_sizes={KERNELS}', 'kernel_sizes=(31, 15, 9, 7)')
    kernels = kernels.replace(f'num_classes={CLASSES}', f'num_classes={classes or CLASSES}')
    large.write_text(f'_base_ = {str(recipe)!r}\n{kernels}')
    theirs, ours = build(small, kernel_sizes=(7, 7, 7, 7)), build(large)
    state = {name.replace('.mixer.large.', '.depthwise_conv.'): value for name, value in theirs.state_dict().items()}
    if classes is None:
        state = {name: value for name, value in state.items() if not name.startswith('head.')}
    state['head.pre.weight'] = torch.ones(2)
    last = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save(dict(state_dict=last, state_dict_ema=state), tmp_path / 'convnext.pth')
    words = ('inflate', large, tmp_path / 'convnext.pth', tmp_path / 'start.pth', '--key', 'state_dict_ema')
    printed = call(TOOLS / 'convert_checkpoint.py', *words, cwd=tmp_path)
    assert torch.load(tmp_path / 'start.pth')['meta'] == dict(inflated_from=str(tmp_path / 'convnext.pth'))
    assert printed.count('100.00%') == sum(DEPTHS)
    assert ours.load_state_dict(torch.load(tmp_path / 'start.pth')['state_dict'], strict=False).unexpected_keys == []
    assert 'not of the network: head.pre.weight\n' in printed
    x = torch.randn(2, 3, 70, 50)
    with torch.no_grad():
        features, wanted = ours.backbone(x)[-1], theirs.backbone(x)[-1]
        torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5)  # float32 in another order
        if classes == CLASSES:
            torch.testing.assert_close(ours.head((features,)), theirs.head((wanted,)), rtol=1e-4, atol=1e-4)
    assert ('the classifier is dropped' in printed) == (classes != CLASSES)
