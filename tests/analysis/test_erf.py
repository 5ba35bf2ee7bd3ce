"""Networks of any toolbox, loaded and prepared as training starts, and their contribution scores on photographs."""

import copy
import socket
import textwrap
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmpelk.analysis import receptive_field
from mmpelk.analysis.erf import (
    RANDOM,
    Measured,
    draw_fields,
    estimate_norms,
    load_model,
    measure,
    preprocessed,
    ratio_table,
    read_images,
    save_with_palette,
    set_layer_scales,
)
from mmpelk.analysis.receptive_field import contribution_scores
from tests.paths import CONFIGS

NANO = CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py'


def nano(checkpoint: object = RANDOM, seed: int = 0, **changes: Any) -> Any:
    """The demo's network with changes of its backbone."""
    cfg = Config.fromfile(NANO)
    cfg.model.backbone.update(changes)
    return load_model(cfg, str(checkpoint), seed)


def test_images_are_spread_over_the_folders(tmp_path: Path) -> None:
    for folder in 'bca':  # whichever way a file system lists them
        (tmp_path / folder).mkdir()
        for index in range(4):
            assert cv2.imwrite(str(tmp_path / folder / f'{index}.PNG'), np.zeros((8, 9, 3), np.uint8))
    images = read_images([tmp_path], 3, 32)
    assert [Path(name).parent.name for name in images] == ['a', 'b', 'c']
    assert {picture.shape for picture in images.values()} == {(32, 32, 3)}
    assert len(read_images([tmp_path], 50, 32)) == 12


def test_images_are_stretched_by_cubic_interpolation(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'x.png'), picture)
    (found,) = read_images([tmp_path], 1, 16).values()
    np.testing.assert_array_equal(found, cv2.resize(picture, (16, 16), interpolation=cv2.INTER_CUBIC))


def test_images_are_checked(photos: Path, tmp_path: Path) -> None:
    (tmp_path / 'broken.png').write_bytes(b'no image')
    (tmp_path / 'empty.png').touch()
    cv2.imwrite(str(tmp_path / 'dim.png'), np.full((8, 8, 3), 900, np.uint16))
    for path, count, message in (
        (photos / 'notes.txt', 1, 'no image in'),
        (photos / '0.png', 0, 'at least 1'),
        (tmp_path / 'broken.png', 1, 'cannot be read as an image'),
        (tmp_path / 'empty.png', 1, 'cannot be read as an image'),
        (tmp_path / 'dim.png', 1, '16 bits'),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            read_images([path], count, 32)
    with pytest.raises(ValueError, match='their size are at least 1, got 1 and 0'):
        read_images([photos / '0.png'], 1, 0)


def test_checkpoint_of_the_same_model_alone(tmp_path: Path) -> None:
    trained, file = nano(seed=7), tmp_path / 'nano.pth'
    torch.save(dict(state_dict=trained.state_dict()), file)
    loaded = nano(file)
    for name, value in trained.backbone.state_dict().items():
        assert torch.equal(loaded.backbone.state_dict()[name], value), name
    with pytest.raises(ValueError, match='does not fit this backbone'):
        nano(file, kernel_sizes=(21, 19))
    torch.save(trained.backbone.state_dict(), file)  # of the backbone alone
    assert torch.equal(
        nano(file).backbone.downsample_layers[0][0].weight, trained.backbone.downsample_layers[0][0].weight
    )


def test_weights_that_a_config_names_are_left_out_and_its_other_initialisers_kept() -> None:
    stem = dict(type='Constant', layer='Conv2d', val=0.25)
    named = [dict(type=kind, checkpoint='absent.pth') for kind in ('Pretrained', 'mmpelk.Inflated')]
    cfg = Config.fromfile(NANO)
    cfg.model.backbone.init_cfg = [stem, *named]
    # In lists, too; the loss would refuse what it does not know.
    cfg.model.decode_head.loss_decode = [cfg.model.decode_head.loss_decode | dict(init_cfg=named[0])]
    given = copy.deepcopy(cfg.to_dict())
    assert (load_model(cfg, RANDOM).backbone.downsample_layers[0][0].weight == 0.25).all()
    assert cfg.to_dict() == given
    assert (nano(init_cfg=stem).backbone.downsample_layers[0][0].weight == 0.25).all()
    assert nano(init_cfg=named[1]).backbone.downsample_layers[0][0].weight.std() > 0


def test_random_networks_start_as_training_does(photos: Path) -> None:
    model, again = (nano(seed=3, layer_scale_init_value=1e-6) for _ in range(2))
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values())), 'seeded'
    assert set_layer_scales(model.backbone, 1.0) == 2
    assert (model.backbone.stages[0][0].gamma == 1).all()
    pictures = list(read_images([photos], 2, 32).values())
    norm = model.backbone.stages[0][0].mixer.small_norm
    norm.running_mean.fill_(7), norm.num_batches_tracked.fill_(1000)  # as a checkpoint's
    norm.momentum = 0.25
    modes: list[bool] = []
    handle = model.backbone.stages[0][0].register_forward_pre_hook(lambda module, _: modes.append(module.training))
    assert estimate_norms(model, pictures) == 4
    handle.remove()
    assert modes == [False, False], 'with no paths dropped'
    assert norm.momentum == 0.25
    assert not any(module.training for module in model.modules())
    kept: list[Tensor] = []
    norm.register_forward_hook(lambda _module, args, _output: kept.append(args[0]))
    for pixels in preprocessed(model, pictures):
        model.backbone(pixels)
    mean = torch.stack([x.mean((0, 2, 3)) for x in kept]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)


