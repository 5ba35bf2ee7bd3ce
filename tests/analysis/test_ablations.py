"""The plan of the ablations, its computed columns, the segmentation recipes, and what is read from work folders."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from mmpelk.analysis.ablation_results import collect, gain, merge, report, run_folder, trained_as
from mmpelk.analysis.ablations import (
    ABLATIONS,
    AblationRow,
    center_share,
    computed,
    grids,
    half_grid,
    recipe,
    stage_kernel_parameters,
)
from mmpelk.analysis.runs import read_run
from mmpelk.ops.sharing_grid import mirror_half_grid
from tests.paths import CONFIGS

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

ROWS: dict[str, AblationRow] = {row.name: row for table in ABLATIONS.values() for row in table.rows}
SEGMENTED = [name for name, row in ROWS.items() if 'seg' in row.paper]
BASES = {'cls': {'pelk_t', 'pelk_t_384'}, 'seg': {'upernet_pelk_t_80k'}}


@pytest.fixture(autouse=True)
def _leave_no_scope() -> Any:
    """The scope is global in mmengine; give the next test the one that it would have had."""
    previous = DefaultScope.get_current_instance()
    yield
    if previous is not None:
        init_default_scope(previous.scope_name)


# The plan


@pytest.mark.parametrize('stage', ['cls', 'seg'])
def test_every_recipe_is_a_row_and_every_row_has_its_recipe(stage: str) -> None:
    recipes = {path.stem for path in (CONFIGS / stage / 'ablations').glob('*.py')}
    assert recipes - BASES[stage] == {name for name, row in ROWS.items() if stage in row.paper}
    assert sum(len(table.rows) for table in ABLATIONS.values()) == len(ROWS), 'no recipe is two rows'


def test_equal_recipes_are_trained_once() -> None:
    shared = {
        (stage, name): trained_as(stage, name)
        for name, row in ROWS.items()
        for stage in row.paper
        if trained_as(stage, name) != name
    }
    assert shared == {
        ('cls', 'table7_51_224'): 'table6_center_5',
        **{(stage, 'fig2_stripe_51'): 'table1_slak_51_no_sparsity' for stage in ('cls', 'seg')},
        **{(stage, 'fig2_dense_51'): 'table1_replk_51_no_sparsity' for stage in ('cls', 'seg')},
    }


def test_a_recipe_is_the_callers_own() -> None:
    """MMPretrain writes into the config of a model that it builds; the next caller must not see that."""
    init_default_scope('mmpretrain')
    before = recipe('cls', 'table6_center_5').model
    before.backbone.arch.update(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20))
    before.head.in_channels = 20
    MODELS.build(before)
    assert recipe('cls', 'table6_center_5').model == recipe('cls', 'table7_51_224').model != before


def test_computed_columns_are_the_printed_ones() -> None:
    columns = {
        name: [column for column in computed(row, table) if column.printed is not None]
        for table in ABLATIONS.values()
        for name, row in ((row.name, row) for row in table.rows)
    }
    assert sum(map(len, columns.values())) == 6 + 4 + 2, 'Table 5, Table 6, Fig. 2'
    assert {name: column.deviation for name, found in columns.items() for column in found if column.deviation} == {}


def test_grids_are_the_printed_ones_except_where_those_do_not_sum_to_the_kernel() -> None:
    printed = {name: row.printed_grid for name, row in ROWS.items() if row.printed_grid}
    assert len(printed) == 5 + 4
    different = {name for name, half in printed.items() if half_grid(grids(recipe('cls', name))[0]) != half}
    sums = {name: sum(mirror_half_grid(half)) for name, half in printed.items()}
    assert different == {'table5_2_twos', 'table5_3_twos_center5'}
    assert {name: sums[name] for name in different} == {'table5_2_twos': 29, 'table5_3_twos_center5': 31}
    assert {total for name, total in sums.items() if name not in different} == {33, 51}


def test_labels_say_what_the_recipes_say() -> None:
    for row in ABLATIONS['7'].rows:
        cfg = recipe('cls', row.name)
        size = cfg.train_dataloader.dataset.pipeline[1].scale
        kernels = '-'.join(map(str, cfg.model.backbone.arch.kernel_sizes))
        assert row.label[1:] == (f'{size} x {size}', kernels)
    for row in ABLATIONS['6'].rows:
        center = recipe('cls', row.name).model.backbone.arch.center_size
        assert row.label == (str(list(row.printed_grid)), f'{center} x {center}')
    for row in ABLATIONS['1'].rows:
        cfg = recipe('cls', row.name)
        assert (cfg.model.backbone.mixer == 'dense') == row.label[0].startswith('RepLK')
        assert (len(cfg.custom_hooks) == 2) == (row.label[2] == 'w/')
    for row in ABLATIONS['fig2'].rows:
        backbone = recipe('cls', row.name).model.backbone
        assert row.label[0].startswith(backbone.mixer)
        assert row.label[1] == str(backbone.arch.kernel_sizes[0])


@pytest.mark.parametrize('grid', [(2, 1, 2), (1,) * 7, mirror_half_grid([1, 1, 2, 4, 8, 1]), (9, 1, 1, 1, 9)])
def test_center_share_counts_the_positions_that_share_nothing(grid: tuple[int, ...]) -> None:
    """By looking at the positions, from the middle outwards."""
    widths = [width for width in grid for _ in range(width)]
    radius = -1
    while radius < len(widths) // 2 and widths[len(widths) // 2 + radius + 1 : len(widths) // 2 + radius + 2] == [1]:
        radius += 1
    assert center_share(grid) == (2 * radius + 1) ** 2 / len(widths) ** 2


@pytest.mark.parametrize('name', ['table1_slak_51', 'fig2_dense_31', 'table5_4_fours_center5', 'table7_101_224'])
def test_kernel_parameters_are_those_of_the_built_network(name: str) -> None:
    cfg = recipe('cls', name)
    init_default_scope('mmpretrain')
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    built = [
        sum(parameter.numel() for parameter in stage[0].mixer.large.parameters()) / stage[0].mixed_channels
        for stage in backbone.stages
    ]
    assert stage_kernel_parameters(cfg) == built


# The segmentation recipes


@pytest.mark.parametrize('name', SEGMENTED)
def test_segmentation_goes_on_with_the_pretrained_backbone(name: str) -> None:
    pretraining, cfg = recipe('cls', name), recipe('seg', name)
    own, inherited = cfg.model.backbone.to_dict(), pretraining.model.backbone.to_dict()
    # What segmentation sets, and sets for all of its recipes.
    of_task = {'out_indices', 'gap_before_final_norm', 'layer_scale_init_value', 'drop_path_rate', 'init_cfg'}
    assert {key: own[key] for key in own.keys() - of_task} == {
        key: inherited[key] for key in inherited.keys() - of_task
    }
    main = Config.fromfile(CONFIGS / 'seg' / 'upernet_pelk_t_ade20k.py')
    assert {key: own[key] for key in of_task - {'init_cfg'}} == {
        key: main.model.backbone[key] for key in of_task - {'init_cfg'}
    }
    assert own['init_cfg'] == dict(main.model.backbone.init_cfg, checkpoint=f'checkpoints/{name}.pth')
    # The masks are kept where there are any.
    sparse = any(hook.type == 'mmpelk.SparsityHook' for hook in pretraining.custom_hooks)
    assert cfg.custom_hooks == (main.custom_hooks if sparse else [])
    # 80k iterations, and nothing else, instead of 160k.
    assert cfg.train_cfg == dict(main.train_cfg, max_iters=80000)
    warm_up, decay = main.param_scheduler
    assert cfg.param_scheduler == [warm_up, dict(decay, end=80000)]
    same = ('train_dataloader', 'val_dataloader', 'optim_wrapper', 'val_evaluator', 'default_hooks', 'auto_scale_lr')
    assert {key: cfg[key] for key in same} == {key: main[key] for key in same}


@pytest.mark.parametrize('name', SEGMENTED)
def test_segmentation_recipe_builds_and_predicts(name: str) -> None:
    cfg = Config.fromfile(CONFIGS / 'seg' / 'ablations' / f'{name}.py')
    cfg.merge_from_dict({
        'model.backbone.arch': dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20)), 'model.backbone.init_cfg': None,
        'model.decode_head.in_channels': [8, 12, 16, 20], 'model.decode_head.channels': 8,
        'model.auxiliary_head.in_channels': 16, 'model.auxiliary_head.channels': 8,
    })  # fmt: skip
    init_default_scope('mmseg')
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64), mode='tensor').shape == (1, 150, 16, 16)


# Work folders


def write_start(folder: Path, second: int, lines: list[dict], config: str = '', gpus: int = 2) -> None:
    """A start of a training as mmengine leaves it behind; two epochs unless the config says otherwise."""
    start = folder / f'20260102_0304{second:02}'
    (start / 'vis_data').mkdir(parents=True)
    (start / 'vis_data' / 'config.py').write_text(config or 'train_cfg = dict(max_epochs=2)\n')
    (start / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    (start / f'{start.name}.log').write_text(f'    GPU 0,1: NVIDIA H100\n    GPU number: {gpus}\n')


def write_trained(
    work: Path, stage: str, name: str, value: float, options: dict | None = None, gpus: int = 0, seed: int = 0
) -> None:
    """A finished training of a recipe with options, on the recipe's number of GPUs unless told."""
    lines = epoch(120, value) if stage == 'cls' else [dict(loss=1.0, iter=50, step=50), dict(mIoU=value, step=80000)]
    cfg = recipe(stage, name)
    cfg.merge_from_dict(options or {})
    config = '\n'.join(f'{key} = {setting!r}' for key, setting in cfg.to_dict().items())
    write_start(run_folder(work, stage, name, seed), 1, lines, config, gpus or (32 if stage == 'cls' else 8))


