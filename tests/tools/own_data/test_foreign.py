"""Other formats: LabelMe's JSON here, the rest by Datumaro, whose environment these tests may find or not."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from PIL import Image

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


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Datumaro."""
    monkeypatch.delenv('MMPELK_DATUMARO_PYTHON', raising=False)
    monkeypatch.setattr('own_data.foreign._ENVIRONMENT', tmp_path / 'none')


def labelme(path: Path, shapes: list[dict], size: tuple[int, int] = (48, 32), orientation: int | None = None) -> None:
    """A picture and LabelMe's file of it, which was written on another machine."""
    image(path.with_suffix('.jpg'), orientation=orientation)
    content = dict(shapes=shapes, imagePath=f'C:\\x\\{path.stem}.jpg', imageWidth=size[0], imageHeight=size[1])
    path.write_text(json.dumps(content), encoding='utf-8')


def polygon(name: str, left: int = 2, top: int = 2, right: int = 0, bottom: int = 0, **more: object) -> dict:
    """A rectangle by its corners, of 10 x 10 if nothing else is said."""
    right, bottom = right or left + 10, bottom or top + 10
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return dict(label=name, shape_type='polygon', points=corners) | more


def write_labelme(root: Path, count: int = 5) -> None:
    shapes = [
        polygon('dog', *BOX),
        dict(label='cat', shape_type='rectangle', points=[[30, 10], [40, 20]]),
        dict(label='line', shape_type='line', points=[[0, 0], [9, 9]]),
    ]
    for index in range(count):
        labelme(root / f'{index}.json', shapes)


def read(task: str, root: Path, classes: str | None = None, answers: Answers | None = None) -> DataSet:
    """By our own converter; in maps, what lies outside of the outlines is the background unless it is answered."""
    converted = convert(root, task, root.with_name(f'{root.name} as {task}'), '', classes=classes)
    if task == 'det':
        return read_detection(root, converted=converted, classes=classes)
    return read_segmentation(root, answers=answers or Answers(background='0'), converted=converted)


def read_maps(root: Path, classes: str | None = None) -> DataSet:
    """What lies outside of the outlines is no class."""
    return read('seg', root, classes, Answers(ignore=['0']))


def boxes_of(data: DataSet) -> list[list[float]]:
    return [entry['bbox'] for part in data.details['contents'].values() for entry in part['annotations']]


def first_map(data: DataSet) -> np.ndarray:
    return read_indices(data, data.details['pairs'][0])


