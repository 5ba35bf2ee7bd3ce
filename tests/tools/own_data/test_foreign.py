"""Other formats: LabelMe's JSON here, the rest by Datumaro, whose environment these tests may find or not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from own_data import convert, has_labelme, read_classification, read_detection, read_segmentation
from own_data.segmentation import read_indices

from mmpelk.errors import UserError
from tests.paths import ROOT
from tests.tools.own_data.pictures import image, names, notes

BOX = (4, 5, 24, 20)  # left, top, right, bottom
_OWN = ROOT / '.venv-data' / 'bin' / 'python'
PYTHON = os.environ.get('MMPELK_DATUMARO_PYTHON') or (str(_OWN) if _OWN.is_file() else '')
needs_datumaro = pytest.mark.skipif(not PYTHON, reason='pip install -r requirements/own_data.txt in .venv-data')
# Written by Datumaro itself, of four pictures to train on and two to validate on.
EXPORT = f"""
import sys
import datumaro
import numpy as np
from datumaro.components.annotation import Bbox, Label, Mask
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
kind, name, out = sys.argv[1:]
left, top, right, bottom = {BOX}
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
datumaro.Dataset.from_iterable(items, categories=['background', 'dog']).export(out, name, save_media=True)
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


def test_labelme_maps(tmp_path: Path) -> None:
    root = write_labelme(tmp_path / 'data')
    data = read_segmentation(root, converted=convert(root, 'seg', tmp_path / 'out', ''))
    assert data.classes == ['dog', 'cat']
    assert '--background 0' in '\n'.join(map(str, data.questions))  # nobody has said what lies outside
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
    maps = read_segmentation(root, converted=convert(root, 'seg', tmp_path / 'seg', '', classes='dog,cat'))
    assert names(detection) == names(maps) == expected
    assert detection.classes == maps.classes == ['dog', 'cat']
    assert (read_indices(maps, maps.details['pairs'][0])[5, 5], has_labelme(root)) == (1, True)
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
    maps = read_segmentation(root, converted=convert(root, 'seg', tmp_path / 'seg', ''))
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


READERS = {'seg': read_segmentation, 'det': read_detection, 'cls': read_classification}
FORMATS = [
    *(('det', name) for name in ('yolo', 'yolo_ultralytics', 'voc_detection', 'cvat', 'label_me', 'datumaro')),
    *(('det', name) for name in ('coco_instances', 'open_images', 'wider_face', 'mot_seq_gt')),
    *(('seg', name) for name in ('voc_segmentation', 'camvid', 'cvat', 'coco_instances', 'datumaro', 'label_me')),
    *(('cls', name) for name in ('imagenet_txt', 'voc_classification', 'cifar', 'datumaro')),
]


@needs_datumaro
@pytest.mark.slow
@pytest.mark.parametrize(('task', 'name'), FORMATS, ids=lambda value: value)
def test_formats_of_datumaro(task: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported by it and read here: the same boxes, pixels and classes on the same pictures, and the same split."""
    monkeypatch.setenv('MMPELK_DATUMARO_PYTHON', PYTHON)
    root = tmp_path / 'data'
    subprocess.run([PYTHON, '-c', EXPORT, task, name, str(root)], check=True, capture_output=True)
    data = READERS[task](root, converted=convert(root.resolve(), task, tmp_path / 'out', ''))  # type: ignore[operator]
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
    elif task == 'seg':
        for pair in data.details['pairs']:
            want = np.zeros((32, 48), bool)
            want[top:bottom, left + number(pair.image) : right] = True
            assert ((read_indices(data, pair) == data.classes.index('dog')) != want).mean() < 0.02  # outlines
    else:
        assert {number(path): data.classes[index] for path, index in data.details['labels'].items()} == {
            index: ('background', 'dog')[index % 2] for index in range(6)
        }


@needs_datumaro
@pytest.mark.slow
def test_plain_yolo_without_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """coco128's layout: images/train2017 and labels/train2017, names elsewhere."""
    monkeypatch.setenv('MMPELK_DATUMARO_PYTHON', PYTHON)
    root = tmp_path / 'data'
    for index in range(4):
        image(root / 'images' / 'train2017' / f'{index}.jpg')
        target = root / 'labels' / 'train2017' / f'{index}.txt'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text('1 0.5 0.5 0.25 0.5\n')
    data = read_detection(root, converted=convert(root, 'det', tmp_path / 'out', '', classes='cat,dog'))
    assert data.classes == ['dog']
    boxes = [entry['bbox'] for part in data.details['contents'].values() for entry in part['annotations']]
    assert np.allclose(boxes, [18, 8, 12, 16])


@needs_datumaro
@pytest.mark.slow
@pytest.mark.parametrize('listed', [False, True])
def test_voc_with_classes_of_its_own(listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as blood cells: Pascal VOC's folders without its classes, and a list of train and val together."""
    monkeypatch.setenv('MMPELK_DATUMARO_PYTHON', PYTHON)
    root = tmp_path / 'data'
    for index in range(5):
        image(root / 'JPEGImages' / f'{index}.jpg')
        target = root / 'Annotations' / f'{index}.xml'
        target.parent.mkdir(parents=True, exist_ok=True)
        box = '<xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>20</ymax>'
        objects = f'<object><name>{"RBC" if index else "WBC"}</name><bndbox>{box}</bndbox></object>'
        size = '<size><width>48</width><height>32</height><depth>3</depth></size>'
        target.write_text(f'<annotation><filename>{index}.jpg</filename>{size}{objects}</annotation>')
    if listed:
        (root / 'ImageSets' / 'Main').mkdir(parents=True)
        for split, names in dict(train='0 1', val='2', test='3', trainval='0 1 2').items():
            (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(names.split()))
    data = read_detection(root, converted=convert(root.resolve(), 'det', tmp_path / 'out', ''))
    assert sorted(data.classes) == ['RBC', 'WBC']
    counts = {split: len(names) for split, names in data.splits.items()}
    assert counts == ({'train': 2, 'val': 1, 'test': 1} if listed else {'train': 4, 'val': 1})
    boxes = [entry['bbox'] for part in data.details['contents'].values() for entry in part['annotations']]
    assert np.abs(np.subtract(boxes, [[5, 6, 20, 14]])).max() <= 1


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
