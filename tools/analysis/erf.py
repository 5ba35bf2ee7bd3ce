"""Fig. 4: effective receptive fields of models of mmpretrain, mmseg and mmdet, side by side on one scale.

Give each model as a name, a config and a checkpoint, and after them changes of its config:

    python tools/analysis/erf.py --images photos/ \\
        --model PeLK-T configs/cls/pelk_t_in1k.py pelk_t.pth \\
        --model PeLK-101-T configs/cls/pelk_t_in1k.py random model.backbone.arch=tiny-101

The checkpoint is a file, a URL, or the word "random". A network with random weights is measured as it would compute at
the first training step, with the images' statistics in its batch norms, except that layer scales are set to 1. From
their usual start, 1e-6, the blocks contribute next to nothing, and every network shows the dot that stem and
downsampling see; --layer-scale init shows it.

Without --model: PeLK-T, PeLK-101-T, SLaK-T, RepLK-51-T, ConvNeXt-T, and PeLK-T with large kernels on
all channels instead of 3/8, with random weights.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger

from mmpelk.analysis.erf import (
    RANDOM,
    Image,
    Measured,
    draw_fields,
    estimate_norms,
    load_model,
    measure,
    ratio_table,
    read_images,
    save_with_palette,
    set_layer_scales,
)
from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import exit_on_user_error, parse_settings, read_config

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


def layer_scale(word: str) -> float | None:
    """The value of ``--layer-scale``, ``None`` to leave the scales as the config has them."""
    try:
        return None if word == 'init' else float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number or 'init', got '{word}'") from None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = 'NAME CONFIG CHECKPOINT [KEY=VALUE ...]; repeat it for every model'
    parser.add_argument('--model', nargs='+', action='append', metavar='WORD', help=model)
    images = 'image files and folders; the pictures of the segmentation demo by default'
    parser.add_argument('--images', nargs='+', type=Path, default=[DEMO_IMAGES], metavar='PATH', help=images)
    count = 'take so many, spread evenly over the files in alphabetical order, and so over the folders of classes; '
    parser.add_argument('--max-images', type=int, default=50, help=f'{count}%(default)s, as the paper')
    parser.add_argument('--size', type=int, default=1024, help='images are resized to this side; %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of random weights; %(default)s')
    scale = "layer scales of random networks; %(default)s. 'init' leaves them as the config has them"
    parser.add_argument('--layer-scale', type=layer_scale, default=1.0, metavar='VALUE', help=scale)
    parser.add_argument('--device', help="'cpu' or 'cuda:0', for example; a GPU by default, where there is one")
    parser.add_argument('--out', type=Path, default=Path('erf.png'), help='the figure; %(default)s')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there, too')
    return parser.parse_args()


def read_requests(models: Sequence[Sequence[str]]) -> list[tuple[dict[str, object], Config]]:
    """The models of the command line and their configs, all checked before the first is measured.

    Raises:
        FileNotFoundError: If a config or a checkpoint does not exist.
        ValueError: If words are missing, or two models have one name.
    """
    requests: dict[str, tuple[dict[str, object], Config]] = {}
    for words in models:
        if len(words) < 3:
            raise ValueError(
                f"--model {' '.join(words)}: give a name, a config and a checkpoint or the word 'random', such as "
                '--model PeLK-T configs/cls/pelk_t_in1k.py random'
            )
        name, config, checkpoint, *options = words
        if name in requests:
            raise ValueError(f'two models are called {name}; give each a name of its own')
        if checkpoint != RANDOM:
            check_checkpoint(checkpoint)
        cfg = read_config(config, parse_settings(options))
        requests[name] = dict(name=name, config=shown(config), checkpoint=checkpoint, options=options), cfg
    return list(requests.values())


def measure_model(facts: dict, cfg: Config, images: Sequence[Image], args: argparse.Namespace) -> Measured:
    """Load a model, prepare it if its weights are random, and measure it."""
    checkpoint = facts['checkpoint']
    model = load_model(cfg, checkpoint, args.seed).to(args.device or get_device())
    weights = Path(checkpoint).name
    if checkpoint == RANDOM:
        weights = 'random weights'
        if args.layer_scale is not None and set_layer_scales(model.backbone, args.layer_scale):
            weights += f', layer scale {args.layer_scale:g}'
        estimate_norms(model, images)
    elif '://' not in checkpoint:
        checkpoint = shown(checkpoint)
    return measure(model, images, facts | dict(checkpoint=checkpoint, weights=weights))


def shown(path: str) -> str:
    """A path as it is published: from the project's root, where it lies below that."""
    absolute = Path(path).resolve()
    return absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else path


def run(args: argparse.Namespace) -> None:
    requests = read_requests(args.model or DEFAULT_MODELS)
    images = list(read_images(args.images, args.max_images, args.size).values())
    models = []
    for facts, cfg in requests:
        models.append(measure_model(facts, cfg, images, args))
        print(f'{facts["name"]}: {len(images)} images in {models[-1].facts["seconds"]:.1f} s', flush=True)
    ratio_table([model.facts for model in models]).print()
    save_with_palette(draw_fields(models), args.out)
    print(args.out)
    if args.json:
        report = {
            'machine': models[-1].facts['machine'],
            'size': args.size,
            'images': [shown(str(path)) for path in args.images],
            'seed': args.seed,
            'layer_scale': 'init' if args.layer_scale is None else args.layer_scale,
            'models': [model.facts for model in models],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')  # a line per initialised parameter otherwise
    with exit_on_user_error():
        run(args)


if __name__ == '__main__':
    main()
