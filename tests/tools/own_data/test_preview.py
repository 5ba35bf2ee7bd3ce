"""The drawing of what was understood shows the labels in the classes' colours, at their places."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from own_data import DataSet, read_classification, read_detection, read_segmentation
from own_data.preview import draw_preview
from PIL import Image

from tests.tools.own_data.pictures import image, label, write_set


def drawn(data: DataSet, path: Path) -> Any:
    figures: list[Figure] = []
    with mock.patch.object(Figure, 'savefig', lambda figure, path: figures.append(figure)):
        draw_preview(data, path)
    return figures[0]


def colour(data: DataSet, index: int) -> list[float]:
    return [part / 255 for part in data.palette[index]]


@pytest.mark.parametrize('ignored', [False, True])
def test_pictures_are_turned_where_training_turns_them(ignored: bool, tmp_path: Path) -> None:
    image(tmp_path / 'a' / '0.jpg', (40, 30), 6)
    data = DataSet('cls', tmp_path, ['cat'], [(1, 2, 3)], {'train': ['a/0.jpg']}, [(40, 30)], [1], 'pictures')
    data.ignore_orientation, data.details = ignored, dict(labels={'a/0.jpg': 0})
    (axes,) = drawn(data, tmp_path / 'data.png').axes
    assert axes.get_title() == 'cat: 0.jpg', 'whatever the folder'
    assert np.asarray(axes.images[0].get_array()).shape[:2] == ((30, 40) if ignored else (40, 30))


def test_many_classes_of_long_names_and_large_pictures(tmp_path: Path) -> None:
    """Names are cut, the others counted, and label maps made small without values between those that they have."""
    for index in range(2):
        size = (90, 900) if index else (900, 40)
        image(tmp_path / 'images' / f'{index}.png', size)
        label(tmp_path / 'labels' / f'{index}.png', [0, 44] * 15, size)
    names = ['n' * 40, 'm' * 41, *(f'class {index}' for index in range(2, 45))]
    data = read_segmentation(tmp_path, ','.join(names))
    figure = drawn(data, tmp_path / 'data.png')
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == [f'0 {"n" * 40}', f'1 {"m" * 37}...']
    assert legend[39:] == ['39 class 39', '5 more', 'not trained on']
    by_name = {axes.get_title()[-5]: np.asarray(axes.images[0].get_array()) for axes in figure.axes}
    shown, high = by_name['0'], by_name['1']
    assert (shown.shape[1], high.shape[0]) == (320, 2 * 320)
    below, above = shown[len(shown) // 2 :].astype(float), shown[: len(shown) // 2]
    painted = (below - 0.35 * above) / 0.65
    distance = np.abs(painted[:, :, None] - np.array([data.palette[0], data.palette[44]])).max(-1).min(-1)
    assert distance.max() <= 2


@pytest.mark.parametrize('task', ['seg', 'det', 'cls'])
def test_samples_of_the_whole_set_with_their_labels(task: str, tmp_path: Path) -> None:
    root = write_set(task, tmp_path / 'data', 20)
    if task == 'det':  # two classes, whose ids are no indices
        content = json.loads((root / 'labels.json').read_text())
        content['categories'] = [dict(id=7, name='dog'), dict(id=3, name='cat')]
        for entry in content['annotations']:
            entry['category_id'] = (7, 3)[entry['image_id'] % 2]
        (root / 'labels.json').write_text(json.dumps(content))
    data = {'seg': read_segmentation, 'det': read_detection, 'cls': read_classification}[task](root)  # type: ignore[operator]
    figure = drawn(data, tmp_path / 'data.png')
    names = [axes.get_title().split(': ')[-1] for axes in figure.axes]
    assert len(set(names)) == 8
    held_out = {name if task != 'cls' else Path(name).name for name in data.splits['val']}
    assert 0 < len(held_out & set(names)) < 8
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [f'{i} {name}' for i, name in enumerate(data.classes)] + ['not trained on'] * (task == 'seg')
    for patch, index in zip(figure.legends[0].get_patches(), range(len(data.classes)), strict=False):
        assert to_rgb(patch.get_facecolor()) == pytest.approx(colour(data, index))
    # A name is no formula.
    assert not any(text.get_parse_math() for text in [*figure.legends[0].get_texts(), *(a.title for a in figure.axes)])
    for axes in figure.axes:
        shown, title = np.asarray(axes.images[0].get_array()), axes.get_title()
        if task == 'cls':
            label, name = title.split(': ')
            shown_of = Image.open(root / label / name)
        else:
            shown_of = Image.open(root / title)
        picture = np.asarray(shown_of)
        assert (shown[: len(picture)] == picture).all()
        if task == 'seg':
            # Stripes of 0, 1 and what is not trained on.
            below, width = shown[len(picture) :], picture.shape[1]
            for part, painted in enumerate([*data.palette, (0, 0, 0)]):
                column = (2 * part + 1) * width // 6
                wanted = 0.35 * picture[:, column] + 0.65 * np.array(painted)
                assert np.abs(below[:, column].astype(float) - wanted).max() <= 1
        if task == 'det':
            (box,) = axes.patches
            assert (*box.get_xy(), box.get_width(), box.get_height()) == (4, 5, 50, 40)
            assert to_rgb(box.get_edgecolor()) == pytest.approx(colour(data, int(Path(title).stem) % 2))
