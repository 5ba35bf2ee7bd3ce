"""Other formats: LabelMe's JSON here, the rest by Datumaro, whose environment these tests may find or not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import new_project
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from own_data import (
    Answers,
    DataSet,
    Machine,
    convert,
    has_outlines,
    make_plan,
    read_classification,
    read_detection,
    read_segmentation,
    write_project,
)
from own_data.segmentation import read_indices

from mmpelk.errors import UserError
from tests.paths import ROOT
from tests.tools.own_data.pictures import image, names, notes

BOX = (4, 5, 24, 20)  # left, top, right, bottom
_OWN = ROOT / '.venv-data' / 'bin' / 'python'
PYTHON = os.environ.get('MMPELK_DATUMARO_PYTHON') or (str(_OWN) if _OWN.is_file() else '')
needs_datumaro = pytest.mark.skipif(not PYTHON, reason='pip install -r requirements/own_data.txt in .venv-data')
# Written by Datumaro itself, of four pictures to train on and two to validate on: every format in one process.
EXPORT = f"""
import sys
import datumaro
import numpy as np
from datumaro.components.annotation import Bbox, Label, Mask
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
left, top, right, bottom = {BOX}
out = sys.argv[1]
for kind, name in (word.split(':') for word in sys.argv[2:]):
    items = []
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        mask = np.zeros((32, 48), bool)
        mask[top:bottom, left + index:right] = 1
        annotations = dict(
            det=[Bbox(left + index, top, right - left - index, bottom - top, label=1, id=1, group=1)],
            seg=[Mask(~mask, label=0, id=1, group=1), Mask(mask, label=1, id=2, group=2)],
            cls=[Label(index % 2)],
        )[kind]
        media = Image.from_numpy(data=pixels)
        subset = 'train' if index < 4 else 'val'
        items.append(DatasetItem(id=f'im{{index}}', subset=subset, media=media, annotations=annotations))
    dataset = datumaro.Dataset.from_iterable(items, categories=['background', 'dog'])
    dataset.export(f'{{out}}/{{kind}} {{name}}', name, save_media=True)
