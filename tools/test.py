"""Test a checkpoint with a recipe of any task. ``tools/dist_test.sh`` runs it on several processes."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed
from mmengine.config import Config, ConfigDict

from mmpelk.engine.checks import check_checkpoint, check_data, check_operators
from mmpelk.engine.command_line import (
    add_common_options,
    build_runner,
    exit_on_user_error,
    load_config,
    parse_options,
)
from mmpelk.engine.distributed import adapt_to_machine
from mmpelk.fault_tolerance.samples import build_data

# How each toolbox's visualization hook is switched on, and where it takes the folder from.
DRAW_KEYS = {'mmseg': 'draw', 'mmdet': 'draw', 'mmpretrain': 'enable'}
FOLDER_KEYS = {'mmdet': 'test_out_dir', 'mmpretrain': 'out_dir'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument('--out', help='store predictions: a .pkl file, or, in segmentation, a folder of PNG label maps')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder of painted images')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that a window stays')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_common_options(parser)
    return parse_options(parser)


def show_predictions(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    scope = cfg.get('default_scope')
    if hook is None or scope not in DRAW_KEYS:
        raise ValueError(
            '--show and --show-dir need default_hooks.visualization and a default_scope of '
            f'{", ".join(DRAW_KEYS)} in the config'
        )
    hook[DRAW_KEYS[scope]] = True
    hook['interval'] = 1  # mmpretrain draws one in thousands by default; the others draw all of a test
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.show_dir:
        target, key = (hook, FOLDER_KEYS[scope]) if scope in FOLDER_KEYS else (cfg.visualizer, 'save_dir')
        target[key] = os.path.abspath(args.show_dir)  # the toolboxes take other paths from the work folder


def keep_folders(visualizer: Any, pictures: Sequence[str]) -> None:
    """Draw below the pictures' folders where their names alone are not distinct: the toolboxes' hooks drop folders."""
    if len({os.path.basename(picture) for picture in pictures}) == len(pictures):
        return
    common = os.path.commonpath([os.path.dirname(os.path.abspath(picture)) for picture in pictures])

    def with_folders(draw: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, data_sample: Any, out_file: str | None = None, **options: Any) -> Any:
            if out_file is not None:
                folder, name = os.path.split(out_file)
                below = os.path.relpath(os.path.dirname(os.path.abspath(data_sample.img_path)), common)
                out_file = os.path.normpath(os.path.join(folder, below, name))
            return draw(*args, data_sample=data_sample, out_file=out_file, **options)

        return wrapped

    if hasattr(visualizer, 'visualize_cls'):
        visualizer.visualize_cls = with_folders(visualizer.visualize_cls)
    else:
        visualizer.add_datasample = with_folders(visualizer.add_datasample)


def store_predictions(cfg: Config, path: str) -> None:
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if path.endswith(('.pkl', '.pickle')):
        # mmdet's own encodes the masks.
        dump = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
        cfg.test_evaluator = [*evaluators, dict(type=dump, out_file_path=path)]
    elif cfg.get('default_scope') == 'mmseg':
        for evaluator in evaluators:
            evaluator.update(output_dir=path, keep_results=True)
    else:
        raise ValueError(f"--out takes a .pkl file, got '{path}'")


def augment(cfg: Config) -> None:
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise ValueError(f'--tta needs {" and ".join(missing)} in the config')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        cfg = load_config(args)
        check_operators(cfg)
        cfg.load_from = args.checkpoint
        check_checkpoint(args.checkpoint)
        check_data(cfg, ['test_dataloader'])
        if args.show or args.show_dir:
            show_predictions(cfg, args)
        if args.out:
            store_predictions(cfg, args.out)
        if args.tta:
            augment(cfg)
        adapt_to_machine(cfg)
        runner = build_runner(cfg)
        build_data(runner, 'test')
        if args.show_dir:
            dataset = runner.test_loop.dataloader.dataset
            pictures = (dataset.get_data_info(index).get('img_path') for index in range(len(dataset)))
            keep_folders(runner.visualizer, [picture for picture in pictures if picture])
    with exit_on_user_error(running=True):
        runner.test()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
