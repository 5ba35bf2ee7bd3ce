"""What the exporters read: a trained or a deployed checkpoint of a recipe."""

import argparse
import copy
import math
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.export import ExportedNetwork, compare, in_half, load_deployed
from mmpelk.export.command_line import Request, add_export_options
from mmpelk.export.network import Preprocessing, real_image, task_of
from mmpelk.sparsity import apply_masks
from tests.paths import CONFIGS
from tests.sparsity.tiny import draw_masks


@pytest.mark.slow
@pytest.mark.scope('mmseg')
@pytest.mark.parametrize('mode', ['in_bounds', 'constant', None])
def test_a_deployed_checkpoint_is_read_as_the_trained_one(mode: str | None, tmp_path: Path) -> None:
    """Whether or not its embedding has left a table."""
    cfg = Config.fromfile(CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py')
    cfg.model.backbone.update(positional_embedding=mode, norm_cfg=dict(type='BN'), layer_scale_init_value=1.0)
    model: Any = MODELS.build(cfg.model).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    model.backbone.switch_to_deploy()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'deployed.pth')
    one, other = (cast(Any, load_deployed(cfg, str(tmp_path / f'{form}.pth'))) for form in ('trained', 'deployed'))
    image = torch.rand(1, 3, 64, 64)
    for out, want in zip(other.backbone(image), one.backbone(image), strict=True):
        torch.testing.assert_close(out, want)


NANO = {
    'mmseg': ('upernet_pelk_nano_synthetic', 'segmentation', 4, ('logits', 'labels')),
    'mmdet': ('mask_rcnn_pelk_nano_synthetic', 'detection', 4, tuple(f'level{level}' for level in range(5))),
    'mmpretrain': ('pelk_nano_digits', 'classification', 2, ('logits',)),
}


def written(scope: str, path: Path, meta: dict[str, Any] | None = None, **backbone: Any) -> Config:
    """The recipe of a nano network, and a checkpoint of it, of random weights."""
    pytest.importorskip(scope)
    cfg = Config.fromfile(CONFIGS / 'demo' / f'{NANO[scope][0]}.py')
    cfg.model.backbone.update(backbone)
    if scope == 'mmdet':
        cfg.model.neck.num_outs = 5  # one more than the backbone has
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(copy.deepcopy(cfg.model))
    state = model.state_dict()
    state |= {f'data_preprocessor.{name}': torch.ones(3) for name in ('mean', 'std')}
    torch.save(dict(state_dict=state, meta=meta or {}), path)
    return cfg


