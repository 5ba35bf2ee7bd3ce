"""Fig. 4: effective receptive fields of models of mmpretrain, mmseg and mmdet, side by side on one scale.

Give each model as a name, a config and a checkpoint, and after them changes of its config:

    python tools/analysis/erf.py --images photos/ \\
        --model PeLK-T configs/cls/pelk_t_in1k.py pelk_t.pth \\
        --model PeLK-101-T configs/cls/pelk_t_in1k.py random model.backbone.arch=tiny-101

The checkpoint is a file, a URL, or the word "random". A network with random weights is measured as it would compute at
the first training step, with the images' statistics in its batch norms, except that layer scales are set to 1. From
their usual start, 1e-6, the blocks contribute next to nothing, and every network shows the dot that stem and
downsampling see; --layer-scale init shows it.

Without --model and --load-scores: PeLK-T, PeLK-101-T, SLaK-T, RepLK-51-T, ConvNeXt-T, and PeLK-T with large kernels on
all channels instead of 3/8, with random weights.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import numpy.typing as npt
import torch
from erf_figure import Measured, describe, draw
from mmengine.config import DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, set_random_seed
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmpelk.analysis.receptive_field import (
    THRESHOLDS,
    contribution_scores,
    receptive_field_layers,
    receptive_field_size,
    theoretical_receptive_field,
)
from mmpelk.analysis.timing import environment_info
from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import exit_on_user_error, load_config
from mmpelk.models import PeLK
from mmpelk.models.checkpoint import check_pretrained

RANDOM = 'random'
ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / 'configs' / 'cls'
DEMO_IMAGES = ROOT / 'data' / 'demo_segmentation' / 'images' / 'validation'
DEFAULT_MODELS = [
    ['PeLK-T', f'{RECIPES}/pelk_t_in1k.py', RANDOM],
    ['PeLK-101-T', f'{RECIPES}/pelk_t_in1k.py', RANDOM, 'model.backbone.arch=tiny-101'],
    ['SLaK-T', f'{RECIPES}/slak_t_in1k.py', RANDOM],
    ['RepLK-51-T', f'{RECIPES}/replk_51_t_in1k.py', RANDOM],
    # Not in the paper: what the 3/8 of the channels, which the large kernels see in PeLK, make of the field.
    ['PeLK-T, all channels', f'{RECIPES}/pelk_t_in1k.py', RANDOM, 'model.backbone.conv_ratio=1.0'],
    ['ConvNeXt-T', f'{RECIPES}/convnext_t_in1k.py', RANDOM],
]
IMAGE_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'}

Scores = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Request:
    """A model of the command line.

    Attributes:
        name: As in table and figure.
        config: Path of the config.
        checkpoint: Path or URL of the weights, or ``'random'``.
        options: Changes of the config, ``KEY=VALUE``.
    """

    name: str
    config: str
    checkpoint: str
    options: tuple[str, ...]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--model',
        nargs='+',
        action='append',
        default=[],
        metavar='WORD',
        help='NAME CONFIG CHECKPOINT [KEY=VALUE ...]; repeat it for every model',
    )
    parser.add_argument(
        '--images',
        nargs='+',
        type=Path,
        default=[DEMO_IMAGES],
        metavar='PATH',
        help='image files and folders; the pictures of the segmentation demo by default',
    )
    parser.add_argument(
        '--max-images',
        type=int,
        default=50,
        help='take so many, spread evenly over the files in alphabetical order, and so over the folders of classes; '
        '%(default)s, as the paper',
    )
    parser.add_argument('--size', type=int, default=1024, help='images are resized to this side; %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of random weights; %(default)s')
    parser.add_argument(
        '--layer-scale',
        default='1',
        metavar='VALUE',
        help="layer scales of random networks; %(default)s. 'init' leaves them as the config has them",
    )
    parser.add_argument('--device', help="'cpu' or 'cuda:0', for example; a GPU by default, where there is one")
    parser.add_argument('--out', type=Path, default=Path('erf.png'), help='the figure; %(default)s')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there, too')
    parser.add_argument('--save-scores', type=Path, metavar='FILE.npz', help='keep the maps, to draw them with others')
    parser.add_argument(
        '--load-scores', nargs='+', type=Path, default=[], metavar='FILE.npz', help='draw these maps first'
    )
    return parser.parse_args()


def read_requests(models: Sequence[Sequence[str]]) -> list[Request]:
    """The models of the command line, all checked before the first is measured.

    Raises:
        FileNotFoundError: If a config or a checkpoint does not exist.
        ValueError: If words are missing, or two models have one name.
    """
    requests = []
    for words in models:
        if len(words) < 3:
            raise ValueError(
                f"--model {' '.join(words)}: give a name, a config and a checkpoint or the word 'random', such as "
                '--model PeLK-T configs/cls/pelk_t_in1k.py random'
            )
        name, config, checkpoint, *options = words
        for option in options:
            if '=' not in option:
                raise ValueError(f"--model {name}: '{option}' is no KEY=VALUE; each model needs a --model of its own")
        if checkpoint != RANDOM:
            check_checkpoint(checkpoint)
        if not Path(config).is_file():
            raise FileNotFoundError(f"--model {name}: there is no config '{config}'")
        requests.append(Request(name, config, checkpoint, tuple(options)))
    return requests


def check_names(names: Sequence[str]) -> None:
    """Refuse two models of one name."""
    if twice := {name for name in names if list(names).count(name) > 1}:
        raise ValueError(f'two models are called {", ".join(sorted(twice))}; give each a name of its own')


def read_images(paths: Sequence[Path], count: int, size: int) -> dict[str, Image]:
    """Images by name: BGR, ``(size, size, 3)``, their aspect ratio given up as RepLKNet's script does.

    They are spread evenly over the sorted files, so that a data set in folders of classes is not seen by one class.

    Raises:
        FileNotFoundError: If a path does not exist or there is no image.
        ValueError: If a file is not an image, or a number is not positive.
    """
    if count < 1 or size < 1:
        raise ValueError(f'--max-images and --size are at least 1, got {count} and {size}')
    files = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"there is no image or folder '{path}'; name some with --images, or draw the demo's pictures with "
                'python tools/demo/make_segmentation_data.py --out data/demo_segmentation'
            )
        found = [path] if path.is_file() else sorted(path.rglob('*'))
        files += [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise FileNotFoundError(f'no image in {", ".join(map(str, paths))}; known: {", ".join(sorted(IMAGE_SUFFIXES))}')
    images = {}
    count = min(count, len(files))
    for file in (files[index * len(files) // count] for index in range(count)):
        image = mmcv.imread(str(file))
        if image is None:
            raise ValueError(f"'{file}' cannot be read as an image; leave it out of --images")
        images[str(file)] = mmcv.imresize(image, (size, size), interpolation='bicubic')
    return images


def build_model(request: Request, seed: int) -> Any:
    """The model with the weights that are asked for, in eval mode; those of necks and heads are left as they come.

    Raises:
        ValueError: If the checkpoint is not of this model.
    """
    options = argparse.ArgumentParser()
    options.add_argument('--cfg-options', nargs='+', action=DictAction)
    options.set_defaults(config=request.config, launcher='none', work_dir=None)
    cfg = load_config(options.parse_args(['--cfg-options', *request.options] if request.options else []))
    _drop_pretrained(cfg.model)  # the weights are the checkpoint's, or random
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # where mmpretrain's own configs have it
    set_random_seed(seed)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))  # the same in eval mode, on a CPU, too
        model.eval()
        if request.checkpoint == RANDOM:
            model.init_weights()
            return model
    state = CheckpointLoader.load_checkpoint(request.checkpoint, map_location='cpu')
    keys = state.get('state_dict', state)
    prefixes = [prefix for prefix in ('backbone.', 'module.backbone.') if any(key.startswith(prefix) for key in keys)]
    # Refuses what does not fit; what it finds is complete, but for norms after the map and for sparsity masks.
    found = check_pretrained(model.backbone, request.checkpoint, prefixes[0] if prefixes else '')
    model.backbone.load_state_dict(found, strict=False)
    return model


def _drop_pretrained(node: Any) -> None:
    if isinstance(node, dict):
        if isinstance(node.get('init_cfg'), dict) and node['init_cfg'].get('type') == 'Pretrained':
            del node['init_cfg']
        if node.get('pretrained'):
            node['pretrained'] = None
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _drop_pretrained(child)


def set_layer_scales(model: nn.Module, value: float) -> int:
    """Fill the layer scales, ``gamma`` in ConvNeXt and PeLK.

    Returns:
        How many there are.
    """
    scales = [parameter for name, parameter in model.named_parameters() if name.endswith('.gamma')]
    for scale in scales:
        nn.init.constant_(scale, value)
    return len(scales)


@torch.no_grad()
def estimate_norms(model: Any, images: Sequence[Image]) -> int:
    """Give the backbone's batch norms the mean statistics of the images, which they have while training starts.

    Returns:
        How many there are.
    """
    # _BatchNorm is the one base of all batch norms; torch.optim.swa_utils.update_bn uses it, too. That function would
    # also switch drop paths on.
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the images
        norm.train()
    if norms:
        for image in preprocessed(model, images):
            model.backbone(image)
    model.eval()
    return len(norms)


def preprocessed(model: Any, images: Sequence[Image]) -> Iterator[Tensor]:
    """Images as the model expects them: ``(1, 3, H, W)``, normalised by its ``data_preprocessor``."""
    for image in images:
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        # An empty sample: preprocessors that pad write into it.
        inputs = model.data_preprocessor(dict(inputs=[pixels], data_samples=[BaseDataElement()]))['inputs']
        yield torch.stack(inputs).float() if isinstance(inputs, list) else inputs


def measure(request: Request, images: dict[str, Image], args: argparse.Namespace, device: str) -> Measured:
    """Build a model and measure its contribution scores."""
    model = build_model(request, args.seed).to(device)
    weights = Path(request.checkpoint).name
    pictures = list(images.values())
    if request.checkpoint == RANDOM:
        weights = 'random weights'
        if args.layer_scale != 'init' and set_layer_scales(model.backbone, float(args.layer_scale)):
            weights += f', layer scale {float(args.layer_scale):g}'
        estimate_norms(model, pictures)
    start = time.perf_counter()
    scores = contribution_scores(model, preprocessed(model, pictures))
    seconds = time.perf_counter() - start
    facts: dict[str, Any] = dict(asdict(request), weights=weights, images=len(images), seconds=round(seconds, 2))
    facts['machine'] = environment_info(device.split(':')[0])  # of loaded maps, not the one that draws them
    facts['config'] = shown(request.config)
    if request.checkpoint != RANDOM and '://' not in request.checkpoint:
        facts['checkpoint'] = shown(request.checkpoint)
    facts['theoretical_size'] = facts['theoretical_interval'] = None
    if isinstance(model.backbone, PeLK):
        layers = receptive_field_layers(model.backbone)
        facts['theoretical_size'] = receptive_field_size(layers)
        facts['theoretical_interval'] = theoretical_receptive_field(layers, args.size)
    return Measured(scores, facts)


def shown(path: str) -> str:
    """A path as it is published: from the project's root, where it lies below that."""
    absolute = Path(path).resolve()
    return absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else path


