"""Does it help to start large kernels from a trained network with small ones? The demo's set, over seeds.

    python tools/demo/make_segmentation_data.py --out data/demo_segmentation
    python -m benchmarks.inflation --seeds 0 1 2 3 4

Equal iterations in all, paired by seed: a 7 x 7 network; the same, inflated half-way to kernels of 31 and 29 with a
7 x 7 centre; those large kernels from scratch. After the inflation the learning rate of the kernels (centre and
periphery are one tensor) is that of the rest times 1, 3 and 10. Only kernels that reach across the picture can tell the
classes of the far cue; without it 78.2 % is the bound (docs/demo.md). Finished trainings are read and not repeated.
Writes ``benchmarks/results/inflation.json`` and ``docs/figures/inflation.png``.
"""

import argparse
import copy
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config

import mmpelk
from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.models.weights.inflation import inflate
from mmpelk.registry import MODELS
from reproduction.variants import VariantRun, mean_and_deviation, train_variants, trained_on

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FIGURE = ROOT / 'benchmarks/results/inflation.json', ROOT / 'docs/figures/inflation.png'
# One biased kernel on all channels: the block that inflation is exact for.
BLOCK = dict(center_size=7, conv_ratio=1.0, small_kernel_size=0, positional_embedding=None, branch_norms=False)
KERNELS = {'small': (7, 7), 'large': (31, 29)}
RATES = (1, 3, 10)  # of the kernels after the inflation, times that of the rest
WITHOUT_CUE = 78.2  # mIoU of a network that sees everything but the far cue, docs/demo.md
ITERATIONS = 700  # in all
POINTS = 10  # of a curve over all iterations


def variant(kernels: str, iterations: int, interval: int, rate: float = 1, load_from: Path | None = None) -> Config:
    """The demo's recipe with other kernels and a schedule of its own."""
    cfg = copy.deepcopy(mmpelk.get_config('demo/upernet_pelk_nano_synthetic', {'train_dataloader.batch_size': 8}))
    cfg.merge_from_dict(
        dict(
            model=dict(backbone=dict(kernel_sizes=KERNELS[kernels], **BLOCK)),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.03, by_epoch=False, begin=0, end=30),
                dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=30, end=iterations),
            ],
            optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'mixer.large': dict(lr_mult=rate)})),
            train_cfg=dict(max_iters=iterations, val_interval=interval),
            default_hooks=dict(checkpoint=dict(interval=iterations)),
        )
    )
    if load_from is not None:
        cfg.load_from = str(load_from)
    return cfg


def inflate_model(checkpoint: Path, out: Path) -> Path:
    """A whole segmentor's checkpoint with its 7 x 7 kernels in the centre of the large ones."""
    state = read_checkpoint(checkpoint)['state_dict']
    backbone = MODELS.build(variant('large', 1, 1).model.backbone)
    weights = {
        name.removeprefix('backbone.').replace('.mixer.large.', '.depthwise_conv.'): value
        for name, value in state.items()
        if name.startswith('backbone.')
    }
    inflated = {f'backbone.{name}': value for name, value in inflate(weights, backbone).state.items()}
    torch.save(dict(state_dict=state | inflated), out)
    return out


def curves(
    runs: Sequence[VariantRun], before: Mapping[int, VariantRun] | None = None, half: int = 0
) -> dict[str, list[tuple[int, float]]]:
    """Tests by seed; those of an inflated network follow those of the 7 x 7 network that it began as."""
    joined = {}
    for run in runs:
        first = list(before[run.seed].curve) if before else []
        joined[str(run.seed)] = first + [(step + half, value) for step, value in run.curve]
    return joined


def summarise(by_seed: dict[str, list[tuple[int, float]]]) -> dict[str, Any]:
    """What the results file holds of a variant; ``found`` is the first test above the bound without the cue."""
    finals = [points[-1][1] for points in by_seed.values()]
    mean, deviation = mean_and_deviation(finals)
    found = [next((step for step, value in points if value > WITHOUT_CUE), None) for points in by_seed.values()]
    return dict(curves=by_seed, final=dict(mean=mean, deviation=deviation, values=finals), found=found)


