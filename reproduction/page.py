"""docs/reproduction.md: prose from ``page.template.md``, tables from what is computed and from the results files.

Nothing is measured here. What can be computed is computed; what was measured is read from ``benchmarks/results``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

from mmpelk.analysis.erf import ratio_table
from mmpelk.analysis.table import Table
from mmpelk.ops import sharing_grid
from mmpelk.ops.sharing_grid import mirror_half_grid

from . import RESULTS
from .ablations import ABLATIONS
from .collect_ablations import Trainings, ablation_table, load, measured_rows
from .counts import counts_table, head_table, measured_scores, upernet
from .marks import NOTHING, Results, computed, paper, share_marks
from .mixers import mixers_table, read_schedules
from .paper import SHARING_GRIDS, TABLE_8, TABLES
from .scaling import measure, saved_table, size_table
from .shares import flop_shares, shares_table
from .steps import STEPS

TEMPLATE = Path(__file__).with_name('page.template.md')


def render(folder: Path = RESULTS) -> str:
    """The page.

    Args:
        folder: Where the results files are.

    Raises:
        ValueError: If a results file has not the form that it should have, or a toolbox is not installed.
    """
    results, trainings = Results(folder), load(folder / 'ablations.json')
    sections: dict[str, Callable[[], Table | str]] = {
        'grids': grids,
        **{f'ablation_{key}': partial(ablation_table, key, trainings, results) for key in ABLATIONS},
        'growth': growth,
        'saved': saved_table,
        **{f'table_{number}': partial(counts_table, number, results) for number in TABLES},
        'upernet_head': head_table,
        'erf_random': partial(receptive_fields, 'erf_random', results),
        'erf_demo': partial(receptive_fields, 'erf_demo', results),
        'figure_5': lambda: shares_table(flop_shares(upernet('PeLK-T')[1])),
        'figure_6': size_table,
        'table_8': partial(throughput, results),
        'mixers': partial(mixers, results),
    }
    template = TEMPLATE.read_text(encoding='utf-8')
    texts = {step.name: step.command for step in STEPS} | states(results, trainings)
    # In the order of the page, in which the runs are numbered.
    for name in sorted(sections, key=lambda name: template.index(f'${{{name}}}')):
        section = sections[name]()
        texts[name] = share_marks(section).markdown() if isinstance(section, Table) else section
    return Template(template).substitute(texts, runs=results.listing().markdown())


def states(results: Results, trainings: Trainings) -> dict[str, str]:
    """What of the paper was run here, from the files that there are, by placeholder of the template."""

    def written(pattern: str, *names: str, absent: str) -> str:
        return ', '.join(name for name in names if results.read(pattern.format(name)) is not None) or absent

    found = dict(
        erf=written('erf_{}', 'random', 'demo', 'imagenet', absent='none'),
        throughput=written('throughput_{}', 'cpu', 'cuda', absent='nothing'),
        mixers='measured' if read_schedules(results) else 'not run',
    )
    for number, rows in TABLES.items():
        done, ours = len(measured_scores(number, results)), sum(row.is_ours for row in rows)
        found[str(number)] = f'parameters and FLOPs counted; {done} of {ours} accuracies measured'
    for key, table in ABLATIONS.items():
        found[key] = f'{measured_rows(key, trainings)} of {len(table.rows)} rows measured'
    return {f'state_{name}': state for name, state in found.items()}


def grids() -> Table:
    """Fig. 1 and Eq. 2: the sharing grids."""
    table = Table(['K', 'centre', 'ring widths, rim to centre', 'Eq. 2 here', 'source'])
    for kernel_size, center_size, half, source, follows_rule in SHARING_GRIDS:
        cell = NOTHING
        if follows_rule:
            ours = sharing_grid(kernel_size, center_size)
            same = ours == mirror_half_grid(half)
            cell = computed('the same' if same else f'**{" ".join(map(str, ours))}**')
        widths = ' '.join(map(str, half))
        shown = f'{widths} (by hand)' if source.startswith('Eq.') else paper(widths)
        table.add(str(kernel_size), str(center_size), shown, cell, source)
    return table


def growth() -> str:
    """By what factor peripheral kernels grow; the other mixers' stand in Fig. 2."""
    large, small = measure('peripheral', (51, 49, 47, 13)), measure('peripheral', 7)
    one, all_of_them = computed(large.kernel / small.kernel, 1), computed(large.kernels / small.kernels, 1)
    return f'From K = 7 to 51 one peripheral kernel grows {one} times, all kernels of ConvNeXt-T {all_of_them} times.'


def receptive_fields(name: str, results: Results) -> Table | str:
    """Fig. 4: sides and areas of the centred squares that hold a share of the contribution."""
    data = results.read(name)
    if data is None:
        return 'Not measured yet.'
    measured = partial(results.measured, machine=data['machine'], what=f'Fig. 4, {name}')
    return ratio_table(data['models'], computed, measured, logarithms=False)


def throughput(results: Results) -> Table:
    """Table 8: a row for every stored setting; of the two memory layouts the faster one counts.

    A cell is images per second and, after the comma, the multiple of the first network's.
    """
    runs = [
        (device, run)
        for device in ('cpu', 'cuda')
        for run in (results.read(f'throughput_{device}') or dict(runs=[]))['runs']
    ]
    models = [row['model'] for _, run in runs for row in run['rows']]
    names = list(dict.fromkeys(['PeLK-T', *models, *TABLE_8]))
    table = Table(['setting', *names])

    def row(
        setting: str, speeds: Mapping[str, float | None], mark: Callable[..., str], failures: Mapping[str, str]
    ) -> None:
        first = speeds.get(names[0])
        cells = []
        for name in names:
            speed = speeds.get(name)
            ratio = f', {speed / first:.2f}' if speed and first and name != names[0] else ''
            cells.append(failures.get(name) or mark(speed) + ratio)
        table.add(setting, *cells)

    row('A100, the paper', TABLE_8, paper, {})
    for device, run in runs:
        setting = run['setting']
        mode = 'compiled' if setting['compiled'] else 'eager'
        name = f'{device.upper()}, {setting["precision"]}, {mode}, {setting["batch"]} x {setting["size"]}²'
        best = {one['model']: max(one['measurements'], key=_images_per_second) for one in run['rows']}
        speeds = {model: one['images_per_second'] for model, one in best.items()}
        failures = {model: one['failure'] for model, one in best.items() if one['failure']}
        mark = partial(results.measured, machine=run['machine'], what=f'Table 8, {device.upper()}', places=2)
        row(name, speeds, mark, failures)
    return table


def _images_per_second(measurement: Mapping[str, Any]) -> float:
    return measurement['images_per_second'] or 0.0


def mixers(results: Results) -> Table | str:
    """The experiment on the demo's set."""
    schedules = read_schedules(results)
    if not schedules:
        return 'Not run yet: `python -m benchmarks.mixer_comparison`.'
    return mixers_table(schedules, results)
