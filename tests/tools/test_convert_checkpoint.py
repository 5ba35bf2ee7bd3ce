"""Public checkpoints to ours and back: names, values, outputs, and what the tools refuse to write."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmpelk.models.key_maps import detect_source, from_source
from mmpelk.sparsity import attach_masks, find_parameters, fold_masks
from tests.commands import call
from tests.paths import CONFIGS, TOOLS

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
    """The network of a config, in eval mode, with random numbers in every parameter and statistic."""
    torch.manual_seed(0)
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(backbone)
    model = MODELS.build(cfg.model).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.2 + 0.5 if value.dim() == 1 else torch.randn_like(value) * 0.1)
    return model


class Tool:
    """A tool, run in the test's folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    def __call__(self, *arguments: object, code: int = 0) -> str:
        return call(TOOLS / self.name, *arguments, cwd=self.folder, code=code)


@pytest.fixture
def convert(tmp_path: Path) -> Tool:
    return Tool('convert_checkpoint.py', tmp_path)


@pytest.fixture
def deploy(tmp_path: Path) -> Tool:
    return Tool('reparameterize_model.py', tmp_path)


def load(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location='cpu', weights_only=True)['state_dict']


# The names of the public checkpoints, as those who published them write them, and random tensors.


def common_tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """What ConvNeXt and SLaK have in common, in facebookresearch's names."""
    for i, channels in enumerate(CHANNELS):
        conv, norm = (0, 1) if i == 0 else (1, 0)
        side, before = (4, 3) if i == 0 else (2, CHANNELS[i - 1])
        yield f'downsample_layers.{i}.{conv}.weight', (channels, before, side, side)
        yield f'downsample_layers.{i}.{conv}.bias', (channels,)
        for kind in ('weight', 'bias'):
            yield f'downsample_layers.{i}.{norm}.{kind}', (channels if i == 0 else before,)
        for j in range(DEPTHS[i]):
            block = f'stages.{i}.{j}'
            yield f'{block}.gamma', (channels,)
            yield from ((f'{block}.norm.{kind}', (channels,)) for kind in ('weight', 'bias'))
            yield f'{block}.pwconv1.weight', (4 * channels, channels)
            yield f'{block}.pwconv1.bias', (4 * channels,)
            yield f'{block}.pwconv2.weight', (channels, 4 * channels)
            yield f'{block}.pwconv2.bias', (channels,)
    yield from ((f'norm.{kind}', (CHANNELS[-1],)) for kind in ('weight', 'bias'))
    yield 'head.weight', (CLASSES, CHANNELS[-1])
    yield 'head.bias', (CLASSES,)


def blocks() -> Iterator[tuple[str, int, int]]:
    for i, channels in enumerate(CHANNELS):
        yield from ((f'stages.{i}.{j}', channels, KERNELS[i]) for j in range(DEPTHS[i]))


def convnext_tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from common_tensors()
    for block, channels, _ in blocks():
        yield f'{block}.dwconv.weight', (channels, 1, 7, 7)
        yield f'{block}.dwconv.bias', (channels,)


def slak_tensors(stripes: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from common_tensors()
    for block, channels, kernel in blocks():
        sizes = {f'{stripes}1': (kernel, 5), f'{stripes}2': (5, kernel), 'small_conv': (5, 5)}
        for branch, size in sizes.items():
            yield f'{block}.large_kernel.{branch}.conv.weight', (channels, 1, *size)
            for kind in ('weight', 'bias', 'running_mean', 'running_var'):
                yield f'{block}.large_kernel.{branch}.bn.{kind}', (channels,)
            yield f'{block}.large_kernel.{branch}.bn.num_batches_tracked', ()


def random_tensors(shapes: Iterator[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    tensors = {}
    for name, shape in shapes:
        if shape == ():
            tensors[name] = torch.tensor(7)
        else:
            tensors[name] = torch.rand(shape) + 0.5 if len(shape) == 1 else 0.1 * torch.randn(shape)
    return tensors


def forward(state: dict[str, Tensor], image: Tensor, mix: Any) -> Tensor:
    """ConvNeXt and SLaK in facebookresearch's names, as functions of their tensors."""

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], 1e-6)

    x = image
    for i in range(4):
        conv, norm = (0, 1) if i == 0 else (1, 0)
        layer = f'downsample_layers.{i}'
        if i:
            x = layer_norm(x.movedim(1, -1), f'{layer}.{norm}').movedim(-1, 1)
        x = F.conv2d(x, state[f'{layer}.{conv}.weight'], state[f'{layer}.{conv}.bias'], stride=4 if i == 0 else 2)
        if i == 0:
            x = layer_norm(x.movedim(1, -1), f'{layer}.{norm}').movedim(-1, 1)
        for j in range(DEPTHS[i]):
            block = f'stages.{i}.{j}'
            out = layer_norm(mix(state, block, x).movedim(1, -1), f'{block}.norm')
            out = F.gelu(F.linear(out, state[f'{block}.pwconv1.weight'], state[f'{block}.pwconv1.bias']))
            out = F.linear(out, state[f'{block}.pwconv2.weight'], state[f'{block}.pwconv2.bias'])
            x = x + (state[f'{block}.gamma'] * out).movedim(-1, 1)
    x = layer_norm(x.mean((2, 3)), 'norm')
    return F.linear(x, state['head.weight'], state['head.bias'])


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    padding = [side // 2 for side in weight.shape[2:]]
    return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])


