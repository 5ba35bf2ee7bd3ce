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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger

from mmpelk.analysis.erf import (
    RANDOM,
    Image,
    Measured,
    describe,
    estimate_norms,
    load_model,
    load_scores,
    measure,
    read_images,
    save_scores,
    set_layer_scales,
)
from mmpelk.analysis.erf_figure import draw_fields, save_with_palette
from mmpelk.analysis.receptive_field import THRESHOLDS
from mmpelk.analysis.table import Table
from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import exit_on_user_error, load_config

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


def layer_scale(word: str) -> float | None:
    """The value of ``--layer-scale``, ``None`` to leave the scales as the config has them."""
    try:
        return None if word == 'init' else float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number or 'init', got '{word}'") from None


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
        type=layer_scale,
        default=1.0,
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


def config_of(request: Request) -> Config:
    """The config of a model, changed as its options say."""
    options = argparse.ArgumentParser()
    options.add_argument('--cfg-options', nargs='+', action=DictAction)
    options.set_defaults(config=request.config, launcher='none', work_dir=None)
    return load_config(options.parse_args(['--cfg-options', *request.options] if request.options else []))


def measure_request(request: Request, images: Sequence[Image], args: argparse.Namespace) -> Measured:
    """Load a model, prepare it if its weights are random, and measure it."""
    model = load_model(config_of(request), request.checkpoint, args.seed).to(args.device or get_device())
    facts = dict(asdict(request), config=shown(request.config), weights=Path(request.checkpoint).name)
    if request.checkpoint == RANDOM:
        facts['weights'] = 'random weights'
        if args.layer_scale is not None and set_layer_scales(model.backbone, args.layer_scale):
            facts['weights'] += f', layer scale {args.layer_scale:g}'
        estimate_norms(model, images)
    elif '://' not in request.checkpoint:
        facts['checkpoint'] = shown(request.checkpoint)
    return measure(model, images, facts)


def shown(path: str) -> str:
    """A path as it is published: from the project's root, where it lies below that."""
    absolute = Path(path).resolve()
    return absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else path


def ratio_table(described: Sequence[dict[str, Any]], size: int) -> Table:
    """Area ratios of each model, of the raw scores and of their logarithm."""
    title = f'Smallest centred square with a share of the contribution: side in pixels of {size}, area'
    shares = [f'{100 * threshold:g} %' for threshold in THRESHOLDS]
    table = Table(['model', 'weights', 'scores', *shares], title=title, labels=3)
    for model in described:
        for label, key in (('raw', 'area_ratios'), ('log10(s + 1)', 'area_ratios_log')):
            cells = [f'{ratio["side"]}, {100 * ratio["area_ratio"]:.1f} %' for ratio in model[key]]
            heads = (model['name'], model['weights']) if label == 'raw' else ('', '')
            table.add(*heads, label, *cells)
    return table


def run(args: argparse.Namespace) -> None:
    models = [measured for path in args.load_scores for measured in load_scores(path)]
    requests = read_requests(args.model or ([] if models else DEFAULT_MODELS))
    check_names([model.facts['name'] for model in models] + [request.name for request in requests])
    images = read_images(args.images, args.max_images, args.size) if requests else {}
    for request in requests:
        models.append(measure_request(request, list(images.values()), args))
        print(f'{request.name}: {len(images)} images in {models[-1].facts["seconds"]:.1f} s', flush=True)
    if len({model.scores.shape for model in models}) > 1:
        shapes = ', '.join(f'{model.facts["name"]} {model.scores.shape}' for model in models)
        raise ValueError(f'the maps differ in size: {shapes}; measure all at one --size, a multiple of 32')
    described = [describe(model) for model in models]
    ratio_table(described, models[0].scores.shape[0]).print()
    save_with_palette(draw_fields(models, described), args.out)
    print(args.out)
    if args.json:
        report = {
            # Of what was measured now; else of the first loaded map. Each model has its own beside it.
            'machine': (models[-1] if requests else models[0]).facts['machine'],
            'size': models[0].scores.shape[0],
            'images': [shown(str(path)) for path in args.images],
            'seed': args.seed,
            'layer_scale': 'init' if args.layer_scale is None else args.layer_scale,
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
