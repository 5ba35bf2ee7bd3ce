"""Which pictures are drawn to which files, and what cannot be read."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from mmpelk.analysis.drawings import Drawing, find_drawings


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    return path


def test_files_that_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere'):
        find_drawings([tmp_path / 'nowhere.jpg'], tmp_path / 'out')
    with pytest.raises(FileNotFoundError, match='no image or video in the folder'):
        find_drawings([tmp_path], tmp_path / 'out')


def test_no_drawing_overwrites_an_image_or_another_drawing(tmp_path: Path) -> None:
    one, other = write_image(tmp_path / 'a' / 'x.png'), write_image(tmp_path / 'b' / 'x.png')
    with pytest.raises(ValueError, match='both be drawn'):
        find_drawings([one, other], tmp_path / 'out')
    with pytest.raises(ValueError, match='overwritten'):
        find_drawings([one], tmp_path / 'a')
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    with pytest.raises(ValueError, match='overwritten'):
        find_drawings([one], tmp_path / 'link')
    assert find_drawings([one, one], tmp_path / 'out') == [Drawing(one, tmp_path / 'out' / 'x.png')]


def test_videos_become_mp4_and_do_not_collide(tmp_path: Path) -> None:
    for name in ('x.mov', 'x.avi', 'y.mov'):
        (tmp_path / name).write_bytes(b'')
    (drawing,) = find_drawings([tmp_path / 'y.mov'], tmp_path / 'out')
    assert drawing == Drawing(tmp_path / 'y.mov', tmp_path / 'out' / 'y.mp4')
    with pytest.raises(ValueError, match='both be drawn'):
        find_drawings([tmp_path], tmp_path / 'out')


def test_earlier_drawings_are_no_input(tmp_path: Path) -> None:
    image, out = write_image(tmp_path / 'x.png'), tmp_path / 'out'
    write_image(out / 'x.png')
    assert find_drawings([tmp_path], out) == [Drawing(image, out / 'x.png')]
    (tmp_path / 'link').symlink_to(tmp_path)
    assert len(find_drawings([tmp_path], tmp_path / 'link' / 'out')) == 1


def test_video_keeps_its_size_rate_and_pictures(tmp_path: Path) -> None:
    source = tmp_path / 'clips' / 'X.AVI'
    source.parent.mkdir()
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*'MJPG'), 10, (48, 32))
    for level in (0, 100, 200):
        writer.write(np.full((32, 48, 3), level, np.uint8))
    writer.release()
    (drawing,) = find_drawings([source.parent], tmp_path / 'new' / 'folder')
    assert (drawing.is_video, drawing.frames()) == (True, 3)
    assert len(list(drawing.draw(lambda image: 255 - image))) == 3
    video = cv2.VideoCapture(str(drawing.target))
    assert [video.get(what) for what in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)] == [
        *(10, 48, 32)
    ]
    levels = [video.read()[1].mean() for _ in range(3)]
    assert levels == pytest.approx([255, 155, 55], abs=5)


def test_video_of_no_known_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = iter([np.zeros((32, 48, 3), np.uint8), None])
    reader = SimpleNamespace(opened=True, width=48, height=32, fps=0.0, read=lambda: next(frames))
    monkeypatch.setattr(mmcv, 'VideoReader', lambda path: reader)
    assert len(list(Drawing(tmp_path / 'x.avi', tmp_path / 'x.mp4').draw(lambda image: image))) == 1
    assert cv2.VideoCapture(str(tmp_path / 'x.mp4')).get(cv2.CAP_PROP_FPS) == 25


@pytest.mark.parametrize('content', [b'nothing of the kind', b''], ids=['text', 'empty'])
@pytest.mark.parametrize(('name', 'kind'), [('x.png', 'an image'), ('x.mp4', 'a video')])
def test_unreadable_files_are_refused(name: str, kind: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (drawing,) = find_drawings([tmp_path / name], tmp_path / 'out')
    assert drawing.frames() == 1
    with pytest.raises(ValueError, match=f'not readable as {kind}'):
        list(drawing.draw(lambda image: image))


def test_dim_images_are_refused(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / 'dim.png'), np.full((8, 8, 3), 900, np.uint16))
    (drawing,) = find_drawings([tmp_path / 'dim.png'], tmp_path / 'out')
    with pytest.raises(ValueError, match='16 bits'):
        list(drawing.draw(lambda image: image))


@pytest.mark.parametrize(('color_type', 'shape'), [('color', (12, 8, 3)), ('color_ignore_orientation', (8, 12, 3))])
def test_images_are_read_and_drawn_in_the_same_orientation(
    color_type: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (12, 8)).save(tmp_path / 'x.jpg', exif=exif)
    shapes = []

    def paint(image: np.ndarray) -> np.ndarray:
        shapes.append(image.shape)
        return image

    (drawing,) = find_drawings([tmp_path / 'x.jpg'], tmp_path / 'out')
    list(drawing.draw(paint, color_type))
    assert shapes == [shape]
    assert cv2.imread(str(drawing.target)).shape == shape


def test_drawings_keep_the_order_and_the_places_of_their_files(tmp_path: Path) -> None:
    for name in ('in/b/x.png', 'in/a/y.JPG', 'in/a/x.png', 'z.png'):
        write_image(tmp_path / name)
    (tmp_path / 'in' / 'notes.txt').touch()
    found = find_drawings([tmp_path / 'z.png', tmp_path / 'in'], tmp_path / 'out')
    assert [drawing.target.relative_to(tmp_path / 'out').as_posix() for drawing in found] == [
        *('z.png', 'a/x.png', 'a/y.JPG', 'b/x.png')
    ]
