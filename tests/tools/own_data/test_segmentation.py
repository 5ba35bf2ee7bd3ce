"""Folders of images and label maps: every layout is understood, and every common mistake is told."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from own_data import Answers, DataSet, read_segmentation
from own_data.dataset import split_names
from own_data.segmentation import read_indices, write_labels
from PIL import Image

from mmpelk.errors import UserError
from tests.paths import sample_data
from tests.tools.own_data.pictures import SIZE, image, label, names, notes


def write(root: Path, values: list[object], count: int = 4, images: str = 'images', labels: str = 'labels') -> Path:
    for index in range(count):
        image(root / images / f'{index}.jpg')
        label(root / labels / f'{index}.png', values)
    return root


@pytest.mark.parametrize(
    ('images', 'labels', 'end'),
    [
        ('images/{}', 'annotations/{}', '.png'),
        ('img_dir/{}', 'ann_dir/{}', '.png'),
        ('{}/images', '{}/masks', '_mask.png'),
        ('leftImg8bit/{}/city', 'gtFine/{}/city', '_gtFine_labelTrainIds.png'),
        ('Images/{}', 'Labels/{}', '.tif'),
    ],
)
def test_layouts_with_splits(images: str, labels: str, end: str, tmp_path: Path) -> None:
    image_end = '_leftImg8bit.png' if 'leftImg' in images else '.jpg'
    for split, count in (('train', 3), ('val', 2)):
        for index in range(count):
            image(tmp_path / images.format(split) / f'a_{index}{image_end}')
            label(tmp_path / labels.format(split) / f'a_{index}{end}', [0, 1, 255])
            if 'gtFine' in labels:  # Cityscapes has several maps for each image
                label(tmp_path / labels.format(split) / f'a_{index}_gtFine_color.png', [0, 9, 9])
    data = read_segmentation(tmp_path)
    assert names(data) == {'train': 3, 'val': 2}
    assert 'left out' not in notes(data)
    assert data.unlabelled == pytest.approx(1 / 3)
    assert len(data.classes) == (19 if 'gtFine' in labels else 2)


def test_pascal_voc(tmp_path: Path) -> None:
    for index in range(4):
        image(tmp_path / 'JPEGImages' / f'2007_00000{index}.jpg')
        label(tmp_path / 'SegmentationClass' / f'2007_00000{index}.png', [0, 15, 255])
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('2007_000000\n2007_000001\n2007_000002\n')
    (lists / 'val.txt').write_text('2007_000003\n')
    data = read_segmentation(tmp_path)
    assert {split: [Path(name).stem for name in chosen] for split, chosen in data.splits.items()} == {
        'train': ['2007_000000', '2007_000001', '2007_000002'],
        'val': ['2007_000003'],
    }
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
    assert counted['sky'] > counted['tree'] > 0
    assert counted['bathtub'] == 0


def test_a_split_is_drawn_where_there_is_none_and_always_the_same(tmp_path: Path) -> None:
    write(tmp_path, [0, 1], count=10)
    first = read_segmentation(tmp_path)
    assert names(first) == {'train': 8, 'val': 2}
    assert not set(first.splits['train']) & set(first.splits['val'])
    assert first.splits == read_segmentation(tmp_path).splits
    listed = [name for part in first.splits.values() for name in part]
    assert split_names(listed, 0.2) == split_names(listed[::-1], 0.2) == first.splits, 'whatever their order'
    assert 'drawn at random' in notes(first, 'decision')


def meaning(data: DataSet) -> dict[object, str]:
    """The class of every value or colour that is trained."""
    found = data.details['meaning']
    shown = (lambda key: f'#{key:06x}') if found.coloured else int
    return {shown(key): found.classes[index] for key, index in sorted(found.mapping.items())}


# Values of the label maps, options, what is trained as what, and the options of the question, if there is one.
VALUES: dict[str, tuple[list[object], dict, dict, str]] = {
    'unnamed': ([0, 1, 2], {}, {0: 'class_0', 1: 'class_1', 2: 'class_2'}, '--ignore none'),
    'unnamed, all are classes': ([0, 1, 2], dict(ignore=['none']), {0: 'class_0', 1: 'class_1', 2: 'class_2'}, ''),
    'unnamed, one ignored': ([0, 1, 2], dict(ignore=['2']), {0: 'class_0', 1: 'class_1'}, ''),
    'unnamed from 1': ([1, 2, 3], {}, {1: 'class_1', 2: 'class_2', 3: 'class_3'}, '--ignore none'),
    'unnamed, void': ([0, 1, 255], {}, {0: 'class_0', 1: 'class_1'}, ''),
    'unnamed mask': ([0, 255], {}, {0: 'background', 255: 'foreground'}, ''),
    'named mask': ([0, 255], dict(classes='ground,house'), {0: 'ground', 255: 'house'}, ''),
    'named mask, background last': ([0, 255], dict(classes='house,background'), {0: 'house', 255: 'background'},
                                    '--classes house=0,background=255'),
    'one name, mask': ([0, 255], dict(classes='car'), {0: 'background', 255: 'car'}, ''),
    'one name': ([0, 1], dict(classes='car'), {0: 'background', 1: 'car'}, ''),
    'one name, two present values': ([1, 2], dict(classes='a,b'), {1: 'a', 2: 'b'}, ''),
    'in order': ([0, 1, 2], dict(classes='a,b,c'), {0: 'a', 1: 'b', 2: 'c'}, ''),
    'some absent': ([0, 2, 255], dict(classes='a,b,c,d'), {0: 'a', 2: 'c'}, ''),
    'zero absent': ([1, 2], dict(classes='a,b,c'), {1: 'b', 2: 'c'}, '--classes a=1,...'),
    'zero ignored, two readings': ([0, 1, 2], dict(classes='a,b,c', ignore=['0']), {1: 'a', 2: 'b'},
                                   '--classes a=0,...'),
    'zero ignored, the background': ([0, 1, 2], dict(classes='background,b,c', ignore=['0']), {1: 'b', 2: 'c'}, ''),
    'background said twice': ([0, 1, 2], dict(classes='background,b,c', background='0'),
                              {0: 'background', 1: 'b', 2: 'c'}, ''),
    'background said twice, last': ([0, 1, 2], dict(classes='b,c,bg', background='0'), {0: 'bg', 1: 'b', 2: 'c'}, ''),
    'one value too many': ([0, 1, 2], dict(classes='a,b'), {1: 'a', 2: 'b'}, '--ignore 2'),
    'one value too many, 0 ignored': ([0, 1, 2], dict(classes='a,b', ignore=['0']), {1: 'a', 2: 'b'}, ''),
    'one value too many, last ignored': ([0, 1, 2], dict(classes='a,b', ignore=['2']), {0: 'a', 1: 'b'}, ''),
    'one value too many, background': ([0, 1, 2], dict(classes='a,b', background='0'),
                                       {0: 'background', 1: 'a', 2: 'b'}, ''),
    'background named first': ([0, 1, 2], dict(classes='background,b'), {0: 'background', 1: 'b'}, '--ignore 2'),
    'background, one absent': ([0, 1, 3], dict(classes='a,b,c', background='0'), {0: 'background', 1: 'a', 3: 'c'}, ''),
    'unnamed, background': ([0, 1, 2], dict(background='0'), {0: 'background', 1: 'class_1', 2: 'class_2'}, ''),
    'one value named': ([0, 5], dict(classes='car=5'), {0: 'background', 5: 'car'}, ''),
    'grey levels': ([0, 38, 75, 113], {}, {0: 'class_0', 38: 'class_38', 75: 'class_75', 113: 'class_113'},
                    '--classes'),
    'bright grey levels': ([0, 85, 170, 255], {}, {0: 'class_0', 85: 'class_85', 170: 'class_170', 255: 'class_255'},
                           '--ignore 255'),
    'bright grey levels, decided': ([0, 85, 255], dict(ignore=['none']),
                                    {0: 'class_0', 85: 'class_85', 255: 'class_255'}, ''),
    'bright grey levels, named': ([0, 85, 170, 255], dict(classes='a,b,c,d'), {0: 'a', 85: 'b', 170: 'c', 255: 'd'},
                                  '--classes a=0,b=85'),
    'values named': ([0, 5, 9], dict(classes='a=9,b=0,c=5'), {0: 'b', 5: 'c', 9: 'a'}, ''),
    'values named, one left': ([0, 5, 9], dict(classes='a=9,b=0'), {0: 'b', 9: 'a'}, '--ignore 5'),
    'values joined': ([0, 5, 9], dict(classes='a=9,b=0,a=5'), {0: 'b', 5: 'a', 9: 'a'}, ''),
    'grey colours': ([[0, 0, 0], [1, 1, 1]], dict(classes='a,b'), {'#000000': 'a', '#010101': 'b'}, ''),
    'colours': ([[0, 0, 0], [128, 0, 0]], {}, {'#000000': '#000000', '#800000': '#800000'}, ''),
    'colours named': ([[9, 0, 0], [0, 9, 0]], dict(classes='b=#000900,a=#090000'), {'#000900': 'b', '#090000': 'a'},
                      ''),
    'a colour left': ([[9, 0, 0], [0, 9, 0], [7, 7, 9]], dict(classes='b=#000900,a=#090000'),
                      {'#000900': 'b', '#090000': 'a'}, '--ignore #070709'),
}  # fmt: skip


@pytest.mark.parametrize(('values', 'options', 'expected', 'asked'), VALUES.values(), ids=VALUES)
def test_what_values_mean(
    values: list[object], options: dict, expected: dict[object, str], asked: str, tmp_path: Path
) -> None:
    words = {key: options[key] for key in ('ignore', 'background') if key in options}
    data = read_segmentation(write(tmp_path / 'data', values), options.get('classes'), answers=Answers(**words))
    assert meaning(data) == expected
    assert asked in notes(data, 'question')
    assert bool(data.questions) is bool(asked)
    # Every value is in the table, and the maps that are written have the class of the table on its pixels.
    assert len(data.details['values']) == len(values)
    write_labels(data, tmp_path / 'labels')
    written = np.asarray(Image.open(tmp_path / 'labels' / 'images' / '0.jpg.png'))
    for index, value in enumerate(values):
        key = value if isinstance(value, int) else '#{:02x}{:02x}{:02x}'.format(*value)  # type: ignore[misc]
        pixels = written[:, (2 * index + 1) * SIZE[0] // (2 * len(values))]
        assert {data.classes[pixel] if pixel < 255 else None for pixel in pixels} == {expected.get(key)}
    assert sum(data.counts) == sum(int((written < 255).sum()) for _ in range(4))


LISTS = {
    'name,R,G,B': 'name,r,g,b\nsky,0,0,9\nroad,9,0,0\n',
    'R G B name': '0 0 9\tsky\n9 0 0\troad\n',
    'R G B name, two words': '0 0 9 sky\n9 0 0 road\n',
    'cvat': '# label:color_rgb:parts:actions\nsky:0,0,9::\nroad:9,0,0::\n',
    'hex': 'sky=#000009\nroad=#090000\n',
}


@pytest.mark.parametrize('text', LISTS.values(), ids=LISTS)
def test_lists_of_colours(text: str, tmp_path: Path) -> None:
    write(tmp_path, [[9, 0, 0], [0, 0, 9]])
    (tmp_path / 'labelmap.txt').write_text(text)
    data = read_segmentation(tmp_path)
    assert data.classes == ['sky', 'road']
    assert meaning(data) == {'#000009': 'sky', '#090000': 'road'}
    assert data.palette == [(0, 0, 9), (9, 0, 0)]


@pytest.mark.parametrize('text', ['Pixel Value, Class\n0, sky\n1, road\n', '1: road\n0: sky\n', 'sky\t0\nroad\t1\n'])
def test_lists_of_values(text: str, tmp_path: Path) -> None:
    write(tmp_path, [0, 1])
    (tmp_path / 'classes.txt').write_text(text)
    assert meaning(read_segmentation(tmp_path)) == {0: 'sky', 1: 'road'}


def test_indices_with_a_list_of_colours_are_a_question(tmp_path: Path) -> None:
    """A list of 32 colours beside maps of 12 joined classes would name them all wrongly."""
    write(tmp_path, [0, 1])
    data = read_segmentation(tmp_path, 'sky=#000009,road=#090000')
    assert 'taken for places in the list (--classes sky=0,...)' in notes(data, 'question')
    assert meaning(data) == {0: 'sky', 1: 'road'}
    assert data.palette == [(0, 0, 9), (9, 0, 0)]


def test_names_of_colours_are_never_guessed(tmp_path: Path) -> None:
    write(tmp_path, [[9, 0, 0], [0, 0, 9]])
    with pytest.raises(UserError, match='--classes sky=#rrggbb,road=#rrggbb'):
        read_segmentation(tmp_path, 'sky,road')


@pytest.mark.parametrize('end', ['.png', '.jpg'])
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
        drawn.save(tmp_path / 'masks' / f'{index}{end}')
    data = read_segmentation(tmp_path)
    assert '--soft-edges' in notes(data, 'question')
    assert len(data.classes) == 2
    confirmed = read_segmentation(tmp_path, answers=Answers(soft_edges=True))
    assert not confirmed.questions
    write_labels(confirmed, tmp_path / 'labels')
    for name, mask in wanted.items():
        written = np.asarray(Image.open(tmp_path / 'labels' / 'images' / f'{name}.jpg.png'))
        assert (written != 255).mean() > 0.9
        assert ((written == 1) == (mask == 255))[written != 255].all()


@pytest.mark.parametrize(
    ('image_name', 'label_name'),
    [
        ('{i}.jpg', '{i}_mask.png'),
        ('image_{i}.jpg', 'mask_{i}.png'),
        ('img{i}.jpg', 'mask{i}.gif'),
        ('train/{i}.jpg', 'train_masks/{i}_mask.gif'),
        ('{i}/image.png', '{i}/mask.png'),
        ('Train/Rural/images_png/{i}.png', 'Train/Rural/masks_png/{i}.png'),
        ('701_StillsRaw_full/a_{i}.png', 'LabeledApproved_full/a_{i}_L.png'),
        ('training/images/{i}.jpg', 'training/v1.2/labels/{i}.png'),
        ('train/{i}_sat.jpg', 'train/{i}_mask.png'),
        ('top_{i}_RGB.tif', 'top_{i}_label.tif'),
        ('leftImg8bit/a_{i}_leftImg8bit.png', 'gtFine/a_{i}_gtFine_labelIds.png'),
    ],
)
def test_layouts_by_name(image_name: str, label_name: str, tmp_path: Path) -> None:
    for index in range(4):
        image(tmp_path / image_name.format(i=index))
        label(tmp_path / label_name.format(i=index), [28, 31] if 'gtFine' in label_name else [0, 1])
    data = read_segmentation(tmp_path)
    assert names(data) == {'train': 3, 'val': 1}
    assert 'gtFine' not in label_name or meaning(data) == {28: 'bus', 31: 'train'}
    for pair in data.details['pairs']:
        number = pair.image.removeprefix('701_').removeprefix('leftImg8bit')
        digit = next(letter for letter in number if letter.isdigit())
        assert label_name.format(i=digit) == pair.label
    assert 'left out' not in notes(data)
    assert data.unlabelled == 0


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
        for index in range(3):
            pair = layout.format(s=split, i=index).split()
            image(tmp_path / pair[0])
            label(tmp_path / pair[1], [0, 1])
    data = read_segmentation(tmp_path)
    assert names(data) == expected
    assert {name.split('/')[0] for name in data.splits.get('test', [])} <= {'test'}
    assert not any('test' in name for name in data.splits['train'] + data.splits['val'])
    assert ('for tools/test.py alone' in notes(data, 'decision')) is ('test' in splits)


def test_test_images_without_labels_are_no_mistake(tmp_path: Path) -> None:
    for split, count in (('train', 4), ('test', 3)):
        for index in range(count):
            image(tmp_path / split / 'images' / f'{split}{index}.png')
            if split == 'train':
                label(tmp_path / split / 'masks' / f'{split}{index}.png', [0, 1])
    data = read_segmentation(tmp_path)
    assert names(data) == {'train': 3, 'val': 1}
    assert not data.questions
    assert '3 images of the test split have no label map' in notes(data, 'remark')


@pytest.mark.parametrize(
    'line', ['{}', '{}.jpg', 'images/{}.jpg', '/home/x/set/images/{}.jpg /home/x/set/labels/{}.png', 'images\\{}.jpg']
)
def test_lists_beside_the_pictures(line: str, tmp_path: Path) -> None:
    write(tmp_path, [0, 1], count=5)
    (tmp_path / 'train.txt').write_text('\n'.join(line.format(i, i) for i in (0, 3)))
    (tmp_path / 'val.txt').write_text('\n'.join(line.format(i, i) for i in (1, 2)) + '\n')
    data = read_segmentation(tmp_path)
    assert data.splits == {'train': ['images/0.jpg', 'images/3.jpg'], 'val': ['images/1.jpg', 'images/2.jpg']}
    assert '1 pictures are in no list' in notes(data)


def test_label_maps_read_through_their_palette(tmp_path: Path) -> None:
    """Indices in another order than the list's, whose colours are in the file."""
    write(tmp_path, [0, 1])
    for path in (tmp_path / 'labels').iterdir():
        indices = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        indices[:, 24:] = 3
        drawn = Image.fromarray(indices, 'P')
        drawn.putpalette([0, 0, 9, 1, 1, 1, 2, 2, 2, 9, 0, 0])
        drawn.save(path)
    data = read_segmentation(tmp_path, 'road=#090000,sky=#000009')
    assert meaning(data) == {'#000009': 'sky', '#090000': 'road'}