def mix_convnext(state: dict[str, Tensor], block: str, x: Tensor) -> Tensor:
    return depthwise(x, state[f'{block}.dwconv.weight'], state[f'{block}.dwconv.bias'])


def mix_slak(state: dict[str, Tensor], block: str, x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for branch in ('Decom1', 'Decom2', 'small_conv'):
        name = f'{block}.large_kernel.{branch}'
        mean, var, weight, bias = (state[f'{name}.bn.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias'))
        total = total + F.batch_norm(depthwise(x, state[f'{name}.conv.weight']), mean, var, weight, bias)
    return total


@pytest.mark.parametrize(
    ('name', 'shapes', 'mix', 'extra'),
    [
        ('convnext_t', convnext_tensors(), mix_convnext, {}),
        ('slak_t', slak_tensors('Decom'), mix_slak, dict(args=argparse.Namespace(model='SLaK_tiny'), epoch=299)),
    ],
    ids=['convnext', 'slak'],
)
def test_import_computes_what_the_published_network_computes(
    name: str, shapes: Any, mix: Any, extra: dict[str, Any], convert: Tool, tmp_path: Path
) -> None:
    published = random_tensors(shapes)
    torch.save(dict(model=published, **extra), tmp_path / 'public.pth')
    recipe = config(name, tmp_path)
    printed = convert('import', recipe, 'public.pth', 'ours.pth')
    assert f'{len(published)} of {len(published)} tensors of the network matched' in printed
    assert '100.0 % of the weights of convolutions and linear layers are not zero' in printed
    model = build(recipe)
    model.load_state_dict(load(tmp_path / 'ours.pth'), strict=True)
    image = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(model(image), forward(published, image, mix), rtol=1e-4, atol=1e-4)


def test_import_of_mmpretrains_convnext(convert: Tool, tmp_path: Path) -> None:
    arch = dict(depths=list(DEPTHS), channels=list(CHANNELS))
    theirs = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ConvNeXt', arch=arch, layer_scale_init_value=1.0),
            head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=CHANNELS[-1]),
        )
    ).eval()
    torch.save(dict(meta={}, state_dict=theirs.state_dict()), tmp_path / 'public.pth')
    recipe = config('convnext_t', tmp_path)
    assert 'names of mmpretrain' in convert('import', recipe, 'public.pth', 'ours.pth')
    ours = build(recipe)
    ours.load_state_dict(load(tmp_path / 'ours.pth'), strict=True)
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-5)


def test_names_of_slaks_first_code_and_of_replknet() -> None:
    old, new = (from_source(dict(slak_tensors(stripes)), 'slak') for stripes in ('LoRA', 'Decom'))
    assert set(old.values()) == set(new.values())
    dense = {'stages.0.1.large_kernel.lkb_origin.conv.weight': torch.zeros(1)}
    assert detect_source(dense) == 'slak'
    assert list(from_source(dense, 'slak').values()) == ['backbone.stages.0.1.mixer.large.weight']


def test_import_counts_the_zeros(convert: Tool, tmp_path: Path) -> None:
    published = random_tensors(slak_tensors('Decom'))
    for value in published.values():
        if value.dim() in (2, 4):
            value.view(-1)[::2] = 0
    torch.save(dict(model=published), tmp_path / 'public.pth')
    printed = convert('import', config('slak_t', tmp_path), 'public.pth', 'ours.pth')
    assert '50.0 % of the weights' in printed or '49.9 %' in printed


def test_averaged_weights_on_request(convert: Tool, tmp_path: Path) -> None:
    last, averaged = random_tensors(convnext_tensors()), random_tensors(convnext_tensors())
    averaged['head.bias'] += 1
    torch.save(dict(model=last, model_ema=averaged), tmp_path / 'public.pth')
    recipe = config('convnext_t', tmp_path)
    for options, want in (([], last), (['--key', 'model_ema'], averaged)):
        printed = convert('import', recipe, 'public.pth', 'ours.pth', *options)
        assert ('--key model_ema takes them' in printed) == (not options)
        assert torch.equal(load(tmp_path / 'ours.pth')['head.fc.bias'], want['head.bias'])


