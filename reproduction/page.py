"""docs/reproduction.md: prose from ``page.template.md``, tables from what is computed and from the results files.

Nothing is measured here. What can be computed is computed; what was measured is read from ``benchmarks/results``.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import Template

from mmpelk.analysis.erf import ratio_table
from mmpelk.analysis.table import Table
from mmpelk.ops import sharing_grid
from mmpelk.ops.sharing_grid import mirror_half_grid

from . import RESULTS
from .ablations import ABLATIONS
from .collect_ablations import Trainings, ablation_table, load, measured_rows
from .counts import counts_table, head_table, measured_scores, upernet
from .marks import NOTHING, Results, computed, paper
from .mixers import mixers_table, read_schedules
from .paper import SHARING_GRIDS, TABLE_8, TABLES
from .scaling import growth_table, saved_table, size_table
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
        'growth': growth_table,
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
    template = TEMPLATE.read_text()
    texts = {step.name: step.command for step in STEPS} | states(results, trainings)
    # In the order of the page, in which the runs are numbered.
    for name in sorted(sections, key=lambda name: template.index(f'${{{name}}}')):
        section = sections[name]()
        texts[name] = section.markdown() if isinstance(section, Table) else section
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
        found[str(number)] = f'parameters and FLOPs computed; accuracy of {done} of {ours} PeLK rows measured'
    for key, table in ABLATIONS.items():
        found[key] = f'driver and recipes; {measured_rows(key, trainings)} of {len(table.rows)} rows measured'
    return {f'state_{name}': state for name, state in found.items()}


def grids() -> Table:
    """Fig. 1 and Eq. 2: the sharing grids."""
    table = Table(['K', 'centre', 'expected', 'Eq. 2 here', 'deviation', 'source'])
    for kernel_size, center_size, half, source, follows_rule in SHARING_GRIDS:
        expected = ' '.join(map(str, mirror_half_grid(half)))
        cell, verdict = NOTHING, 'an explicit grid'
        if follows_rule:
            ours = ' '.join(map(str, sharing_grid(kernel_size, center_size)))
            cell, verdict = computed(ours), 'none' if ours == expected else '**another grid**'
        shown = f'{expected} (by hand)' if source.startswith('Eq.') else paper(expected)
        table.add(str(kernel_size), str(center_size), shown, cell, verdict, source)
    return table


def receptive_fields(name: str, results: Results) -> Table | str:
    """Fig. 4: sides and areas of the centred squares that hold a share of the contribution."""
    data = results.read(name)
    if data is None:
        return 'Not measured yet.'
    measured = partial(results.measured, machine=data['machine'], what=f'Fig. 4, {name}')
    return ratio_table(data['models'], computed, measured)


def throughput(results: Results) -> str:
    """Table 8: throughput, every stored run; of the two memory layouts the faster one counts."""
    texts = []
    for device in ('cpu', 'cuda'):
        for run in (results.read(f'throughput_{device}') or dict(runs=[]))['runs']:
            setting, machine = run['setting'], run['machine']
            mode = 'compiled' if setting['compiled'] else 'eager'
            name = f'{setting["precision"]}, {mode}, {setting["batch"]} x {setting["size"]} x {setting["size"]}'
            table = Table(['network', 'A100 [images/s]', 'ratio', 'here [images/s]', 'ratio', 'faster layout'])
            first: float | None = None
            for row in run['rows']:
                best = max(row['measurements'], key=lambda one: one['images_per_second'] or 0.0)
                speed, theirs = best['images_per_second'], TABLE_8.get(row['model'])
                first = speed if row is run['rows'][0] else first
                table.add(
                    row['model'],
                    paper(theirs),
                    paper(theirs and theirs / TABLE_8['PeLK-T'], 2),
                    best['failure'] or results.measured(speed, machine, f'Table 8, {name}', 2),
                    results.measured(speed and first and speed / first, machine, f'Table 8, {name}', 2),
                    best['layout'].replace('_', ' '),
                )
            texts.append(f'**{device.upper()}, {name}**\n\n{table.markdown()}')
    if results.read('throughput_cuda') is None:
        texts.append('GPU: not run yet, the figures of the paper are a target.')
    return '\n\n'.join(texts)


def mixers(results: Results) -> str:
    """The experiment on the demo's set."""
    texts = []
    for iterations, variants in read_schedules(results).items():
        head = f'**{iterations} iterations, {len(next(iter(variants.values()))["curves"])} seeds**'
        texts.append(f'{head}\n\n{mixers_table(variants, results).markdown()}')
    return '\n\n'.join(texts) or 'Not run yet: `python -m benchmarks.mixer_comparison`.'