def test_labelme(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    write_labelme(root)
    left, top, right, bottom = BOX
    data = read('det', root)
    assert data.classes == ['dog', 'cat']
    assert data.details['masks']
    assert boxes_of(data) == [[left, top, right - left, bottom - top], [30, 10, 10, 10]] * 5
    assert len(data.splits['train']) == 4
    data = read('seg', root, answers=Answers())
    assert data.classes == ['background', 'dog', 'cat']
    assert '--background 0 confirms it' in notes(data, 'question')  # nobody has said what lies outside
    assert set(np.unique(first_map(data)).tolist()) == {0, 1, 2}
    data = read_maps(root)
    assert data.classes == ['dog', 'cat']
    assert (first_map(data)[top + 1 : bottom, left + 1 : right] == 0).all()
    assert set(np.unique(first_map(data)).tolist()) == {0, 1, 255}


@pytest.mark.usefixtures('all_that_is_read')
def test_labelme_has_the_folders_splits_and_the_users_order(tmp_path: Path) -> None:
    root, expected = tmp_path / 'data', {'train': 3, 'val': 2, 'test': 1}
    for split, count in (('train', 3), ('valid', 2), ('test', 1)):
        for index in range(count):
            labelme(root / split / f'{split}{index}.json', [polygon('cat'), polygon('dog', 20)])
    detection, maps = read('det', root, 'dog,cat'), read_maps(root, 'dog,cat')
    assert names(detection) == names(maps) == expected
    assert detection.classes == maps.classes == ['dog', 'cat']
    assert (first_map(maps)[5, 5], has_outlines(root)) == (1, True)
    for classes, said in (('dog,bird', 'give the same names'), ('dog=1,cat=2', 'no values: give --classes')):
        with pytest.raises(UserError, match=said):
            read_maps(root, classes)


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_labelme_of_other_sizes_is_left_out(task: str, tmp_path: Path) -> None:
    for index in range(6):
        size = (96, 64) if index < 2 else (48, 32)
        labelme(tmp_path / 'data' / f'{index}.json', [polygon('cat'), polygon('dog', 20)], size)
    data = read(task, tmp_path / 'data', answers=Answers())
    assert 'differ in size' in notes(data, 'question')
    assert sum(names(data).values()) == 4


@pytest.mark.parametrize('size', [(32, 48), (None, None)])
def test_labelme_is_drawn_on_the_picture_that_was_shown(size: Any, tmp_path: Path) -> None:
    """LabelMe turns a picture as EXIF says, before anything is drawn; some writers leave its size out."""
    for index in range(4):
        labelme(tmp_path / 'data' / f'{index}.json', [polygon('cat', 2, 34), polygon('dog')], size, orientation=6)
    data = read('seg', tmp_path / 'data', answers=Answers())
    assert not data.ignore_orientation
    assert first_map(data).shape == (48, 32)
    assert first_map(data)[40, 5] == data.classes.index('cat')


@pytest.mark.parametrize('name', ['background', '_Background_'])
def test_outlines_of_the_background_are_what_lies_outside_of_all(name: str, tmp_path: Path) -> None:
    for index in range(4):
        labelme(tmp_path / 'data' / f'{index}.json', [polygon('cat'), polygon(name, 20)])
    data = read('seg', tmp_path / 'data', answers=Answers())
    assert (data.classes, data.unlabelled) == (['cat', name], 0)
    assert [first_map(data)[5, column] for column in (5, 25, 45)] == [0, 1, 1]
    assert not data.questions


@pytest.mark.usefixtures('all_that_is_read')
def test_labelme_shapes(tmp_path: Path) -> None:
    """Parts of a group and class are one object, turned rectangles are read, no class is none, the rest is counted."""
    shapes = [
        *(polygon('cat', group_id=0), polygon('cat', 20, group_id=0)),
        *(polygon('dog', 2, 18, shape_type='rectangle', group_id=0), polygon('dog', 18, 18, shape_type='rotation')),
        *(polygon('__ignore__', 36, 18), polygon('fish', shape_type='mask')),
        dict(label='ball', points=[[36, 8], [36, 14]], shape_type='circle'),  # its centre, and a point on it
    ]
    for index in range(4):
        labelme(tmp_path / 'data' / f'{index}.json', shapes)
    (tmp_path / 'data' / 'x.json').write_text('{"shapes": [')
    data, maps = read('det', tmp_path / 'data'), read_maps(tmp_path / 'data')
    assert dict(zip(data.classes, data.counts, strict=True)) == {'cat': 4, 'dog': 8, 'ball': 4}
    assert maps.classes == ['cat', 'dog', 'ball']
    ball = [each['bbox'] for part in data.details['contents'].values() for each in part['annotations']][-1]
    assert ball == pytest.approx([30, 2, 12, 12])
    assert (first_map(maps) == 2).sum() == pytest.approx(np.pi * 6**2, rel=0.3)
    assert first_map(maps)[25, 40] == 255
    for asked in (notes(data), notes(maps)):
        assert 'shapes enclose nothing that is read here (4 mask)' in asked
        assert "1 JSON files beside LabelMe's cannot be read and are left out" in asked
    assert '4 shapes are called __ignore__' in notes(data)


@pytest.mark.usefixtures('alone')
def test_without_datumaro_the_way_to_it_is_told(tmp_path: Path) -> None:
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


# A box of the class 1 as shares of 48 x 32, and its corners.
YOLO = {'box': '1 .5 +5.E-1 25e-02 0.5', 'polygon': '1 0.375 0.25 0.625 0.25 0.625 0.75 0.375 0.75'}
YAML = 'names: [cat, dog]\ntrain: ../train/images\nval: C:\\\\me\\valid\\images\n'


def write_yolo(root: Path, images: str, labels: str, line: str, count: int = 4) -> None:
    for index in range(count):
        image(root / images / f'{images[:2]}{index}.jpg')
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f'{images[:2]}{index}.txt').write_text(f'\ufeff{line}\r\n\r\n')


