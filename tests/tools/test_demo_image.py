"""``tools/demo_image.py`` for both tasks, with checkpoints and with an ONNX file."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import save_checkpoint

from mmpelk.errors import UserError
from tests.commands import call
from tests.paths import CONFIGS, TOOLS
from tools import demo_image
from tools.demo_image import find_color_type, load_model

TASKS = {'mmdet': 'mask_rcnn_pelk_nano_synthetic.py', 'mmseg': 'upernet_pelk_nano_synthetic.py'}
PALETTE = [(20 * index, index, index) for index in range(11)]


def write_image(path: Path, size: tuple[int, int] = (64, 96)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
    return path


@pytest.fixture(scope='module', params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options with a demo's config and a checkpoint of it, random but whole."""
    pytest.importorskip(request.param)
    config = CONFIGS / 'demo' / TASKS[request.param]
    init_default_scope(request.param)
    model = MODELS.build(Config.fromfile(config).model)
    model.init_weights()
    checkpoint = tmp_path_factory.mktemp(request.param) / 'model.pth'
    meta = dict(dataset_meta=dict(classes=[f'class {index}' for index in range(11)], palette=PALETTE))
    save_checkpoint(dict(state_dict=model.state_dict(), meta=meta), str(checkpoint))
    return ['--config', config, '--checkpoint', checkpoint, '--device', 'cpu']


@pytest.mark.slow
def test_files_and_folders_are_drawn_in_their_own_size(trained: list[object], tmp_path: Path) -> None:
    single = write_image(tmp_path / 'one.png')
    nested = write_image(tmp_path / 'folder' / 'deeper' / 'two.jpg', (70, 50))
    (tmp_path / 'folder' / 'notes.txt').write_text('no image')
    (tmp_path / 'folder' / 'broken.jpg').write_bytes(b'no image either')
    output = call(
        *(TOOLS / 'demo_image.py', tmp_path / 'folder', single, *trained),
        # A score threshold of 0 draws the boxes of a random network.
        *('--out', tmp_path / 'out', '--score-thr', 0),
        cwd=tmp_path,
        code=1,  # for the broken image
    )
    assert '2 drawings' in output
    assert "broken.jpg' is not readable as an image" in output
    for source, drawing in ((single, 'one.png'), (nested, 'deeper/two.jpg')):
        drawn = cv2.imread(str(tmp_path / 'out' / drawing))
        assert drawn.shape == cv2.imread(str(source)).shape
        assert not np.array_equal(drawn, cv2.imread(str(source)))
    assert not (tmp_path / 'out' / 'broken.jpg').exists()


def test_other_toolboxes_are_refused() -> None:
    with pytest.raises(ValueError, match="'mmseg', 'mmdet' or 'mmpretrain'"):
        load_model(Config(dict(default_scope='mmpose')), 'model.pth', 'cpu')


