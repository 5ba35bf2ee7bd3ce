"""Rates, batches and pipelines of the configs that are written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from own_data import DataSet, Machine, make_plan, read_classification, read_detection, read_segmentation, write_project
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt, convnext_base, convnext_tiny

from mmpelk.config import get_config
from mmpelk.errors import UserError
from mmpelk.models import ARCHITECTURES
from tests.tools.own_data.pictures import write_set

READERS = {'seg': read_segmentation, 'det': read_detection, 'cls': read_classification}
# Of each task the recipe whose rate for a picture the plan's has to be near to, and its batch of all processes.
RECIPES = {
    ('seg', 'nano'): ('demo/upernet_pelk_nano_synthetic.py', 4),
    ('det', 'nano'): ('demo/mask_rcnn_pelk_nano_synthetic.py', 4),
    ('cls', 'nano'): ('demo/pelk_nano_digits.py', 64),
    ('seg', 'tiny'): ('seg/upernet_pelk_t_ade20k.py', 16),
    ('det', 'tiny'): ('det/mask_rcnn_pelk_t_coco_1x.py', 16),
    ('cls', 'tiny'): ('cls/pelk_t_in1k.py', 4096),
}


@pytest.fixture(scope='module', params=READERS)
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    root = write_set(request.param, tmp_path_factory.mktemp(request.param), 40)
    return READERS[request.param](root)  # type: ignore[operator]


def plan_of(data: DataSet, size: str, weights: Path | None = None, **options: Any) -> Any:
    machine = Machine(24.0) if size == 'tiny' else Machine()
    return make_plan(data, machine, str(weights) if weights else 'none', size, **options)


def config_of(data: DataSet, plan: Any, out: Path) -> Config:
    return Config.fromfile(write_project(data, plan, out / 'mine'))


def save_convnext(folder: Path, build: Callable[[], nn.Module], version: int = 1) -> Path:
    """A small file of large tensors: of each, a single number is stored."""
    with torch.device('meta'):
        state = build().state_dict()
    # The second version has response norms in the place of layer scales.
    names = {name: name.replace('layer_scale', 'grn.weight') if version == 2 else name for name in state}
    path = folder / 'convnext.pth'
    torch.save({names[name]: torch.zeros(1).expand(value.shape) for name, value in state.items()}, path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_convnext(tmp_path, convnext_tiny)


@pytest.mark.parametrize('version', [1, 2])
def test_the_network_has_the_size_of_the_file(version: int, data: DataSet, tmp_path: Path) -> None:
    more = dict(use_grn=True, layer_scale_init_value=0) if version == 2 else {}
    plan = plan_of(data, 'tiny', save_convnext(tmp_path, convnext_base, version))
    assert plan.batch_size <= plan_of(data, 'tiny').batch_size
    model = config_of(data, plan, tmp_path).model
    backbone = {key: model.backbone.get(key) for key in ('arch', *more)}
    assert backbone == dict(arch='convnext-base', **more)
    widths = list(ARCHITECTURES['convnext-base']['channels'])
    taken = {
        'seg': lambda: [model.decode_head.in_channels, model.auxiliary_head.in_channels],
        'det': lambda: model.neck.in_channels,
        'cls': lambda: model.head.in_channels,
    }[data.task]()
    assert taken == {'seg': [widths, widths[2]], 'det': widths, 'cls': widths[-1]}[data.task]


def test_a_larger_network_takes_more_memory(data: DataSet, tmp_path: Path) -> None:
    """By the numbers of its maps: blocks times channels, a quarter of the positions in every further stage."""
    asked: list[tuple[float, float]] = []

    def batch_size(machine: Machine, per_picture: float, fixed: float, largest: int) -> int:
        asked.append((per_picture, fixed))
        return 2

    with mock.patch.object(Machine, 'batch_size', batch_size):
        for build in (convnext_tiny, convnext_base):
            plan_of(data, 'tiny', save_convnext(tmp_path, build))
    wanted = (3 * 128 + 3 * 256 / 4 + 27 * 512 / 16 + 3 * 1024 / 64) / (
        3 * 96 + 3 * 192 / 4 + 9 * 384 / 16 + 3 * 768 / 64
    )
    assert [large / small for small, large in zip(*asked, strict=True)] == pytest.approx([wanted, wanted])


def test_another_size_is_refused(data: DataSet, tmp_path: Path) -> None:
    path = save_convnext(tmp_path, lambda: ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 2)]))
    with pytest.raises(UserError, match=r'1-2 blocks, 8-12 channels.*--weights takes .*convnext-tiny'):
        plan_of(data, 'tiny', path)


@pytest.mark.parametrize('size', ['nano', 'tiny', 'pretrained'])
def test_learning_rate(size: str, data: DataSet, weights: Path) -> None:
    network, start = ('tiny', weights) if size == 'pretrained' else (size, None)
    rate = plan_of(data, network, start, batch_size=8).lr
    assert plan_of(data, network, start, batch_size=16).lr == pytest.approx(2 * rate, rel=0.05)
    recipe, batch = RECIPES[data.task, network]
    wanted = get_config(recipe).optim_wrapper.optimizer.lr / batch
    # Shorter trainings and other starts than the recipes' want other rates, but not by orders of magnitude.
    assert wanted / 10 < rate / 8 < wanted * 10


def test_a_share_is_held_out_and_what_is_hidden_is_not_seen(data: DataSet, tmp_path: Path) -> None:
    root = shutil.copytree(data.root, tmp_path / 'copy')
    picture = next(path for path in root.rglob('0.jpg'))
    for path in (root / '.thumbnails/0.jpg', root / '__MACOSX/images/0.jpg', picture.with_name('._0.jpg')):
        path.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(picture, path)
    copied = READERS[data.task](root)  # type: ignore[operator]
    assert (copied.splits, copied.counts, copied.sizes) == (data.splits, data.counts, data.sizes)
    assert list(map(str, copied.notes)) == list(map(str, data.notes))
    halved = READERS[data.task](root, val_share=0.5)  # type: ignore[operator]
    assert [len(halved.splits[split]) for split in ('train', 'val')] == [20, 20]


@pytest.mark.parametrize(('asked', 'found', 'expected'), [
    (None, 16.5, (16.5, 'of torch')),
    (None, None, (0.0, 'CPU with 3 cores')),
    (0.0, 16.5, (0.0, 'CPU with 3 cores')),
    (12.0, 16.5, (12.0, 'a GPU of 12 GB')),
])  # fmt: skip
def test_the_machine_is_this_one_or_the_one_that_is_asked_for(
    asked: float | None, found: float | None, expected: tuple[float, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimpleNamespace(total_memory=2**30 * (found or 0), name='of torch')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: found is not None)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda index: device)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1, 5})
    assert Machine.here(asked) == Machine(expected[0], 3, expected[1])


@pytest.mark.parametrize('memory', [8, 11, 24, 80])
def test_batch_fits_the_memory(memory: float) -> None:
    for each in (0.2, 1.0, 3.0):
        batch = Machine(memory).batch_size(each, 2.5, 128)
        assert batch == 2 or 2.5 + batch * each <= 0.8 * memory
        assert batch == 128 or 2.5 + 2 * batch * each > 0.8 * memory


@pytest.mark.parametrize('size', ['nano', 'tiny', 'pretrained'])
def test_one_pipeline(size: str, data: DataSet, weights: Path, tmp_path: Path) -> None:
    """Validation, test, inference and augmented tests see a picture alike, and rates fall in the end."""
    start = weights if size == 'pretrained' else None
    plan = plan_of(data, size.replace('pretrained', 'tiny'), start)
    cfg = config_of(data, plan, tmp_path)
    pipelines = [cfg.test_pipeline, *(cfg[f'{split}_dataloader'].dataset.pipeline for split in ('val', 'test'))]
    assert pipelines[1:] == pipelines[:1] * 2
    assert all(scheduler.get('gamma', 0.5) < 1 for scheduler in cfg.param_scheduler)
    length = cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs'))
    assert cfg.param_scheduler[-1].end == length
    epoch = 1 if cfg.param_scheduler[0].by_epoch or data.task == 'seg' else len(data.splits['train']) // plan.batch_size
    assert cfg.param_scheduler[0].end <= 0.2 * length * epoch, 'the warm-up is a small part'
    assert plan.batch_size <= len(data.splits['train'])
    if data.task == 'seg':
        (scale,) = (step.scale for step in cfg.test_pipeline if step.type == 'Resize')
        views = [step.scale for step in cfg.tta_pipeline[1].transforms[0]]
        assert scale in views
        assert max(cfg.crop_size) <= min(scale)
        assert 'reduce_zero_label' not in str([cfg.train_pipeline, *pipelines, cfg.tta_pipeline])
        assert not any(cfg[f'{split}_dataloader'].dataset.reduce_zero_label for split in ('train', 'val', 'test'))
    optim_wrapper = cfg.optim_wrapper
    is_lower = optim_wrapper.get('paramwise_cfg', {}).get('peripheral_lr_mult') == 0.1 or (
        optim_wrapper.get('constructor') == 'mmpelk.PeripheralOptimWrapperConstructor'
    )
    assert is_lower is (size == 'pretrained'), 'kernels that begin at zero beside trained centres learn slowly'
    if data.task != 'cls':
        # Layers learn at the same rate from scratch; pretrained ones slower towards the stem.
        decay = cfg.optim_wrapper.get('paramwise_cfg', {}).get('decay_rate', 1.0)
        assert (decay < 1) is (size == 'pretrained')
        assert isinstance(cfg.palette, list)  # MMDetection takes a tuple for one colour
    if data.task == 'det':
        assert bool(cfg.model.backbone.get('norm_eval')) is (size == 'pretrained')


def test_a_test_split_has_a_loader_of_its_own(data: DataSet, tmp_path: Path) -> None:
    with_test = DataSet(**vars(data))
    with_test.splits = {**data.splits, 'test': data.splits['val']}
    if data.task == 'det':
        contents = data.details['contents']
        folders = {**data.details['folders'], 'test': data.details['folders']['val']}
        with_test.details = {**data.details, 'contents': {**contents, 'test': contents['val']}, 'folders': folders}
    cfg = config_of(with_test, plan_of(with_test, 'nano'), tmp_path)
    end = 'json' if data.task == 'det' else 'txt'
    written = {
        'mine.py',
        *(f'{split}.{end}' for split in with_test.splits),
        *(['labels'] if data.task == 'seg' else []),
    }
    assert {path.name for path in (tmp_path / 'mine').iterdir()} == written
    assert [cfg[f'{split}_dataloader'].dataset.ann_file.rsplit('/', 1)[1] for split in ('train', 'val', 'test')] == [
        f'train.{end}', f'val.{end}', f'test.{end}'
    ]  # fmt: skip
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        text = Path(dataset.ann_file).read_text(encoding='utf-8')
        listed = json.loads(text)['images'] if data.task == 'det' else text.splitlines()
        paths = [line['file_name'] if data.task == 'det' else line.split()[0] for line in listed]
        paths = [str(Path(dataset.data_prefix.img, path)) if data.task == 'det' else path for path in paths]
        assert paths == with_test.splits[split]
        assert all(Path(cfg.data_root, path).is_file() for path in paths)
        if data.task == 'cls':
            assert all('ab'[int(line.split()[1])] == line[0] for line in listed)
        if data.task == 'seg':
            assert all(Path(dataset.data_prefix.seg_map_path, f'{path}.png').is_file() for path in paths)
    if data.task == 'det':
        assert cfg.test_evaluator.ann_file.endswith('/test.json')
        assert cfg.val_evaluator.ann_file.endswith('/val.json')


@pytest.mark.parametrize('pictures', [8, 200, 20000])
@pytest.mark.parametrize('size', ['nano', 'tiny'])
def test_validation_takes_a_quarter_of_the_run(pictures: int, size: str, data: DataSet) -> None:
    """By the count of pixels; where two validations of all pictures take longer, they see a part, and the test all."""
    many = DataSet(**vars(data))
    names = [f'{index}.jpg' for index in range(pictures)]
    many.splits, many.notes = {**data.splits, 'val': names}, []
    if data.task == 'det':
        image = data.details['contents']['val']['images'][0]
        images = [{**image, 'id': index, 'file_name': name} for index, name in enumerate(names)]
        contents = {**data.details['contents'], 'val': {**data.details['contents']['val'], 'images': images}}
        many.details = {**data.details, 'contents': contents, 'folders': dict(data.details['folders'])}
    plan = plan_of(many, size)
    total = plan.iterations if data.task == 'seg' else plan.epochs
    count = total // plan.val_interval
    assert count >= 2
    seen = len(many.splits['val']) * count
    short, long = sorted(data.median_size)
    whole = plan.resized**2 * long / short if data.task == 'seg' else plan.size[0] * plan.size[1]
    # A forward pass takes a third of a step.
    assert seen * whole / 3 <= 1.01 * plan.iterations * plan.batch_size * plan.size[0] * plan.size[1] / 3
    if (kept := len(many.splits['val'])) < pictures:
        assert many.splits['test'] == names
        numbers = [int(Path(name).stem) for name in many.splits['val']]
        assert np.abs(np.array(numbers) - np.arange(kept) * pictures / kept).max() <= 1, 'from the whole set'
        assert f'see {len(many.splits["val"])} of {pictures} pictures' in '\n'.join(map(str, many.notes))


@pytest.mark.parametrize('task', READERS)
def test_plans_of_many_sets(task: str, compare: Callable[[str], None]) -> None:
    """What is planned for sizes, numbers of pictures, batches and memories at which it changes."""

    def planned(shape: tuple[int, int], train: int, val: int, machine: Machine, **options: Any) -> tuple[DataSet, Any]:
        data = DataSet(task, Path('/data'), ['a', 'b'], [], {}, [shape], [1, 1], 'counted')
        data.splits = dict(train=range(train), val=[f'{index}' for index in range(val)])  # type: ignore[dict-item]
        return data, make_plan(data, machine, **options)

    lines = []
    for short in (8, 32, 40, 41, 47, 48, 79, 80, 81, 112, 160, 161, 200, 256, 272, 400, 511, 700, 830, 1040, 2000):
        shown = []
        for machine, options in ((Machine(), {}), (Machine(), dict(size='tiny')), (Machine(24.0), {})):
            for aspect in (1, 1.6):
                _, plan = planned((round(short * aspect), short), 200, 40, machine, **options)
                shown.append(f'{plan.size[0]}x{plan.size[1]} of {plan.resized}, {plan.batch_size}')
        lines.append(f'short side of {short}: {"; ".join(shown)}')
    for gpu in (0.0, 4.0, 24.0, 80.0):
        for train in (1, 2, 3, 5, 16, 129, 1000, 40_000, 9_000_000):
            _, plan = planned((300, 200), train, 1, Machine(gpu))
            lines.append(
                f'{gpu:g} GB, {train} pictures: batch {plan.batch_size}, {plan.iterations} in {plan.epochs} epochs'
            )
    for val in (1, 7, 8, 40, 60, 90, 120, 200, 500, 3000, 30_000):
        shown = []
        for machine, size in ((Machine(), (300, 200)), (Machine(24.0), (300, 200)), (Machine(24.0), (2000, 600))):
            data, plan = planned(size, 60, val, machine)
            shown.append(f'{len(data.splits["val"])} every {plan.val_interval} of {plan.iterations}, {plan.epochs}')
        lines.append(f'{val} to validate on: {"; ".join(shown)}')
    for batch in (1, 3, 6, 16, 100):
        machines = ((Machine(), {}), (Machine(24.0), {}), (Machine(24.0), dict(weights='https://a.org/b.pth')))
        plans = [planned((300, 200), 500, 9, machine, batch_size=batch, **more)[1] for machine, more in machines]
        lines.append(f'batch {batch}: {", ".join(f"{plan.lr:g} in {plan.iterations}" for plan in plans)}')
    compare('\n'.join(lines))


def test_the_file_of_weights_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written does not depend on the folder in which the command was typed."""
    save_convnext(tmp_path, convnext_tiny)
    data = DataSet('cls', tmp_path, ['a', 'b'], [], dict(train=['0', '1'], val=['2']), [(64, 64)], [1, 1], 'counted')
    monkeypatch.chdir(tmp_path)
    assert make_plan(data, Machine(24.0), 'convnext.pth').weights == str((tmp_path / 'convnext.pth').resolve())
    assert make_plan(data, Machine(24.0), 'https://a.org/b.pth').weights == 'https://a.org/b.pth'
    assert str(make_plan(data, Machine(), 'public').weights).startswith('https://')
    for absent in ('gone.pth', '.'):
        with pytest.raises(UserError, match=f"there are no weights '{absent}'; --weights takes a file"):
            make_plan(data, Machine(24.0), absent)
    with pytest.raises(UserError, match='are those of a ConvNeXt: give --size tiny'):
        make_plan(data, Machine(), 'convnext.pth', 'nano')


@pytest.mark.parametrize(
    ('gpu', 'cores', 'workers'), [(0, 8, 0), (8, 1, 1), (8, 2, 1), (8, 4, 3), (8, 5, 4), (8, 64, 4)]
)
def test_a_core_is_left_to_the_training(gpu: float, cores: int, workers: int) -> None:
    assert Machine(gpu, cores).workers == workers
