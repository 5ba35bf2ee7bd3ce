"""Ablation recipes of the paper's tables: each varies what its table varies, and nothing else."""

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS

from mmpelk.ops.sharing_grid import mirror_half_grid, resolve_sharing_grid
from tests.configs.resolved import config, difference
from tests.configs.test_recipes import LARGE_IMAGES
from tests.paths import CONFIGS

pytestmark = pytest.mark.scope('mmpretrain')

ABLATIONS = sorted(path.stem for path in (CONFIGS / 'cls' / 'ablations').glob('*.py'))

ARCH, BACKBONE = 'model.backbone.arch', 'model.backbone'
EMA_ONLY = [dict(type='EMAHook', momentum=1e-4)]
NO_SPARSITY = {'custom_hooks': EMA_ONLY}
BASELINE = {f'{BACKBONE}.conv_ratio': 1.0, f'{BACKBONE}.positional_embedding': None}
STRIPE = {f'{BACKBONE}.mixer': 'stripe', **BASELINE}
DENSE = {f'{BACKBONE}.mixer': 'dense', **BASELINE}
K_FIG2 = {51: (51, 49, 47, 13), 31: (31, 29, 27, 13), 13: (13, 13, 13, 13), 7: (7, 7, 7, 7)}
GRIDS = {
    'table5_1_ones': [1] * 33,
    'table5_2_twos': [2] * 8 + [1],
    'table5_3_twos_center5': [2] * 7 + [1, 1, 1],
    'table5_4_fours_center5': [4, 4, 4, 2, 1, 1, 1],
    'table5_5_exponential': [8, 4, 2, 1, 1, 1],
    'table5_6_reversed': [1, 1, 2, 4, 8, 1],
}
K101 = {f'{ARCH}.kernel_sizes': (101, 69, 67, 13), f'{ARCH}.center_size': 7}
K151 = {f'{ARCH}.kernel_sizes': (151, 89, 87, 13), f'{ARCH}.center_size': 7}


def recipe(name: str) -> Config:
    return Config.fromfile(config(f'cls/ablations/{name}'))


# Recipe, its base, and everything in which it differs from that.
DIFFERENCES: list[tuple[str, str, dict[str, Any]]] = [
    ('pelk_t', '../pelk_t_in1k', {'train_cfg.max_epochs': 120, 'param_scheduler.1.end': 120}),
    ('pelk_t_384', 'pelk_t', {key: after for key, (_, after) in LARGE_IMAGES.items()}),
    ('table1_slak_51', 'pelk_t', STRIPE),
    ('table1_replk_51', 'pelk_t', DENSE),
    ('table1_slak_51_no_sparsity', 'table1_slak_51', NO_SPARSITY),
    ('table1_replk_51_no_sparsity', 'table1_replk_51', NO_SPARSITY),
    *(
        (f'fig2_{form}_{k}', f'table1_{name}_51_no_sparsity', {f'{ARCH}.kernel_sizes': sizes} if k != 51 else {})
        for form, name in (('stripe', 'slak'), ('dense', 'replk'))
        for k, sizes in K_FIG2.items()
    ),
    (
        'table5_1_ones',
        'pelk_t',
        {
            f'{ARCH}.kernel_sizes': (33, 33, 33, 33),
            **{f'{ARCH}.sharing_grids.{i}': (1,) * 33 for i in range(4)},
            f'{BACKBONE}.positional_embedding': None,
            **NO_SPARSITY,
        },
    ),
    *(
        (name, 'table5_1_ones', {f'{ARCH}.sharing_grids.{i}': tuple(grid) for i in range(4)})
        for name, grid in GRIDS.items()
        if name != 'table5_1_ones'
    ),
    *((f'table6_center_{c}', 'pelk_t', {f'{ARCH}.center_size': c} if c != 5 else {}) for c in (1, 3, 5, 7)),
    *(
        (f'table7_{k}_{size}', base, changes)
        for size, base in ((224, 'pelk_t'), (384, 'pelk_t_384'))
        for k, changes in ((51, {}), (101, K101), (151, K151))
    ),
]


@pytest.mark.parametrize(('name', 'base', 'changes'), DIFFERENCES, ids=[name for name, *_ in DIFFERENCES])
def test_recipe_varies_only_what_the_table_varies(name: str, base: str, changes: dict[str, Any]) -> None:
    found = difference(f'cls/ablations/{base}', f'cls/ablations/{name}')
    assert {key: after for key, (_, after) in found.items()} == changes


def test_every_ablation_is_compared_with_its_base() -> None:
    assert sorted(name for name, *_ in DIFFERENCES) == ABLATIONS


@pytest.mark.parametrize(('name', 'printed'), [*zip(GRIDS, (1.0, 0.27, 0.33, 0.16, 0.11, 0.11), strict=True)])
def test_grids_of_table_5_have_the_printed_parameters(name: str, printed: float) -> None:
    for kernel_size, grid in zip((33,) * 4, recipe(name).model.backbone.arch.sharing_grids, strict=True):
        rings = len(resolve_sharing_grid(kernel_size, grid, 5))
        assert round(rings**2 / 33**2, 2) == printed
    if name != 'table5_1_ones':
        assert sum(mirror_half_grid(GRIDS[name])) == 33


def test_multiples_of_figure_2() -> None:
    """From 7 to 51, stripes get 7.3 times as many parameters and dense kernels 53.1 times as many, as printed."""
    counts = {}
    for form in ('stripe', 'dense'):
        for k in (7, 51):
            with torch.device('meta'):
                model = MODELS.build(recipe(f'fig2_{form}_{k}').model)
            counts[form, k] = sum(p.numel() for p in model.backbone.stages[0][0].mixer.large.parameters())
    assert round(counts['stripe', 51] / counts['stripe', 7], 1) == 7.3
    assert round(counts['dense', 51] / counts['dense', 7], 1) == 53.1


@pytest.mark.parametrize('name', ABLATIONS)
def test_ablation_builds_and_classifies(name: str) -> None:
    cfg = recipe(name)
    cfg.model.backbone.arch.update(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20))
    cfg.model.head.in_channels = 20
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
