"""The rows of the ablations: their recipes, their networks, and the printed values that follow from them."""

import ast
from typing import Any

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmpelk.ops.sharing_grid import mirror_half_grid
from reproduction.ablations import ABLATIONS, ROWS, half_grid, network, recipe_text, trained_as
from reproduction.collect_ablations import recipe
from tests.configs.resolved import difference, flatten, resolved
from tests.configs.test_recipes import LARGE_IMAGES
from tests.paths import CONFIGS

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

EVERY = [(stage, name) for name, row in ROWS.items() for stage in row.paper]
# What the recipes of a stage have in common, and what they have without sparsity.
BASES = {'cls': {'pelk_t', 'pelk_t_384'}, 'seg': {'upernet_pelk_t_80k'}}
NO_SPARSITY: dict[str, Any] = {'cls': [dict(type='EMAHook', momentum=1e-4)], 'seg': ()}
WEIGHTS = 'model.backbone.init_cfg.checkpoint'


# The recipes


@pytest.mark.parametrize('stage', ['cls', 'seg'])
def test_recipes_are_those_of_the_rows(stage: str) -> None:
    texts = {path.stem: path.read_text() for path in (CONFIGS / stage / 'ablations').glob('*.py')}
    written = {name: recipe_text(stage, name) for _, name in filter(lambda one: one[0] == stage, EVERY)}
    assert {name: text for name, text in texts.items() if name not in BASES[stage]} == written, (
        'python -m reproduction.ablations --write'
    )
    assert texts.keys() == written.keys() | BASES[stage]
    assert sum(len(table.rows) for table in ABLATIONS.values()) == len(ROWS), 'no recipe is two rows'


def changed(base: str, name: str) -> dict[str, Any]:
    """The second recipe's values that are not the first's, the architecture's beside those of the backbone."""
    return {key: after for key, (_, after) in difference(base, name).items()}


@pytest.mark.parametrize('stage', ['cls', 'seg'])
def test_recipes_vary_only_what_their_rows_vary(stage: str) -> None:
    for _, name in filter(lambda one: one[0] == stage, EVERY):
        common, changes, sparse = ROWS[name].training()
        expected = flatten(changes, 'model.backbone') if changes else {}
        if sparse is False:
            expected['custom_hooks'] = NO_SPARSITY[stage]
        if stage == 'seg':
            expected[WEIGHTS] = f'checkpoints/{trained_as(stage, name)}.pth'
        base = 'upernet_pelk_t_80k' if stage == 'seg' else common
        assert changed(f'{stage}/ablations/{base}', f'{stage}/ablations/{name}') == expected, name


def test_what_recipes_have_in_common_is_shorter_and_nothing_else() -> None:
    pelk_t = changed('cls/pelk_t_in1k', 'cls/ablations/pelk_t')
    assert pelk_t == {'train_cfg.max_epochs': 120, 'param_scheduler.1.end': 120}
    large = {key: after for key, (_, after) in LARGE_IMAGES.items()}
    assert changed('cls/ablations/pelk_t', 'cls/ablations/pelk_t_384') == large
    upernet = changed('seg/upernet_pelk_t_ade20k', 'seg/ablations/upernet_pelk_t_80k')
    architecture = {key for key in upernet if key.rpartition('.')[0] == 'model.backbone'}
    assert {key: value for key, value in upernet.items() if key not in architecture} == {
        'train_cfg.max_iters': 80000,
        'param_scheduler.1.end': 80000,
        WEIGHTS: 'checkpoints/pelk_t.pth',
    }


def test_equal_recipes_are_trained_once() -> None:
    """Those of a table that names them first; and no two recipes that resolve to the same settings are trained both."""
    shared = {one: trained_as(*one) for one in EVERY if trained_as(*one) != one[1]}
    assert shared == {
        ('cls', 'table7_51_224'): 'table6_center_5',
        **{(stage, 'fig2_stripe_51'): 'table1_slak_51_no_sparsity' for stage in ('cls', 'seg')},
        **{(stage, 'fig2_dense_51'): 'table1_replk_51_no_sparsity' for stage in ('cls', 'seg')},
    }
    trained = [one for one in EVERY if one not in shared]
    assert len(trained) == 25 + 10
    settings = [
        repr(sorted((key, value) for key, value in resolved(f'{stage}/ablations/{name}').items() if key != WEIGHTS))
        for stage, name in trained
    ]
    assert len(set(settings)) == len(settings)


# The networks


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Of all parameters but those of the norms of the output, which segmentation has at every stage."""
    return {name: tensor.shape for name, tensor in model.named_parameters() if not name.startswith('norm')}


@pytest.mark.slow
def test_networks_are_those_of_the_recipes() -> None:
    """Of one of every pair of equal recipes; what a stage varies is that of the row, see above."""
    for stage, name in {name: (stage, name) for stage, name in EVERY}.values():
        with torch.device('meta'):
            models = MODELS.build(recipe(stage, name).model.backbone), network(name)
        assert shapes(models[0]) == shapes(models[1]), name
        grids = [[getattr(part[0].mixer.large, 'sharing_grid', None) for part in model.stages] for model in models]
        assert grids[0] == grids[1], name


@pytest.mark.parametrize('stage', ['cls', 'seg'])
def test_recipes_build_and_run(stage: str) -> None:
    for name in ('table1_slak_51', 'table1_replk_51', 'fig2_dense_13'):
        cfg = recipe(stage, name)
        cfg.model.backbone.update(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), init_cfg=None)
        if stage == 'cls':
            cfg.model.head.in_channels = 20
        else:
            cfg.model.decode_head.update(in_channels=[8, 12, 16, 20], channels=8)
            cfg.model.auxiliary_head.update(in_channels=16, channels=8)
        with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
            model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
            out = model(torch.rand(1, 3, 64, 64), mode='tensor')
        assert out.shape == ((1, 1000) if stage == 'cls' else (1, 150, 16, 16))


# The paper


@pytest.mark.slow
def test_computed_columns_are_the_printed_ones() -> None:
    columns = [
        (row.name, row.printed, round(value(row), digits))
        for table in ABLATIONS.values()
        for digits, value in list(table.computed.values())[:1]
        for row in table.rows
        if row.printed is not None
    ]
    assert len(columns) == 6 + 4 + 2, 'Table 5, Table 6, Fig. 2'
    assert [printed for _, printed, _ in columns] == [value for *_, value in columns]


def test_grids_are_the_printed_ones_except_where_those_do_not_sum_to_the_kernel() -> None:
    grids = {row.name: row.label[1] for row in ABLATIONS['5'].rows[1:]}
    printed = {name: ast.literal_eval(text) for name, text in grids.items()}
    printed |= {row.name: ast.literal_eval(row.label[0]) for row in ABLATIONS['6'].rows}
    sums = {name: sum(mirror_half_grid(half)) for name, half in printed.items()}
    different = {name for name, half in printed.items() if half_grid(name) != tuple(half)}
    assert {name: sums[name] for name in different} == {'table5_2_twos': 29, 'table5_3_twos_center5': 31}
    assert {total for name, total in sums.items() if name not in different} == {33, 51}


def test_labels_of_table_1_say_what_the_recipes_say() -> None:
    for row in ABLATIONS['1'].rows:
        cfg = recipe('cls', row.name)
        assert (cfg.model.backbone.mixer == 'dense') == row.label[0].startswith('RepLK')
        assert (len(cfg.custom_hooks) == 2) == (row.label[2] == 'w/')
