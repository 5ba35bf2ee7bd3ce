"""The picture of a training: drawn from every task's validation, resumed, and harmless when it fails."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.logging import MessageHub
from PIL import Image

from mmpelk.engine import ProgressPictureHook, progress_picture


class Painter:
    """Stands in for the toolboxes' visualizers."""

    def add_datasample(self, name: str, image: np.ndarray, out_file: str, **_: Any) -> None:
        Image.fromarray(np.concatenate([image, image], axis=1)).save(out_file)


class Runner(SimpleNamespace):
    """What the hook asks of mmengine's runner."""

    def __init__(self, folder: Path, batches: int = 9) -> None:
        hub = MessageHub('progress')
        for index in range(1000):
            hub.update_scalar('train/loss', 1000.0 - index)
        warnings: list[str] = []
        super().__init__(
            work_dir=str(folder), message_hub=hub, val_dataloader=range(batches), iter=1000, warnings=warnings,
            experiment_name='tiny', visualizer=Painter(), logger=SimpleNamespace(warning=warnings.append),
        )  # fmt: skip


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / 'cat.png'
    Image.fromarray(np.zeros((600, 900, 3), np.uint8)).save(path)
    return path


def validate(hook: ProgressPictureHook, runner: Runner, image: Path, **metrics: float) -> list[int]:
    """Run a validation; which batches were painted."""
    painted = []
    with mock.patch.object(progress_picture, '_paint', wraps=progress_picture._paint) as paint:
        hook.before_val_epoch(runner)
        for batch in range(len(runner.val_dataloader)):
            before = paint.call_count
            hook.after_val_iter(runner, batch, outputs=[SimpleNamespace(img_path=str(image))])
            painted += [batch] * (paint.call_count > before)
        hook.after_val_epoch(runner, metrics)
    return painted


def test_it_is_written_after_a_validation(image: Path, tmp_path: Path) -> None:
    runner, hook = Runner(tmp_path), ProgressPictureHook()
    odd = dict(mIoU_50=1.0, nothing=float('nan'), endless=float('inf'), name='text')
    kinds = dict(count=3, half=np.float32(0.5), AP_small=0.25)
    assert validate(hook, runner, image, mIoU=40.0, **odd, **kinds) == [1, 3, 5, 7]  # type: ignore[arg-type]
    assert not runner.warnings
    with Image.open(tmp_path / 'progress.png') as picture:
        assert picture.size[0] == 1200
        assert picture.size[1] > 600  # curves, and a row of images
        assert len(picture.convert('RGB').getcolors(1 << 20)) > 10
    assert runner.message_hub.get_info('progress_metrics') == [
        [1000, dict(mIoU=40.0, count=3, half=0.5, AP_small=0.25)]
    ]
    assert not list(tmp_path.glob('.progress*'))