@pytest.mark.parametrize('task', ['det', 'seg'])
@pytest.mark.parametrize('shape', YOLO)
@pytest.mark.parametrize('layout', ['coco128', 'roboflow', 'darknet'])
@pytest.mark.usefixtures('all_that_is_read')
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
            read(task, root, classes)
        return
    data = read(task, root, classes)
    assert data.classes == (['cat', 'dog'] if task == 'det' else ['background', 'cat', 'dog'])
    assert names(data) == expected
    if task == 'det':
        assert data.counts == [0, sum(expected.values())]
        assert data.details['masks'] is (shape == 'polygon')
        assert np.allclose(boxes_of(data), [18, 8, 12, 16])
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
        write_voc(root, range(5))
    train(read(task, root), tmp_path)


# A line of a label file, and the YAML file or others.
MISREAD: dict[str, tuple[str, Any]] = {
    'class beyond the names': ('2 .5 .5 .2 .2', 'names: [cat, dog]'),
    'confidence': ('0 .5 .5 .2 .2 .9', 'names: [cat]'),
    'pixels': ('0 20 20 10 10', 'names: [cat]'),
    'word': ('0 .5 .5 .2 .2\ncat .5 .5 .2 .2', 'names: [cat]'),
    'no number': ('0 .5 .5 .2 nan', 'names: [cat]'),
    'key points': ('0 .5 .5 .2 .2', 'names: [cat]\nkpt_shape: [3, 2]'),
    'three corners and a half': ('0 .1 .1 .2 .1 .2 .2 .3', 'names: [cat]'),
    'numbers of names': ('0 .5 .5 .2 .2', 'names: {1: cat}'),
    'order of names': ('0 .5 .5 .2 .2', 'names: {1: dog, 0: cat}'),
    'damaged': ('0 .5 .5 .2 .2', 'names: [cat'),
    'names in a file': ('0 .5 .5 .2 .2', 'names: coco.names'),
    'number of names': ('0 .5 .5 .2 .2', 'names: [cat]\nnc: 2'),
    'list that is missing': ('0 .5 .5 .2 .2', 'names: [cat]\nval: none.txt'),
    'numbers in the list': ('0 .5 .5 .2 .2', {'classes.txt': '1 cat\n2 dog\n'}),
    'two files': ('0 .5 .5 .2 .2', {'a.yaml': 'names: [cat, dog]', 'b.yaml': 'names: [dog, cat]'}),
}


@pytest.mark.parametrize(('line', 'files'), MISREAD.values(), ids=MISREAD)
@pytest.mark.usefixtures('alone')
def test_yolo_that_means_something_else_is_refused(line: str, files: Any, tmp_path: Path, refuses: Any) -> None:
    write_yolo(tmp_path / 'data', 'images', 'labels', line)
    for name, text in ({'data.yaml': files} if isinstance(files, str) else files).items():
        (tmp_path / 'data' / name).write_text(text)
    with refuses():
        convert(tmp_path / 'data', 'det', tmp_path / 'out', 'no annotations')


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'cp1252'])
@pytest.mark.parametrize('file', ['classes.txt', 'data.yaml', 'train.txt'])
def test_texts_of_other_encodings_are_read_right_or_refused(file: str, encoding: str, tmp_path: Path) -> None:
    """UTF-16 is what Windows calls Unicode; of what has no mark nothing is guessed."""
    root = tmp_path / 'data'
    write_yolo(root, 'images', 'labels', YOLO['box'], 4)
    texts = {'classes.txt': 'Straße\ndog\n', 'data.yaml': 'names: [Straße, dog]', 'train.txt': 'im0\nim1\nim2\nß\n'}
    for name in (file, *(['classes.txt'] if file == 'train.txt' else [])):
        (root / name).write_bytes(texts[name].encode(encoding if name == file else 'utf-8'))
    if encoding == 'cp1252':
        with pytest.raises(UserError, match=rf'{file}. is no text in UTF-8: save it in that encoding$'):
            read('det', root)
        return
    data = read('det', root)
    assert (data.classes, sum(names(data).values())) == (['Straße', 'dog'], 3 if file == 'train.txt' else 4)
    assert file != 'train.txt' or 'ß' in notes(data, 'mistake')


