"""What the paper prints, as data: complete, and consistent in itself and with the project's networks."""

import pytest

from mmpelk import list_configs
from mmpelk.models import ARCHITECTURES
from mmpelk.ops import sharing_grid
from mmpelk.ops.sharing_grid import mirror_half_grid
from reproduction.paper import FLOPS_DECIMALS, GROWTH, SHARING_GRIDS, TABLE_8, TABLES, PrintedGrid


@pytest.mark.parametrize(('number', 'rows', 'ours'), [(2, 14, 4), (3, 12, 4), (4, 25, 5)])
def test_tables_are_complete(number: int, rows: int, ours: int) -> None:
    table = TABLES[number]
    assert len({(row.method, row.input_size) for row in table}) == len(table) == rows
    assert sum(row.is_ours for row in table) == ours
    for row in table:
        assert row.scores.keys() == table[0].scores.keys()
        assert all(40 < score < 90 for score in row.scores.values())
        assert row.flops == round(row.flops, FLOPS_DECIMALS[number])
        assert (row.network.own_name in list_configs()) == row.is_ours
        assert bool(row.network.package) != row.method.startswith(('PVT', 'PerViT'))


def test_kernels_are_the_networks() -> None:
    for row in (row for row in TABLES[2] if row.is_ours):
        assert row.kernel_sizes == ARCHITECTURES['base-101' if '101' in row.method else 'base']['kernel_sizes']


def test_statements_follow_from_their_definition() -> None:
    assert {'dense': round((51 / 7) ** 2, 1), 'stripe': round(51 / 7, 1)} == GROWTH
    assert round(TABLE_8['PeLK-T'] / TABLE_8['SLaK-T'], 1) == 1.5, 'as stated'


@pytest.mark.parametrize('known', SHARING_GRIDS, ids=lambda grid: f'{grid.kernel_size}-centre-{grid.center_size}')
def test_grids(known: PrintedGrid) -> None:
    grid = tuple(mirror_half_grid(known.half))
    assert sum(grid) == known.kernel_size
    assert (tuple(sharing_grid(known.kernel_size, known.center_size)) == grid) == known.follows_rule
