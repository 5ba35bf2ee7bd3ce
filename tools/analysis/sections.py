"""The sections of ``docs/reproduction.md``: a function per table or figure, from computed and stored data to Markdown.

Nothing is measured here. What can be computed is computed; what was measured is read from ``benchmarks/results``.
"""

import functools
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import NOTHING, Runs, computed, deviation, paper, table, target

from mmpelk.analysis import ablation_results, ablations, tables, throughput
from mmpelk.analysis.complexity import Complexity
from mmpelk.analysis.paper import SHARING_GRIDS, STATEMENTS, TABLE_8, TABLES, PublishedRow
from mmpelk.analysis.scaling import kernel_growth, kernel_parameters, scaling_table
from mmpelk.analysis.shares import PAPER_SHARES, flop_shares
from mmpelk.ops import sharing_grid

_SOLVED = 95.0  # mIoU in percent: our line between networks that use the far cue fully and those on their way
_METRICS = {'mIoU': 'mIoU', 'AP_box': 'box AP', 'AP_mask': 'mask AP', 'top1': 'top-1'}


def _read(results: Path, name: str) -> Any:
    """A results file, or ``None`` if nobody has written it."""
    path = results / f'{name}.json'
    return json.loads(path.read_text()) if path.is_file() else None


@functools.cache
def _plan() -> dict[str, Any]:
    """Tables 1, 5, 6, 7 and Fig. 2 without results: reading their recipes takes seconds."""
    return ablation_results.report([])['tables']


def states(results: Path) -> str:
    """What of the paper was run here, from the files that there are."""
    measured = tables.measured_accuracy(results)
    trained = _read(results, 'ablations') or {'tables': {}}

    def scores(number: int) -> str:
        recipes = [row.recipe for row in tables.count_table(number) if row.recipe]
        done = sum(Path(recipe).stem in measured for recipe in recipes)
        return f'parameters and FLOPs computed; accuracy of {done} of {len(recipes)} PeLK rows measured'

    def rows_of(key: str) -> str:
        rows = _plan()[key]['rows']
        stored = trained['tables'].get(key, {}).get('rows', [])
        done = sum(any(metric['n'] for metric in row['metrics'].values()) for row in stored)
        return f'driver and recipes; {done} of {len(rows)} rows measured'

    devices = [name for name in ('cpu', 'cuda') if (results / f'throughput_{name}.json').is_file()]
    weights = [name for name in ('random', 'demo', 'imagenet') if (results / f'erf_{name}.json').is_file()]
    imagenet, ade20k, coco, gpus = 'ImageNet', 'ADE20K', 'COCO', 'GPUs for days'
    return table(
        ['', 'state', 'needs'],
        [
            ['[Fig. 1](#fig-1-sharing-grids)', 'drawn, computed', 'nothing'],
            ['[Table 1](#table-1-stripe-and-dense-kernels)', rows_of('1'), f'{imagenet}, {ade20k}, {gpus}'],
            ['[Fig. 2](#fig-2-kernel-sizes)', rows_of('fig2'), f'{imagenet}, {ade20k}, {gpus}'],
            ['[Fig. 3](#fig-3-learnt-kernels-and-positional-embedding)', 'drawn', "the demo's checkpoint"],
            ['[Table 2](#table-2-segmentation)', scores(2), f'{imagenet}, {ade20k}, {gpus}'],
            ['[Table 3](#table-3-detection)', scores(3), f'{imagenet}, {coco}, {gpus}'],
            ['[Table 4](#table-4-classification)', scores(4), f'{imagenet}, {gpus}'],
            ['[Table 5](#table-5-sharing-grids)', rows_of('5'), f'{imagenet}, {gpus}'],
            ['[Table 6](#table-6-size-of-the-centre)', rows_of('6'), f'{imagenet}, {gpus}'],
            ['[Table 7](#table-7-kernel-sizes-and-resolution)', rows_of('7'), f'{imagenet}, {gpus}'],
            [
                '[Fig. 4](#fig-4-effective-receptive-fields)',
                f'measured with weights: {", ".join(weights) or "none"}',
                'ImageNet weights, for the networks of the paper',
            ],
            ['[Fig. 5](#fig-5-shares-of-the-flops)', 'computed', 'nothing'],
            ['[Fig. 6](#fig-6-model-size-against-kernel-size)', 'computed', 'nothing'],
            [
                '[Table 8](#table-8-throughput)',
                f'measured on: {", ".join(devices) or "nothing"}',
                'a GPU, for the paper',
            ],
            [
                '[Mixers](#does-the-method-do-what-it-claims)',
                'measured' if _read(results, 'mixer_comparison') else 'not run',
                'an hour on two cores',
            ],
        ],
    )


