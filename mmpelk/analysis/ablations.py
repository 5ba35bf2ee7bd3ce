"""Tables 1, 5, 6, 7 and Fig. 2 of the paper: what is trained for each row, and what is printed there.

A row is a recipe of ``configs/cls/ablations``; those of Table 1 and Fig. 2 go on with the recipe of the same name in
``configs/seg/ablations``. ``tools/analysis/run_ablations.py`` trains them, :mod:`.ablation_results` reads what it left.
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config

from mmpelk.config import config_path
from mmpelk.models.mixers import MIXERS, MixerSpec
from mmpelk.ops.sharing_grid import resolve_sharing_grid

__all__ = [
    'ABLATIONS',
    'METRICS',
    'AblationRow',
    'AblationTable',
    'Computed',
    'center_share',
    'computed',
    'grids',
    'half_grid',
    'recipe',
    'recipe_path',
    'stage_kernel_parameters',
]

# Stage of the experiment: name of its metric in mmengine's logs, and heading of its column.
METRICS = {'cls': ('accuracy/top1', 'top-1, %'), 'seg': ('mIoU', 'mIoU, %')}


@dataclass(frozen=True)
class AblationRow:
    """One row of a table, or one bar of the figure.

    Attributes:
        name: Its recipe in ``configs/cls/ablations`` and, if ``paper`` has a ``'seg'``, in ``configs/seg/ablations``.
        label: What the paper prints in the columns that describe it.
        paper: The printed metric in percent, by stage; ``None`` for one that the paper shows without its value.
        printed: Printed values of computed columns, by heading.
        printed_grid: Half of the first stage's sharing grid, from the rim to the centre, as printed.
        gain_over: The row that the paper gives this one's gain in mIoU over.
        paper_gain: That gain, in points.
    """

    name: str
    label: tuple[str, ...]
    paper: Mapping[str, float | None]
    printed: Mapping[str, float] = field(default_factory=dict)
    printed_grid: tuple[int, ...] | None = None
    gain_over: str | None = None
    paper_gain: float | None = None


@dataclass(frozen=True)
class AblationTable:
    """A table or figure of the paper.

    Attributes:
        title: Its number and subject.
        columns: Headings of the rows' labels.
        rows: In the paper's order.
        columns_computed: Further columns: heading, printed digits, and the function of a row and its table.
        notes: What differs from the paper's print, and why.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[AblationRow, ...]
    columns_computed: tuple[tuple[str, int, Callable[[AblationRow, 'AblationTable'], float]], ...] = ()
    notes: tuple[str, ...] = ()


# What follows from the recipes


def recipe_path(stage: str, name: str) -> Path:
    """File of an ablation's recipe.

    Args:
        stage: ``'cls'`` or ``'seg'``.
        name: A row's ``name``.
    """
    return Path(config_path(f'{stage}/ablations/{name}.py'))


@functools.cache
def _read_recipe(stage: str, name: str) -> Config:
    return Config.fromfile(recipe_path(stage, name))


def recipe(stage: str, name: str) -> Config:
    """An ablation's recipe with its bases merged; the caller's own, since building a model changes its config."""
    return copy.deepcopy(_read_recipe(stage, name))


def grids(cfg: Config) -> list[tuple[int, ...]]:
    """Sharing grid of every stage of a recipe's backbone; dense kernels have ones."""
    arch = cfg.model.backbone.arch
    given = arch.get('sharing_grids') or [None] * len(arch.kernel_sizes)
    if cfg.model.backbone.get('mixer', 'peripheral') != 'peripheral':
        return [(1,) * size for size in arch.kernel_sizes]
    return [
        resolve_sharing_grid(size, grid, min(arch.get('center_size', 5), size))
        for size, grid in zip(arch.kernel_sizes, given, strict=True)
    ]