"""


def write_labelme(root: Path, count: int = 5) -> Path:
    for index in range(count):
        image(root / f'{index}.jpg')
        left, top, right, bottom = BOX
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        shapes = [
            dict(label='dog', shape_type='polygon', points=corners),
            dict(label='cat', shape_type='rectangle', points=[[30, 10], [40, 20]]),
            dict(label='line', shape_type='line', points=[[0, 0], [9, 9]]),
        ]
        content = dict(shapes=shapes, imagePath=f'C:\\x\\{index}.jpg', imageWidth=48, imageHeight=32)
        (root / f'{index}.json').write_text(json.dumps(content))
    return root


def test_labelme_boxes(tmp_path: Path) -> None:
    root = write_labelme(tmp_path / 'data')
    data = read_detection(root, converted=convert(root, 'det', tmp_path / 'out', ''))
    assert data.classes == ['dog', 'cat']
    assert data.details['masks']
    boxes = [entry['bbox'] for part in data.details['contents'].values() for entry in part['annotations']]
    left, top, right, bottom = BOX
    assert boxes == [[left, top, right - left, bottom - top], [30, 10, 10, 10]] * 5
    assert len(data.splits['train']) == 4


def read_maps(root: Path, out: Path, classes: str | None = None) -> DataSet:
    """What lies outside of the outlines is no class."""
    return read_segmentation(
        root, answers=Answers(ignore=['0']), converted=convert(root, 'seg', out, '', None, classes)
    )


def test_labelme_maps(tmp_path: Path) -> None:
    root = write_labelme(tmp_path / 'data')
    data = read_segmentation(root, converted=convert(root, 'seg', tmp_path / 'out', ''))
    assert data.classes == ['background', 'dog', 'cat']
    assert '--background 0 confirms it' in '\n'.join(map(str, data.questions))  # nobody has said what lies outside
    assert set(np.unique(read_indices(data, data.details['pairs'][0])).tolist()) == {0, 1, 2}
    data = read_maps(root, tmp_path / 'out')
    assert data.classes == ['dog', 'cat']
    indices = read_indices(data, data.details['pairs'][0])
    left, top, right, bottom = BOX
    inside = np.zeros((32, 48), bool)
    inside[top + 1 : bottom, left + 1 : right] = True
    assert (indices[inside] == 0).all()
    assert set(np.unique(indices).tolist()) == {0, 1, 255}


def labelme(path: Path, shapes: list[dict], size: tuple[int, int] = (48, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dict(shapes=shapes, imagePath=f'{path.stem}.jpg', imageWidth=size[0], imageHeight=size[1])
    path.write_text(json.dumps(content))


def polygon(name: str, left: int = 2, top: int = 2, **more: object) -> dict:
    corners = [[left, top], [left + 10, top], [left + 10, top + 10], [left, top + 10]]
    return dict(label=name, shape_type='polygon', points=corners) | more


def test_labelme_has_the_folders_splits_and_the_users_order(tmp_path: Path) -> None:
    for split, count in (('train', 3), ('valid', 2), ('test', 1)):
        for index in range(count):
            image(tmp_path / 'data' / split / f'{split}{index}.jpg')
            labelme(tmp_path / 'data' / split / f'{split}{index}.json', [polygon('cat'), polygon('dog', 20)])
    root, expected = tmp_path / 'data', {'train': 3, 'val': 2, 'test': 1}
    detection = read_detection(root, converted=convert(root, 'det', tmp_path / 'det', '', classes='dog,cat'))
    maps = read_maps(root, tmp_path / 'seg', 'dog,cat')
    assert names(detection) == names(maps) == expected
    assert detection.classes == maps.classes == ['dog', 'cat']
    assert (read_indices(maps, maps.details['pairs'][0])[5, 5], has_outlines(root)) == (1, True)
    with pytest.raises(UserError, match='give the same names'):
        convert(root, 'seg', tmp_path / 'seg', '', classes='dog,bird')
    with pytest.raises(UserError, match='no values: give --classes'):
        convert(root, 'seg', tmp_path / 'seg', '', classes='dog=1,cat=2')


def test_labelme_of_other_sizes_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    for index in range(6):
        image(root / f'{index}.jpg')
        labelme(root / f'{index}.json', [polygon('cat'), polygon('dog', 20)], (96, 64) if index < 2 else (48, 32))
    for read, task in ((read_detection, 'det'), (read_segmentation, 'seg')):
        data = read(root, converted=convert(root, task, tmp_path / task, ''))
        assert 'differ in size' in notes(data, 'question')
        assert sum(names(data).values()) == 4


def test_labelme_is_drawn_on_the_picture_that_was_shown(tmp_path: Path) -> None:
    """LabelMe turns a picture as EXIF says, before anything is drawn."""
    root = tmp_path / 'data'
    for index in range(4):
        image(root / f'{index}.jpg', orientation=6)
        labelme(root / f'{index}.json', [polygon('cat', 2, 34), polygon('dog')], (32, 48))
    data = read_segmentation(root, converted=convert(root, 'seg', tmp_path / 'out', ''))
    assert not data.ignore_orientation
    indices = read_indices(data, data.details['pairs'][0])
    assert indices.shape == (48, 32)
    assert indices[40, 5] == data.classes.index('cat')


def test_labelme_shapes(tmp_path: Path) -> None:
    """Parts of a group are one object, turned rectangles are read, what is no class is none, the rest is counted."""
    root = tmp_path / 'data'
    shapes = [
        *(polygon('cat', group_id=1), polygon('cat', 20, group_id=1)),
        *(polygon('dog', 2, 18, shape_type='rectangle'), polygon('dog', 18, 18, shape_type='rotation')),
        *(polygon('__ignore__', 36, 18), polygon('fish', shape_type='mask')),
    ]
    for index in range(4):
        image(root / f'{index}.jpg')
        labelme(root / f'{index}.json', shapes)
    (root / 'x.json').write_text('{"shapes": [')
    data = read_detection(root, converted=convert(root, 'det', tmp_path / 'det', ''))
    assert dict(zip(data.classes, data.counts, strict=True)) == {'cat': 4, 'dog': 8}
    maps = read_maps(root, tmp_path / 'seg')
    assert maps.classes == ['cat', 'dog']
    assert read_indices(maps, maps.details['pairs'][0])[25, 40] == 255
    for asked in (notes(data), notes(maps)):
        assert 'shapes enclose nothing that is read here (4 mask)' in asked
        assert "1 JSON files beside LabelMe's cannot be read and are left out" in asked
    assert '4 shapes are called __ignore__' in notes(data)


def test_without_datumaro_the_way_to_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('MMPELK_DATUMARO_PYTHON', raising=False)
    monkeypatch.setattr('own_data.foreign._ENVIRONMENT', tmp_path / 'none')
    with pytest.raises(UserError, match=r'no label map\. Datumaro .*pip install -r .*requirements/own_data\.txt'):
        convert(tmp_path, 'seg', tmp_path / 'out', 'no label map')


FORMATS = [
    *(('det', name) for name in ('yolo', 'yolo_ultralytics', 'voc_detection', 'cvat', 'label_me', 'datumaro')),
    *(('det', name) for name in ('coco_instances', 'open_images', 'wider_face', 'mot_seq_gt')),
    *(('seg', name) for name in ('voc_segmentation', 'camvid', 'cvat', 'coco_instances', 'datumaro', 'label_me')),
    *(
        ('cls', name)
        for name in ('imagenet_txt', 'voc_classification', 'cifar', 'datumaro', 'imagenet_with_subset_dirs')
    ),
]


@pytest.fixture(scope='module')
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('exported')
    words = [f'{task}:{name}' for task, name in FORMATS]
    subprocess.run([PYTHON, '-c', EXPORT, str(out), *words], check=True, capture_output=True)
    return out


def train(data: DataSet, out: Path) -> None:
    """Two iterations with the config that is written."""
    new_project.answer(data, yes=True)
    config = write_project(data, make_plan(data, Machine(), batch_size=2), out / 'mine')
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    samples = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(samples) == len(data.splits['train'])
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for start in (0, 2):
        losses = model.train_step(pseudo_collate([samples[start], samples[(start + 1) % len(samples)]]), optimizer)
        assert torch.isfinite(losses['loss'])
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@needs_datumaro
@pytest.mark.slow
@pytest.mark.parametrize(('task', 'name'), FORMATS, ids=lambda value: value)
def test_formats_of_datumaro(
    task: str, name: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported by it and read by the command: the same boxes, pixels, classes and split; and trained."""
    monkeypatch.setenv('MMPELK_DATUMARO_PYTHON', PYTHON)
    command = ['new_project.py', 'mine', '--task', task, '--data', str(exported / f'{task} {name}')]
    monkeypatch.setattr(sys, 'argv', command)
    data = new_project.read(new_project.parse_args(), tmp_path / 'out')
    number = lambda path: int(Path(path).stem.removesuffix('_leftImg8bit')[-1]) - (name == 'mot_seq_gt')  # noqa: E731
    if name != 'mot_seq_gt':
        assert {split: sorted(map(number, names)) for split, names in data.splits.items()} == {
            'train': [0, 1, 2, 3],
            'val': [4, 5],
        }
    left, top, right, bottom = BOX
    if task == 'det':
        for part in data.details['contents'].values():
            names = {entry['id']: number(entry['file_name']) for entry in part['images']}
            for entry in part['annotations']:
                index = names[entry['image_id']]
                want = [left + index, top, right - left - index, bottom - top]
                assert np.abs(np.subtract(entry['bbox'], want)).max() <= 1.01  # corners are rounded by some
                assert {each['id']: each['name'] for each in part['categories']}[entry['category_id']] in (
                    'dog',
                    'face',
                )
    elif task == 'seg':
        for pair in data.details['pairs']:
            want = np.zeros((32, 48), bool)
            want[top:bottom, left + number(pair.image) : right] = True
            assert ((read_indices(data, pair) == data.classes.index('dog')) != want).mean() < 0.02  # outlines
    else:
        assert {number(path): data.classes[index] for path, index in data.details['labels'].items()} == {
            index: ('background', 'dog')[index % 2] for index in range(6)
        }
    train(data, tmp_path)


