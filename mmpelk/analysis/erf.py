"""Effective receptive fields of models of mmpretrain, mmseg and mmdet on photographs, and their figure: Fig. 4.

Loads a model, makes a random network compute as it would at the first training step, and measures its
:func:`~mmpelk.analysis.receptive_field.contribution_scores` on images as the model expects them.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.patheffects as effects
import mmcv
import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmpelk.fault_tolerance.pictures import refuse_dim
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.models import PeLK
from mmpelk.models.weights.checkpoint import check_pretrained, state_dict_of

from . import receptive_field as field
from .drawings import IMAGE_SUFFIXES
from .inference import build_model, image_channels
from .machine import environment_info
from .receptive_field import THRESHOLDS, Scores
from .table import Table

#: In place of a checkpoint: random weights.
RANDOM = 'random'

Image = npt.NDArray[np.uint8]

_PANEL_PIXELS = 128  # larger maps are averaged over blocks for the figure
_COLUMNS = {1: 1, 2: 2, 4: 2}  # by number of panels; else 3
_DARKEST = 1e-2  # of the colour scale, in multiples of an even contribution
_LINES: dict[float, Any] = dict(zip(THRESHOLDS, ('-', '--', ':', '-.'), strict=True))


@dataclass(frozen=True)
class Measured:
    """Contribution scores of a model, and facts about their measurement."""

    scores: Scores  # ``(H, W)``, summed over the images
    facts: dict[str, Any]  # of the model, for the JSON


def read_images(paths: Sequence[Path], count: int, size: int) -> dict[str, Image]:
    """Images by name: BGR, ``(size, size, 3)``, stretched to a square as by RepLKNet's script.

    They are spread evenly over the sorted files, so that a data set in folders of classes is not seen by one class.

    Raises:
        FileNotFoundError: If a path does not exist or there is no image.
        ValueError: If a file is not an image, or a number is not positive.
    """
    if count < 1 or size < 1:
        raise ValueError(f'the number of images and their size are at least 1, got {count} and {size}')
    files = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"there is no image or folder '{path}'; give another, or draw the demo's pictures with "
                'python tools/demo/make_segmentation_data.py --out data/demo_segmentation'
            )
        found = [path] if path.is_file() else sorted(path.rglob('*'))
        files += [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise FileNotFoundError(f'no image in {", ".join(map(str, paths))}; known: {", ".join(sorted(IMAGE_SUFFIXES))}')
    images = {}
    count = min(count, len(files))
    for file in (files[index * len(files) // count] for index in range(count)):
        image = mmcv.imread(str(file)) if file.stat().st_size else None  # of an empty file OpenCV raises its own error
        if image is None:
            raise ValueError(f"'{file}' cannot be read as an image; leave it out")
        refuse_dim(image, file)
        images[str(file)] = mmcv.imresize(image, (size, size), interpolation='bicubic')
    return images


def load_model(cfg: Config, checkpoint: str, seed: int = 0) -> Any:
    """The model of a config in eval mode; a checkpoint fills its backbone; necks and heads keep their random weights.

    Args:
        cfg: Config of a model that has a ``backbone``; it is not changed.
        checkpoint: Path or URL of the weights, or :data:`RANDOM`. Weights that the config names are not loaded.
        seed: Seed of random weights.

    Raises:
        ValueError: If the checkpoint is not of this model.
    """
    cfg = copy.deepcopy(cfg)
    _drop_pretrained(cfg.model)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # where mmpretrain's own configs have it
    # Plain batch norms are the same in eval mode, on a CPU, too.
    model: Any = revert_sync_batchnorm(build_model(cfg, seed if checkpoint == RANDOM else None)).eval()
    if checkpoint == RANDOM:
        return model
    keys = state_dict_of(read_checkpoint(checkpoint), checkpoint)
    prefix = 'backbone.' if any(key.startswith('backbone.') for key in keys) else ''
    # Refuses what does not fit; what it finds is complete, but for norms after the map and for sparsity masks.
    found = check_pretrained(model.backbone, checkpoint, prefix)
    model.backbone.load_state_dict(found, strict=False)
    return model


def _drop_pretrained(node: Any) -> None:
    if isinstance(node, dict):
        given = node.get('init_cfg')
        given = given if isinstance(given, list | tuple) else [given]
        kept = [one for one in given if not (isinstance(one, dict) and 'checkpoint' in one)]
        if not kept:
            del node['init_cfg']
        elif len(kept) < len(given):
            node['init_cfg'] = kept
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
    # Not torch.optim.swa_utils.update_bn, which would also switch drop paths on.
    norms = [module for module in model.backbone.modules() if getattr(module, 'running_mean', None) is not None]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the images
            norm.train()
        if norms:
            for image in preprocessed(model, images):
                model.backbone(image)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
    return len(norms)


def preprocessed(model: Any, images: Sequence[Image]) -> Iterator[Tensor]:
    """Images as the model expects them: ``(1, 3, H, W)``, normalised by its ``data_preprocessor``."""
    for image in images:
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if (channels := image_channels(model)) != len(pixels):
            raise ValueError(
                f'the network takes {channels} channels and these pictures have {len(pixels)}: its receptive field is '
                'measured with contribution_scores on images of your own'
            )
        # An empty sample: preprocessors that pad write into it.
        inputs = model.data_preprocessor(dict(inputs=[pixels], data_samples=[BaseDataElement()]))['inputs']
        yield torch.stack(inputs).float() if isinstance(inputs, list) else inputs


def measure(model: Any, images: Sequence[Image], facts: Mapping[str, Any]) -> Measured:
    """Contribution scores of a model on images.

    Args:
        model: Model from :func:`load_model`, on the device to measure on.
        images: Images from :func:`read_images`.
        facts: What is known of the model, at least its ``name`` and ``weights``.

    Returns:
        The scores, and the facts with the machine, the seconds, area ratios, raw and of the logarithm, and the size of
        the field that follows from the kernels, ``None`` for a backbone that is no PeLK.
    """
    start = time.perf_counter()
    scores = field.contribution_scores(model, preprocessed(model, images))
    seconds = time.perf_counter() - start
    found = dict(
        images=len(images),
        seconds=round(seconds, 2),
        machine=environment_info(next(model.parameters()).device.type),
        theoretical_size=field.theoretical_size(model.backbone) if isinstance(model.backbone, PeLK) else None,
        total=float(scores.sum()),
        largest=float(scores.max()),
        area_ratios=list(map(asdict, field.area_ratios(scores))),
        area_ratios_log=list(map(asdict, field.area_ratios(scores / len(images), logarithm=True))),
    )
    return Measured(scores, {**facts, **found})


def ratio_table(
    models: Sequence[Mapping[str, Any]],
    computed: Callable[[str], str] = str,
    measured: Callable[[str], str] = str,
    logarithms: bool = True,
) -> Table:
    """Sides and areas of the centred squares that hold a share of the contribution.

    Args:
        models: Their facts, from :func:`measure`.
        computed: Marks a figure that follows from the kernels.
        measured: Marks one that was measured.
        logarithms: Add a row for the logarithms of the scores, which depend on the scale of the features.
    """
    forms = {'area_ratios': 'as they are'} | ({'area_ratios_log': 'log10(s + 1)'} if logarithms else {})
    shares = [f'{100 * ratio["threshold"]:.0f} %' for ratio in models[0]['area_ratios']]
    table = Table(['network', 'theoretical field [px]', *(['scores'] if logarithms else []), *shares], labels=1)
    for model in models:
        size = model['theoretical_size']
        names = [model['name'], computed(str(size)) if size else '-']
        for key, scores in forms.items():
            squares = [f'{one["side"]} px, {100 * one["area_ratio"]:.1f} %' for one in model[key]]
            table.add(*names, *([scores] if logarithms else []), *map(measured, squares))
            names = ['', '']
    return table


def _pooled(scores: Scores) -> Scores:
    """Scores in multiples of their mean, averaged over blocks that leave at most about 128 x 128 of them."""
    height, width = scores.shape
    block = math.ceil(max(height, width) / _PANEL_PIXELS)
    rows, columns = height // block, width // block
    cut = scores[: rows * block, : columns * block] / scores.mean()
    return cut.reshape(rows, block, columns, block).mean((1, 3))


def _draw_panel(axes: Axes, model: Measured, norm: LogNorm) -> Any:
    height, width = model.scores.shape
    values = np.maximum(_pooled(model.scores), _DARKEST)  # a logarithm has no colour for zero
    picture = axes.imshow(values, cmap='magma', norm=norm, extent=(0, width, height, 0), interpolation='nearest')
    outline = [effects.withStroke(linewidth=2.5, foreground='black')]
    for ratio in model.facts['area_ratios']:
        radius = (ratio['side'] - 1) // 2
        left, top = max(0, width // 2 - radius), max(0, height // 2 - radius)
        square = Rectangle((left, top), min(ratio['side'], width), min(ratio['side'], height), fill=False)
        square.set(edgecolor='white', linestyle=_LINES[ratio['threshold']], linewidth=1.1, path_effects=outline)
        axes.add_patch(square)
    areas = ' / '.join(f'{100 * ratio["area_ratio"]:.1f}' for ratio in model.facts['area_ratios'])
    axes.set_title(f'{model.facts["name"]}\n{model.facts["weights"]}', fontsize=10)
    axes.set_xlabel(f'pixels\nareas {areas} %', fontsize=9)
    axes.set_ylabel('pixels', fontsize=8.5)
    axes.tick_params(labelsize=8)
    return picture


def draw_fields(models: Sequence[Measured]) -> Figure:
    """The maps of models, all of one size, with one scale and one colour bar."""
    columns = _COLUMNS.get(len(models), 3)
    rows = math.ceil(len(models) / columns)
    figure = Figure(figsize=(3.3 * columns + 0.9, 3.75 * rows + 0.7), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    norm = LogNorm(_DARKEST, max(_pooled(model.scores).max() for model in models))
    for place, model in zip(axes.flat, models, strict=False):
        colours = _draw_panel(place, model, norm)
    for place in axes.flat[len(models) :]:
        place.set_axis_off()
    bar = figure.colorbar(colours, ax=axes, shrink=0.8, extend='min')
    bar.set_label('contribution of a pixel, in multiples of the mean over the image', fontsize=9)
    lines = [Line2D([], [], color='black', linestyle=style) for style in _LINES.values()]
    labels = [f'{100 * threshold:g} %' for threshold in _LINES]
    title = 'smallest centred square that holds this share of the contribution; its area is below the panel'
    figure.legend(
        lines, labels, title=title, loc='outside lower center', ncols=len(lines), fontsize=9, title_fontsize=9
    )
    height, width = models[0].scores.shape
    images = f'images: {models[0].facts["images"]}'
    figure.suptitle(f'Effective receptive field at {width} x {height} pixels, {images}', fontsize=12)
    return figure


def save_with_palette(figure: Figure, path: Path) -> None:
    """Write a figure; a PNG with a palette, which is a third of the size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    if path.suffix == '.png':
        with PIL.Image.open(path) as picture:  # this way of choosing the palette keeps rare colours
            picture.convert('RGB').quantize(256, PIL.Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
