"""Draw what a trained model sees in images and videos: label maps, a detector's boxes and masks, or a class.

python tools/demo_image.py photo.jpg holiday/ --config configs/seg/upernet_pelk_t_ade20k.py --checkpoint model.pth
python tools/demo_image.py street.mp4 --checkpoint model.onnx
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import VISUALIZERS
from rich.progress import Progress

from mmpelk.analysis.drawings import Drawing, Painter, find_drawings
from mmpelk.engine.checks import check_checkpoint, check_operators
from mmpelk.engine.command_line import exit_on_user_error, read_config
from mmpelk.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE', help='images, videos, or folders of them')
    parser.add_argument('--config', help='path of the config that the model was trained with; none for an .onnx')
    parser.add_argument(
        '--checkpoint', required=True, help='path of the trained weights, or of a file of tools/export_onnx.py'
    )
    parser.add_argument('--out', type=Path, default=Path('predictions'), help='folder of the drawings; %(default)s')
    parser.add_argument('--device', help="'cpu' or 'cuda:0', for example; a GPU by default, where there is one")
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score of a drawn box; %(default)s')
    parser.add_argument('--opacity', type=float, default=0.5, help='of drawn label maps, 0 to 1; %(default)s')
    parser.add_argument(
        '--label-maps',
        action='store_true',
        help='segmentation: write IMAGE.labels.png beside each drawing, of class indices',
    )
    args = parser.parse_args()
    if not args.config and not args.checkpoint.endswith('.onnx'):
        parser.error('the following arguments are required: --config, except with an .onnx file')
    return args


def load_model(cfg: Config, checkpoint: str, device: str) -> tuple[Any, Any]:
    """Load a model through its toolbox.

    Args:
        cfg: The config.
        checkpoint: Path of the weights.
        device: Where the model runs.

    Returns:
        The model in eval mode, and the toolbox's function that predicts one BGR image ``(H, W, 3)``.

    Raises:
        ValueError: If the config is none of mmseg's, mmdet's and mmpretrain's.
    """
    scope = cfg.get('default_scope')
    # Only the toolbox that is needed: users of one may not have the other.
    if scope == 'mmseg':
        from mmseg.apis import inference_model, init_model

        return init_model(cfg, checkpoint, device), inference_model
    if scope == 'mmdet':
        from mmdet.apis import inference_detector, init_detector

        return init_detector(cfg, checkpoint, device=device), inference_detector
    if scope == 'mmpretrain':
        from mmpretrain.apis import ImageClassificationInferencer

        inferencer = ImageClassificationInferencer(cfg, pretrained=checkpoint, device=device)
        model = inferencer.model
        model.dataset_meta = dict(classes=inferencer.classes)
        # Called as a whole, it shows a bar for every picture.
        return model, lambda model, image: inferencer.forward(next(inferencer.preprocess([image])))[0]
    raise ValueError(
        f"this tool draws for configs whose default_scope is 'mmseg', 'mmdet' or 'mmpretrain'; this one's is {scope!r}"
    )


def make_painter(args: argparse.Namespace, label_maps: list[np.ndarray]) -> Painter:
    """What draws one picture: the toolbox's visualizer, or, of an ``.onnx`` file, onnxruntime.

    Args:
        args: The options.
        label_maps: With ``--label-maps`` the class indices of every picture, ``(H, W)``, are appended to it.

    Raises:
        UserError: If label maps are wanted of a model that makes none.
    """
    if args.checkpoint.endswith('.onnx'):
        if args.label_maps:
            raise UserError('--label-maps needs --config and the checkpoint that the .onnx file was exported from')
        from mmpelk.export.onnx_painter import OnnxPainter

        return OnnxPainter(Path(args.checkpoint), args.opacity)
    cfg = read_config(args.config)
    if args.label_maps and cfg.get('default_scope') != 'mmseg':
        raise UserError("--label-maps are a segmentor's; this config is no segmentor's")
    check_operators(cfg)
    check_checkpoint(args.checkpoint)
    model, predict = load_model(cfg, args.checkpoint, args.device or get_device())
    # Nothing but the drawing is wanted: no backend writes a second copy.
    settings = {'name': 'drawings', **cfg.visualizer, 'vis_backends': None, '_scope_': cfg.default_scope}
    visualizer: Any = VISUALIZERS.build(settings)
    visualizer.dataset_meta = model.dataset_meta
    options = dict(pred_score_thr=args.score_thr) if cfg.default_scope == 'mmdet' else {}
    if cfg.default_scope == 'mmseg':
        visualizer.alpha = args.opacity

    def paint(image: np.ndarray) -> np.ndarray:
        result = predict(model, image)
        if args.label_maps:
            label_maps.append(result.pred_sem_seg.data[0].cpu().numpy())
        if cfg.default_scope == 'mmpretrain':
            visualizer.visualize_cls(mmcv.bgr2rgb(image), result, draw_gt=False)
        else:
            visualizer.add_datasample('', mmcv.bgr2rgb(image), result, draw_gt=False, **options)
        return mmcv.rgb2bgr(visualizer.get_image())

    return paint


def find_color_type(cfg: Config) -> str:
    """How the config's tests read pictures: with the rotation that EXIF asks for, or without it."""
    pipeline = cfg.get('test_pipeline') or cfg.get('test_dataloader', {}).get('dataset', {}).get('pipeline', [])
    types = [step.get('color_type') for step in pipeline if str(step.get('type')).endswith('LoadImageFromFile')]
    return 'color_ignore_orientation' if 'color_ignore_orientation' in types else 'color'


def draw_all(
    drawings: list[Drawing], paint: Painter, label_maps: list[np.ndarray], color_type: str = 'color'
) -> list[str]:
    """Draw them, with a bar that counts the pictures, and write the label maps beside them.

    Returns:
        What was wrong with those that could not be read.
    """
    problems = []
    with Progress() as progress:
        bar = progress.add_task('Drawing', total=sum(drawing.frames() for drawing in drawings))
        for drawing in drawings:
            try:
                for number, _ in enumerate(drawing.draw(paint, color_type)):
                    progress.advance(bar)
                    if label_maps:
                        frame = f'.{number:06}' if drawing.is_video else ''
                        name = drawing.target.with_name(f'{drawing.target.name}{frame}.labels.png')
                        mmcv.imwrite(label_maps.pop().astype(np.uint8), str(name))
            except UserError as error:
                problems.append(str(error))
    return problems


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        drawings = find_drawings(args.images, args.out)
        label_maps: list[np.ndarray] = []
        paint = make_painter(args, label_maps)
        color_type = find_color_type(read_config(args.config)) if args.config else 'color'
    problems = draw_all(drawings, paint, label_maps, color_type)
    print(f"{len(drawings) - len(problems)} drawings in '{args.out}'")
    if problems:
        print('\n'.join(f'error: {problem}' for problem in problems), file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
