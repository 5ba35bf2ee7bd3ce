"""What users get wrong, from broken images to misspelt settings: one line with the file and the remedy."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from tests.commands import call
from tests.fault_tolerance.malicious import payloads, write
from tests.fault_tolerance.recipes import NO_VALIDATION, write_recipe
from tests.paths import CONFIGS, TOOLS

pytestmark = pytest.mark.slow

Spoil = Callable[[Path], Any]
IMAGE, LABELS = 'images/training/0.jpg', 'annotations/training/0.png'
COCO = 'annotations/instances_train2017.json'
SETTINGS: dict[str, dict[str, Any]] = dict(
    seg=NO_VALIDATION | {'train_cfg.max_iters': 1, 'train_dataloader.batch_size': 4},
    cls={'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 8},
    det={'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 4},
)


def halve(name: str) -> Spoil:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[: (root / name).stat().st_size // 2])


def replace(name: str, text: str) -> Spoil:
    return lambda root: (root / name).write_text(text)


def labels(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    def spoil(root: Path) -> None:
        path = str(root / LABELS)
        assert cv2.imwrite(path, change(cv2.imread(path, cv2.IMREAD_UNCHANGED)))

    return spoil


def coco(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(root: Path) -> None:
        content = json.loads((root / COCO).read_text())
        change(content)
        (root / COCO).write_text(json.dumps(content))

    return spoil


def mend_list(change: Callable[[str], str]) -> Spoil:
    """Of the classification's list of images."""
    return lambda root: (root / 'meta/train.txt').write_text(change((root / 'meta/train.txt').read_text()))


def of_a_sensor(root: Path) -> None:
    """Pictures of 12 bits in files of 16, which are known by their content."""
    for path in (root / 'images/training').iterdir():
        image = cv2.imread(str(path)).astype(np.uint16) * 16
        path.write_bytes(cv2.imencode('.png', image)[1].tobytes())


def weights_alone(good: Path, path: Path) -> None:
    torch.save(dict(meta={}, state_dict=torch.load(good, weights_only=False)['state_dict']), path)