def epoch(number: int, top1: float | None = None) -> list[dict]:
    """Log lines of an epoch, with its test."""
    trained = dict(loss=1.0, epoch=number, iter=10 * number, step=10 * number)
    return [trained] + ([{'accuracy/top1': top1, 'step': number}] if top1 is not None else [])


METRIC = 'accuracy/top1'
THREE = 'train_cfg = dict(max_epochs=3)'
LONG = 'train_cfg = dict(max_epochs=120)'


def test_finished_run(tmp_path: Path) -> None:
    write_start(tmp_path, 1, [*epoch(1, 80.5), *epoch(2, 80.0)])
    run = read_run(tmp_path, METRIC)
    assert (run.status, run.final, run.best, run.progress, run.planned) == ('finished', 80.0, 80.5, 2, 2)
    assert (run.machine, run.date) == ('2 x NVIDIA H100', '2026-01-02')
    assert run.checkpoint(2) == tmp_path / 'epoch_2.pth'


def test_run_that_never_began(tmp_path: Path) -> None:
    run = read_run(tmp_path / 'nothing', METRIC)
    assert (run.status, run.final, run.best) == ('missing', None, None)


def test_resumed_run_is_one_run(tmp_path: Path) -> None:
    write_start(tmp_path, 1, [*epoch(1, 80.0), *epoch(2)], THREE)
    assert read_run(tmp_path, METRIC).status == 'unfinished'
    write_start(tmp_path, 2, [*epoch(2, 80.1), *epoch(3, 80.2)], THREE)
    run = read_run(tmp_path, METRIC)
    assert (run.status, run.tested) == ('finished', {1: 80.0, 2: 80.1, 3: 80.2})


