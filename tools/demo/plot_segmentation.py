"""Draw what the demo's segmentation network has learnt, and print its held-out mIoU beside two yardsticks.

Reads pictures and labels of the set, classes and colours of the config, the predictions that ``tools/test.py --out``
stored, and the training log of MMEngine's ``LocalVisBackend``.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmseg.evaluation import IoUMetric
from PIL import Image

Array = npt.NDArray[np.float64]

FAR_PREFIX = 'tent_'  # of the classes that a far cue decides
PICTURES = ['00001', '00002', '00003', '00005']  # of the demo's set; each has two different walls
OTHER = (140, 140, 140)  # colour of what belongs to no class and is not scored


@dataclass(frozen=True)
class Scores:
    """Held-out scores as fractions, over the classes that occur, and two yardsticks that follow from the labels.

    Attributes:
        classes: Names.
        pixels: Pixels of each class, ``(N,)``.
        iou: Intersection over union of each class, ``(N,)``; NaN where a class is neither there nor predicted.
    """

    classes: list[str]
    pixels: Array
    iou: Array

    @property
    def far(self) -> list[int]:
        """Indices of the classes that a far cue decides."""
        return [index for index, name in enumerate(self.classes) if name.startswith(FAR_PREFIX)]

    @property
    def miou(self) -> float:
        """mIoU, as MMSegmentation's ``IoUMetric`` has it."""
        return float(np.nanmean(self.iou))

    @property
    def far_miou(self) -> float:
        """mIoU of the classes that a far cue decides."""
        return float(np.nanmean(self.iou[self.far]))

    @property
    def majority(self) -> float:
        """mIoU of predicting the most frequent class everywhere."""
        return float(self.pixels.max() / self.pixels.sum() / (self.pixels > 0).sum())

    @property
    def short_sighted(self) -> float:
        """mIoU of a network that is right everywhere, but has to guess among the classes that a far cue decides.

        Guessing each of ``n`` equally frequent classes equally often is the best that it can do for the mean of their
        IoU.
        """
        iou = np.where(self.pixels > 0, 1.0, np.nan)
        hits = self.pixels[self.far] / len(self.far)
        iou[self.far] = hits / (self.pixels[self.far] + self.pixels[self.far].sum() / len(self.far) - hits)
        return float(np.nanmean(iou))

    def line(self) -> str:
        """The line that the demo ends with."""
        return (
            f'held-out mIoU {self.miou:.1%} (majority class alone {self.majority:.1%}, all but the far cue '
            f'{self.short_sighted:.1%}); the classes decided by the far cue {self.far_miou:.1%}'
        )


def score(data: Path, predictions: Path, classes: list[str]) -> Scores:
    """Compare all stored predictions with the validation labels, where 0 is "other" and not scored."""
    areas = np.zeros((4, len(classes)))  # of intersection, union, prediction, label
    for path in sorted((data / 'annotations' / 'validation').glob('*.png')):
        # As reduce_zero_label does: classes from 0 on, and 255 for what is ignored.
        maps = [torch.from_numpy(_read(file) - np.uint8(1)).long() for file in (predictions / path.name, path)]
        areas += np.stack(IoUMetric.intersect_and_union(*maps, len(classes), 255))
    with np.errstate(invalid='ignore'):
        return Scores(classes, areas[3], areas[0] / areas[1])


