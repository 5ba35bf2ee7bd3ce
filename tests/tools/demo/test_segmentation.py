"""The demo's set: drawn as docs/demo.md says, out of a small kernel's sight, and scored as MMSegmentation scores."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS
from PIL import Image

from mmpelk.models.peripheral_conv import PeripheralConv2d
from tests.commands import load_tool
from tests.paths import CONFIGS, TOOLS

pytestmark = pytest.mark.scope('mmseg')

CONFIG = CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py'

maker = load_tool(TOOLS / 'demo' / 'make_segmentation_data.py')
plotter = load_tool(TOOLS / 'demo' / 'plot_segmentation.py')


@pytest.fixture(scope='module')
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """All nine pairs of walls, four times: pictures and labels."""
    drawn = [maker.draw_scene(0, 0, index) for index in range(36)]
    return [(np.asarray(picture), labels) for picture, labels in drawn]


def _points(labels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """(row, column) of the pixels of some classes."""
    return np.argwhere(np.isin(labels, [maker.CLASSES.index(name) + 1 for name in names]))


def _gap(point: np.ndarray, others: np.ndarray) -> int:
    """Distance along the longer axis from a pixel to the nearest of others."""
    return int(np.abs(others - point).max(-1).min())


def test_the_wall_that_decides_is_far_and_the_decoy_near(scenes: list) -> None:
    for _, labels in scenes:
        walls = {name: _points(labels, (name,)) for name in maker.WALLS}
        pixels = _points(labels, maker.TENTS)
        assert len(pixels) > 200
        upright = {0, maker.SIZE - 1} <= set(_points(labels, maker.WALLS)[:, 1].tolist())
        axis = 1 if upright else 0  # across the walls
        for point in pixels[:: len(pixels) // 40]:
            near_side = point[axis] < maker.SIZE / 2
            for name, wall in walls.items():
                near = wall[(wall[:, axis] < maker.SIZE / 2) == near_side]
                far = wall[(wall[:, axis] < maker.SIZE / 2) != near_side]
                if len(near):
                    assert np.abs(near[:, axis] - point[axis]).max() <= maker.WALL + maker.STRIP
                tent = maker.CLASSES[labels[tuple(point)] - 1]
                assert bool(len(far)) == (tent.removeprefix('tent_') == name.removeprefix('wall_'))
                if len(far):
                    assert _gap(point, far) >= maker.FAR


def test_walls_have_their_colours_and_the_decoy_tells_nothing(scenes: list) -> None:
    """Each of the nine pairs of walls comes equally often, so the colours of a tent's two walls are independent."""
    for picture, labels in scenes:
        for colour, expected in maker.WALL_COLOURS.items():
            inside = picture[labels == maker.CLASSES.index(f'wall_{colour}') + 1]
            if len(inside):
                # The light varies by 15 %, and the noise is cut off at black and at white.
                np.testing.assert_allclose(inside.mean(0), expected, atol=40)

    for names in (maker.WALLS, maker.TENTS):
        present = [tuple(name for name in names if len(_points(labels, (name,)))) for _, labels in scenes]
        # Equal walls come in three pairs, two different colours in two pairs each; every pair comes four times.
        assert {chosen: present.count(chosen) for chosen in set(present)} == {
            **{(name,): 4 for name in names},
            **dict.fromkeys(combinations(names, 2), 8),
        }


def test_what_belongs_to_no_class(scenes: list) -> None:
    """A contour around every object, and a pale patch on the ground of most pictures."""
    patches = []
    for picture, labels in scenes:
        for axis in (0, 1):
            one, other = np.delete(labels, -1, axis), np.delete(labels, 0, axis)
            meeting = (one != other) & (np.maximum(one, other) > maker.CLASSES.index('water') + 1)
            assert (np.minimum(one, other)[meeting] == 0).all()
        windows = np.lib.stride_tricks.sliding_window_view(labels, (5, 5))
        inside = np.argwhere(~windows.any((-1, -2))) + 2
        patches.append(len(inside))
        if len(inside):
            assert picture[tuple(inside.T)].mean() == pytest.approx(0.4 * 130 + 0.6 * 190, abs=40)
    assert np.median(patches) > 100


def test_objects_have_their_colours_and_do_not_touch(scenes: list) -> None:
    for name, colour in (
        ('disc', (150, 80, 140)),
        ('box', (80, 90, 110)),
        *((tent, (235, 190, 60)) for tent in maker.TENTS),
    ):
        inside = [picture[labels == maker.CLASSES.index(name) + 1] for picture, labels in scenes]
        np.testing.assert_allclose(np.concatenate(inside).mean(0), colour, atol=20)
    for seed in range(20):
        for things in (
            maker._fillers(np.random.default_rng(seed)),
            maker._sides(np.random.default_rng(seed), ('red', 'white')),
        ):
            placed = [thing for thing in things if thing.name not in maker.WALLS]
            for one, other in combinations(placed, 2):
                assert np.hypot(one.x - other.x, one.y - other.y) >= one.radius + other.radius + 2


