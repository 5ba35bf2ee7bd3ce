"""Write a trained network as a torch.export program, which runs where mmpelk is not installed, and compare the two.

python tools/export_torch.py configs/seg/upernet_pelk_t_ade20k.py model.pth model.pt2 --shape 512 512
python tools/export_torch.py configs/cls/pelk_t_in1k.py model.pth model.pt2 --aot-inductor

A segmentor and a classifier are exported whole, a detector's backbone with its neck.
"""

import argparse

import torch

from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.export import compile_program, export_program, load_program
from mmpelk.export.command_line import Request, add_export_options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_export_options(parser, '.pt2')
    parser.add_argument(
        '--aot-inductor',
        action='store_true',
        help="compile it for this machine's processor, for Python and for C++ without Python",
    )
    args = parser.parse_args()
    with exit_on_user_error():
        request = Request.of(args, '.pt2')
        program = export_program(request.exported, request.images[0], args.dynamic)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.aot_inductor:
            compile_program(program, args.out)
        else:
            torch.export.save(program, args.out)
        run = load_program(args.out, compiled=args.aot_inductor)
        format_ = 'package of AOTInductor' if args.aot_inductor else 'torch.export program'
        request.report(run, args.out, 'the file', f'{format_}, torch {torch.__version__}')


if __name__ == '__main__':
    main()