def test_much_that_is_left_out_is_a_question(tmp_path: Path) -> None:
    write(tmp_path, [0, 1], count=6)
    for index in range(2):
        (tmp_path / 'labels' / f'{index}.png').unlink()
    assert '2 images have no label map and are left out' in notes(read_segmentation(tmp_path), 'question')


def spoil_nothing_fits(root: Path) -> None:
    for path in (root / 'labels').iterdir():
        label(path, [0, 1], (7, 7))


def spoil_names(root: Path) -> None:
    for path in list((root / 'labels').iterdir()):
        path.rename(path.with_name(f'x{path.name}'))


SPOILT = {
    'image without label': (lambda r: (r / 'labels/0.png').unlink(), '1 images have no label map', '0.jpg'),
    'label without image': (lambda r: (r / 'images/0.jpg').unlink(), '1 label maps have no image', '0.png'),
    'sizes differ': (lambda r: label(r / 'labels/0.png', [0], (20, 20)), 'differ in size', '48x32 against 20x20'),
    'truncated': (
        lambda r: (r / 'images/0.jpg').write_bytes((r / 'images/1.jpg').read_bytes()[:600]),
        'cannot be read',
        '0',
    ),
    'no image at all': (
        lambda r: (r / 'images/0.jpg').write_text('<html>'),
        'cannot be read',
        'UnidentifiedImageError',
    ),
}


