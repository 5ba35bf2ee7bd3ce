"""Tables 1, 5, 6, 7 and Fig. 2 of the paper: what each row changes, what is printed there, and what follows from it.

A row stands here alone. Its recipes, ``configs/cls/ablations/NAME.py`` and, of those that are segmented,
``configs/seg/ablations/NAME.py``, are written by ``python -m reproduction.ablations --write``.
``python -m reproduction.run_ablations`` trains them, :mod:`.collect_ablations` reads what it left.
"""

import argparse
import functools
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from mmpelk.models import ARCHITECTURES, PeLK

from . import ROOT
from .paper import GROWTH

# Stage of the experiment: name of its metric in mmengine's logs, and heading of its column.
METRICS = {'cls': ('accuracy/top1', 'top-1, %'), 'seg': ('mIoU', 'mIoU, %')}


@dataclass(frozen=True)
class AblationRow:
    """One row of a table, or one bar of the figure."""

    name: str  # of its recipes
    label: tuple[str, ...]  # what the paper prints in the columns that describe it
    # the printed metric in percent, by stage; ``None`` for one that the paper shows without its value
    paper: Mapping[str, float | None]
    # arguments of :class:`mmpelk.models.pelk.PeLK` in which it differs from its base
    backbone: Mapping[str, Any] = field(default_factory=dict)
    sparse: bool | None = None  # whether it is trained with sparsity; ``None`` for as its base
    base: str = 'pelk_t'  # the row that it varies, or the recipe that rows have in common
    printed: float | None = None  # printed value of its table's first computed column
    multiple_of: str = ''  # the row that this one's parameters are given as a multiple of
    gain_over: str | None = None  # the row that the paper gives this one's gain in mIoU over
    paper_gain: float | None = None  # that gain, in points
    note: str = ''  # what the recipe does that the print does not say

    def own_changes(self) -> dict[str, Any]:
        """``backbone`` without what PeLK-T has, too."""
        tiny = ARCHITECTURES['tiny']
        return {key: value for key, value in self.backbone.items() if key not in tiny or tiny[key] != value}

    def training(self) -> tuple[str, dict[str, Any], bool | None]:
        """All that it is trained with: common recipe, arguments of the backbone other than PeLK-T's, sparsity."""
        if self.base not in ROWS:
            return self.base, self.own_changes(), self.sparse
        common, changes, sparse = ROWS[self.base].training()
        return common, changes | self.own_changes(), sparse if self.sparse is None else self.sparse


