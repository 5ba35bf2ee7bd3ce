"""A recipe's model, and a forward for counts and timing whose work does not depend on the content of the image."""

import copy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmpelk.engine.checks import check_operators


def build_model(cfg: Config, seed: int | None = None) -> nn.Module:
    """The model of a recipe, to count, time or measure. Neither the global random state nor the default scope changes.

    Args:
        cfg: The recipe; it is not changed.
        seed: Initialise the weights as a training does that starts with this seed; weights that the recipe names are
            loaded then. ``None`` leaves what the constructors draw and loads nothing.

    Raises:
        UserError: If it is a detector's, and mmcv's operators are not compiled here.
    """
    check_operators(cfg)
    model = copy.deepcopy(cfg.model)
    if 'train_cfg' in model:
        model.train_cfg = None  # mixup and the like
    with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        if seed is None:
            return MODELS.build(model)
        torch.default_generator.manual_seed(seed)  # of the CPU alone, as fork_rng
        built = MODELS.build(model)
        built.init_weights()
        return built


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: what its first convolution reads, 3 if it has none."""
    return next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)


class InferenceForm(nn.Module):
    """Runs the layers that a model runs at inference, on shapes alone.

    Classifiers have such a forward, ``mode='tensor'``; a segmentor runs its decode head on the whole image. A two-stage
    detector's proposals depend on the image; as in mmdet's own figures its heads run on dummy regions, as many as
    ``test_cfg`` allows: 1000 proposals through every box head, 100 boxes through every mask head.

    Args:
        model: A backbone, or a model of mmpretrain, mmseg or mmdet. It is put into eval mode.
    """

    MODEL = 'model'

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.add_module(self.MODEL, model.eval())

    def forward(self, image: Tensor) -> Any:
        """``(1, C, H, W)`` to the output of the model."""
        model: Any = self.model
        if hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
            return _detect(model, image)
        if hasattr(model, 'decode_head') and not isinstance(model.decode_head, nn.ModuleList):
            # mmseg calls ``decode_head.forward``, which hides the head from everything that follows modules.
            return model.decode_head(model.extract_feat(image))
        return model(image, mode='tensor') if isinstance(model, BaseModel) else model(image)


def _detect(model: Any, image: Tensor) -> list[Any]:
    features = model.extract_feat(image)
    outputs = [model.rpn_head(features)]
    roi_head, test_cfg = model.roi_head, model.test_cfg
    for kind, regions in (('bbox', test_cfg.rpn.max_per_img), ('mask', test_cfg.rcnn.max_per_img)):
        head = getattr(roi_head, f'{kind}_head', None)
        if head is None:
            continue
        extractor = getattr(roi_head, f'{kind}_roi_extractor', None) or roi_head.bbox_roi_extractor
        for stage, stage_head in enumerate(_as_list(head)):
            pooled = _pooled(_as_list(extractor)[stage], regions, image)
            if getattr(roi_head, 'with_shared_head', False):
                pooled = roi_head.shared_head(pooled)
            outputs.append(stage_head(pooled))
    return outputs


def _as_list(module: nn.Module) -> list[Any]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _pooled(extractor: Any, regions: int, image: Tensor) -> Tensor:
    """Regions as the extractor cuts them out of the feature maps; it has no layer that counts."""
    size = extractor.roi_layers[0].output_size
    return torch.empty(regions, extractor.out_channels, *size, dtype=image.dtype, device=image.device)