@pytest.mark.parametrize(('spoil', 'said', 'named'), SPOILT.values(), ids=SPOILT)
def test_what_cannot_be_trained_on_is_left_out(spoil: object, said: str, named: str, tmp_path: Path) -> None:
    spoil(write(tmp_path, [0, 1, 1, 0]))  # type: ignore[operator]
    data = read_segmentation(tmp_path)
    told = notes(data, 'mistake')
    assert said in told
    assert named in told
    assert sum(names(data).values()) == 3


@pytest.mark.parametrize(
    ('orientation', 'label_size', 'ignored', 'said'),
    [
        (6, SIZE, True, 'the config ignores it'),
        (6, SIZE[::-1], False, 'it is applied'),
        (3, SIZE, False, 'in a way that their sizes do not tell'),
    ],
)
def test_exif_orientation(
    orientation: int, label_size: tuple[int, int], ignored: bool, said: str, tmp_path: Path
) -> None:
    write(tmp_path, [0, 1])
    image(tmp_path / 'images/0.jpg', orientation=orientation)
    label(tmp_path / 'labels/0.png', [0, 1], label_size)
    data = read_segmentation(tmp_path)
    assert data.ignore_orientation is ignored
    assert said in notes(data, 'decision')
    assert sum(names(data).values()) == 4