@pytest.mark.parametrize('count', [1, 10_000])
def test_logarithms_are_of_the_mean_over_the_images(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small scores, which are in proportion to their logarithms; those of all images together would not be."""
    model = nn.ModuleDict(dict(backbone=nn.Conv2d(3, 3, 1)))
    model.backbone = model['backbone']
    scores = np.zeros((41, 41))
    scores[20, 20], scores[10, 20] = 0.0999, 0.0009
    monkeypatch.setattr(receptive_field, 'contribution_scores', lambda model, images: count * scores)
    facts = measure(model, [np.zeros((41, 41, 3), np.uint8)] * count, {}).facts
    assert [ratio['side'] for ratio in facts['area_ratios_log']] == [1, 1, 1, 1]
    assert [facts[name] for name in ('images', 'total', 'largest', 'theoretical_size')] == [
        *(count, pytest.approx(0.1008 * count), pytest.approx(0.0999 * count), None)
    ]
    scores *= 10_000  # 999 and 9, whose logarithms are 3/4 and 1/4 of their sum
    facts = measure(model, [np.zeros((41, 41, 3), np.uint8)] * count, {}).facts
    assert [[ratio['side'] for ratio in facts[key]] for key in ('area_ratios', 'area_ratios_log')] == [
        [1, 1, 1, 1],
        [1, 1, 1, 21],
    ]


def test_figure_and_table_show_the_squares_that_were_measured() -> None:
    scores = np.full((41, 61), 0.5)
    scores[20, 30] = 100.0
    squares = zip(receptive_field.THRESHOLDS, (1, 3, 21, 61), (0.001, 0.0015, 0.25, 1.0), strict=True)
    ratios = [dict(threshold=threshold, side=side, area_ratio=area) for threshold, side, area in squares]
    facts = dict(name='net', weights='random weights', images=7, theoretical_size=99, area_ratios=ratios)
    facts['area_ratios_log'] = [ratio | dict(side=ratio['side'] + 2) for ratio in ratios]
    figure = draw_fields([Measured(scores, facts)])
    panel = figure.axes[0]
    boxes = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in panel.patches]
    # Around the pixel in the middle, whose own edges are at 30 and 31, 20 and 21; to the border.
    assert boxes == [(30, 20, 1, 1), (29, 19, 3, 3), (20, 10, 21, 21), (0, 0, 61, 41)]
    assert [patch.get_linestyle() for patch in panel.patches] == ['-', '--', ':', '-.']
    np.testing.assert_allclose(panel.images[0].get_array(), scores / scores.mean())
    assert tuple(panel.images[0].get_extent()) == (0, 61, 41, 0)
    flatter = np.full((41, 61), 0.5)
    flatter[20, 30] = 1.0
    for shown in draw_fields([Measured(each, facts) for each in (flatter, scores, flatter)]).axes[:3]:
        assert shown.images[0].norm.vmax == pytest.approx((scores / scores.mean()).max()), 'one scale'
    assert panel.get_title() == 'net\nrandom weights'
    assert panel.get_xlabel() == 'pixels\nareas 0.1 / 0.1 / 25.0 / 100.0 %'
    assert figure.get_suptitle() == 'Effective receptive field at 61 x 41 pixels, images: 7'
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['20 %', '30 %', '50 %', '99 %']
    table = ratio_table(
        [facts, facts | dict(theoretical_size=None)], lambda text: f'<{text}>', lambda text: f'({text})'
    )
    assert table.columns == ['network', 'theoretical field [px]', 'scores', '20 %', '30 %', '50 %', '99 %']
    assert [row[:3] for row in table.rows] == [
        ('net', '<99>', 'as they are'), ('', '', 'log10(s + 1)'), ('net', '-', 'as they are'), ('', '', 'log10(s + 1)')
    ]  # fmt: skip
    shown = [f'({side} px, {area} %)' for side, area in ((1, 0.1), (3, 0.1), (21, 25.0), (61, 100.0))]
    assert table.rows[0][3:] == tuple(shown)
    assert table.rows[1][5] == '(23 px, 25.0 %)'
    assert ratio_table([facts], logarithms=False).rows == [('net', '99', *(cell.strip('()') for cell in shown))]


def test_panel_of_a_large_map_shows_means_of_blocks() -> None:
    scores = np.zeros((130, 300))  # blocks of 3 x 3, of which the last row and column are cut off
    scores[:3, :6] = np.arange(18).reshape(3, 6)
    facts = dict(name='net', weights='', images=1, area_ratios=[])
    (panel, _) = draw_fields([Measured(scores, facts)]).axes
    shown = np.asarray(panel.images[0].get_array())
    assert shown.shape == (43, 100)
    np.testing.assert_allclose(shown[0, :2], np.array([7.0, 10.0]) / scores.mean())
    assert (shown[1:] == 1e-2).all(), 'the darkest colour, of zero, too'
    assert tuple(panel.images[0].get_extent()) == (0, 300, 130, 0)
    for count, (rows, columns) in {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (2, 2), 5: (2, 3)}.items():
        *panels, _ = draw_fields([Measured(scores, facts)] * count).axes
        assert panels[0].get_subplotspec().get_gridspec().get_geometry() == (rows, columns)  # type: ignore[union-attr]
        assert [axes.axison for axes in panels] == [True] * count + [False] * (rows * columns - count)


@pytest.mark.parametrize('suffix', ['png', 'pdf'])
def test_figure_is_written_in_the_format_of_its_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / 'new' / f'figure.{suffix}'
    save_with_palette(Figure(figsize=(1, 1)), path)
    if suffix == 'png':
        with PIL.Image.open(path) as picture:
            assert picture.mode == 'P'
    else:
        assert path.read_bytes().startswith(b'%PDF')


def test_pictures_of_other_channels_are_refused(photos: Path) -> None:
    pictures = list(read_images([photos], 1, 32).values())
    with pytest.raises(ValueError, match='takes 4 channels and these pictures have 3'):
        next(preprocessed(nano(in_channels=4), pictures))


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
            backbone=dict(type='ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[4, 6, 8, 10]), init_cfg=weights),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=10),
        )
        """,
        5,
        0,
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
def test_toolboxes_own_networks(toolbox: str, photos: Path, tmp_path: Path, loaded: list[str]) -> None:
    package = Path(pytest.importorskip(toolbox).__file__).parent
    text, scales, norms = TOOLBOXES[toolbox]
    (tmp_path / 'foreign.py').write_text(textwrap.dedent(text).replace(toolbox.upper(), str(package)))
    model = load_model(Config.fromfile(tmp_path / 'foreign.py'), RANDOM)
    assert type(model).__module__.split('.')[0] == type(model.backbone).__module__.split('.')[0] == toolbox
    assert not any(module.training for module in model.modules())
    assert set_layer_scales(model.backbone, 1.0) == scales
    pictures = list(read_images([photos], 2, 64).values())
    assert estimate_norms(model, pictures) == norms
    inputs = list(preprocessed(model, pictures))
    assert [pixels.shape for pixels in inputs] == [(1, 3, 64, 64)] * 2
    # BGR of the file to normalised RGB, by the statistics of this model's preprocessor.
    mean, std = (getattr(model.data_preprocessor, name).flatten() for name in ('mean', 'std'))
    rgb = torch.from_numpy(pictures[0][..., ::-1].copy()).permute(2, 0, 1)
    torch.testing.assert_close(inputs[0][0], (rgb - mean[:, None, None]) / std[:, None, None])
    assert mean[0] == (100 if toolbox == 'mmpretrain' else 123.675)
    scores = contribution_scores(model, inputs)
    assert scores.shape == (64, 64)
    assert 0 <= scores.min() < scores.max() < np.inf
    assert loaded == []
