"""The detection demo: its data set agrees with itself, and its figure is drawn."""

from pathlib import Path

import numpy as np
import pytest

from tests.commands import call
from tests.paths import TOOLS


def test_annotations_agree_with_the_masks(tmp_path: Path) -> None:
    coco = pytest.importorskip('pycocotools.coco')
    call(TOOLS / 'demo' / 'make_detection_data.py', tmp_path, '--train', 4, '--val', 1, cwd=tmp_path)
    annotations = coco.COCO(str(tmp_path / 'annotations' / 'instances_train2017.json'))
    assert annotations.getAnnIds()
    for annotation in annotations.loadAnns(annotations.getAnnIds()):
        mask = annotations.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        left, top = columns.min(), rows.min()
        assert annotation['bbox'] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
        assert annotation['area'] == mask.sum()