def make_table(results: dict[str, dict[str, Any]], iterations: int) -> Table:
    """At the end, against the first variant by seed, and when the cue was found."""
    columns = ['variant', 'mIoU at the end, %', 'less 7 x 7, by seed', f'above {WITHOUT_CUE} % after']
    table = Table(columns, title=f'held-out mIoU of the demo, {iterations} iterations')
    base = next(iter(results.values()))['final']['values']
    for name, result in results.items():
        final = result['final']
        gap, spread = mean_and_deviation([a - b for a, b in zip(final['values'], base, strict=True)])
        table.add(
            name,
            f'{final["mean"]:.1f} ± {final["deviation"]:.1f}',
            f'{gap:+.1f} ± {spread:.1f}' if final['values'] != base else '-',
            ', '.join('never' if step is None else str(step) for step in result['found']),
        )
    return table


def draw(results: dict[str, dict[str, Any]], iterations: int) -> Figure:
    """Mean curves; the bound without the cue and the moment of the inflation as lines."""
    figure = Figure(figsize=(8.5, 4.2), layout='constrained')
    axes = figure.subplots()
    styles = zip(('-', '--', '-', '--', ':'), ('0.5', '0.0', 'tab:red', 'tab:red', 'tab:red'), 'os^vD', strict=True)
    for (name, result), (line, colour, marker) in zip(results.items(), styles, strict=False):
        points = list(zip(*result['curves'].values(), strict=True))
        means = [statistics.mean(value for _, value in tests) for tests in points]
        axes.plot([tests[0][0] for tests in points], means, ls=line, color=colour, marker=marker, ms=4, label=name)
    axes.axhline(WITHOUT_CUE, color='0.7', lw=1)
    axes.axvline(iterations // 2, color='0.7', lw=1)
    axes.set(xlabel='iteration', ylabel='held-out mIoU, %', title=f'Mean of {len(points[0])} seeds')
    figure.legend(loc='outside right upper')
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4], help='0 to 4 by default')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time; %(default)s')
    args = parser.parse_args()
    half, interval = ITERATIONS // 2, ITERATIONS // POINTS
    folder = Path('work_dirs/inflation') / str(ITERATIONS)
    whole = {
        '7 x 7': variant('small', ITERATIONS, interval),
        'large, from scratch': variant('large', ITERATIONS, interval),
        '7 x 7, half': variant('small', half, interval),
    }
    with exit_on_user_error():
        runs = train_variants(whole, args.seeds, folder, args.jobs, 'mIoU')
        firsts = {run.seed: run for run in runs if run.name == '7 x 7, half'}
        later: list[VariantRun] = []
        for seed in args.seeds:
            trained = folder / f'7_x_7_half_{seed}' / 'run' / f'iter_{half}.pth'
            start = inflate_model(trained, folder / f'inflated_{seed}.pth').resolve()
            variants = {f'inflated, kernels x {rate}': variant('large', half, interval, rate, start) for rate in RATES}
            later += train_variants(variants, [seed], folder, args.jobs, 'mIoU')
    results = {name: summarise(curves([run for run in runs if run.name == name])) for name in list(whole)[:2]}
    for rate in RATES:
        name = f'inflated, kernels x {rate}'
        results[name] = summarise(curves([run for run in later if run.name == name], firsts, half))
    make_table(results, ITERATIONS).print()
    data = dict(
        machine=trained_on([*runs, *later]), seeds=args.seeds, iterations=ITERATIONS, without_cue=WITHOUT_CUE,
        variants=results,
    )  # fmt: skip
    RESULTS.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    draw(results, ITERATIONS).savefig(FIGURE, dpi=120)
    print(f'written to {RESULTS} and {FIGURE}')


if __name__ == '__main__':
    main()
