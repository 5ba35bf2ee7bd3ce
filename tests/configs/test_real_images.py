"""PeLK-T's recipes on real images, as a user runs them: two processes, checkpoint, resume, evaluation through mim.

mim tests the detector; the others run in processes that have the toolbox imported already.

Widths, kernels, losses and pipelines are the recipes'; there is one block a stage (test_training_step.py trains the
whole networks), and images, crops and iterations are small and few. The pretrained weights are random ones with random
masks, in the place where the recipes look for them, because nobody has published any.
"""

import re
from pathlib import Path

import pytest
import torch

from mmpelk.registry import MODELS
from mmpelk.sparsity import apply_masks
from tests.commands import call, find_free_port, mim, run
from tests.configs.resolved import config
from tests.fault_tolerance.training import preload, start
from tests.paths import TOOLS, sample_data
from tests.sparsity.tiny import draw_masks

pytestmark = pytest.mark.slow

LOADERS = ('train', 'val', 'test')
DEPTHS = (1, 1, 1, 1)


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = MODELS.build(dict(type='mmpelk.PeLK', arch='tiny', depths=DEPTHS))
    apply_masks(draw_masks(model, None))
    state = model.state_dict()
    (tmp_path / 'checkpoints').mkdir()
    torch.save({f'backbone.{key}': value for key, value in state.items()}, tmp_path / 'checkpoints/pelk_t_in1k.pth')
    return state


def options(data: Path, **changes: object) -> list[str]:
    """``--cfg-options``: the data, and changes whose keys are dotted."""
    common = {f'{loader}_dataloader.dataset.data_root': data for loader in LOADERS}
    common |= {f'{loader}_dataloader.num_workers': 0 for loader in LOADERS}
    common |= {f'{loader}_dataloader.persistent_workers': False for loader in LOADERS}
    common |= {'default_hooks.checkpoint.interval': 1, 'default_hooks.logger.interval': 1}
    common |= {'model.backbone.depths': str(DEPTHS).replace(' ', '')}
    return ['--cfg-options', *(f'{key}={value}' for key, value in (common | changes).items())]


def segmentation_options(**changes: object) -> list[str]:
    pytest.importorskip('mmseg')
    return options(sample_data('ade20k_sample'), **{
        **{f'model.{part}.norm_cfg.type': 'BN' for part in ('backbone', 'decode_head', 'auxiliary_head')},
        'model.data_preprocessor.size': '(64,64)', 'train_dataloader.dataset.pipeline.3.crop_size': '(64,64)',
        'test_dataloader.dataset.pipeline.1.scale': '(256,128)', 'train_cfg.val_begin': 100,
        'model.test_cfg.crop_size': '(128,128)', 'model.test_cfg.stride': '(85,85)',
        **changes,
    })  # fmt: skip


def train(recipe: Path, folder: Path, *words: object) -> str:
    """On two processes, which have to end well; what they printed."""
    preload()
    training = start(folder, [recipe, '--work-dir', 'work', *words], 2, port=find_free_port())
    assert training.wait() == [0, 0], training.printed()[-3000:]
    printed = training.printed()
    for log in training.logs:
        log.unlink()  # the next one would append to it
    return printed


def check_segmentation(log: str) -> None:
    assert re.search(r'Iter\(test\) \[1/1\] +aAcc: [\d.]+ +mIoU: [\d.]+', log)
    # The table of the 150 classes.
    assert len(re.findall(r'^\|.+\|.+\|.+\|$', log, re.MULTILINE)) == 151
    assert 'do not match' not in log


