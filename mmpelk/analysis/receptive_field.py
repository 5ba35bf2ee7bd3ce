"""Effective and theoretical receptive fields: the data of the paper's Fig. 4.

Definitions of the effective receptive field:
    Luo et al., Understanding the Effective Receptive Field in Deep CNNs, https://arxiv.org/abs/1701.04128;
    Ding et al., RepLKNet, https://arxiv.org/abs/2203.06717, ``erf/`` of https://github.com/DingXiaoH/RepLKNet-pytorch;
    Liu et al., SLaK, https://arxiv.org/abs/2207.03620, ``erf/`` of https://github.com/VITA-Group/SLaK.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mmpelk.models import PeLK
from mmpelk.ops import force_backend

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
"""RepLKNet's shares of the total contribution."""

Scores = npt.NDArray[np.float64]


def contribution_scores(model: nn.Module, images: Iterable[Tensor]) -> Scores:
    """How much each input pixel contributes to the central position of the last feature map.

    RepLKNet's definition, which SLaK and PeLK follow: ``relu(d/dx sum_c relu(F[c, h // 2, w // 2]))``, summed over the
    image's channels and over the images. ``F`` is :func:`last_map`. (RepLKNet's script divides by the number of images;
    the paper "accumulates" them. Shares of the total are the same.)

    The model is in eval mode meanwhile, and only the image needs a gradient; both are as before afterwards. Large
    kernels run in the dense backend, because the others leave rounding errors where the gradient is zero; a
    convolution built with a ``backend`` of its own keeps that. One image is in memory at a time.

    Args:
        model: A backbone, or a model of mmpretrain, mmseg or mmdet, whose backbone is then what is measured.
        images: Preprocessed images ``(C, H, W)``, or batches ``(N, C, H, W)`` of them, all of one size. They are moved
            to the model's device and dtype.

    Returns:
        ``(H, W)``, in float64, not negative.

    Raises:
        ValueError: If there is no image, the images differ in size, a gradient is not finite, or the model has no
            feature map.
    """
    total: Tensor | None = None
    with _measuring(model), torch.enable_grad(), force_backend('dense'):
        for index, image in enumerate(images):
            scores = _image_scores(model, image)
            if not scores.isfinite().all():
                raise ValueError(f'the gradient of image {index} is not finite; check the weights, or leave it out')
            if total is not None and scores.shape != total.shape:
                raise ValueError(f'image {index} is {tuple(scores.shape)}, those before {tuple(total.shape)}; resize')
            total = scores if total is None else total + scores
    if total is None:
        raise ValueError('there is no image to measure the receptive field on')
    return total.numpy()


