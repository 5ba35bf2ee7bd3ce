"""The sections of ``docs/reproduction.md``: a function per table or figure, from computed and stored data to Markdown.

Nothing is measured here. What can be computed is computed; what was measured is read from ``benchmarks/results``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import NOTHING, Runs, computed, deviation, paper, table, target
from mmengine.registry import MODELS, DefaultScope

from mmpelk.analysis import ablation_results, ablations, tables, throughput
from mmpelk.analysis.complexity import count_complexity, uniform_densities
from mmpelk.analysis.paper import SHARING_GRIDS, STATEMENTS, TABLE_8, TABLES
from mmpelk.analysis.scaling import kernel_growth, kernel_parameters, scaling_table
from mmpelk.analysis.shares import flop_shares
from mmpelk.config import get_config
from mmpelk.ops import sharing_grid

_DENSITY = 0.6
_SOLVED = 90.0  # mIoU in percent; the networks that have not found the far cue stay below it
_METRICS = {'mIoU': 'mIoU', 'AP_box': 'box AP', 'AP_mask': 'mask AP', 'top1': 'top-1'}


def _read(results: Path, name: str) -> Any:
    """A results file, or ``None`` if nobody has written it."""
    path = results / f'{name}.json'
    return json.loads(path.read_text()) if path.is_file() else None


def grids() -> str:
    """Fig. 1 and Eq. 2: the sharing grids."""
    rows = []
    for printed in SHARING_GRIDS:
        if printed.follows_rule:
            ours = sharing_grid(printed.kernel_size, printed.center_size)
            verdict = 'equal' if ours == printed.grid else '**differs**'
            cell = computed(' '.join(map(str, ours)))
        else:
            verdict, cell = 'an explicit grid', NOTHING
        half = ' '.join(map(str, printed.grid))
        rows.append([str(printed.kernel_size), str(printed.center_size), paper(half), cell, verdict, printed.source])
    return table(['K', 'centre', 'grid', 'Eq. 2 here', 'deviation', 'source'], rows)


def counts(number: int, results: Path, runs: Runs) -> str:
    """Tables 2, 3 and 4: parameters, FLOPs, scores."""
    printed = TABLES[number]
    measured = tables.measured_accuracy(results)
    notes: dict[str, int] = {}
    rows = []
    for row in tables.count_table(number):
        published, counted = row.published, row.counted
        params = counted.params_as_published / 1e6 if counted else None
        flops = counted.flops_sparse / 1e9 if counted else None
        side = published.input_size[0]
        name = published.method + (f', {side}²' if number == 4 else '')
        if row.note:
            name += f' [{notes.setdefault(row.note, len(notes) + 1)}]'
        scores = []
        for metric, score in zip(printed.metrics, published.scores, strict=True):
            found = measured.get(Path(row.recipe).stem) if row.recipe else None
            cell = target(score) if published.is_ours else paper(score, 1)
            if found and metric in found.scores:
                cell += f'; {runs.measured(found.scores[metric], found.machine, f"Table {number}")}'
            scores.append(cell)
        rows.append(
            [
                name,
                paper(published.params),
                computed(params, 1),
                deviation(params, published.params),
                computed(counted.params_sparse / 1e6 if counted else None, 1),
                paper(published.flops, printed.flops_decimals),
                computed(flops, 1 if number < 4 else 2),
                deviation(flops, published.flops),
                *scores,
            ]
        )
    heads = ['method', 'params [M]', 'counted', 'deviation', 'in training', 'FLOPs [G]', 'counted', 'deviation']
    text = table([*heads, *(f'{_METRICS[metric]} [%]' for metric in printed.metrics)], rows)
    return '\n\n'.join([text, *(f'[{index}] {note[0].upper()}{note[1:]}.' for note, index in notes.items())])


def upernet_head() -> str:
    """The decode head alone, which all UperNet rows share."""
    rows = []
    for recipe, name in (('seg/upernet_pelk_t_ade20k.py', 'T, S'), ('seg/upernet_pelk_b_ade20k.py', 'B, B-101')):
        complexity = _complexity(recipe)
        whole = sum(complexity.part(part) for part in ('decode_head', 'neck'))
        extra = sum(c.flops for c in complexity.components if c.name == 'norms_and_resizing')
        rows.append([name, computed(whole / 1e9, 1), computed((whole - extra) / 1e9, 1)])
    return table(['UperNet head of PeLK', 'FLOPs at 2048 x 512 [G]', 'without norms and resizing [G]'], rows)


def _complexity(recipe: str) -> Any:
    cfg = get_config(recipe, {'model.backbone.init_cfg': None})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    return count_complexity(model, (512, 2048), uniform_densities(model, _DENSITY))


def flops() -> str:
    """Fig. 5: shares of the FLOPs."""
    shares = flop_shares(_complexity('seg/upernet_pelk_t_ade20k.py'))
    stated = {
        'large kernels': STATEMENTS['fig5_large_kernels'].value,
        'positional embedding': STATEMENTS['fig5_embedding'].value,
    }
    rows = [
        [
            '(a) of the model',
            share.name.replace('_', ' '),
            computed(share.flops / 1e9, 1),
            NOTHING,
            computed(share.percent, 1),
        ]
        for share in shares.parts
    ]
    for share in shares.components:
        said = stated.get(share.name)
        places = 1 if share.percent >= 1 else 3
        rows.append(
            [
                '(b) of the backbone' + ('' if share.counted else ', not in its sum'),
                share.name,
                computed(share.flops / 1e9, 2),
                paper(said, 0 if said and said >= 1 else 2),
                computed(share.percent, places),
            ]
        )
    return table(['share', 'part', 'FLOPs [G]', 'paper [%]', 'here [%]'], rows)


def growth() -> str:
    """The multiples of Fig. 2 and of Section 3."""
    rows = [
        [
            row.mixer,
            paper(row.paper, 1),
            computed(row.kernel, 1),
            deviation(round(row.kernel, 1), row.paper),
            computed(row.network, 1),
        ]
        for row in kernel_growth()
    ]
    heads = ['mixer', 'parameters, K 51 to 7', 'one kernel', 'deviation', 'all kernels of ConvNeXt-T, 51-49-47-13 to 7']
    return table(heads, rows)


def saved() -> str:
    """Share of a dense kernel's parameters that the peripheral one does without."""
    stated = STATEMENTS['parameters_saved']
    rows = [
        [
            f'{side} x {side}',
            paper(f'over {stated.value:.0f}'),
            computed(100 * (1 - kernel_parameters('peripheral', side, centre) / kernel_parameters('dense', side)), 1),
        ]
        for side, centre in ((51, 5), (101, 7))
    ]
    return table(['kernel', 'parameters saved [%]', 'here'], rows)


