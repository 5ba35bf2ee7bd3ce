"""Folders of images and label maps: every layout is understood, and every common mistake is reported."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import Answers, DataSet, read_segmentation
from own_data.dataset import split_names
from own_data.segmentation import read_indices, write_labels
from PIL import Image
from torchvision.datasets import Cityscapes

from mmpelk.errors import UserError
from tests.paths import sample_data
from tests.tools.own_data.pictures import SIZE, image, label, names, notes
from tests.tools.own_data.pictures import write_pairs as write

Make = Callable[[Path], Any]
# The classes that Cityscapes scores, by the values of its labelIds.
CITYSCAPES = {kind.id: kind.name for kind in Cityscapes.classes if not kind.ignore_in_eval}


@pytest.mark.parametrize(('images', 'labels'), [
    ('images/{s}/a_{i}.jpg', 'annotations/{s}/a_{i}.png'),
    ('img_dir/{s}/a_{i}.jpg', 'ann_dir/{s}/a_{i}.png'),
    ('{s}/images/a_{i}.jpg', '{s}/masks/a_{i}_mask.png'),
    ('leftImg8bit/{s}/city/a_{i}_leftImg8bit.png', 'gtFine/{s}/city/a_{i}_gtFine_labelTrainIds.png'),
    ('Images/{s}/a_{i}.jpg', 'Labels/{s}/a_{i}.tif'),
])  # fmt: skip
def test_layouts_with_splits(images: str, labels: str, tmp_path: Path) -> None:
    for split, count in (('train', 3), ('val', 2)):
        write(tmp_path, [0, 1, 255], count, images.replace('{s}', split), labels.replace('{s}', split))
        if 'gtFine' in labels:  # Cityscapes has several maps for each image
            for index in range(count):
                label(tmp_path / f'gtFine/{split}/city/a_{index}_gtFine_color.png', [0, 9, 9])
                label(tmp_path / f'gtFine/{split}/city/a_{index}_gtFine_labelIds.png', [7, 8, 7])
    data = read_segmentation(tmp_path)
    assert names(data) == {'train': 3, 'val': 2}
    assert 'left out' not in notes(data)
    assert data.unlabelled == pytest.approx(1 / 3)
    assert len(data.classes) == (19 if 'gtFine' in labels else 2)


@pytest.mark.parametrize(('images', 'labels'), [
    ('images/{s}_{i}.jpg', 'annotations/{s}/{s}_{i}.png'), ('images/{s}/{s}_{i}.jpg', 'annotations/{s}_{i}.png'),
])  # fmt: skip
def test_one_of_the_two_folders_may_name_the_split(images: str, labels: str, tmp_path: Path) -> None:
    for split, count in (('train', 2), ('val', 4)):
        write(tmp_path, [0, 1], count, images.replace('{s}_', f'{split[0]}_').replace('{s}', split),
              labels.replace('{s}_', f'{split[0]}_').replace('{s}', split))  # fmt: skip
    assert names(read_segmentation(tmp_path)) == {'train': 2, 'val': 4}


@pytest.mark.parametrize(('image_name', 'label_name'), [
    ('{i}.jpg', '{i}_mask.png'),
    ('{i}.jpg', '{i}_color.png'),
    ('image_{i}.jpg', 'mask_{i}.png'),
    ('img{i}.jpg', 'mask{i}.gif'),
    ('train/{i}.jpg', 'train_masks/{i}_mask.gif'),
    ('{i}/image.png', '{i}/mask.png'),
    ('taken/{i}/image.png', 'drawn/{i}/mask.png'),
    ('images/damask/{i}.jpg', 'masks/damask/{i}.png'),
    ('images/l/{i}.jpg', 'masks/l/{i}.png'),
    ('Train/Rural/images_png/{i}.png', 'Train/Rural/masks_png/{i}.png'),
    ('701_StillsRaw_full/a_{i}.png', 'LabeledApproved_full/a_{i}_L.png'),
    ('training/images/{i}.jpg', 'training/v1.2/labels/{i}.png'),
    ('train/{i}_sat.jpg', 'train/{i}_mask.png'),
    ('l_{i}.jpg', 'l_{i}_mask.png'),
    ('top_{i}_RGB.tif', 'top_{i}_label.tif'),
    ('leftImg8bit/a_{i}_leftImg8bit.png', 'gtFine/a_{i}_gtFine_labelIds.png'),
])  # fmt: skip
def test_layouts_by_name(image_name: str, label_name: str, tmp_path: Path) -> None:
    values = list(CITYSCAPES) if 'gtFine' in label_name else [0, 1]
    write(tmp_path, values, images=image_name, labels=label_name, size=(4 * len(CITYSCAPES), 32))
    data = read_segmentation(tmp_path)
    assert names(data) == {'train': 3, 'val': 1}
    assert 'gtFine' not in label_name or meaning(data) == CITYSCAPES
    for pair in data.details['pairs']:
        number = pair.image.removeprefix('701_').removeprefix('leftImg8bit')
        digit = next(letter for letter in number if letter.isdigit())
        assert label_name.format(i=digit) == pair.label
    assert 'left out' not in notes(data)
    assert data.unlabelled == 0


IMAGES = (
    *('images', 'image', 'imgs', 'img', 'JPEGImages', 'jpeg', 'jpg', 'leftImg8bit', 'photos', 'photo', 'pictures'),
    *('rgb', 'sat', 'stills', 'inputs', 'input', 'raw', 'StillsRaw'),
)
LABELS = (
    *('annotations', 'annotation', 'annots', 'annot', 'ann', 'labels', 'label', 'labeled', 'labelled', 'lbl', 'masks'),
    *('mask', 'SegmentationClass', 'SegmentationClassAug', 'segmentations', 'segmentation', 'seg', 'gt', 'gtFine'),
    *('groundtruth', 'truth', 'semantic', 'trimaps', 'targets', 'labelTrainIds', 'labelIds', 'LabeledApproved'),
)
NO_CLASSES = ('SegmentationObject', 'instances', 'instance', 'instanceIds', 'panoptic', 'depth', 'disparity')


def test_words_for_folders(tmp_path: Path) -> None:
    """Beside one folder of each kind of label maps that are of no classes."""
    folders = [*((images, 'masks') for images in IMAGES), *(('images', labels) for labels in LABELS)]
    pairs = set()
    for number, (images, labels) in enumerate(folders):
        pairs.add((f'set{number}/{images}/a.png', f'set{number}/{labels}/a.png'))
        image(tmp_path / f'set{number}' / images / 'a.png', (8, 4 + number))
        for folder in (labels, *([NO_CLASSES[number]] if number < len(NO_CLASSES) else [])):
            label(tmp_path / f'set{number}' / folder / 'a.png', [0, 1], (8, 4 + number))
    data = read_segmentation(tmp_path)
    assert {(pair.image, pair.label) for pair in data.details['pairs']} == pairs
    assert not notes(data, 'question') + notes(data, 'mistake')


def test_pascal_voc(tmp_path: Path) -> None:
    write(tmp_path, [0, 15, 255], 4, 'JPEGImages/2007_00000{i}.jpg', 'SegmentationClass/2007_00000{i}.png')
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('2007_000000\n2007_000001\n2007_000002\n')
    (lists / 'val.txt').write_text('2007_000003\n')
    data = read_segmentation(tmp_path)
    assert {split: [Path(name).stem[-1] for name in chosen] for split, chosen in data.splits.items()} == {
        'train': ['0', '1', '2'], 'val': ['3']
    }  # fmt: skip
    assert (data.classes[0], data.classes[15]) == ('background', 'person')
    assert data.details['meaning'].mapping[0] == 0
    assert not data.questions


def test_ade20k_sample() -> None:
    data = read_segmentation(sample_data('ade20k_sample'))
    assert names(data) == {'train': 2, 'val': 1}
    assert len(data.classes) == 150
    assert data.details['meaning'].mapping == {value: value - 1 for value in data.details['meaning'].mapping}
    assert 0 not in data.details['meaning'].mapping
    assert not data.questions
    counted = dict(zip(data.classes, data.counts, strict=True))
    assert counted['sky'] > counted['tree'] > counted['bathtub'] == 0
    pixels = sum(counted.values())
    told = notes(data, 'remark')
    assert f'{sum(0 < count < pixels / 1000 for count in counted.values())} classes have less than 0.1% of' in told
    unlabelled, total = 0, 0
    shown = {split: set() for split in data.splits}
    for pair in data.details['pairs']:
        indices = read_indices(data, pair)
        unlabelled, total = unlabelled + int((indices == 255).sum()), total + indices.size
        (split,) = (split for split, chosen in data.splits.items() if pair.image in chosen)
        shown[split] |= set(np.unique(indices).tolist()) - {255}
    assert data.unlabelled == pytest.approx(unlabelled / total)
    assert pixels == total - unlabelled
    for split, found in shown.items():
        assert f'{150 - len(found)} of 150 classes are in no {split} picture' in told


def test_a_split_is_drawn_where_there_is_none_and_always_the_same(tmp_path: Path) -> None:
    first = read_segmentation(write(tmp_path, [0, 1], 10))
    assert names(first) == {'train': 8, 'val': 2}
    assert not set(first.splits['train']) & set(first.splits['val'])
    assert first.splits == read_segmentation(tmp_path).splits
    listed = [name for part in first.splits.values() for name in part]
    assert split_names(listed, 0.2) == split_names(listed[::-1], 0.2) == first.splits, 'whatever their order'
    assert 'drawn at random' in notes(first, 'decision')


@pytest.mark.parametrize('layout', ['{s}/images/{i}.png {s}/labels/{i}.png', '{s}/{i}.png {s}annot/{i}.png'])
@pytest.mark.parametrize(('splits', 'expected'), [
    (('train', 'valid', 'test'), {'train': 3, 'val': 3, 'test': 3}),
    (('train', 'test'), {'train': 2, 'val': 1, 'test': 3}),
    (('train', 'val'), {'train': 3, 'val': 3}),
])  # fmt: skip
def test_nothing_is_chosen_on_the_test_split(
    layout: str, splits: tuple[str, ...], expected: dict[str, int], tmp_path: Path
) -> None:
    for split in splits:
        write(tmp_path, [0, 1], 3, *layout.replace('{s}', split).split())
    data = read_segmentation(tmp_path)
    assert names(data) == expected
    assert {name.split('/')[0] for name in data.splits.get('test', [])} <= {'test'}
    assert not any('test' in name for name in data.splits['train'] + data.splits['val'])
    assert ('for tools/test.py alone' in notes(data, 'decision')) is ('test' in splits)


def meaning(data: DataSet) -> dict[object, str]:
    """The class of every value or colour that is trained."""
    found = data.details['meaning']
    shown = (lambda key: f'#{key:06x}') if found.coloured else int
    return {shown(key): found.classes[index] for key, index in sorted(found.mapping.items())}


# Values of the label maps, options, and what is trained as what.
VALUES: dict[str, tuple[list[object], dict, dict]] = {
    'unnamed': ([0, 1, 2], {}, {0: 'class_0', 1: 'class_1', 2: 'class_2'}),
    'unnamed, all are classes': ([0, 1, 2], dict(ignore=['none']), {0: 'class_0', 1: 'class_1', 2: 'class_2'}),
    'unnamed, one ignored': ([0, 1, 2], dict(ignore=['2']), {0: 'class_0', 1: 'class_1'}),
    'unnamed from 1': ([1, 2, 3], {}, {1: 'class_1', 2: 'class_2', 3: 'class_3'}),
    'unnamed, void': ([0, 1, 255], {}, {0: 'class_0', 1: 'class_1'}),
    'unnamed mask': ([0, 255], {}, {0: 'background', 255: 'foreground'}),
    'named mask': ([0, 255], dict(classes='ground,house'), {0: 'ground', 255: 'house'}),
    'named mask, background last': ([0, 255], dict(classes='house,background'), {0: 'house', 255: 'background'}),
    'one name, mask': ([0, 255], dict(classes='car'), {0: 'background', 255: 'car'}),
    'one name': ([0, 1], dict(classes='car'), {0: 'background', 1: 'car'}),
    'one name, two present values': ([1, 2], dict(classes='a,b'), {1: 'a', 2: 'b'}),
    'in order': ([0, 1, 2], dict(classes='a,b,c'), {0: 'a', 1: 'b', 2: 'c'}),
    'some absent': ([0, 2, 255], dict(classes='a,b,c,d'), {0: 'a', 2: 'c'}),
    'zero absent': ([1, 2], dict(classes='a,b,c'), {1: 'b', 2: 'c'}),
    'zero ignored, two readings': ([0, 1, 2], dict(classes='a,b,c', ignore=['0']), {1: 'a', 2: 'b'}),
    'zero ignored, the background': ([0, 1, 2], dict(classes='background,b,c', ignore=['0']), {1: 'b', 2: 'c'}),
    'background said twice': (
        [0, 1, 2],
        dict(classes='background,b,c', background='0'),
        {0: 'background', 1: 'b', 2: 'c'},
    ),
    'void beside the background': (
        [0, 1, 2],
        dict(classes='void,b', background='0'),
        {0: 'background', 1: 'void', 2: 'b'},
    ),
    'background said twice, last': ([0, 1, 2], dict(classes='b,c,bg', background='0'), {0: 'bg', 1: 'b', 2: 'c'}),
    'one value too many': ([0, 1, 2], dict(classes='a,b'), {1: 'a', 2: 'b'}),
    'one value too many, 0 ignored': ([0, 1, 2], dict(classes='a,b', ignore=['0']), {1: 'a', 2: 'b'}),
    'one value too many, last ignored': ([0, 1, 2], dict(classes='a,b', ignore=['2']), {0: 'a', 1: 'b'}),
    'one value too many, background': (
        [0, 1, 2],
        dict(classes='a,b', background='0'),
        {0: 'background', 1: 'a', 2: 'b'},
    ),
    'background named first': ([0, 1, 2], dict(classes='background,b'), {0: 'background', 1: 'b'}),
    'background, one absent': ([0, 1, 3], dict(classes='a,b,c', background='0'), {0: 'background', 1: 'a', 3: 'c'}),
    'unnamed, background': ([0, 1, 2], dict(background='0'), {0: 'background', 1: 'class_1', 2: 'class_2'}),
    'one value named': ([0, 5], dict(classes='car=5'), {0: 'background', 5: 'car'}),
    'grey levels': ([0, 38, 75, 113], {}, {0: 'class_0', 38: 'class_38', 75: 'class_75', 113: 'class_113'}),
    'bright grey levels': ([0, 85, 170, 255], {}, {0: 'class_0', 85: 'class_85', 170: 'class_170', 255: 'class_255'}),
    'bright grey levels, decided': (
        [0, 85, 255],
        dict(ignore=['none']),
        {0: 'class_0', 85: 'class_85', 255: 'class_255'},
    ),
    'bright grey levels, named': ([0, 85, 170, 255], dict(classes='a,b,c,d'), {0: 'a', 85: 'b', 170: 'c', 255: 'd'}),
    'values named': ([0, 5, 9], dict(classes='a=9,b=0,c=5'), {0: 'b', 5: 'c', 9: 'a'}),
    'values named, one left': ([0, 5, 5, 9], dict(classes='a=9,b=0'), {0: 'b', 9: 'a'}),
    'values joined': ([0, 5, 9], dict(classes='a=9,b=0,a=5'), {0: 'b', 5: 'a', 9: 'a'}),
    'grey colours': ([[0, 0, 0], [1, 1, 1]], dict(classes='a,b'), {'#000000': 'a', '#010101': 'b'}),
    'colours': ([[0, 0, 0], [128, 0, 0]], {}, {'#000000': '#000000', '#800000': '#800000'}),
    'blue, whose number is 255': ([[0, 0, 0], [0, 0, 255]], {}, {'#000000': '#000000', '#0000ff': '#0000ff'}),
    'blue left': (
        [[9, 0, 0], [0, 9, 0], [0, 0, 255]],
        dict(classes='b=#000900,a=#090000'),
        {'#000900': 'b', '#090000': 'a'},
    ),
    'a class left by its name': ([0, 1, 2], dict(classes='a=0,b=1,c=2', ignore=['b']), {0: 'a', 2: 'c'}),
    'values named, background': (
        [0, 1, 2],
        dict(classes='a=2,b=1', background='0'),
        {0: 'background', 1: 'b', 2: 'a'},
    ),
    'mask, background': ([0, 255], dict(background='0'), {0: 'background', 255: 'class_255'}),
    'colours named': ([[9, 0, 0], [0, 9, 0]], dict(classes='b=#000900,a=#090000'), {'#000900': 'b', '#090000': 'a'}),
    'a colour left': (
        [[9, 0, 0], [0, 9, 0], [7, 7, 9]],
        dict(classes='b=#000900,a=#090000'),
        {'#000900': 'b', '#090000': 'a'},
    ),
}


@pytest.mark.parametrize(('values', 'options', 'expected'), VALUES.values(), ids=VALUES)
@pytest.mark.usefixtures('all_that_is_read')
def test_what_values_mean(values: list[object], options: dict, expected: dict[object, str], tmp_path: Path) -> None:
    words = {key: options[key] for key in ('ignore', 'background') if key in options}
    data = read_segmentation(write(tmp_path / 'data', values), options.get('classes'), answers=Answers(**words))
    assert meaning(data) == expected
    # The maps that are written have the class of the table on its pixels.
    write_labels(data, tmp_path / 'labels')
    written = np.asarray(Image.open(tmp_path / 'labels' / 'images' / '0.jpg.png'))
    for index, value in enumerate(values):
        key = value if isinstance(value, int) else '#{:02x}{:02x}{:02x}'.format(*value)  # type: ignore[misc]
        pixels = written[:, (2 * index + 1) * SIZE[0] // (2 * len(values))]
        assert {data.classes[pixel] if pixel < 255 else None for pixel in pixels} == {expected.get(key)}
    assert sum(data.counts) == sum(int((written < 255).sum()) for _ in range(4))


# Files of lists, and what their names and colours are.
COLOURS = {'#000009': 'sky', '#090000': 'road'}
LISTS: dict[str, tuple[str, str, dict[object, str]]] = {
    'name,R,G,B': ('labelmap.txt', 'name,r,g,b\nsky,0,0,9\nroad,9,0,0\n', COLOURS),
    'R G B name': ('labelmap.txt', '0 0 9\tsky\n9 0 0\troad\n', COLOURS),
    'R G B name, blanks': ('labelmap.txt', '0 0 9 sky\n9 0 0 road\n', COLOURS),
    'cvat': ('labelmap.txt', '# label:color_rgb:parts:actions\nsky:0,0,9::\nroad:9,0,0::\n', COLOURS),
    'hex': ('labelmap.txt', 'sky=#000009\nroad=#090000\n', COLOURS),
    'value, class': ('classes.txt', 'Pixel Value, Class\n0, sky\n1, road\n', {0: 'sky', 1: 'road'}),
    'value: class': ('classes.txt', '// of a script\n1: road\n0: sky\n', {1: 'road', 0: 'sky'}),
    'class, tab, value': ('classes.txt', 'sky\t0\nroad\t1\n', {0: 'sky', 1: 'road'}),
    'a head line': ('classes.csv', 'class\nsky\nroad\n', {0: 'sky', 1: 'road'}),
    # A heading is told by its form, not by its words.
    'German': ('classes.csv', '\ufeffWert;Klasse\n0;Himmel\n1;"Straße, nass"\n', {0: 'Himmel', 1: 'Straße, nass'}),
    'French': ('classes.csv', '\ufeffnom,valeur\n"Himmel",0\n"Straße, nass",1\n', {0: 'Himmel', 1: 'Straße, nass'}),
}


@pytest.mark.parametrize(('file', 'text', 'expected'), LISTS.values(), ids=LISTS)
@pytest.mark.usefixtures('all_that_is_read')
def test_lists_of_classes(file: str, text: str, expected: dict[object, str], tmp_path: Path) -> None:
    write(tmp_path, [[9, 0, 0], [0, 0, 9]] if expected is COLOURS else [0, 1])
    (tmp_path / file).write_text(text, 'utf-8')
    data = read_segmentation(tmp_path)
    assert data.classes == list(expected.values())
    assert meaning(data) == expected
    assert expected is not COLOURS or data.palette == [(0, 0, 9), (9, 0, 0)]


def test_indices_with_a_list_of_colours_are_a_question(tmp_path: Path) -> None:
    """A list of 32 colours beside maps of 12 joined classes would name them all wrongly."""
    data = read_segmentation(write(tmp_path, [0, 1]), 'sky=#000009,road=#090000')
    assert 'taken for places in the list (--classes sky=0,...)' in notes(data, 'question')
    assert meaning(data) == {0: 'sky', 1: 'road'}
    assert data.palette == [(0, 0, 9), (9, 0, 0)]


@pytest.mark.parametrize('end', ['.png', '.JPG', 'one .Jpeg'])
@pytest.mark.parametrize('coloured', [False, True])
def test_soft_edges(coloured: bool, end: str, tmp_path: Path) -> None:
    """Contours that were smoothed are no classes, and the classes are not lost."""
    wanted = {}
    for index in range(4):
        image(tmp_path / 'images' / f'{index}.jpg', (96, 64))
        mask = np.zeros((64, 96), np.uint8)
        mask[16:48, 20 + index : 70] = 255
        wanted[f'{index}'] = mask
        drawn = Image.fromarray(np.stack([mask, 0 * mask, 0 * mask], -1) if coloured else mask)
        if end == '.png':
            drawn = drawn.resize((48, 32), Image.Resampling.BICUBIC).resize((96, 64), Image.Resampling.BICUBIC)
        (tmp_path / 'masks').mkdir(exist_ok=True)
        drawn.save(tmp_path / 'masks' / f'{index}{".png" if end[0] == "o" and index else end.removeprefix("one ")}')
    data = read_segmentation(tmp_path)
    assert '--soft-edges' in notes(data, 'question')
    assert len(data.classes) == 2
    assert sum(float(share.rstrip('%')) for *_, share in data.details['values']) == pytest.approx(100, abs=0.05)
    confirmed = read_segmentation(tmp_path, answers=Answers(soft_edges=True))
    assert not confirmed.questions
    write_labels(confirmed, tmp_path / 'labels')
    for name, mask in wanted.items():
        written = np.asarray(Image.open(tmp_path / 'labels' / 'images' / f'{name}.jpg.png'))
        assert (written != 255).mean() > 0.9
        assert ((written == 1) == (mask == 255))[written != 255].all()


def test_grey_levels_near_each_other_stay_classes_beside_smoothed_contours(tmp_path: Path) -> None:
    write(tmp_path, [0], size=(96, 64))
    for path in (tmp_path / 'labels').iterdir():
        drawn = np.zeros((64, 96), np.uint8)
        drawn[8:56, 8:40], drawn[8:56, 56:88] = 30, 200
        small = Image.fromarray(drawn).resize((48, 32), Image.Resampling.BICUBIC)
        small.resize((96, 64), Image.Resampling.BICUBIC).save(path)
    data = read_segmentation(tmp_path)
    assert '(0, 30, 200) are taken for the classes' in notes(data, 'question')
    assert len(data.classes) == 3


@pytest.mark.parametrize(
    'line',
    [
        '{}',
        '{}.jpg',
        'images/{}.jpg',
        '/home/x/set/images/{}.jpg /home/x/set/labels/{}.png',
        'images\\{}.jpg',
        'labels/{}.png',
    ],
)
def test_lists_beside_the_pictures(line: str, tmp_path: Path) -> None:
    write(tmp_path, [0, 1], 5)
    (tmp_path / 'train.txt').write_text('\n'.join(line.format(i, i) for i in (0, 3)))
    (tmp_path / 'val.txt').write_text('\n'.join(line.format(i, i) for i in (1, 2)) + '\n')
    data = read_segmentation(tmp_path)
    assert data.splits == {'train': ['images/0.jpg', 'images/3.jpg'], 'val': ['images/1.jpg', 'images/2.jpg']}
    assert '1 pictures are in no list' in notes(data)


def test_names_with_spaces_in_lists(tmp_path: Path) -> None:
    """The first word of a line is a name where the whole line is none."""
    for copy, split, more in ((' (1)', 'train', ''), ('', 'val', ' 1')):
        write(tmp_path, [0, 1], 2, f'images/{{i}}{copy}.jpg', f'masks/{{i}}{copy}.png')
        (tmp_path / f'{split}.txt').write_text('\n'.join(f'{index}{copy}{more}' for index in (0, 1)))
    assert read_segmentation(tmp_path).splits == {
        'train': ['images/0 (1).jpg', 'images/1 (1).jpg'], 'val': ['images/0.jpg', 'images/1.jpg']
    }  # fmt: skip


@pytest.mark.parametrize(('name', 'lists'), [
    ('train_data/{kind}/{s}/{{i}}', {}),
    ('{kind}/{s}_{{i}}', {}),
    ('{kind}/x{s}{{i}}', {'test_list.txt': 'xtest0.jpg\n'}),
    ('{kind}/x{s}{{i}}', {'annotations/trainval.txt': 'xtrain0\nxtrain1\nxval0\n'}),
])  # fmt: skip
@pytest.mark.usefixtures('all_that_is_read')
def test_splits_are_read_or_asked_for(name: str, lists: dict[str, str], tmp_path: Path) -> None:
    for split, count in (('train', 3), ('val', 1), ('test', 1)):
        images, maps = (name.format(kind=kind, s=split) for kind in ('images', 'masks'))
        write(tmp_path, [0, 0, 1], count, f'{images}.jpg', f'{maps}.png')
    for file, text in lists.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    read_segmentation(tmp_path)


@pytest.mark.parametrize(('orientation', 'label_size'), [(6, SIZE), (6, SIZE[::-1]), (3, SIZE)])
@pytest.mark.usefixtures('all_that_is_read')
def test_exif_orientation(orientation: int, label_size: tuple[int, int], tmp_path: Path) -> None:
    """Sizes are those that training sees."""
    write(tmp_path, [0, 1])
    image(tmp_path / 'images/0.jpg', orientation=orientation)
    label(tmp_path / 'labels/0.png', [0, 1], label_size)
    read_segmentation(tmp_path)


def draw(path: Path, palette: list[int], stripes: list[int]) -> None:
    """A label map with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    indices = np.array(stripes, np.uint8)[np.arange(SIZE[0]) * len(stripes) // SIZE[0]]
    drawn = Image.fromarray(np.broadcast_to(indices, SIZE[::-1]).copy(), 'P')
    drawn.putpalette(palette)
    drawn.save(path)


def test_label_maps_read_through_their_palette(tmp_path: Path) -> None:
    """Indices in another order than the list's, whose colours are in the file."""
    write(tmp_path, [0, 1])
    for path in (tmp_path / 'labels').iterdir():
        # Pascal VOC's contours, of the last colour, are no class.
        draw(path, [0, 0, 9, 1, 1, 1, 2, 2, 2, 9, 0, 0, 224, 224, 192], [0, 3, 4])
    data = read_segmentation(tmp_path, 'road=#090000,sky=#000009')
    assert (meaning(data), data.unlabelled) == (COLOURS, pytest.approx(1 / 3))


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'I', 'I;16', 'F'])
def test_modes_of_label_maps(mode: str, tmp_path: Path) -> None:
    """However a tool stores 0 and 2, or 0 and 1 where it has no more, with or without transparency."""
    names = ['sky', 'road'] if mode == '1' else ['sky', 'sea', 'road']
    write(tmp_path, [0, len(names) - 1])
    for path in (tmp_path / 'labels').iterdir():
        drawn = Image.open(path)
        if mode in ('1', 'I;16'):
            drawn = Image.fromarray(np.asarray(drawn).astype(bool if mode == '1' else np.uint16))
        elif mode in ('P', 'PA'):
            drawn.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2])
            drawn = drawn.convert(mode)
        else:
            drawn = drawn.convert('RGB').convert(mode) if mode == 'CMYK' else drawn.convert(mode)
        path.unlink()
        drawn.save(path.with_suffix('.tif'))
        assert Image.open(path.with_suffix('.tif')).mode == mode
    data = read_segmentation(tmp_path, ','.join(names))
    assert (data.classes, data.unlabelled) == (names, 0)
    assert not data.questions
    for pair in data.details['pairs']:
        assert (read_indices(data, pair) == np.arange(SIZE[0]) // (SIZE[0] // 2) * (len(names) - 1)).all()


@pytest.mark.parametrize('pixels', [3, 4])
def test_a_class_is_rare_below_a_thousandth_of_what_is_labelled(pixels: int, tmp_path: Path) -> None:
    write(tmp_path, [0], size=(80, 80))
    for path in (tmp_path / 'labels').iterdir():
        drawn = np.full((80, 80), 255, np.uint8)
        drawn[:40] = 0
        drawn[0, :pixels] = 1
        Image.fromarray(drawn).save(path)
    data = read_segmentation(tmp_path, 'sky,road,absent')
    told = notes(data, 'remark')
    assert ('1 classes have less than 0.1% of the labelled pixels (road)' in told) is (1000 * pixels < 40 * 80)


@pytest.mark.parametrize(('images', 'labels', 'top', 'count'), [
    ('images/ADE_train_{i}.jpg', 'annotations/ADE_train_{i}.png', 150, 150),
    ('a_{i}_leftImg8bit.png', 'a_{i}_gtFine_labelTrainIds.png', 18, 19),
    ('a_{i}_leftImg8bit.png', 'a_{i}_gtFine_labelIds.png', 33, 19),
    *(
        (f'JPEGImages/{year}_00000{{i}}.jpg', f'SegmentationClass/{year}_00000{{i}}.png', 20, 21)
        for year in (2005, 2009, 2010, 2012)
    ),
])  # fmt: skip
def test_public_sets_by_their_names_and_values(images: str, labels: str, top: int, count: int, tmp_path: Path) -> None:
    for more in (0, 1):
        root = write(tmp_path / str(more), [1, 7, top + more, 255], 4, images, labels)
        data = read_segmentation(root)
        assert (len(data.classes) == count) is not more
        assert more or not data.questions
    for answers in (Answers(background='1'), Answers(ignore=['7'])):
        # Who answers has classes of his own.
        assert len(read_segmentation(tmp_path / '0', answers=answers).classes) == 3
    first = data.classes.index(f'class_{top + 1}')
    assert data.counts[first] == 4 * SIZE[0] * SIZE[1] // 4


@pytest.mark.parametrize('count', [255, 256])
def test_the_largest_number_of_classes(count: int, tmp_path: Path) -> None:
    """MMSegmentation keeps 255 for no class."""
    write(tmp_path, [0], size=(256, 4))
    values = np.arange(256).clip(max=count - 1) + 300
    for path in (tmp_path / 'labels').iterdir():
        Image.fromarray(np.broadcast_to(values, (4, 256)).astype(np.uint16)).save(path)
    if count == 256:
        with pytest.raises(UserError, match='256 classes: MMSegmentation knows 255 at most'):
            read_segmentation(tmp_path)
        return
    data = read_segmentation(tmp_path)
    assert (len(data.classes), min(data.counts), data.unlabelled) == (255, 16, 0)


@pytest.mark.parametrize('turned', [False, True])
def test_lines_of_two_pixels_have_nothing_inside(turned: bool, tmp_path: Path) -> None:
    write(tmp_path, [0, 9], size=(64, 64))
    for path in (tmp_path / 'labels').iterdir():
        drawn = np.array(Image.open(path))
        for value in (2, 4, 6):
            drawn[5 * value : 5 * value + 2] = value
        Image.fromarray(drawn.T if turned else drawn).save(path)
    assert '2 (0, 9) are taken for the classes' in notes(read_segmentation(tmp_path), 'question')


def test_thin_classes_that_have_names_are_no_contours(tmp_path: Path) -> None:
    write(tmp_path, [0, 1], size=(96, 64))
    for path in (tmp_path / 'labels').iterdir():
        drawn = np.array(Image.open(path))
        drawn[10], drawn[20], drawn[30] = 2, 3, 4
        Image.fromarray(drawn).save(path)
    data = read_segmentation(tmp_path, 'a=0,b=1,c=2,d=3,e=4')
    assert data.counts[2:] == [4 * 96] * 3
    assert not data.questions


@pytest.mark.parametrize(('images', 'labels', 'paths'), [
    ('all', 'all', ('all/{i}.jpg', 'all/{i}_mask.png')),
    ('.', 'drawn', ('{i}.jpg', 'drawn/{i}.gif')),
    ('taken', '.', ('taken/{i}.jpg', '{i}.png')),
    ('a', 'a/drawn', ('a/{i}.jpg', 'a/drawn/{i}.png')),
    ('a/taken/', 'a', ('a/taken/{i}.jpg', 'a/{i}.png')),
])  # fmt: skip
def test_folders_that_are_given(images: str, labels: str, paths: tuple[str, str], tmp_path: Path) -> None:
    """One may be the other, or lie in it."""
    write(tmp_path, [0, 1], 4, *paths)
    data = read_segmentation(tmp_path, images=images, labels=labels)
    assert {(pair.image, pair.label) for pair in data.details['pairs']} == {
        tuple(path.format(i=index) for path in paths) for index in range(4)
    }
    assert 'left out' not in notes(data)


def test_the_rotation_is_that_of_most_label_maps(tmp_path: Path) -> None:
    write(tmp_path, [0, 1], 12)
    for index in range(3):
        image(tmp_path / f'images/{index}.jpg', orientation=6)
        label(tmp_path / f'labels/{index}.png', [0, 1], SIZE if index == 0 else SIZE[::-1])
    data = read_segmentation(tmp_path)
    assert not data.ignore_orientation
    assert '1 label maps differ in size from their images' in notes(data, 'mistake')


def test_classes_of_another_format_have_the_users_order(tmp_path: Path) -> None:
    write(tmp_path, [1, 2])
    samples = [dict(image=f'images/{i}.jpg', label=f'labels/{i}.png', subset='default') for i in range(4)]
    converted = dict(samples=samples, classes=[dict(name='cat', key=1), dict(name='dog', key=2)])
    for classes, order in ((None, ['cat', 'dog']), ('dog,cat', ['dog', 'cat'])):
        data = read_segmentation(tmp_path, classes, converted=converted)
        assert (data.classes, meaning(data)) == (order, {1: 'cat', 2: 'dog'})


def test_tests_without_label_beside_others_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, [0, 1], 12, 'train/images/{i}.png', 'train/masks/{i}.png')
    write(tmp_path, [0, 1], 2, 'test/images/{i}.png', 'test/masks/{i}.png')
    write(tmp_path, [], range(2, 3), 'test/images/{i}.png', '-')
    data = read_segmentation(tmp_path)
    assert '1 images have no label map and are left out (test/images/2.png)' in notes(data, 'mistake')


