"""What a config from a stranger may build: modules that are known to do nothing with their arguments but compute.

A registry is no list of what is harmless: some registered modules evaluate an argument, read a file or a config that
one names, and a name that no registry knows is imported.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS, TASK_UTILS, TRANSFORMS, VISBACKENDS, VISUALIZERS

from mmpelk.errors import UserError

__all__ = ['refuse_harmful', 'without_initialisation']

_NETWORKS = {
    *('EncoderDecoder', 'FasterRCNN', 'MaskRCNN', 'CascadeRCNN', 'RetinaNet', 'FCOS', 'ImageClassifier', 'PeLK'),
    *('FPN', 'FPNHead', 'FCNHead', 'UPerHead', 'PSPHead', 'ASPPHead', 'SegformerHead', 'FCNMaskHead', 'RPNHead'),
    *('StandardRoIHead', 'CascadeRoIHead', 'ConvFCBBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead'),
    *('RetinaHead', 'FCOSHead', 'SingleRoIExtractor', 'LinearClsHead', 'StackedLinearClsHead', 'GlobalAveragePooling'),
    *('SegDataPreProcessor', 'DetDataPreprocessor', 'ClsDataPreprocessor'),
}
_PARTS = {
    *('CrossEntropyLoss', 'LabelSmoothLoss', 'DiceLoss', 'FocalLoss', 'LovaszLoss', 'L1Loss', 'SmoothL1Loss'),
    *('IoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss', 'AnchorGenerator', 'MlvlPointGenerator', 'DeltaXYWHBBoxCoder'),
    *('DistancePointBBoxCoder', 'MaxIoUAssigner', 'RandomSampler', 'PseudoSampler', 'BboxOverlaps2D'),
    *('BN', 'BN2d', 'SyncBN', 'LN', 'LN2d', 'GN', 'IN', 'Conv', 'Conv2d', 'nearest', 'bilinear'),
    *('ReLU', 'LeakyReLU', 'PReLU', 'ReLU6', 'SiLU', 'GELU', 'HSwish', 'Sigmoid', 'Tanh'),
}
_FOR_INFERENCE = {
    *('LoadImageFromFile', 'LoadAnnotations', 'Resize', 'ResizeEdge', 'CenterCrop', 'PackSegInputs', 'PackDetInputs'),
    *('PackInputs', 'LocalVisBackend', 'SegLocalVisualizer', 'DetLocalVisualizer', 'UniversalVisualizer'),
}
# What its users take by name from a module, or from a registry that mmpretrain alone has.
_FUNCTIONS = {'nms', 'soft_nms', 'RoIAlign', 'Mixup', 'CutMix'}
_ALLOWED = _NETWORKS | _PARTS | _FOR_INFERENCE | _FUNCTIONS
_LIBRARIES = ('mmpelk', 'mmengine', 'mmcv', 'mmseg', 'mmdet', 'mmpretrain')
# A word, which names a mode or an architecture; not a file, an address or an expression.
_WORD = re.compile(r'[\w-]*')


def refuse_harmful(config: Any, scope: object, name: str | Path, allow: Collection[str] = ()) -> None:
    """Refuse a config that builds what is not known to be harmless, or gives it what is no number and no word.

    Args:
        config: Of literals.
        scope: Library whose registries the names are of, as ``default_scope`` gives it.
        name: Of the folder or repository, for messages.
        allow: Further names of modules that the caller trusts.

    Raises:
        UserError: At the first such name or argument, and where a module is not registered here, which mmengine would
            import instead.
    """
    if scope not in _LIBRARIES:
        raise UserError(f"'{name}' is refused: its config wants '{scope}', which is no library of OpenMMLab's")
    for kind in sorted(_check(config, str(name), str(scope), _ALLOWED | set(allow))):
        library, _, plain = kind.rpartition('.')
        if plain not in _FUNCTIONS and not _is_registered(plain, library or str(scope)):
            raise UserError(
                f"'{name}' is refused: its config wants '{kind}', which is not registered here in "
                f"'{library or scope}': install that library"
            )


def _check(config: Any, name: str, scope: str, allowed: Collection[str]) -> set[str]:
    """Look at all of a config; the names of its modules."""
    kinds: set[str] = set()
    if isinstance(config, Mapping):
        for key, value in config.items():
            if not isinstance(key, str) or (key == '_scope_' and value != scope):
                raise UserError(f"'{name}' is refused: its config wants '{value}' by {key!r}, not '{scope}'")
            if key != 'type':
                kinds |= _check(value, name, scope, allowed)
                continue
            library, _, plain = value.rpartition('.') if isinstance(value, str) else ('', '', '')
            if plain not in allowed or library not in ('', *_LIBRARIES):
                raise UserError(
                    f"'{name}' is refused: its config wants '{value}', which is not among the modules that are known "
                    'to run nothing of what a config says. If you trust its author, read its config.py and build the '
                    "network with the toolbox's own init_model"
                )
            kinds.add(value)
    elif isinstance(config, list | tuple | set):
        for value in config:
            kinds |= _check(value, name, scope, allowed)
    elif isinstance(config, str):
        if not _WORD.fullmatch(config):
            raise UserError(f"'{name}' is refused: its config has the argument {config!r:.80}, which is no word")
    elif not isinstance(config, int | float | type(None)):
        raise UserError(f"'{name}' is refused: its config has an argument of type {type(config).__name__}")
    return kinds


def _is_registered(name: str, scope: str) -> bool:
    for root in (MODELS, TASK_UTILS, TRANSFORMS, VISUALIZERS, VISBACKENDS):
        with root.switch_scope_and_registry(scope) as registry:
            for each in (registry, root):
                each.import_from_location()
                if name in each.module_dict:
                    return True
    return False


def without_initialisation(config: Any) -> Any:
    """A copy of a config without ``init_cfg`` and ``pretrained``, which read files: the weights come from elsewhere."""
    if isinstance(config, Mapping):
        kept = {key: value for key, value in config.items() if key not in ('init_cfg', 'pretrained')}
        return {key: without_initialisation(value) for key, value in kept.items()}
    if isinstance(config, list | tuple):
        return type(config)(without_initialisation(value) for value in config)
    return config