def read_curves(work_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """``loss`` and ``mIoU`` (as a fraction) over iterations, from the newest training under ``work_dir``.

    Raises:
        ValueError: If no training has been logged there.
    """
    # Folders are named by time. Testing has a folder of its own, with a log that holds no loss.
    for path in sorted(work_dir.glob('*/vis_data/scalars.json'), reverse=True):
        records = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        loss = [(record['step'], record['loss']) for record in records if 'loss' in record]
        if loss:
            return dict(loss=loss, mIoU=[(r['step'], r['mIoU'] / 100) for r in records if 'mIoU' in r])
    raise ValueError(f'{work_dir} holds no training log; run tools/demo/run_seg.sh')


def _read(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def _draw_pictures(
    figure: SubFigure, data: Path, predictions: Path, names: list[str], palette: dict[str, list[int]]
) -> None:
    """Rows: picture, label, prediction, wrong pixels. Columns: pictures."""
    colours = np.array([OTHER, *palette.values()], dtype=np.uint8)
    axes = figure.subplots(4, len(names), squeeze=False)
    for column, name in enumerate(names):
        labels = _read(data / 'annotations' / 'validation' / f'{name}.png')
        predicted = _read(predictions / f'{name}.png')
        wrong = (predicted != labels) & (labels > 0)
        picture = np.asarray(Image.open(data / 'images' / 'validation' / f'{name}.jpg'))
        for row, image in enumerate((picture, colours[labels], colours[predicted], np.where(wrong, 0, 255))):
            axes[row, column].imshow(image, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
            axes[row, column].set(xticks=[], yticks=[])
        axes[0, column].set_title(f'held-out {name}', fontsize=9)
    for row, title in enumerate(('picture', 'label', 'prediction', 'wrong pixels')):
        axes[row, 0].set_ylabel(title)
    patches = [
        Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor='black', label=name.replace('_', ' '))
        for name, (red, green, blue) in dict(other=OTHER, **palette).items()
    ]
    figure.legend(handles=patches, loc='lower center', ncols=6, fontsize=9, title='other: not scored')
    figure.subplots_adjust(left=0.06, right=0.99, top=0.93, bottom=0.13, wspace=0.04, hspace=0.04)


def _draw_curves(loss: Axes, miou: Axes, curves: dict[str, list[tuple[int, float]]], scores: Scores) -> None:
    loss.plot(*zip(*curves['loss'], strict=True), color='black', linewidth=1)
    loss.set(title='Training loss', xlabel='iteration', ylabel='weighted cross-entropy [nats]', yscale='log')
    loss.grid(alpha=0.3, which='both')
    steps, values = zip(*curves['mIoU'], strict=True)
    miou.plot(steps, np.multiply(values, 100), 'k-o', markersize=4, label='PeLK')
    miou.axhline(100 * scores.short_sighted, color='dimgray', linestyle='--', label='all right but the far cue')
    miou.axhline(100 * scores.majority, color='dimgray', linestyle=':', label='majority class')
    miou.set(title='Held-out mIoU', xlabel='iteration', ylabel='mIoU [%]', ylim=(0, 100))
    miou.legend(fontsize=8, loc='center right')
    miou.grid(alpha=0.3)


def _draw_classes(axes: Axes, scores: Scores) -> None:
    bars = axes.barh([name.replace('_', ' ') for name in scores.classes], 100 * scores.iou, edgecolor='black')
    for bar, name in zip(bars, scores.classes, strict=True):
        bar.set(facecolor='gray' if name.startswith(FAR_PREFIX) else 'white', hatch='//' * name.startswith(FAR_PREFIX))
    axes.bar_label(bars, fmt='%.0f', fontsize=8, padding=2)
    axes.set(title='Held-out IoU (hatched: by the far cue)', xlabel='IoU [%]', xlim=(0, 112))
    axes.invert_yaxis()


def draw(
    data: Path, predictions: Path, work_dir: Path, names: list[str], palette: dict[str, list[int]], scores: Scores
) -> Figure:
    """Pictures and curves."""
    figure = Figure(figsize=(14, 9), dpi=100)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.75, 1))[0]
    figure.suptitle(f'A nano PeLK after the demo: held-out mIoU {scores.miou:.1%}, majority {scores.majority:.1%}')
    _draw_pictures(left, data, predictions, names, palette)
    loss_axes, miou_axes, class_axes = right.subplots(3, 1)
    _draw_curves(loss_axes, miou_axes, read_curves(work_dir), scores)
    _draw_classes(class_axes, scores)
    right.subplots_adjust(left=0.2, right=0.97, top=0.91, bottom=0.07, hspace=0.5)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the training')
    parser.add_argument('--data', type=Path, default=Path('data/demo_segmentation'), help='folder of the set')
    parser.add_argument('--work-dir', type=Path, required=True, help='work folder of the training')
    parser.add_argument('--predictions', type=Path, required=True, help='what tools/test.py --out has written')
    parser.add_argument('--out', type=Path, required=True, help='PNG to write')
    args = parser.parse_args()
    metainfo = Config.fromfile(args.config).metainfo
    palette = dict(zip(metainfo.classes, metainfo.palette, strict=True))
    scores = score(args.data, args.predictions, list(palette))
    draw(args.data, args.predictions, args.work_dir, PICTURES, palette, scores).savefig(args.out)
    print(f'picture: {args.out}')
    print(scores.line())


if __name__ == '__main__':
    main()
