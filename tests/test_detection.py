"""Detection: the recipes against ConvNeXt's, PeLK inside mmdet's detectors, and data that goes wrong."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmpelk.models.pelk import ARCHITECTURES

mmdet = pytest.importorskip('mmdet')

from mmdet.registry import DATASETS, MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
RECIPES = REPO / 'configs' / 'det'
NANO = REPO / 'configs' / 'demo' / 'mask_rcnn_pelk_nano_synthetic.py'
CONVNEXT = Path(mmdet.__file__).parent / '.mim' / 'configs' / 'convnext'
CONVNEXT_RECIPE = 'cascade-mask-rcnn_convnext-{}-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'


@pytest.fixture(autouse=True)
def _mmdet_scope():
    """Other tests may have left another toolbox's scope behind."""
    previous = DefaultScope.get_current_instance()
    init_default_scope('mmdet')
    yield
    if previous is not None:
        init_default_scope(previous.scope_name)


# The recipes


def flatten(value: Any, key: str = '') -> dict[str, Any]:
    """Leaves of a config with their dotted keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    leaves = {k: v for name, child in items for k, v in flatten(child, f'{key}.{name}'.lstrip('.')).items()}
    return leaves or {key: value}


@pytest.mark.parametrize('size', ['t', 's'])
def test_cascade_recipe_is_convnexts(size: str) -> None:
    ours = Config.fromfile(RECIPES / f'cascade_mask_rcnn_pelk_{size}_coco.py').to_dict()
    theirs = Config.fromfile(CONVNEXT / CONVNEXT_RECIPE.format(size)).to_dict()
    for head in theirs['model']['roi_head']['bbox_head']:  # the same head under its short name
        shared = {key: head.pop(key) for key in ('num_shared_convs', 'num_shared_fcs', 'conv_out_channels')}
        assert shared == dict(num_shared_convs=4, num_shared_fcs=1, conv_out_channels=256)
        head['type'] = 'Shared4Conv1FCBBoxHead'
    # What the toolbox writes, what only one of the two files names, and what is PeLK's own: its sparsity, and below.
    ours, theirs = (
        {
            key: value
            for key, value in flatten(config).items()
            if not key.endswith('_scope_')
            and key.partition('.')[0] not in ('multi_scale', 'norm_cfg', 'custom_imports', 'custom_hooks')
        }
        for config in (ours, theirs)
    )
    different = {key for key in ours.keys() | theirs.keys() if ours.get(key, 'absent') != theirs.get(key, 'absent')}
    assert different == {
        'checkpoint_file',
        'model.backbone.type',
        'model.backbone.init_cfg.checkpoint',
        'model.backbone.norm_cfg.type',
        'model.backbone.norm_cfg.requires_grad',
        *(f'model.neck.in_channels.{i}' for i in range(4)),
        'optim_wrapper.constructor',
        'optim_wrapper.paramwise_cfg.num_layers',
    }


def test_recipe_survives_its_dump() -> None:
    cfg = Config.fromfile(RECIPES / 'cascade_mask_rcnn_pelk_t_coco.py')
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ('name', 'arch', 'drop_path_rate', 'decay_rate', 'widths'),
    [
        ('t', 'tiny', 0.4, 0.7, [124, 249, 499, 998]),
        ('s', 'small', 0.6, 0.7, [124, 249, 499, 998]),
        ('b', 'base', 0.7, 0.8, [166, 332, 665, 1331]),
        ('b_101', 'base-101', 0.7, 0.8, [166, 332, 665, 1331]),
    ],
)
def test_cascade_recipe_values(
    name: str, arch: str, drop_path_rate: float, decay_rate: float, widths: list[int]
) -> None:
    cfg = Config.fromfile(RECIPES / f'cascade_mask_rcnn_pelk_{name}_coco.py')
    assert (cfg.model.backbone.arch, cfg.model.backbone.drop_path_rate) == (arch, drop_path_rate)
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == decay_rate
    assert cfg.model.neck.in_channels == widths
    assert Path(cfg.model.backbone.init_cfg.checkpoint).name == f'pelk_{name}_in1k.pth'
    assert list(ARCHITECTURES[arch]['channels']) == widths


# Parameter groups


def rates(model: nn.Module, wrapper_cfg: dict) -> tuple[dict[str, set[float]], dict[str, tuple[float, float]]]:
    """Learning rates per block of the backbone, and (rate, weight decay) of every parameter outside of it."""
    wrapper = build_optim_wrapper(model, wrapper_cfg)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks: dict[str, set[float]] = defaultdict(set)
    others: dict[str, tuple[float, float]] = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            part, *rest = (name := names[id(parameter)]).split('.')
            if part != 'backbone':
                others[name] = (group['lr'], group['weight_decay'])
            elif rest[1] != 'positional_embedding' and rest[2:3] != ['positional_embedding']:
                blocks['.'.join(rest[: 3 if rest[0] == 'stages' else 2 if rest[0] == 'downsample_layers' else 1])].add(
                    group['lr']
                )
    assert len(names) == sum(len(group['params']) for group in wrapper.optimizer.param_groups)
    return blocks, others


@pytest.mark.parametrize(('size', 'decay_rate'), [('t', 0.7), ('s', 0.7), ('b', 0.8)])
def test_learning_rates_are_convnexts(size: str, decay_rate: float) -> None:
    pytest.importorskip('mmpretrain.models')
    ours = Config.fromfile(RECIPES / f'cascade_mask_rcnn_pelk_{size}_coco.py')
    # mmdet has no recipe for ConvNeXt-B; it is as deep as ConvNeXt-S.
    theirs = Config.fromfile(CONVNEXT / CONVNEXT_RECIPE.format(size.replace('b', 's')))
    theirs.optim_wrapper.paramwise_cfg.decay_rate = decay_rate
    # The recipe's depth; widths have no say in the rates.
    depths, channels = ARCHITECTURES[ours.model.backbone.arch]['depths'], [8, 16, 24, 32]
    ours.model.backbone.arch = dict(depths=depths, channels=channels, kernel_sizes=(13, 13, 13, 13))
    theirs.model.backbone.arch = dict(depths=depths, channels=channels)
    found = []
    for cfg in (ours, theirs):
        cfg.model.backbone.init_cfg = None
        cfg.model.neck.in_channels = channels
        cfg.optim_wrapper.type = 'OptimWrapper'  # AMP needs a GPU and has no say in the groups
        found.append(rates(MODELS.build(cfg.model), cfg.optim_wrapper))
    (our_blocks, our_others), (their_blocks, their_others) = found
    assert our_blocks == their_blocks
    assert all(len(values) == 1 for values in our_blocks.values())
    assert our_others == their_others


# PeLK in a detector


def detector(pad_size_divisor: int = 32, **backbone: Any) -> nn.Module:
    """The demo's Mask R-CNN with the large kernels of PeLK-T."""
    torch.manual_seed(0)
    cfg = Config.fromfile(NANO).model
    cfg.backbone.kernel_sizes = (51, 49, 47, 13)
    cfg.backbone.update(backbone)
    cfg.data_preprocessor.pad_size_divisor = pad_size_divisor
    model = MODELS.build(cfg)
    model.init_weights()
    return model.train()


