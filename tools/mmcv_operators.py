"""mmcv's operators: compile them in a fraction of the time, and check what was compiled.

``join`` takes the unpacked source distribution and joins its C++ files into a few. Nearly all of the ordinary build's
time goes into torch's headers, which each of its 79 files reads anew. ``check`` compares operators with torchvision's,
on the GPU too where torch has one.
"""

import argparse
import sys
from pathlib import Path

# Files of csrc/pytorch/cpu that define names which another one defines, too, and where they go instead. The last one
# of a unit may define the macros min and max.
APART = {'dispatch': ('pixel_group', 'roi_align_rotated', 'rotated_feature_align', 'psamask'), 'pybind': ('roi_align',)}


def join(source: Path) -> None:
    """Join the C++ files of mmcv's operators for the CPU into three, which its own set-up then compiles.

    Raises:
        FileNotFoundError: If ``source`` is no unpacked source distribution of mmcv.
    """
    folder = source / 'mmcv/ops/csrc/pytorch'
    if not (folder / 'pybind.cpp').is_file():
        raise FileNotFoundError(f"'{source}' holds no source of mmcv's operators")
    files = [*sorted(folder.glob('*.cpp')), *sorted((folder / 'cpu').glob('*.cpp'))]
    units: dict[str, list[Path]] = {'dispatch': [], 'cpu': [], 'pybind': []}
    apart = {folder / f'cpu/{name}.cpp': unit for unit, names in APART.items() for name in names}
    for path in files:
        if path not in apart:
            units['cpu' if path.parent != folder else 'pybind' if path.stem == 'pybind' else 'dispatch'].append(path)
    for path, unit in apart.items():
        units[unit].append(path)
    for name, paths in units.items():
        lines = []
        for path in paths:
            included = path.rename(path.with_suffix('.inc'))
            lines.append(f'#include "{included.relative_to(folder)}"\n')
        (folder / f'joined_{name}.cpp').write_text(''.join(lines), encoding='utf-8')


def check() -> None:
    """Compare operators and their gradients with torchvision's.

    Raises:
        ImportError: If there are none, or they are compiled for another torch.
        RuntimeError: If one differs, or if torch sees a GPU and they are compiled for the CPU alone.
    """
    import torch
    import torchvision.ops
    from mmcv import ops
    from torch import Tensor

    devices = ['cpu']
    if torch.cuda.is_available():
        if ops.get_compiling_cuda_version() == 'not available':
            raise RuntimeError("mmcv's operators are compiled for the CPU alone")
        devices.append('cuda')

    def compare(name: str, ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...] = ()) -> None:
        pairs = [(ours, theirs)]
        if inputs:
            weight = torch.linspace(-1, 1, ours.numel(), device=ours.device).view(ours.shape)
            gradients = (torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, theirs))
            pairs += zip(*gradients, strict=True)
        for a, b in pairs:
            # Sums of some hundred products in float32, in two orders; a wrong index gives 0.01 and more.
            if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-4, atol=1e-4):
                raise RuntimeError(f"mmcv's {name} differs from torchvision's on the {device}")

    for device in devices:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator).to(device).requires_grad_()  # noqa: B023

        corners = draw(200, 2).detach() * 20
        boxes = torch.cat([corners, corners + 1 + draw(200, 2).detach() * 10], 1)
        scores = draw(200).detach()
        compare('nms', ops.nms(boxes, scores, 0.5)[1], torchvision.ops.nms(boxes, scores, 0.5))

        x = draw(2, 4, 32, 32)
        rois = torch.cat([torch.arange(200, device=device).view(-1, 1) % 2, boxes], 1)
        ours = ops.roi_align(x, rois, (7, 5), 0.5, 2, 'avg', True)
        compare('roi_align', ours, torchvision.ops.roi_align(x, rois, (7, 5), 0.5, 2, True), (x,))

        offset, mask, weight = draw(2, 18, 32, 32), draw(2, 9, 32, 32), draw(6, 4, 3, 3)
        theirs = torchvision.ops.deform_conv2d(x, offset, weight, padding=1)
        compare('deform_conv2d', ops.deform_conv2d(x, offset, weight, 1, 1), theirs, (x, offset, weight))
        theirs = torchvision.ops.deform_conv2d(x, offset, weight, padding=1, mask=mask)
        ours = ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
        compare('modulated_deform_conv2d', ours, theirs, (x, offset, mask, weight))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('join', help='join the C++ files').add_argument(
        'source', type=Path, help='unpacked source of mmcv'
    )
    commands.add_parser('check', help="compare with torchvision's operators")
    args = parser.parse_args()
    try:
        join(args.source) if args.command == 'join' else check()
    except (ImportError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
