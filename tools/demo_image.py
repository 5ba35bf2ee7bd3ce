"""Draw what a trained model sees in images: label maps of a segmentation model, boxes and masks of a detector.

python tools/demo_image.py photo.jpg holiday/ --config configs/seg/upernet_pelk_t_ade20k.py --checkpoint model.pth
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from rich.progress import track
from torch import nn

from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import exit_on_user_error

IMAGE_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'}
Predict = Callable[[nn.Module, np.ndarray], BaseDataElement]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE', help='image files, or folders of them')
    parser.add_argument('--config', required=True, help='path of the config that the model was trained with')
    parser.add_argument('--checkpoint', required=True, help='path of the trained weights')
    parser.add_argument('--out', type=Path, default=Path('predictions'), help='folder of the drawings; %(default)s')
    parser.add_argument('--device', help="'cpu' or 'cuda:0', for example; a GPU by default, where there is one")
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score of a drawn box; %(default)s')
    parser.add_argument('--opacity', type=float, default=0.5, help='of drawn label maps, 0 to 1; %(default)s')
    return parser.parse_args()


def find_images(inputs: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Images to draw, and the files to draw them to.

    Args:
        inputs: Image files and folders; folders are searched to their depth, but not ``out`` inside them.
        out: Folder of the drawings. Those of a folder's images keep their place below the folder.

    Returns:
        Target to source, in order of the inputs, sorted by name in a folder.

    Raises:
        FileNotFoundError: If an input does not exist or a folder holds no image.
        ValueError: If two images would be drawn to the same file.
    """
    drawings: dict[Path, Path] = {}
    for given in inputs:
        if not given.exists():
            raise FileNotFoundError(f"the image '{given}' does not exist")
        found = [given]
        if given.is_dir():
            found = sorted(path for path in given.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
            found = [path for path in found if out.resolve() not in path.resolve().parents]
            if not found:
                raise FileNotFoundError(f"no image in the folder '{given}'; known: {', '.join(sorted(IMAGE_SUFFIXES))}")
        for path in found:
            target = out / (path.relative_to(given) if given.is_dir() else path.name)
            if target.resolve() == path.resolve():
                raise ValueError(f"'{path}' would be overwritten by its drawing; give another folder with --out")
            if drawings.setdefault(target, path) != path:
                raise ValueError(
                    f"'{drawings[target]}' and '{path}' would both be drawn to '{target}'; give one --out each"
                )
    return drawings


def load_model(cfg: Config, checkpoint: str, device: str) -> tuple[nn.Module, Predict]:
    """Load a model through its toolbox.

    Args:
        cfg: The config.
        checkpoint: Path of the weights.
        device: Where the model runs.

    Returns:
        The model in eval mode, and the toolbox's function that predicts one BGR image ``(H, W, 3)``.

    Raises:
        ValueError: If the config is neither mmseg's nor mmdet's.
    """
    scope = cfg.get('default_scope')
    # Only the toolbox that is needed: users of one may not have the other.
    if scope == 'mmseg':
        from mmseg.apis import inference_model, init_model

        return init_model(cfg, checkpoint, device), inference_model
    if scope == 'mmdet':
        from mmdet.apis import inference_detector, init_detector

        return init_detector(cfg, checkpoint, device=device), inference_detector
    raise ValueError(f"this tool draws for configs whose default_scope is 'mmseg' or 'mmdet'; this one's is {scope!r}")


def build_visualizer(cfg: Config, model: nn.Module, args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The visualizer of the config, and the arguments of its ``add_datasample`` that the command line sets."""
    # Nothing but the drawing is wanted: no backend writes a second copy.
    visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None})
    visualizer.dataset_meta = model.dataset_meta
    if cfg.default_scope == 'mmdet':
        return visualizer, dict(pred_score_thr=args.score_thr)
    visualizer.alpha = args.opacity
    return visualizer, {}


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        drawings = find_images(args.images, args.out)
        if not Path(args.config).is_file():
            raise FileNotFoundError(f"there is no config '{args.config}'")
        check_checkpoint(args.checkpoint)
        cfg = Config.fromfile(args.config)
        model, predict = load_model(cfg, args.checkpoint, args.device or get_device())
        visualizer, options = build_visualizer(cfg, model, args)
    unreadable = []
    for target, source in track(drawings.items(), description='Drawing', total=len(drawings)):
        image = mmcv.imread(str(source))
        if image is None:
            unreadable.append(str(source))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        visualizer.add_datasample(
            source.name,
            mmcv.bgr2rgb(image),
            predict(model, image),
            draw_gt=False,
            out_file=str(target),
            **options,
        )
    print(f"{len(drawings) - len(unreadable)} drawings in '{args.out}'")
    if unreadable:
        print(f'error: not readable as images: {", ".join(unreadable)}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