def test_layout_is_ade20ks_and_writing_is_idempotent(tmp_path: Path) -> None:
    root = tmp_path / 'set'
    root.mkdir()
    counts = dict(training=3, validation=2)
    assert maker.write_dataset(root, counts, seed=1)
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}
    names = [f'{split}/{i:05d}' for split, count in counts.items() for i in range(count)]
    assert files.keys() == {'demo.json', *(f'images/{n}.jpg' for n in names), *(f'annotations/{n}.png' for n in names)}
    picture = np.asarray(maker.draw_scene(1, 0, 0)[0], float)
    assert np.abs(picture - np.asarray(Image.open(root / 'images/training/00000.jpg'))).mean() < 7
    labels = np.asarray(Image.open(root / 'annotations/training/00000.png'))
    assert labels.dtype == np.uint8
    assert labels.min() == 0  # contours
    assert labels.max() <= len(maker.CLASSES)
    assert not maker.write_dataset(root, counts, seed=1)
    assert maker.write_dataset(root, counts, seed=2)
    assert maker.write_dataset(root, counts, seed=1)
    assert {name: (root / name).read_bytes() for name in files} == files
    assert files['images/training/00000.jpg'] != files['images/validation/00000.jpg']

    (tmp_path / 'mine.txt').write_text('precious')
    with pytest.raises(ValueError, match='not made by this tool'):
        maker.write_dataset(tmp_path, dict(training=1), seed=0)
    assert (tmp_path / 'mine.txt').exists()


def _network(kernel_sizes: tuple[int, int]) -> torch.nn.Module:
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.kernel_sizes = kernel_sizes
    torch.manual_seed(0)
    network = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    for module in network.modules():
        if isinstance(module, PeripheralConv2d):
            module.backend = 'dense'  # a transform would spread rounding errors over the whole map
    return network


def _reach(network: torch.nn.Module, positions: range) -> int:
    """Pixels, along the longer axis, between some output pixels and the farthest input pixel that can change them."""
    size = 2 * maker.SIZE  # larger than the pictures, so that no border cuts the field
    image = torch.randn(1, 3, size, size, requires_grad=True)
    meta = [dict(ori_shape=(size, size), img_shape=(size, size))]
    logits = network.encode_decode(image, meta)[0].sum(0)
    reach = 0
    for position in positions:
        (gradient,) = torch.autograd.grad(logits[position, position], image, retain_graph=True)
        seen = gradient.abs().sum((0, 1, 3)).nonzero()
        reach = max(reach, position - int(seen.min()), int(seen.max()) - position)
    return reach


def test_small_kernels_cannot_see_the_far_wall_and_large_ones_can() -> None:
    # All places in a cell of the deepest map, whose stride is 8.
    assert _reach(_network((7, 7)), range(maker.SIZE, maker.SIZE + 8)) < maker.FAR
    large = tuple(Config.fromfile(CONFIG).model.backbone.kernel_sizes)
    assert _reach(_network(large), range(maker.SIZE, maker.SIZE + 1)) >= maker.SIZE - 1


@pytest.mark.slow
def test_config_fits_the_set(tmp_path: Path) -> None:
    maker.write_dataset(tmp_path / 'set', dict(training=2, validation=1), seed=0)
    cfg = Config.fromfile(CONFIG)
    assert tuple(cfg.metainfo.classes) == maker.CLASSES
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'set')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 2
    sample = dataset[0]
    values = set(sample['data_samples'].gt_sem_seg.data.unique().tolist())
    assert 255 in values  # "other" is ignored
    assert values <= {255, *range(len(maker.CLASSES))}
    assert sample['inputs'].shape == (3, maker.SIZE, maker.SIZE)


def test_yardsticks() -> None:
    # 40 pixels of a local class, 60 of three that a far cue decides, none of a fifth; a perfect prediction.
    scores = plotter.Scores(
        ['local', 'tent_a', 'tent_b', 'tent_c', 'absent'],
        np.array([40, 10, 20, 30, 0]),
        np.array([1, 1, 1, 1, np.nan]),
    )
    assert scores.miou == 1
    assert scores.far_miou == 1
    assert scores.majority == pytest.approx(0.4 / 4)
    # Guessing: a third of each class is hit, and each is guessed for a third of the 60 pixels.
    guessed = sum(count / 3 / (count + 20 - count / 3) for count in (10, 20, 30))
    assert scores.short_sighted == pytest.approx((1 + guessed) / 4)
    assert plotter.Scores(['local', 'tent_a'], np.array([3, 1]), np.array([0.5, 0.1])).far_miou == 0.1


