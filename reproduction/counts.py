"""Tables 2, 3 and 4 recomputed: parameters and FLOPs of PeLK and of its peers, beside what the paper prints.

All are counted by :func:`mmpelk.analysis.complexity.count_complexity`, by one convention: a multiply-add of a
convolution, a linear layer or a product of matrices is one FLOP. See docs/complexity.md.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch.overrides import TorchFunctionMode

from mmpelk.analysis.complexity import Complexity, count_complexity, uniform_densities
from mmpelk.analysis.inference import build_model
from mmpelk.analysis.table import Table

from .marks import Results, computed, deviation, paper, target, with_deviation
from .networks import Recipe, UnavailableError, load
from .paper import FLOPS_DECIMALS, TABLES, PublishedRow

#: What was measured with the project's recipes, by table.
RESULT_FILES = {2: 'ade20k', 3: 'coco', 4: 'imagenet'}
_METRICS = {'mIoU': 'mIoU', 'AP_box': 'box AP', 'AP_mask': 'mask AP', 'top1': 'top-1'}


class CountedRow(NamedTuple):
    """A row of the paper beside what we count."""

    published: PublishedRow  # the paper's row
    counted: Complexity | None  # for one image of the row's input size; ``None`` where the network could not be built
    note: str  # why the network was not built, how it was composed, or why it deviates. Can be empty


def count_table(number: int) -> tuple[CountedRow, ...]:
    """All rows of a table, in the order of the paper.

    Args:
        number: 2, 3 or 4.

    Returns:
        A counted row for each published row. A table takes seconds on one core the first time.
    """
    return tuple(count_row(row) for row in TABLES[number])


def count_row(row: PublishedRow) -> CountedRow:
    """Count one row; a network that this installation cannot build is reported with the reason."""
    try:
        return CountedRow(row, _count(row.network, row.input_size), row.network.note)
    except UnavailableError as error:
        return CountedRow(row, None, f'not built: {error}')


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of weights, most of the time that a network takes to build: counts read shapes alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, '__name__', '').endswith(('uniform_', 'normal_')):
            return (*args, *(kwargs or {}).values())[0]
        return func(*args, **(kwargs or {}))


@functools.cache
def _count(recipe: Recipe, shape: tuple[int, int]) -> Complexity:
    """Of a recipe's network. It is cached in this process."""
    with _Undrawn():
        model = build_model(load(recipe))
    return count_complexity(model, shape, uniform_densities(model, recipe.density))


def measured_scores(number: int, results: Results) -> dict[str, dict[str, float]]:
    """Scores of a table's recipes, from its file of :data:`RESULT_FILES`, which is written by hand.

    The file has the form ``{"machine": {...}, "results": {"upernet_pelk_t_ade20k": {"mIoU": 47.9}}}``: scores in per
    cent, by recipe (its file's name without ``.py``) and by metric (``mIoU``; ``AP_box``, ``AP_mask``; ``top1``).

    Args:
        number: 2, 3 or 4.
        results: Where the file is.

    Returns:
        Scores by the recipe's name, such as ``'seg/upernet_pelk_t_ade20k.py'``; none if there is no file.

    Raises:
        ValueError: If the file has another form, or names an unknown recipe or metric.
    """
    content = results.read(RESULT_FILES[number]) or dict(machine={}, results={})
    metrics = TABLES[number][0].scores
    known = {Path(name).stem: name for row in TABLES[number] if (name := row.network.own_name)}
    for recipe, scores in content['results'].items():
        where = f"'{RESULT_FILES[number]}.json', '{recipe}'"
        if recipe not in known:
            raise ValueError(f'{where}: unknown recipe; Table {number} has {", ".join(known)}')
        for metric, score in scores.items():
            if metric not in metrics or not isinstance(score, int | float) or not 1 < score <= 100:
                raise ValueError(f'{where}: wants per cent by metric, of {", ".join(metrics)}; got {metric}: {score!r}')
    return {known[recipe]: scores for recipe, scores in content['results'].items()}


def counts_table(number: int, results: Results) -> Table:
    """Parameters, FLOPs and scores: printed, counted, and measured where the recipe was trained."""
    decimals, measured = FLOPS_DECIMALS[number], measured_scores(number, results)
    heads = ['method', 'params [M]', 'counted', 'in training', 'FLOPs [G]', 'counted']
    table = Table([*heads, *(f'{_METRICS[metric]} [%]' for metric in TABLES[number][0].scores)])
    notes: dict[str, int] = {}
    for published, counted, note in count_table(number):
        params = counted.params_as_published / 1e6 if counted else None
        training = counted.params_sparse / 1e6 if counted else None
        flops = counted.flops_sparse / 1e9 if counted else None
        name = published.method + (f', {published.input_size[0]}²' if number == 4 else '')
        if note:
            name += f' [{notes.setdefault(note, len(notes) + 1)}]'
        found, scores = measured.get(published.network.own_name or '', {}), []
        for metric, score in published.scores.items():
            cells = [target(score) if published.is_ours else paper(score, 1)]
            if metric in found:
                machine = results.read(RESULT_FILES[number])['machine']
                cells.append(results.measured(found[metric], machine, f'Table {number}'))
            scores.append('; '.join(cells))
        table.add(
            name,
            paper(published.params),
            with_deviation(computed(params, 1), deviation(params, published.params, 0)),
            computed(training, 1),
            paper(published.flops, decimals),
            with_deviation(computed(flops, decimals + 1), deviation(flops, published.flops, decimals)),
            *scores,
        )
    table.notes = [f'[{index}] {note[0].upper()}{note[1:]}.' for note, index in notes.items()]
    return table


def upernet(method: str) -> tuple[PublishedRow, Complexity]:
    """A row of Table 2 and its network's counts, by component.

    Raises:
        ValueError: If the network cannot be built in this installation; the message says why.
    """
    row = count_row(next(row for row in TABLES[2] if row.method == method))
    if row.counted is None:
        raise ValueError(f'{method} of Table 2 is {row.note}')
    return row.published, row.counted


def head_table() -> Table:
    """The decode head alone, which all UperNet rows share, beside what the paper's totals leave for it."""
    heads = ['UperNet head of', "the paper's total less our backbone [G]", 'counted [G]']
    table = Table([*heads, 'without norms and resizing [G]'])
    for method in ('PeLK-T', 'PeLK-B'):
        published, counted = upernet(method)
        whole = counted.part('decode_head') / 1e9
        extra = sum(c.flops for c in counted.components if c.name == 'norms_and_resizing') / 1e9
        left = published.flops - counted.part('backbone') / 1e9
        table.add(method, computed(left, 1), computed(whole, 1), computed(whole - extra, 1))
    return table