def test_palettes_in_other_orders_are_compared_by_colour(tmp_path: Path) -> None:
    """Optimised files number the same colours otherwise."""
    write(tmp_path, [0])
    for index in range(4):
        palette = [0, 255, 0, 255, 0, 0] if index % 2 else [255, 0, 0, 0, 255, 0]
        draw(tmp_path / f'labels/{index}.png', palette, [index % 2, 1 - index % 2])
    data = read_segmentation(tmp_path)
    assert 'index 0 is #ff0000 in labels/0.png and #00ff00 in labels/1.png' in notes(data, 'decision')
    assert meaning(data) == {'#00ff00': '#00ff00', '#ff0000': '#ff0000'}
    first, second = (read_indices(data, pair) for pair in sorted(data.details['pairs'], key=lambda p: p.image)[:2])
    assert (first == second).all()


def remove(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).unlink()


def unlabelled_tests(root: Path) -> None:
    write(root, [0, 1], 4, 'train/images/train{i}.png', 'train/masks/train{i}.png')
    write(root, [], 3, 'test/images/test{i}.png', '-')


def no_copies(root: Path) -> None:
    """Every picture has another size."""
    for split, width in (('train', 48), ('val', 40)):
        for index in range(2):
            paths = (f'{kind}/{split}/{split}{{i}}.{end}' for kind, end in (('images', 'jpg'), ('masks', 'png')))
            write(root, [0, 1], range(index, index + 1), *paths, (width, 30 + index))


