"""The two tiers of tests, and tiny data sets and networks for those in which the recipe is not the point."""

import functools
import gc
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch.distributed as dist
from mmengine.config import config as config_module
from mmengine.config import utils as config_utils
from mmengine.registry import DefaultScope, init_default_scope
from yapf.yapflib import yapf_api

from tests.commands import find_free_port
from tests.paths import CONFIGS

# What the shell or the Slurm job around the tests has set for its own commands changes nothing that is tested.
OF_COMMANDS = {
    *('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'NNODES', 'NODE_RANK', 'PORT', 'REQUEUE'),
    *('GPUS', 'GPUS_PER_NODE', 'CPUS_PER_TASK', 'GRES', 'SRUN_ARGS', 'FORCE_COLOR', 'NO_COLOR', 'COLUMNS'),
    *('WORK_DIR', 'DATA', 'SEEDS', 'TRITON_INTERPRET', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'WANDB_PROJECT'),
}
OF_TESTS = {'MMPELK_SAMPLE_DATA', 'MMPELK_ORDINARY_PYTHON'}
for variable in list(os.environ):
    if variable in OF_COMMANDS or (variable.startswith(('MMPELK_', 'SLURM_')) and variable not in OF_TESTS):
        del os.environ[variable]

# For every `_base_ = 'mmdet::...'` mmengine reads the toolbox's hundred metafiles again, a third of a second.
config_utils.load = functools.cache(config_utils.load)
# And it writes and removes temporary files for each config and each base of it: in memory, where there is a way.
if os.access('/dev/shm', os.W_OK):
    in_memory = functools.partial(tempfile.TemporaryDirectory, dir='/dev/shm')
    config_module.tempfile = types.SimpleNamespace(**vars(tempfile) | dict(TemporaryDirectory=in_memory))
# And yapf formats every config that is logged, dumped or saved, more than a second of a training: they hold the same.
yapf_api.FormatCode = lambda text, **options: (text, False)

TINY_MODEL = """
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        arch=dict(_delete_=True, depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 11, 9, 7)),
        init_cfg=None,
    ),
    decode_head=dict(in_channels=[8, 12, 16, 20], channels=8, pool_scales=(1, 2)),
    auxiliary_head=dict(in_channels=16, channels=8),
    test_cfg=dict(crop_size=(64, 64), stride=(64, 64)),
)
"""


def schedule(data_root: Path) -> str:
    """Text of a config: two short trainings' worth of loops and loaders, without worker processes."""
    loader = f'dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={str(data_root)!r}{{}}))'
    return f"""
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=(64, 64)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = {loader.format(', pipeline=train_pipeline')}
val_dataloader = {loader.format(', pipeline=test_pipeline')}
test_dataloader = {loader.format(', pipeline=test_pipeline')}
train_cfg = dict(max_iters=4, val_interval=4)
param_scheduler = None
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


@functools.cache
def freeze_modules(hundreds: int) -> None:
    """No garbage collection, and no search for what holds parameters, walks through all that was imported.

    mmengine collects garbage for every data set that it reads, a quarter of a second with the toolboxes' modules.

    Args:
        hundreds: Of modules; the first call with a number freezes them.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold the rule of the fast tier: no Python and no shell script is started, by the test or by its fixtures."""
    freeze_modules(len(sys.modules) // 100)
    start = subprocess.Popen.__init__

    def refuse(process: subprocess.Popen, args: Any, *rest: Any, **words: Any) -> None:
        # Libraries ask the compiler and the system for their versions; those commands are short.
        first = Path(str(args if isinstance(args, str | Path) else args[0]))
        if first == Path(sys.executable) or first.suffix == '.sh' or first.name in ('bash', 'sh', 'mim', 'python'):
            raise AssertionError(f'{first} is started: a test that starts processes is marked pytest.mark.slow')
        start(process, args, *rest, **words)

    with mock.patch.object(subprocess.Popen, '__init__', start if item.get_closest_marker('slow') else refuse):
        return (yield)


@pytest.fixture(autouse=True)
def _default_scope(request: pytest.FixtureRequest) -> Iterator[None]:
    """The scope of ``pytest.mark.scope``; mmengine's is global, so the next test gets the one that was there before."""
    previous, marker = DefaultScope.get_current_instance(), request.node.get_closest_marker('scope')
    if marker is not None:
        pytest.importorskip(marker.args[0])
        init_default_scope(marker.args[0])
    yield
    if previous is not None:
        init_default_scope(previous.scope_name)


def draw_ade20k(root: Path) -> Path:
    """Six images of 64 to 80 pixels, four of them for training."""
    rng = np.random.default_rng(0)
    for index, split in enumerate(['training'] * 4 + ['validation'] * 2):
        height, width = rng.integers(64, 81, 2)
        for folder, shape, name in (('images', (height, width, 3), 'jpg'), ('annotations', (height, width), 'png')):
            file = root / folder / split / f'{index}.{name}'
            file.parent.mkdir(parents=True, exist_ok=True)
            # Blocks of one class, and a share of label 0, which reduce_zero_label makes the ignored one.
            coarse = rng.integers(0, 256 if name == 'jpg' else 4, [8, 8, *shape[2:]]).astype(np.uint8)
            assert cv2.imwrite(
                str(file), cv2.resize(coarse, (int(width), int(height)), interpolation=cv2.INTER_NEAREST)
            )
    return root


@pytest.fixture(scope='session')
def tiny_ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_ade20k(tmp_path_factory.mktemp('ade20k'))


@pytest.fixture(scope='session')
def tiny_config(tiny_ade20k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config outside the project that inherits the recipe by path, shrunk to a tiny network on a tiny data set."""
    config = tmp_path_factory.mktemp('elsewhere') / 'tiny.py'
    recipe = CONFIGS / 'seg' / 'upernet_pelk_t_ade20k.py'
    config.write_text(f'_base_ = {str(recipe)!r}\n{TINY_MODEL}\n{schedule(tiny_ade20k)}')
    return config


@pytest.fixture(scope='session')
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of two synsets for training and as many for validation, in ImageNet's layout."""
    root, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    (root / 'meta').mkdir()
    for split in ('train', 'val'):
        names = [f'{synset}/{index}.JPEG' for synset in ('n01440764', 'n01443537') for index in range(4)]
        # With lists of the images, not all thousand folders need to be there.
        (root / 'meta' / f'{split}.txt').write_text('\n'.join(f'{name} {i // 4}' for i, name in enumerate(names)))
        for name in names:
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = cv2.resize(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8), (72, 64))
            assert cv2.imwrite(str(root / split / name), pixels)
    return root


@pytest.fixture(scope='session')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of noise, and a file that is none."""
    folder, random = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for index in range(3):
        assert cv2.imwrite(str(folder / f'{index}.png'), random.integers(0, 256, (30, 50, 3), np.uint8))
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody listens on."""
    return find_free_port()


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compares a text with the section of the test in ``expected/FILE.txt``; REWRITE_EXPECTED=1 writes it instead."""
    path, name = request.path.parent / 'expected' / f'{request.path.stem}.txt', request.node.name
    parts = re.split(r'^== (.*)\n', path.read_text() if path.is_file() else '', flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))

    def check(text: str) -> None:
        text = '\n'.join(line.rstrip() for line in text.splitlines()) + '\n'
        if os.environ.get('REWRITE_EXPECTED') == '1':
            sections[name] = text
            path.write_text(''.join(f'== {key}\n{section}' for key, section in sorted(sections.items())))
        assert text.splitlines() == sections.get(name, '').splitlines(), f'as meant? Else see {path.name}'

    return check
