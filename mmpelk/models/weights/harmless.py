"""What a config from a stranger may build: modules that are known to do nothing with their arguments but compute.

A registry is no list of what is harmless: some registered modules evaluate an argument, read a file or a config that
one names, and a name that no registry knows is imported.
"""

import contextlib
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS, TASK_UTILS, Registry, registry

from mmpelk.errors import UserError
from mmpelk.models.architectures import ARCHITECTURES
from mmpelk.models.mixers import MIXERS

_NETWORKS = {
    *('EncoderDecoder', 'FasterRCNN', 'MaskRCNN', 'CascadeRCNN', 'RetinaNet', 'FCOS', 'ImageClassifier', 'PeLK'),
    *('FPN', 'FPNHead', 'FCNHead', 'UPerHead', 'PSPHead', 'ASPPHead', 'SegformerHead', 'FCNMaskHead', 'RPNHead'),
    *('StandardRoIHead', 'CascadeRoIHead', 'ConvFCBBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead'),
    *('RetinaHead', 'FCOSHead', 'SingleRoIExtractor', 'LinearClsHead', 'StackedLinearClsHead', 'GlobalAveragePooling'),
    *('DINO', 'DINOHead', 'ChannelMapper', 'Mask2FormerHead', 'MSDeformAttnPixelDecoder'),
    *('SegDataPreProcessor', 'DetDataPreprocessor', 'ClsDataPreprocessor'),
}
_PARTS = {
    *('CrossEntropyLoss', 'LabelSmoothLoss', 'DiceLoss', 'FocalLoss', 'LovaszLoss', 'L1Loss', 'SmoothL1Loss'),
    *('IoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss', 'AnchorGenerator', 'MlvlPointGenerator', 'DeltaXYWHBBoxCoder'),
    *('DistancePointBBoxCoder', 'MaxIoUAssigner', 'RandomSampler', 'PseudoSampler', 'BboxOverlaps2D'),
    *('HungarianAssigner', 'MaskPseudoSampler', 'ClassificationCost', 'FocalLossCost', 'CrossEntropyLossCost'),
    *('DiceCost', 'BBoxL1Cost', 'IoUCost'),
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
_BUILT = (MODELS, TASK_UTILS)
# Arguments that may be strings, and which. Any other may be a file: mmseg's losses unpickle what class_weight names.
_MODES = {'whole', 'slide', 'original', 'multi_label', 'classy_vision', 'nearest', 'bilinear', 'bicubic', 'zeros'}
_RESIZING = {'nearest', 'bilinear', 'bicubic', 'area', 'lanczos', 'box', 'hamming'}
_WORDS: dict[str, Collection[str]] = {
    'arch': ARCHITECTURES,
    'mixer': MIXERS,
    'positional_embedding': {'default', 'in_bounds', 'constant'},
    'hidden_channels': {'pretrained'},
    'mode': _MODES | {'iou', 'iof', 'giou', 'linear', 'square', 'log'},
    'iou_mode': {'iou', 'giou'},
    'box_format': {'xyxy', 'xywh'},
    'reduction': {'none', 'mean', 'sum'},
    'loss_type': {'multi_class', 'binary'},
    'classes': {'present', 'all'},
    'input_transform': {'resize_concat', 'multiple_select'},
    'add_extra_convs': {'on_input', 'on_lateral', 'on_output'},
    'order': {'conv', 'norm', 'act'},
    'pool_mode': {'avg', 'max'},
    'padding_mode': {'zeros', 'reflect', 'replicate', 'circular', 'constant'},
    'score_mode': {'max', 'mean'},
    'interpolation': _RESIZING,
    'backend': {'cv2', 'pillow'},
    'imdecode_backend': {'cv2', 'pillow'},
    'color_type': {'color', 'grayscale', 'unchanged', 'color_ignore_orientation'},
    'edge': {'short', 'long', 'width', 'height'},
    'name': {'visualizer', 'vis'},
    'meta_keys': {
        *('img_id', 'img_path', 'img_shape', 'ori_shape', 'pad_shape', 'scale_factor', 'flip', 'flip_direction'),
        *('seg_map_path', 'reduce_zero_label', 'sample_idx'),
    },
}
_LOSS_NAME = re.compile(r'(loss|aux)_\w+')
_LARGEST = 2**18  # of a number: classes, channels, pixels. What it builds is to fit into the memory.
_lock = threading.RLock()


def refuse_harmful(
    config: Any,
    scope: object,
    name: str | Path,
    allow: Collection[str] = (),
    registries: Sequence[Registry] = _BUILT,
) -> None:
    """Refuse a config that builds what is not known to be harmless, or gives it a string that is not known to be.

    Args:
        config: Config of literals.
        scope: Library whose registries the names are of, as ``default_scope`` gives it.
        name: Name of the folder or repository, for messages.
        allow: Further names of modules that the caller trusts.
        registries: Those that build what the config names; by default those of networks.

    Raises:
        UserError: At the first such name or argument, and where a module is not registered here, which mmengine would
            import instead.
    """
    if not isinstance(scope, str) or scope not in _LIBRARIES:
        raise UserError(f"'{name}' is refused: its config wants '{_text(scope)}', which is not a library of OpenMMLab")
    for kind in sorted(_check(config, str(name), str(scope), _ALLOWED | set(allow))):
        library, _, plain = kind.rpartition('.')
        if registries is _BUILT and plain in _FUNCTIONS:
            continue
        if not _is_registered(plain, library or str(scope), registries):
            raise UserError(
                f"'{name}' is refused: its config wants '{kind}', which is not registered here in "
                f"'{library or scope}' for this use: install that library, or correct the name"
            )


def _check(config: Any, name: str, scope: str, allowed: Collection[str], argument: str = '') -> set[str]:
    """Look at all of a config; the names of its modules."""
    kinds: set[str] = set()
    if isinstance(config, Mapping):
        for key, value in config.items():
            if not isinstance(key, str) or (key == '_scope_' and value != scope):
                raise UserError(
                    f"'{name}' is refused: its config wants '{_text(value)}' by '{_text(key)}', not '{scope}'"
                )
            if key == '_scope_':
                continue
            if key != 'type':
                kinds |= _check(value, name, scope, allowed, key)
                continue
            library, _, plain = value.rpartition('.') if isinstance(value, str) else ('', '', '')
            if plain not in allowed or library not in ('', *_LIBRARIES):
                raise UserError(
                    f"'{name}' is refused: its config wants '{_text(value)}', which is not on the list of "
                    'modules that are known to run nothing from a config. If you trust its author, read its config.py '
                    "and build the network with the toolbox's own init_model"
                )
            kinds.add(value)
    elif isinstance(config, list | tuple | set):
        for value in config:
            kinds |= _check(value, name, scope, allowed, argument)
    elif isinstance(config, str):
        is_loss = argument == 'loss_name' and _LOSS_NAME.fullmatch(config)
        if config not in _WORDS.get(argument, ()) and not is_loss:
            raise UserError(
                f"'{name}' is refused: its config has {argument}={config!r:.80}, which is not on the list of known "
                'words, and might name a file. If you trust its author, read its config.py and build the network with '
                "the toolbox's own init_model"
            )
    elif isinstance(config, int) and abs(config) > _LARGEST:
        raise UserError(f"'{name}' is refused: its config has {argument} beyond {_LARGEST}, which no network needs")
    elif not isinstance(config, int | float | type(None)):
        raise UserError(f"'{name}' is refused: its config has an argument of type {type(config).__name__}")
    return kinds


def _text(value: Any) -> str:
    """A string, cut, or the type of what is none."""
    return value[:80] if isinstance(value, str) else type(value).__name__


def _is_registered(name: str, scope: str, registries: Sequence[Registry]) -> bool:
    for root in registries:
        with root.switch_scope_and_registry(scope) as switched:
            for each in (switched, root):
                each.import_from_location()
                if name in each.module_dict:
                    return True
    return False


@contextlib.contextmanager
def only_registered(name: str | Path) -> Iterator[None]:
    """Let this thread build registered modules only: mmengine imports a name that the registry in use does not know.

    Args:
        name: Name of the folder or repository, for messages.

    Raises:
        UserError: At such a name.
    """
    # mmengine has no option for it. Other threads go on as before; the lock keeps the replacements in order.
    here = threading.get_ident()
    refused: list[str] = []

    def refuse(kind: str) -> Any:
        if threading.get_ident() != here:
            return imported(kind)
        refused.append(kind)
        raise KeyError(kind)

    with _lock:
        imported = registry.get_object_from_string
        registry.get_object_from_string = refuse
        try:
            yield
        except Exception as error:  # mmengine makes its own of ours
            if not refused:
                raise
            raise UserError(
                f"'{name}' is refused: its config wants '{refused[0]}' where no such module is registered"
            ) from error
        finally:
            registry.get_object_from_string = imported


def without_initialisation(config: Any) -> Any:
    """A copy of a config without ``init_cfg`` and ``pretrained``, which read files: the weights come from elsewhere."""
    if isinstance(config, Mapping):
        kept = {key: value for key, value in config.items() if key not in ('init_cfg', 'pretrained')}
        return {key: without_initialisation(value) for key, value in kept.items()}
    if isinstance(config, list | tuple):
        return type(config)(without_initialisation(value) for value in config)
    return config