def _image_scores(model: nn.Module, image: Tensor) -> Tensor:
    parameter = next(model.parameters(), image)
    pixels = image.detach().to(parameter.device, parameter.dtype).reshape(-1, *image.shape[-3:]).requires_grad_()
    features = last_map(model, pixels)
    centre = features[:, :, features.shape[2] // 2, features.shape[3] // 2].relu().sum()
    (gradient,) = torch.autograd.grad(centre, pixels)
    return gradient.relu().double().sum((0, 1)).cpu()


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients of parameters; restores both."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training  # not train(), which frozen stages intercept


def last_map(model: nn.Module, images: Tensor) -> Tensor:
    """The feature map of a model's last layer.

    It is the output of the last of the backbone's ``stages``, before the norm that follows for one task or another,
    and before a classifier's global pooling: RepLKNet's and SLaK's choice, who saw little difference after the norm.
    Where ``stages`` gives no map (Swin's gives tokens) or there is no such module (ResNet), it is the last map that the
    backbone returns. Necks and heads are left out.

    Args:
        model: A backbone, or a model that has one as ``backbone``.
        images: ``(N, C, H, W)``, preprocessed.

    Returns:
        ``(N, C', H', W')``.

    Raises:
        ValueError: If there is no such map, as in a transformer that returns its class token.
    """
    backbone: Any = getattr(model, 'backbone', model)
    seen: list[Any] = []
    stages, handle = getattr(backbone, 'stages', None), None
    if isinstance(stages, nn.ModuleList | nn.Sequential) and len(stages):
        handle = stages[-1].register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        returned = backbone(images)
    finally:
        if handle:
            handle.remove()
    outputs = list(returned) if isinstance(returned, list | tuple) else [returned]
    for output in [*reversed(seen), *reversed(outputs)]:
        if isinstance(output, Tensor) and output.dim() == 4:
            return output
    shapes = [tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__ for output in outputs]
    raise ValueError(
        f'{type(backbone).__name__} returns no feature map (N, C, H, W) but {shapes}; configure it to return one, such '
        "as with out_type='featmap' for the vision transformers of mmpretrain"
    )


@dataclass(frozen=True)
class AreaRatio:
    """The high-contribution area of RepLKNet's tables."""

    threshold: float  # share of the total contribution
    side: int  # side of the square in pixels, at most that of the image
    area_ratio: float  # its area over that of the image


def area_ratios(scores: Scores, logarithm: bool = False) -> tuple[AreaRatio, ...]:
    """The smallest centred squares that hold more than the shares :data:`THRESHOLDS` of the total contribution.

    The squares are centred on pixel ``(H // 2, W // 2)`` and have odd sides, as in RepLKNet's script. (With an even
    stride the central position of the last map sees a field whose middle is up to half a stride further; the larger
    ``K``, the less this matters.) A side of 1, which that script skips, counts; a square may reach the border.

    Args:
        scores: ``(H, W)``, not negative.
        logarithm: Take ``log10(score + 1)`` first, as RepLKNet's and SLaK's scripts do for their tables and RepLKNet's
            does for its figure; SLaK's figure is drawn without. Pass the mean over the images then, as theirs is. The
            logarithm compresses scores above 1 and leaves those far below as they are, so that these ratios depend on
            the scale of features and gradients. Those without are free of it and compare between networks.

    Returns:
        A square per threshold.

    Raises:
        ValueError: If the scores are no map, are all zero, or are negative or not finite.
    """
    if scores.ndim != 2 or not np.isfinite(scores).all() or (scores < 0).any() or not scores.any():
        raise ValueError('contribution scores are a map (H, W) of finite numbers, none negative and not all zero')
    values = np.log10(scores + 1) if logarithm else scores
    height, width = values.shape
    rows, columns = (np.abs(np.arange(extent) - extent // 2) for extent in values.shape)
    # Distance of each pixel's ring from the centre; the cumulative sum over the rings is that over the squares.
    rings = np.maximum(rows[:, None], columns)
    contributions = np.cumsum(np.bincount(rings.ravel(), values.ravel()))
    shares = contributions / contributions[-1]
    ratios = []
    for threshold in THRESHOLDS:
        radius = int(np.argmax(shares > threshold))
        sides = [int((distances <= radius).sum()) for distances in (rows, columns)]  # cut off at the border
        ratios.append(AreaRatio(threshold, max(sides), math.prod(sides) / (height * width)))
    return tuple(ratios)


def theoretical_size(backbone: PeLK) -> int:
    """Extent of the receptive field on an endless image: ``1 + sum_i (k_i - 1) prod_{j<i} s_j``, in pixels.

    The sum runs over the layers up to :func:`last_map`. Small kernels run beside larger ones and do not count; stripes
    count with their long side, so that the result is the bounding box of their cross.

    Args:
        backbone: A PeLK with any of its mixers.
    """
    size, stride = 1, 1
    for downsample, stage in zip(backbone.downsample_layers, backbone.stages, strict=True):
        for conv in downsample:
            if isinstance(conv, nn.Conv2d):
                size += (conv.kernel_size[0] - 1) * stride
                stride *= conv.stride[0]
        size += sum(max(block.mixer.receptive_field) - 1 for block in stage) * stride
    return size