def half_grid(grid: Sequence[int]) -> tuple[int, ...]:
    """The half from the rim to the centre that the paper prints.

    Example:
        >>> half_grid((2, 1, 2))
        (2, 1)
    """
    return tuple(grid[: len(grid) // 2 + 1])


def center_share(grid: Sequence[int]) -> float:
    """Area of the fine-grained centre over that of the kernel (Table 6).

    Example:
        >>> round(center_share((9, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 9)), 4)
        0.0096
    """
    half = half_grid(grid)
    radius = next((i for i, width in enumerate(reversed(half)) if width != 1), len(half)) - 1
    return (2 * radius + 1) ** 2 / sum(grid) ** 2 if radius >= 0 else 0.0


def stage_kernel_parameters(cfg: Config) -> list[int]:
    """Parameters of a large kernel per channel, in every stage; neither norms nor the parallel small kernel."""
    mixer = cfg.model.backbone.get('mixer', 'peripheral')
    counts = []
    for size, grid in zip(cfg.model.backbone.arch.kernel_sizes, grids(cfg), strict=True):
        with torch.device('meta'):
            built = MIXERS[mixer](MixerSpec(1, size, sharing_grid=grid if mixer == 'peripheral' else None))
        counts.append(sum(parameter.numel() for parameter in built.large.parameters()))
    return counts


def _all_kernel_parameters(cfg: Config) -> int:
    arch, ratio = cfg.model.backbone.arch, cfg.model.backbone.get('conv_ratio', 3 / 8)
    stages = zip(stage_kernel_parameters(cfg), arch.depths, arch.channels, strict=True)
    return sum(count * depth * int(ratio * channels) for count, depth, channels in stages)


def _first_kernel_over_first_row(row: AblationRow, table: AblationTable) -> float:
    own, first = (stage_kernel_parameters(recipe('cls', name))[0] for name in (row.name, table.rows[0].name))
    return own / first


def _center_percent(row: AblationRow, table: AblationTable) -> float:
    return 100 * center_share(grids(recipe('cls', row.name))[0])


def _smallest(row: AblationRow, table: AblationTable) -> Config:
    """The recipe of the same form with the smallest kernels."""
    form = row.label[0]
    return recipe('cls', next(other.name for other in table.rows if other.label[0] == form))


def _first_kernel_over_smallest(row: AblationRow, table: AblationTable) -> float:
    return stage_kernel_parameters(recipe('cls', row.name))[0] / stage_kernel_parameters(_smallest(row, table))[0]


def _all_kernels_over_smallest(row: AblationRow, table: AblationTable) -> float:
    return _all_kernel_parameters(recipe('cls', row.name)) / _all_kernel_parameters(_smallest(row, table))


@dataclass(frozen=True)
class Computed:
    """A value that follows from a recipe, beside the paper's.

    Attributes:
        heading: Of its column.
        value: As computed.
        digits: Digits after the point with which the paper prints the column.
        printed: The paper's value; ``None`` if it prints none.
    """

    heading: str
    value: float
    digits: int
    printed: float | None

    @property
    def deviation(self) -> float | None:
        """Of the value, rounded as the paper rounds, from the printed one, as a share of that."""
        return None if self.printed is None else round(self.value, self.digits) / self.printed - 1


def computed(row: AblationRow, table: AblationTable) -> list[Computed]:
    """The computed columns of a row, from the resolved recipes."""
    return [
        Computed(heading, function(row, table), digits, row.printed.get(heading))
        for heading, digits, function in table.columns_computed
    ]


# The paper


def _table_5() -> AblationTable:
    heading = 'large-kernel parameters, x row 1'
    rows = (
        ('table5_1_ones', '[1, 1, ..., 1, 1]', None, 1.00, 81.4),
        ('table5_2_twos', None, (2, 2, 2, 2, 2, 2, 2, 1), 0.27, 81.0),
        ('table5_3_twos_center5', None, (2, 2, 2, 2, 2, 2, 2, 1, 1), 0.33, 81.4),
        ('table5_4_fours_center5', None, (4, 4, 4, 2, 1, 1, 1), 0.16, 81.3),
        ('table5_5_exponential', None, (8, 4, 2, 1, 1, 1), 0.11, 81.4),
        ('table5_6_reversed', None, (1, 1, 2, 4, 8, 1), 0.11, 80.5),
    )
    return AblationTable(
        'Table 5: sharing grid, without embedding and sparsity',
        ('#', 'sharing grid'),
        tuple(
            AblationRow(name, (str(i), label or str(list(grid or ()))), dict(cls=accuracy), {heading: share}, grid)
            for i, (name, label, grid, share, accuracy) in enumerate(rows, 1)
        ),
        ((heading, 2, _first_kernel_over_first_row),),
        (
            'The half grids printed in rows 2 and 3 sum to kernels of 29 and 31. The recipes have an eighth 2 and a '
            'third 1: 33 as the other rows, with the printed shares of parameters (docs/classification.md).',
        ),
    )


def _table_6() -> AblationTable:
    heading = 'centre, % of the area'
    rows = (
        (1, (11, 8, 4, 2, 1), 0.04, 80.8),
        (3, (10, 8, 4, 2, 1, 1), 0.35, 81.1),
        (5, (9, 8, 4, 2, 1, 1, 1), 0.96, 81.6),
        (7, (8, 8, 4, 2, 1, 1, 1, 1), 1.88, 81.6),
    )
    return AblationTable(
        'Table 6: size of the fine-grained centre, with embedding',
        ('sharing grid', 'central kernel'),
        tuple(
            AblationRow(
                f'table6_center_{c}',
                (str(list(grid)), f'{c} x {c}'),
                dict(cls=accuracy),
                {heading: share},
                grid,
            )
            for c, grid, share, accuracy in rows
        ),
        ((heading, 2, _center_percent),),
    )


def _figure_2() -> AblationTable:
    first, every = "first stage's kernel, x K = 7", "all stages' large kernels, x K = 7"
    multiples = {('stripe', 51): 7.3, ('dense', 51): 53.1}
    rows = tuple(
        AblationRow(
            f'fig2_{form}_{k}',
            (f'{form} ({shape})', str(k)),
            dict(cls=None, seg=None),
            {first: multiples[form, k]} if (form, k) in multiples else {},
            gain_over=f'fig2_stripe_{k}' if form == 'dense' else None,
        )
        for form, shape in (('stripe', 'K x 5'), ('dense', 'K x K'))
        for k in (7, 13, 31, 51)
    )
    return AblationTable(
        'Fig. 2: stripe and dense kernels from 7 to 51, without sparsity',
        ('form', 'K'),
        rows,
        ((first, 1, _first_kernel_over_smallest), (every, 1, _all_kernels_over_smallest)),
        (
            "The paper's text has the ends of the range and the multiples of K = 51; it prints neither the bars' "
            'heights nor the K between. The networks of K = 51 are those of Table 1 without sparsity.',
        ),
    )


def _table_1() -> AblationTable:
    stripe, dense = '51 x 5 + 5 x 51', '51 x 51'
    rows = (
        AblationRow('table1_slak_51', ('SLaK-51', stripe, 'w/'), dict(cls=81.6, seg=46.5)),
        AblationRow(
            'table1_replk_51', ('RepLK-51', dense, 'w/'), dict(cls=81.7, seg=46.9), {}, None, 'table1_slak_51', 0.4
        ),
        AblationRow('table1_slak_51_no_sparsity', ('SLaK-51', stripe, 'w/o'), dict(cls=81.3, seg=46.1)),
        AblationRow(
            'table1_replk_51_no_sparsity',
            ('RepLK-51', dense, 'w/o'),
            dict(cls=81.6, seg=46.6),
            gain_over='table1_slak_51_no_sparsity',
            paper_gain=0.5,
        ),
    )
    return AblationTable('Table 1: stripe and dense kernels, sparsity', ('method', 'kernel', 'sparsity'), rows)


def _table_7() -> AblationTable:
    names = {51: 'PeLK', 101: 'PeLK-101', 151: 'PeLK-151'}
    kernels = {51: '51-49-47-13', 101: '101-69-67-13', 151: '151-89-87-13'}
    accuracies = {224: (81.6, 81.6, 81.2), 384: (82.7, 83.0, 82.8)}
    return AblationTable(
        'Table 7: kernel sizes at two resolutions, with embedding',
        ('model', 'input', 'kernel size'),
        tuple(
            AblationRow(f'table7_{k}_{size}', (names[k], f'{size} x {size}', kernels[k]), dict(cls=accuracy))
            for size, column in accuracies.items()
            for k, accuracy in zip(names, column, strict=True)
        ),
        notes=("The paper gives no centre for PeLK-151; the recipe has PeLK-101's 7 x 7.",),
    )


ABLATIONS: dict[str, AblationTable] = {
    '1': _table_1(),
    '5': _table_5(),
    '6': _table_6(),
    '7': _table_7(),
    'fig2': _figure_2(),
}
