"""A picture of a running training: curves of loss and metrics, and predictions on validation images."""

import functools
import io
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpelk.registry import HOOKS

_POINTS = 400  # of a curve; more are averaged
_CURVES = 6
_SIDE = 480  # pixels of a painted image's longer side
_DETAIL = re.compile(r'_(50|75|s|m|l)$')  # COCO's metrics beside the two that matter


def _harmless(method: Callable) -> Callable:
    """Run on rank 0 only; an error ends the pictures, not the training."""

    @functools.wraps(method)
    def guarded(self: 'ProgressPictureHook', runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.broken or not is_main_process():
            return
        try:
            method(self, runner, *args, **kwargs)
        except Exception as error:
            self.broken = True
            runner.logger.warning(
                f'no more pictures of the progress: {type(error).__name__}: {error}. The training goes on'
            )

    return guarded


@HOOKS.register_module()
class ProgressPictureHook(Hook):
    """Write ``progress.png`` to the work folder after every validation, every few minutes, and at the end.

    It shows the curves and a few validation images, with labels where the toolbox paints them, and predictions.
    """

    priority = 'LOW'
    FILE = 'progress.png'
    _METRICS = 'progress_metrics'
    IMAGES = 4
    SECONDS = 300.0  # between two drawings of the curves, unless there is a validation

    def __init__(self) -> None:
        self.broken = False
        self._painted: dict[str, np.ndarray] = {}
        self._chosen: set[int] = set()
        self._drawn, self._shown = time.monotonic(), -1

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Draw the curves again, if the last drawing is old."""
        if time.monotonic() - self._drawn > self.SECONDS:
            self._draw(runner, runner.iter + 1)

    @_harmless
    def before_val_epoch(self, runner: Runner) -> None:
        """Choose batches from the whole set, the same each time."""
        batches = len(runner.val_dataloader)
        count = min(self.IMAGES, batches)
        self._chosen = {(2 * index + 1) * batches // (2 * count) for index in range(count)}
        self._painted.clear()

    @_harmless
    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Let the toolbox paint the first image of a chosen batch."""
        if batch_idx in self._chosen and outputs:
            path = outputs[0].img_path
            self._painted[path] = _paint(runner.visualizer, _picture(path, data_batch, outputs[0]), outputs[0])

    @_harmless
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the metrics, and draw."""
        numbers = {
            key: float(value)
            for key, value in (metrics or {}).items()
            if isinstance(value, int | float | np.number) and math.isfinite(value) and not _DETAIL.search(key)
        }
        # The message hub goes into checkpoints: a resumed training draws the whole curve.
        past = runner.message_hub.runtime_info.get(self._METRICS, [])
        runner.message_hub.update_info(self._METRICS, [*past, [runner.iter, numbers]])
        self._draw(runner, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Draw the last iteration."""
        if self._shown != runner.iter:
            self._draw(runner, runner.iter)

    @_harmless
    def _draw(self, runner: Runner, iteration: int) -> None:
        self._drawn, self._shown = time.monotonic(), iteration
        losses = {
            name.removeprefix('train/'): np.asarray(buffer.data[0], float)
            for name, buffer in runner.message_hub.log_scalars.items()
            if name.startswith('train/') and 'loss' in name
        }
        metrics = runner.message_hub.runtime_info.get(self._METRICS, [])
        content = _figure(runner.experiment_name, iteration, losses, metrics, self._painted)
        path = Path(runner.work_dir) / self.FILE
        aside = path.with_name(f'.{self.FILE}')
        aside.write_bytes(content)
        os.replace(aside, path)  # a viewer never sees half a picture


def _picture(path: str, data_batch: Any, sample: Any) -> np.ndarray:
    """What a sample's file shows, ``(H, W, 3)`` of uint8, RGB.

    Files with more channels, or of sensors, are no pictures; of those the first three channels that the network gets
    are shown, from their darkest to their brightest value.
    """
    try:
        if (image := mmcv.imread(path, channel_order='rgb')) is not None:
            return image
    except Exception:  # decoders raise anything
        if not isinstance(data_batch, Mapping):
            raise
    values = data_batch['inputs'][0].float()[:3].permute(1, 2, 0).numpy()
    values = values[..., np.arange(3) % values.shape[2]]  # grey, if there are fewer
    low, high = values.min((0, 1)), values.max((0, 1))
    image = np.rint((values - low) / np.maximum(high - low, 1e-6) * 255).astype(np.uint8)
    return mmcv.imresize(image, sample.ori_shape[1::-1])  # the size of the labels


def _paint(visualizer: Any, image: np.ndarray, sample: Any) -> np.ndarray:
    """Image, label and prediction as the toolbox shows them, ``(H, W, 3)`` RGB."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, 'painted.png')
        if hasattr(visualizer, 'visualize_cls'):  # mmpretrain's; small images are enlarged, so that text fits
            larger = max(1.0, 224 / min(image.shape[:2]))
            visualizer.visualize_cls(image, sample, rescale_factor=larger, show=False, out_file=file)
        else:
            visualizer.add_datasample('progress', image, data_sample=sample, show=False, out_file=file)
        painted = mmcv.imread(file, channel_order='rgb')
    scale = min(1.0, _SIDE / max(painted.shape[0], painted.shape[1] / 2))
    return mmcv.imrescale(painted, scale) if scale < 1 else painted


def _figure(
    title: str,
    iteration: int,
    losses: dict[str, np.ndarray],
    metrics: list[list[Any]],
    painted: dict[str, np.ndarray],
) -> bytes:
    """The picture as a PNG."""
    # Imported when the first picture is due: a training that never draws needs no matplotlib.
    from matplotlib.figure import Figure

    rows = math.ceil(len(painted) / 2)
    figure = Figure(figsize=(12, 4 + 3.2 * rows), dpi=100, layout='constrained')
    figure.suptitle(f'{title}, iteration {iteration}')
    grid = figure.add_gridspec(1 + rows, 2)
    axes = figure.add_subplot(grid[0, 0])
    for name, values in sorted(losses.items(), key=lambda item: item[0] != 'loss')[:_CURVES]:
        total = name == 'loss'
        steps, means = _averages(values, iteration)
        axes.plot(steps, means, label=name, linewidth=1.8 if total else 0.8, color='black' if total else None)
    axes.set(title='Training loss', xlabel='iteration', yscale='log')
    axes.grid(alpha=0.3, which='both')
    if losses:
        axes.legend(fontsize=7)
    axes = figure.add_subplot(grid[0, 1])
    for name in list(dict.fromkeys(name for _, values in metrics for name in values))[:_CURVES]:
        points = [(step, values[name]) for step, values in metrics if name in values]
        axes.plot(*zip(*points, strict=True), marker='o', markersize=3, label=f'{name}: {points[-1][1]:.4g}')
    axes.set(title='Validation', xlabel='iteration')
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    for index, (path, image) in enumerate(painted.items()):
        axes = figure.add_subplot(grid[1 + index // 2, index % 2])
        axes.imshow(image)
        axes.set_title(Path(path).name, fontsize=8)
        axes.axis('off')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()


def _averages(values: np.ndarray, iteration: int) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of a curve that ends at ``iteration``, averaged to at most ``_POINTS`` points."""
    size = math.ceil(len(values) / _POINTS)
    steps = np.arange(iteration - len(values) + 1, iteration + 1)
    starts = np.arange(0, len(values), size)
    counts = np.diff(np.append(starts, len(values)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts
