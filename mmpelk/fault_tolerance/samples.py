"""Errors in samples and data sets that name the file, instead of a traceback out of a worker process."""

import os.path as osp
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from .errors import DataError, UserError
from .pictures import refuse_dim_set

_PICTURES = 8  # that are looked at before a training
# Where the toolboxes keep what has an output for each class.
_HEADS = ('decode_head', 'auxiliary_head', 'head', 'bbox_head', 'roi_head.bbox_head', 'roi_head.mask_head')


class CheckDataHook(Hook):
    """Look at every sample where its annotations are loaded, and at the weights to test, and say what is wrong.

    A label map has to have its image's size and no class beyond the data set's and the head's, boxes have to be finite,
    a class index has to exist, and pictures in files of 16 bits have to fill them; any other error while a sample is
    loaded and transformed is raised with its file, too. On a GPU an index out of range would end in an error of the
    device that names neither.

    Weights of another network, which MMEngine would leave out with a warning, are not tested.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, torch.Size] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember the shapes of the loaded weights."""
        weights = checkpoint.get('state_dict', checkpoint)
        self._loaded = {
            name.removeprefix('module.'): value.shape for name, value in weights.items() if isinstance(value, Tensor)
        }

    def before_train(self, runner: Runner) -> None:
        """Check the training data, the network's classes and the loaded weights."""
        if self._loaded and not self._count_fitting(runner):
            raise UserError(
                f"the checkpoint '{runner._load_from}' is of another network: no parameter has its name and shape. "
                'Load one of this network, or leave load_from out'
            )
        self._check_data(runner, runner.train_loop.dataloader.dataset, 'train_dataloader')

    def before_val(self, runner: Runner) -> None:
        """Check the validation data."""
        self._check_data(runner, runner.val_loop.dataloader.dataset, 'val_dataloader')

    def before_test(self, runner: Runner) -> None:
        """Check the test data and the loaded weights."""
        fitting, wanted = self._count_fitting(runner), len(list(runner.model.parameters()))
        if self._loaded and 2 * fitting < wanted:  # a few may have been converted while they were loaded
            raise UserError(
                f"the checkpoint '{runner._load_from}' is of another network: {fitting} of {wanted} parameters "
                'have their names and shapes. Give the config that it was trained with'
            )
        self._check_data(runner, runner.test_loop.dataloader.dataset, 'test_dataloader')

    def _count_fitting(self, runner: Runner) -> int:
        """How many parameters of the network the loaded weights fit."""
        parameters = runner.model.named_parameters()
        return sum(self._loaded.get(name.removeprefix('module.')) == value.shape for name, value in parameters)

    def _check_data(self, runner: Runner, dataset: Any, loader: str) -> None:
        if len(dataset) == 0:
            raise UserError(_empty(loader, dataset))
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
        outputs = list(_outputs(runner.model))
        for name, number in outputs:
            if number < len(classes):
                raise UserError(
                    f'model.{name}.num_classes is {number}, but the data set of {loader} has {len(classes)} classes '
                    f'({files_of(dataset)}): set model.{name}.num_classes={len(classes)}, or the classes in '
                    f'{loader}.dataset.metainfo'
                )
        for part in _parts(dataset):
            _check_pictures(part, loader)
            if type(getattr(part, 'pipeline', None)) is Compose:
                number = max([len(classes), *(number for _, number in outputs)])
                ignored = _ignored(runner.model) or {getattr(part, 'ignore_index', 255)}
                part.pipeline = _CheckedPipeline(part.pipeline.transforms, number, files_of(part), ignored)


