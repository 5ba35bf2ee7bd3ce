"""A drawing of what was understood: samples with their labels in the classes' colours, and a legend."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .dataset import Colour, DataSet, spread
from .meaning import IGNORED
from .segmentation import Pair, read_indices

_SAMPLES = 8
_SIDE = 320  # pixels
_LEGEND = 40  # classes


def draw_preview(data: DataSet, path: Path) -> None:
    """Write eight samples with their labels: painted label maps, boxes, or the name of the class."""
    # Imported here: it takes a second, and nothing else of the command needs it.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    samples = _choose(data)
    shown = list(range(len(data.classes)))[:_LEGEND]
    rows = -(-len(samples) // 4)
    figure = Figure(figsize=(16, 4 * rows + 0.25 * -(-len(shown) // 6) + 1), dpi=80, layout='constrained')
    for position, sample in enumerate(samples):
        axes = figure.add_subplot(rows, 4, position + 1)
        axes.axis('off')
        _DRAW[data.task](axes, data, sample)
    handles = [
        Patch(color=_share(data.palette[index]), label=f'{index} {_plain(data.classes[index])}') for index in shown
    ]
    if len(data.classes) > len(shown):
        handles.append(Patch(color='white', label=f'{len(data.classes) - len(shown)} more'))
    if data.task == 'seg':
        handles.append(Patch(facecolor='black', label='not trained on'))
    legend = figure.legend(handles=handles, loc='outside lower center', ncols=6, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is no formula
    figure.savefig(path)


def _share(colour: Colour) -> tuple[float, float, float]:
    """A colour as matplotlib takes it."""
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def _plain(text: str) -> str:
    """Printable and short."""
    shown = ''.join(letter if letter.isprintable() else ' ' for letter in text)
    return f'{shown[:37]}...' if len(shown) > 40 else shown


def _choose(data: DataSet) -> list[Any]:
    """Samples from the whole set."""
    if data.task == 'seg':
        return spread(data.details['pairs'], _SAMPLES)
    if data.task == 'det':
        images = [image for content in data.details['contents'].values() for image in content['images']]
        return spread(images, _SAMPLES)
    return spread([name for names in data.splits.values() for name in names], _SAMPLES)


def _picture(data: DataSet, name: str) -> Image.Image:
    image = Image.open(data.root / name)
    return (image if data.ignore_orientation else ImageOps.exif_transpose(image)).convert('RGB')


def _title(axes: Any, text: str) -> None:
    axes.set_title(_plain(text), fontsize=9, parse_math=False)


def _draw_labels(axes: Any, data: DataSet, pair: Pair) -> None:
    image, indices = _picture(data, pair.image), Image.fromarray(read_indices(data, pair))
    scale = min(1.0, _SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    colours = np.zeros((IGNORED + 1, 3))
    colours[: len(data.palette)] = data.palette
    painted = colours[np.asarray(indices.resize(size, Image.Resampling.NEAREST))]
    both = np.concatenate(
        [np.asarray(image.resize(size), float), 0.35 * np.asarray(image.resize(size)) + 0.65 * painted]
    )
    axes.imshow(both.astype(np.uint8))
    _title(axes, pair.image)


def _draw_boxes(axes: Any, data: DataSet, image: dict[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(_picture(data, image['file_name']))
    for content in data.details['contents'].values():
        index = {category['id']: number for number, category in enumerate(content['categories'])}
        for entry in content['annotations']:
            if entry['image_id'] == image['id']:
                x, y, w, h = entry['bbox']
                colour = _share(data.palette[index[entry['category_id']]])
                axes.add_patch(Rectangle((x, y), w, h, fill=False, color=colour, linewidth=2))
    _title(axes, image['file_name'])


def _draw_class(axes: Any, data: DataSet, name: str) -> None:
    axes.imshow(_picture(data, name))
    _title(axes, f'{data.classes[data.details["labels"][name]]}: {Path(name).name}')


_DRAW: dict[str, Callable[[Any, DataSet, Any], None]] = {'seg': _draw_labels, 'det': _draw_boxes, 'cls': _draw_class}