@pytest.mark.parametrize('scope', NANO)
def test_what_is_exported_of_each_toolbox(scope: str, tmp_path: Path) -> None:
    _, task, patch, outputs = NANO[scope]
    meta = dict(classes=['a', 'b'], palette=[[0, 0, 0], [1, 1, 1]], other=1)
    cfg = written(scope, tmp_path / 'a.pth', dict(dataset_meta=meta))
    before = copy.deepcopy(cfg.to_dict())
    model = load_deployed(cfg, str(tmp_path / 'a.pth'))
    assert cfg.to_dict() == before
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    network = ExportedNetwork.of(cfg, model)
    assert (network.task, network.outputs, network.channels, network.smallest) == (task, outputs, 3, patch)
    assert network.meta == {key: meta[key] for key in ('classes', 'palette')}
    network.check_size(patch, 9)
    with pytest.raises(UserError, match=f'9 x {patch - 1} is smaller than the {patch} x {patch} patch'):
        network.check_size(9, patch - 1)
    pixels = torch.randint(256, (1, 64, 32, 3), dtype=torch.uint8)
    folded = network.folded()
    assert (network.takes_pixels, folded.takes_pixels) == (False, True)
    with torch.no_grad():
        want = network.network(network.preprocessing.apply(pixels))
        assert len(want) == len(outputs)
        torch.testing.assert_close(folded.network(pixels), want)
        if task == 'classification':  # the quickest
            assert in_half(network).folded().network(pixels)[0].dtype == torch.float16
    assert {parameter.dtype for parameter in network.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    'backbone', [{}, dict(small_kernel_size=0), dict(mixer='stripe', positional_embedding=None)], ids=str
)
def test_masks_and_branches_are_in_the_weights(backbone: dict[str, Any], tmp_path: Path) -> None:
    """Whichever branches a mixer has."""
    cfg = written('mmpretrain', tmp_path / 'a.pth', **backbone, norm_cfg=dict(type='BN'), layer_scale_init_value=1.0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model: Any = MODELS.build(copy.deepcopy(cfg.model)).eval()
    for name, value in model.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            nn.init.uniform_(value, 0.5, 2.0)
    masks, image = draw_masks(model), torch.rand(1, 3, 32, 32)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    apply_masks(masks)
    exported: Any = load_deployed(cfg, str(tmp_path / 'a.pth'))
    assert not any(key.endswith('_mask') or 'large_norm' in key for key in exported.state_dict())
    with torch.no_grad():
        want, got = (network.head(network.extract_feat(image)) for network in (model, exported))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.save(dict(state_dict=exported.state_dict()), tmp_path / 'deployed.pth')
    again: Any = load_deployed(cfg, str(tmp_path / 'deployed.pth'))
    assert torch.equal(again.head(again.extract_feat(image)), got)


def test_weights_of_another_kernel_are_refused(tmp_path: Path) -> None:
    """Of as many numbers, by what the file says."""
    cfg = written('mmpretrain', tmp_path / 'a.pth', dict(dataset_meta=None), positional_embedding=None)
    assert load_deployed(cfg, str(tmp_path / 'a.pth')).dataset_meta == {}
    cfg.model.backbone.kernel_sizes = (15, 7)
    with pytest.raises(UserError, match='were trained with a kernel of 13 x 13'):
        load_deployed(cfg, str(tmp_path / 'a.pth'))


def test_colours_are_those_of_three_channels_alone() -> None:
    pixels = torch.arange(8, dtype=torch.uint8).view(1, 1, 2, 4)
    for channels in (3, 4):
        got = Preprocessing([0.0] * channels, [1.0] * channels, rgb=False).apply(pixels[..., :channels])
        order = [2, 1, 0] if channels == 3 else [0, 1, 2, 3]
        assert got[0, :, 0].tolist() == [[channel, channel + 4] for channel in order]


def test_dim_pictures_and_what_is_none_are_refused(tmp_path: Path) -> None:
    """Of 10 bits in 16, which would be compared as nearly black."""
    assert cv2.imwrite(str(tmp_path / 'dim.png'), np.full((8, 8, 3), 1000, np.uint16))
    with pytest.raises(UserError, match=r'dim\.png.* has values below 1024 in 16 bits'):
        real_image(tmp_path / 'dim.png', (8, 8))
    for text in ('no picture', ''):
        (tmp_path / 'text.png').write_text(text)
        with pytest.raises(UserError, match=r'text\.png.* is not readable as an image'):
            real_image(tmp_path / 'text.png', (8, 8))


def test_models_that_no_file_can_hold() -> None:
    parts: dict[str, nn.Module] = dict(decode_head=nn.ModuleList(), backbone=nn.Identity())
    with pytest.raises(UserError, match='ModuleDict is no segmentor, classifier or detector'):
        task_of(nn.ModuleDict(parts))  # of cascaded heads
    for head in ('rpn_head', 'bbox_head'):
        assert task_of(nn.ModuleDict({head: nn.Identity()})) == 'detection'


@pytest.mark.parametrize(
    ('options', 'dtype', 'exact_takes_pixels', 'tolerance'),
    [
        ([], torch.float32, False, 1e-4),
        (['--half'], torch.float16, False, 5e-2),
        (['--fold-preprocessing'], torch.uint8, True, 1e-4),
        (['--fold-preprocessing', '--half'], torch.uint8, True, 5e-2),
    ],
    ids=str,
)
def test_what_a_command_line_asks_for(
    options: list[str], dtype: torch.dtype, exact_takes_pixels: bool, tolerance: float, tmp_path: Path
) -> None:
    written('mmpretrain', tmp_path / 'a.pth')
    red, recipe = np.full((6, 5, 3), (0, 0, 200), np.uint8), CONFIGS / 'demo' / 'pelk_nano_digits.py'
    assert cv2.imwrite(str(tmp_path / 'red.png'), red)
    parser = argparse.ArgumentParser()
    add_export_options(parser, '.onnx')

    def request(*more: str, out: str = 'a.onnx') -> Request:
        given = [str(recipe), str(tmp_path / 'a.pth'), out, '--image', str(tmp_path / 'red.png'), *options, *more]
        return Request.of(parser.parse_args(given), '.onnx')

    assert request().shapes == [(224, 224)]
    assert request('--cfg-options', 'model.data_preprocessor.std=[2.0,3.0,4.0]').exact.preprocessing.std == [2, 3, 4]
    found = request('--dynamic', '--shape', '64', '32', '--shape', '32', '48')
    assert (found.shapes, found.tolerance) == ([(64, 32), (32, 48)], tolerance)
    assert [image.dtype for image in found.images] == [dtype] * 2
    assert {value.dtype for value in found.exact.network.parameters()} == {torch.float32}
    half = {value.dtype for value in found.exported.network.parameters()} == {torch.float16}
    assert half == ('--half' in options)
    assert found.exact.takes_pixels == found.exported.takes_pixels == exact_takes_pixels
    for image, shape in zip(found.images, found.shapes, strict=True):
        pixels = torch.tensor([200, 0, 0], dtype=torch.uint8).expand(1, *shape, 3)
        want = pixels if exact_takes_pixels else found.exact.preprocessing.apply(pixels).to(dtype)
        torch.testing.assert_close(image, want)
    with pytest.raises(UserError, match='--dynamic makes one for any'):
        request('--shape', '64', '32', '--shape', '32', '48')
    with pytest.raises(UserError, match='1 x 64 is smaller than'):
        request('--dynamic', '--shape', '64', '32', '--shape', '1', '64')
    with pytest.raises(UserError, match=r'must end in \.onnx'):
        request(out='a.pt2')


@pytest.mark.parametrize(
    ('errors', 'worst'),
    [((0.0, 9e-3), None), ((2e-2, 0.0), '2.0e-02'), ((0.0, 3e-2), '3.0e-02'), ((math.nan, 0.0), 'nan')],
    ids=str,
)
def test_a_file_that_differs_at_any_size_is_not_to_be_used(
    errors: tuple[float, ...], worst: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    network = ExportedNetwork(nn.Conv2d(1, 1, 1), ('logits', 'labels'), 'detection', Preprocessing([0.0], [1.0]), 1)
    network.network.forward = lambda image: (image,)
    shapes, run_of = [(2, 3), (4, 5)], {}
    images = [torch.ones(1, 1, *shape) for shape in shapes]
    for image, error in zip(images, errors, strict=True):
        run_of[image.shape] = error
    (tmp_path / 'a.onnx').write_bytes(bytes(2**20))
    (tmp_path / 'a.onnx.data').write_bytes(bytes(2**21))  # where large weights are
    request, path = Request(network, network, images, shapes, 1e-2), tmp_path / 'a.onnx'

    def report() -> None:
        request.report(lambda image: [image * (1 + run_of[image.shape])], path, 'a runtime', 'format 7')

    if worst:
        with pytest.raises(UserError, match=f"differs by {worst} of the largest output: do not use '{path}'"):
            report()
    else:
        report()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f'{path}: format 7, 3.0 MB, outputs logits, labels'
    starts = [f'  {h} x {w}: differs by {e:.1e} of' for (h, w), e in zip(shapes, errors, strict=True)]
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True, True], lines


@pytest.mark.parametrize('swap', [True, False])
@pytest.mark.parametrize('toolbox', ['mmengine', 'mmpretrain'])
def test_pixels_become_what_the_recipe_makes_of_them(toolbox: str, swap: bool) -> None:
    """Ours are red, green, blue; those of the recipe as OpenCV reads them."""
    numbers = dict(mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0])
    if toolbox == 'mmengine':
        preprocessor: Any = ImgDataPreprocessor(**numbers, bgr_to_rgb=swap)
        cfg = Config(dict(model=dict(data_preprocessor=dict(**numbers, bgr_to_rgb=swap))))
    else:  # which calls the option otherwise, and has it beside the model
        preprocessor = pytest.importorskip('mmpretrain.models').ClsDataPreprocessor(**numbers, to_rgb=swap)
        cfg = Config(dict(model={}, data_preprocessor=dict(**numbers, to_rgb=swap)))
    elsewhere = dict(mean=[0.0] * 3, std=[1.0] * 3)  # the model's own comes first
    if toolbox == 'mmengine':
        cfg.data_preprocessor = elsewhere
    pixels = torch.randint(256, (1, 5, 6, 3), dtype=torch.uint8)
    read = pixels.flip(-1).permute(0, 3, 1, 2)
    want = preprocessor(dict(inputs=[read[0]]))['inputs']
    torch.testing.assert_close(Preprocessing.of(cfg).apply(pixels), want)


