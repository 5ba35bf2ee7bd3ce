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


def test_layout_is_ade20ks_and_writing_is_idempotent(tmp_path: Path) -> None:
    root = tmp_path / 'set'
    counts = dict(training=3, validation=2)
    assert maker.write_dataset(root, counts, seed=1)
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}
    names = [f'{split}/{i:05d}' for split, count in counts.items() for i in range(count)]
    assert files.keys() == {'demo.json', *(f'images/{n}.jpg' for n in names), *(f'annotations/{n}.png' for n in names)}
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
    # 60 pixels of a local class, 20 of each of two that a far cue decides, none of a fourth; a perfect prediction.
    scores = plotter.Scores(
        ['local', 'tent_a', 'tent_b', 'absent'], np.array([60, 20, 20, 0]), np.array([1, 1, 1, np.nan])
    )
    assert scores.miou == 1
    assert scores.far_miou == 1
    assert scores.majority == pytest.approx(0.6 / 3)
    # Guessing: 10 hits of 20 + 20 - 10 pixels each.
    assert scores.short_sighted == pytest.approx((1 + 2 * 10 / 30) / 3)


@pytest.mark.slow
def test_picture_is_written(tmp_path: Path) -> None:
    data, work_dir = tmp_path / 'set', tmp_path / 'work'
    maker.write_dataset(data, dict(training=1, validation=2), seed=0)
    predictions = tmp_path / 'predictions'
    predictions.mkdir()
    for path in (data / 'annotations' / 'validation').glob('*.png'):
        Image.fromarray(np.asarray(Image.open(path)).clip(1)).save(predictions / path.name)
    for stamp, records in (
        ('20240101_000000', [dict(loss=9.0, step=1)]),
        ('20240102_000000', [dict(loss=2.0, step=1), dict(mIoU=50.0, step=2), dict(loss=1.0, step=2)]),
        ('20240103_000000', [dict(mIoU=60.0, step=0)]),  # a test's
    ):
        log = work_dir / stamp / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text('\n'.join(json.dumps(record) for record in records))
    assert plotter.read_curves(work_dir) == dict(loss=[(1, 2.0), (2, 1.0)], mIoU=[(2, 0.5)])
    scores = plotter.score(data, predictions, list(maker.CLASSES))
    assert scores.miou == 1
    assert scores.majority < scores.short_sighted < 1
    metainfo = Config.fromfile(CONFIG).metainfo
    palette = dict(zip(metainfo.classes, metainfo.palette, strict=True))
    plotter.draw(data, predictions, work_dir, ['00000', '00001'], palette, scores).savefig(tmp_path / 'demo.png')
    assert Image.open(tmp_path / 'demo.png').size == (1400, 900)

    with pytest.raises(ValueError, match='no training log'):
        plotter.read_curves(tmp_path / 'elsewhere')