@pytest.mark.slow
def test_video_becomes_a_video(trained: list[object], tmp_path: Path) -> None:
    video = tmp_path / 'street.avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*'MJPG'), 10, (96, 64))
    for index in range(5):
        writer.write(np.full((64, 96, 3), 40 * index, np.uint8))
    writer.release()
    assert '1 drawings' in call(TOOLS / 'demo_image.py', video, *trained, '--out', tmp_path / 'out', cwd=tmp_path)
    drawn = cv2.VideoCapture(str(tmp_path / 'out' / 'street.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == 10
    frames = []
    while (frame := drawn.read()[1]) is not None:
        frames.append(frame)
    assert len(frames) == 5
    assert frames[0].shape == (64, 96, 3)


@pytest.mark.slow  # an export takes seconds
def test_onnx_file_draws_as_its_checkpoint(trained: list[object], tmp_path: Path) -> None:
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name, reason='pip install -e .[export]')
    _, recipe, _, checkpoint, *_ = trained
    if 'mask_rcnn' in str(recipe):
        pytest.skip("a detector's file has no boxes")
    image = write_image(tmp_path / 'photo.png')
    call(TOOLS / 'export_onnx.py', recipe, checkpoint, 'model.onnx', '--shape', 64, 96, cwd=tmp_path)
    tool, options = TOOLS / 'demo_image.py', ['--opacity', 1]
    call(tool, image, '--checkpoint', 'model.onnx', '--out', 'onnx', *options, cwd=tmp_path)
    call(tool, image, *trained, '--out', 'pth', *options, cwd=tmp_path)
    drawn, want = (cv2.imread(str(tmp_path / folder / 'photo.png')) for folder in ('onnx', 'pth'))
    assert {tuple(colour) for colour in np.unique(drawn[..., ::-1].reshape(-1, 3), axis=0)} <= set(PALETTE)
    # mmseg writes the classes' names into its drawing.
    assert (drawn == want).all(-1).mean() > 0.7


@pytest.mark.parametrize('device', ['cuda:7', None])
@pytest.mark.parametrize(('scope', 'options'), [('mmdet', dict(pred_score_thr=0.7)), ('mmseg', {}), ('mmpretrain', {})])
def test_options_reach_the_drawing(
    scope: str, options: dict[str, float], device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    blue: np.ndarray = np.zeros((4, 4, 3), np.uint8)
    blue[..., 0] = 255
    visualizer = mock.Mock(**{'get_image.return_value': blue[..., ::-1]})
    monkeypatch.setattr(demo_image, 'get_device', lambda: 'cpu')
    checks = mock.Mock()
    for name in ('check_operators', 'check_checkpoint'):
        monkeypatch.setattr(demo_image, name, getattr(checks, name))
    cfg = Config(dict(default_scope=scope, visualizer=dict(type='Visualizer')))
    monkeypatch.setattr(demo_image, 'read_config', lambda path: cfg)
    load, build = mock.Mock(return_value=(mock.Mock(), mock.Mock())), mock.Mock(return_value=visualizer)
    monkeypatch.setattr(demo_image, 'load_model', load)
    monkeypatch.setattr(demo_image.VISUALIZERS, 'build', build)
    classes, maps = torch.arange(6).view(1, 2, 3), []
    load.return_value[1].return_value.pred_sem_seg.data = classes
    args = argparse.Namespace(
        checkpoint='m.pth', config='c.py', label_maps=scope == 'mmseg', device=device, score_thr=0.7, opacity=0.25
    )
    painted = demo_image.make_painter(args, maps)(blue)
    assert np.array_equal(maps, classes if scope == 'mmseg' else [])
    assert checks.mock_calls == [mock.call.check_operators(cfg), mock.call.check_checkpoint('m.pth')]
    load.assert_called_once_with(cfg, 'm.pth', device or 'cpu')
    # It writes nothing itself.
    build.assert_called_once_with(dict(name='drawings', type='Visualizer', vis_backends=None, _scope_=scope))
    draw = visualizer.visualize_cls if scope == 'mmpretrain' else visualizer.add_datasample
    assert draw.call_args.kwargs == dict(draw_gt=False) | options
    # Files are BGR, which networks take; toolboxes paint RGB.
    model, predict = load.return_value
    predict.assert_called_once_with(model, blue)
    (shown,) = (value for value in draw.call_args.args if isinstance(value, np.ndarray))
    assert np.array_equal(shown, blue[..., ::-1])
    assert np.array_equal(painted, blue)
    assert scope != 'mmseg' or visualizer.alpha == 0.25


@pytest.mark.parametrize(
    ('scope', 'checkpoint', 'message'),
    [
        ('mmdet', 'm.pth', "this config is no segmentor's"),
        ('mmpretrain', 'm.pth', "this config is no segmentor's"),
        ('mmseg', 'm.onnx', 'needs --config and the checkpoint'),
    ],
)
def test_label_maps_of_what_makes_none(
    scope: str, checkpoint: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_image, 'read_config', lambda path: Config(dict(default_scope=scope)))
    config = 'c.py' if checkpoint == 'm.pth' else None
    args = argparse.Namespace(checkpoint=checkpoint, config=config, label_maps=True, opacity=0.25)
    with pytest.raises(UserError, match=message):
        demo_image.make_painter(args, [])


def test_an_onnx_file_is_drawn_as_thickly_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = mock.Mock()
    monkeypatch.setattr('mmpelk.export.onnx_painter.OnnxPainter', painter)
    args = argparse.Namespace(checkpoint='m.onnx', config=None, label_maps=False, opacity=0.25)
    assert demo_image.make_painter(args, []) is painter.return_value
    painter.assert_called_once_with(Path('m.onnx'), 0.25)


LOADERS = dict(mmseg='init_model', mmdet='init_detector', mmpretrain='ImageClassificationInferencer')


@pytest.mark.parametrize('scope', LOADERS)
def test_toolboxes_load_the_checkpoint_where_it_is_to_run(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apis, cfg, load = pytest.importorskip(f'{scope}.apis'), Config(dict(default_scope=scope)), mock.MagicMock()
    monkeypatch.setattr(apis, LOADERS[scope], load)
    model, predict = load_model(cfg, 'm.pth', 'cuda:7')
    assert 'cuda:7' in (*load.call_args.args, load.call_args.kwargs.get('device'))
    assert 'm.pth' in (*load.call_args.args, load.call_args.kwargs.get('pretrained'))
    assert load.call_args.args[0] is cfg
    if scope != 'mmpretrain':
        assert model is load.return_value
        return
    inferencer = load.return_value
    inferencer.preprocess.return_value = iter(['data'])
    assert model is inferencer.model
    assert model.dataset_meta == dict(classes=inferencer.classes)
    assert predict(model, 'image') is inferencer.forward.return_value[0]
    inferencer.preprocess.assert_called_once_with(['image'])
    inferencer.forward.assert_called_once_with('data')


@pytest.mark.parametrize(('is_video', 'written'), [
    (False, ['a.png.labels.png']), (True, ['a.png.000000.labels.png', 'a.png.000001.labels.png']),
])  # fmt: skip
def test_label_maps_stand_beside_their_pictures(is_video: bool, written: list[str], tmp_path: Path) -> None:
    label_maps: list[np.ndarray] = []

    def draw(paint: object, color_type: str) -> Iterator[None]:
        for index in range(len(written)):
            label_maps.append(np.full((2, 3), 7 + index))
            yield

    drawing: Any = SimpleNamespace(is_video=is_video, frames=lambda: len(written), draw=draw, target=tmp_path / 'a.png')
    assert demo_image.draw_all([drawing], mock.Mock(), label_maps) == []
    found = {path.name: np.unique(cv2.imread(str(path), -1)).tolist() for path in tmp_path.iterdir()}
    assert found == {name: [7 + index] for index, name in enumerate(written)}


def test_config_is_wanted_with_a_checkpoint(tmp_path: Path) -> None:
    printed = call(TOOLS / 'demo_image.py', tmp_path, '--checkpoint', 'model.pth', cwd=tmp_path, code=2)
    assert '--config, except with an .onnx file' in printed


@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
def test_pictures_are_read_as_the_config_reads_them(color_type: str) -> None:
    for library in ('', 'mmcv.'):
        pipeline = [dict(type=f'{library}LoadImageFromFile', color_type=color_type), dict(type='PackSegInputs')]
        assert find_color_type(Config(dict(test_pipeline=pipeline))) == color_type
    assert find_color_type(Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))) == color_type
    assert find_color_type(Config(dict(model=dict()))) == 'color'


@pytest.mark.parametrize('problems', [[], ['odd']], ids=str)
@pytest.mark.parametrize(('checkpoint', 'color_type'), [('m.pth', 'color_ignore_orientation'), ('m.onnx', 'color')])
def test_command(
    checkpoint: str,
    color_type: str,
    problems: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    step = dict(type='LoadImageFromFile', color_type='color_ignore_orientation')
    monkeypatch.setattr(demo_image, 'read_config', lambda path: Config(dict(test_pipeline=[step])))
    monkeypatch.setattr(demo_image, 'find_drawings', lambda images, out: [*images, out])
    monkeypatch.setattr(demo_image, 'make_painter', lambda args, label_maps: args.checkpoint)
    monkeypatch.setattr(demo_image, 'draw_all', draw := mock.Mock(return_value=problems))
    config = ['--config', 'c.py'] if checkpoint == 'm.pth' else []
    monkeypatch.setattr(sys, 'argv', ['demo_image.py', 'a.png', '--checkpoint', checkpoint, *config, '--out', 'out'])
    with pytest.raises(SystemExit, match='1') if problems else nullcontext():
        demo_image.main()
    draw.assert_called_once_with([Path('a.png'), Path('out')], checkpoint, [], color_type)
    printed = capsys.readouterr()
    assert printed.out == f"{2 - len(problems)} drawings in 'out'\n"
    assert printed.err == 'error: odd\n' * len(problems)
