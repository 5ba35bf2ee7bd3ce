"""Train a recipe of any task. ``tools/dist_train.sh`` runs it on several processes."""

import argparse

import torch.distributed
from mmengine.config import Config

from mmpelk.engine.checks import check_checkpoint, check_data, check_operators, check_weights
from mmpelk.engine.command_line import (
    add_common_options,
    build_runner,
    exit_on_user_error,
    load_config,
    parse_options,
)
from mmpelk.engine.distributed import adapt_to_machine
from mmpelk.engine.progress import VISUALIZERS, add_vis_backend
from mmpelk.fault_tolerance.samples import build_data


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint, or from the latest one in the work folder',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size of all processes'
    )
    parser.add_argument('--visualize', choices=sorted(VISUALIZERS), help='send curves there, too')
    add_common_options(parser)
    return parse_options(parser)


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the options that only training has."""
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config')
        cfg.auto_scale_lr.enable = True
    if args.visualize:
        add_vis_backend(cfg, args.visualize)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        cfg = load_config(args)
        check_operators(cfg)
        apply_options(cfg, args)
        check_checkpoint(cfg.get('load_from'))
        check_weights(cfg)
        check_data(cfg, ['train_dataloader', 'val_dataloader'])
        adapt_to_machine(cfg)
        runner = build_runner(cfg)
        build_data(runner, 'train', 'val')
    with exit_on_user_error(running=True):
        runner.train()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
