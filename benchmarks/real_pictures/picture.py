"""A picture of where the trained kernels lie: how much of them is how far from the centre."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from .study import finished, read_results

FIGURE = Path(__file__).resolve().parents[2] / 'docs' / 'figures' / 'kernel_rings.png'
KERNELS = {'peripheral-31': 'C0', 'dense-31': 'C1', 'stripes-31': 'C2'}


def share_beyond(rings: list[float]) -> list[float]:
    """Percent of the sum of a kernel's absolute values that lie farther from the centre than each distance.

    Args:
        rings: Mean absolute value at each distance; one position has distance 0, and ``8 r`` have distance ``r``.
    """
    sums = [mean * max(1, 8 * distance) for distance, mean in enumerate(rings)]
    return [100 * sum(sums[distance + 1 :]) / sum(sums) for distance in range(len(sums))]


def draw(results: Path) -> Figure | None:
    """Kernels of 31 after training, the mean over layers and seeds; ``None`` while no such network is finished."""
    figure = Figure(figsize=(7, 3.2), layout='constrained')
    axes = figure.subplots()
    found = read_results(results, 'main')
    for name, colour in KERNELS.items():
        runs = finished(found.get(name, {}))
        shares = [share_beyond(rings) for run in runs.values() for rings in run['rings'].values()]
        if not shares:
            continue
        means = [statistics.mean(share) for share in zip(*shares, strict=True)]
        axes.plot(range(len(means)), means, 'o-', markersize=3, color=colour, label=f'{name}, {len(runs)} seeds')
    if not axes.lines:
        return None
    axes.axvspan(0, 2, color='0.92', zorder=0, label='the pretrained kernels reach here')
    axes.set(xlabel='distance to the centre, positions', ylabel='part of the kernel farther away, %', ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