@pytest.mark.scope('mmseg')
@pytest.mark.parametrize(('classes', 'outputs', 'align'), [(2, 1, False), (2, 2, False), (3, 3, False), (3, 3, True)])
def test_logits_and_labels_are_the_toolboxs(classes: int, outputs: int, align: bool) -> None:
    """Two classes by one logit, too, whose threshold is not a half."""
    cfg = Config.fromfile(CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py')
    cfg.model.backbone.norm_cfg = cfg.model.decode_head.norm_cfg = dict(type='BN')
    cfg.model.decode_head.update(num_classes=classes, align_corners=align, loss_decode=dict(type='CrossEntropyLoss'))
    if outputs == 1:
        cfg.model.decode_head.update(out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
    model: Any = MODELS.build(cfg.model).eval()
    model.dataset_meta = {}
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits, labels = ExportedNetwork.of(cfg, model).network(image)
        (want,) = model.predict(image)
    assert torch.equal(labels, want.pred_sem_seg.data)
    torch.testing.assert_close(logits if outputs > 1 else logits.sigmoid(), want.seg_logits.data[None])
    assert outputs > 1 or labels.sum() > (logits > 0).sum()


@pytest.mark.parametrize('wrong', ['logits', 'labels', 'no number', ''])
def test_the_worst_output_counts(wrong: str) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return image * self.scale, image.argmax(1), image * self.scale

    network = ExportedNetwork(Network(), ('logits', 'labels', 'more'), 'segmentation', Preprocessing(), 1)
    image = torch.eye(4)[None, :, :, None]

    def run(given: Any) -> list[Any]:
        logits, labels = given.copy(), given.argmax(1)
        logits[0, 0, 0] += 0.25 * (wrong == 'logits')
        labels[0, 0] += wrong == 'labels'
        return [logits, labels, given * (math.nan if wrong == 'no number' else 1)]

    found = compare(run, network, image)
    assert found.difference == pytest.approx({'logits': 0.25, 'no number': math.nan}.get(wrong, 0), nan_ok=True)
    assert found.same_labels == (0.75 if wrong == 'labels' else 1)


def test_best_classes_are_compared() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return (image.flatten(1) * self.scale,)

    network = ExportedNetwork(Network(), ('logits',), 'classification', Preprocessing(), 1)
    image = torch.tensor([[1.0, 3.0, 2.0], [2.0, 0.0, 1.0], [0.0, 4.0, 1.0]])[..., None, None]

    def run(given: Any) -> list[Any]:
        logits = given.reshape(3, 3).copy()
        logits[0] = logits[0, [0, 2, 1]]
        return [logits]

    found = compare(run, network, image)
    assert found.difference == 1 / 4
    assert found.same_labels == pytest.approx(2 / 3)