def test_training_started_anew_does_not_inherit_the_end(tmp_path: Path) -> None:
    write_start(tmp_path, 1, [*epoch(1, 70.0), *epoch(2, 71.0)])
    write_start(tmp_path, 2, epoch(1, 80.0))
    run = read_run(tmp_path, METRIC)
    assert (run.status, run.tested, run.progress) == ('unfinished', {1: 80.0}, 1)


def test_killed_while_writing_a_line(tmp_path: Path) -> None:
    write_start(tmp_path, 1, [*epoch(1, 80.0), *epoch(2)])
    log = next(tmp_path.glob('*/vis_data/scalars.json'))
    log.write_text(log.read_text() + '\n{"accuracy/top1": 80.')
    run = read_run(tmp_path, METRIC)
    assert (run.status, run.tested) == ('unfinished', {1: 80.0})


def test_several_seeds_in_several_folders(tmp_path: Path) -> None:
    name = 'table5_5_exponential'
    values = {0: 81.0, 1: 81.5, 2: 82.0}
    for seed, value in values.items():
        write_trained(tmp_path / ('here' if seed else 'there'), 'cls', name, value, seed=seed)
    write_start(run_folder(tmp_path / 'here', 'cls', name, 3), 1, epoch(7, 12.0), LONG)
    # Of a seed that two folders have, the run that came furthest.
    write_start(run_folder(tmp_path / 'here', 'cls', name, 0), 1, epoch(7, 12.0), LONG)
    measured = collect([tmp_path / 'here', tmp_path / 'there'])[name]['cls']
    assert measured.values == list(values.values())
    assert measured.mean == 81.5
    assert measured.deviation == statistics.stdev(values.values()) == 0.5
    assert measured.text() == '81.50 ± 0.50 (n = 3)'
    assert [run.status for run in measured.runs.values()] == ['finished'] * 3 + ['unfinished']
    one = collect([tmp_path / 'there'])[name]['cls']
    assert (one.deviation, one.text()) == (None, '81.00 (n = 1)')