def scaling() -> str:
    """Fig. 6: model size against kernel size."""
    rows = [
        [
            str(row.kernel_size),
            computed(str(row.rings)),
            computed(str(row.kernel['peripheral'])),
            computed(row.peripheral / 1e6, 1),
            computed(row.stripe / 1e6, 1),
            computed(row.dense / 1e6, 1),
            computed(row.peripheral_embedding / 1e6, 1),
        ]
        for row in scaling_table()
    ]
    heads = ['K', "rings k'", "parameters k'^2", 'peripheral [M]', 'stripe [M]', 'dense [M]', 'peripheral with h [M]']
    return table(heads, rows)


def ablation(key: str, results: Path, runs: Runs) -> str:
    """Tables 1, 5, 6, 7 and Fig. 2: computed columns, and metrics where somebody has trained the rows."""
    # Computed anew; what was trained is in the file that collect_ablations.py writes.
    report = ablation_results.report([])['tables'][key]
    stored = _read(results, 'ablations') or {'tables': {}}
    trained = {row['name']: row['metrics'] for row in stored['tables'].get(key, {}).get('rows', [])}
    headings = [column['heading'] for column in report['rows'][0]['computed']]
    stages = list(report['rows'][0]['metrics'])
    gains = any(row['gain'] and row['gain']['paper'] is not None for row in report['rows'])
    columns = list(report['columns'])
    for heading in headings:
        columns += [heading, 'here', 'deviation']
    columns += [ablations.METRICS[stage][1] for stage in stages] + ['gain in mIoU'] * gains
    rows = []
    for row in report['rows']:
        cells = [str(cell) for cell in row['label']]
        for column in row['computed']:
            value = f'{column["value"]:.{column["digits"]}f}'
            off = column['deviation']
            cells += [
                paper(column['printed'], column['digits']),
                computed(value),
                NOTHING if off is None else deviation(1 + off, 1),
            ]
        for stage in stages:
            cells.append(_trained(row['metrics'][stage]['paper'], trained.get(row['name'], {}).get(stage), runs, key))
        if gains:
            cells.append(target(f'+{row["gain"]["paper"]}') if row['gain'] else NOTHING)
        rows.append(cells)
    return '\n\n'.join([table(columns, rows), *report['notes']])