@needs_datumaro
@pytest.mark.slow
@pytest.mark.parametrize(('task', 'name', 'said'), [
    ('det', 'cvat', '2 objects are of a kind that is not read here (polyline)'),
    ('cls', 'imagenet_txt', '1 pictures are not there'),
])  # fmt: skip
def test_what_is_left_out_of_other_formats_is_told(
    task: str, name: str, said: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MMPELK_DATUMARO_PYTHON', PYTHON)
    root = shutil.copytree(exported / f'{task} {name}', tmp_path / 'data')
    line = '<polyline label="dog" occluded="0" points="1,1;5,5" z_order="0"></polyline></image>'
    for path in root.rglob('*.xml'):
        path.write_text(path.read_text().replace('</image>', line, 1))
    if task == 'cls':
        (root / 'images' / 'im3.jpg').unlink()
    reader = read_detection if task == 'det' else read_classification
    assert said in notes(reader(root, converted=convert(root, task, tmp_path / 'out', '')))


def read(task: str, root: Path, out: Path, classes: str | None = None) -> DataSet:
    converted = convert(root, task, out, '', classes=classes)
    if task == 'seg':
        return read_segmentation(root, classes, answers=Answers(background='0'), converted=converted)
    return read_detection(root, converted=converted, classes=classes)


# A box of the class 1 as shares of 48 x 32, and its corners.
YOLO = {'box': '1 0.5 0.5 0.25 0.5', 'polygon': '1 0.375 0.25 0.625 0.25 0.625 0.75 0.375 0.75'}
YAML = 'names: [cat, dog]\ntrain: ../train/images\nval: C:\\\\me\\valid\\images\n'


def write_yolo(root: Path, images: str, labels: str, line: str, count: int = 4) -> None:
    for index in range(count):
        image(root / images / f'{images[:2]}{index}.jpg')
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f'{images[:2]}{index}.txt').write_text(f'\ufeff{line}\r\n\r\n')