@pytest.mark.parametrize(
    ('change', 'messages'),
    [
        (
            dict(remove='stages.2.1.dwconv.bias'),
            ['the checkpoint lacks (1):', 'backbone.stages.2.1.mixer.large.bias'],
        ),
        (
            dict(add='stages.0.0.grn.gamma'),
            ['the network lacks (1):', 'stages.0.0.grn.gamma (as backbone.stages.0.0.grn.gamma)'],
        ),
        (
            dict(reshape='head.weight'),
            ['of another shape (1):', 'head.weight (21, 20), in the network head.fc.weight (10, 20)'],
        ),
    ],
    ids=['missing', 'unexpected', 'shape'],
)
def test_import_writes_nothing_but_complete_matches(
    change: dict[str, str], messages: list[str], convert: Tool, tmp_path: Path
) -> None:
    published = random_tensors(convnext_tensors())
    published.pop(change.get('remove', ''), None)
    if 'add' in change:
        published[change['add']] = torch.zeros(3)
    if 'reshape' in change:
        published[change['reshape']] = torch.zeros(21, 20)
    torch.save(dict(model=published), tmp_path / 'public.pth')
    printed = convert('import', config('convnext_t', tmp_path), 'public.pth', 'ours.pth', code=1)
    assert all(message in printed for message in (*messages, 'nothing is written')), printed
    assert 'Traceback' not in printed
    assert not (tmp_path / 'ours.pth').exists()


def test_checkpoint_of_unknown_names(convert: Tool, tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / 'public.pth')
    printed = convert('import', config('convnext_t', tmp_path), 'public.pth', 'ours.pth', code=1)
    assert 'these are not the names of slak, convnext, mmpretrain, timm: weight, bias' in printed


def test_export_with_timms_names(convert: Tool, tmp_path: Path) -> None:
    """Every name of timm's ConvNeXt, written out for the first and the third stage."""
    recipe = config('convnext_t', tmp_path)
    model = build(recipe)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'ours.pth')
    convert('export', recipe, 'ours.pth', 'timm.pth')
    state = torch.load(tmp_path / 'timm.pth', weights_only=True)
    block = ['gamma', *(f'{m}.{k}' for m in ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2') for k in ('weight', 'bias'))]
    downsample = {f'stages.{i}.downsample.{j}.{k}' for i in (1, 2, 3) for j in (0, 1) for k in ('weight', 'bias')}
    assert set(state) == {
        *(f'stem.{i}.{k}' for i in (0, 1) for k in ('weight', 'bias')),
        *downsample,
        *(f'stages.{i}.blocks.{j}.{name}' for i in range(4) for j in range(DEPTHS[i]) for name in block),
        *(f'head.{m}.{k}' for m in ('norm', 'fc') for k in ('weight', 'bias')),
    }
    assert torch.equal(state['stages.2.blocks.1.conv_dw.weight'], model.backbone.stages[2][1].mixer.large.weight)


@pytest.mark.parametrize('name', ['pelk_t', 'slak_t', 'replk_51_t', 'convnext_t'])
def test_export_and_import_again(name: str, convert: Tool, tmp_path: Path) -> None:
    recipe = config(name, tmp_path)
    model = build(recipe)
    if name != 'convnext_t':  # sparse, as the recipe trains it
        parameters = find_parameters(model, ['backbone', 'head'])
        attach_masks(parameters)
        for entry in parameters:
            entry.mask.copy_(torch.rand_like(entry.weight) < 0.6)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'ours.pth')
    printed = convert('export', recipe, 'ours.pth', 'timm.pth')
    assert ('timm has no such mixer' in printed) == (name != 'convnext_t')
    convert('import', recipe, 'timm.pth', 'again.pth')
    want, got = fold_masks(model.state_dict()), load(tmp_path / 'again.pth')
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], value) for key, value in want.items())


# The deployed form


@pytest.mark.parametrize('name', ['pelk_t', 'slak_t', 'replk_51_t', 'convnext_t'])
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


@pytest.mark.parametrize('classes', [CLASSES, 7])
def test_inflated_classifier_computes_convnext(classes: int, tmp_path: Path) -> None:
    """And a classifier of other classes is dropped, with a word."""
    small, large = config('convnext_t', tmp_path), tmp_path / 'large.py'
    recipe = CONFIGS / 'cls' / 'pelk_convnext_t_in1k.py'
    kernels = NANO.replace(f'kernel_sizes={KERNELS}', 'kernel_sizes=(31, 15, 9, 7)')
    large.write_text(f'_base_ = {str(recipe)!r}\n{kernels.replace(f"num_classes={CLASSES}", f"num_classes={classes}")}')
    theirs, ours = build(small, kernel_sizes=(7, 7, 7, 7)), build(large)
    state = {name.replace('.mixer.large.', '.depthwise_conv.'): value for name, value in theirs.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'convnext.pth')
    words = ('inflate', large, tmp_path / 'convnext.pth', tmp_path / 'start.pth')
    printed = call(TOOLS / 'convert_checkpoint.py', *words, cwd=tmp_path)
    assert printed.count('100.00%') == sum(DEPTHS)
    ours.load_state_dict(torch.load(tmp_path / 'start.pth')['state_dict'], strict=False)
    x = torch.randn(2, 3, 70, 50)
    with torch.no_grad():
        features, wanted = ours.backbone(x)[-1], theirs.backbone(x)[-1]
        torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5)  # float32 in another order
        if classes == CLASSES:
            torch.testing.assert_close(ours.head((features,)), theirs.head((wanted,)), rtol=1e-4, atol=1e-4)
    assert ('the classifier is dropped' in printed) == (classes != CLASSES)
