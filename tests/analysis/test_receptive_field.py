"""The receptive field that is measured equals the one that follows from the kernels, for networks with known ones."""

import json
import socket
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmpelk.analysis.receptive_field import (
    Layer,
    area_ratios,
    contribution_scores,
    last_map,
    receptive_field_layers,
    receptive_field_size,
    support,
    theoretical_receptive_field,
)
from mmpelk.models import PeLK
from mmpelk.models.mixers import MIXERS as KINDS
from mmpelk.ops import force_backend
from tests.commands import load_tool, run
from tests.paths import CONFIGS, TOOLS

KERNELS = (13, 9)
# Mixers with the share of channels and the kernels that they see with.
MIXERS: dict[str, dict[str, Any]] = {
    'peripheral': dict(conv_ratio=0.5),
    'dense': dict(conv_ratio=0.5),
    'stripe': dict(conv_ratio=1.0, positional_embedding=None),
    'conv7': dict(conv_ratio=1.0, positional_embedding=None),
}
# Even and odd, divisible by the strides and not; the first three are larger than the receptive field of 120 pixels.
SIZES = [(192, 176), (204, 183), (171, 205), (64, 48), (61, 130), (4, 7)]
NANO = CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py'


def small_pelk(mixer: str = 'peripheral', **changes: Any) -> PeLK:
    arch = dict(depths=(1, 1), channels=(4, 6), kernel_sizes=KERNELS, center_size=5)
    settings = dict(arch=arch, mixer=mixer, gap_before_final_norm=False, layer_scale_init_value=1.0)
    return PeLK(**settings | MIXERS[mixer] | changes)


def positive(backbone: PeLK) -> PeLK:
    """Make every path from a pixel to the output add to the gradient, so that none can cancel another.

    All weights positive and a positive image: then GELU's derivative is positive as well. Layer norms, whose gradient
    has both signs, mix channels and not positions, and are taken out.
    """
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())
    for parameter in backbone.parameters():
        nn.init.constant_(parameter, 0.1)
    return backbone.double().eval()


def image(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height)) + 0.1