@pytest.mark.parametrize('task', ['det', 'seg'])
@pytest.mark.parametrize('shape', YOLO)
@pytest.mark.parametrize('layout', ['coco128', 'roboflow', 'darknet'])
def test_yolo(layout: str, shape: str, task: str, tmp_path: Path) -> None:
    root, classes, expected = tmp_path / 'data', None, {'train': 4, 'val': 2, 'test': 1}
    if layout == 'coco128':
        write_yolo(root, 'images/train2017', 'labels/train2017', YOLO[shape])
        classes, expected = 'cat,dog', {'train': 3, 'val': 1}
    elif layout == 'roboflow':
        for split, count in (('train', 4), ('valid', 2)):
            write_yolo(root, f'{split}/images', f'{split}/labels', YOLO[shape], count)
        image(root / 'test' / 'images' / '0.jpg')  # has no label
        (root / 'data.yaml').write_text(YAML)
        expected = {'train': 4, 'val': 2}
    else:
        write_yolo(root, 'data', 'data', YOLO[shape], 7)
        (root / 'data' / 'classes.txt').write_text('cat\ndog\n')
        for split, numbers in (('train', '0123'), ('val', '45'), ('test', '6')):
            (root / f'{split}.txt').write_text(''.join(f'/home/me/data/da{number}.jpg\n' for number in numbers))
    if (shape, task) == ('box', 'seg'):
        with pytest.raises(UserError, match='no outlines: --task det'):
            read(task, root, tmp_path / 'out', classes)
        return
    data = read(task, root, tmp_path / 'out', classes)
    assert data.classes == ['cat', 'dog'] if task == 'det' else ['background', 'cat', 'dog']
    assert names(data) == expected
    if task == 'det':
        assert data.counts == [0, sum(expected.values())]
        assert data.details['masks'] is (shape == 'polygon')
        boxes = [entry['bbox'] for part in data.details['contents'].values() for entry in part['annotations']]
        assert np.allclose(boxes, [18, 8, 12, 16])
    else:
        indices = read_indices(data, data.details['pairs'][0])
        assert {data.classes[value] for value in np.unique(indices)} == {'background', 'dog'}
        assert (indices[9:24, 19:30] == data.classes.index('dog')).all()
        assert (indices == data.classes.index('dog')).mean() == pytest.approx(12 * 16 / (48 * 32), rel=0.2)  # edges


