"""Whole backbones: images per second and peak memory, inference and training step, in one run.

    python benchmarks/backbone.py
    python benchmarks/backbone.py --device cuda --dtype bfloat16 --batch 64

PeLK-T and PeLK-101-T as deployed for inference, the same PeLK-T on the dense backend, with the convolution left out
(the ceiling that no operator can pass), SLaK-T, and mmpretrain's ConvNeXt-T.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmpretrain.models import ConvNeXt
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # as torch.utils.flop_counter: there is no public alias

from mmpelk.analysis.ceiling import without_mixer
from mmpelk.analysis.table import Table
from mmpelk.analysis.timing import environment_info, interleaved_medians, peak_memory
from mmpelk.models import PeLK
from mmpelk.ops import force_backend

RESULTS = Path(__file__).resolve().parent / 'results'
INPUTS = {'cpu': [(4, 224), (1, 512)], 'cuda': [(64, 224), (8, 512)]}


def models(device: str, *, deploy: bool) -> dict[str, tuple[nn.Module, str | None]]:
    """Name to backbone and the operator backend that it is forced to."""
    table = {
        'PeLK-T': (PeLK('tiny', deploy=deploy), None),
        'PeLK-101-T': (PeLK('tiny-101', deploy=deploy), None),
        'PeLK-T, dense backend': (PeLK('tiny', deploy=deploy), 'dense'),
        'PeLK-T without convolution': (without_mixer(PeLK('tiny')), None),
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


def _autocast(x: Tensor, dtype: torch.dtype) -> Any:
    return nullcontext() if dtype == torch.float32 else torch.autocast(x.device.type, dtype)


def measure(step: Callable[..., None], args: argparse.Namespace, batch: int, size: int) -> dict[str, dict[str, Any]]:
    """Images per second, share of the ceiling and memory of every model."""
    dtype = getattr(torch, args.dtype)
    x = torch.randn(batch, 3, size, size, device=args.device)
    table = models(args.device, deploy=step is inference)
    calls = {name: partial(step, model, backend, x, dtype) for name, (model, backend) in table.items()}
    seconds = interleaved_medians(calls, args.device, args.rounds)
    ceiling = seconds['PeLK-T without convolution']
    return {
        name: {
            'images_per_second': batch / seconds[name],
            'share_of_ceiling': ceiling / seconds[name],
            'dispatched_operators': dispatched_operators(call),
            'peak_memory': peak_memory(call, args.device) if seconds[name] < 20 else None,
        }
        for name, call in calls.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16', 'float16'])
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--batch', type=int, help='batch at 224 x 224, instead of the default')
    args = parser.parse_args()
    console, where = Console(), environment_info(args.device)
    console.print(where)
    inputs = INPUTS[args.device]
    if args.batch:
        inputs = [(args.batch, 224), *inputs[1:]]
    data: dict[str, Any] = {'machine': where, 'dtype': args.dtype, 'rounds': args.rounds, 'runs': []}
    for batch, size in inputs:
        for step in (inference, training_step):
            result = measure(step, args, batch, size)
            data['runs'].append({'batch': batch, 'size': size, 'step': step.__name__, 'models': result})
            title = f'{step.__name__.replace("_", " ")}, {batch} x {size} x {size}, {args.dtype}'
            table = Table(('', 'images/s', 'of the ceiling', 'x dense', 'peak MB'), title=title)
            dense = result['PeLK-T, dense backend']['images_per_second']
            for name, row in result.items():
                memory = '-' if row['peak_memory'] is None else f'{row["peak_memory"] / 2**20:.0f}'
                speed = row['images_per_second']
                table.add(name, f'{speed:.2f}', f'{row["share_of_ceiling"]:.0%}', f'{speed / dense:.1f}', memory)
            table.print(console)
    path = RESULTS / f'backbone_{args.device}_{args.dtype}.json'
    path.write_text(json.dumps(data, indent=1) + '\n')
    console.print(f'written to {path}')


if __name__ == '__main__':
    main()
