"""Make an INT8 file of an ONNX file, calibrated on images of the recipe's training set.

python tools/quantize_onnx.py configs/seg/upernet_pelk_t_ade20k.py model.onnx model_int8.onnx --images 64

The file is one of tools/export_onnx.py without --fold-preprocessing and --half. tools/test_onnx.py measures what the
integers cost in the recipe's own metric.
"""

import argparse
from pathlib import Path

from rich.console import Console

from mmpelk.engine.checks import check_data
from mmpelk.engine.command_line import add_cfg_options, exit_on_user_error, parse_options, read_config
from mmpelk.errors import UserError
from mmpelk.export import calibration_images, quantize_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe of the training')
    parser.add_argument('file', type=Path, help='.onnx of float32')
    parser.add_argument('out', type=Path, help='.onnx to write')
    parser.add_argument('--images', type=int, default=64, help='training images to calibrate on; %(default)s')
    add_cfg_options(parser)
    args = parse_options(parser)
    with exit_on_user_error():
        cfg = read_config(args.config, args.cfg_options)
        if not args.file.is_file():
            raise FileNotFoundError(f"there is no file '{args.file}'; tools/export_onnx.py writes it")
        if args.images < 1:
            raise UserError(f'--images must be at least 1, got {args.images}')
        check_data(cfg, ['train_dataloader'])
        layers = quantize_onnx(args.file, args.out, calibration_images(cfg, args.images))
    sizes = [path.stat().st_size / 2**20 for path in (args.file, args.out)]
    Console(soft_wrap=True).print(
        f'{args.out}: {layers} layers in INT8, calibrated on {args.images} images; {sizes[1]:.1f} MB instead of '
        f'{sizes[0]:.1f}'
    )


if __name__ == '__main__':
    main()
