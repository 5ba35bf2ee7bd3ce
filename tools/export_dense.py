"""Turn a training checkpoint into one for publishing: masks folded in, EMA or last weights, no optimizer state.

python tools/export_dense.py work_dirs/run/iter_160000.pth pelk_t_ade20k.pth pelk_t_ade20k.safetensors --hash
python tools/export_dense.py work_dirs/pelk_t_unit_in1k/epoch_300.pth pelk_t_unit_in1k.pth --shrink
"""

import argparse
from pathlib import Path

from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.sparsity.publish import add_hash, publish_checkpoint, save_pth, save_safetensors

WRITERS = {'.pth': save_pth, '.safetensors': save_safetensors}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='checkpoint of a training run')
    parser.add_argument('out', nargs='+', type=Path, help='files to write, each .pth or .safetensors')
    parser.add_argument(
        '--weights', choices=['ema', 'last'], help='averaged or last weights; by default averaged, where there are any'
    )
    parser.add_argument(
        '--keep-masks', action='store_true', help='keep the masks beside the weights, for sparse fine-tuning'
    )
    parser.add_argument('--keep-optimizer', action='store_true', help='keep what resuming needs; .pth only')
    parser.add_argument(
        '--shrink',
        action='store_true',
        help="take inactive hidden units (granularity='unit') out: the same outputs from fewer weights, same config",
    )
    parser.add_argument('--hash', action='store_true', help='add the beginning of its SHA-256 to the name of each file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        if not args.checkpoint.is_file():
            raise FileNotFoundError(f"there is no checkpoint '{args.checkpoint}'")
        for path in args.out:
            if path.suffix not in WRITERS:
                raise ValueError(f"the name of '{path}' must end in {' or '.join(WRITERS)}")
            if path.resolve() == args.checkpoint.resolve():
                raise ValueError(f"'{path}' is the checkpoint itself: choose another name")
        checkpoint = read_checkpoint(args.checkpoint)
        exported = publish_checkpoint(checkpoint, args.weights, args.keep_masks, args.keep_optimizer, args.shrink)
        for path in args.out:
            path.parent.mkdir(parents=True, exist_ok=True)
            WRITERS[path.suffix](exported, path)
            written = add_hash(path) if args.hash else path
            sparsity = exported['meta']['sparsity']
            print(f'{written}: density {sparsity["density"]:.4f} of the masked parameters')
            if counts := sparsity.get('hidden_channels'):
                print(
                    f'  {sum(counts.values())} hidden units left in {len(counts)} blocks; it loads with the same config'
                )


if __name__ == '__main__':
    main()
