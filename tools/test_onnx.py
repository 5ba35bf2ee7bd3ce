"""Test an ONNX file on its recipe's test set, in onnxruntime, with the recipe's own metrics.

python tools/test_onnx.py configs/seg/upernet_pelk_t_ade20k.py model.onnx

For segmentation and classification. The file is one of tools/export_onnx.py without --fold-preprocessing, or of
tools/quantize_onnx.py. A file of one size takes test images of that size.
"""

import argparse
from pathlib import Path

from mmpelk.engine.checks import check_data
from mmpelk.engine.command_line import (
    add_common_options,
    build_runner,
    exit_on_user_error,
    load_config,
    parse_options,
)
from mmpelk.engine.distributed import adapt_to_machine
from mmpelk.export import open_onnx, replace_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe of the training')
    parser.add_argument('file', type=Path, help='.onnx to test')
    add_common_options(parser)
    args = parse_options(parser)
    with exit_on_user_error():
        cfg = load_config(args)
        if not args.file.is_file():
            raise FileNotFoundError(f"there is no file '{args.file}'; tools/export_onnx.py writes it")
        check_data(cfg, ['test_dataloader'])
        cfg.load_from = None
        cfg.model.backbone.init_cfg = None
        adapt_to_machine(cfg)
        runner = build_runner(cfg)
        replace_weights(runner.model, open_onnx(args.file))
    with exit_on_user_error(running=True):
        runner.test()


if __name__ == '__main__':
    main()