REFUSED = {
    'beyond the classes': (lambda r: write(r, [0, 1, 7]), dict(classes='a,b'), '7 beyond them are 33.3% of the pixels'),
    'nothing labelled': (lambda r: write(r, [255]), {}, "every pixel .* is 255, which means 'no class'"),
    'photographs as labels': (lambda r: [image(r / f'{kind}/{i}.png') for kind in ('images', 'labels') for i in (0, 1)],
                              {}, r'\d+ colours: they are photographs'),
    'mixed': (lambda r: (write(r, [0, 1]), label(r / 'labels/0.png', [[0, 0, 0]])), {}, '1 of 4 label maps are colour'),
    'no folders': (lambda r: image(r / '0.jpg'), {}, '--images FOLDER --labels FOLDER'),
    'one picture': (lambda r: write(r, [0, 1], count=1), {}, 'training and validation need one each'),
    'other names': (lambda r: spoil_names(write(r, [0, 1])), {}, 'no label map that belongs to an image'),
    'nothing fits': (lambda r: spoil_nothing_fits(write(r, [0, 1])), {}, 'nothing in .* can be trained on'),
    'doubled name': (lambda r: write(r, [0, 1]), dict(classes='a,a'), r"\['a'\] twice"),
    'only zeros': (lambda r: write(r, [0, 0]), {}, 'a single class'),
    'names and colours': (lambda r: write(r, [[0, 0, 0], [9, 9, 8]]), dict(classes='a'), 'a line name,R,G,B'),
    'a class called background': (lambda r: write(r, [0, 1]),
                                  dict(classes='a=0,b=1', answers=Answers(background='0')), "is the class 'a'"),
    'a name without its value': (lambda r: write(r, [0, 1]), dict(classes='a=0,b'), 'give all classes =VALUE'),
    'no such list': (lambda r: write(r, [0, 1]), dict(classes='gone.txt'), "no list of classes 'gone.txt'"),
}  # fmt: skip


