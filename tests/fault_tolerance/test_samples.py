"""Annotations and weights that do not fit; whole runs are in test_bad_inputs.py."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from PIL import Image
from torch import nn

from mmpelk.fault_tolerance.errors import DataError, UserError
from mmpelk.fault_tolerance.samples import CheckDataHook, _CheckedPipeline, build_data, files_of


@pytest.mark.parametrize(('kind', 'label', 'fits'), [
    *(('map', 0, True), ('map', 3, True), ('map', 4, False), ('map', 255, True), ('map', 254, True)),
    *(('image', -1, False), ('image', 0, True), ('image', 3, True), ('image', 4, False)),
])  # fmt: skip
def test_labels_end_below_the_number_of_classes(kind: str, label: int, fits: bool) -> None:
    pipeline = _CheckedPipeline([], 4, 'files', {255, 254})
    if kind == 'map':
        check: Any = pipeline.check
        data = dict(gt_seg_map=np.full((2, 2), label), reduce_zero_label=False, ori_shape=(2, 2))
        data |= dict(img_path='a.jpg', seg_map_path='a.png')
        culprit = "label map 'a.png'"
    else:
        check, data, culprit = pipeline, dict(gt_label=label, img_path='a.jpg'), "sample 'a.jpg'"
    if kind == 'map' and not fits:  # which is one of classes in MMSegmentation alone, and where their number is known
        for other, given in (
            (pipeline, {key: value for key, value in data.items() if key != 'reduce_zero_label'}),
            (_CheckedPipeline([], 0, 'files', set()), data),
        ):
            assert other.check(given) is given
    if fits:
        assert check(data) is data
    else:
        with pytest.raises(DataError, match=f'^the {culprit} has class {label}, but there are 4 classes'):
            check(data)


@pytest.mark.parametrize(('shape', 'said'), [
    ((2, 3), "the label map 'a.png' has 2 x 3 labels, its image has 3 x 2 pixels"),
    ((3, 3), "the label map 'a.png' has 3 x 3 labels, its image has 3 x 2 pixels"),
    ((2, 2), "the label map 'a.png' has 2 x 2 labels, its image has 3 x 2 pixels"),
    ((3, 2, 3), "the label map 'a.png' has 3 dimensions, a label map has two"),
])  # fmt: skip
def test_label_maps_of_other_shapes_are_refused(shape: tuple[int, ...], said: str) -> None:
    pipeline = _CheckedPipeline([], 4, "'list.txt'", {255})
    with pytest.raises(DataError, match=f"^{said}. Mend it, or take it out of the data set \\('list.txt'\\)$"):
        pipeline.check(dict(gt_seg_map=np.zeros(shape), ori_shape=(3, 2), seg_map_path='a.png'))


@pytest.mark.parametrize(('error', 'said'), [
    (KeyError('no such key\nand more'), 'KeyError: .no such key'),
    (ValueError('a first line\nand more'), r'ValueError: a first line\. Mend it'),
    (cv2.error('a first line\nand more'), r'error: a first line\. Mend it'),
])  # fmt: skip
def test_any_other_error_names_the_sample_on_one_line(error: Exception, said: str) -> None:
    def fails(data: dict) -> None:
        raise error

    with pytest.raises(DataError, match=f"^the sample 'a.jpg' with the label map 'a.png' cannot be used: {said}") as e:
        _CheckedPipeline([fails], 4, 'files', {255})(dict(img_path='a.jpg', seg_map_path='a.png'))
    assert len(str(e.value).splitlines()) == 1
    error = UserError('What it says of itself.')
    with pytest.raises(UserError, match=r'^What it says of itself\.$'):
        _CheckedPipeline([fails], 4, 'files', {255})(dict(img_path='a.jpg'))


def test_files_of_sets_within_sets() -> None:
    parts = [
        dict(type='RepeatDataset', dataset=dict(data_root='a', ann_file='x.json', data_prefix=dict(img='unused'))),
        dict(
            type='ConcatDataset',
            datasets=[dict(data_root='b', data_prefix=dict(img='i', seg='s')), dict(data_root='c')],
        ),
    ]
    assert files_of(dict(type='ConcatDataset', datasets=parts)) == "'a/x.json' and 'b/i' and 'b/s' and 'c'"


def test_pictures_are_looked_at_all_over_the_set() -> None:
    seen: list[int] = []

    class LoadImageFromFile:
        def __call__(self, info: dict) -> dict:
            return dict(img=np.full((2, 2, 3), 200, np.uint8), img_path='a.png')

    class Pictures(list):
        pipeline = SimpleNamespace(transforms=[LoadImageFromFile()])

        def get_data_info(self, index: int) -> dict:
            seen.append(index)
            return {}

    model, loop = nn.Module(), SimpleNamespace(dataloader=SimpleNamespace(dataset=Pictures(range(80))))
    CheckDataHook().before_train(SimpleNamespace(model=model, train_loop=loop))  # type: ignore[arg-type]
    assert seen == [*range(0, 80, 10)]


def check_weights(model: nn.Module, weights: dict[str, Any], stage: str) -> None:
    dataset = SimpleNamespace(metainfo={}, __len__=lambda: 1)
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=[dataset]))
    runner: Any = SimpleNamespace(model=model, _load_from='a.pth', train_loop=loop, test_loop=loop)
    hook = CheckDataHook()
    # As mmengine writes them, and alone.
    for checkpoint in (dict(state_dict=weights, meta={}), weights):
        hook.after_load_checkpoint(runner, checkpoint)
        assert hook._loaded.keys() == {name.removeprefix('module.') for name in weights}
    getattr(hook, f'before_{stage}')(runner)


@pytest.mark.parametrize(('stage', 'fitting', 'refused'), [
    *(('train', 1, ''), ('train', 0, 'no parameter has its name and shape')),
    *(('test', 4, ''), ('test', 2, ''), ('test', 1, '1 of 4 parameters'), ('test', 0, '0 of 4 parameters')),
])  # fmt: skip
def test_weights_of_another_network_are_refused(stage: str, fitting: int, refused: str) -> None:
    """A training may start from a part of them, a test may lack a few."""
    network = nn.ParameterList(torch.zeros(1) for _ in range(4))
    weights = {str(index): torch.zeros(1 if index < fitting else 2) for index in range(4)}
    of_wrapper = {f'module.{name}': value for name, value in weights.items()}
    # As wrappers for several GPUs call the parameters.
    for model, given in ((network, weights), (nn.ModuleDict(dict(module=network)), weights), (network, of_wrapper)):
        if refused:
            with pytest.raises(UserError, match=f'of another network: .*{refused}'):
                check_weights(model, given, stage)
        else:
            check_weights(model, given, stage)


@pytest.mark.parametrize('stage', ['train', 'val', 'test'])
@pytest.mark.parametrize(
    'head', ['decode_head', 'auxiliary_head', 'head', 'bbox_head', 'roi_head.bbox_head', 'roi_head.mask_head']
)
def test_every_head_has_the_classes_of_every_data_set(head: str, stage: str) -> None:
    """Of one of several heads in a row, too; more than the data set has are none too few."""
    model, part = nn.Module(), nn.Module()
    part.num_classes = 3  # type: ignore[assignment]
    *owner, last = head.split('.')
    holder = model
    for name in owner:
        holder.add_module(name, nn.Module())
        holder = holder.get_submodule(name)
    other = nn.Module()
    other.num_classes = 9  # type: ignore[assignment]
    several = dict(bbox_head=[part, other], mask_head=[other, part])  # as of cascades
    holder.add_module(last, nn.ModuleList(several[last]) if 'roi' in head else part)
    if stage == 'val':  # beside another one that fits
        model.add_module('head' if head == 'decode_head' else 'decode_head', other)

    class OfAFile(list):
        ann_file = 'listed.txt'
        metainfo: Any

    def check(classes: str, network: nn.Module = model) -> None:
        dataset = OfAFile([0])
        dataset.metainfo = dict(classes=classes)
        loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
        hook, runner = CheckDataHook(), SimpleNamespace(model=network, **{f'{stage}_loop': loop})
        getattr(hook, f'before_{stage}')(runner)

    check('abc')
    check('ab')
    said = f"model.{head}.num_classes is 3, but the data set of {stage}_dataloader has 4 classes \\('listed.txt'\\)"
    for network in (model, nn.ModuleDict(dict(module=model))):  # as wrappers for several GPUs have it
        with pytest.raises(UserError, match=said):
            check('abcd', network)


@pytest.mark.scope('mmseg')
@pytest.mark.parametrize('ignored', [254, 255])
def test_the_ignored_value_is_that_of_the_heads(ignored: int, tmp_path: Path) -> None:
    from mmseg.registry import DATASETS

    for index, value in enumerate((254, 255)):
        label = np.zeros((8, 8), np.uint8)
        label[:4] = value
        for folder, pixels in (('img', np.zeros((8, 8, 3), np.uint8)), ('ann', label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f'{index}.png')
    data = DATASETS.build(
        dict(
            type='BaseSegDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='img', seg_map_path='ann'),
            img_suffix='.png',
            ignore_index=ignored,
            metainfo=dict(classes=('a', 'b')),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
        )
    )
    model: Any = nn.Module()
    model.decode_head = nn.Module()
    model.decode_head.num_classes, model.decode_head.ignore_index = 2, ignored
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=data))
    runner: Any = SimpleNamespace(model=model, train_loop=loop)
    CheckDataHook().before_train(runner)
    assert data[ignored - 254]['inputs'].shape == (3, 8, 8)
    with pytest.raises(DataError, match=f'has class {509 - ignored}'):
        data[255 - ignored]


@pytest.mark.parametrize('kind', [np.asarray, torch.tensor, lambda boxes: SimpleNamespace(tensor=torch.tensor(boxes))])
@pytest.mark.parametrize('number', [0.0, float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('place', range(4))
def test_boxes_are_finite(place: int, number: float, kind: Callable[[Any], Any]) -> None:
    boxes = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
    boxes[1][place] = number
    data = dict(img_path='a.jpg', gt_bboxes=kind(boxes))
    pipeline = _CheckedPipeline([], 4, 'files', set())
    if number == 0:
        assert pipeline.check(data) is data
    else:
        with pytest.raises(DataError, match=r"'a\.jpg' has a box that is not finite"):
            pipeline.check(data)


@pytest.mark.parametrize(('named', 'outputs', 'highest'), [(3, 3, 2), (3, 5, 4), (0, 5, 4), (0, 0, None)])
def test_labels_reach_to_the_classes_of_the_set_or_of_the_head(named: int, outputs: int, highest: int | None) -> None:
    """Whichever has more; without either nothing is known of them."""
    model: Any = nn.Module()
    if outputs:
        model.head = nn.Module()
        model.head.num_classes = outputs

    class Labels(list):
        metainfo = dict(classes='abcde'[:named]) if named else {}
        pipeline = Compose([])

    dataset = Labels([0])
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    CheckDataHook().before_train(SimpleNamespace(model=model, train_loop=loop))  # type: ignore[arg-type]
    for label in range(7):
        if highest is None or label <= highest:
            assert dataset.pipeline(dict(gt_label=label)) == dict(gt_label=label)
        else:
            with pytest.raises(DataError, match=f'has class {label}, but there are {highest + 1} classes'):
                dataset.pipeline(dict(gt_label=label))


@pytest.mark.parametrize(('error', 'said'), [
    (None, None),
    (FileNotFoundError('gone'), '^gone$'),
    (UserError('what is wrong'), '^what is wrong$'),
    (TypeError('no such argument'), r"^val_dataloader cannot be built: TypeError: no such argument.*'a/b\.json'"),
    (ValueError('need at least one array to concatenate'), r"^the data set of val_dataloader is empty: .*'a/b\.json'"),
], ids=str)  # fmt: skip
def test_data_sets_that_cannot_be_built_are_told(error: Exception | None, said: str | None) -> None:
    built: list[str] = []

    class Building:
        cfg = dict(val_dataloader=dict(dataset=dict(data_root='a', ann_file='b.json')), test_dataloader=None)

        def __getattr__(self, name: str) -> object:
            built.append(name)
            if error is not None and len(built) > 1:
                raise error
            return object()

    runner: Any = Building()
    if error is None:
        build_data(runner, 'train', 'val', 'test')
        assert built == ['train_loop', 'val_loop', 'test_loop']
        return
    with pytest.raises(
        type(error) if 'cannot' not in str(said) and 'empty' not in str(said) else UserError, match=said
    ):
        build_data(runner, 'train', 'val')
    with pytest.raises((type(error), UserError)):
        build_data(runner, 'test')  # which the config does not have


class Part(list):
    """A data set of one sample; its pipeline is looked at where the annotations are loaded."""

    def __init__(self, **values: Any) -> None:
        super().__init__([0])
        vars(self).update(values)


def test_every_set_within_sets_is_looked_at_once() -> None:
    class Load:
        def __call__(self, data: dict) -> dict:
            return data

    kinds = [type(name, (Load,), {}) for name in ('LoadOther', 'LoadPanopticAnnotations', 'CropAnnotations')]
    parts = [Part(pipeline=Compose([kind() for kind in kinds])) for _ in range(3)]
    other = Part(pipeline=[dict(type='of another library')])
    whole = Part(datasets=[Part(dataset=Part(dataset=parts[0])), Part(datasets=parts[1:]), other])
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=whole))
    hook, runner = CheckDataHook(), SimpleNamespace(model=nn.Module(), val_loop=loop)
    for _ in range(2):  # validations
        hook.before_val(runner)  # type: ignore[arg-type]
        for part in parts:
            found = [getattr(each, '__name__', type(each).__name__) for each in part.pipeline.transforms]
            assert found == ['LoadOther', 'LoadPanopticAnnotations', 'check', 'CropAnnotations']
    assert other.pipeline == [dict(type='of another library')]
    whole.clear()
    with pytest.raises(UserError, match='the data set of val_dataloader is empty'):
        hook.before_val(runner)  # type: ignore[arg-type]


@pytest.mark.parametrize(('of_head', 'of_set', 'ignored'), [(254, 7, [254]), (None, 7, [7]), (None, None, [255])])
def test_what_is_ignored_is_said_by_the_head_or_else_by_the_set(
    of_head: int | None, of_set: int | None, ignored: list[int]
) -> None:
    model: Any = nn.Module()
    model.decode_head, model.loss = nn.Module(), nn.Module()
    model.decode_head.num_classes, model.decode_head.ignore_index = 2, of_head
    model.loss.ignore_index = -100  # which is no head
    part = Part(pipeline=Compose([]), **({} if of_set is None else dict(ignore_index=of_set)))
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=part))
    CheckDataHook().before_train(SimpleNamespace(model=model, train_loop=loop))  # type: ignore[arg-type]
    assert part.pipeline.ignored == ignored


@pytest.mark.parametrize('kind', ['another reader', 'nothing to read', 'a file that is none'])
def test_pictures_that_are_not_read_so_are_not_judged(kind: str, tmp_path: Path) -> None:
    """Though theirs use ten of sixteen bits; a file that cannot be read is told when its sample is loaded."""
    path = tmp_path / 'a.png'
    assert cv2.imwrite(str(path), np.full((2, 2), 1000, np.uint16))

    class Reader:
        def __call__(self, info: dict) -> dict:
            if kind == 'a file that is none':
                raise OSError
            return dict(img=np.full((2, 2), 4, np.uint8), img_path=str(path))

    name = 'LoadImageFromFile' if kind == 'a file that is none' else 'LoadImageFromNDArray'
    transforms = [] if kind == 'nothing to read' else [type(name, (Reader,), {})()]
    part = Part(pipeline=Compose(transforms), get_data_info=lambda index: {})
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=part))
    CheckDataHook().before_train(SimpleNamespace(model=nn.Module(), train_loop=loop))  # type: ignore[arg-type]
    if kind == 'another reader':
        part.pipeline = Compose([type('LoadImageFromFile', (Reader,), {})()])
        with pytest.raises(UserError, match=r'the pictures of train_dataloader have values below 1024 in 16 bits'):
            CheckDataHook().before_train(SimpleNamespace(model=nn.Module(), train_loop=loop))  # type: ignore[arg-type]