@pytest.mark.slow
@pytest.mark.parametrize(
    ('form', 'task'), [('LabelMe', 'det'), ('LabelMe', 'seg'), ('YOLO', 'det'), ('YOLO', 'seg'), ('Pascal VOC', 'det')]
)
def test_outlines_are_trained(form: str, task: str, tmp_path: Path) -> None:
    root = tmp_path / 'data'
    if form == 'LabelMe':
        write_labelme(root)
    elif form == 'YOLO':
        write_yolo(root, 'images', 'labels', YOLO['polygon'])
    else:
        for index in range(5):
            image(root / f'{index}.jpg')
            write_voc(root / f'{index}.xml', 'cat', f'{index}.jpg')
    train(read(task, root, tmp_path / 'out'), tmp_path)


@pytest.mark.parametrize(('line', 'names', 'message'), [
    ('2 .5 .5 .2 .2', 'names: [cat, dog]', 'have the class 2, but 2 names'),
    ('0 .5 .5 .2 .2 .9', 'names: [cat]', 'line 1 of .* has 6 numbers: .* confidence'),
    ('0 20 20 10 10', 'names: [cat]', 'beyond 0 to 1'),
    ('0 .5 .5 .2 .2\ncat .5 .5 .2 .2', 'names: [cat]', 'line 2 of .* is not one of a YOLO label file'),
    ('0 .5 .5 .2 nan', 'names: [cat]', 'no annotations'),
    ('0 .5 .5 .2 .2', 'names: [cat]\nkpt_shape: [3, 2]', 'key points'),
    ('0 .5 .5 .2 .2', 'names: {1: cat}', 'not numbered 0, 1, 2'),
    ('0 .5 .5 .2 .2', 'names: [cat', 'is damaged'),
    ('0 .5 .5 .2 .2', 'names: coco.names', 'where YOLO has a list of them'),
    ('0 .5 .5 .2 .2', 'names: [cat]\nnc: 2', 'has 1 names for nc: 2'),
    ('0 .5 .5 .2 .2', 'names: [cat]\nval: none.txt', "names the list 'none.txt', which is not in"),
])  # fmt: skip
def test_yolo_that_means_something_else_is_refused(
    line: str, names: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('MMPELK_DATUMARO_PYTHON', raising=False)
    monkeypatch.setattr('own_data.foreign._ENVIRONMENT', tmp_path / 'none')
    write_yolo(tmp_path / 'data', 'images', 'labels', line)
    (tmp_path / 'data' / 'data.yaml').write_text(names)
    with pytest.raises(UserError, match=message):
        convert(tmp_path / 'data', 'det', tmp_path / 'out', 'no annotations')


def test_yolo_has_the_splits_of_its_yaml(tmp_path: Path) -> None:
    """Folders whose names say nothing or something else, and lists."""
    write_yolo(tmp_path / 'folders', 'images/a', 'labels/a', YOLO['box'], 3)
    write_yolo(tmp_path / 'folders', 'images/test', 'labels/test', YOLO['box'], 2)
    (tmp_path / 'folders' / 'data.yaml').write_text('names: [cat, dog]\ntrain: ../images/a\nval: [images/test]\n')
    write_yolo(tmp_path / 'lists', 'images', 'labels', YOLO['box'], 5)
    (tmp_path / 'lists' / 'data.yaml').write_text('names: [cat, dog]\ntrain: ./some.txt\nval: others.txt\n')
    (tmp_path / 'lists' / 'some.txt').write_text('./images/im0.jpg\nimages/im1.jpg\n')
    (tmp_path / 'lists' / 'others.txt').write_text('C:\\\\me\\images\\im2.jpg\n/me/images/im3.jpg\n')
    for root, expected in (('folders', (3, 2)), ('lists', (2, 2))):
        data = read('det', tmp_path / root, tmp_path / 'out')
        assert (len(data.splits['train']), len(data.splits['val'])) == expected
    (tmp_path / 'lists' / 'other.yaml').write_text('names: [dog, cat]')
    with pytest.raises(UserError, match='name other classes: keep one'):
        read('det', tmp_path / 'lists', tmp_path / 'out')


def test_numbered_names_of_yolo(tmp_path: Path) -> None:
    write_yolo(tmp_path / 'data', 'images', 'labels', YOLO['box'])
    (tmp_path / 'data' / 'classes.txt').write_text('0 cat\n1 dog\n')
    assert read('det', tmp_path / 'data', tmp_path / 'out').classes == ['cat', 'dog']
    (tmp_path / 'data' / 'classes.txt').write_text('1 cat\n2 dog\n')
    with pytest.raises(UserError, match='is not numbered 0, 1, 2'):
        read('det', tmp_path / 'data', tmp_path / 'out')


def test_small_outlines_lie_on_large_ones(tmp_path: Path) -> None:
    write_yolo(tmp_path / 'data', 'images', 'labels', f'0 .45 .45 .55 .45 .55 .55 .45 .55\n{YOLO["polygon"]}')
    data = read('seg', tmp_path / 'data', tmp_path / 'out')
    assert min(data.counts) > 0


def test_folders_beside_the_splits_are_a_question(tmp_path: Path) -> None:
    for split in ('train', 'val', 'holdout'):
        write_yolo(tmp_path / 'data', f'images/{split}', f'labels/{split}', YOLO['box'], 2)
    said = convert(tmp_path / 'data', 'det', tmp_path / 'out', '')['said']
    assert any(kind == 'question' and 'images/holdout' in text for kind, text in said)


def test_labels_of_another_picture_and_covered_ones_are_questions(tmp_path: Path) -> None:
    for index in range(3):
        image(tmp_path / 'voc' / f'{index}.jpg')
        write_voc(tmp_path / 'voc' / f'{index}.xml', 'cat', f'{(index + 1) % 3}.jpg')
        image(tmp_path / 'labelme' / f'{index}.jpg')
        labelme(tmp_path / 'labelme' / f'{index}.json', [polygon('cat'), polygon('dog')])
    said = convert(tmp_path / 'voc', 'det', tmp_path / 'out', '')['said']
    assert any(kind == 'question' and '0.xml names 1' in text for kind, text in said)
    said = convert(tmp_path / 'labelme', 'seg', tmp_path / 'out', '')['said']
    assert any(
        kind == 'question' and 'in 3 pictures the outlines of a class are covered' in text for kind, text in said
    )
    labelme(tmp_path / 'labelme' / '0.json', [polygon('cat', 44)])
    (tmp_path / 'labelme' / '1.json').unlink()
    (tmp_path / 'labelme' / '2.json').unlink()
    found = convert(tmp_path / 'labelme', 'seg', tmp_path / 'out', '')
    assert any(kind == 'question' and 'outlines reach out of the picture' in text for kind, text in found['said'])
    assert ["pictures have no file of LabelMe's", ['1.jpg', '2.jpg'], 3] in found['left_out']


def test_labels_in_two_formats_are_a_question(tmp_path: Path) -> None:
    write_yolo(tmp_path / 'data', 'images', 'labels', YOLO['box'])
    write_voc(tmp_path / 'data' / 'images' / 'im0.xml', 'cat', 'im0.jpg')
    said = convert(tmp_path / 'data', 'det', tmp_path / 'out', '')['said']
    assert any(kind == 'question' and 'YOLO and Pascal VOC' in text for kind, text in said)


def test_pictures_without_a_label_file_are_left_out(tmp_path: Path) -> None:
    """An empty file says that there is no object."""
    root = tmp_path / 'data'
    write_yolo(root, 'images', 'labels', YOLO['polygon'], 6)
    (root / 'labels' / 'im0.txt').unlink()
    (root / 'labels' / 'im1.txt').write_text('')
    data = read('seg', root, tmp_path / 'out')
    assert sum(names(data).values()) == 5
    assert '1 pictures have no label file' in notes(data, 'mistake')
    (root / 'data.yaml').write_text('names: [cat, dog]')
    with pytest.raises(UserError, match=r'indices into the names of .* cat, dog; no --classes'):
        read('seg', root, tmp_path / 'out', 'dog,cat')


def write_voc(path: Path, name: str, file: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    box = '<xmin>5</xmin><ymin>6.0</ymin><xmax>25</xmax><ymax>20</ymax>'
    objects = f'<object><name>{name}</name><part><name>x</name></part><bndbox>{box}</bndbox></object>'
    size = '<size><width>48</width><height>32</height><depth>3</depth></size>'
    path.write_text(f'<annotation><filename>{file}</filename>{size}{objects}</annotation>')


@pytest.mark.parametrize('layout', ['voc', 'voc with lists', 'kaggle', 'roboflow'])
def test_pascal_voc(layout: str, tmp_path: Path) -> None:
    """Such as blood cells: other classes than Pascal VOC's, in its folders, in others, and beside the pictures."""
    root = tmp_path / 'data'
    for index in range(5):
        images, xmls = ('JPEGImages', 'Annotations') if 'voc' in layout else ('images', 'annotations')
        if layout == 'roboflow':
            images = xmls = ('train', 'train', 'valid', 'test', 'test')[index]
        image(root / images / f'{index}.jpg')
        write_voc(root / xmls / f'{index}.xml', 'RBC' if index else 'WBC', f'{index}.jpg')
    expected = (
        {'train': 2, 'val': 1, 'test': 2} if 'lists' in layout or layout == 'roboflow' else {'train': 4, 'val': 1}
    )
    if layout == 'voc with lists':
        (root / 'ImageSets' / 'Main').mkdir(parents=True)
        for split, listed in dict(train='0 1', val='2', test='3 4', trainval='0 1 2').items():
            (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(listed.split()))
    data = read('det', root, tmp_path / 'out')
    assert data.classes == ['RBC', 'WBC']
    assert (data.counts, names(data)) == ([4, 1], expected)
    boxes = [entry['bbox'] for part in data.details['contents'].values() for entry in part['annotations']]
    assert boxes == [[5, 6, 20, 14]] * 5
    assert read('det', root, tmp_path / 'out', 'WBC,RBC').classes == ['WBC', 'RBC']
    with pytest.raises(UserError, match='no outlines: --task det'):
        read('seg', root, tmp_path / 'out')


def test_an_xml_of_several_pictures_is_refused(tmp_path: Path) -> None:
    for folder in ('a', 'b'):
        image(tmp_path / 'data' / folder / '0.jpg')
    write_voc(tmp_path / 'data' / 'Annotations' / '0.xml', 'cat', '0.jpg')
    with pytest.raises(UserError, match=r'may belong to a/0.jpg or to b/0.jpg'):
        read('det', tmp_path / 'data', tmp_path / 'out')


@needs_datumaro
@pytest.mark.slow
def test_what_nobody_reads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMPELK_DATUMARO_PYTHON', PYTHON)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'x.txt').write_text('nothing')
    with pytest.raises(UserError, match=r'Datumaro does not read .* --format NAME'):
        convert(tmp_path / 'data', 'det', tmp_path / 'out', 'no annotations')


def test_the_converter_stands_alone() -> None:
    """It runs where nothing of this project is installed."""
    source = (ROOT / 'tools' / 'own_data' / 'convert.py').read_text()
    assert 'mmpelk' not in source
    assert 'from .' not in source
    assert sys.version_info >= (3, 10)