@pytest.mark.parametrize(('make', 'options', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused(make: object, options: dict, message: str, tmp_path: Path) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        read_segmentation(tmp_path, **options)


def test_folders_with_other_names(tmp_path: Path) -> None:
    write(tmp_path, [0, 1], images='drone', labels='truth')
    assert names(read_segmentation(tmp_path, images='drone', labels='truth')) == {'train': 3, 'val': 1}


def test_numbers_are_not_cut(tmp_path: Path) -> None:
    """``1.png`` belongs to ``1.jpg``, and ``12.png`` does not."""
    for name in ('1', '12', '3'):
        image(tmp_path / 'images' / f'{name}.jpg')
        label(tmp_path / 'labels' / f'{name}.png', [0, 1])
    (tmp_path / 'images' / '12.jpg').unlink()
    assert '1 label maps have no image and are left out (labels/12.png)' in notes(read_segmentation(tmp_path))


def test_several_label_maps_of_an_image_are_a_question(tmp_path: Path) -> None:
    """One folder of masks for each class: all but one would be dropped."""
    for index in range(4):
        image(tmp_path / 'images' / f'{index}.jpg')
        for name in ('cat', 'dog'):
            label(tmp_path / 'masks' / name / f'{index}.png', [0, 1])
    asked = notes(read_segmentation(tmp_path), 'question')
    assert '4 label maps belong to images that have another' in asked
    assert 'masks/dog/0.png' in asked


def test_other_folders_with_equal_names_are_a_question(tmp_path: Path) -> None:
    for folder, pictures, maps in (('A', range(4), range(2)), ('B', range(2), range(4))):
        for index in pictures:
            image(tmp_path / 'images' / folder / f'{index}.jpg')
        for index in maps:
            label(tmp_path / 'masks' / folder / f'{index}.png', [0, 1])
    asked = notes(read_segmentation(tmp_path), 'question')
    assert '2 images are paired with label maps of other folders' in asked
    assert 'images/A/2.jpg with masks/B/2.png' in asked


def test_other_splits_are_no_pairs(tmp_path: Path) -> None:
    for index in range(6):
        image(tmp_path / 'images' / 'train' / f'{index}.jpg')
        label(tmp_path / 'masks' / ('train' if index < 4 else 'val') / f'{index}.png', [0, 1])
    data = read_segmentation(tmp_path)
    assert sum(names(data).values()) == 4
    assert '2 images have no label map' in notes(data, 'question')


def test_beginnings_of_names_beside_whole_names_are_a_question(tmp_path: Path) -> None:
    for name in ('cat', 'cat_a', 'dog'):
        image(tmp_path / 'images' / f'{name}.jpg')
    for name in ('cat_c', 'cat_a', 'dog'):
        label(tmp_path / 'masks' / f'{name}.png', [0, 1])
    assert 'images/cat.jpg with masks/cat_c.png' in notes(read_segmentation(tmp_path), 'question')


def test_names_with_spaces_in_lists(tmp_path: Path) -> None:
    """The first word of a line is a name where the whole line is none."""
    every = [f'photo{letter}{copy}' for letter in 'ab' for copy in ('', ' (1)')]
    for name in every:
        image(tmp_path / 'images' / f'{name}.jpg')
        label(tmp_path / 'masks' / f'{name}.png', [0, 1])
    (tmp_path / 'train.txt').write_text('\n'.join(name for name in every if '(' in name))
    (tmp_path / 'val.txt').write_text('\n'.join(f'{name} 1' for name in every if '(' not in name))
    data = read_segmentation(tmp_path)
    assert data.splits == {'train': ['images/photoa (1).jpg', 'images/photob (1).jpg'],
                           'val': ['images/photoa.jpg', 'images/photob.jpg']}  # fmt: skip


def write_palettes(root: Path, palettes: list[list[int]], values: list[list[int]]) -> Path:
    for number, (palette, stripes) in enumerate(zip(palettes, values, strict=True)):
        image(root / 'images' / f'{number}.jpg')
        (root / 'masks').mkdir(parents=True, exist_ok=True)
        indices = np.array(stripes, np.uint8)[np.arange(SIZE[0]) * len(stripes) // SIZE[0]]
        drawn = Image.fromarray(np.broadcast_to(indices, SIZE[::-1]).copy(), 'P')
        drawn.putpalette(palette)
        drawn.save(root / 'masks' / f'{number}.png')
    return root


def test_palettes_in_other_orders_are_compared_by_colour(tmp_path: Path) -> None:
    """Optimised files number the same colours otherwise."""
    red, green = [255, 0, 0], [0, 255, 0]
    write_palettes(tmp_path, [red + green, green + red] * 2, [[0, 1], [1, 0]] * 2)
    data = read_segmentation(tmp_path)
    assert 'index 0 is #ff0000 in masks/0.png and #00ff00 in masks/1.png' in notes(data, 'decision')
    assert meaning(data) == {'#00ff00': '#00ff00', '#ff0000': '#ff0000'}
    first, second = (read_indices(data, pair) for pair in sorted(data.details['pairs'], key=lambda p: p.image)[:2])
    assert (first == second).all()


def test_palettes_with_other_colours_are_a_question(tmp_path: Path) -> None:
    write_palettes(tmp_path, [[0, 0, 0, 9, 9, 9], [0, 0, 0, 200, 0, 0]] * 2, [[0, 1]] * 4)
    assert 'the palettes of the label maps differ: index 1' in notes(read_segmentation(tmp_path), 'question')


def test_label_maps_of_several_kinds_are_a_question(tmp_path: Path) -> None:
    write(tmp_path, [0, 255])
    Image.fromarray(np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) % 2 == 1).save(tmp_path / 'labels' / '0.png')
    assert 'of several kinds (1 in labels/0.png, L in' in notes(read_segmentation(tmp_path), 'question')


def test_a_list_with_a_head_line(tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 2])
    (tmp_path / 'classes.csv').write_text('class\nsky\nroad\ncar\n')
    assert meaning(read_segmentation(tmp_path)) == {0: 'sky', 1: 'road', 2: 'car'}


def test_time_stamps_are_no_pascal_voc(tmp_path: Path) -> None:
    for index in range(4):
        image(tmp_path / 'images' / f'2023_10451{index}.jpg')
        label(tmp_path / 'masks' / f'2023_10451{index}.png', [0, 1, 2])
    assert len(read_segmentation(tmp_path).classes) == 3


def test_copies_between_the_splits_are_found(tmp_path: Path) -> None:
    for split, size in (('train', SIZE), ('val', (40, 30))):
        for index in range(2):
            image(tmp_path / 'images' / split / f'{split}{index}.jpg', (size[0], size[1] + index))
            label(tmp_path / 'masks' / split / f'{split}{index}.png', [0, 1], (size[0], size[1] + index))
    assert 'are copies' not in notes(read_segmentation(tmp_path))
    for kind, end in (('images', 'jpg'), ('masks', 'png')):
        shutil.copy(tmp_path / f'{kind}/train/train0.{end}', tmp_path / f'{kind}/val/new.{end}')
    assert '1 pictures to validate or test on are copies' in notes(read_segmentation(tmp_path), 'mistake')


@pytest.mark.parametrize('text', [
    'Wert;Klasse\n0;Himmel\n1;"Straße, nass"\n', 'nom,valeur\n"Himmel",0\n"Straße, nass",1\n',
])  # fmt: skip
def test_lists_of_other_languages(text: str, tmp_path: Path) -> None:
    """A heading is told by its form, not by its words."""
    root = write(tmp_path, [0, 1])
    (root / 'classes.csv').write_text(text, 'utf-8-sig')
    assert read_segmentation(root).classes == ['Himmel', 'Straße, nass']
    (root / 'classes.csv').write_text('sky;0\nsea\n')
    with pytest.raises(UserError, match="lines like 'sky;0' and like 'sea'"):
        read_segmentation(root)


@pytest.mark.parametrize(('mode', 'value', 'pages', 'message'), [
    ('F', 0.5, 1, 'values of label maps are whole numbers'),
    ('L', 1, 2, 'a label map is one picture, and it has 2'),
])  # fmt: skip
def test_label_maps_that_are_none(mode: str, value: float, pages: int, message: str, tmp_path: Path) -> None:
    for index in range(3):
        image(tmp_path / 'images' / f'{index}.jpg')
        (tmp_path / 'labels').mkdir(exist_ok=True)
        more = [Image.new(mode, SIZE, 0)] * (pages - 1)
        Image.new(mode, SIZE, value).save(  # type: ignore[arg-type]
            tmp_path / 'labels' / f'{index}.tif', save_all=True, append_images=more
        )
    with pytest.raises(UserError, match=message):
        read_segmentation(tmp_path)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / 'elsewhere', [0, 1])
    root = tmp_path / 'data'
    root.mkdir()
    for folder in ('images', 'labels'):
        (root / folder).symlink_to(tmp_path / 'elsewhere' / folder)
    (tmp_path / 'elsewhere' / 'images' / 'loop').symlink_to(root)
    (root / 'again').symlink_to(root)
    assert sum(names(read_segmentation(root)).values()) == 4