def save_scores(path: Path, models: Sequence[Measured]) -> None:
    facts = json.dumps([model.facts for model in models])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, scores=np.stack([model.scores for model in models]), facts=np.array(facts))


def load_scores(path: Path) -> list[Measured]:
    """What :func:`save_scores` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there are no scores '{path}'; --save-scores writes them")
    try:
        with np.load(path) as stored:
            facts = json.loads(str(stored['facts']))
            return [Measured(scores, fact) for scores, fact in zip(stored['scores'], facts, strict=True)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{path}' holds no scores of --save-scores: {error}") from error


def ratio_table(described: Sequence[dict[str, Any]], size: int) -> Table:
    table = Table(title=f'Smallest centred square with a share of the contribution: side in pixels of {size}, area')
    for column in ('model', 'weights', 'scores'):
        table.add_column(column)
    for threshold in THRESHOLDS:
        table.add_column(f'{100 * threshold:g} %', justify='right')
    for model in described:
        for label, key in (('raw', 'area_ratios'), ('log10(s + 1)', 'area_ratios_log')):
            cells = [f'{ratio["side"]}, {100 * ratio["area_ratio"]:.1f} %' for ratio in model[key]]
            heads = (model['name'], model['weights']) if label == 'raw' else ('', '')
            table.add_row(*heads, label, *cells, end_section=label != 'raw')
    return table


def run(args: argparse.Namespace) -> None:
    models = [measured for path in args.load_scores for measured in load_scores(path)]
    requests = read_requests(args.model or ([] if models else DEFAULT_MODELS))
    check_names([model.facts['name'] for model in models] + [request.name for request in requests])
    if args.layer_scale != 'init':
        try:
            float(args.layer_scale)
        except ValueError:
            raise ValueError(f"--layer-scale is a number or 'init', got '{args.layer_scale}'") from None
    console = Console(width=None if sys.stdout.isatty() else 140)
    device = args.device or get_device()
    images = read_images(args.images, args.max_images, args.size) if requests else {}
    for request in requests:
        models.append(measure(request, images, args, device))
        console.print(f'{request.name}: {len(images)} images in {models[-1].facts["seconds"]:.1f} s')
    if len({model.scores.shape for model in models}) > 1:
        shapes = ', '.join(f'{model.facts["name"]} {model.scores.shape}' for model in models)
        raise ValueError(f'the maps differ in size: {shapes}; measure all at one --size, a multiple of 32')
    described = [describe(model) for model in models]
    console.print(ratio_table(described, models[0].scores.shape[0]))
    draw(models, described, args.out)
    console.print(str(args.out))
    if args.json:
        report = {
            # Of what was measured now; else of the first loaded map. Each model has its own beside it.
            'machine': (models[-1] if requests else models[0]).facts['machine'],
            'size': models[0].scores.shape[0],
            'images': [shown(str(path)) for path in args.images],
            'seed': args.seed,
            'layer_scale': args.layer_scale if args.layer_scale == 'init' else float(args.layer_scale),
            'models': described,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + '\n')
    if args.save_scores:
        save_scores(args.save_scores, models)


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')  # a line per initialised parameter otherwise
    with exit_on_user_error():
        run(args)


if __name__ == '__main__':
    main()
