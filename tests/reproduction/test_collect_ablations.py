"""What is made of the trainings of the ablations: whether they are the paper's, the file, and the tables."""

from pathlib import Path
from typing import Any

import pytest

from reproduction.ablations import ABLATIONS, METRICS, trained_as
from reproduction.collect_ablations import (
    ablation_table,
    collect,
    load,
    merge,
    recipe,
    run_folder,
    save,
    summary,
)
from reproduction.marks import Results
from tests.training_logs import epoch, write_start

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

LONG = 'train_cfg = dict(max_epochs=120)'
SLAK = 'table1_slak_51'


def write_trained(
    work: Path,
    stage: str,
    name: str,
    value: float,
    options: dict | None = None,
    gpus: int = 0,
    seed: int = 0,
    second: int = 0,
) -> None:
    """A finished training of a recipe with options, on the recipe's number of GPUs by default."""
    lines = epoch(120, value) if stage == 'cls' else [dict(loss=1.0, iter=50, step=50), dict(mIoU=value, step=80000)]
    cfg = recipe(stage, name)
    cfg.merge_from_dict(options or {})
    config = '\n'.join(f'{key} = {setting!r}' for key, setting in cfg.to_dict().items())
    gpus = gpus or (32 if stage == 'cls' else 8)
    write_start(run_folder(work, stage, name, seed), lines, config, second, gpus=gpus)


def text(work: Path, stage: str, name: str) -> str:
    """What the table says of a recipe."""
    return summary(collect([work]).get((stage, name), []))


# Whether a run is the paper's experiment

# What run_ablations changes for eight GPUs, and what a machine may change.
ON_EIGHT = {
    'optim_wrapper.accumulative_counts': 4,
    'custom_hooks.0.update_interval': 8000,
    'custom_hooks.1.interval': 4,
}
ELSEWHERE = {
    'train_dataloader.num_workers': 1,
    'train_dataloader.dataset.data_root': '/elsewhere',
    'val_dataloader.dataset.data_root': '/elsewhere',
    'val_dataloader.batch_size': 1,
    'train_cfg.val_interval': 7,
    'work_dir': 'w',
    'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='a.pth'),
}
CHANGES: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    'nothing': ({}, 32, ()),
    'eight_gpus': (ON_EIGHT, 8, ()),
    'paths_and_workers': (ELSEWHERE, 32, ()),
    'more_gpus_of_fewer_images': ({'train_dataloader.batch_size': 64}, 64, ()),
    'steps': ({'param_scheduler.0.end': 1}, 32, ('schedule',)),
    'model': ({'model.head.in_channels': 3}, 32, ('model',)),
    'data': ({'train_dataloader.dataset.split': 'val'}, 32, ('data',)),
    'learning_rate': ({'optim_wrapper.optimizer.lr': 1e-3}, 32, ('optimizer',)),
    'scaled_learning_rate': ({'auto_scale_lr.enable': True}, 32, ('optimizer',)),
    'no_hooks': ({'custom_hooks': []}, 32, ('hooks',)),
    'momentum': ({'custom_hooks.0.momentum': 0.5}, 32, ('hooks',)),
    'interval': (ON_EIGHT | {'custom_hooks.0.update_interval': 2000}, 8, ('hooks',)),
    'images_of_a_gpu': ({'train_dataloader.batch_size': 64}, 32, ('batch',)),
    'gpus': ({}, 8, ('batch',)),
    'test_images': ({'val_dataloader.dataset.split': 'train'}, 32, ('test',)),
}


@pytest.mark.parametrize(('options', 'gpus', 'noted'), CHANGES.values(), ids=CHANGES)
def test_what_is_not_the_papers_experiment_says_so(
    options: dict[str, Any], gpus: int, noted: tuple[str, ...], tmp_path: Path
) -> None:
    write_trained(tmp_path, 'cls', SLAK, 3.0, options, gpus)
    assert collect([tmp_path])['cls', SLAK][0].changed == noted
    assert text(tmp_path, 'cls', SLAK) == (f'3.00 (n = 1, other {noted[0]})' if noted else '3.00 (n = 1)')


def test_segmentation_after_another_pretraining_says_so(tmp_path: Path) -> None:
    write_trained(tmp_path, 'seg', SLAK, 46.0)
    recipe('seg', SLAK).dump(next(run_folder(tmp_path, 'seg', SLAK, 0).glob('*/vis_data/config.py')))  # as mmengine
    assert text(tmp_path, 'seg', SLAK) == '46.00 (n = 1)'
    write_trained(tmp_path, 'cls', SLAK, 81.0)
    assert text(tmp_path, 'seg', SLAK) == '46.00 (n = 1)'
    write_trained(tmp_path, 'cls', SLAK, 81.0, gpus=8, second=1)
    assert text(tmp_path, 'seg', SLAK) == '46.00 (n = 1, other pre-training)'
    assert text(tmp_path, 'cls', SLAK) == '81.00 (n = 1, other batch)'


