"""Write a trained network as an ONNX file of standard operators, run it, and compare it with the network.

python tools/export_onnx.py configs/seg/upernet_pelk_t_ade20k.py model.pth model.onnx --shape 512 512
python tools/export_onnx.py configs/cls/pelk_t_in1k.py model.pth model.onnx --dynamic --shape 224 224 --shape 333 500

A segmentor and a classifier are exported whole, a detector's backbone with its neck. A file of one size is faster.
"""

import argparse
from pathlib import Path

import torch
from mmengine.config import DictAction
from rich.console import Console

from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import exit_on_user_error, load_config
from mmpelk.errors import UserError
from mmpelk.export import (
    OPSETS,
    ExportedNetwork,
    compare_onnx,
    export_onnx,
    in_half,
    load_deployed,
    open_onnx,
    real_image,
)

# Of the largest output: what rounding alone does, in float32 and in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe of the training')
    parser.add_argument('checkpoint', help='its checkpoint, trained or deployed')
    parser.add_argument('out', type=Path, help='.onnx to write; large weights go beside it, into .onnx.data')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        action='append',
        metavar=('H', 'W'),
        help="the file's image size, 224 224 by default; with --dynamic the sizes to compare at, as often as you like",
    )
    parser.add_argument('--dynamic', action='store_true', help='let batch and image size vary')
    parser.add_argument(
        '--fold-preprocessing', action='store_true', help='take (N, H, W, 3) of uint8, red, green, blue, as images come'
    )
    parser.add_argument('--half', action='store_true', help='weights and maps in float16')
    parser.add_argument('--opset', type=int, default=18, help=f'{OPSETS[0]} to {OPSETS[-1]}; %(default)s')
    parser.add_argument('--image', type=Path, help='photograph to compare on; one of matplotlib by default')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config')
    parser.set_defaults(launcher='none', work_dir=None)  # what load_config looks for
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    console = Console(soft_wrap=True)
    with exit_on_user_error():
        cfg = load_config(args)
        check_checkpoint(args.checkpoint)
        shapes = [tuple(shape) for shape in args.shape or [(224, 224)]]
        if len(shapes) > 1 and not args.dynamic:
            raise UserError('a file of one size has one --shape; --dynamic makes one for any')
        if args.out.suffix != '.onnx':
            raise UserError(f"the name of '{args.out}' must end in .onnx")
        if args.opset not in OPSETS:
            raise UserError(f'opset {args.opset} is not supported; known: {OPSETS[0]} to {OPSETS[-1]}')
        network = ExportedNetwork.of(cfg, load_deployed(cfg, args.checkpoint))
        for shape in shapes:
            network.check_size(*shape)
        photographs = [torch.from_numpy(real_image(args.image, shape))[None] for shape in shapes]
        exact = network.folded() if args.fold_preprocessing else network
        exported = in_half(network) if args.half else network
        exported = exported.folded() if args.fold_preprocessing else exported
        images = photographs
        if not args.fold_preprocessing:
            images = [network.preprocessing.apply(image) for image in photographs]
            images = [image.half() for image in images] if args.half else images
        export_onnx(exported, images[0], args.out, args.opset, args.dynamic)
        session = open_onnx(args.out)
        size = sum(file.stat().st_size for file in args.out.parent.glob(f'{args.out.name}*')) / 2**20
        console.print(f'{args.out}: opset {args.opset}, {size:.1f} MB, outputs {", ".join(exported.outputs)}')
        worst = 0.0
        for (height, width), image in zip(shapes, images, strict=True):
            found = compare_onnx(session, exact, image)
            worst = max(worst, found.difference)
            console.print(
                f'  {height} x {width}: differs by {found.difference:.1e} of the largest output, '
                f'{found.same_labels:.4%} of the labels are the same; {found.seconds * 1e3:.0f} ms in onnxruntime, '
                f'{found.torch_seconds * 1e3:.0f} ms in torch'
            )
        if not worst < (HALF_TOLERANCE if args.half else TOLERANCE):
            raise UserError(f"the file differs by {worst:.1e} of the largest output: do not use '{args.out}'")


if __name__ == '__main__':
    main()
