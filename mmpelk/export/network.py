"""The network that is exported: a function of one image, from a recipe and its checkpoint."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.pictures import refuse_dim
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.models import PeLK
from mmpelk.models.weights.checkpoint import shorten, state_dict_of
from mmpelk.models.weights.identify import without_checkpoint
from mmpelk.sparsity import fold_masks


def load_deployed(cfg: Config, checkpoint: str) -> nn.Module:
    """A recipe's model with trained weights, masks folded in, norms and small kernels merged, in eval mode on the CPU.

    Args:
        cfg: The recipe; it is not changed. Its pretrained weights are not loaded.
        checkpoint: Trained, or already deployed, weights of the whole model.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        UserError: If it is one of another network, or the recipe's backbone is none of ours.
    """
    content = read_checkpoint(checkpoint)
    meta = content.get('meta', {}) if isinstance(content, dict) else {}
    state = fold_masks(state_dict_of(content, checkpoint))
    for name in [name for name in state if name.startswith('data_preprocessor.')]:
        del state[name]  # of the recipe, not of the weights
    arguments = copy.deepcopy(cfg.model)  # mmdet reads its parts as attributes
    if 'train_cfg' in arguments:  # mmdet's detectors want the argument
        arguments.train_cfg = None
    backbone = arguments.get('backbone', {})
    backbone.update(without_checkpoint(backbone))
    if backbone.get('type') != 'mmpelk.Enlarged':  # which has no branches to merge
        backbone.update(deploy=not any('.mixer.large_norm.' in name for name in state))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        model = revert_sync_batchnorm(MODELS.build(arguments))
    network = getattr(model, 'backbone', None)
    if not isinstance(network, PeLK) and backbone.get('type') != 'mmpelk.Enlarged':
        raise UserError(
            f"only networks with a PeLK or an enlarged backbone are exported; the config's is {backbone.get('type')}"
        )
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = [name for name in {**own, **found} if own.get(name) != found.get(name)]
    if wrong:
        raise UserError(
            f"'{checkpoint}' is not a checkpoint of this recipe: they differ in {shorten(wrong)}. Give the recipe that "
            'it was trained with'
        )
    model.load_state_dict(state)
    model.eval().requires_grad_(False)
    if isinstance(network, PeLK):
        network.switch_to_deploy()
    model.dataset_meta = meta.get('dataset_meta') or {}
    return model


@dataclass(frozen=True)
class Preprocessing:
    """What a recipe does to the pixels of an image before its network sees them.

    Attributes:
        mean: Per channel, in the network's order.
        std: Per channel, likewise.
        rgb: Whether the network's order is red, green, blue; without meaning but for three channels.
    """

    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    rgb: bool = True

    @classmethod
    def of(cls, cfg: Config, channels: int = 3) -> 'Preprocessing':
        """That of a recipe, for a network of so many channels.

        Raises:
            UserError: If mean or std are of another number of channels.
        """
        given: Mapping[str, Any] = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
        rgb = given.get('bgr_to_rgb', given.get('to_rgb', False))
        numbers = []
        for key, default in (('mean', 0.0), ('std', 1.0)):
            values = list(given.get(key) or [default])
            numbers.append(values * channels if len(values) == 1 else values)
            if len(numbers[-1]) != channels:
                raise UserError(
                    f'data_preprocessor.{key} has {len(values)} values, the network takes {channels} channels'
                )
        return cls(numbers[0], numbers[1], bool(rgb))

    def apply(self, pixels: Tensor) -> Tensor:
        """``(N, H, W, C)`` from 0 to 255, three in red, green, blue, to the network's ``(N, C, H, W)``, float32."""
        pixels = pixels.permute(0, 3, 1, 2).float()
        pixels = pixels.flip(1) if len(self.mean) == 3 and not self.rgb else pixels
        mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (self.mean, self.std))
        return (pixels - mean) / std

    def of_image(self, image: np.ndarray) -> Tensor:
        """:meth:`apply` for one ``(H, W, C)`` of uint8."""
        return self.apply(torch.from_numpy(np.ascontiguousarray(image))[None])