# What is broken, and what the sentence has to say: the file, and what to do.
DATA: dict[str, tuple[str, Spoil, list[str]]] = {
    'image cut in half': ('seg', halve(IMAGE), [IMAGE, 'Mend it']),
    'image without content': ('seg', replace(IMAGE, ''), [IMAGE, 'Mend it']),
    'image that is text': ('seg', replace(IMAGE, 'not found'), [IMAGE, 'Mend it']),
    'pictures of 12 bits': ('seg', of_a_sensor, [IMAGE, 'below 4096 in 16 bits', 'multiply the values']),
    'label map cut in half': ('seg', halve(LABELS), [LABELS, 'Mend it']),
    'label map that is missing': ('seg', lambda root: (root / LABELS).unlink(), [LABELS, 'Mend it']),
    'label map of another size': ('seg', labels(lambda seg: seg[:50, :40]), [LABELS, '50 x 40', 'pixels', 'Mend it']),
    'label map with colours': ('seg', labels(lambda seg: np.stack([seg] * 3, 2)), [LABELS, 'dimensions', 'Mend it']),
    'class index out of range': ('seg', labels(lambda seg: seg + 160), [LABELS, '150 classes', 'reduce_zero_label']),
    'no images': ('seg', lambda root: [path.unlink() for path in (root / 'images/training').iterdir()],
        ['images/training', 'is empty', 'check']),
    'no folder of images': ('seg', lambda root: shutil.rmtree(root / 'images/training'),
        ['images/training', 'does not exist', 'data_root=FOLDER']),
    'no data': ('seg', shutil.rmtree, ['does not exist', 'data_root=FOLDER']),
    'image of a class cut in half': ('cls', halve('train/n01440764/0.JPEG'), ['n01440764/0.JPEG', 'Mend it']),
    'listed image that is missing': ('cls', mend_list(lambda text: text.replace('/3.', '/9.')), ['9.JPEG', 'Mend it']),
    'class beyond the last': ('cls', mend_list(lambda text: text.replace(' 1', ' 1000')), ['1000 classes', 'Mend it']),
    'listed image without class': ('cls', mend_list(lambda text: text.replace(' 1', '')), ['/data', 'unpack', 'Check']),
    'class that is no number': ('cls', mend_list(lambda text: text.replace(' 1', ' cat')), ['/data', "'cat'", 'Check']),
    'list that is missing': ('cls', lambda root: (root / 'meta/train.txt').unlink(), ['/data', 'subfolders', 'Check']),
    'empty list': ('cls', replace('meta/train.txt', ''), ['train_dataloader is empty', '/data']),
    'no boxes': ('det', coco(lambda content: content['annotations'].clear()), [COCO, 'is empty', 'filter_cfg']),
    'box that is missing': ('det', coco(lambda content: [one.pop('bbox') for one in content['annotations']]),
        [COCO, 'bbox', 'Check']),
    'box with NaN': ('det', coco(lambda content: content['annotations'][0]['bbox'].__setitem__(2, float('nan'))),
        [COCO, 'NaN', 'mend it']),
    'endless box': ('det', coco(lambda content: content['annotations'][0]['bbox'].__setitem__(0, float('-inf'))),
        [COCO, 'Infinity', 'mend it']),
    'other categories': ('det',
        coco(lambda content: [one.update(name=f'my {one["name"]}') for one in content['categories']]),
        [COCO, 'is empty', 'check']),
    'annotations cut in half': ('det', halve(COCO), [COCO, 'Check']),
    'annotations of another format': ('det', replace(COCO, '[]'), [COCO, 'Check']),
    'annotations without content': ('det', replace(COCO, ''), [COCO, 'Check']),
    'annotated image that is missing': ('det', coco(lambda content: content['images'][0].update(file_name='gone.png')),
        ['gone.png', 'Mend it']),
}  # fmt: skip
# Settings, and what the sentence has to say.
CONFIG: dict[str, tuple[str, list[str]]] = {
    'misspelt key': ('train_dataloder.batch_size=2', ["did you mean 'train_dataloader'"]),
    'misspelt key within': ('model.backbone.kernel_size=(9,9,9,9)', ["did you mean 'model.backbone.kernel_sizes'"]),
    'misspelt model': ('model.backbone.type=mmpelk.PeLKK', ['PeLKK is not in', 'check whether']),
    'misspelt data set': ('train_dataloader.dataset.type=ADE20k', ['ADE20k is not in', 'check whether']),
    'misspelt transform': ('train_dataloader.dataset.pipeline.2.type=RandmCrop', ['RandmCrop is not in', 'check']),
    'misspelt optimizer': ('optim_wrapper.optimizer.type=AdamWW', ['AdamWW is not in', 'check it']),
    'misspelt schedule': ('param_scheduler.0.type=PolyLRR', ['PolyLRR is not in', 'check whether']),
    'misspelt hook': ('default_hooks.checkpoint.type=CheckpontHook', ['CheckpontHook is not in', 'check whether']),
    'misspelt mixer': ('model.backbone.mixer=peripherial', ['unknown mixer', 'known: peripheral']),
    'misspelt architecture': ('model.backbone.arch=tinny', ['tinny', 'known: tiny']),
    'even kernel': ('model.backbone.kernel_sizes=(12,11,9,7)', ['12', 'odd positive integer']),
    'grid that does not sum to the kernel': (
        'model.backbone.sharing_grids=([9,1],None,None,None)',
        ['kernel_size 13 needs'],
    ),
    'kernels for too few stages': ('model.backbone.kernel_sizes=(13,11)', ['4 depths but 2 kernel_sizes']),
    'too few classes': (
        'model.decode_head.num_classes=7',
        ['num_classes is 7', '150 classes', 'images/training', 'set model.decode_head.num_classes=150'],
    ),
    'learning rate that is no number': (
        'optim_wrapper.optimizer.lr=fast',
        ["optimizer.lr has to be a number, but is 'fast'"],
    ),
    'density above one': ('custom_hooks.0.density=1.5', ['density', '1.5']),
    'no patience': ('default_hooks.divergence.patience=0', ['patience must be at least 1']),
    'learning rate that is too high': (
        'optim_wrapper.optimizer.lr=1e30 train_cfg.max_iters=40 default_hooks.divergence.patience=2',
        ['not finite', 'Look at these files', 'lower learning rate'],
    ),
    'checkpoint to load that is missing': ('load_from=gone.pth', ["'gone.pth' does not exist"]),
}
# What became of a checkpoint, and what the sentence has to say of it.
CHECKPOINTS: dict[str, tuple[Callable[[Path, Path], Any], list[str]]] = {
    'missing': (lambda good, path: None, ['does not exist', 'last_checkpoint']),
    'empty': (lambda good, path: path.touch(), ['is empty', 'download it again']),
    'cut in half': (lambda good, path: path.write_bytes(good.read_bytes()[:9999]), ['incomplete', 'download it again']),
    'of another kind': (lambda good, path: path.write_text('<html>'), ['is not a checkpoint', 'download it again']),
    'a folder': (lambda good, path: path.mkdir(), ['does not exist']),
    'malicious': (lambda good, path: write(path, payloads(path.parent / 'ran')['system']),
        ['is refused: it wants', 'do not trust the file']),
    'a program': (lambda good, path: torch.jit.script(nn.Linear(2, 2)).save(path), ['TorchScript', 'state dict']),
    'of another network': (lambda good, path: torch.save(dict(meta={}, state_dict=nn.Linear(2, 2).state_dict()), path),
        ['is of another network', 'Give the config']),
}  # fmt: skip
RESUMED: dict[str, tuple[Callable[[Path, Path], Any], list[str]]] = {
    'cut in half': (CHECKPOINTS['cut in half'][0], ['incomplete', '--resume without a name']),
    'weights alone': (weights_alone, ['lacks the optimizer', 'load_from']),
}  # fmt: skip
# Command lines, with CONFIG and GOOD for files, and what the sentence has to say.
WORDS: dict[str, tuple[str, list[str], list[str]]] = {
    'config that is missing': ('train.py', ['gone.py'], ["there is no config 'gone.py'", 'the recipes under configs/']),
    'config with an error': ('train.py', ['broken.py'], ["'broken.py'", 'SyntaxError']),
    'config whose base is missing': ('train.py', ['orphan.py'], ["'orphan.py'", 'nowhere.py']),
    'config that is no config': ('train.py', ['words.txt'], ["'words.txt'", 'py']),
    'weights that are missing': ('train.py', ['RECIPE'],
        ["weights 'checkpoints/pelk_t_in1k.pth' do not exist", 'init_cfg=None']),
    'no batch size to scale by': ('train.py', ['CONFIG', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'],
        ['base_batch_size']),
    'predictions in a file of another kind': ('test.py', ['DETECTOR', 'GOOD', '--out', 'a.txt'], ['.pkl', 'a.txt']),
    'no test-time augmentation': ('test.py', ['DETECTOR', 'GOOD', '--tta'], ['--tta needs', 'in the config']),
}  # fmt: skip
ALL = [
    *DATA,
    *CONFIG,
    *(f'checkpoint: {name}' for name in CHECKPOINTS),
    *(f'resumed: {name}' for name in RESUMED),
    *WORDS,
]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Trainings that fail leave their handlers, which end with their process otherwise."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope='module')
def sources(tmp_path_factory: pytest.TempPathFactory, tiny_ade20k: Path, tiny_imagenet: Path) -> dict[str, Path]:
    shapes = tmp_path_factory.mktemp('shapes')
    call(TOOLS / 'demo/make_detection_data.py', shapes, '--train', 4, '--val', 1, cwd=shapes)
    return dict(seg=tiny_ade20k, cls=tiny_imagenet, det=shapes)


@pytest.fixture(scope='module')
def recipe(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segmentation, with data that are whole."""
    folder = tmp_path_factory.mktemp('recipe')
    return make_recipe('seg', sources['seg'], folder)


@pytest.fixture(scope='module')
def good(recipe: Path) -> Path:
    """A checkpoint of the recipe."""
    words = [recipe, '--work-dir', 'work', '--cfg-options', 'default_hooks.checkpoint.interval=1']
    call(TOOLS / 'train.py', *words, cwd=recipe.parent)
    return recipe.parent / 'work' / 'iter_1.pth'


def make_recipe(task: str, data: Path, folder: Path) -> Path:
    changes = {key.replace('.', '__'): value for key, value in SETTINGS[task].items()}
    return write_recipe(task, data, folder / f'{task}.py', **changes)


def explained(printed: str, says: list[str]) -> str:
    """The sentence, which has to be the last that was printed."""
    assert 'Traceback' not in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith('error: ')
    missing = [text for text in says if text not in last]
    assert not missing, f'{missing} not in: {last}'
    return last


def test_there_are_more_than_forty() -> None:
    assert len(set(ALL)) == len(ALL) > 40


@pytest.mark.parametrize('name', DATA)
def test_data(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    task, spoil, says = DATA[name]
    root = tmp_path / 'data'
    shutil.copytree(sources[task], root)
    config = make_recipe(task, root, tmp_path)
    spoil(root)
    explained(call(TOOLS / 'train.py', config, '--work-dir', 'work', cwd=tmp_path, code=1), says)


@pytest.mark.parametrize('name', CONFIG)
def test_config(name: str, recipe: Path, tmp_path: Path) -> None:
    settings, says = CONFIG[name]
    words = [recipe, '--work-dir', 'work', '--cfg-options', *settings.split()]
    explained(call(TOOLS / 'train.py', *words, cwd=tmp_path, code=1), says)


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_checkpoint_to_test(name: str, good: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    spoil, says = CHECKPOINTS[name]
    spoil(good, path := tmp_path / 'weights.pth')
    loader = dict(dataset__data_root=str(sources['seg']), num_workers=0, persistent_workers=False)
    changes = {f'test_dataloader__{key}': value for key, value in loader.items()}
    config = write_recipe('seg', sources['seg'], tmp_path / 'tested.py', **changes)
    explained(call(TOOLS / 'test.py', config, path, '--work-dir', 'work', cwd=tmp_path, code=1), [str(path), *says])
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('name', RESUMED)
def test_checkpoint_to_resume(name: str, recipe: Path, good: Path, tmp_path: Path) -> None:
    spoil, says = RESUMED[name]
    spoil(good, path := tmp_path / 'iter_1.pth')
    words = [recipe, '--work-dir', 'work', '--resume', path]
    explained(call(TOOLS / 'train.py', *words, cwd=tmp_path, code=1), [str(path), *says])


@pytest.mark.parametrize('name', WORDS)
def test_command_line(name: str, recipe: Path, good: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    tool, words, says = WORDS[name]
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    (tmp_path / 'orphan.py').write_text("_base_ = './nowhere.py'\n")
    (tmp_path / 'words.txt').write_text('model\n')
    files = dict(CONFIG=recipe, GOOD=good, RECIPE=CONFIGS / 'seg/upernet_pelk_t_ade20k.py')
    if 'DETECTOR' in words:
        files['DETECTOR'] = make_recipe('det', sources['det'], tmp_path)
    explained(call(TOOLS / tool, *(files.get(word, word) for word in words), cwd=tmp_path, code=1), says)