@pytest.mark.usefixtures('all_that_is_read')
def test_yolo_has_the_splits_of_its_yaml(tmp_path: Path) -> None:
    """Folders whose names say nothing or something else, and lists."""
    folders, lists = tmp_path / 'folders', tmp_path / 'lists'
    write_yolo(folders, 'images/a', 'labels/a', YOLO['box'], 3)
    write_yolo(folders, 'images/test', 'labels/test', YOLO['box'], 2)
    (folders / 'data.yaml').write_text('names: [cat, dog]\ntrain: ../images/a\nval: [images/test]\n')
    write_yolo(lists, 'images', 'labels', YOLO['box'], 5)
    (lists / 'data.yaml').write_text('names: [cat, dog]\ntrain: ./some.txt\nval: others.txt\n')
    (lists / 'some.txt').write_text('./images/im0.jpg\nimages/im1.jpg\n')
    (lists / 'others.txt').write_text('C:\\\\me\\images\\im2.jpg\n/me/images/im3.jpg\n')
    assert names(read('det', folders)) == {'train': 3, 'val': 2}
    assert names(read('det', lists)) == {'train': 2, 'val': 2}


def test_yolo_by_names_with_numbers_and_without_a_file(tmp_path: Path) -> None:
    """An empty file says that there is no object; small outlines lie on large ones."""
    root = tmp_path / 'data'
    write_yolo(root, 'images', 'labels', f'0 .45 .45 .55 .45 .55 .55 .45 .55\n{YOLO["polygon"]}', 6)
    (root / 'classes.txt').write_text('0 cat\n1 dog\n')
    assert read('det', root).classes == ['cat', 'dog']
    assert min(read('seg', root).counts[1:]) > 0
    (root / 'labels' / 'im0.txt').unlink()
    (root / 'labels' / 'im5.txt').write_text('')
    data = read('seg', root)
    assert sum(names(data).values()) == 5
    assert '1 pictures have no label file' in notes(data, 'mistake')
    (root / 'data.yaml').write_text('names: [cat, dog]')
    with pytest.raises(UserError, match=r'indices into the names of .* cat, dog; no --classes'):
        read('seg', root, 'dog,cat')


def write_voc(
    root: Path, numbers: range, images: str = '{i}.jpg', xmls: str = '{i}.xml', of: Callable[[int], int] = int
) -> None:
    """Pictures and Pascal VOC's files of them: a WBC in the first, an RBC in each of the others.

    Args:
        root: The folder.
        numbers: Of the pictures.
        images: Paths of the pictures, with ``{i}`` for the number.
        xmls: Of the files.
        of: Number of the picture that a file names.
    """
    box = '<xmin>5</xmin><ymin>6.0</ymin><xmax>25</xmax><ymax>20</ymax>'
    size = '<size><width>48</width><height>32</height><depth>3</depth></size>'
    for i in numbers:
        image(root / images.format(i=i))
        (root / xmls.format(i=i)).parent.mkdir(parents=True, exist_ok=True)
        named = f'<name>{"RBC" if i else "WBC"}</name><part><name>x</name></part>'
        text = f'<filename>{of(i)}.jpg</filename>{size}<object>{named}<bndbox>{box}</bndbox></object>'
        (root / xmls.format(i=i)).write_text(f'<annotation>{text}</annotation>')


