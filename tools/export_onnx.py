"""Write a trained network as an ONNX file of standard operators, run it, and compare it with the network.

python tools/export_onnx.py configs/seg/upernet_pelk_t_ade20k.py model.pth model.onnx --shape 512 512
python tools/export_onnx.py configs/cls/pelk_t_in1k.py model.pth model.onnx --dynamic --shape 224 224 --shape 333 500

A segmentor and a classifier are exported whole, a detector's backbone with its neck. A file of one size is faster.
Large weights go beside the file, into .onnx.data.
"""

import argparse

from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.export import OPSETS, check_opset, export_onnx, open_onnx, runner_of
from mmpelk.export.command_line import Request, add_export_options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_export_options(parser, '.onnx')
    parser.add_argument('--opset', type=int, default=18, help=f'{OPSETS[0]} to {OPSETS[-1]}; %(default)s')
    args = parser.parse_args()
    with exit_on_user_error():
        check_opset(args.opset)
        request = Request.of(args, '.onnx')
        export_onnx(request.exported, request.images[0], args.out, args.opset, args.dynamic)
        request.report(runner_of(open_onnx(args.out)), args.out, 'onnxruntime', f'opset {args.opset}')


if __name__ == '__main__':
    main()
