"""Tables 2, 3 and 4 as printed and as counted: here every PeLK row, and of the peers those that differ in kind."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope

from mmpelk import get_config
from mmpelk.analysis.complexity import Complexity
from mmpelk.analysis.inference import build_model
from reproduction import counts, networks
from reproduction.counts import RESULT_FILES, CountedRow, count_row, measured_scores
from reproduction.marks import Results
from reproduction.page import render
from reproduction.paper import FLOPS_DECIMALS, TABLES, PublishedRow
from tests.paths import ROOT

OURS = [(number, row) for number, rows in TABLES.items() for row in rows if row.is_ours]
PAGE = (ROOT / 'docs' / 'complexity.md').read_text().splitlines()
# Rows that the convention misses, with the deviation in per cent. They are shown, not tuned away.
FLOPS_OFF = {('PeLK-T', 224): 4.0, ('PeLK-S', 224): 2.0}
PARAMS_OFF = {('PeLK-S', 224): 3.2}


def published(table: int, method: str, height: int) -> PublishedRow:
    return next(row for row in TABLES[table] if (row.method, row.input_size[0]) == (method, height))


def counted(row: PublishedRow) -> tuple[CountedRow, Complexity]:
    """A row of the paper, counted; ``count_row`` remembers it for the other tests."""
    result = count_row(row)
    if result.counted is None:
        pytest.skip(result.note)
    return result, result.counted


def training_form(complexity: Complexity, density: float) -> int:
    """FLOPs with the 5x5 branches that deployment merges."""
    unmerged = sum(left_out.flops for left_out in complexity.left_out if left_out.name == 'small_kernels')
    return complexity.flops_sparse + round(density * unmerged)


@pytest.mark.slow
@pytest.mark.parametrize('row', [row for _, row in OURS], ids=[f'{n}-{r.method}-{r.input_size[0]}' for n, r in OURS])
def test_pelk_is_the_papers(row: PublishedRow) -> None:
    result, complexity = counted(row)
    key = (row.method, row.input_size[0])
    flops = 100 * (complexity.flops_sparse / 1e9 / row.flops - 1)
    params = 100 * (complexity.params_sparse / 1e6 / row.params - 1)
    assert bool(result.note) == (key in FLOPS_OFF)
    assert flops == pytest.approx(FLOPS_OFF[key], abs=0.1) if key in FLOPS_OFF else abs(flops) < 0.5
    assert params == pytest.approx(PARAMS_OFF[key], abs=0.1) if key in PARAMS_OFF else abs(params) < 3
    as_published = complexity.params_as_published / 1e6
    assert round(as_published) == row.params + (key in PARAMS_OFF)
    assert abs(as_published / row.params - 1) < (0.015 if key in PARAMS_OFF else 0.01)


@pytest.mark.slow
@pytest.mark.parametrize('row', [row for _, row in OURS], ids=[f'{n}-{r.method}-{r.input_size[0]}' for n, r in OURS])
def test_page_has_the_counts(row: PublishedRow) -> None:
    complexity = counted(row)[1]
    executed = sum(count or 0 for count in complexity.executed_by_component().values())
    params = [f'{count / 1e6:.1f}' for count in (complexity.params, complexity.params_sparse)]
    flops = [f'{count / 1e9:.1f}' for count in (complexity.flops, complexity.flops_sparse, executed)]
    shown = next(line for line in PAGE if f'configs/{row.network.own_name})' in line)
    assert shown.strip('| ').split(' | ')[1:] == params + flops


@pytest.mark.slow
@pytest.mark.parametrize(
    ('table', 'method', 'height'),
    [
        *((2, 'ConvNeXt-T', 512), (2, 'Swin-T', 512), (3, 'ConvNeXt-T', 800), (4, 'ConvNeXt-T', 224)),
        *((4, 'Swin-T', 224), (3, 'RepLkNet-B', 800), (4, 'RepLkNet-31B', 384), (4, 'DeiT-B/16', 224)),
        *((3, 'ConvNeXt-B', 800), (3, 'Swin-T', 800)),  # the toolbox has no recipe
    ],
)
def test_peers(table: int, method: str, height: int) -> None:
    row = published(table, method, height)
    complexity = counted(row)[1]
    # RepLKNet's are printed a million lower or higher: the row counts no auxiliary head, or another form.
    tolerance = 1.0 if method.startswith('RepLk') else 0.5
    assert complexity.params_as_published / 1e6 == pytest.approx(row.params, abs=tolerance)
    # Half of the last printed digit, and 0.15 %: each counter has its own small change (norms, biases, resizing).
    rounding = 0.5 * 10.0 ** -FLOPS_DECIMALS[table]
    assert complexity.flops_sparse / 1e9 == pytest.approx(row.flops, abs=rounding, rel=1.5e-3)
    assert training_form(complexity, 1) == complexity.flops_sparse == complexity.flops


@pytest.mark.slow
def test_slak_as_printed_has_its_small_branches_unmerged() -> None:
    row = published(2, 'SLaK-S', 512)
    result, complexity = counted(row)
    assert complexity.params_as_published / 1e6 == pytest.approx(row.params, rel=0.01)
    assert complexity.flops_sparse / 1e9 / row.flops - 1 == pytest.approx(-0.0012, abs=1e-4)
    assert round(training_form(complexity, row.network.density) / 1e9) == row.flops
    assert 'training form' in result.note


def test_slak_is_the_projects_slak() -> None:
    options = dict(published(4, 'SLaK-B', 224).network.options)
    assert get_config('cls/pelk_t_in1k.py', options).model == get_config('cls/slak_t_in1k.py').model


def test_building_a_model_leaves_no_trace() -> None:
    pytest.importorskip('mmpretrain')
    cfg = networks.load(published(4, 'Swin-T', 224).network)
    with DefaultScope.overwrite_default_scope('mmseg'):
        state, text = torch.get_rng_state(), cfg.pretty_text
        build_model(cfg)
        assert DefaultScope.get_current_instance().scope_name == 'mmseg'
    assert torch.equal(torch.get_rng_state(), state)
    assert cfg.pretty_text == text


def test_row_without_its_toolbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of UperNet ConvNeXt-T, mmseg's recipe has mmpretrain's backbone."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(counts, '_count', counts._count.__wrapped__)
    for table, method, package in ((2, 'Swin-T', 'mmseg'), (2, 'ConvNeXt-T', 'mmpretrain'), (3, 'PeLK-T', 'mmdet')):
        monkeypatch.setattr(
            importlib.util, 'find_spec', lambda name, package=package: None if name == package else find_spec(name)
        )
        row = next(row for row in TABLES[table] if row.method == method)
        assert count_row(row) == CountedRow(row, None, f'not built: {package} is not installed')


@pytest.mark.slow
def test_page_is_what_the_data_gives() -> None:
    """With the counts that are remembered from the tests before."""
    for toolbox in ('mmseg', 'mmdet', 'mmpretrain'):
        pytest.importorskip(toolbox)
    assert render() == (ROOT / 'docs' / 'reproduction.md').read_text(), 'make report writes the page anew'


# Scores that somebody measured


def write_scores(folder: Path, number: int, scores: Any) -> Results:
    content = dict(machine=dict(device='8 x A100'), results=scores)
    (folder / f'{RESULT_FILES[number]}.json').write_text(json.dumps(content))
    return Results(folder)


def test_measured_scores(tmp_path: Path) -> None:
    assert measured_scores(3, Results(tmp_path)) == {}
    scores = {
        'cascade_mask_rcnn_pelk_b_101_coco': dict(AP_box=53.0, AP_mask=46),
        'cascade_mask_rcnn_pelk_t_coco': dict(AP_box=51.1),
    }
    found = measured_scores(3, write_scores(tmp_path, 3, scores))
    assert found == {f'det/{name}.py': scores[name] for name in scores}


def test_wrong_scores_are_refused(tmp_path: Path) -> None:
    for scores, message in (
        (dict(slak_t_in1k=dict(top1=82.5)), "'slak_t_in1k': unknown recipe; Table 4 has pelk_t"),
        (dict(upernet_pelk_t_ade20k=dict(mIoU=48.0)), 'unknown recipe'),
        (dict(pelk_t_in1k=dict(mIoU=48.0)), 'per cent by metric, of top1; got mIoU: 48.0'),
        (dict(pelk_t_in1k=dict(top1='82.6')), "got top1: '82.6'"),
        (dict(pelk_t_in1k=dict(top1=826)), 'got top1: 826'),
        (dict(pelk_t_in1k=dict(top1=0.826)), 'got top1: 0.826'),
    ):
        with pytest.raises(ValueError, match=message):
            measured_scores(4, write_scores(tmp_path, 4, scores))