def test_segmentation(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    recipe, words = config('seg/upernet_pelk_t_ade20k'), segmentation_options(**{'train_cfg.max_iters': 1})
    log = train(recipe, tmp_path, *words)
    assert re.search(r'Iter\(train\) \[1/1\].*loss: \d', log)
    trained = torch.load(tmp_path / 'work' / 'iter_1.pth', weights_only=False)['state_dict']
    # The warm-up starts at a learning rate of 1e-10: after one step these are still the pretrained weights.
    stem = 'downsample_layers.0.0.weight'
    torch.testing.assert_close(trained[f'backbone.{stem}'], weights[stem])
    masks = [name for name in weights if name.endswith('_mask')]
    assert masks
    assert all(torch.equal(trained[f'backbone.{name}'], weights[name]) for name in masks)
    check_segmentation(call(TOOLS / 'test.py', recipe, 'work/iter_1.pth', *words, cwd=tmp_path))


def test_segmentation_from_convnext(tmp_path: Path) -> None:
    """Random weights in mmpretrain's format stand in for the published ones: trained, resumed, tested."""
    arch = dict(depths=DEPTHS, channels=(96, 192, 384, 768))
    convnext = pytest.importorskip('mmpretrain.models').ConvNeXt(arch)
    state = {f'backbone.{name}': value for name, value in convnext.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'convnext.pth')
    recipe = config('seg/upernet_pelk_convnext_t_ade20k')
    words = segmentation_options(**{'model.backbone.init_cfg.checkpoint': tmp_path / 'convnext.pth'})
    log = train(recipe, tmp_path, *words, 'train_cfg.max_iters=1')
    assert 'inflated 4 kernels' in log
    trained = torch.load(tmp_path / 'work' / 'iter_1.pth', weights_only=False)['state_dict']
    kernel = trained['backbone.stages.0.0.mixer.large.weight']
    torch.testing.assert_close(kernel[:, :, 4:11, 4:11], state['backbone.stages.0.0.depthwise_conv.weight'])
    assert kernel[:, :, :4].abs().max() < 1e-6  # the warm-up starts at a learning rate of 1e-10

    log = train(recipe, tmp_path, '--resume', *words, 'train_cfg.max_iters=2')
    assert re.search(r'Iter\(train\) \[2/2\].*loss: \d', log)
    assert 'Iter(train) [1/' not in log
    check_segmentation(call(TOOLS / 'test.py', recipe, 'work/iter_2.pth', *words, cwd=tmp_path))


def test_detection(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    recipe, data = config('det/cascade_mask_rcnn_pelk_t_coco'), sample_data('coco_sample')
    # Both branches of the recipe's augmentation, at a short side of 64 instead of 480 to 800.
    branches = 'train_dataloader.dataset.pipeline.3.transforms'
    words = options(data, **{
        **{f'model.train_cfg.rcnn.{stage}.sampler.num': 16 for stage in range(3)},
        # Three quarters of the weights otherwise.
        **{f'model.roi_head.bbox_head.{stage}.fc_out_channels': 64 for stage in range(3)},
        **{f'{branches}.{step}.scales': '[(64,96)]' for step in ('0.0', '1.0', '1.2')},
        **{f'{split}_dataloader.dataset.pipeline.1.scale': '(96,64)' for split in ('val', 'test')},
        **{f'{split}_evaluator.ann_file': data / 'annotations/instances_val2017.json' for split in ('val', 'test')},
        f'{branches}.1.1.crop_size': '(48,64)', 'model.train_cfg.rpn_proposal.max_per_img': 64,
        'model.test_cfg.rpn.max_per_img': 32, 'model.test_cfg.rcnn.max_per_img': 10,
        'model.test_cfg.rcnn.score_thr': 0.0, 'train_cfg.val_interval': 9,
        'train_dataloader.dataset.indices': 4, 'train_dataloader.batch_size': 2,
        **{f'{split}_dataloader.dataset.indices': 3 for split in ('val', 'test')},
    })  # fmt: skip
    first = train(recipe, tmp_path, *words, 'train_cfg.max_epochs=1')
    assert re.search(r'Epoch\(train\)\s+\[1\]\[1/1\].*loss: \d', first)

    second = train(recipe, tmp_path, '--resume', *words, 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1' in second
    assert re.search(r'Epoch\(train\)\s+\[2\]\[1/1\].*loss: \d', second)
    assert 'Epoch(train)  [1]' not in second

    # onedl-mim 0.5.1 refuses 'mmdet' as ambiguous and knows 'mmdetection'.
    name = 'mmdet' if pytest.importorskip('mim.utils').module_full_name('mmdet') else 'mmdetection'
    log = run(mim(), 'test', name, recipe, '--checkpoint', 'work/epoch_2.pth', *words, cwd=tmp_path)
    for metric in ('bbox_mAP', 'segm_mAP'):
        assert re.search(rf'Epoch\(test\).*coco/{metric}: \d', log), metric
    assert re.search(r'Epoch\(test\)\s+\[3/3\]', log)