def _trained(printed: float | None, stored: Mapping[str, Any] | None, runs: Runs, key: str) -> str:
    cell = target(printed) if printed is not None else 'not printed'
    if not stored or stored['mean'] is None:
        return cell
    newest = max((run for run in stored['runs'] if run['final'] is not None), key=lambda run: run['date'])
    machine = dict(device=newest['machine'], date=newest['date'])
    return f'{cell}; {runs.measured(stored["text"], machine, f"ablations, {key}")}'


def speed(results: Path, runs: Runs) -> str:
    """Table 8: throughput, every stored run."""
    printed = {row.method: row for row in TABLE_8}
    texts = []
    for device in ('cpu', 'cuda'):
        for run in throughput.load_runs(results / f'throughput_{device}.json'):
            rows = []
            for row in run.rows:
                published, ratio = printed.get(row.model), run.ratio(row.model)
                rows.append(
                    [
                        row.model,
                        paper(published.images_per_second if published else None),
                        paper(throughput.paper_ratio(row.model), 2),
                        row.best.failure or runs.measured(row.images_per_second, run.machine, 'Table 8', 2),
                        runs.measured(ratio, run.machine, 'Table 8', 2),
                        row.best.layout.replace('_', ' '),
                    ]
                )
            heads = ['network', 'A100 [images/s]', 'ratio', 'here [images/s]', 'ratio', 'faster layout']
            texts.append(f'**{device.upper()}, {run.setting}**\n\n{table(heads, rows)}')
    if not (results / 'throughput_cuda.json').is_file():
        texts.append('GPU: not run yet, the figures of the paper are a target.')
    return '\n\n'.join(texts)


def receptive_fields(name: str, results: Path, runs: Runs) -> str:
    """Fig. 4: sides and areas of the centred squares that hold a share of the contribution."""
    data = _read(results, name)
    if data is None:
        return 'Not measured yet.'
    thresholds = [ratio['threshold'] for ratio in data['models'][0]['area_ratios']]
    rows = []
    for model in data['models']:
        squares = [
            runs.measured(f'{ratio["side"]} px, {100 * ratio["area_ratio"]:.1f} %', data['machine'], f'Fig. 4, {name}')
            for ratio in model['area_ratios']
        ]
        size = model['theoretical_size']
        rows.append([model['name'], model['weights'], computed(size and str(size)), *squares])
    heads = ['network', 'weights', 'theoretical field [px]', *(f'{100 * threshold:.0f} %' for threshold in thresholds)]
    return table(heads, rows)


def mixers(results: Path, runs: Runs) -> str:
    """The experiment on the demo's set."""
    data = _read(results, 'mixer_comparison')
    if data is None:
        return 'Not run yet: `python benchmarks/mixer_comparison.py`.'
    texts = []
    for iterations, variants in data['schedules'].items():
        rows = []
        for name, result in variants.items():
            ends = result['final']['values']
            solved = sum(value > _SOLVED for value in ends)
            final, over = (
                runs.measured(result[key]['mean'], data['machine'], 'mixers', spread=result[key]['deviation'])
                for key in ('final', 'over_curve')
            )
            rows.append(
                [
                    name,
                    computed(f'{result["parameters"] / 1e3:.1f}'),
                    '-'.join(map(str, result['widths'])),
                    final,
                    over,
                    runs.measured(f'{solved} of {len(ends)}', data['machine'], 'mixers'),
                    runs.measured(', '.join(f'{value:.1f}' for value in ends), data['machine'], 'mixers'),
                ]
            )
        heads = [
            'variant',
            'parameters [k]',
            'widths',
            'mIoU at the end [%]',
            'mean over the curve [%]',
            f'seeds above {_SOLVED:.0f} %',
            'the seeds [%]',
        ]
        texts.append(f'**{iterations} iterations, {len(data["seeds"])} seeds**\n\n{table(heads, rows)}')
    return '\n\n'.join(texts)
