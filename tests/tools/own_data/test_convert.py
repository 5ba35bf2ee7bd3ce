"""What the converter makes of the objects that Datumaro gives it, which stand-ins take the place of here."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codes

from tests.commands import call
from tests.paths import TOOLS
from tests.tools.own_data.pictures import image

SCRIPT = TOOLS / 'own_data' / 'convert.py'
NAMES = ['background', 'dog', 'ignored', 'cat']


class Annotation(SimpleNamespace):
    def __init__(self, kind: str, label: int | None, **more: Any) -> None:
        super().__init__(**dict(type=SimpleNamespace(name=kind), label=label, attributes={}, group=0, z_order=0) | more)

    def get_bbox(self) -> list[float]:
        if hasattr(self, 'box'):
            return self.box
        if hasattr(self, 'image'):
            rows, columns = np.nonzero(self.image)
            low, high = (columns.min(), rows.min()), (columns.max(), rows.max())
        else:
            points = np.reshape(self.points, (-1, 2))
            low, high = points.min(0), points.max(0)
        return [*map(float, low), *(float(b - a) for a, b in zip(low, high, strict=True))]


class Items(list):
    def categories(self) -> dict[str, Any]:
        colours = {0: (0, 0, 0), 1: (9, 8, 7)}
        return dict(
            label=SimpleNamespace(items=[SimpleNamespace(name=name) for name in NAMES]),
            mask=SimpleNamespace(colormap=colours),
        )


def square(left: int, top: int, side: int) -> list[int]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def drawn(left: int) -> np.ndarray:
    mask = np.zeros((32, 48), bool)
    mask[4:20, left : left + 8] = True
    return mask


def items(data: Path) -> Items:
    """A picture that is a file, one that is not, one of a union of splits, and one that is not there."""
    image(data / 'images' / 'a.png')
    blue = np.zeros((32, 48, 3), np.uint8)
    blue[..., 0] = 200
    labels = [
        [
            Annotation('bbox', 1, box=[2, 3, 10, 12], attributes=dict(is_crowd=True)),
            *(Annotation('polygon', 3, points=square(*where), group=5) for where in ((20, 2, 6), (30, 10, 8))),
            Annotation('mask', 1, image=drawn(10)),
            Annotation('polygon', 2, points=square(40, 20, 6), z_order=2),
            Annotation('polygon', 3, points=square(12, 6, 4), z_order=1),
            Annotation('bbox', None, box=[0, 0, 1, 1]),
            Annotation('points', 1),
            Annotation('caption', None),
            Annotation('label', 3),
        ],
        [Annotation('mask', 3, image=drawn(0)), Annotation('label', 1)],
        [Annotation('bbox', 1, box=[0, 0, 4, 4]), Annotation('label', 1)],
        [Annotation('bbox', 1, box=[0, 0, 4, 4]), Annotation('label', 1)],
    ]
    media = [
        SimpleNamespace(path=str(data / 'images' / 'a.png')),
        SimpleNamespace(path='', data=blue),
        SimpleNamespace(path=str(data / 'images' / 'a.png')),
        SimpleNamespace(path='gone.png', data=None),
    ]
    names = zip(('a', '../b c', 'union', 'gone'), ('Training', 'valid', 'trainval', 'Training'), strict=True)
    return Items(
        SimpleNamespace(id=name, subset=subset, media=each, annotations=found)
        for (name, subset), each, found in zip(names, media, labels, strict=True)
    )


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Items], dict[str, Any]]:
    def run(task: str, found: Items) -> dict[str, Any]:
        package, annotation = ModuleType('datumaro'), ModuleType('datumaro.components.annotation')
        formats = ['another', f'my_{"instances" if task == "det" else "segmentation" if task == "seg" else "imagenet"}']
        package.Environment = lambda: SimpleNamespace(detect_dataset=lambda folder: formats[:])  # type: ignore[attr-defined]
        given = {formats[1]: found}
        package.Dataset = SimpleNamespace(import_from=lambda folder, name: given.get(name, Items()))  # type: ignore[attr-defined]
        annotation.AnnotationType = dict(label='label', mask='mask')  # type: ignore[attr-defined]
        modules = {'datumaro': package, 'datumaro.components': ModuleType('x'), annotation.__name__: annotation}
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        words = ['--task', task, '--data', tmp_path / 'data', '--out', tmp_path / 'out']
        call(SCRIPT, *words, cwd=tmp_path)
        return json.loads((tmp_path / 'out' / 'converted.json').read_text())

    return run


@pytest.mark.parametrize('task', ['seg', 'det', 'cls'])
def test_what_is_written(task: str, convert: Any, compare: Any, tmp_path: Path) -> None:
    result = convert(task, items(tmp_path / 'data'))
    written = {
        name: json.loads(Path(path).read_text(encoding='utf-8')) for name, path in result.get('files', {}).items()
    }
    parts = [json.dumps(part, sort_keys=True) for part in (*result.items(), *written.items())]
    compare('\n'.join(parts).replace(str(tmp_path), 'ROOT'))
    with Image.open(tmp_path / 'out' / 'images' / 'valid' / '_' / 'b_c.png') as picture:
        assert picture.getpixel((0, 0)) == (0, 0, 200)  # red, green, blue
    if task == 'seg':
        first, second = (np.asarray(Image.open(sample['label'])) for sample in result['samples'])
        # What lies higher comes later; a class "ignored" is none.
        assert [first[10, 11], first[8, 14], first[22, 43], first[30, 0]] == [2, 4, 255, 0]
        assert np.array_equal(second == 4, drawn(0))
    if task == 'det':
        code = written['train']['annotations'][2]['segmentation']
        assert np.array_equal(codes.decode(code).astype(bool), drawn(10))


def test_outlines_lie_over_each_other_as_they_were_drawn(convert: Any, tmp_path: Path) -> None:
    """By the annotation's order, not by the file's; of equal ones the later is above."""
    drawn = [(0, 4, 2), (1, 8, 0), (3, 0, 1), (1, 12, 1)]
    outlines = [Annotation('polygon', key, points=square(left, 4, 12), z_order=z) for key, left, z in drawn]
    media = SimpleNamespace(path='', data=np.zeros((32, 48, 3), np.uint8))
    result = convert('seg', Items([SimpleNamespace(id='a', subset='train', media=media, annotations=outlines)]))
    labels = np.asarray(Image.open(result['samples'][0]['label']))
    assert labels[8, [2, 6, 10, 14, 18, 22]].tolist() == [4, 1, 1, 1, 2, 2]
    assert len({tuple(row) for row in labels[5:15].tolist()}) == 1


def test_what_is_easily_lost(convert: Any, tmp_path: Path) -> None:
    """The first class, the box of an outline, a union without its parts, pictures of one name in two splits."""

    def item(name: str, subset: str, grey: int, *annotations: Annotation) -> SimpleNamespace:
        media = SimpleNamespace(path='', data=np.full((32, 48), grey, np.uint8))
        return SimpleNamespace(id=name, subset=subset, media=media, annotations=[*annotations, Annotation('label', 0)])

    outlined = (
        Annotation('polygon', 1, points=square(4, 4, 6), group=7),
        Annotation('bbox', 1, box=[2, 3, 20, 10], group=7),
    )
    masked = [
        Annotation('mask', 1, image=drawn(10), group=9, attributes=dict(is_crowd=False)),
        Annotation('mask', 1, image=drawn(20), group=9),
        Annotation('polygon', 1, points=[30, 4, 38, 4, 38, 20, 30, 20], group=9),
    ]
    boxed, around = Annotation('bbox', 0, box=[0, 0, 4, 4]), Annotation('bbox', 1, box=[9, 3, 31, 18], group=9)
    found = Items([item('x', 'train', 10, boxed, *outlined, *masked, around), item('x', 'val', 90, boxed)])
    result = convert('det', found)
    parts = {split: json.loads(Path(path).read_text(encoding='utf-8')) for split, path in result['files'].items()}
    boxes = [(entry['category_id'], entry['bbox']) for entry in parts['train']['annotations']]
    assert boxes == [(1, [0, 0, 4, 4]), (2, [2, 3, 20, 10]), (2, [9, 3, 31, 18])]
    assert [entry['iscrowd'] for entry in parts['train']['annotations']] == [0, 0, 0]
    whole = codes.decode(parts['train']['annotations'][2]['segmentation'])
    assert np.array_equal(whole.astype(bool), drawn(10) | drawn(20) | drawn(30))
    assert [entry['name'] for entry in parts['val']['categories']] == ['background', 'dog']
    for split, grey in (('train', 10), ('val', 90)):
        (listed,) = parts[split]['images']
        assert np.unique(np.asarray(Image.open(listed['file_name']))).tolist() == [grey]
    # Suffixes in capitals, and a path from where the command was typed.
    image(tmp_path / 'data' / 'A.PNG')
    image(tmp_path / 'elsewhere' / 'b.png')
    paths = [item('a', 'train', 0), item('b', 'train', 0)]
    for each, path in zip(paths, (tmp_path / 'data' / 'A.PNG', Path('elsewhere', 'b.png')), strict=True):
        each.media = SimpleNamespace(path=str(path))
    found = convert('cls', Items(paths))['samples']
    assert [sample['image'] for sample in found] == ['A.PNG', str(tmp_path / 'elsewhere' / 'b.png')]
    unions = [item('z', subset, 10) for subset in ('all', 'trainval', 'my_Train')]
    assert [sample['subset'] for sample in convert('cls', Items(unions))['samples']] == ['train']
    samples = convert('cls', Items([item('y', 'trainval', 10)]))['samples']
    assert [(sample['subset'], sample['label']) for sample in samples] == [('default', 'background')]


@pytest.mark.parametrize('index', [253, 254, 255, 256])
def test_maps_of_many_classes_keep_their_values(
    index: int, convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], 'NAMES', [f'class {number}' for number in range(300)])
    media = SimpleNamespace(path='', data=np.zeros((32, 48, 3), np.uint8))
    annotations = [Annotation('mask', index, image=255 * drawn(10).astype(np.uint8))]
    result = convert('seg', Items([SimpleNamespace(id='x', subset='train', media=media, annotations=annotations)]))
    values = np.asarray(Image.open(result['samples'][0]['label']))
    assert set(np.unique(values).tolist()) == {0, index + 1}
    assert [(each['name'], each['key']) for each in result['classes']] == [(f'class {index}', index + 1)]


def test_pictures_of_several_labels_and_formats_of_other_annotations_are_refused(convert: Any, tmp_path: Path) -> None:
    found = items(tmp_path / 'data')
    found[0].annotations.append(Annotation('label', 1))
    assert convert('cls', found)['error'].startswith('1 pictures have several labels')
    for item in found:
        item.annotations[:] = [Annotation('points', 1)]
    error = convert('det', found)['error']
    assert error == 'my_instances has points; another has no annotations'