def test_scores_of_stored_predictions(tmp_path: Path) -> None:
    """Over all pictures; 0 is "other", which is not scored wherever the label has it."""
    validation = tmp_path / 'set' / 'annotations' / 'validation'
    validation.mkdir(parents=True)
    for name, labels, predicted in (('a', [[0, 1, 1, 2]], [[1, 1, 2, 2]]), ('b', [[1, 1, 0, 0]], [[1, 2, 2, 2]])):
        for folder, values in ((validation, labels), (tmp_path, predicted)):
            Image.fromarray(np.array(values, np.uint8)).save(folder / f'{name}.png')
    scores = plotter.score(tmp_path / 'set', tmp_path, ['x', 'y', 'z'])
    assert scores.pixels.tolist() == [4, 1, 0]
    assert scores.iou.tolist() == pytest.approx([2 / 4, 1 / 3, np.nan], nan_ok=True)
    assert scores.miou == pytest.approx(5 / 12)


def write_logs(work_dir: Path) -> None:
    for stamp, records in (
        ('20240101_000000', [dict(loss=9.0, step=1)]),
        ('20240102_000000', [dict(loss=2.0, step=1), dict(mIoU=50.0, step=2), dict(loss=1.0, step=2)]),
        ('20240103_000000', [dict(mIoU=60.0, step=0)]),  # a test's
    ):
        log = work_dir / stamp / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text('\n'.join(json.dumps(record) for record in records))


def test_curves_are_those_of_the_newest_training(tmp_path: Path) -> None:
    write_logs(tmp_path)
    assert plotter.read_curves(tmp_path) == dict(loss=[(1, 2.0), (2, 1.0)], mIoU=[(2, 0.5)])
    with pytest.raises(ValueError, match='no training log'):
        plotter.read_curves(tmp_path / 'elsewhere')


def test_what_is_drawn(tmp_path: Path) -> None:
    data, names = tmp_path / 'set', ['00000', '00001']
    maker.write_dataset(data, dict(training=1, validation=2), seed=0)
    for name in names:
        labels = np.asarray(Image.open(data / 'annotations' / 'validation' / f'{name}.png'))
        Image.fromarray(np.roll(labels.clip(1), 9, 1)).save(tmp_path / f'{name}.png')
    write_logs(tmp_path / 'work')
    metainfo = Config.fromfile(CONFIG).metainfo
    palette = dict(zip(metainfo.classes, metainfo.palette, strict=True))
    scores = plotter.score(data, tmp_path, list(maker.CLASSES))
    figure = plotter.draw(data, tmp_path, tmp_path / 'work', names, palette, scores)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert len(shown) == 8
    for column, name in enumerate(names):
        labels = np.asarray(Image.open(data / 'annotations' / 'validation' / f'{name}.png'))
        predicted = np.roll(labels.clip(1), 9, 1)
        picture, truth, guess, wrong = shown[column::2]
        assert (picture == np.asarray(Image.open(data / 'images' / 'validation' / f'{name}.jpg'))).all()
        for image, values in ((truth, labels), (guess, predicted)):
            for value in np.unique(values):
                wanted = palette[maker.CLASSES[value - 1]] if value else [140, 140, 140]
                assert (image[values == value] == wanted).all()
        assert ((wrong == 0) == ((predicted != labels) & (labels > 0))).all()
    legend = figure.subfigs[0].legends[0]
    colours = [[round(255 * part) for part in patch.get_facecolor()[:3]] for patch in legend.get_patches()]
    assert colours == [[140, 140, 140], *map(list, palette.values())]
    curves = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert curves['Training loss'].lines[0].get_xydata().tolist() == [[1, 2], [2, 1]]
    lines = {line.get_label(): line.get_ydata() for line in curves['Held-out mIoU'].lines}
    wanted = {
        'PeLK': 50,
        'all right but the far cue': 100 * scores.short_sighted,
        'majority class': 100 * scores.majority,
    }
    assert {name: float(values[0]) for name, values in lines.items()} == pytest.approx(wanted)
    bars = figure.axes[-1].patches
    assert [bar.get_width() for bar in bars] == pytest.approx((100 * scores.iou).tolist(), nan_ok=True)
    assert [bool(bar.get_hatch()) for bar in bars] == [name in maker.TENTS for name in maker.CLASSES]


@pytest.mark.slow
def test_picture_is_written(tmp_path: Path) -> None:
    data, work_dir = tmp_path / 'set', tmp_path / 'work'
    maker.write_dataset(data, dict(training=1, validation=2), seed=0)
    predictions = tmp_path / 'predictions'
    predictions.mkdir()
    for path in (data / 'annotations' / 'validation').glob('*.png'):
        Image.fromarray(np.asarray(Image.open(path)).clip(1)).save(predictions / path.name)
    write_logs(work_dir)
    scores = plotter.score(data, predictions, list(maker.CLASSES))
    assert scores.miou == 1
    assert scores.majority < scores.short_sighted < 1
    metainfo = Config.fromfile(CONFIG).metainfo
    palette = dict(zip(metainfo.classes, metainfo.palette, strict=True))
    plotter.draw(data, predictions, work_dir, ['00000', '00001'], palette, scores).savefig(tmp_path / 'demo.png')
    assert Image.open(tmp_path / 'demo.png').size == (1400, 900)