def batch(*sizes: tuple[int, int]) -> dict[str, list]:
    """Random images ``(H, W)`` with one box each, as a data loader gives them."""
    generator = torch.Generator().manual_seed(0)
    samples, inputs = [], []
    for height, width in sizes:
        inputs.append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
        mask = np.zeros((1, height, width), np.uint8)
        mask[:, height // 4 : height, width // 4 : width] = 1
        box = torch.tensor([[width // 4, height // 4, width, height]], dtype=torch.float32)
        sample = DetDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1, 1)))
        sample.gt_instances = InstanceData(bboxes=box, labels=torch.zeros(1, dtype=torch.long))
        sample.gt_instances.masks = BitmapMasks(mask, height, width)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def loss_of(model: nn.Module, data: dict[str, list]) -> Tensor:
    torch.manual_seed(1)  # mmdet samples boxes at random
    total, _ = model.parse_losses(model(**model.data_preprocessor(data, training=True), mode='loss'))
    return total


SIZES = {
    'not a multiple of 32': [(97, 75)],
    '1333 wide': [(48, 1333)],
    'two sizes in a batch': [(64, 96), (120, 70)],
    # Two images: batch norm refuses to train on a single pixel, which is what the last stage sees of each.
    'smaller than the kernel': [(24, 17), (20, 23)],
    'smaller than the total stride': [(30, 7), (9, 25)],
}


@pytest.mark.parametrize('divisor', [1, 32])
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES.keys())
def test_detector_trains_and_predicts_at_any_size(sizes: list[tuple[int, int]], divisor: int) -> None:
    model = detector(pad_size_divisor=divisor)
    loss = loss_of(model, batch(*sizes))
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval()
    predicted = model.test_step(batch(*sizes))
    assert [sample.pred_instances.masks.shape[-2:] for sample in predicted] == [torch.Size(size) for size in sizes]


def test_maps_are_contiguous() -> None:
    """mmcv's RoIAlign reads memory as ``(N, C, H, W)`` whatever the strides: with others a detector learns nothing."""
    model = detector()
    inputs = model.data_preprocessor(batch((64, 96), (70, 50)), training=True)['inputs']
    assert all(value.is_contiguous() for value in model.backbone(inputs))
    assert all(value.is_contiguous() for value in model.extract_feat(inputs))