@dataclass
class ExportedNetwork:
    """A model's inference as a module of one input, ``image``.

    Attributes:
        network: Takes ``(N, C, H, W)`` and returns a tuple of tensors.
        outputs: Their names.
        task: ``'segmentation'``, ``'classification'`` or ``'detection'``.
        preprocessing: Preprocessing of the recipe.
        smallest: Side of the smallest image, that of the stem's patch.
        meta: Names and colours of the classes, where they are known.
        takes_pixels: Whether it takes ``(N, H, W, C)`` of uint8, with the preprocessing inside.
    """

    network: nn.Module
    outputs: tuple[str, ...]
    task: str
    preprocessing: Preprocessing
    smallest: int
    meta: dict[str, Any] = field(default_factory=dict)
    takes_pixels: bool = False

    @property
    def channels(self) -> int:
        """Of an image."""
        return len(self.preprocessing.mean)

    @classmethod
    def of(cls, cfg: Config, model: nn.Module) -> 'ExportedNetwork':
        """From what :func:`load_deployed` returned.

        A segmentor gives ``logits`` ``(N, classes, H, W)`` of the whole image and ``labels`` ``(N, H, W)``, a
        classifier ``logits`` ``(N, classes)``, and a detector the maps of its neck: what follows them depends on the
        image.

        Raises:
            UserError: If the model is none of the three.
        """
        task = task_of(model)
        names = {'segmentation': ('logits', 'labels'), 'classification': ('logits',), 'detection': ()}[task]
        backbone = cast(Any, model).backbone
        if task == 'detection':
            outputs = getattr(getattr(model, 'neck', backbone), 'num_outs', None) or len(backbone.out_indices)
            names = tuple(f'level{level}' for level in range(outputs))
        stem = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
        meta = {key: value for key, value in cast(Any, model).dataset_meta.items() if key in ('classes', 'palette')}
        preprocessing = Preprocessing.of(cfg, stem.in_channels)
        return cls(_Inference(model, task), names, task, preprocessing, stem.kernel_size[0], meta)

    def check_size(self, height: int, width: int) -> None:
        """Refuse images that the stem has no patch for.

        Raises:
            UserError: If a side is too small.
        """
        if min(height, width) < self.smallest:
            raise UserError(
                f'{height} x {width} is smaller than the {self.smallest} x {self.smallest} patch of the stem; give '
                'larger sides with --shape'
            )

    def folded(self) -> 'ExportedNetwork':
        """The same that takes ``(N, H, W, C)`` of uint8, three channels in red, green, blue."""
        return replace(self, network=_WithPreprocessing(self.network, self.preprocessing), takes_pixels=True)


def task_of(model: nn.Module) -> str:
    """``'detection'``, ``'segmentation'`` or ``'classification'``.

    Raises:
        UserError: If the model of a toolbox is none of the three.
    """
    if hasattr(model, 'rpn_head') or hasattr(model, 'bbox_head'):
        return 'detection'
    if hasattr(model, 'decode_head') and not isinstance(model.decode_head, nn.ModuleList):
        return 'segmentation'
    if hasattr(model, 'head'):
        return 'classification'
    raise UserError(f'{type(model).__name__} is no segmentor, classifier or detector that can be exported')


class _Inference(nn.Module):
    """Runs a model of a toolbox on normalised images."""

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        model: Any = self.model
        features = model.extract_feat(image)
        if self.task == 'detection':
            return tuple(features)
        if self.task == 'classification':
            return (model.head(features),)
        align = model.align_corners
        logits = F.interpolate(model.decode_head(features), image.shape[-2:], mode='bilinear', align_corners=align)
        if logits.shape[1] > 1:
            return logits, logits.argmax(1)
        return logits, (logits[:, 0].sigmoid() > model.decode_head.threshold).long()


class _WithPreprocessing(nn.Module):
    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        dtype = next(self.network.parameters()).dtype
        return self.network(self.preprocessing.apply(image).to(dtype))


def real_image(path: Path | None, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """A photograph, stretched to ``(H, W)``: ``(H, W, C)`` of uint8; red, green, blue, and again from the fourth on.

    Args:
        path: The image; ``None`` takes matplotlib's portrait of Grace Hopper.
        size: ``(H, W)``.
        channels: ``C``.

    Raises:
        UserError: If it cannot be read.
    """
    import cv2
    import mmcv
    from matplotlib import cbook

    file = str(path or cbook.get_sample_data('grace_hopper.jpg', asfileobj=False))
    try:
        image = mmcv.imread(file, channel_order='rgb')
    except cv2.error as error:  # of what is no picture, and of an empty file
        raise UserError(f"'{path}' is not readable as an image") from error
    if path:
        refuse_dim(image, path)
    return mmcv.imresize(image, size[::-1])[..., np.arange(channels) % 3]