@dataclass(frozen=True)
class AblationTable:
    """A table or figure of the paper."""

    title: str  # its number and subject
    columns: tuple[str, ...]  # headings of the rows' labels
    rows: tuple[AblationRow, ...]  # in the paper's order
    # columns that follow from the networks, by heading: digits after the point that the paper prints, and the
    # value for a row
    computed: Mapping[str, tuple[int, Callable[[AblationRow], float]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what differs from the paper's print, and why


# What follows from the networks


@functools.cache
def network(name: str) -> PeLK:
    """The backbone that a row trains, on the meta device."""
    with torch.device('meta'):
        return PeLK(**ROWS[name].training()[1])


def half_grid(name: str) -> tuple[int, ...] | None:
    """Half of the first stage's sharing grid, from the rim to the centre, as the paper prints it.

    ``None`` where no kernel has a grid.
    """
    grid = getattr(network(name).stages[0][0].mixer.large, 'sharing_grid', None)
    return None if grid is None else tuple(grid[: len(grid) // 2 + 1])


def center_percent(row: AblationRow) -> float:
    """Area of the fine-grained centre over that of the kernel (Table 6)."""
    half = half_grid(row.name) or ()
    fine = len(list(takewhile(lambda width: width == 1, reversed(half))))
    return 100 * (2 * fine - 1) ** 2 / (2 * sum(half) - half[-1]) ** 2


def _kernels(name: str, blocks: int | None) -> int:
    """Parameters of the large kernels of the first blocks; neither norms nor the parallel small kernels."""
    mixers = [block.mixer for stage in network(name).stages for block in stage]
    return sum(parameter.numel() for mixer in mixers[:blocks] for parameter in mixer.large.parameters())


def first_kernel_multiple(row: AblationRow) -> float:
    """Parameters of the first large kernel, in multiples of the row that the paper compares with."""
    return _kernels(row.name, 1) / _kernels(row.multiple_of, 1)


def all_kernels_multiple(row: AblationRow) -> float:
    """The same of all large kernels."""
    return _kernels(row.name, None) / _kernels(row.multiple_of, None)


# The paper


def _table_1() -> AblationTable:
    slak, replk = ('SLaK-51', '51 x 5 + 5 x 51'), ('RepLK-51', '51 x 51')

    def replk_row(name: str, sparsity: str, scores: dict[str, float | None], over: str, gain: float) -> AblationRow:
        dense = dict(mixer='dense')
        return AblationRow(name, (*replk, sparsity), scores, dense, base=over, gain_over=over, paper_gain=gain)

    with_sparsity, without = 'table1_slak_51', 'table1_slak_51_no_sparsity'
    stripe = dict(mixer='stripe', conv_ratio=1.0, positional_embedding=None)
    rows = (
        AblationRow(with_sparsity, (*slak, 'w/'), dict(cls=81.6, seg=46.5), stripe),
        replk_row('table1_replk_51', 'w/', dict(cls=81.7, seg=46.9), with_sparsity, 0.4),
        AblationRow(without, (*slak, 'w/o'), dict(cls=81.3, seg=46.1), sparse=False, base=with_sparsity),
        replk_row('table1_replk_51_no_sparsity', 'w/o', dict(cls=81.6, seg=46.6), without, 0.5),
    )
    return AblationTable('Table 1: stripe and dense kernels, sparsity', ('method', 'kernel', 'sparsity'), rows)


def _table_5() -> AblationTable:
    # Name, half grid, printed share of parameters, printed accuracy.
    rows = (
        ('1_ones', [1] * 17, 1.00, 81.4),
        ('2_twos', [2] * 8 + [1], 0.27, 81.0),
        ('3_twos_center5', [2] * 7 + [1, 1, 1], 0.33, 81.4),
        ('4_fours_center5', [4, 4, 4, 2, 1, 1, 1], 0.16, 81.3),
        ('5_exponential', [8, 4, 2, 1, 1, 1], 0.11, 81.4),
        ('6_reversed', [1, 1, 2, 4, 8, 1], 0.11, 80.5),
    )
    # What is printed where it is something else, and why.
    other = {
        1: ('[1, 1, ..., 1, 1]', ''),
        2: (
            '[2, 2, 2, 2, 2, 2, 2, 1]',
            'As printed, with seven 2s, the half grid sums to K = 29; with eight it is the 33 of the other rows, and '
            'its 17² parameters are the printed 0.27 of 33².',
        ),
        3: (
            '[2, 2, 2, 2, 2, 2, 2, 1, 1]',
            'As printed, with two 1s, the half grid sums to K = 31 around a centre of 3; with a third it is the 33 of '
            'the other rows, its 19² parameters are the printed 0.33 of 33², and the centre is the 5 x 5 of the text.',
        ),
    }
    # One grid is printed, so all stages have its K.
    first: dict[str, Any] = dict(kernel_sizes=(33,) * 4, positional_embedding=None)
    return AblationTable(
        'Table 5: sharing grid, without embedding and sparsity',
        ('#', 'sharing grid'),
        tuple(
            AblationRow(
                f'table5_{name}',
                (str(number), printed),
                dict(cls=accuracy),
                dict(sharing_grids=[grid] * 4, **(first if number == 1 else {})),
                sparse=False if number == 1 else None,
                base='pelk_t' if number == 1 else 'table5_1_ones',
                printed=share,
                multiple_of='table5_1_ones',
                note=note,
            )
            for number, (name, grid, share, accuracy) in enumerate(rows, 1)
            for printed, note in [other.get(number, (str(grid), ''))]
        ),
        {'large-kernel parameters, x row 1': (2, first_kernel_multiple)},
        (
            'The half grids printed in rows 2 and 3 sum to kernels of 29 and 31. The recipes have an eighth 2 and a '
            'third 1: 33 as the other rows, with the printed shares of parameters.',
        ),
    )


def _table_6() -> AblationTable:
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
                dict(center_size=c),
                printed=share,
            )
            for c, grid, share, accuracy in rows
        ),
        {'centre, % of the area': (2, center_percent)},
    )


def _table_7() -> AblationTable:
    architectures = {51: 'tiny', 101: 'tiny-101', 151: 'tiny-151'}
    accuracies = {224: (81.6, 81.6, 81.2), 384: (82.7, 83.0, 82.8)}
    center = "The paper gives no centre for PeLK-151; the recipe has PeLK-101's 7 x 7."

    def row(k: int, size: int, accuracy: float) -> AblationRow:
        kernels = {key: ARCHITECTURES[architectures[k]][key] for key in ('kernel_sizes', 'center_size')}
        label = (f'PeLK-{k}' if k != 51 else 'PeLK', f'{size} x {size}', '-'.join(map(str, kernels['kernel_sizes'])))
        base, note = 'pelk_t' if size == 224 else 'pelk_t_384', center if k == 151 else ''
        return AblationRow(f'table7_{k}_{size}', label, dict(cls=accuracy), kernels, base=base, note=note)

    return AblationTable(
        'Table 7: kernel sizes at two resolutions, with embedding',
        ('model', 'input', 'kernel size'),
        tuple(
            row(k, size, accuracy)
            for size, column in accuracies.items()
            for k, accuracy in zip(architectures, column, strict=True)
        ),
        notes=(center,),
    )


def _figure_2() -> AblationTable:
    kernels = {7: (7, 7, 7, 7), 13: (13, 13, 13, 13), 31: (31, 29, 27, 13), 51: (51, 49, 47, 13)}
    forms = {'stripe': ('K x 5', 'slak'), 'dense': ('K x K', 'replk')}
    return AblationTable(
        'Fig. 2: stripe and dense kernels from 7 to 51, without sparsity',
        ('form', 'K'),
        tuple(
            AblationRow(
                f'fig2_{form}_{k}',
                (f'{form} ({shape})', str(k)),
                dict(cls=None, seg=None),
                dict(kernel_sizes=sizes),
                base=f'table1_{method}_51_no_sparsity',
                printed=GROWTH[form] if k == 51 else None,
                multiple_of=f'fig2_{form}_7',
                gain_over=f'fig2_stripe_{k}' if form == 'dense' else None,
            )
            for form, (shape, method) in forms.items()
            for k, sizes in kernels.items()
        ),
        {
            "first stage's kernel, x K = 7": (1, first_kernel_multiple),
            "all stages' large kernels, x K = 7": (1, all_kernels_multiple),
        },
        (
            "The paper's text has the ends of the range and the multiples of K = 51; it prints neither the bars' "
            'heights nor the K between. The networks of K = 51 are those of Table 1 without sparsity.',
        ),
    )


ABLATIONS: dict[str, AblationTable] = {
    '1': _table_1(),
    '5': _table_5(),
    '6': _table_6(),
    '7': _table_7(),
    'fig2': _figure_2(),
}
ROWS = {row.name: row for table in ABLATIONS.values() for row in table.rows}


# The recipes


def trained_as(stage: str, name: str) -> str:
    """Name of the first row of the plan that trains exactly what this one trains; mostly its own."""
    wanted = ROWS[name].training()
    return next(other.name for other in ROWS.values() if stage in other.paper and other.training() == wanted)


def recipe_path(stage: str, name: str) -> Path:
    """File of a recipe.

    Args:
        stage: ``'cls'`` or ``'seg'``.
        name: A row's ``name``, or that of a recipe that rows have in common.
    """
    return ROOT / 'configs' / stage / 'ablations' / f'{name}.py'


def recipe_text(stage: str, name: str) -> str:
    """What the file of a row's recipe holds."""
    row, other = ROWS[name], trained_as(stage, name)
    table = next(table for table in ABLATIONS.values() if row in table.rows)
    about = f'{table.title.partition(":")[0]}: {", ".join(row.label)}. {row.note}'
    lines = [f'# {line}' for line in textwrap.wrap(about, 118)]
    if other != name:
        return '\n'.join([*lines, f"_base_ = './{other}.py'", ''])
    common = 'upernet_pelk_t_80k' if stage == 'seg' else row.base
    lines += [f"_base_ = './{row.base if row.base in ROWS else common}.py'", '']
    settings = [f'{key}={_text(value)}' for key, value in row.own_changes().items()]
    if stage == 'seg':
        settings.append(f"init_cfg=dict(checkpoint='{{{{$MMPELK_CHECKPOINTS:checkpoints}}}}/{name}.pth')")
    # Broken as ruff breaks it.
    line = f'backbone=dict({", ".join(settings)})'
    if len(line) > 115:
        line = '\n'.join(['backbone=dict(', *(f'        {one},' for one in settings), '    )'])
    if settings:
        lines.append(f'model = dict({line})' if len(line) < 108 else f'model = dict(\n    {line},\n)')
    lines += [] if row.sparse is None else [f'custom_hooks = {"[_base_.ema]" if stage == "cls" else "[]"}']
    return '\n'.join(lines).rstrip() + '\n'


def _text(value: Any) -> str:
    if isinstance(value, list) and value == value[:1] * len(value):
        return f'[{_text(value[0])}] * {len(value)}'
    return repr(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help='write the recipes; else name those that would change')
    args = parser.parse_args()
    for stage, name in ((stage, row.name) for row in ROWS.values() for stage in row.paper):
        path, text = recipe_path(stage, name), recipe_text(stage, name)
        if not path.exists() or path.read_text(encoding='utf-8') != text:
            print(path.relative_to(ROOT))
            if args.write:
                path.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