def grids() -> str:
    """Fig. 1 and Eq. 2: the sharing grids."""
    rows = []
    for known in SHARING_GRIDS:
        expected = ' '.join(map(str, known.grid))
        if known.follows_rule:
            ours = sharing_grid(known.kernel_size, known.center_size)
            verdict = 'none' if ours == known.grid else '**another grid**'
            cell = computed(' '.join(map(str, ours)))
        else:
            verdict, cell = 'an explicit grid', NOTHING
        shown = paper(expected) if known.is_printed else f'{expected} (by hand)'
        rows.append([str(known.kernel_size), str(known.center_size), shown, cell, verdict, known.source])
    return table(['K', 'centre', 'expected', 'Eq. 2 here', 'deviation', 'source'], rows)


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
                deviation(params, published.params, 0),
                _in_training(counted.params_sparse / 1e6, published.params) if counted else NOTHING,
                paper(published.flops, printed.flops_decimals),
                computed(flops, 1 if number < 4 else 2),
                deviation(flops, published.flops, printed.flops_decimals),
                *scores,
            ]
        )
    heads = ['method', 'params [M]', 'counted', 'deviation', 'in training', 'FLOPs [G]', 'counted', 'deviation']
    text = table([*heads, *(f'{_METRICS[metric]} [%]' for metric in printed.metrics)], rows)
    return '\n\n'.join([text, *(f'[{index}] {note[0].upper()}{note[1:]}.' for note, index in notes.items())])


def _in_training(params: float, printed: float) -> str:
    return f'{computed(params, 1)}, {deviation(params, printed, 0)}'


def upernet_head() -> str:
    """The decode head alone, which all UperNet rows share, beside what the paper's totals leave for it."""
    rows = []
    for method in ('PeLK-T', 'PeLK-B'):
        published, complexity = _upernet(method)
        whole = complexity.part('decode_head') / 1e9
        extra = sum(c.flops for c in complexity.components if c.name == 'norms_and_resizing') / 1e9
        left = published.flops - complexity.part('backbone') / 1e9
        rows.append([method, computed(left, 1), computed(whole, 1), deviation(whole, left), computed(whole - extra, 1)])
    heads = ['UperNet head of', "the paper's total less our backbone [G]", 'counted [G]', 'deviation']
    return table([*heads, 'without norms and resizing [G]'], rows)


def _upernet(method: str) -> tuple[PublishedRow, Complexity]:
    published = next(row for row in TABLES[2].rows if row.method == method)
    return published, tables.row_complexity(published)