def copies(root: Path) -> None:
    no_copies(root)
    for kind, end in (('images', 'jpg'), ('masks', 'png')):
        shutil.copy(root / f'{kind}/train/train0.{end}', root / f'{kind}/val/new.{end}')


def unreadable(root: Path) -> None:
    write(root, [0, 0, 1], 4, 'images/{i}.tif')
    Image.fromarray(np.ones((32, 48), np.float32)).save(root / 'images' / '0.tif')
    page = Image.fromarray(np.ones((32, 48), np.uint8))
    page.save(root / 'images' / '1.tif', save_all=True, append_images=[page])


def of_several_kinds(root: Path) -> None:
    write(root, [0, 255])
    Image.fromarray(np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 2 == 1).save(root / 'labels' / '0.png')


def other_palettes(root: Path) -> None:
    write(root, [0])
    for index in range(4):
        draw(root / f'labels/{index}.png', [0, 0, 0, *([200, 0, 0] if index % 2 else [9, 9, 9])], [0, 1])


def series(name: str) -> Make:
    def make(root: Path) -> None:
        for index in range(16):
            path, size = name.format(index // 4, index % 4), (48, 32 + index)
            write(root, [0, 0, 1], 1, f'images/{path}.jpg', f'masks/{path}.png', size)

    return make


def linked(root: Path) -> None:
    write(root / 'elsewhere', [0, 1])
    (root / 'data').mkdir()
    for folder in ('images', 'labels'):
        (root / 'data' / folder).symlink_to(root / 'elsewhere' / folder)
    (root / 'elsewhere' / 'images' / 'loop').symlink_to(root / 'data')
    (root / 'data' / 'again').symlink_to(root / 'data')


def equal_names(root: Path) -> None:
    write(root, [0, 1], 2, 'images/A/{i}.jpg', 'masks/A/{i}.png')
    write(root, [], range(2, 4), 'images/A/{i}.jpg', '-')
    write(root, [0, 1], 2, 'images/B/{i}.jpg', 'masks/B/{i}.png')
    for index in (2, 3):
        label(root / f'masks/B/{index}.png', [0, 1])


# What there is.
TOLD: dict[str, Make] = {
    'image without label': lambda r: remove(write(r, [0, 1]), 'labels/0.png'),
    'many without': lambda r: remove(write(r, [0, 1], 6), 'labels/0.png', 'labels/1.png'),
    'label without image': lambda r: remove(write(r, [0, 1]), 'images/0.jpg'),
    'sizes differ': lambda r: label(write(r, [0, 1]) / 'labels/0.png', [0], (20, 20)),
    'truncated': lambda r: (r / 'images/0.jpg').write_bytes((write(r, [0, 1]) / 'images/1.jpg').read_bytes()[:600]),
    'no image at all': lambda r: (write(r, [0, 1]) / 'images/0.jpg').write_text('<html>'),
    # 1.png belongs to 1.jpg, and 12.png does not.
    'numbers are not cut': lambda r: remove(
        write(write(r, [0, 1], range(12, 13)), [0, 1], range(1, 4)), 'images/12.jpg'
    ),
    'a number is not the beginning of another': lambda r: remove(
        write(write(r, [0, 1], range(12, 13)), [0, 1], range(1, 4)), 'images/12.jpg', 'labels/1.png'
    ),
    'the longest beginning': lambda r: [
        write(r, [0, 1], 1, f'images/{name}.jpg', f'masks/{other}.png')
        for name, other in (('a', 'a_y'), ('a_b', 'a_b_x'), ('a_b_c', 'a_b_cz'))
    ],
    'the longest beginning in a split': lambda r: [
        write(r, [0, 1], 2, f'images/{split}/{{i}}.jpg', f'masks/{split}/{{i}}_of_it.png') for split in ('train', 'val')
    ],
    'coloured maps elsewhere': lambda r: write(write(r, [0, 1]), [0, 1], labels='other/{i}_color.png'),
    'versions of two sets': lambda r: [
        write(r, [0, 1], 2, f'{name}/images_v1.1/{{i}}.jpg', f'{name}/labels_v1.2/{{i}}.png') for name in 'ab'
    ],
    'tests without labels': unlabelled_tests,
    # One folder of masks for each class: all but one would be dropped.
    'several maps': lambda r: [write(r, [0, 1], labels=f'masks/{name}/{{i}}.png') for name in ('cat', 'dog')],
    'maps of the same place': lambda r: [
        write(r, [0, 1], labels=f'{name}/{{i}}.png') for name in ('annotations', 'labels')
    ],
    'equal names': equal_names,
    'other splits': lambda r: (
        write(r, [0, 1], 4, 'images/train/{i}.jpg', 'masks/train/{i}.png'),
        write(r, [0, 1], range(4, 6), 'images/train/{i}.jpg', 'masks/val/{i}.png'),
    ),
    'beginnings of names': lambda r: (
        write(r, [0, 1], 1, 'images/cat.jpg', 'masks/cat_c.png'),
        [write(r, [0, 1], 1, f'images/{name}.jpg', f'masks/{name}.png') for name in ('cat_a', 'dog')],
    ),
    'other palettes': other_palettes,
    'several kinds': of_several_kinds,
    'copies': copies,
    'not readable': unreadable,
    **{f'series {name}': series(name) for name in ('clip{}_{}', 'clip{}/{}', '{}_{}')},
}


@pytest.mark.parametrize('make', TOLD.values(), ids=TOLD)
@pytest.mark.usefixtures('all_that_is_read')
def test_what_is_told(make: Make, tmp_path: Path) -> None:
    make(tmp_path)
    read_segmentation(tmp_path)


def test_what_is_in_order_is_not_told(tmp_path: Path) -> None:
    no_copies(tmp_path / 'sizes')
    assert 'are copies' not in notes(read_segmentation(tmp_path / 'sizes'))
    assert 'of a series of names' not in notes(read_segmentation(write(tmp_path / 'plain', [0, 1], 10)))
    stamps = write(tmp_path / 'stamps', [0, 1, 2], 4, 'images/2023_10451{i}.jpg', 'masks/2023_10451{i}.png')
    assert len(read_segmentation(stamps).classes) == 3, 'not those of Pascal VOC, whose names are alike'
    ends = write(tmp_path / 'ends', [0, 1], 4, 'images/{i}.jpg', 'masks/{i}.jpg.png')
    write(ends, [0, 1], range(4, 6), 'images/{i}.png', 'masks/{i}.PNG.png')
    assert not read_segmentation(ends).questions
    for number, (images, maps) in enumerate((('x/images', 'masks'), ('images', 'x/masks'), ('y/x/images', 'x/masks'))):
        deep = write(tmp_path / f'deep{number}', [0, 1], 4, f'{images}/{{i}}.jpg', f'{maps}/{{i}}.png')
        assert 'of other folders' not in notes(read_segmentation(deep))
    drone = write(tmp_path / 'other', [0, 1], images='drone/{i}.jpg', labels='truth/{i}.png')
    assert names(read_segmentation(drone, images='drone', labels='truth')) == {'train': 3, 'val': 1}
    linked(tmp_path)
    assert sum(names(read_segmentation(tmp_path / 'data')).values()) == 4, 'linked folders are followed once'


def nothing_fits(root: Path) -> None:
    for path in (write(root, [0, 1]) / 'labels').iterdir():
        label(path, [0, 1], (7, 7))


def maps_of(root: Path, first: Image.Image, *more: Image.Image) -> None:
    """Label maps of these pages."""
    for path in (write(root, [0, 1], 3, labels='labels/{i}.tif') / 'labels').iterdir():
        first.save(path, save_all=True, append_images=more)


REFUSED: dict[str, tuple[Make, dict]] = {
    'beyond the classes': (lambda r: write(r, [0, 1, 7]), dict(classes='a,b')),
    'nothing labelled': (lambda r: write(r, [255]), {}),
    'photographs as labels': (
        lambda r: [image(r / f'{kind}/{i}.png') for kind in ('images', 'labels') for i in (0, 1)],
        {},
    ),
    'mixed': (lambda r: (write(r, [0, 1]), label(r / 'labels/0.png', [[0, 0, 0]])), {}),
    'ADE20K as it was published': (
        lambda r: label(write(r, [0, 1], 2, 'a/ADE_{i}.jpg', 'a/ADE_{i}_seg.png') / 'a' / 'ADE_0_parts_1.png', [0, 1]),
        {},
    ),
    'no folders': (lambda r: image(r / '0.jpg'), {}),
    'one picture': (lambda r: write(r, [0, 1], 1), {}),
    'other names': (lambda r: write(r, [0, 1], labels='labels/x{i}.png'), {}),
    'nothing fits': (nothing_fits, {}),
    'doubled name': (lambda r: write(r, [0, 1]), dict(classes='a,a')),
    'only zeros': (lambda r: write(r, [0, 0]), {}),
    'names and colours': (lambda r: write(r, [[0, 0, 0], [9, 9, 8]]), dict(classes='a')),
    'a class called background': (lambda r: write(r, [0, 1]), dict(classes='a=0,b=1', answers=Answers(background='0'))),
    'a name without its value': (lambda r: write(r, [0, 1]), dict(classes='a=0,b')),
    'no such list': (lambda r: write(r, [0, 1]), dict(classes='gone.txt')),
    'values of one class': (lambda r: write(r, [0, 1]), dict(classes='sky=0,sky=1')),
    'names of colours': (lambda r: write(r, [[9, 0, 0], [0, 0, 9]]), dict(classes='sky,road')),
    'a list of two forms': (lambda r: (write(r, [0, 1]) / 'classes.csv').write_text('sky;0\nsea\n'), {}),
    'a list of two orders': (lambda r: (write(r, [0, 1]) / 'classes.csv').write_text('sky,0\n1,sea\nrock,2\n'), {}),
    'a colour of values': (lambda r: write(r, [0, 1, 2]), dict(answers=Answers(ignore=['#000001']))),
    'no numbers': (lambda r: maps_of(r, Image.new('F', SIZE, np.nan)), {}),
    'no end': (lambda r: maps_of(r, Image.new('F', SIZE, np.inf)), {}),
    'none and others': (lambda r: write(r, [0, 1, 2]), dict(answers=Answers(ignore=['none', '2']))),
    'fractions': (lambda r: maps_of(r, Image.new('F', SIZE, 0.5)), {}),
    'two pages': (lambda r: maps_of(r, Image.new('L', SIZE, 1), Image.new('L', SIZE, 0)), {}),
}


@pytest.mark.parametrize(('make', 'options'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused(make: Make, options: dict, tmp_path: Path, refuses: Any) -> None:
    make(tmp_path)
    with refuses():
        read_segmentation(tmp_path, **options)


def of_16_bits(root: Path, peak: int = 2**15 - 1) -> None:
    for index in range(3):
        Image.fromarray(np.full((32, 48), peak - index, np.uint16)).save(root / 'images' / f'{index}.png')


def of_two_scales(root: Path) -> None:
    label(root / 'labels' / '0.png', [0, 0, 0, 255])


def with_a_holdout(root: Path) -> None:
    for split in ('train', 'val', 'holdout'):
        write(root, [0, 1], 1, f'images/{split}/a.png', f'labels/{split}/a.png')
    remove(root, *(f'images/{index}.png' for index in range(3)))


def with_a_void(root: Path) -> None:
    (root / 'classes.txt').write_text('Void\ncar\n')


def of_objects(root: Path) -> None:
    for index in range(5):
        image(root / 'images' / f'{index}.png')
        label(root / 'labels' / f'{index}.png', [[0, 0, 0], [90, 40 * index, 20], [9, 7, 40 * index]])


@pytest.mark.parametrize(('spoil', 'answer'), [
    (of_objects, None),
    (of_16_bits, None),
    (of_two_scales, Answers(ignore=['255'])),
    (with_a_holdout, None),
    (with_a_void, Answers(ignore=['none'])),
])  # fmt: skip
@pytest.mark.usefixtures('all_that_is_read')
def test_what_would_be_learnt_wrongly_is_asked(spoil: Make, answer: Answers | None, tmp_path: Path) -> None:
    """Not before it is spoilt, and not once it is answered."""
    write(tmp_path, [0, 0, 1], 3, 'images/{i}.png')
    if spoil is of_16_bits:  # which use all of them
        of_16_bits(tmp_path, 2**15)
    names = None if spoil in (with_a_void, of_objects) else 'background,car'
    read_segmentation(tmp_path, classes='background,car')
    spoil(tmp_path)
    for given in (Answers(), *([answer] if answer else [])):
        read_segmentation(tmp_path, classes=names, answers=given)
