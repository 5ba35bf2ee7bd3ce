"""Draw a picture of a detection run: box and mask AP over the epochs, and drawings of tools/demo_image.py.

python tools/demo/plot_detection.py work_dirs/demo_detection
"""

import argparse
import json
from pathlib import Path

import matplotlib.image
from matplotlib.figure import Figure

CURVES = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP'}
COLUMNS, DRAWINGS = 4, 12


def read_curves(work_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """AP in percent over the epochs, from the newest run's scalars.

    Args:
        work_dir: Folder of a training.

    Returns:
        Name of the metric to ``[(epoch, AP), ...]``.

    Raises:
        FileNotFoundError: If the folder holds no training with a validation.
    """
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    # A validation writes its epoch as "step"; training writes "epoch" besides.
    for log in reversed(logs):
        lines = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]
        validations = [line for line in lines if set(CURVES) <= set(line)]
        if validations:
            return {name: [(line['step'], 100 * line[name]) for line in validations] for name in CURVES}
    raise FileNotFoundError(f"no validation in the logs of '{work_dir}'; train it with tools/train.py first")


def plot(curves: dict[str, list[tuple[int, float]]], drawings: list[Path], out: Path) -> None:
    """Write the picture: what :func:`read_curves` returns, with drawings beside it."""
    rows = max(2, -(-len(drawings) // COLUMNS))
    figure = Figure(figsize=(4 + 2 * COLUMNS, 2.2 * rows), layout='constrained')
    grid = figure.add_gridspec(rows, 2 + COLUMNS)
    axes = figure.add_subplot(grid[:, :2])
    for name, points in curves.items():
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, marker='o', label=f'{CURVES[name]} {values[-1]:.1f}')
    axes.set(xlabel='epoch', ylabel='COCO AP, %', ylim=(0, 100))
    axes.legend()
    axes.grid(alpha=0.3)
    for index, drawing in enumerate(drawings):
        cell = figure.add_subplot(grid[index // COLUMNS, 2 + index % COLUMNS])
        cell.imshow(matplotlib.image.imread(drawing))
        cell.axis('off')
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='folder of the training; drawings lie in its folder "drawings"')
    args = parser.parse_args()
    out = args.work_dir / 'detection.png'
    curves = read_curves(args.work_dir)
    plot(curves, sorted((args.work_dir / 'drawings').glob('*.*'))[:DRAWINGS], out)
    print(
        ', '.join(f'{CURVES[name]} {points[-1][1]:.1f}' for name, points in curves.items()), 'on held-out images;', out
    )


if __name__ == '__main__':
    main()
