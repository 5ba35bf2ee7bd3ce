"""PeLK-T's recipe on real ADE20K images, as a user runs it: two processes, checkpoint, resume, evaluation by mim.

Only data paths, crop size, iterations and norm type are changed. The pretrained weights are random ones with random
masks, in the place where the recipe looks for them, because nobody has published any.
"""

import re
from pathlib import Path

import pytest
import torch

from mmpelk.registry import MODELS
from mmpelk.sparsity import apply_masks, attach_masks, find_parameters
from tests.commands import mim, run
from tests.paths import CONFIGS, TOOLS, sample_data

pytest.importorskip('mmseg')
pytestmark = pytest.mark.slow

RECIPE = CONFIGS / 'seg' / 'upernet_pelk_t_ade20k.py'


def options(data: Path, iterations: int) -> list[str]:
    heads = ('backbone', 'decode_head', 'auxiliary_head')
    return [
        '--cfg-options',
        *(f'{loader}_dataloader.dataset.data_root={data}' for loader in ('train', 'val', 'test')),
        *(f'model.{part}.norm_cfg.type=BN' for part in heads),
        'model.data_preprocessor.size=(64,64)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'model.test_cfg.crop_size=(256,256)',
        'model.test_cfg.stride=(256,256)',
        f'train_cfg.max_iters={iterations}',
        'train_cfg.val_begin=100',  # mim evaluates
        'default_hooks.checkpoint.interval=1',
        'default_hooks.logger.interval=1',
    ]


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = MODELS.build(dict(type='mmpelk.PeLK', arch='tiny'))
    parameters = find_parameters(model, target=None)
    attach_masks(parameters)
    for entry in parameters:
        entry.mask.copy_(torch.rand(entry.weight.shape) < 0.6)
    apply_masks(parameters)
    state = model.state_dict()
    (tmp_path / 'checkpoints').mkdir()
    torch.save({f'backbone.{key}': value for key, value in state.items()}, tmp_path / 'checkpoints/pelk_t_in1k.pth')
    return state


def test_recipe_trains_resumes_and_is_evaluated(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    data = sample_data('ade20k_sample')
    train = [TOOLS / 'dist_train.sh', RECIPE, 2, '--work-dir', 'work']
    first = run(*train, *options(data, 1), cwd=tmp_path)
    assert re.search(r'Iter\(train\) \[1/1\].*loss: \d', first)
    trained = torch.load(tmp_path / 'work' / 'iter_1.pth', weights_only=False)['state_dict']
    # The warm-up starts at a learning rate of 1e-10: after one step these are still the pretrained weights.
    stem = 'downsample_layers.0.0.weight'
    torch.testing.assert_close(trained[f'backbone.{stem}'], weights[stem])
    masks = [name for name in weights if name.endswith('_mask')]
    assert masks
    assert all(torch.equal(trained[f'backbone.{name}'], weights[name]) for name in masks)

    second = run(*train, '--resume', *options(data, 2), cwd=tmp_path)
    assert 'iter: 1' in second
    assert re.search(r'Iter\(train\) \[2/2\].*loss: \d', second)
    checkpoint = tmp_path / 'work' / 'iter_2.pth'

    log = run(mim(), 'test', 'mmseg', RECIPE, '--checkpoint', checkpoint, *options(data, 2), cwd=tmp_path)
    assert re.search(r'Iter\(test\) \[1/1\] +aAcc: [\d.]+ +mIoU: [\d.]+', log)
    # The table of the 150 classes.
    assert len(re.findall(r'^\|.+\|.+\|.+\|$', log, re.MULTILINE)) == 151
    assert 'do not match' not in log
