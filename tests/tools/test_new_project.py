"""``tools/new_project.py`` as a user types it: its configs build, and train on real and drawn pictures."""

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from tests.commands import call, run
from tests.paths import ROOT, TOOLS, sample_data
from tests.tools.own_data.pictures import write_pairs, write_set

TOOL = TOOLS / 'new_project.py'
PAGE = ROOT / 'docs' / 'your_own_data.md'
SCOPES = {'seg': 'mmseg', 'det': 'mmdet', 'cls': 'mmpretrain'}
BEST = {'seg': 'mIoU', 'det': 'coco/bbox_mAP', 'cls': 'accuracy/top1'}


def make_project(task: str, data: Path, folder: Path, *options: object, code: int = 0) -> str:
    return call(TOOL, 'mine', '--task', task, '--data', data, *options, cwd=folder, code=code)


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [(), ('--gpu-memory', 24, '--weights', 'public'), ('--size', 'tiny', '--gpu-memory', 0)],
    ids=['cpu', 'gpu and weights', 'tiny'],
)
@pytest.mark.parametrize('task', SCOPES)
def test_config_builds_and_reads_its_data(task: str, options: tuple, tmp_path: Path) -> None:
    pytest.importorskip(SCOPES[task])
    printed = make_project(task, write_set(task, tmp_path / 'data', 4), tmp_path, *options)
    assert 'train.py projects/mine/mine.py' in printed
    cfg = Config.fromfile(tmp_path / 'projects' / 'mine' / 'mine.py')
    init_default_scope(cfg.default_scope)
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
    root = write_pairs(tmp_path / 'data', [[0, 0, 0], [0, 128, 0]], 4, size=(96, 64))
    # Another kind of file beside the JPEGs.
    write_pairs(root, [[0, 0, 0], [0, 128, 0]], range(9, 10), 'images/{i}.png', size=(96, 64))
    make_project('seg', root, tmp_path, '--classes', 'road=#000000,grass=#008000')
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


@pytest.mark.parametrize(('options', 'said'), [
    (['--data', 'nowhere'], "there is no folder 'nowhere'"),
    (['--val-share', 2], 'a share between 0 and 1'),
    (['--weights', 'gone.pth'], "there are no weights 'gone.pth'"),
    (['--weights', 'public', '--size', 'nano'], 'give --size tiny'),
    (['--images', 'images'], '--images and --labels go together'),
])  # fmt: skip
def test_mistakes_in_the_command(options: list, said: str, tmp_path: Path) -> None:
    printed = make_project('seg', write_set('seg', tmp_path / 'data', 4), tmp_path, *options, code=1)
    assert said in printed
    assert 'Traceback' not in printed
    assert not (tmp_path / 'projects').exists()


def test_a_question_stops_the_project(tmp_path: Path) -> None:
    root = write_set('seg', tmp_path / 'data', 4)
    config = tmp_path / 'projects' / 'mine' / 'mine.py'
    printed = make_project('seg', root, tmp_path, '--classes', 'sky', '--ignore', 'none', code=1)
    assert 'say which is which' in printed
    write_pairs(root, [0, 1, 2], 4, size=(96, 64))
    printed = make_project('seg', root, tmp_path, '--classes', 'sky,sea', code=1)
    assert '- question: ' in printed
    assert 'accept them all with --yes' in printed
    assert not config.exists()
    # What was understood is there to look at, and the answer.
    assert Image.open(config.with_name('data.png')).size[0] > 1000
    assert 'question' in config.with_name('data.txt').read_text()
    assert '- question' not in make_project('seg', root, tmp_path, '--classes', 'sky,sea', '--ignore', 2)
    assert Config.fromfile(config).classes == ('sky', 'sea')
    make_project('seg', root, tmp_path, '--classes', 'sky,sea', '--yes', '--overwrite')


def test_names_are_data_from_the_command_to_the_network(tmp_path: Path) -> None:
    root = write_set('seg', tmp_path / "it's {{ fileDirname }}" / 'data', 4)
    names = ["{{_base_.model}} it's", '$x_{y}$ [red] \\ "two"']
    (root / 'classes.txt').write_text('\n'.join(names))
    make_project('seg', root, root.parent)
    cfg = Config.fromfile(root.parent / 'projects' / 'mine' / 'mine.py')
    assert cfg.classes == tuple(names)
    init_default_scope('mmseg')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert dataset.metainfo['classes'] == tuple(names)
    assert dataset[0]['data_samples'].gt_sem_seg.data.unique().tolist() == [0, 1, 255]


def test_nothing_of_the_user_is_changed(tmp_path: Path) -> None:
    """Neither data nor a config, unless it is wanted."""
    root = write_set('seg', tmp_path / 'data', 4)
    shutil.copytree(root, tmp_path / 'before')
    make_project('seg', root, tmp_path)
    config = tmp_path / 'projects' / 'mine' / 'mine.py'
    config.write_text('precious')
    assert '--overwrite replaces it' in make_project('seg', root, tmp_path, code=1)
    assert config.read_text() == 'precious'
    make_project('seg', root, tmp_path, '--overwrite')
    assert '_base_' in config.read_text()
    files = [path.relative_to(root) for path in root.rglob('*') if path.is_file()]
    assert len(files) == 8
    assert all((root / name).read_bytes() == (tmp_path / 'before' / name).read_bytes() for name in files)


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


def typed(tool: str) -> str:
    """The command with this tool on docs/your_own_data.md, for the project ``mine``, as a shell takes it here."""
    (line,) = re.findall(rf'^(python tools/{tool}.*?) *(?:#.*)?$', PAGE.read_text(), re.MULTILINE)
    return line.replace('flowers', 'mine').replace('python tools', f'python {shlex.quote(str(TOOLS))}')


