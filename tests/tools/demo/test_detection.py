"""The detection demo: its data set agrees with itself, and its figure is drawn."""

import json
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.commands import call, load_tool
from tests.paths import TOOLS

maker = load_tool(TOOLS / 'demo' / 'make_detection_data.py')
plotter = load_tool(TOOLS / 'demo' / 'plot_detection.py')


def test_shapes_hide_one_another() -> None:
    """A pixel belongs to one, what is left of each is large enough, and they lie all over the pictures."""
    reach, categories = np.zeros(2, int), set()
    for seed in range(40):
        image, instances = maker.draw_image(np.random.default_rng(seed))
        assert all(instance.mask.shape == image.shape[:2] and instance.mask.sum() >= 60 for instance in instances)
        assert not instances or np.sum([instance.mask for instance in instances], 0).max() == 1
        categories |= {instance.category for instance in instances}
        for instance in instances:
            reach = np.maximum(reach, np.argwhere(instance.mask).max(0) * (image.shape[0] != image.shape[1]))
    assert (reach == 127).all()
    assert categories == {0, 1, 2}


@pytest.mark.parametrize(('category', 'corners'), [(0, 64), (1, 4), (2, 3)])
def test_corners_lie_around_the_centre(category: int, corners: int) -> None:
    points = maker._outline(category, np.array([50.0, 40.0]), 30.0, 0.3)[:, 0]
    assert len(points) == corners
    assert np.linalg.norm(points - [50, 40], axis=1) == pytest.approx(30, abs=1)
    assert points.mean(0) == pytest.approx([50, 40], abs=1)


def test_annotations_agree_with_the_masks(tmp_path: Path) -> None:
    coco = pytest.importorskip('pycocotools.coco')
    call(TOOLS / 'demo' / 'make_detection_data.py', tmp_path, '--train', 4, '--val', 1, cwd=tmp_path)
    annotations = coco.COCO(str(tmp_path / 'annotations' / 'instances_train2017.json'))
    assert annotations.getAnnIds() == list(range(1, len(annotations.getAnnIds()) + 1))
    for entry in annotations.loadImgs(annotations.getImgIds()):
        picture = cv2.imread(str(tmp_path / 'train2017' / entry['file_name']))
        assert picture.shape[:2] == (entry['height'], entry['width'])
    rng = np.random.default_rng(0)
    drawn = [maker.draw_image(rng)[1] for _ in range(4)]
    names = [
        [annotations.cats[entry['category_id']]['name'] for entry in annotations.imgToAnns[index]]
        for index in range(1, 5)
    ]
    assert names == [[maker.CLASSES[instance.category] for instance in instances] for instances in drawn]
    for annotation in annotations.loadAnns(annotations.getAnnIds()):
        mask = annotations.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        left, top = columns.min(), rows.min()
        assert annotation['bbox'] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
        assert annotation['area'] == mask.sum()


def test_curves_are_those_of_the_newest_training(tmp_path: Path) -> None:
    def line(step: int, box: float, mask: float) -> dict[str, float]:
        return {'coco/bbox_mAP': box, 'coco/segm_mAP': mask, 'step': step}

    logs = {
        '20240101': [line(1, 0.1, 0.2)],
        '20240102': [dict(loss=1.0, step=9), line(1, 0.25, 0.5), line(2, 0.5, 0.75)],
        '20240103': [dict(loss=1.0, step=9), {'coco/bbox_mAP': 0.9, 'step': 1}],
    }
    for stamp, lines in logs.items():
        log = tmp_path / stamp / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text('\n'.join(map(json.dumps, lines)))
    curves = plotter.read_curves(tmp_path)
    assert curves == {'coco/bbox_mAP': [(1, 25), (2, 50)], 'coco/segm_mAP': [(1, 50), (2, 75)]}
    with pytest.raises(FileNotFoundError, match='no validation in the logs'):
        plotter.read_curves(tmp_path / '20240101')
    drawings = [tmp_path / f'{index}.png' for index in range(5)]
    for index, path in enumerate(drawings):
        assert cv2.imwrite(str(path), np.full((4, 5, 3), 40 * index, np.uint8))
    figures: list[Figure] = []
    with mock.patch.object(Figure, 'savefig', lambda figure, path, dpi: figures.append(figure)):
        plotter.plot(curves, drawings, tmp_path / 'x.png')
    first, *cells = figures[0].axes
    shown = {line.get_label(): line.get_xydata().tolist() for line in first.lines}
    assert shown == {'box AP 50.0': [[1, 25], [2, 50]], 'mask AP 75.0': [[1, 50], [2, 75]]}
    assert [round(255 * float(np.asarray(cell.images[0].get_array()).max())) for cell in cells] == [0, 40, 80, 120, 160]