@pytest.mark.parametrize('layout', ['voc', 'voc with lists', 'kaggle', 'roboflow'])
@pytest.mark.usefixtures('all_that_is_read')
def test_pascal_voc(layout: str, tmp_path: Path) -> None:
    """Such as blood cells: other classes than Pascal VOC's, in its folders, in others, and beside the pictures."""
    root, expected = tmp_path / 'data', {'train': 4, 'val': 1}
    if layout == 'roboflow':
        for split, numbers in (('train', range(2)), ('valid', range(2, 3)), ('test', range(3, 5))):
            write_voc(root, numbers, split + '/{i}.jpg', split + '/{i}.xml')
    else:
        images, xmls = ('images', 'annotations') if layout == 'kaggle' else ('JPEGImages', 'Annotations')
        write_voc(root, range(5), images + '/{i}.jpg', xmls + '/{i}.xml')
    if layout == 'voc with lists':
        (root / 'ImageSets' / 'Main').mkdir(parents=True)
        for split, listed in dict(train='0 1', val='2', test='3 4', trainval='0 1 2').items():
            (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(listed.split()))
    if layout in ('voc with lists', 'roboflow'):
        expected = {'train': 2, 'val': 1, 'test': 2}
    data = read('det', root)
    assert (data.classes, data.counts, names(data)) == (['RBC', 'WBC'], [4, 1], expected)
    assert boxes_of(data) == [[5, 6, 20, 14]] * 5
    assert read('det', root, 'WBC,RBC').classes == ['WBC', 'RBC']
    with pytest.raises(UserError, match='no outlines: --task det'):
        read('seg', root)


@pytest.mark.parametrize('folders', ['ab', ('train', 'val')])
def test_an_xml_of_several_pictures_is_refused(tmp_path: Path, folders: Sequence[str]) -> None:
    write_voc(tmp_path / 'data', range(1), folders[0] + '/{i}.jpg', 'Annotations/{i}.xml')
    image(tmp_path / 'data' / folders[1] / '0.jpg')
    with pytest.raises(UserError, match=rf'may belong to {folders[0]}/0.jpg or to {folders[1]}/0.jpg'):
        read('det', tmp_path / 'data')


def two_formats(root: Path) -> None:
    write_yolo(root, 'images', 'labels', YOLO['box'])
    write_voc(root, range(1), 'images/im{i}.jpg', 'images/im{i}.xml')


def covered(root: Path) -> None:
    for index in range(3):
        labelme(root / f'{index}.json', [polygon('cat'), polygon('dog')])


def beyond_the_picture(root: Path) -> None:
    labelme(root / '0.json', [polygon('cat', 44)])
    for index in (1, 2):
        image(root / f'{index}.jpg')


ASKED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    'beside the splits': (
        lambda root: [write_yolo(root, f'images/{split}', f'labels/{split}', YOLO['box'], 2)
                      for split in ('train', 'val', 'holdout')],
        'det', 'images/holdout'),
    'another picture': (lambda root: write_voc(root, range(3), of=lambda i: (i + 1) % 3), 'det', '0.xml names 1'),
    'covered': (covered, 'seg', 'in 3 pictures the outlines of a class are covered'),
    'beyond the picture': (beyond_the_picture, 'seg', 'outlines reach out of the picture'),
    'two formats': (two_formats, 'det', 'YOLO and Pascal VOC'),
}  # fmt: skip


@pytest.mark.parametrize(('make', 'task', 'asked'), ASKED.values(), ids=ASKED)
def test_what_may_be_meant_otherwise_is_a_question(
    make: Callable[[Path], Any], task: str, asked: str, tmp_path: Path
) -> None:
    make(tmp_path / 'data')
    damaged = []
    if 'xml' in asked:
        damaged = ['annotations/8.xml', 'annotations/9.xml']
        (tmp_path / 'data' / 'annotations').mkdir()
        # Python's parser does not know the encodings of several bytes for a character.
        for name, text in zip(
            damaged, ('<?xml version="1.0" encoding="gbk"?><annotation/>', '<annotation'), strict=True
        ):
            (tmp_path / 'data' / name).write_text(text)
    found = convert(tmp_path / 'data', task, tmp_path / 'out', '')
    assert not damaged or ['XML files cannot be read', damaged, 5] in found['left_out']
    assert any(kind == 'question' and asked in text for kind, text in found['said'])
    if make is beyond_the_picture:
        assert ["pictures have no file of LabelMe's", ['1.jpg', '2.jpg'], 3] in found['left_out']


def contents(root: Path) -> dict[str, Any]:
    """The annotation files that are written, by their split."""
    found = convert(root, 'det', root.with_name(f'{root.name} converted'), '')
    return {split: json.loads(Path(path).read_text(encoding='utf-8')) for split, path in found['files'].items()}


def pictures_of(root: Path) -> dict[str, list[str]]:
    return {split: [image['file_name'] for image in part['images']] for split, part in contents(root).items()}