# What run_ablations.py changes for eight GPUs, and what a machine may change.
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
CHANGES: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    'nothing': ({}, 32, []),
    'eight_gpus': (ON_EIGHT, 8, []),
    'paths_and_workers': (ELSEWHERE, 32, []),
    'more_gpus_of_fewer_images': ({'train_dataloader.batch_size': 64}, 64, []),
    'steps': ({'param_scheduler.0.end': 1}, 32, ['schedule']),
    'model': ({'model.backbone.arch.center_size': 3}, 32, ['model']),
    'data': ({'train_dataloader.dataset.split': 'val'}, 32, ['data']),
    'learning_rate': ({'optim_wrapper.optimizer.lr': 1e-3}, 32, ['optimizer']),
    'scaled_learning_rate': ({'auto_scale_lr.enable': True}, 32, ['optimizer']),
    'no_hooks': ({'custom_hooks': []}, 32, ['hooks']),
    'momentum': ({'custom_hooks.0.momentum': 0.5}, 32, ['hooks']),
    'interval': (ON_EIGHT | {'custom_hooks.0.update_interval': 2000}, 8, ['hooks']),
    'images_of_a_gpu': ({'train_dataloader.batch_size': 64}, 32, ['batch']),
    'gpus': ({}, 8, ['batch']),
    'test_images': ({'val_dataloader.dataset.split': 'train'}, 32, ['test']),
}


@pytest.mark.parametrize(('options', 'gpus', 'told'), CHANGES.values(), ids=CHANGES)
def test_what_is_not_the_papers_experiment_says_so(
    options: dict[str, Any], gpus: int, told: list[str], tmp_path: Path
) -> None:
    write_trained(tmp_path, 'cls', 'table1_slak_51', 3.0, options, gpus)
    measured = collect([tmp_path])['table1_slak_51']['cls']
    assert measured.changed(measured.runs[0]) == told
    assert measured.text() == (f'3.00 (n = 1, other {told[0]})' if told else '3.00 (n = 1)')


def test_dumped_recipe_is_the_recipe(tmp_path: Path) -> None:
    """As mmengine writes a config down."""
    write_trained(tmp_path, 'seg', 'table1_slak_51', 46.0)
    start = next(run_folder(tmp_path, 'seg', 'table1_slak_51', 0).glob('*/vis_data/config.py'))
    recipe('seg', 'table1_slak_51').dump(start)
    assert collect([tmp_path])['table1_slak_51']['seg'].text() == '46.00 (n = 1)'


