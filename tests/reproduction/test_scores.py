"""Scores that somebody measured are read, shown with their machine, and checked."""

import json
from pathlib import Path
from typing import Any

import pytest

from reproduction.scores import RESULT_FILES, measured_scores


def write(folder: Path, number: int, content: Any) -> None:
    (folder / RESULT_FILES[number]).write_text(content if isinstance(content, str) else json.dumps(content))


def test_scores_of_every_recipe(tmp_path: Path) -> None:
    assert measured_scores(3, tmp_path) == {}
    machine = dict(device='8 x A100', date='2026-01-01')
    scores = {
        'cascade_mask_rcnn_pelk_b_101_coco': dict(AP_box=53.0, AP_mask=46),
        'cascade_mask_rcnn_pelk_t_coco': dict(AP_box=51.1),
    }
    write(tmp_path, 3, dict(machine=machine, results=scores))
    measured = measured_scores(3, tmp_path)
    assert {name: one.scores for name, one in measured.items()} == {f'det/{key}.py': scores[key] for key in scores}
    assert all(one.machine == machine for one in measured.values())


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'is not JSON'),
        ([], "must hold an object 'machine'"),
        (dict(results={}), "must hold an object 'machine'"),
        (dict(slak_t_in1k=dict(top1=82.5)), "unknown recipe 'slak_t_in1k'; Table 4 has pelk_t"),
        (dict(upernet_pelk_t_ade20k=dict(mIoU=48.0)), "unknown recipe 'upernet_pelk_t_ade20k'"),
        (dict(pelk_t_in1k=dict(mIoU=48.0)), "unknown metric 'mIoU'; known: top1"),
        (dict(pelk_t_in1k={}), 'must hold scores in per cent by metric: top1'),
        (dict(pelk_t_in1k=82.6), 'must hold scores in per cent by metric: top1'),
        (dict(pelk_t_in1k=dict(top1='82.6')), 'must be a number of per cent'),
        (dict(pelk_t_in1k=dict(top1=826)), 'must be a number of per cent, got 826'),
    ],
)
def test_wrong_results_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    if isinstance(content, dict) and 'results' not in content:
        content = dict(machine={}, results=content)
    write(tmp_path, 4, content)
    with pytest.raises(ValueError, match=message):
        measured_scores(4, tmp_path)
