"""One training of the study, and what is measured after it."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpelk.analysis.machine import environment_info
from mmpelk.analysis.receptive_field import area_ratios, contribution_scores
from mmpelk.models.peripheral_conv import PeripheralConv2d
from mmpelk.ops.sharing_grid import expand_kernel

from .networks import ScaledConv2d, Segmenter, Stripes, Variant, count
from .pictures import IGNORED, Split, batches, resized


@dataclass(frozen=True)
class Schedule:
    """How every network of a part is trained: AdamW, a linear warm-up, then a cosine to zero.

    Attributes:
        size: Height and width of the pictures.
        batch: Pictures in an iteration.
        iterations: Number of iterations.
        rate: Highest learning rate of the encoder.
        decoder_rate: That of the decoder.
        weight_decay: Of all parameters with more than one dimension.
        warmup: Iterations of the warm-up.
        frozen_statistics: Whether the encoder's batch norms keep their statistics.
    """

    rate: float
    size: tuple[int, int] = (240, 320)
    batch: int = 4
    iterations: int = 400
    decoder_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 20
    frozen_statistics: bool = True

    def factor(self, iteration: int) -> float:
        """Share of the highest rate."""
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (iteration - self.warmup) / (self.iterations - self.warmup)))


def train(
    network: Segmenter, new: Sequence[nn.Parameter], variant: Variant, schedule: Schedule, split: Split, seed: int
) -> dict[str, Any]:
    """Train a network in place; a loss that is not finite ends it.

    Returns:
        ``losses``, of every 20th iteration; ``diverged_at``, an iteration or ``None``; ``cpu_seconds`` of an iteration.
        The last step may leave parameters that are not finite: it counts as the iteration after the last.
    """
    optimizer = torch.optim.AdamW(_groups(network, new, variant, schedule))
    losses: list[float] = []
    start = time.process_time()
    network.train()
    if schedule.frozen_statistics:
        for module in network.encoder.modules():
            module.train(not isinstance(module, nn.BatchNorm2d))
    drawn = batches(split, schedule.size, schedule.batch, schedule.iterations, seed)
    for iteration, (images, labels) in enumerate(drawn):
        for group in optimizer.param_groups:
            waits = group['is_new'] and iteration < variant.late * schedule.iterations
            group['lr'] = 0.0 if waits else group['highest'] * schedule.factor(iteration)
        loss = F.cross_entropy(network(images), labels, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        if not loss.isfinite():
            return dict(losses=losses, diverged_at=iteration, cpu_seconds=None)
        optimizer.step()
        if iteration % 20 == 0:
            losses.append(round(loss.item(), 4))
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        return dict(losses=losses, diverged_at=schedule.iterations, cpu_seconds=None)
    seconds = (time.process_time() - start) / schedule.iterations
    return dict(losses=losses, diverged_at=None, cpu_seconds=round(seconds, 3))


@torch.inference_mode()
def evaluate(network: Segmenter, split: Split, size: tuple[int, int], classes: int) -> dict[str, Any]:
    """IoU in percent on a split, each picture at ``size`` and its label at its own size.

    Returns:
        ``iou`` of each class, ``None`` where it does not occur; ``miou``, the mean over the others; and with the scores
        of the middle half (of each side) alone ``miou_middle``, and ``miou_cropped``, where the network sees no more
        than that middle.
    """
    network.eval()
    matrices = np.zeros((3, classes, classes), dtype=np.int64)
    height, width = split.labels.shape[-2:]
    middle = slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)
    for images, labels in zip(split.images.split(8), split.labels.split(8), strict=True):
        pictures = resized(images, size)
        part = pictures[..., size[0] // 4 : size[0] - size[0] // 4, size[1] // 4 : size[1] - size[1] // 4]
        predicted = _classes(network(pictures), labels)
        inside = labels[:, middle[0], middle[1]]
        matrices[0] += _confusion(predicted, labels, classes)
        matrices[1] += _confusion(predicted[:, middle[0], middle[1]], inside, classes)
        matrices[2] += _confusion(_classes(network(part), inside), inside, classes)
    ious = [_iou(matrix) for matrix in matrices]
    means = [round(float(np.nanmean(iou)), 3) for iou in ious]
    iou = [None if math.isnan(value) else round(value, 2) for value in ious[0].tolist()]
    return dict(miou=means[0], miou_middle=means[1], miou_cropped=means[2], iou=iou)


def learnt_rings(network: nn.Module) -> dict[str, list[float]]:
    """Mean absolute value of the large kernels by ring of positions around the centre, by name of the convolution.

    The mean over the channels and over the positions of ``K x K`` whose larger distance to the centre is the index.
    """
    rings = {}
    for name, module in network.named_modules():
        if isinstance(module, PeripheralConv2d):
            weight = module.scaled_weight() if isinstance(module, ScaledConv2d) else module.weight
            kernel = expand_kernel(weight.detach(), module.sharing_grid)
        elif isinstance(module, Stripes):
            kernel = module.dense_kernel().detach()
        else:
            continue
        radius = kernel.shape[-1] // 2
        distance = torch.arange(-radius, radius + 1).abs()
        ring = torch.maximum(distance[:, None], distance)
        mean = kernel.abs().mean((0, 1))
        rings[name] = [float(f'{mean[ring == index].mean():.3g}') for index in range(radius + 1)]
    return rings


def receptive_sides(network: Segmenter, split: Split, size: tuple[int, int]) -> list[int] | None:
    """Sides, in pixels, of the squares that hold 50 and 99 % of the effective receptive field of the coarsest map.

    Over the middle squares of four pictures that are spread evenly over the split. ``None`` if the middle of the map
    has become negative in all channels, so that no pixel contributes.
    """
    side = min(size)
    left = (size[1] - side) // 2
    step = max(1, len(split) // 4)
    images = resized(split.images[: 4 * step : step], size)[..., left : left + side]
    scores = contribution_scores(network.encoder, ((image - network.mean) / network.std for image in images))
    return [ratio.side for ratio in area_ratios(scores) if ratio.threshold in (0.5, 0.99)] if scores.any() else None


def run(
    network: Segmenter,
    new: Sequence[nn.Parameter],
    variant: Variant,
    schedule: Schedule,
    splits: tuple[Split, Split],
    classes: int,
    seed: int,
) -> dict[str, Any]:
    """Train on the first split, evaluate on the second; everything that a results file holds of it."""
    before = receptive_sides(network, splits[1], schedule.size)
    result = train(network, new, variant, schedule, splits[0], seed)
    if result['diverged_at'] is None:
        after = receptive_sides(network, splits[1], schedule.size)
        result |= evaluate(network, splits[1], schedule.size, classes)
        result |= dict(rings=learnt_rings(network), receptive_sides=[before, after])
    return dict(
        variant=asdict(variant),
        seed=seed,
        schedule=asdict(schedule),
        pictures=[len(split) for split in splits],
        classes=classes,
        parameters=dict(all=count(network), new=sum(parameter.numel() for parameter in new)),
        **result,
        environment=environment_info('cpu'),
    )


def _groups(
    network: Segmenter, new: Sequence[nn.Parameter], variant: Variant, schedule: Schedule
) -> list[dict[str, Any]]:
    fresh = set(new)
    own = {key: value for key, value in variant.options if key in ('eps', 'weight_decay')}
    groups: dict[tuple[bool, float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        is_new = parameter in fresh
        rate = schedule.rate * (variant.rate if is_new else 1) if name.startswith('encoder.') else schedule.decoder_rate
        decay = schedule.weight_decay if parameter.ndim > 1 else 0.0
        group = groups.setdefault(
            (is_new, rate, decay),
            dict(params=[], is_new=is_new, highest=rate, lr=rate, weight_decay=decay) | (own if is_new else {}),
        )
        group['params'].append(parameter)
    return list(groups.values())


def _classes(scores: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(scores, labels.shape[-2:], mode='bilinear', align_corners=False).argmax(1)


def _confusion(predicted: Tensor, labels: Tensor, classes: int) -> Any:
    valid = labels != IGNORED
    pairs = labels[valid].long() * classes + predicted[valid]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy()


def _iou(matrix: Any) -> Any:
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    with np.errstate(invalid='ignore'):
        return np.where(matrix.sum(1) > 0, 100 * matrix.diagonal() / union, np.nan)