@pytest.mark.parametrize('channels', [1, 2, 3, 6])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.float32])
def test_a_file_that_is_no_picture(channels: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Such as of a sensor: what the network gets is shown, in the size of the labels."""
    np.save(tmp_path / 'scene.npy', np.zeros((40, 30, channels)))
    runner, hook = Runner(tmp_path, batches=1), ProgressPictureHook()
    hook.before_val_epoch(runner)
    pixels = torch.arange(channels * 20 * 15).remainder(97).reshape(channels, 20, 15).to(dtype)
    sample = SimpleNamespace(img_path=str(tmp_path / 'scene.npy'), ori_shape=(40, 30))
    hook.after_val_iter(runner, 0, dict(inputs=[pixels]), [sample])
    with mock.patch.object(progress_picture, '_figure', return_value=b''):  # it takes a second
        hook.after_val_epoch(runner, {})
    assert not runner.warnings
    (painted,) = hook._painted.values()
    assert painted.shape == (40, 2 * 30, 3)
    assert painted.min() < 5  # resized
    assert painted.max() > 250


@pytest.mark.parametrize('channels', [1, 2, 3, 6])
def test_what_a_picture_shows(channels: int, tmp_path: Path) -> None:
    """A file's colours in their order, or the first three channels of other data, each from dark to bright."""
    pixels: np.ndarray = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    sample = SimpleNamespace(ori_shape=(5, 7))
    np.testing.assert_array_equal(progress_picture._picture(str(tmp_path / 'a.png'), None, sample), pixels)
    given = torch.randn(channels, 5, 7, generator=torch.Generator().manual_seed(0))
    given[0] = 3.0  # of one value, which is dark
    shown = progress_picture._picture('scene.npy', dict(inputs=[given]), sample)
    for colour in range(3):
        values = given[colour % min(channels, 3)].numpy()
        expected = (values - values.min()) * (255 / (np.ptp(values) or 1))
        np.testing.assert_allclose(shown[..., colour], expected, atol=0.51)


def test_a_resumed_training_has_the_whole_curve(image: Path, tmp_path: Path) -> None:
    first = Runner(tmp_path)
    validate(ProgressPictureHook(), first, image, mIoU=40.0)
    second = Runner(tmp_path)
    second.message_hub.load_state_dict(first.message_hub.state_dict())
    second.iter = 1200
    for name in ('train/aux.loss_ce', 'train/lr', 'val/loss'):
        second.message_hub.update_scalar(name, 1.0)
    with mock.patch.object(progress_picture, '_figure', return_value=b'') as figure:
        validate(ProgressPictureHook(), second, image, mIoU=50.0)
    _, iteration, losses, metrics, _ = figure.call_args.args
    assert iteration == 1200
    assert losses.keys() == {'loss', 'aux.loss_ce'}
    assert losses['loss'].tolist() == [1000.0 - index for index in range(1000)]
    assert metrics == [[1000, {'mIoU': 40.0}], [1200, {'mIoU': 50.0}]]


def test_its_failure_is_logged_once_and_stops_nothing(image: Path, tmp_path: Path) -> None:
    runner, hook = Runner(tmp_path / 'not there'), ProgressPictureHook()
    validate(hook, runner, image, mIoU=40.0)
    validate(hook, runner, image, mIoU=40.0)
    hook.after_train(runner)
    assert len(runner.warnings) == 1
    assert 'no more pictures of the progress: FileNotFoundError' in runner.warnings[0]


def test_only_rank_0_draws_and_between_validations_when_the_last_picture_is_old(image: Path, tmp_path: Path) -> None:
    with mock.patch.object(progress_picture, 'is_main_process', return_value=False):
        assert validate(ProgressPictureHook(), Runner(tmp_path), image, mIoU=40.0) == []
    runner, hook = Runner(tmp_path), ProgressPictureHook()
    hook.after_train_iter(runner, 0)
    assert not (tmp_path / 'progress.png').exists()
    hook._drawn -= 301
    (tmp_path / 'progress.png').write_bytes(b'before')
    with (
        open(tmp_path / 'progress.png', 'rb') as viewed,
        mock.patch.object(progress_picture, '_figure', return_value=b'') as figure,
    ):
        hook.after_train_iter(runner, 0)
        hook.after_train_iter(runner, 0)
        runner.iter += 1  # mmengine counts an iteration after its hooks
        hook.after_train(runner)
        assert viewed.read() == b'before', 'what is being looked at stays whole'
    assert [call.args[1] for call in figure.call_args_list] == [1001], 'the end draws nothing again'
    assert (tmp_path / 'progress.png').exists()


def test_long_curves_are_averaged() -> None:
    steps, means = progress_picture._averages(np.arange(1001.0), 2001)
    assert len(means) <= 400
    # Iterations 1001 to 2001 had the values 0 to 1000.
    np.testing.assert_allclose(steps - means, 1001)
    assert steps[-1] > 2000 - 3


def test_what_is_on_the_picture() -> None:
    losses = dict(aux=np.full(10, 3.0), loss=np.arange(10.0, 0.0, -1.0))
    metrics: list[list[Any]] = [[5, dict(mIoU=40.0)], [10, dict(mIoU=50.0, mAcc=60.0)]]
    figures: list[Figure] = []
    with mock.patch.object(Figure, 'savefig', lambda figure, *_, **__: figures.append(figure)):
        painted = {f'a/{name}.png': np.zeros((4, 6, 3), np.uint8) for name in ('cat', 'dog', 'fox')}
        progress_picture._figure('tiny', 12, losses, metrics, painted)
    training, validation, *pictures = figures[0].axes
    places = [each.get_subplotspec() for each in pictures]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(1, 0), (1, 1), (2, 0)]
    picture = pictures[0]
    assert figures[0].get_suptitle() == 'tiny, iteration 12'
    assert [line.get_label() for line in training.lines] == ['loss', 'aux']
    assert training.lines[0].get_xydata().tolist() == [[step + 2, 11 - step] for step in range(1, 11)]
    assert training.get_yscale() == 'log'
    assert {line.get_label(): line.get_xydata().tolist() for line in validation.lines} == {
        'mIoU: 50': [[5, 40], [10, 50]], 'mAcc: 60': [[10, 60]]
    }  # fmt: skip
    assert (picture.get_title(), picture.images[0].get_array().shape) == ('cat.png', (4, 6, 3))


@pytest.mark.parametrize(('height', 'width'), [(600, 900), (900, 300), (200, 300), (480, 480), (100, 1000)])
def test_paintings_have_their_picture_at_most_480_pixels_large(height: int, width: int, tmp_path: Path) -> None:
    """Of label and prediction side by side each; smaller ones stay as they are."""
    image: np.ndarray = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    painted = progress_picture._paint(Painter(), image, None)
    scale = min(1.0, 480 / max(height, width))
    assert painted.shape == (round(height * scale), 2 * round(width * scale), 3)
    if scale == 1:
        np.testing.assert_array_equal(painted, np.concatenate([image, image], axis=1))


@pytest.mark.parametrize(
    ('height', 'width', 'factor'), [(112, 400, 2.0), (400, 28, 8.0), (224, 300, 1.0), (300, 300, 1.0)]
)
def test_small_images_are_enlarged_where_a_class_is_written_on_them(height: int, width: int, factor: float) -> None:
    given: list[float] = []

    def visualize_cls(image: np.ndarray, sample: Any, rescale_factor: float, show: bool, out_file: str) -> None:
        given.append(rescale_factor)
        Image.fromarray(image).save(out_file)

    image: np.ndarray = np.zeros((height, width, 3), np.uint8)
    progress_picture._paint(SimpleNamespace(visualize_cls=visualize_cls), image, None)
    assert given == [factor]


def test_a_validation_shows_its_own_pictures(image: Path, tmp_path: Path) -> None:
    runner, hook = Runner(tmp_path), ProgressPictureHook()
    with mock.patch.object(progress_picture, '_figure', return_value=b'') as figure:
        for name in ('cat', 'dog'):
            validate(hook, runner, image.rename(image.with_stem(name)), mIoU=1.0)
            image = image.with_stem(name)
            assert [Path(path).stem for path in figure.call_args.args[4]] == [name]