def flops() -> str:
    """Fig. 5: shares of the FLOPs."""
    shares = flop_shares(_upernet('PeLK-T')[1])
    rows = []
    for share in (*shares.parts, *shares.components):
        whole = 'the model' if share in shares.parts else 'the backbone' if share.counted else 'the backbone, beside it'
        said = PAPER_SHARES.get(share.name)
        rows.append(
            [
                share.name.replace('_', ' '),
                whole,
                computed(share.flops / 1e9, 2),
                paper(said, 0 if said and said >= 1 else 2),
                computed(share.percent, 1 if share.percent >= 1 else 3),
                deviation(share.percent, said, 0 if said and said >= 1 else 2),
            ]
        )
    return table(['part', 'of', 'FLOPs [G]', 'paper [%]', 'here [%]', 'deviation'], rows)


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
    report = _plan()[key]
    stored = _read(results, 'ablations') or {'tables': {}}
    rows_stored = {row['name']: row for row in stored['tables'].get(key, {}).get('rows', [])}
    trained = {name: row['metrics'] for name, row in rows_stored.items()}
    headings = [column['heading'] for column in report['rows'][0]['computed']]
    stages = list(report['rows'][0]['metrics'])
    gains = any(row['gain'] for row in report['rows'])
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
                NOTHING if off is None else deviation(1 + off, 1, 6),
            ]
        for stage in stages:
            cells.append(_trained(row['metrics'][stage]['paper'], trained.get(row['name'], {}).get(stage), runs, key))
        if gains:
            cells.append(_gain(row['gain'], rows_stored.get(row['name'], {}).get('gain')))
        rows.append(cells)
    return '\n\n'.join([table(columns, rows), *report['notes']])


def _gain(told: Mapping[str, Any] | None, stored: Mapping[str, Any] | None) -> str:
    if told is None:
        return NOTHING
    cell = target(f'{told["paper"]:+.1f}') if told['paper'] is not None else 'not printed'
    if stored and stored['measured'] is not None:
        cell += f'; {stored["measured"]:+.2f}, from the measured column'
    return cell


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
            rows, what = [], f'Table 8, {run.setting}'
            for row in run.rows:
                published, ratio = printed.get(row.model), run.ratio(row.model)
                rows.append(
                    [
                        row.model,
                        paper(published.images_per_second if published else None),
                        paper(throughput.paper_ratio(row.model), 2),
                        row.best.failure or runs.measured(row.images_per_second, run.machine, what, 2),
                        runs.measured(ratio, run.machine, what, 2),
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
        size = model['theoretical_size']
        for scores, key in (('as they are', 'area_ratios'), ('log10(s + 1)', 'area_ratios_log')):
            squares = [
                runs.measured(f'{one["side"]} px, {100 * one["area_ratio"]:.1f} %', data['machine'], f'Fig. 4, {name}')
                for one in model[key]
            ]
            names = [model['name'], computed(size and str(size))] if key == 'area_ratios' else ['', '']
            rows.append([*names, scores, *squares])
    heads = ['network', 'theoretical field [px]', 'scores', *(f'{100 * threshold:.0f} %' for threshold in thresholds)]
    return table(heads, rows)


def mixers(results: Path, runs: Runs) -> str:
    """The experiment on the demo's set."""
    data = _read(results, 'mixer_comparison')
    if data is None:
        return 'Not run yet: `python benchmarks/mixer_comparison.py`.'

    def measured(value: float | str, spread: float | None = None) -> str:
        return runs.measured(value, data['machine'], 'mixers', spread=spread)

    texts = []
    for iterations, variants in data['schedules'].items():
        base = next(iter(variants.values()))['final']['values']
        rows = []
        for name, result in variants.items():
            ends, over = result['final']['values'], result['over_curve']
            gaps = [end - first for end, first in zip(ends, base, strict=True)]
            rows.append(
                [
                    name,
                    computed(f'{result["parameters"] / 1e3:.1f}'),
                    '-'.join(map(str, result['widths'])),
                    measured(result['final']['mean'], result['final']['deviation']),
                    measured(statistics.mean(gaps), statistics.stdev(gaps)) if any(gaps) else NOTHING,
                    measured(over['mean'], over['deviation']),
                    measured(f'{sum(end > _SOLVED for end in ends)} of {len(ends)}'),
                    measured(', '.join(f'{end:.1f}' for end in ends)),
                ]
            )
        heads = ['variant', 'parameters [k]', 'widths', 'mIoU at the end [%]', 'less the first row, by seed']
        heads += ['mean over the curve [%]', f'seeds above {_SOLVED:.0f} %', 'the seeds [%]']
        texts.append(f'**{iterations} iterations, {len(data["seeds"])} seeds**\n\n{table(heads, rows)}')
    return '\n\n'.join(texts)