# Seeds and folders


def test_several_seeds_in_several_folders(tmp_path: Path) -> None:
    name, here, there = 'table5_5_exponential', tmp_path / 'here', tmp_path / 'there'
    for seed, value in enumerate((81.0, 81.5, 82.0)):
        write_trained(here if seed else there, 'cls', name, value, seed=seed)
    for seed in (0, 3):  # of a seed that two folders have, the run that came furthest
        write_start(run_folder(here, 'cls', name, seed), epoch(7, 12.0), LONG)
    found = collect([here, there])['cls', name]
    assert summary(found) == '81.50 ± 0.50 (n = 3)'
    assert [(seed.seed, seed.progress) for seed in found] == [(0, 120), (1, 120), (2, 120), (3, 7)]
    assert text(there, 'cls', name) == '81.00 (n = 1)'
    # What is finished counts before what is longer.
    write_start(run_folder(here, 'cls', name, 0), epoch(200, 12.0), LONG.replace('120', '300'), 2)
    assert summary(collect([here, there])['cls', name]) == '81.50 ± 0.50 (n = 3)'


def test_one_training_for_rows_that_share_it(tmp_path: Path) -> None:
    write_start(run_folder(tmp_path, 'cls', 'table7_51_224', 4), epoch(33, 60.0), LONG)
    trainings = collect([tmp_path])
    assert trainings.keys() == {('cls', trained_as('cls', 'table7_51_224'))}
    for key, index in (('6', 2), ('7', 0)):
        rows = ablation_table(key, trainings, Results()).rows
        assert rows[index][-1] == '81.6 (target); seed 4: epoch 33 of 120'
        assert [row[-1] for row in rows].count(rows[index][-1]) == 1


# The tables and the file


def test_tables_of_what_was_trained(tmp_path: Path) -> None:
    results = Results()
    write_trained(tmp_path, 'seg', SLAK, 46.0)
    write_trained(tmp_path, 'seg', 'table1_replk_51', 46.75)
    table = ablation_table('1', collect([tmp_path]), results)
    assert [tuple(row[3:]) for row in table.rows[:2]] == [
        ('81.6 (target)', '46.5 (target); 46.00 (n = 1) (m1)', '-'),
        ('81.7 (target)', '46.9 (target); 46.75 (n = 1) (m1)', '+0.4 (target); +0.75, from the measured column'),
    ]
    assert results.runs == [('ablations, 1', dict(device='8 x NVIDIA H100', date='2026-01-02'))]


@pytest.mark.slow
@pytest.mark.parametrize('key', ABLATIONS)
def test_tables_of_nothing_hold_targets(key: str) -> None:
    table, results = ABLATIONS[key], Results()
    made = ablation_table(key, {}, results)
    for row, cells in zip(table.rows, made.rows, strict=True):
        shown = dict(zip(made.columns, cells, strict=True))
        assert list(cells[: made.labels]) == list(row.label)
        for stage, value in row.paper.items():
            # A column of which the paper prints nothing is left out.
            assert shown.get(METRICS[stage][1]) == (None if value is None else f'{value} (target)')
    assert results.runs == []


def test_file_holds_what_was_collected(tmp_path: Path) -> None:
    write_trained(tmp_path, 'cls', SLAK, 81.0, gpus=8, second=1)
    write_start(run_folder(tmp_path, 'cls', 'table6_center_1', 1), epoch(7, 12.0), LONG)
    path = tmp_path / 'results' / 'ablations.json'
    save(collect([tmp_path]), path)
    assert load(path) == collect([tmp_path])
    assert load(tmp_path / 'nothing.json') == {}
    for content in ('earlier', '[1]', '{"trainings": [1]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match='holds no results of ablations'):
            load(path)


def test_what_was_measured_elsewhere_is_kept(tmp_path: Path) -> None:
    there, here, center = tmp_path / 'there', tmp_path / 'here', 'table6_center_1'
    write_trained(there, 'seg', SLAK, 46.0)
    write_trained(here, 'seg', 'table1_replk_51', 46.75)
    for seed in (0, 2):
        write_trained(there, 'cls', center, 80.0, seed=seed)
    write_trained(here, 'cls', center, 81.0, seed=0)
    merged = merge(collect([here]), collect([there]))
    assert {key: [(seed.seed, seed.final) for seed in seeds] for key, seeds in merged.items()} == {
        ('seg', SLAK): [(0, 46.0)],
        ('seg', 'table1_replk_51'): [(0, 46.75)],
        ('cls', center): [(0, 81.0), (2, 80.0)],
    }
