"""Do the paper's claims about mixers hold where they can be tested here? The demo's set, over seeds.

    python tools/demo/make_segmentation_data.py --out data/demo_segmentation
    python -m benchmarks.mixer_comparison --seeds 0 1 2 3 4

Peripheral kernels against dense ones, stripes and 7 x 7, at the same number of parameters; three sizes of the
fine-grained centre; with and without the positional embedding; dense kernels at the same widths. Two schedules: the
demo's, and a shorter one, since kernels that see far enough nearly solve the set in the end (docs/demo.md). Finished
trainings are read and not repeated. Writes the curves, and means and deviations, to
``benchmarks/results/mixer_comparison.json``; ``python -m reproduction.mixers`` prints and draws them.
"""

import argparse
import bisect
import copy
import functools
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmpelk
from mmpelk.engine.command_line import exit_on_user_error
from reproduction.variants import VariantRun, mean_and_deviation, train_variants, trained_on

RESULTS = Path(__file__).resolve().parent / 'results' / 'mixer_comparison.json'
# What a variant changes in the backbone. Those of `EXTRA` differ from `BASE` in nothing else, and so in size; the
# widths of the others are chosen for the parameters of `BASE`.
BASE = 'peripheral'
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: dict(positional_embedding=None),
    'peripheral, centre 1': dict(positional_embedding=None, center_size=1),
    'peripheral, centre 7': dict(positional_embedding=None, center_size=7),
    'dense': dict(positional_embedding=None, mixer='dense'),
    'stripe': dict(positional_embedding=None, mixer='stripe'),
    'conv7': dict(positional_embedding=None, mixer='conv7'),
    'peripheral with embedding': dict(positional_embedding='in_bounds'),
    'dense, same widths': dict(positional_embedding=None, mixer='dense'),
}
EXTRA = ('peripheral with embedding', 'dense, same widths')
WARM_UP = 30  # iterations, as in the demo
SCHEDULES = (400, 700)  # iterations
POINTS = 10  # of a curve


def configure(backbone: dict[str, Any], widths: Sequence[int]) -> dict[str, Any]:
    """The part of a config that changes the demo's model."""
    return dict(backbone=dict(backbone, channels=tuple(widths)), decode_head=dict(in_channels=list(widths)))


@functools.cache
def demo() -> Config:
    """The demo's recipe; its batch is 4 on each of two processes."""
    return mmpelk.get_config('demo/upernet_pelk_nano_synthetic', {'train_dataloader.batch_size': 8})


def count_parameters(backbone: dict[str, Any], widths: Sequence[int]) -> int:
    """Parameters of the whole model."""
    cfg = copy.deepcopy(demo())
    cfg.merge_from_dict(dict(model=configure(backbone, widths)))
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return sum(parameter.numel() for parameter in MODELS.build(cfg.model).parameters())


def matched_widths(backbone: dict[str, Any], parameters: int, base: Sequence[int]) -> tuple[int, int]:
    """Widths of the two stages, the second about twice the first, that come nearest to a number of parameters."""
    counts: dict[tuple[int, int], int] = {}

    def count(first: int, more: int) -> int:
        widths = first, 2 * first + more
        counts[widths] = count_parameters(backbone, widths)
        return counts[widths]

    firsts = range(base[0] // 2, base[0] + 9)
    for more in (-1, 0, 1):  # the number grows with the width: the nearest ones are on both sides of where it passes
        passed = bisect.bisect_left(firsts, parameters, key=functools.partial(count, more=more))
        for first in firsts[max(0, passed - 1) : passed + 1]:
            count(first, more)
    return min(counts, key=lambda widths: (abs(counts[widths] - parameters), abs(widths[1] - 2 * widths[0])))


def plan() -> dict[str, tuple[int, ...]]:
    """Widths of every variant."""
    base = tuple(demo().channels)
    target = count_parameters(VARIANTS[BASE], base)
    return {
        name: base if name in (BASE, *EXTRA) else matched_widths(backbone, target, base)
        for name, backbone in VARIANTS.items()
    }


def variant(name: str, widths: Sequence[int], iterations: int) -> Config:
    """Config of a variant, for a schedule of a number of iterations."""
    cfg = copy.deepcopy(demo())
    cfg.merge_from_dict(
        dict(
            model=configure(VARIANTS[name], widths),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.03, by_epoch=False, begin=0, end=WARM_UP),
                dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=WARM_UP, end=iterations),
            ],
            train_cfg=dict(max_iters=iterations, val_interval=iterations // POINTS),
            default_hooks=dict(checkpoint=dict(interval=iterations)),
        )
    )
    return cfg


def summarise(name: str, widths: Sequence[int], runs: Sequence[VariantRun]) -> dict[str, Any]:
    """Everything about a variant that the result file holds. Deviations are sample standard deviations."""
    means = [statistics.mean(value for _, value in points) for points in zip(*(run.curve for run in runs), strict=True)]
    return dict(
        backbone=VARIANTS[name],
        widths=list(widths),
        parameters=count_parameters(VARIANTS[name], widths),
        matched=name not in EXTRA,
        iterations=[step for step, _ in runs[0].curve],
        curves={str(run.seed): [value for _, value in run.curve] for run in runs},
        mean_curve=means,
        final=_over_seeds([run.final for run in runs]),
        over_curve=_over_seeds([statistics.mean(value for _, value in run.curve) for run in runs]),
    )


def _over_seeds(values: list[float]) -> dict[str, Any]:
    mean, deviation = mean_and_deviation(values)
    return dict(mean=mean, deviation=deviation, values=values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4], help='0 to 4 by default')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time; %(default)s')
    args = parser.parse_args()
    widths = plan()
    everything: list[VariantRun] = []
    schedules: dict[str, dict[str, dict[str, Any]]] = {}
    for iterations in SCHEDULES:
        variants = {name: variant(name, widths[name], iterations) for name in VARIANTS}
        with exit_on_user_error():
            runs = train_variants(
                variants, args.seeds, Path('work_dirs/mixer_comparison') / str(iterations), args.jobs, 'mIoU'
            )
        everything += runs
        schedules[str(iterations)] = {
            name: summarise(name, widths[name], [run for run in runs if run.name == name]) for name in VARIANTS
        }
        data = dict(machine=trained_on(everything), seeds=args.seeds, schedules=schedules)
        RESULTS.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
        print(f'written to {RESULTS}; python -m reproduction.mixers prints and draws it')


if __name__ == '__main__':
    main()