def run_typed(command: str, folder: Path) -> str:
    """Type a command: a shell takes its words, and the tool runs here, where its toolbox is imported already."""
    tool, *words, _ = run('bash', '-c', f"printf '%s\\0' {command}", cwd=folder).split('\0')
    return call(Path(tool), *words, cwd=folder)


def run_printed(task: str, data: Path, folder: Path, *small: str, options: tuple = ()) -> Path:
    """Type the printed commands, shortened, one of them in a shell; returns the work folder."""
    printed = make_project(task, data, folder, *options)
    (train,) = re.findall(r'train: +python (.+)', printed)
    (test,) = re.findall(r'look at results: +python (.+)', printed)
    assert [f'python {train}', f'python {test}'] == [typed('train.py'), typed('test.py')]
    command = f'{train} --cfg-options {" ".join(small)}'
    log = run('bash', '-c', f'"$PYTHON" {command}', cwd=folder) if task == 'seg' else run_typed(command, folder)
    assert 'no more pictures' not in log
    work = folder / 'work_dirs' / 'mine'
    assert Image.open(work / 'progress.png').size[0] == 1200
    assert BEST[task].replace('bbox', 'segm') in log or BEST[task] in log
    run_typed(test, folder)
    held_out = 0
    for split in ('test', 'val'):
        lists = list((folder / 'projects' / 'mine').glob(f'{split}.*'))
        if lists and not held_out:
            text = lists[0].read_text()
            held_out = len(json.loads(text)['images'] if task == 'det' else text.splitlines())
    drawn = [path for path in (folder / 'drawn').rglob('*') if path.suffix in ('.png', '.jpg')]
    assert len(drawn) == held_out
    assert all(np.asarray(Image.open(path)).std() > 1 for path in drawn)
    return work


def look_at_predictions(pictures: list[Path], folder: Path, *options: object) -> list[Path]:
    """Draw a folder of pictures with the page's command; returns the drawings."""
    for path in pictures:
        (folder / 'holiday').mkdir(exist_ok=True)
        shutil.copy(path, folder / 'holiday')
    command = typed('demo_image.py').removeprefix('python ').removesuffix('--label-maps')
    run_typed(f'{command} {" ".join(map(str, options))}', folder)
    drawn = [folder / 'predictions' / path.name for path in pictures]
    for path, source in zip(drawn, pictures, strict=True):
        assert Image.open(path).size == Image.open(source).size
        assert np.asarray(Image.open(path)).std() > 1
    return drawn


@pytest.mark.slow
def test_tutorial_segmentation(tmp_path: Path) -> None:
    """The commands as printed, on real pictures, and every other way to look at the result."""
    pytest.importorskip('mmseg')
    folder = tmp_path / 'my work'
    data = shrink_ade20k(folder / 'data')
    short = [
        f'{key}=3' for key in ('train_cfg.max_iters', 'train_cfg.val_interval', 'default_hooks.checkpoint.interval')
    ]
    work = run_printed('seg', data, folder, *short)
    checkpoint = (work / 'last_checkpoint').read_text()
    call(TOOLS / 'test.py', 'projects/mine/mine.py', checkpoint, '--tta', '--out', 'maps', cwd=folder)
    (map_,) = (folder / 'maps').glob('*.png')
    pictures = sorted((data / 'images' / 'validation').iterdir())
    assert Image.open(map_).size == Image.open(pictures[0]).size
    (drawn,) = look_at_predictions(pictures, folder, '--label-maps')
    indices = np.asarray(Image.open(f'{drawn}.labels.png'))
    assert indices.shape == Image.open(pictures[0]).size[::-1]
    assert indices.max() < 150


@pytest.mark.slow
def test_tutorial_detection(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    folder = tmp_path / 'my work'
    shutil.copytree(sample_data('coco_sample'), folder / 'my data')
    small = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
    small += ['model.test_cfg.rcnn.score_thr=0']  # three iterations are sure of nothing
    small += [
        "'train_dataloader.dataset.pipeline.2.scales=[(96,64)]'",
        "'val_dataloader.dataset.pipeline.1.scale=(96,64)'",
    ]
    work = run_printed('det', folder / 'my data', folder, *small, options=('--batch-size', 7))
    pictures = sorted((sample_data('coco_sample') / 'val2017').iterdir())[:2]
    look_at_predictions(pictures, folder, '--score-thr', 0)
    checkpoint = (work / 'last_checkpoint').read_text()
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    call(TOOLS / 'export_onnx.py', 'projects/mine/mine.py', checkpoint, 'mine.onnx', '--shape', 64, 96, cwd=folder)


@pytest.mark.slow
def test_tutorial_classification(tmp_path: Path) -> None:
    """Cut out of the COCO pictures: people against everything else."""
    pytest.importorskip('mmpretrain')
    folder = tmp_path / 'my work'
    source = sample_data('coco_sample')
    content = json.loads((source / 'annotations' / 'instances_train2017.json').read_text())
    names = {entry['id']: entry['file_name'] for entry in content['images']}
    for entry in content['annotations']:
        x, y, w, h = map(int, entry['bbox'])
        picture = cv2.imread(str(source / 'train2017' / names[entry['image_id']]))[y : y + h, x : x + w]
        target = folder / 'data' / ('person' if entry['category_id'] == 1 else 'thing')
        target.mkdir(parents=True, exist_ok=True)
        if picture.size:
            cv2.imwrite(str(target / f'{entry["id"]}.png'), cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA))
    run_printed('cls', folder / 'data', folder, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1')
    pictures = sorted((folder / 'data' / 'person').iterdir())[:2]
    look_at_predictions(pictures, folder)