def of_16_bits(root: Path) -> None:
    for index in range(3):
        Image.fromarray(np.full((32, 48), 4000, np.uint16)).save(root / 'images' / f'{index}.png')


def of_two_scales(root: Path) -> None:
    label(root / 'labels' / '0.png', [0, 0, 0, 255])


def with_a_holdout(root: Path) -> None:
    for split in ('train', 'val', 'holdout'):
        image(root / 'images' / split / 'a.png')
        label(root / 'labels' / split / 'a.png', [0, 1])
    for index in range(3):
        (root / 'images' / f'{index}.png').unlink()


def with_a_void(root: Path) -> None:
    (root / 'classes.txt').write_text('Void\ncar\n')


def of_objects(root: Path) -> None:
    for index in range(5):
        image(root / 'images' / f'{index}.png')
        label(root / 'labels' / f'{index}.png', [[0, 0, 0], [90, 40 * index, 20], [9, 7, 40 * index]])


@pytest.mark.parametrize(
    ('spoil', 'asked', 'answer'),
    [
        (of_objects, '10 of 11 colours are in one label map each', None),
        (of_16_bits, 'the highest value is 4000, read as 15 of 255', None),
        (of_two_scales, '1 label maps hold 0 and 255 alone', Answers(ignore=['255'])),
        (with_a_holdout, '1 pictures are in folders beside those of the splits', None),
        (with_a_void, "the class 'Void' is called like none", Answers(ignore=['none'])),
    ],
)
def test_what_would_be_learnt_wrongly_is_asked(
    spoil: Callable[[Path], None], asked: str, answer: Answers | None, tmp_path: Path
) -> None:
    for index in range(3):
        image(tmp_path / 'images' / f'{index}.png')
        label(tmp_path / 'labels' / f'{index}.png', [0, 0, 1])
    names = None if spoil in (with_a_void, of_objects) else 'background,car'
    assert not read_segmentation(tmp_path, classes='background,car').questions
    spoil(tmp_path)
    assert asked in notes(read_segmentation(tmp_path, classes=names), 'question')
    if answer:
        assert not read_segmentation(tmp_path, classes=names, answers=answer).questions


