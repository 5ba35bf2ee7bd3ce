"""``tools/new_project.py`` as a user types it: its configs build, and train on real and drawn pictures."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from tests.commands import call
from tests.paths import TOOLS, sample_data
from tests.tools.own_data.pictures import image, label

TOOL = TOOLS / 'new_project.py'
SCOPES = {'seg': 'mmseg', 'det': 'mmdet', 'cls': 'mmpretrain'}
BEST = {'seg': 'mIoU', 'det': 'coco/bbox_mAP', 'cls': 'accuracy/top1'}


def make_data(task: str, root: Path) -> Path:
    """A drawn set of the task."""
    for index in range(4):
        if task == 'seg':
            image(root / 'images' / f'{index}.jpg', (96, 64))
            label(root / 'labels' / f'{index}.png', [0, 1, 255], (96, 64))
        else:
            image(root / ('images' if task == 'det' else 'ab'[index % 2]) / f'{index}.jpg', (96 + index, 64))
    if task == 'det':
        content = dict(
            images=[dict(id=index, file_name=f'{index}.jpg', width=96 + index, height=64) for index in range(4)],
            categories=[dict(id=0, name='cat')],
            annotations=[dict(id=i, image_id=i, category_id=0, bbox=[4, 5, 50, 40]) for i in range(4)],
        )
        (root / 'labels.json').write_text(json.dumps(content))
    return root


def make_project(task: str, data: Path, folder: Path, *options: object, code: int = 0) -> str:
    return call(TOOL, 'mine', '--task', task, '--data', data, *options, cwd=folder, code=code)


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [(), ('--gpu-memory', 24), ('--gpu-memory', 24, '--weights', 'public'), ('--size', 'tiny', '--gpu-memory', 0)],
    ids=['cpu', 'gpu', 'weights', 'tiny'],
)
@pytest.mark.parametrize('task', SCOPES)
def test_config_builds_and_reads_its_data(task: str, options: tuple, tmp_path: Path) -> None:
    pytest.importorskip(SCOPES[task])
    printed = make_project(task, make_data(task, tmp_path / 'data'), tmp_path, *options)
    assert 'train.py projects/mine/mine.py' in printed
    cfg = Config.fromfile(tmp_path / 'projects' / 'mine' / 'mine.py')
    init_default_scope(cfg.default_scope)
    assert 'mine' not in cfg.model  # nothing but the recipe's keys
    loop, saving = cfg.train_cfg, cfg.default_hooks.checkpoint
    assert (saving.save_best, saving.max_keep_ckpts, saving.interval) == (BEST[task], 1, loop.val_interval)
    assert 5 <= (loop.get('max_iters') or loop.max_epochs) / loop.val_interval < 20
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(parameter.numel() for parameter in model.parameters()) > (2e7 if options else 8e4)
    for split, count in (('train', 2 if task == 'cls' else 3), ('val', 2 if task == 'cls' else 1)):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert len(dataset) == count
        assert dataset[0]['inputs'].shape[0] == 3
    assert ('from scratch' in printed) is ('--weights' not in options)


def test_rewritten_labels_are_read(tmp_path: Path) -> None:
    root = make_data('seg', tmp_path / 'data')
    for index in range(4):
        label(root / 'labels' / f'{index}.png', [[0, 0, 0], [0, 128, 0]], (96, 64))
    image(root / 'images' / '9.png', (96, 64))  # another kind of file beside the JPEGs
    label(root / 'labels' / '9.png', [[0, 0, 0], [0, 128, 0]], (96, 64))
    make_project('seg', root, tmp_path, '--classes', 'road,grass')
    cfg = Config.fromfile(tmp_path / 'projects' / 'mine' / 'mine.py')
    init_default_scope('mmseg')
    values = set()
    for split in ('train', 'val'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert dataset.metainfo['classes'] == ('road', 'grass')
        for index in range(len(dataset)):
            values |= set(dataset[index]['data_samples'].gt_sem_seg.data.unique().tolist())
    assert values <= {0, 1, 255}
    assert {0, 1} <= values


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (['--data', 'nowhere'], "there is no folder 'nowhere'"),
        (['--val-share', 2], 'a share between 0 and 1'),
        (['--weights', 'gone.pth'], "there are no weights 'gone.pth'"),
        (['--weights', 'public', '--size', 'nano'], 'give --size tiny'),
        (['--images', 'images'], '--images and --labels go together'),
    ],
)
def test_mistakes_in_the_command(options: list, said: str, tmp_path: Path) -> None:
    printed = make_project('seg', make_data('seg', tmp_path / 'data'), tmp_path, *options, code=1)
    assert said in printed
    assert 'Traceback' not in printed
    assert not (tmp_path / 'projects').exists()


def test_a_config_that_was_changed_is_not_replaced(tmp_path: Path) -> None:
    root = make_data('seg', tmp_path / 'data')
    make_project('seg', root, tmp_path)
    config = tmp_path / 'projects' / 'mine' / 'mine.py'
    config.write_text('precious')
    assert '--overwrite replaces it' in make_project('seg', root, tmp_path, code=1)
    assert config.read_text() == 'precious'
    make_project('seg', root, tmp_path, '--overwrite')
    assert '_base_' in config.read_text()


def shrink_ade20k(target: Path) -> Path:
    """The three ADE20K pictures, at a quarter of their sides."""
    source = sample_data('ade20k_sample')
    for path in [*source.rglob('*.jpg'), *source.rglob('*.png')]:
        file = target / path.relative_to(source)
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            size = (picture.width // 4, picture.height // 4)
            picture.resize(size, Image.Resampling.NEAREST if path.suffix == '.png' else None).save(file)
    return target


@pytest.mark.slow
def test_tutorial_segmentation(tmp_path: Path) -> None:
    """The three commands of docs/your_own_data.md, as printed, on real pictures."""
    pytest.importorskip('mmseg')
    printed = make_project('seg', shrink_ade20k(tmp_path / 'data'), tmp_path)
    (command,) = re.findall(r'train: +python \S+train.py (.+)', printed)
    short = [
        '--cfg-options',
        'train_cfg.max_iters=3',
        'train_cfg.val_interval=3',
        'default_hooks.checkpoint.interval=3',
    ]
    log = call(TOOLS / 'train.py', *command.split(), *short, cwd=tmp_path)
    assert 'mIoU' in log
    assert 'no more pictures' not in log
    work = tmp_path / 'work_dirs' / 'mine'
    assert Image.open(work / 'progress.png').size[0] == 1200
    checkpoint = (work / 'last_checkpoint').read_text()
    call(TOOLS / 'test.py', *command.split(), checkpoint, '--show-dir', 'drawn', cwd=tmp_path)
    drawn = [path for path in tmp_path.rglob('*.png') if 'drawn' in path.parts]
    assert len(drawn) == 1


@pytest.mark.slow
def test_tutorial_detection(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    source = sample_data('coco_sample')
    printed = make_project('det', source, tmp_path, '--batch-size', 7)
    (command,) = re.findall(r'train: +python \S+train.py (.+)', printed)
    small = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
    small += ['train_dataloader.dataset.pipeline.2.scales=[(96,64)]', 'val_dataloader.dataset.pipeline.1.scale=(96,64)']
    log = call(TOOLS / 'train.py', *command.split(), '--cfg-options', *small, cwd=tmp_path)
    assert 'coco/segm_mAP' in log
    assert 'no more pictures' not in log
    assert (tmp_path / 'work_dirs' / 'mine' / 'progress.png').exists()


@pytest.mark.slow
def test_tutorial_classification(tmp_path: Path) -> None:
    """Cut out of the COCO pictures: people against everything else."""
    pytest.importorskip('mmpretrain')
    source = sample_data('coco_sample')
    content = json.loads((source / 'annotations' / 'instances_train2017.json').read_text())
    names = {entry['id']: entry['file_name'] for entry in content['images']}
    for entry in content['annotations']:
        x, y, w, h = map(int, entry['bbox'])
        picture = cv2.imread(str(source / 'train2017' / names[entry['image_id']]))[y : y + h, x : x + w]
        folder = tmp_path / 'data' / ('person' if entry['category_id'] == 1 else 'thing')
        folder.mkdir(parents=True, exist_ok=True)
        if picture.size:
            cv2.imwrite(str(folder / f'{entry["id"]}.png'), cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA))
    printed = make_project('cls', tmp_path / 'data', tmp_path)
    (command,) = re.findall(r'train: +python \S+train.py (.+)', printed)
    small = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
    log = call(TOOLS / 'train.py', *command.split(), *small, cwd=tmp_path)
    assert 'accuracy/top1' in log
    assert 'no more pictures' not in log
    picture = np.asarray(Image.open(tmp_path / 'work_dirs' / 'mine' / 'progress.png'))
    assert picture.shape[1] == 1200


def test_data_are_left_alone(tmp_path: Path) -> None:
    root = make_data('seg', tmp_path / 'data')
    shutil.copytree(root, tmp_path / 'before')
    make_project('seg', root, tmp_path)
    files = [path.relative_to(root) for path in root.rglob('*') if path.is_file()]
    assert len(files) == 8
    assert all((root / name).read_bytes() == (tmp_path / 'before' / name).read_bytes() for name in files)