def test_labelme_finds_its_picture(tmp_path: Path) -> None:
    """By the file's own name, else by the one that is in it, in the file's folder."""
    root = tmp_path / 'data'
    for name in ('1', '2', 'a/3'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        labelme(root / f'{name}.json', [polygon('cat')])
    (root / '1.json').write_text((root / '2.json').read_text())
    (root / 'a/3.json').rename(root / 'a/copy of it.json')
    assert pictures_of(root) == {'default': ['1.jpg', '2.jpg', 'a/3.jpg']}


@pytest.mark.parametrize(('picture', 'label', 'other'), [
    ('images/a/images/x.jpg', 'images/a/labels/x.txt', 'labels/a/images/x.txt'),
    ('Images/x.jpg', 'Labels/x.txt', 'Images/x.txt'),
    ('images/x.jpg', 'labels/x.txt', 'images/x.txt'),
    ('x.jpg', 'x.txt', None),
])  # fmt: skip
def test_yolo_finds_its_labels(picture: str, label: str, other: str | None, tmp_path: Path) -> None:
    """Whatever comes first: a picture without a label file, an empty line, a file of another place."""
    root = tmp_path / 'data'
    image(root / Path(picture).with_name('a.jpg'))
    image(root / picture)
    for path, number in ((label, 1), *([(other, 0)] if other else [])):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f'\n\n{number} .5 .5 .25 .5\n')
    (part,) = contents(root).values()
    assert [entry['file_name'] for entry in part['images']] == [picture]
    assert [entry['category_id'] for entry in part['annotations']] == [2]
    assert [entry['name'] for entry in part['categories']] == ['class_0', 'class_1']


def test_yolo_has_several_entries_for_a_split(tmp_path: Path) -> None:
    folders, lists = tmp_path / 'folders', tmp_path / 'lists'
    for folder in ('a', 'a/b', 'c'):
        write_yolo(folders, f'images/{folder}', f'labels/{folder}', YOLO['box'], 1)
    (folders / 'data.yaml').write_text('names: [cat, dog]\ntrain: images/a\nvalid: [images/a/b, images/c]\n')
    assert {split: len(names) for split, names in pictures_of(folders).items()} == {'train': 1, 'val': 2}
    write_yolo(lists, 'images/train', 'labels/train', YOLO['box'], 4)
    (lists / 'data.yaml').write_text('names: [cat, dog]\ntrain: [one.txt, two.txt]\nval: three.txt\n')
    for index, name in enumerate(('one', 'two', 'three')):
        (lists / f'{name}.txt').write_text(f'./images/train/im{index}.jpg\n')
    expected = {'train': ['images/train/im0.jpg', 'images/train/im1.jpg'], 'val': ['images/train/im2.jpg']}
    assert pictures_of(lists) == expected, 'the fourth is in no list'


@pytest.mark.parametrize(
    'entry', ['images/b', './images/b', '../images/b', '../../images/b/', '/images/b', 'images\\b']
)
def test_yolo_names_a_folder_of_a_split_from_anywhere(entry: str, tmp_path: Path) -> None:
    for folder, count in dict(a=2, b=1).items():
        write_yolo(tmp_path / 'data', f'images/{folder}', f'labels/{folder}', YOLO['box'], count)
    (tmp_path / 'data' / 'data.yml').write_text(f"names: [cat, dog]\ntrain: images/a\nval: '{entry}'\n")
    assert {split: len(names) for split, names in pictures_of(tmp_path / 'data').items()} == {'train': 2, 'val': 1}


@pytest.mark.parametrize(('images', 'place'), [
    ('images', ''), ('images/x/y', 'labels'), ('site/images/x', 'site/labels/x'), ('site/images/x', 'site/labels'),
    ('site/images', 'site'),
])  # fmt: skip
def test_yolo_finds_the_list_of_its_classes(images: str, place: str, tmp_path: Path) -> None:
    write_yolo(tmp_path / 'data', images, images.replace('images', 'labels'), YOLO['box'], 2)
    (tmp_path / 'data' / place / 'classes.txt').write_text('cat\ndog\n')
    (part,) = contents(tmp_path / 'data').values()
    assert [entry['name'] for entry in part['categories']] == ['cat', 'dog']


