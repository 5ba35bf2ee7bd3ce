"""The figure of effective receptive fields: contribution scores of several models side by side, on one scale."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .erf import Measured
from .receptive_field import THRESHOLDS, Scores

__all__ = ['draw_fields', 'save_with_palette']

_PANEL_PIXELS = 128  # larger maps are averaged over blocks for the figure
_COLUMNS = {1: 1, 2: 2, 4: 2}  # by number of panels; else 3
_DARKEST = 1e-2  # of the colour scale, in multiples of an even contribution
_LINES: dict[float, Any] = dict(zip(THRESHOLDS, ('-', '--', ':', '-.'), strict=True))


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