def test_segmentation_after_another_pretraining_says_so(tmp_path: Path) -> None:
    write_trained(tmp_path, 'seg', 'table1_slak_51', 46.0)
    write_trained(tmp_path, 'cls', 'table1_slak_51', 81.0, gpus=8)
    results = collect([tmp_path])['table1_slak_51']
    assert results['seg'].text() == '46.00 (n = 1, other pre-training)'
    assert results['cls'].text() == '81.00 (n = 1, other batch)'


def test_unfinished_and_missing_rows(tmp_path: Path) -> None:
    write_start(run_folder(tmp_path, 'cls', 'table7_51_224', 4), 1, epoch(33, 60.0), LONG)
    results = collect([tmp_path])
    # One training for both rows.
    for name in ('table6_center_5', 'table7_51_224'):
        assert results[name]['cls'].text() == 'seed 4: epoch 33 of 120'
    assert results['table7_101_224']['cls'].text() == 'target'


def test_gain_and_report(tmp_path: Path) -> None:
    for name, value in (('table1_slak_51', 46.0), ('table1_replk_51', 46.75)):
        write_trained(tmp_path, 'seg', name, value)
    assert gain(ROWS['table1_replk_51'], collect([tmp_path])) == 0.75
    written = json.loads(json.dumps(report([tmp_path])))
    rows = {row['name']: row for table in written['tables'].values() for row in table['rows']}
    assert rows.keys() == ROWS.keys()
    assert rows['table1_replk_51']['gain'] == dict(over='table1_slak_51', measured=0.75, paper=0.4)
    run = rows['table1_replk_51']['metrics']['seg']['runs'][0]
    assert (run['status'], run['final'], run['machine'], run['changed']) == ('finished', 46.75, '8 x NVIDIA H100', [])
    assert rows['fig2_dense_51']['metrics']['seg']['text'] == 'target'
    assert rows['table5_2_twos']['half_grid'] == [2] * 8 + [1]
    assert rows['fig2_dense_51']['metrics']['seg']['paper'] is None, 'the bars are not in the text'


def written(work: Path) -> dict[str, Any]:
    """The report as it comes back from the file."""
    return json.loads(json.dumps(report([work])))


def test_rows_measured_elsewhere_are_kept(tmp_path: Path) -> None:
    there, here = tmp_path / 'there', tmp_path / 'here'
    write_trained(there, 'seg', 'table1_slak_51', 46.0)
    write_trained(there, 'cls', 'table6_center_1', 80.0)
    write_trained(here, 'seg', 'table1_replk_51', 46.75)
    write_trained(here, 'cls', 'table6_center_1', 81.0)
    merged = merge(written(here), written(there))
    rows = {row['name']: row for table in merged['tables'].values() for row in table['rows']}
    assert rows['table1_slak_51']['metrics']['seg']['text'] == '46.00 (n = 1)', 'of the file'
    assert rows['table1_replk_51']['metrics']['seg']['text'] == '46.75 (n = 1)', 'of the folder'
    assert rows['table1_replk_51']['gain']['measured'] == 0.75, 'of both'
    assert rows['table6_center_1']['metrics']['cls']['text'] == '81.00 (n = 1)', 'trained again'
    assert merge(written(there), dict(tables={})) == written(there)


def test_seeds_measured_elsewhere_are_not_lost_silently(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_trained(tmp_path / 'there', 'cls', 'table6_center_1', 80.0, seed=seed)
    write_trained(tmp_path / 'here', 'cls', 'table6_center_1', 81.0)
    with pytest.raises(ValueError, match=r'seeds of cls/table6_center_1 that these folders do not have: 1, 2; name'):
        merge(written(tmp_path / 'here'), written(tmp_path / 'there'))
    with pytest.raises(ValueError, match='no report of ablations'):
        merge(written(tmp_path / 'here'), dict(tables=[1]))
