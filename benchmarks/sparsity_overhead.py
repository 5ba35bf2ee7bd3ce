"""What dynamic sparsity adds to a training step: enforcing the masks after each, updating them now and then.

Both are timed by themselves, on the optimizer state of real steps, and given as a share of the step without them. That
is steadier than the difference of two runs.

python -m benchmarks.sparsity_overhead --arch tiny --size 224 --batch 2
"""

import argparse
import math
from collections.abc import Callable

import torch
from mmengine.device import get_device
from torch import nn

from benchmarks.timing import interleaved_medians
from mmpelk.models import PeLK
from mmpelk.sparsity import GRANULARITIES, StepMasker, attach_masks


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='tiny', help='architecture of PeLK; %(default)s')
    parser.add_argument('--size', type=int, default=224, help='height and width of the images; %(default)s')
    parser.add_argument('--batch', type=int, default=2, help='images per step; %(default)s')
    parser.add_argument(
        '--granularity', choices=list(GRANULARITIES), default='weight', help='of the masks; %(default)s'
    )
    parser.add_argument('--update-interval', type=int, default=2000, help='iterations per update; %(default)s')
    return parser.parse_args()


def median_ms(function: Callable[[], object], repeats: int, device: str) -> float:
    """Median time of a call in milliseconds, the device's work included."""
    return 1000 * interleaved_medians({'call': function}, device.split(':')[0], repeats)['call']


def main() -> None:
    args, device = parse_args(), get_device()
    torch.manual_seed(0)
    model: nn.Module = PeLK(arch=args.arch).to(device).train()
    layers = GRANULARITIES[args.granularity](model, None, ())
    parameters = [entry for layer in layers for entry in layer.parameters]
    attach_masks(parameters)
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        layer.draw(round(0.6 * math.prod(layer.shape)), generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)

    def step() -> None:
        optimizer.zero_grad()
        model(images)[-1].square().mean().backward()
        optimizer.step()

    step_ms = median_ms(step, 10, device)
    masker = StepMasker(optimizer, parameters)
    apply_ms = median_ms(masker.apply, 50, device)

    def update() -> None:
        growth = torch.Generator(device).manual_seed(0)
        for layer in layers:
            layer.update(0.3, growth)
            layer.start_grown([], generator)
        masker.refresh()

    update_ms = median_ms(update, 3, device)
    per_step = update_ms / args.update_interval
    masked = sum(entry.weight.numel() for entry in parameters) / 1e6
    print(
        f'PeLK {args.arch}, batch {args.batch}, {args.size} x {args.size}, {device}, {args.granularity}, '
        f'{masked:.1f} M masked weights'
    )
    print(f'training step without masks    {step_ms:10.2f} ms')
    print(f'one update of the masks        {update_ms:10.2f} ms')
    print(f'  each of {args.update_interval:6d} iterations   {per_step:10.2f} ms  {100 * per_step / step_ms:6.2f} %')
    print(f'enforcing them after each step {apply_ms:10.2f} ms  {100 * apply_ms / step_ms:6.2f} %')


if __name__ == '__main__':
    main()