def test_yolo_has_shares_of_the_picture_that_was_shown(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    write_yolo(root, 'images', 'labels', YOLO['box'], 2)
    image(root / 'images' / 'im0.jpg', orientation=6)
    (part,) = contents(root).values()
    assert [(entry['width'], entry['height']) for entry in part['images']] == [(32, 48), (48, 32)]
    assert [entry['bbox'] for entry in part['annotations']] == [[12, 12, 8, 24], [18, 8, 12, 16]]
    write_yolo(root, 'images', 'labels', YOLO['polygon'], 2)
    image(root / 'images' / 'im0.jpg', orientation=6)
    data = read('seg', root)
    assert 'are left out' not in notes(data)
    turned = next(pair for pair in data.details['pairs'] if pair.image.endswith('im0.jpg'))
    assert (read_indices(data, turned)[14:34, 14:18] == 2).all()


def test_pascal_voc_beside_the_picture_and_in_its_split(tmp_path: Path) -> None:
    """The picture of the file's folder comes first, then one of its split; of the picture's folder the file has its."""
    root = tmp_path / 'data'
    for folder in ('x', 'y'):
        write_voc(root, range(1), folder + '/{i}.jpg', folder + '/{i}.xml')
    for number, split in ((1, 'train'), (2, 'val')):
        write_voc(root, range(number, number + 1), f'{split}/images/{{i}}.jpg', 'Annotations/{i}.xml')
    path = root / 'x' / '0.xml'
    path.write_text(path.read_text().replace('>6.0<', '>6.5<').replace('>48<', '>48.0<'))
    parts = contents(root)
    found = {split: [entry['file_name'] for entry in part['images']] for split, part in parts.items()}
    assert found == {'train': ['train/images/1.jpg', 'x/0.jpg', 'y/0.jpg'], 'val': ['val/images/2.jpg']}
    at_x = parts['train']['images'][1]
    assert (at_x['width'], at_x['height']) == (48, 32)
    (entry,) = (each for each in parts['train']['annotations'] if each['image_id'] == at_x['id'])
    assert entry['bbox'] == [5, 6.5, 20, 13.5]


def test_polygons_of_pascal_voc_are_no_boxes(tmp_path: Path) -> None:
    """They are of LabelMe's web site, which has outlines."""
    write_voc(tmp_path / 'data', range(2))
    path = tmp_path / 'data' / '0.xml'
    for part in ('<polygon/>', '<segm/>'):
        text = path.read_text()
        path.write_text(text.replace('</object>', f'{part}</object>'))
        assert pictures_of(tmp_path / 'data') == {'default': ['1.jpg']}
        path.write_text(text)


@pytest.mark.parametrize('count', [254, 255])
def test_no_class_is_none_of_many(count: int, tmp_path: Path) -> None:
    root = tmp_path / 'data'
    shapes = [polygon(f'{index:03}', 1, 1, 3, 3) for index in range(count - 1)]
    labelme(root / '0.json', [*shapes, polygon('last', 6, 2), polygon('__ignore__', 30, 2)])
    found = convert(root, 'seg', tmp_path / 'out', '')
    with Image.open(found['samples'][0]['label']) as drawn:
        values = np.asarray(drawn)
    assert [values[7, 11], values[7, 35], values[20, 20]] == [count, 255 if count == 254 else 65535, 0]


def test_wide_outlines_are_whole_and_one_that_is_covered_is_asked_for(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    for index in range(12):
        labelme(
            root / f'{index}.json', [polygon('cat', 34, -1, 47, 31), polygon('dog', *([34, -1, 47, 31] * (not index)))]
        )
    assert [kind for kind, _ in convert(root, 'seg', tmp_path / 'out', '')['said']] == ['question']


@pytest.mark.parametrize(('left', 'right', 'cut'), [(-2, 20, False), (-3, 20, True), (4, 50, False), (4, 51, True)])
def test_outlines_that_reach_out_on_any_side(left: int, right: int, cut: bool, tmp_path: Path) -> None:
    """By more than two pixels; what is no class may lie under an outline of the whole picture."""
    for index in range(5):
        shapes = [polygon('__ignore__', 2), polygon('dog', -1, -1, 49, 33), polygon('cat', left, 5, right, 12)]
        labelme(tmp_path / 'data' / f'{index}.json', shapes)
    said = convert(tmp_path / 'data', 'seg', tmp_path / 'out', '')['said']
    assert any('outlines reach out of the picture' in text for _, text in said) is cut
    assert not any('are covered by later ones' in text for _, text in said)


def test_pascal_voc_of_equal_names_in_two_splits(tmp_path: Path) -> None:
    for split, name in dict(train='dog', val='\n  dog ').items():
        image(tmp_path / 'data' / 'pictures' / split / '0.jpg')
        path = tmp_path / 'data' / 'boxes' / split / '0.xml'
        path.parent.mkdir(parents=True)
        box = '<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>19</ymax></bndbox>'
        path.write_text(f'<annotation><object><name>{name}</name>{box}</object></annotation>')
    data = read('det', tmp_path / 'data')
    assert (data.classes, data.counts) == (['dog'], [2])
    assert data.splits == dict(train=['pictures/train/0.jpg'], val=['pictures/val/0.jpg'])


@pytest.mark.parametrize('share', ['-0.2', '1.2'])
def test_yolo_has_shares_from_0_to_1(share: str, tmp_path: Path) -> None:
    image(tmp_path / 'data' / '0.jpg')
    (tmp_path / 'data' / '0.txt').write_text(f'0 0.5 {share} 0.1 0.1\n')
    with pytest.raises(UserError, match='has numbers beyond 0 to 1'):
        convert(tmp_path / 'data', 'det', tmp_path / 'out', '')


@pytest.mark.parametrize(('task', 'name', 'outlines'), [
    ('cls', None, True), ('det', 'yolo', True), ('seg', 'coco', True), ('det', None, False)
])  # fmt: skip
def test_what_datumaro_is_asked(
    task: str, name: str | None, outlines: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outlines beside the pictures are read here, unless the format is named, and are no classes of pictures."""

    def run(command: list[str], env: dict[str, str], **options: Any) -> subprocess.CompletedProcess:
        asked.append((command, env))
        (tmp_path / 'out' / 'converted.json').write_text(json.dumps(dict(format='x', error=answers.pop(0))))
        return subprocess.CompletedProcess(command, 0, '', '')

    asked: list[tuple[list[str], dict[str, str]]] = []
    answers = ['', 'nothing fits']
    (tmp_path / 'data').mkdir()
    if outlines:
        write_labelme(tmp_path / 'data')
    monkeypatch.setattr('own_data.foreign.subprocess.run', run)
    monkeypatch.setattr('own_data.foreign.importlib.util.find_spec', lambda name: 'is here')
    monkeypatch.setenv('PYTHONPATH', '/of/this/environment')
    monkeypatch.setenv('MMPELK_DATUMARO_PYTHON', '/of/datumaro/python')
    monkeypatch.chdir(tmp_path)
    assert convert(tmp_path / 'data', task, Path('out'), 'no layout', name) == dict(format='x', error='')
    ((command, environment),) = asked
    assert command[0] == '/of/datumaro/python', 'the one that is named, before that of this process'
    words = ['--task', task, '--data', str(tmp_path / 'data'), '--out', str(tmp_path / 'out')]
    assert command[2:] == words + (['--format', name] if name else [])
    assert 'PYTHONPATH' not in environment
    assert environment.items() >= {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}.items()
    with pytest.raises(UserError, match=r"no layout\. Datumaro does not read '.*' either \(nothing fits\)"):
        convert(tmp_path / 'data', task, Path('out'), 'no layout', name)
    monkeypatch.delenv('MMPELK_DATUMARO_PYTHON')
    answers.append('')
    convert(tmp_path / 'data', task, Path('out'), 'no layout', name)
    assert asked[-1][0][0] == sys.executable


def test_what_is_converted_into_a_relative_folder_is_found_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labelme(tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    for task in ('det', 'seg'):
        converted = convert(tmp_path / 'data', task, Path('out'), '')
        paths = converted['files'].values() if task == 'det' else [each['label'] for each in converted['samples']]
        assert all(Path(path).is_absolute() and Path(path).is_file() for path in paths)


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
