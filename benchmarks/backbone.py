"""Whole backbones: images per second and peak memory, inference and training step, all taking turns.

    python -m benchmarks.backbone                             # every setting
    python -m benchmarks.backbone --batch 4 --size 224
    python -m benchmarks.backbone --device cuda --dtype bfloat16

PeLK-T and PeLK-101-T as deployed for inference, the same PeLK-T on the dense backend, with the convolution left out
(the ceiling that no operator can pass), SLaK-T, and mmpretrain's ConvNeXt-T. Each is measured in two memory layouts, of
which the faster counts; what takes minutes, channels last alone. Every setting replaces its earlier figures in
``benchmarks/results/backbone_*.json``.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmpretrain.models import ConvNeXt
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # as torch.utils.flop_counter: there is no public alias

from benchmarks.ceiling import without_mixer
from benchmarks.timing import LAYOUTS, faster_layouts, interleaved_medians, peak_memory
from mmpelk.analysis.machine import environment_info
from mmpelk.analysis.table import Table
from mmpelk.models import PeLK
from mmpelk.ops import force_backend

RESULTS = Path(__file__).resolve().parent / 'results'
INPUTS = {'cpu': [(1, 224), (4, 224), (8, 224), (1, 512)], 'cuda': [(64, 224), (8, 512)]}
ROUNDS = 7  # calls of each, at least
DENSE = 'PeLK-T, dense backend'
CEILING = 'PeLK-T without convolution'
# With channels first one step of large maps takes these minutes.
CHANNELS_LAST_ALONE = (DENSE, 'SLaK-T')


def models(device: str, *, deploy: bool) -> dict[str, tuple[nn.Module, str | None]]:
    """Name to backbone and the operator backend that it is forced to."""
    table = {
        'PeLK-T': (PeLK('tiny', deploy=deploy), None),
        'PeLK-101-T': (PeLK('tiny-101', deploy=deploy), None),
        DENSE: (PeLK('tiny', deploy=deploy), 'dense'),
        CEILING: (without_mixer(PeLK('tiny')), None),
        'SLaK-T': (PeLK('tiny', mixer='stripe', conv_ratio=1.0, positional_embedding=None, deploy=deploy), None),
        'ConvNeXt-T': (ConvNeXt('tiny'), None),
    }
    for model, _ in table.values():
        model.to(device)
        model.train(not deploy)
    return table


class _Counter(TorchDispatchMode):
    """Counts the operators that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def dispatched_operators(call: Callable[[], Any]) -> int:
    """How many operators a call dispatches, views left out."""
    with _Counter() as counter:
        call()
    return counter.count


def inference(model: nn.Module, backend: str | None, x: Tensor, dtype: torch.dtype) -> None:
    """One forward without gradients."""
    with torch.no_grad(), force_backend(backend), _autocast(x, dtype):
        model(x)


def training_step(model: nn.Module, backend: str | None, x: Tensor, dtype: torch.dtype) -> None:
    """Forward and backward; the optimizer is the same for all and left out."""
    with force_backend(backend):
        with _autocast(x, dtype):
            loss = sum(out.float().square().mean() for out in model(x))
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None


STEPS = {'inference': inference, 'training_step': training_step}


def _autocast(x: Tensor, dtype: torch.dtype) -> Any:
    return nullcontext() if dtype == torch.float32 else torch.autocast(x.device.type, dtype)


def measure(step: Callable[..., None], args: argparse.Namespace, batch: int, size: int) -> dict[str, dict[str, Any]]:
    """Images per second, share of the ceiling and memory of every model in its faster layout."""
    dtype = getattr(torch, args.dtype)
    images = torch.randn(batch, 3, size, size, device=args.device)
    calls = {}
    for layout, memory_format in LAYOUTS.items():
        x = images.to(memory_format=memory_format)
        for name, (model, backend) in models(args.device, deploy=step is inference).items():
            if layout == 'channels last' or name not in CHANNELS_LAST_ALONE:
                placed: Any = model.to(memory_format=memory_format)  # type: ignore[call-overload]
                calls[name, layout] = partial(step, placed, backend, x, dtype)
                calls[name, layout]()  # what takes seconds is measured once, and that is not to be the first time
    seconds = interleaved_medians(calls, args.device, ROUNDS)
    fastest = {name: (name, layout) for name, layout in faster_layouts(seconds).items()}
    return {
        name: {
            'layout': key[1],
            'images_per_second': batch / seconds[key],
            'share_of_ceiling': seconds[fastest[CEILING]] / seconds[key],
            'dispatched_operators': dispatched_operators(calls[key]),
            'peak_memory': peak_memory(calls[key], args.device) if seconds[key] < 20 else None,
        }
        for name, key in fastest.items()
    }


def make_table(runs: Sequence[Mapping[str, Any]], title: str = '') -> Table:
    """PeLK-T in every setting, as ratios to the others of the same run."""
    peers = {DENSE: 'the dense kernel', 'SLaK-T': 'SLaK-T', 'ConvNeXt-T': 'ConvNeXt-T'}
    columns = ['images', 'step', 'PeLK-T, images/s', 'of the network without convolution', 'PeLK-101-T of PeLK-T']
    table = Table([*columns, *(f'times {peer}' for peer in peers.values())], title=title, labels=2)
    for run in runs:
        speeds = {name: figures['images_per_second'] for name, figures in run['models'].items()}
        own = speeds['PeLK-T']
        table.add(
            f'{run["batch"]} of {run["size"]}²',
            run['step'].replace('_', ' '),
            f'{own:.2f}',
            f'{own / speeds[CEILING]:.1%}',
            f'{speeds["PeLK-101-T"] / own:.1%}',
            *(f'{own / speeds[name]:.2f}' for name in peers),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default=get_device(), help='%(default)s')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16', 'float16'], help='%(default)s')
    parser.add_argument('--batch', type=int, help='images; with --size, instead of every setting')
    parser.add_argument('--size', type=int, help='height and width of the images')
    args = parser.parse_args()
    if (args.batch is None) != (args.size is None):
        parser.error('--batch and --size belong together')
    console, where = Console(), environment_info(args.device)
    console.print(where)
    path = RESULTS / f'backbone_{args.device}_{args.dtype}.json'
    runs = json.loads(path.read_text(encoding='utf-8'))['runs'] if path.exists() else []
    for batch, size in [(args.batch, args.size)] if args.batch else INPUTS[args.device]:
        for name, step in STEPS.items():
            run = dict(batch=batch, size=size, step=name)
            result = measure(step, args, batch, size)
            others = [one for one in runs if any(one[key] != value for key, value in run.items())]
            runs = [*others, run | dict(rounds=ROUNDS, machine=where, models=result)]
            runs.sort(key=lambda one: (one['size'], one['batch'], one['step']))
            path.write_text(json.dumps(dict(runs=runs), indent=1) + '\n', encoding='utf-8')
    make_table(runs, args.dtype).print(console)
    console.print(f'written to {path}')


if __name__ == '__main__':
    main()
