"""``tools/demo_image.py`` for both tasks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import save_checkpoint

from tests.commands import call
from tests.paths import CONFIGS, TOOLS
from tools.demo_image import find_images, load_model

TASKS = {
    'mmdet': ('demo/mask_rcnn_pelk_nano_synthetic.py', ('disc', 'square', 'triangle')),
    'mmseg': (
        'demo/upernet_pelk_nano_synthetic.py',
        ('sand', 'grass', 'water', 'disc', 'box', 'beacon', 'tent_white', 'tent_black', 'tent_red'),
    ),
}


def write_image(path: Path, size: tuple[int, int] = (64, 96)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
    return path


@pytest.fixture(scope='module', params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options with a demo's config and a checkpoint of it, random but whole."""
    pytest.importorskip(request.param)
    from mmengine.registry import MODELS

    config, classes = TASKS[request.param]
    init_default_scope(request.param)
    cfg = Config.fromfile(CONFIGS / config)
    model = MODELS.build(cfg.model)
    checkpoint = tmp_path_factory.mktemp(request.param) / 'model.pth'
    palette = [(index, index, index) for index in range(len(classes))]
    meta = dict(dataset_meta=dict(classes=classes, palette=palette))
    save_checkpoint(dict(state_dict=model.state_dict(), meta=meta), str(checkpoint))
    return ['--config', CONFIGS / config, '--checkpoint', checkpoint, '--device', 'cpu']


def test_files_and_folders_are_drawn_in_their_own_size(trained: list[object], tmp_path: Path) -> None:
    single = write_image(tmp_path / 'one.png')
    nested = write_image(tmp_path / 'folder' / 'deeper' / 'two.jpg', (70, 50))
    (tmp_path / 'folder' / 'notes.txt').write_text('no image')
    (tmp_path / 'folder' / 'broken.jpg').write_bytes(b'no image either')
    output = call(
        *(TOOLS / 'demo_image.py', tmp_path / 'folder', single, *trained),
        # A score threshold of 0 draws the boxes of a random network.
        *('--out', tmp_path / 'out', '--score-thr', 0),
        cwd=tmp_path,
        code=1,  # for the broken image
    )
    assert '2 drawings' in output
    assert 'not readable as images' in output
    for source, drawing in ((single, 'one.png'), (nested, 'deeper/two.jpg')):
        drawn = cv2.imread(str(tmp_path / 'out' / drawing))
        assert drawn.shape == cv2.imread(str(source)).shape
        assert not np.array_equal(drawn, cv2.imread(str(source)))
    assert not (tmp_path / 'out' / 'broken.jpg').exists()


def test_other_toolboxes_are_refused() -> None:
    with pytest.raises(ValueError, match="'mmseg' or 'mmdet'"):
        load_model(Config(dict(default_scope='mmpose')), 'model.pth', 'cpu')


def test_images_that_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere'):
        find_images([tmp_path / 'nowhere.jpg'], tmp_path / 'out')
    with pytest.raises(FileNotFoundError, match='no image in the folder'):
        find_images([tmp_path], tmp_path / 'out')


def test_no_drawing_overwrites_an_image_or_another_drawing(tmp_path: Path) -> None:
    one, other = write_image(tmp_path / 'a' / 'x.png'), write_image(tmp_path / 'b' / 'x.png')
    with pytest.raises(ValueError, match='both be drawn'):
        find_images([one, other], tmp_path / 'out')
    with pytest.raises(ValueError, match='overwritten'):
        find_images([one], tmp_path / 'a')
    assert find_images([one, one], tmp_path / 'out') == {tmp_path / 'out' / 'x.png': one}


def test_earlier_drawings_are_no_input(tmp_path: Path) -> None:
    image, out = write_image(tmp_path / 'x.png'), tmp_path / 'out'
    write_image(out / 'x.png')
    assert find_images([tmp_path], out) == {out / 'x.png': image}
