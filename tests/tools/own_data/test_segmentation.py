"""Folders of images and label maps: every layout is understood, and every common mistake is told."""

from pathlib import Path

import numpy as np
import pytest
from own_data import read_segmentation
from own_data.segmentation import write_labels
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
    assert data.splits == {'train': ['2007_000000', '2007_000001', '2007_000002'], 'val': ['2007_000003']}
    assert (data.classes[0], data.classes[15]) == ('background', 'person')
    assert not data.details['meaning'].reduce_zero_label


def test_ade20k_sample() -> None:
    data = read_segmentation(sample_data('ade20k_sample'))
    assert names(data) == {'train': 2, 'val': 1}
    assert len(data.classes) == 150
    assert data.details['meaning'].reduce_zero_label
    counted = dict(zip(data.classes, data.counts, strict=True))
    assert counted['sky'] > counted['tree'] > 0
    assert counted['bathtub'] == 0


def test_a_split_is_drawn_where_there_is_none_and_always_the_same(tmp_path: Path) -> None:
    write(tmp_path, [0, 1], count=10)
    first = read_segmentation(tmp_path)
    assert names(first) == {'train': 8, 'val': 2}
    assert not set(first.splits['train']) & set(first.splits['val'])
    assert first.splits == read_segmentation(tmp_path).splits
    assert 'drawn at random' in notes(first, 'decision')


@pytest.mark.parametrize(
    ('values', 'given', 'classes', 'zero', 'said'),
    [
        ([0, 1, 2], None, 3, False, 'the value 0 is taken for a class'),
        ([1, 2, 3], None, 3, True, 'the classes begin at 1'),
        ([0, 1, 2], 'a,b', 2, True, ''),
        ([0, 1, 2], 'a,b,c', 3, False, ''),
        ([0, 2, 255], 'a,b,c,d', 4, False, ''),
    ],
)
def test_zero_is_a_class_or_unlabelled(
    values: list[object], given: str | None, classes: int, zero: bool, said: str, tmp_path: Path
) -> None:
    data = read_segmentation(write(tmp_path, values), given)
    assert len(data.classes) == classes
    assert data.details['meaning'].reduce_zero_label is zero
    assert said in notes(data)
    assert data.unlabelled == pytest.approx((values.count(255) + zero * values.count(0)) / len(values))
    assert all(data.counts[value - zero] for value in values if value != 255 and not (zero and value == 0))


def test_user_decides_about_zero(tmp_path: Path) -> None:
    data = read_segmentation(write(tmp_path, [0, 1, 2]), reduce_zero_label=True)
    assert (len(data.classes), data.unlabelled) == (2, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ('values', 'counts', 'said'),
    [
        ([0, 255], [1, 1], '255 means "no class"'),
        ([0, 38, 75, 113], [1, 1, 1, 1], 'grey levels of 4 classes'),
        ([[0, 0, 0], [128, 0, 0], [128, 0, 0]], [1, 2], 'colour pictures'),
    ],
    ids=['mask', 'grey', 'colours'],
)
def test_label_maps_that_are_rewritten(values: list[object], counts: list[int], said: str, tmp_path: Path) -> None:
    data = read_segmentation(write(tmp_path / 'data', values))
    pixels = SIZE[0] * SIZE[1] * 4 // len(values)
    assert data.counts == [count * pixels for count in counts]
    assert said in notes(data, 'decision')
    assert write_labels(data, tmp_path / 'labels')
    written = np.asarray(Image.open(tmp_path / 'labels' / 'labels' / '0.png'))
    assert np.bincount(written.ravel()).tolist() == [count // 4 for count in data.counts]


def test_colours_with_names(tmp_path: Path) -> None:
    write(tmp_path, [[0, 0, 0], [200, 0, 0], [1, 2, 3]])
    (tmp_path / 'labelmap.txt').write_text('# label:color_rgb:parts:actions\nroad:200,0,0::\nsky:0,0,0::\n')
    data = read_segmentation(tmp_path)
    assert data.classes == ['road', 'sky']
    assert data.palette == [(200, 0, 0), (0, 0, 0)]
    assert '33.3% of the pixels have colours of no class (#010203)' in notes(data, 'mistake')


def spoil_nothing_fits(root: Path) -> None:
    for path in (root / 'labels').iterdir():
        label(path, [0, 1], (7, 7))


def spoil_names(root: Path) -> None:
    for path in list((root / 'labels').iterdir()):
        path.rename(path.with_name(f'x{path.name}'))


SPOILT = {
    'image without label': (lambda r: (r / 'labels/0.png').unlink(), '1 images without a label map', '0.jpg'),
    'label without image': (lambda r: (r / 'images/0.jpg').unlink(), '1 label maps without an image', '0.png'),
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
    'beyond the classes': (lambda r: write(r, [0, 1, 7]), dict(classes='a,b'), 'hold the values 7 beyond them'),
    'nothing labelled': (lambda r: write(r, [255]), {}, "every pixel .* is 255, which means 'no class'"),
    'photographs as labels': (lambda r: [image(r / f'{kind}/{i}.png') for kind in ('images', 'labels') for i in (0, 1)],
                              {}, r'\d+ colours, so they are photographs'),
    'mixed': (lambda r: (write(r, [0, 1]), label(r / 'labels/0.png', [[0, 0, 0]])), {}, '1 of 4 label maps are colour'),
    'no folders': (lambda r: image(r / '0.jpg'), {}, '--images FOLDER --labels FOLDER'),
    'one picture': (lambda r: write(r, [0, 1], count=1), {}, 'training and validation need one each'),
    'other names': (lambda r: spoil_names(write(r, [0, 1])), {}, 'no image in .* has a label map of its name'),
    'nothing fits': (lambda r: spoil_nothing_fits(write(r, [0, 1])), {}, 'nothing in .* can be trained on'),
    'doubled name': (lambda r: write(r, [0, 1]), dict(classes='a,a'), r"\['a'\] twice"),
    'only zeros': (lambda r: write(r, [0, 0]), dict(reduce_zero_label=True), 'no class is left'),
    'names and colours': (lambda r: write(r, [[0, 0, 0], [9, 9, 8]]), dict(classes='a'), 'lines name,R,G,B'),
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
    assert '1 label maps without an image are left out (12.png)' in notes(read_segmentation(tmp_path))
