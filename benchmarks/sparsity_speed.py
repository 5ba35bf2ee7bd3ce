"""What inactive hidden units are worth in time and memory: PeLK-T, the same shrunk, and its peers, all taking turns.

    python -m benchmarks.sparsity_speed --batch 4 --size 224
    python -m benchmarks.sparsity_speed --batch 1 --size 224
    python -m benchmarks.sparsity_speed --batch 1 --size 512

Inference is that of the deployed classifiers; a training step is forward, backward and AdamW in the training form. Each
is measured in two memory layouts, of which the faster counts. (SLaK-T takes minutes for a step of large maps with
channels first: ``--layout 'channels last'``.) The shrunk network is as wide as
``SparsityHook(granularity='unit', initialisation='uniform')`` leaves PeLK-T at density 0.6; speed does not depend on
the weights. Every setting replaces its earlier figures in ``benchmarks/results/sparsity_speed.json``.
"""

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from torch import Tensor, nn

import mmpelk
from benchmarks.timing import LAYOUTS, faster_layouts, interleaved_medians, peak_memory
from mmpelk.analysis.inference import build_model
from mmpelk.analysis.machine import environment_info
from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.models import PeLK
from mmpelk.sparsity import uniform_units

RESULTS = Path(__file__).resolve().parent / 'results' / 'sparsity_speed.json'
SHRUNK = 'PeLK-T, shrunk'
RECIPES = {
    SHRUNK: 'pelk_t_unit_in1k',
    'PeLK-T': 'pelk_t_in1k',
    'ConvNeXt-T': 'convnext_t_in1k',
    'SLaK-T': 'slak_t_in1k',
}
MODES = ('inference', 'training step')


def build(name: str) -> nn.Module:
    """A recipe's classifier with random weights, in its training form."""
    cfg = mmpelk.get_config(f'cls/{RECIPES[name]}', {'model.backbone.norm_cfg': dict(type='BN')})
    model: Any = build_model(cfg)
    if name == SHRUNK:
        units = iter(uniform_units(model, 0.6, ('backbone', 'head')).values())
        depths = model.backbone.depths
        cfg.model.backbone.hidden_channels = [[next(units) for _ in range(depth)] for depth in depths]
        model = build_model(cfg)
    return model


def inference(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """A forward of the deployed model."""
    model = copy.deepcopy(model).eval()
    backbone = model.get_submodule('backbone')
    assert isinstance(backbone, PeLK)
    backbone.switch_to_deploy()

    def call() -> None:
        with torch.inference_mode():
            model(images, mode='tensor')

    return call


def training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """A step as trainings make it."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    labels = torch.arange(len(images), device=images.device)

    def call() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images, mode='tensor'), labels).backward()
        optimizer.step()

    return call


def measure(batch: int, size: int, rounds: int, device: str, layouts: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of every network, layout and mode in one setting, and peak memory in the faster layout."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    modes: dict[str, dict[str, Any]] = {}
    for mode in MODES:
        make = inference if mode == MODES[0] else training_step
        calls = {}
        for name in RECIPES:
            model = build(name).to(device)
            for layout in layouts:
                memory_format = LAYOUTS[layout]
                placed = copy.deepcopy(model).to(memory_format=memory_format)  # type: ignore[call-overload]
                calls[name, layout] = make(placed, images.to(memory_format=memory_format))
                calls[name, layout]()  # what takes seconds is measured once, and that is not to be the first time
        seconds = interleaved_medians(calls, device, rounds)
        modes[mode] = {}
        for name, fastest in faster_layouts(seconds).items():
            peak = peak_memory(calls[name, fastest], device)
            modes[mode][name] = {
                layout: dict(ms=1e3 * seconds[name, layout], peak=peak if layout == fastest else None)
                for layout in layouts
            }
    return dict(batch=batch, size=size, rounds=rounds, machine=environment_info(device), modes=modes)


def faster(layouts: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The figures of the faster layout."""
    return min(layouts.values(), key=lambda figures: figures['ms'])


def make_table(runs: list[dict[str, Any]]) -> Table:
    """All settings: times, how many times as fast the shrunk network is, and peak memory of both."""
    peers = [name for name in RECIPES if name != SHRUNK]
    columns = ['images', 'step', *(f'{name} [ms]' for name in RECIPES), 'shrinking speeds up by']
    columns += [f'{name}, peak [MB]' for name in (SHRUNK, peers[0])]
    table = Table(columns, title='The faster of two memory layouts, float32', labels=2)
    for run in runs:
        for mode, networks in run['modes'].items():
            best = {name: faster(layouts) for name, layouts in networks.items()}
            peaks = [best[name]['peak'] for name in (SHRUNK, peers[0])]
            table.add(
                f'{run["batch"]} of {run["size"]}²',
                mode,
                *(f'{best[name]["ms"]:.0f}' for name in RECIPES),
                f'{best[peers[0]]["ms"] / best[SHRUNK]["ms"]:.2f}',
                *('-' if peak is None else f'{peak / 2**20:.0f}' for peak in peaks),
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=4, help='images; %(default)s')
    parser.add_argument('--size', type=int, default=224, help='height and width of the images; %(default)s')
    parser.add_argument('--rounds', type=int, default=5, help='calls of each, at least; %(default)s')
    parser.add_argument('--layout', nargs='+', choices=list(LAYOUTS), default=list(LAYOUTS), help='both by default')
    args = parser.parse_args()
    with exit_on_user_error():
        run = measure(args.batch, args.size, args.rounds, get_device(), args.layout)
    stored = json.loads(RESULTS.read_text(encoding='utf-8'))['runs'] if RESULTS.exists() else []
    others = [one for one in stored if (one['batch'], one['size']) != (run['batch'], run['size'])]
    runs = sorted([*others, run], key=lambda one: (one['size'], -one['batch']))
    make_table(runs).print()
    RESULTS.write_text(json.dumps(dict(runs=runs), indent=1) + '\n', encoding='utf-8')
    print(f'written to {RESULTS}')


if __name__ == '__main__':
    main()