def test_pictures_that_training_cannot_read_are_refused(tmp_path: Path) -> None:
    for index in range(4):
        image(tmp_path / 'images' / f'{index}.tif')
        label(tmp_path / 'labels' / f'{index}.png', [0, 0, 1])
    Image.fromarray(np.ones((32, 48), np.float32)).save(tmp_path / 'images' / '0.tif')
    page = Image.fromarray(np.ones((32, 48), np.uint8))
    page.save(tmp_path / 'images' / '1.tif', save_all=True, append_images=[page])
    asked = notes(read_segmentation(tmp_path), 'question')
    assert '2 images or their label maps cannot be read' in asked


@pytest.mark.parametrize('name', ['clip{}_{}', 'clip{}/{}', '{}_{}'])
def test_series_on_both_sides_are_told(name: str, tmp_path: Path) -> None:
    for index in range(16):
        path = name.format(index // 4, index % 4)
        image(tmp_path / 'images' / f'{path}.jpg', (48, 32 + index))
        label(tmp_path / 'masks' / f'{path}.png', [0, 0, 1], (48, 32 + index))
    assert 'of a series of names' in notes(read_segmentation(tmp_path), 'remark')
    plain = write(tmp_path / 'plain', [0, 1], 10)
    assert 'of a series of names' not in notes(read_segmentation(plain))


@pytest.mark.parametrize(
    ('name', 'lists', 'asked'),
    [
        ('train_data/{kind}/{split}/{index}', {}, ''),
        ('{kind}/{split}_{index}', {}, 'the names of pictures begin with those of splits'),
        ('{kind}/x{split}{index}', {'test_list.txt': 'xtest0.jpg\n'}, '1 lists of a split are not read'),
        ('{kind}/x{split}{index}', {'annotations/trainval.txt': 'xtrain0\nxtrain1\nxval0\n'}, ''),
    ],
)
def test_splits_are_read_or_asked_for(name: str, lists: dict[str, str], asked: str, tmp_path: Path) -> None:
    for split, count in (('train', 3), ('val', 1), ('test', 1)):
        for index in range(count):
            image(tmp_path / f'{name.format(kind="images", split=split, index=index)}.jpg')
            label(tmp_path / f'{name.format(kind="masks", split=split, index=index)}.png', [0, 0, 1])
    for file, text in lists.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    data = read_segmentation(tmp_path)
    assert asked in notes(data, 'question')
    assert bool(data.questions) is bool(asked)
    if not asked:
        assert not any('test' in path for split in ('train', 'val') for path in data.splits[split])


def test_all_values_of_one_class_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [0, 1])
    with pytest.raises(UserError, match='say which is which'):
        read_segmentation(tmp_path, classes='sky=0,sky=1')