def theory(backbone: PeLK, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = (theoretical_receptive_field(receptive_field_layers(backbone), extent) for extent in shape)
    return rows, columns


def footprint(mixer: str, shape: tuple[int, int]) -> np.ndarray:
    """Pixels that the centre of the last map sees, by running kernels of ones backwards. Not by the formula."""
    layers: list[tuple[list[tuple[int, int]], int]] = []
    for patch, size in zip((4, 2), KERNELS, strict=True):
        kernels = {'stripe': [(size, 5), (5, size)], 'conv7': [(7, 7)]}.get(mixer, [(size, size)])
        layers += [([(patch, patch)], patch), (kernels, 1)]
    shapes = [shape]
    for _, stride in layers:
        shapes.append((max(1, shapes[-1][0] // stride), max(1, shapes[-1][1] // stride)))
    seen = torch.zeros(1, 1, *shapes[-1], dtype=torch.float64)
    seen[..., shapes[-1][0] // 2, shapes[-1][1] // 2] = 1
    for (kernels, stride), (height, width) in zip(reversed(layers), reversed(shapes[:-1]), strict=True):
        before = torch.zeros(1, 1, height, width, dtype=torch.float64)
        for size in kernels:
            padding = (size[0] // 2, size[1] // 2) if stride == 1 else 0
            back = F.conv_transpose2d(seen, torch.ones(1, 1, *size).double(), stride=stride, padding=padding)
            back = back[..., :height, :width]
            before[..., : back.shape[-2], : back.shape[-1]] += back
        seen = (before > 0).double()
    return seen[0, 0].numpy() > 0


@pytest.mark.parametrize('shape', SIZES, ids=lambda shape: f'{shape[0]}x{shape[1]}')
@pytest.mark.parametrize('mixer', MIXERS)
def test_measured_support_is_the_theoretical_one(mixer: str, shape: tuple[int, int]) -> None:
    backbone = positive(small_pelk(mixer))
    with force_backend('fft'):  # which leaks; the measurement has to choose for itself
        scores = contribution_scores(backbone, [image(*shape)])
    assert scores.shape == shape
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores > 0, footprint(mixer, shape))
    assert support(scores) == theory(backbone, shape)


def test_a_stripe_sees_a_cross() -> None:
    arch = dict(depths=(1,), channels=(4,), kernel_sizes=(21,))
    backbone = positive(PeLK(arch, mixer='stripe', conv_ratio=1.0, positional_embedding=None))
    scores = contribution_scores(backbone, [image(128, 128)])
    expected = np.zeros((128, 128), bool)  # position 16 sees the pixels from 64 on, stripes of 84 x 20
    expected[24:108, 56:76] = expected[56:76, 24:108] = True
    np.testing.assert_array_equal(scores > 0, expected)


@pytest.mark.parametrize('mixer', MIXERS)
def test_support_of_random_networks_with_all_norms(mixer: str) -> None:
    torch.manual_seed(0)
    backbone = small_pelk(mixer).double()
    backbone.init_weights()
    # Contributions are cut off at zero: a single pixel may show nothing, but not a whole border of the field.
    scores = contribution_scores(backbone, [image(192, 176), image(192, 176).flip(-1)])
    assert support(scores) == theory(backbone, (192, 176))
    assert not scores[~footprint(mixer, (192, 176))].any()


def test_deployed_network_sees_the_same() -> None:
    torch.manual_seed(0)
    backbone = small_pelk().double().eval()
    backbone.init_weights()
    before = contribution_scores(backbone, [image(64, 64)])
    layers = receptive_field_layers(backbone)
    backbone.switch_to_deploy()
    assert receptive_field_layers(backbone) == layers
    np.testing.assert_allclose(contribution_scores(backbone, [image(64, 64)]), before, rtol=1e-9, atol=1e-12)


STACKS = [
    ('patches', [Layer(4, 4), Layer(2, 2)]),
    ('same', [Layer(5, 1, 2), Layer(3, 1, 1)]),
    ('even kernels', [Layer(4, 1, 2), Layer(6, 2, 1), Layer(2, 1)]),
    ('resnet-like', [Layer(7, 2, 3), Layer(3, 2, 1), Layer(3, 1, 1), Layer(3, 2, 1)]),
    ('gaps', [Layer(2, 3), Layer(3, 1, 1)]),
]


@pytest.mark.parametrize('extent', [40, 41, 43, 90])
@pytest.mark.parametrize('layers', [layers for _, layers in STACKS], ids=[name for name, _ in STACKS])
def test_theory_of_any_stack(layers: Sequence[Layer], extent: int) -> None:
    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x = F.conv1d(x, torch.ones(1, 1, layer.kernel_size).double(), stride=layer.stride, padding=layer.padding)
        return x

    pixels = torch.ones(1, 1, extent, dtype=torch.float64, requires_grad=True)
    positions = forward(pixels).shape[-1]
    for position in range(positions):
        (gradient,) = torch.autograd.grad(forward(pixels)[0, 0, position], pixels)
        seen = gradient[0, 0].nonzero().flatten()
        assert theoretical_receptive_field(layers, extent, position) == (seen[0], seen[-1])
    assert theoretical_receptive_field(layers, extent) == theoretical_receptive_field(layers, extent, positions // 2)
    with pytest.raises(ValueError, match='positions 0 to'):
        theoretical_receptive_field(layers, extent, positions)


def test_published_receptive_fields() -> None:
    """Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, Distill 2019."""
    three, pool = Layer(3, 1, 1), Layer(2, 2)
    alexnet = [Layer(11, 4), Layer(3, 2), Layer(5, 1, 2), Layer(3, 2), three, three, three, Layer(3, 2)]
    vgg16 = [three, three, pool] * 2 + [three, three, three, pool] * 3
    assert receptive_field_size(alexnet) == 195
    assert receptive_field_size(vgg16) == 212


def test_receptive_field_of_pelk_t() -> None:
    stem = 1 + 3
    stages = [3 * 50 * 4, 4 + 3 * 48 * 8, 8 + 9 * 46 * 16, 16 + 3 * 12 * 32]
    backbone = PeLK('tiny')
    assert receptive_field_size(receptive_field_layers(backbone)) == stem + sum(stages)
    assert theory(backbone, (1024, 1024)) == ((0, 1023), (0, 1023))


def test_images_accumulate() -> None:
    torch.manual_seed(0)
    backbone = small_pelk().double()
    first, second = image(48, 48), image(48, 48).flip(-1)
    apart = contribution_scores(backbone, [first]) + contribution_scores(backbone, [second])
    np.testing.assert_array_equal(contribution_scores(backbone, iter([first, second])), apart)
    together = contribution_scores(backbone, [torch.stack([first, second])])
    np.testing.assert_allclose(together, apart, rtol=1e-9, atol=1e-15)


def test_model_is_left_as_it_was() -> None:
    backbone = small_pelk(frozen_stages=1, norm_eval=True).train()
    backbone.stages[1].positional_embedding.requires_grad_(False)
    modes = [module.training for module in backbone.modules()]
    grads = [parameter.requires_grad for parameter in backbone.parameters()]
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert len(set(modes)) == len(set(grads)) == 2, 'a model in which both are mixed'
    with torch.no_grad():  # of the caller: the measurement needs gradients all the same
        contribution_scores(backbone, [image(32, 32)])
    with pytest.raises(ValueError, match='not finite'):
        contribution_scores(backbone, [image(32, 32) * float('nan')])
    assert [module.training for module in backbone.modules()] == modes
    assert [parameter.requires_grad for parameter in backbone.parameters()] == grads
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_pooled_and_normed_outputs_are_measured_alike() -> None:
    classifier = small_pelk(gap_before_final_norm=True)
    segmentor = small_pelk(gap_before_final_norm=False)
    segmentor.load_state_dict(classifier.state_dict())
    expected = contribution_scores(classifier, [image(48, 48)])
    assert expected.any()
    np.testing.assert_array_equal(contribution_scores(segmentor, [image(48, 48)]), expected)


FOREIGN = {
    'ConvNeXt': dict(arch=dict(depths=[1, 1, 1, 1], channels=[4, 6, 8, 10])),
    'SwinTransformer': dict(arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]), window_size=2),
    'RepLKNet': dict(
        arch=dict(
            large_kernel_sizes=[13, 11, 9, 7], layers=[1, 1, 1, 1], channels=[4, 6, 8, 10], small_kernel=5, dw_ratio=1
        )
    ),
    'ResNet': dict(depth=18, stem_channels=4, base_channels=4),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_backbones_of_mmpretrain(name: str) -> None:
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(dict(type=name, **FOREIGN[name]))
    assert last_map(backbone, torch.rand(2, 3, 64, 96)).shape[2:] == (2, 3)
    assert contribution_scores(backbone, [torch.rand(3, 64, 96)]).shape == (64, 96)


def test_detector() -> None:
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(CONFIGS / 'demo' / 'mask_rcnn_pelk_nano_synthetic.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    assert contribution_scores(model, [torch.rand(3, 64, 64)]).any()


def test_no_map() -> None:
    class Pooling(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x.mean((-2, -1)),)

    with pytest.raises(ValueError, match=r'Pooling returns no feature map .* but \[\(1, 3\)\]'):
        contribution_scores(Pooling(), [image(8, 8)])


def test_images_are_checked() -> None:
    with pytest.raises(ValueError, match='no image'):
        contribution_scores(small_pelk(), [])
    with pytest.raises(ValueError, match=r'image 1 is \(32, 32\), those before \(32, 48\)'):
        contribution_scores(small_pelk(), [image(32, 48), image(32, 32)])


def sides(scores: np.ndarray, **options: Any) -> list[int]:
    return [ratio.side for ratio in area_ratios(scores, **options)]


def test_ratios_of_a_point() -> None:
    scores = np.zeros((101, 99))
    scores[50, 49] = 3.0
    assert [(ratio.threshold, ratio.side) for ratio in area_ratios(scores)] == [(0.2, 1), (0.3, 1), (0.5, 1), (0.99, 1)]
    assert {ratio.area_ratio for ratio in area_ratios(scores)} == {1 / (101 * 99)}


def test_ratios_of_a_uniform_map() -> None:
    # 45^2 / 101^2 = 0.1985 and 47^2 / 101^2 = 0.2165, and so on.
    assert sides(np.full((101, 101), 0.7)) == [47, 57, 73, 101]
    (even,) = area_ratios(np.ones((8, 8)), [0.99])
    assert (even.side, even.area_ratio) == (8, 1.0)


def test_ratios_of_a_square() -> None:
    scores = np.zeros((64, 80))
    scores[32 - 10 : 32 + 11, 40 - 10 : 40 + 11] = 1.0
    # 9^2 / 21^2 = 0.18 and 11^2 / 21^2 = 0.27
    assert sides(scores) == [11, 13, 15, 21]
    assert area_ratios(scores)[-1].area_ratio == 441 / (64 * 80)


def test_logarithm_depends_on_the_scale() -> None:
    scores = np.zeros((41, 41))
    scores[20, 20], scores[10, 20] = 999.0, 9.0
    assert sides(scores) == [1, 1, 1, 1]
    assert sides(scores, logarithm=True) == [1, 1, 1, 21], 'log10(1000) and log10(10): shares of 3/4 and 1/4'
    assert sides(1e-3 * scores) == sides(scores)
    assert sides(1e-3 * scores, thresholds=[0.8], logarithm=True) != sides(scores, thresholds=[0.8], logarithm=True)


@pytest.mark.parametrize(
    'scores',
    [np.zeros((4, 4)), np.full((4, 4), np.nan), -np.ones((4, 4)), np.ones(4)],
    ids=['zero', 'nan', '<0', '1-D'],
)
def test_scores_are_checked(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match='contribution scores'):
        area_ratios(scores)


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValueError, match='between 0 and 1'):
        area_ratios(np.ones((4, 4)), [20])


def test_support_of_nothing() -> None:
    assert support(np.zeros((3, 3))) is None


@pytest.fixture(scope='module')
def tool() -> Any:
    return load_tool(TOOLS / 'analysis' / 'erf.py')


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for index in range(3):
        assert cv2.imwrite(str(folder / f'{index}.png'), random.integers(0, 256, (30, 50, 3), np.uint8))
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.mark.parametrize('words', [[], ['PeLK-T'], ['PeLK-T', str(NANO)]], ids=len)
def test_tool_wants_three_words(tool: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match='a name, a config and a checkpoint'):
        tool.read_requests([words])


def test_tool_checks_what_it_is_given(tool: Any, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config 'no\.py'"):
        tool.read_requests([['a', 'no.py', 'random']])
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'no\.pth' does not exist"):
        tool.read_requests([['a', str(NANO), 'no.pth']])
    with pytest.raises(ValueError, match="'b' is no KEY=VALUE"):
        tool.read_requests([['a', str(NANO), 'random', 'b', str(NANO), 'random']])
    with pytest.raises(ValueError, match='two models are called a'):
        tool.check_names(['a', 'b', 'a'])
    with pytest.raises(FileNotFoundError, match='no image or folder'):
        tool.read_images([tmp_path / 'nothing'], 1, 32)
    with pytest.raises(FileNotFoundError, match='no image in'):
        tool.read_images([photos / 'notes.txt'], 1, 32)
    with pytest.raises(ValueError, match='at least 1'):
        tool.read_images([photos], 0, 32)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='cannot be read as an image'):
        tool.read_images([tmp_path / 'broken.png'], 1, 32)


def test_tool_spreads_its_images_over_the_folders(tool: Any, tmp_path: Path) -> None:
    for folder in 'abc':
        (tmp_path / folder).mkdir()
        for index in range(4):
            assert cv2.imwrite(str(tmp_path / folder / f'{index}.png'), np.zeros((8, 9, 3), np.uint8))
    images = tool.read_images([tmp_path], 3, 32)
    assert [Path(name).parent.name for name in images] == ['a', 'b', 'c']
    assert {picture.shape for picture in images.values()} == {(32, 32, 3)}
    assert len(tool.read_images([tmp_path], 50, 32)) == 12


def test_tool_keeps_the_machine_of_loaded_scores(
    tool: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, report = tmp_path / 'scores.npz', tmp_path / 'erf.json'
    monkeypatch.setattr(tool, 'machine', lambda device: dict(device='elsewhere'))
    model = ('--model', 'nano', NANO, 'random')
    common = ('--images', photos, '--size', '64', '--out', tmp_path / 'erf.png', '--device', 'cpu')
    call(tool, monkeypatch, *model, *common, '--save-scores', scores)
    monkeypatch.setattr(tool, 'machine', lambda device: dict(device='here'))
    call(tool, monkeypatch, '--load-scores', scores, *common, '--json', report)
    written = json.loads(report.read_text())
    assert [written['machine'], written['models'][0]['machine']] == [dict(device='elsewhere')] * 2


def test_tool_normalises_as_the_model_does(tool: Any) -> None:
    model = tool.build_model(tool.Request('a', str(NANO), 'random', ()), 0)
    bgr = np.broadcast_to(np.uint8([10, 20, 30]), (32, 32, 3))
    (pixels,) = tool.preprocessed(model, [bgr])
    expected = [(30 - 123.675) / 58.395, (20 - 116.28) / 57.12, (10 - 103.53) / 57.375]
    torch.testing.assert_close(pixels[0, :, 5, 5], torch.tensor(expected))


def test_tool_loads_the_checkpoint_of_the_same_model_alone(tool: Any, tmp_path: Path) -> None:
    trained = tool.build_model(tool.Request('a', str(NANO), 'random', ()), 7)
    file = tmp_path / 'nano.pth'
    torch.save(dict(state_dict=trained.state_dict()), file)
    loaded = tool.build_model(tool.Request('a', str(NANO), str(file), ()), 0)
    for name, value in trained.backbone.state_dict().items():
        assert torch.equal(loaded.backbone.state_dict()[name], value), name
    other = tool.Request('b', str(NANO), str(file), ('model.backbone.kernel_sizes=(21, 19)',))
    with pytest.raises(ValueError, match='does not fit this backbone'):
        tool.build_model(other, 0)


def test_random_networks_start_as_training_does(tool: Any, photos: Path) -> None:
    request = tool.Request('a', str(NANO), 'random', ('model.backbone.layer_scale_init_value=1e-6',))
    model, again = tool.build_model(request, 3), tool.build_model(request, 3)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values())), 'seeded'
    assert tool.set_layer_scales(model.backbone, 1.0) == 2
    assert (model.backbone.stages[0][0].gamma == 1).all()
    pictures = list(tool.read_images([photos], 2, 32).values())
    assert tool.estimate_norms(model, pictures) == 4
    assert not model.training
    norm = model.backbone.stages[0][0].mixer.small_norm
    kept: list[Tensor] = []
    norm.register_forward_hook(lambda _module, args, _output: kept.append(args[0]))
    for pixels in tool.preprocessed(model, pictures):
        model.backbone(pixels)
    mean = torch.stack([x.mean((0, 2, 3)) for x in kept]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)


# A network of each toolbox that is not ours, shrunk, which names pre-trained weights where its toolbox does; and how
# many layer scales and batch norms its backbone has.
TOOLBOXES: dict[str, tuple[str, int, int]] = {
    'mmpretrain': (
        """
        default_scope = 'mmpretrain'
        data_preprocessor = dict(num_classes=3, mean=[100.0, 110.0, 120.0], std=[10.0, 20.0, 30.0], to_rgb=True)
        weights = dict(type='Pretrained', checkpoint='https://weights.invalid/convnext.pth', prefix='backbone.')
        model = dict(
            type='ImageClassifier',
            backbone=dict(
                type='ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[4, 6, 8, 10]), init_cfg=weights
            ),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=10),
        )
        """,
        5,
        0,
    ),
    'mmdet': (
        """
        _base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'
        default_scope = 'mmdet'
        model = dict(
            backbone=dict(depth=18, base_channels=4),  # the base's has init_cfg=dict(type='Pretrained', ...)
            neck=dict(in_channels=[4, 8, 16, 32], out_channels=8),
            rpn_head=dict(in_channels=8, feat_channels=8),
            roi_head=dict(
                bbox_roi_extractor=dict(out_channels=8), bbox_head=dict(in_channels=8, fc_out_channels=8, num_classes=3)
            ),
        )
        """,
        0,
        20,
    ),
    'mmseg': (
        """
        _base_ = 'MMSEG/.mim/configs/_base_/models/fcn_r50-d8.py'  # 'mmseg::' wants the old name of the distribution
        default_scope = 'mmseg'
        model = dict(
            backbone=dict(depth=18, base_channels=4, stem_channels=4),  # beside it the base's pretrained='open-mmlab://...'
            decode_head=dict(in_channels=32, channels=4),
            auxiliary_head=dict(in_channels=16, channels=4),
        )
        """,
        0,
        22,
    ),
}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked for while a test runs: checkpoints, and hosts of the network. Nothing is given."""
    asked: list[str] = []

    def refuse(*words: Any, **options: Any) -> None:
        asked.append(str([*words, *options.values()]))
        raise ConnectionError('nothing is loaded in this test')

    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', refuse)
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', refuse)
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    return asked


@pytest.mark.parametrize('toolbox', TOOLBOXES)
def test_tool_measures_the_toolboxes_own_networks(
    tool: Any, toolbox: str, photos: Path, tmp_path: Path, loaded: list[str]
) -> None:
    package = Path(pytest.importorskip(toolbox).__file__).parent
    text, scales, norms = TOOLBOXES[toolbox]
    (tmp_path / 'foreign.py').write_text(textwrap.dedent(text).replace(toolbox.upper(), str(package)))
    model = tool.build_model(tool.Request('a', str(tmp_path / 'foreign.py'), 'random', ()), 0)
    assert type(model).__module__.split('.')[0] == type(model.backbone).__module__.split('.')[0] == toolbox
    assert not any(module.training for module in model.modules())
    assert tool.set_layer_scales(model.backbone, 1.0) == scales
    pictures = list(tool.read_images([photos], 2, 64).values())
    assert tool.estimate_norms(model, pictures) == norms
    inputs = list(tool.preprocessed(model, pictures))
    assert [pixels.shape for pixels in inputs] == [(1, 3, 64, 64)] * 2
    # BGR of the file to normalised RGB, by the statistics of this model's preprocessor.
    mean, std = (getattr(model.data_preprocessor, name).flatten() for name in ('mean', 'std'))
    rgb = torch.from_numpy(pictures[0][..., ::-1].copy()).permute(2, 0, 1)
    torch.testing.assert_close(inputs[0][0], (rgb - mean[:, None, None]) / std[:, None, None])
    assert mean[0] == (100 if toolbox == 'mmpretrain' else 123.675)
    scores = contribution_scores(model, inputs)
    assert scores.shape == (64, 64)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert scores.max() > 0
    assert loaded == []


def test_tool_measures_our_detector(tool: Any, photos: Path, loaded: list[str]) -> None:
    pytest.importorskip('mmdet')
    detector = CONFIGS / 'demo' / 'mask_rcnn_pelk_nano_synthetic.py'
    model = tool.build_model(tool.Request('a', str(detector), 'random', ()), 0)
    scores = contribution_scores(model, tool.preprocessed(model, list(tool.read_images([photos], 2, 64).values())))
    assert scores.shape == (64, 64)
    assert scores.max() > 0
    assert loaded == []


# What tells the default models apart: mixer, kernel sizes, and how many of the first stage's channels they convolve.
DEFAULTS: dict[str, tuple[str, list[int], int]] = {
    'PeLK-T': ('peripheral', [51, 49, 47, 13], 46),  # 3/8 of 124, rounded down
    'PeLK-101-T': ('peripheral', [101, 69, 67, 13], 46),
    'SLaK-T': ('stripe', [51, 49, 47, 13], 124),
    'RepLK-51-T': ('dense', [51, 49, 47, 13], 124),
    'PeLK-T, all channels': ('peripheral', [51, 49, 47, 13], 124),
    'ConvNeXt-T': ('conv7', [7, 7, 7, 7], 96),
}


def test_default_models_are_what_they_are_called(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their configs exist and their options are read; built without memory, up to the classifier."""
    pytest.importorskip('mmpretrain')

    class Built(Exception):
        pass

    class Registry:
        @staticmethod
        def build(model: Any) -> None:
            with torch.device('meta'):
                raise Built(MODELS.build(model.backbone))

    monkeypatch.setattr(tool, 'MODELS', Registry)
    found = {}
    for request in tool.read_requests(tool.DEFAULT_MODELS):
        assert request.checkpoint == 'random'
        with pytest.raises(Built) as built:
            tool.build_model(request, 0)
        network = built.value.args[0]
        block = network.stages[0][0]
        kernels = [layer.kernel_size for layer in receptive_field_layers(network) if layer.padding]
        sizes = [kernels[sum(network.depths[:stage])] for stage in range(network.num_stages)]
        (mixer,) = [name for name, kind in KINDS.items() if type(block.mixer) is kind]
        found[request.name] = (mixer, sizes, block.mixed_channels)
    assert found == DEFAULTS
    assert list(found) == list(DEFAULTS), 'in the order of the figure'


def test_smallest_default_model_is_measured(tool: Any, photos: Path, loaded: list[str]) -> None:
    pytest.importorskip('mmpretrain')
    request = next(request for request in tool.read_requests(tool.DEFAULT_MODELS) if request.name == 'ConvNeXt-T')
    model = tool.build_model(request, 0)
    assert tool.set_layer_scales(model.backbone, 1.0) == 18
    pictures = list(tool.read_images([photos], 1, 64).values())
    scores = contribution_scores(model, tool.preprocessed(model, pictures))
    assert scores.shape == (64, 64)
    assert scores.max() > 0
    assert loaded == []


def call(tool: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """The tool in this process: importing the toolboxes takes longer than what it does here."""
    monkeypatch.setattr(sys, 'argv', ['erf.py', *map(str, words)])
    tool.main()


def test_tool(tool: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conv7 = ['model.backbone.mixer=conv7', 'model.backbone.positional_embedding=None']
    common = ['--images', photos, '--max-images', 2, '--size', 64, '--device', 'cpu']
    printed = run(
        *(sys.executable, TOOLS / 'analysis' / 'erf.py'),
        *('--model', 'peripheral', NANO, 'random', '--model', '7x7', NANO, 'random', *conv7, *common),
        *('--out', 'figures/erf.png', '--json', 'erf.json', '--save-scores', 'erf.npz'),
        cwd=tmp_path,
    )
    assert 'log10(s + 1)' in printed
    report = json.loads((tmp_path / 'erf.json').read_text())
    assert (report['size'], report['layer_scale'], report['images']) == (64, 1.0, [str(photos)])
    assert 'torch' in report['machine']
    peripheral, seven = report['models']
    assert (peripheral['name'], seven['name']) == ('peripheral', '7x7')
    assert (seven['images'], seven['options']) == (2, conv7)
    assert peripheral['support'] == [[0, 63], [0, 63]]
    assert seven['theoretical_size'] == 1 + 3 + 6 * 4 + 4 + 6 * 8
    assert seven['support'] == [seven['theoretical_interval']] * 2, 'measured equals theoretical'
    assert [ratio['threshold'] for ratio in seven['area_ratios']] == [0.2, 0.3, 0.5, 0.99]
    assert len(seven['area_ratios_log']) == 4

    # The same maps drawn again, beside a third one that was measured apart.
    monkeypatch.chdir(tmp_path)
    dense = ['--model', 'dense', NANO, 'random', 'model.backbone.mixer=dense', *common]
    call(tool, monkeypatch, '--load-scores', 'erf.npz', *dense, '--out', 'all.png', '--json', 'all.json')
    again = json.loads((tmp_path / 'all.json').read_text())['models']
    assert again[:2] == report['models']
    assert [model['name'] for model in again] == ['peripheral', '7x7', 'dense']
    for figure in ('figures/erf.png', 'all.png'):
        picture = cv2.imread(str(tmp_path / figure))
        assert picture is not None
        assert min(picture.shape[:2]) > 300


def test_tool_refuses_the_checkpoint_of_another_model(
    tool: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.zeros(1)}), 'other.pth')
    with pytest.raises(SystemExit) as stopped:
        call(tool, monkeypatch, '--model', 'a', NANO, 'other.pth', '--images', photos, '--size', 64)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: 'other.pth' does not fit this backbone: it misses ")
    assert not Path('erf.png').exists()


def test_tool_refuses_maps_of_different_sizes(
    tool: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tool.save_scores(Path('a.npz'), [tool.Measured(np.ones((32, 32)), dict(name='a', images=1, weights=''))])
    with pytest.raises(SystemExit):
        call(
            *(tool, monkeypatch, '--load-scores', 'a.npz', '--model', 'b', NANO, 'random'),
            *('--images', photos, '--max-images', 1, '--size', 64),
        )
    assert 'the maps differ in size: a (32, 32), b (64, 64)' in capsys.readouterr().err
    (tmp_path / 'b.npz').write_text('nothing')
    with pytest.raises(ValueError, match='holds no scores'):
        tool.load_scores(tmp_path / 'b.npz')