@pytest.mark.parametrize('frozen', [1, 3])
def test_frozen_stages_stay_as_they_are(frozen: int) -> None:
    model = detector(frozen_stages=frozen)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_of(model, batch((64, 64))).backward()
    optimizer.step()
    stages = {str(i) for i in range(frozen)}
    for name, value in model.backbone.state_dict().items():
        part, index, *_ = name.split('.')
        if part in ('stages', 'downsample_layers') and index in stages:  # running statistics included
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)
    trained = {name for name, value in model.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith(f'stages.{frozen}.') for name in trained)


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for with_cp in (False, True):
        model = detector(with_cp=with_cp)
        loss_of(model, batch((64, 96), (70, 50))).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        # The same operations in the same order.
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


# Data that goes wrong


@pytest.fixture(scope='module')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('shapes')
    command = [sys.executable, 'tools/demo/make_detection_data.py', str(root), '--train', '4', '--val', '1']
    subprocess.run(command, cwd=REPO, check=True, timeout=60)
    return root


def spoil(root: Path, out: Path, change: str) -> Path:
    """A copy of the annotation file in which something is wrong with the first image."""
    content = json.loads((root / 'annotations' / 'instances_train2017.json').read_text())
    first = content['images'][0]
    own = [annotation for annotation in content['annotations'] if annotation['image_id'] == first['id']]
    assert own
    if change == 'empty':
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] != first['id']]
    elif change == 'crowd':
        for annotation in own:
            annotation['iscrowd'] = 1
    elif change == 'unknown category':
        content['categories'].append(dict(id=99, name='pentagon', supercategory='shape'))
        for annotation in own:
            annotation['category_id'] = 99
    elif change == 'missing file':
        first['file_name'] = 'nowhere.png'
    path = out / 'spoilt.json'
    path.write_text(json.dumps(content))
    return path


def dataset_of(shapes: Path, annotations: Path, filter_empty_gt: bool) -> Any:
    cfg = Config.fromfile(NANO).train_dataloader.dataset
    cfg.update(data_root=str(shapes), ann_file=str(annotations), filter_cfg=dict(filter_empty_gt=filter_empty_gt))
    return DATASETS.build(cfg)


@pytest.mark.parametrize('change', ['empty', 'crowd', 'unknown category'])
def test_image_without_usable_boxes(shapes: Path, tmp_path: Path, change: str) -> None:
    annotations = spoil(shapes, tmp_path, change)
    # mmdet drops an image without any annotation; a crowd or an unknown category counts as one.
    assert len(dataset_of(shapes, annotations, filter_empty_gt=True)) == (4 if change == 'crowd' else 3)
    data = dataset_of(shapes, annotations, filter_empty_gt=False)
    assert len(data) == 4
    item = data[0]
    assert len(item['data_samples'].gt_instances) == 0
    assert (len(item['data_samples'].ignored_instances) > 0) == (change == 'crowd')
    model = detector()
    loss = loss_of(model, dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
    loss.backward()
    assert torch.isfinite(loss)
    # Every parameter takes part, else a process with such an image would keep the others waiting.
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


def run_two_processes(shapes: Path, annotations: Path, work_dir: Path) -> subprocess.CompletedProcess:
    options = {
        'train_dataloader.dataset.data_root': shapes,
        'train_dataloader.dataset.ann_file': annotations,
        'train_dataloader.dataset.filter_cfg.filter_empty_gt': False,
        'train_dataloader.batch_size': 1,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.dataset.data_root': shapes,
        'val_evaluator.ann_file': shapes / 'annotations' / 'instances_val2017.json',
        'train_cfg.max_epochs': 1,
        'default_hooks.logger.interval': 1,
    }
    command = ['bash', 'tools/dist_train.sh', str(NANO), '2', '--work-dir', str(work_dir), '--cfg-options']
    command += [f'{key}={value}' for key, value in options.items()]
    # The limit is the test: a process that waits for one that is gone would wait for mmengine's 30 minutes.
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=240)


def test_missing_image_stops_all_processes(shapes: Path, tmp_path: Path) -> None:
    done = run_two_processes(shapes, spoil(shapes, tmp_path, 'missing file'), tmp_path / 'work')
    assert done.returncode != 0
    assert 'nowhere.png' in done.stderr + done.stdout


def test_image_without_annotations_in_one_of_two_processes(shapes: Path, tmp_path: Path) -> None:
    done = run_two_processes(shapes, spoil(shapes, tmp_path, 'empty'), tmp_path / 'work')
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'work' / 'last_checkpoint').is_file()


def test_demo_data_agree_with_themselves(shapes: Path) -> None:
    from pycocotools.coco import COCO

    coco = COCO(str(shapes / 'annotations' / 'instances_train2017.json'))
    assert coco.getAnnIds()
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        left, top = columns.min(), rows.min()
        assert annotation['bbox'] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
        assert annotation['area'] == mask.sum()