def _check_pictures(dataset: Any, loader: str) -> None:
    """Read a few pictures as the pipeline does, and refuse those that it makes nearly black."""
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', None)
    if not transforms or type(transforms[0]).__name__ != 'LoadImageFromFile':
        return
    images = []
    for index in range(0, len(dataset), max(1, len(dataset) // _PICTURES)):
        try:
            loaded = transforms[0](dataset.get_data_info(index))
            images.append((np.asarray(loaded['img']), str(loaded['img_path'])))
        except Exception:  # decoders raise anything; loading the sample reports it
            return
    refuse_dim_set(images, loader)


class _CheckedPipeline(Compose):
    """A pipeline whose errors name the sample.

    Args:
        transforms: Built ones.
        classes: How many there are; 0 if that is not known.
        files: Where the samples are listed, for messages.
        ignored: Values of label maps that the losses leave out.
    """

    def __init__(self, transforms: list[Any], classes: int, files: str, ignored: set[int]) -> None:
        super().__init__(None)
        self.classes, self.files, self.ignored = classes, files, sorted(ignored)
        for transform in transforms:
            self.transforms.append(transform)
            if type(transform).__name__.startswith('Load') and type(transform).__name__.endswith('Annotations'):
                self.transforms.append(self.check)

    def __call__(self, data: dict) -> dict | None:
        try:
            self._check_label(data)
            return super().__call__(data)
        except UserError:
            raise
        except Exception as error:  # transforms and decoders raise anything
            reason = f'{type(error).__name__}: {error}'.splitlines()[0]
            raise DataError(f'{_name(data)} cannot be used: {reason}. {self._remedy()}') from error

    def check(self, data: dict) -> dict:
        """Refuse annotations that do not fit."""
        seg, shape = data.get('gt_seg_map'), data.get('ori_shape')
        if seg is not None and shape is not None and seg.shape[:2] != tuple(shape[:2]):
            raise DataError(
                f'{_name(data)} has {_size(seg.shape)} labels, its image has {_size(shape)} pixels. {self._remedy()}'
            )
        if seg is not None and seg.ndim != 2:
            raise DataError(f'{_name(data)} has {seg.ndim} dimensions, a label map has two. {self._remedy()}')
        if seg is not None and 'reduce_zero_label' in data and self.classes:  # MMSegmentation's
            highest = int(seg[~np.isin(seg, self.ignored)].max(initial=0))
            if highest >= self.classes:
                raise DataError(
                    f'{_name(data)} has class {highest}, but there are {self.classes} classes, from 0 on. '
                    f'{self._remedy()}; reduce_zero_label=True makes class 1 the first'
                )
        boxes = data.get('gt_bboxes')
        if boxes is not None and not bool(torch.isfinite(torch.as_tensor(getattr(boxes, 'tensor', boxes))).all()):
            raise DataError(f'{_name(data)} has a box that is not finite. {self._remedy()}')
        return data

    def _check_label(self, data: dict) -> None:
        label = data.get('gt_label')
        if isinstance(label, int) and self.classes and not 0 <= label < self.classes:
            raise DataError(
                f'{_name(data)} has class {label}, but there are {self.classes} classes, from 0 on. {self._remedy()}'
            )

    def _remedy(self) -> str:
        return f'Mend it, or take it out of the data set ({self.files})'


def build_data(runner: Runner, *loops: str) -> None:
    """Build loops and with them the data sets, which a runner otherwise does when it starts.

    Args:
        runner: The runner.
        *loops: Names of loops: ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        UserError: If a data set cannot be read.
    """
    for name in loops:
        try:
            getattr(runner, f'{name}_loop')
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # a data set reads what users write
            dataset = (runner.cfg.get(f'{name}_dataloader') or {}).get('dataset')
            if 'need at least one array to concatenate' in str(error):  # mmengine's, of no samples
                raise UserError(_empty(f'{name}_dataloader', dataset)) from error
            raise UserError(
                f'{name}_dataloader cannot be built: {type(error).__name__}: {error}. Check {files_of(dataset)}, the '
                f'settings of {name}_dataloader and {name}_cfg (MMPELK_TRACEBACK=1 shows where)'
            ) from error


def files_of(dataset: Any) -> str:
    """Annotation files and folders of a data set, or of its config, for messages."""
    files = []
    for part in _parts(dataset):
        get = part.get if isinstance(part, dict) else lambda name, part=part: getattr(part, name, None)
        root, listed, prefix = get('data_root') or '', get('ann_file'), get('data_prefix') or {}
        prefixes = [prefix] if isinstance(prefix, str) else [*prefix.values()]
        files += [osp.join(root, str(path)) for path in ([listed] if listed else prefixes) if path] or [root]
    return ' and '.join(f"'{file}'" for file in dict.fromkeys(filter(None, files))) or 'its files'


def _empty(loader: str, dataset: Any) -> str:
    return (
        f'the data set of {loader} is empty: check {files_of(dataset)}, and what {loader}.dataset.filter_cfg and '
        'metainfo.classes leave of it'
    )


def _parts(dataset: Any) -> Iterator[Any]:
    """A data set, or those that it wraps."""
    get = dataset.get if isinstance(dataset, dict) else lambda name: getattr(dataset, name, None)
    inner = get('datasets') or ([get('dataset')] if get('dataset') is not None else [])
    if not inner:
        yield dataset
    for part in inner:
        yield from _parts(part)


def _ignored(model: Any) -> set[int]:
    """The values of label maps that a segmentor's heads ignore."""
    found = (getattr(part, 'ignore_index', None) for part in model.modules() if hasattr(part, 'num_classes'))
    return {value for value in found if isinstance(value, int)}


def _outputs(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Heads and how many classes each has."""
    network = getattr(model, 'module', model)
    for name in _HEADS:
        head: Any = network
        for part in name.split('.'):
            head = getattr(head, part, None)
        for one in head if isinstance(head, nn.ModuleList) else [head]:
            if isinstance(number := getattr(one, 'num_classes', None), int):
                yield name, number


def _name(data: dict) -> str:
    label_map, image = data.get('seg_map_path'), data.get('img_path')
    if label_map and 'gt_seg_map' in data:
        return f"the label map '{label_map}'"
    return f"the sample '{image or data.get('sample_idx', 'of unknown file')}'" + (
        f" with the label map '{label_map}'" if label_map else ''
    )


def _size(shape: Any) -> str:
    return ' x '.join(str(length) for length in shape[:2])
