"""A shrunk checkpoint in every tool: the whole one's results with the same config; trained by one process or two."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import save_checkpoint

from mmpelk.sparsity import GRANULARITIES, attach_masks, remove_masks
from tests.commands import call, find_free_port
from tests.fault_tolerance import training
from tests.paths import TOOLS

pytestmark = [pytest.mark.slow, pytest.mark.scope('mmseg')]

FREE = ['--cfg-options', 'model.backbone.init_cfg=None', 'model.backbone.norm_cfg.type=BN']
CLASSES = [f'class {index}' for index in range(150)]


@pytest.fixture(scope='module')
def files(tiny_config: Path) -> tuple[Path, Path]:
    """Checkpoints of the tiny recipe: with masks of units, and the shrunk one."""
    folder = tiny_config.parent
    init_default_scope('mmseg')
    cfg = Config.fromfile(tiny_config)
    cfg.model.backbone.norm_cfg = dict(type='BN')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for name, value in model.named_parameters():
        if name.endswith('gamma'):  # layer scales at which the blocks matter
            torch.nn.init.ones_(value)
    layers = GRANULARITIES['unit'](model, 'backbone', ())
    attach_masks(entry for layer in layers for entry in layer.parameters)
    for layer in layers:
        layer.draw(layer.shape[0] * layer.shape[1] // 2, torch.Generator().manual_seed(0))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    remove_masks(model)
    meta = dict(dataset_meta=dict(classes=CLASSES, palette=[(i, i, i) for i in range(150)]))
    whole, shrunk = folder / 'whole.pth', folder / 'shrunk.pth'
    save_checkpoint(dict(state_dict=state | model.state_dict(), meta=meta), str(whole))
    call(TOOLS / 'export_dense.py', whole, shrunk, '--shrink', cwd=folder)
    assert shrunk.stat().st_size < whole.stat().st_size
    return whole, shrunk


def test_it_has_the_same_score(tiny_config: Path, files: tuple[Path, Path]) -> None:
    found = []
    for file in files:
        log = call(TOOLS / 'test.py', tiny_config, file, '--work-dir', file.stem, *FREE, cwd=file.parent)
        assert 'size mismatch' not in log
        found.append(re.findall(r'aAcc: [\d.]+  mIoU: [\d.]+', log)[-1])
    assert found[0] == found[1]


def test_it_draws_the_same_and_is_deployed(tiny_config: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert cv2.imwrite(str(tmp_path / 'image.png'), pixels)
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = {str(tiny_config)!r}\nmodel = dict(backbone=dict(norm_cfg=dict(type='BN')))\n")
    drawn = []
    for file in files:
        options = ['--config', config, '--checkpoint', file, '--out', file.stem, '--device', 'cpu']
        call(TOOLS / 'demo_image.py', 'image.png', *options, cwd=tmp_path)
        drawn.append(cv2.imread(str(tmp_path / file.stem / 'image.png')))
    assert np.array_equal(*drawn)
    # And it is deployed.
    call(TOOLS / 'reparameterize_model.py', tiny_config, files[1], 'deployed.pth', cwd=tmp_path)
    deployed = torch.load(tmp_path / 'deployed.pth')['state_dict']
    shrunk = torch.load(files[1])['state_dict']
    name = 'backbone.stages.2.0.pointwise_conv1.weight'
    assert torch.equal(deployed[name], shrunk[name])
    assert len(shrunk[name]) == 32


@pytest.mark.parametrize('processes', [1, 2])
def test_it_is_trained(tiny_config: Path, files: tuple[Path, Path], tmp_path: Path, processes: int) -> None:
    """Two processes have to know its widths beforehand (tests/models/test_hidden_units.py: otherwise they refuse)."""
    config = tmp_path / 'tuned.py'
    config.write_text(
        f"""
_base_ = {str(tiny_config)!r}
model = dict(backbone=dict(
    norm_cfg=dict(type='BN'),
    init_cfg=dict(_delete_=True, type='Pretrained', checkpoint={str(files[1])!r}, prefix='backbone.'),
))
custom_hooks = [dict(type='mmpelk.SparsityHook', mode='dense')]
"""
    )
    if processes == 1:
        call(TOOLS / 'train.py', config, '--work-dir', 'work', cwd=tmp_path)
    else:
        known = ['--cfg-options', 'model.backbone.hidden_channels=pretrained']
        training.preload()
        running = training.start(tmp_path, [config, '--work-dir', 'work', *known], 2, port=find_free_port())
        assert running.wait() == [0, 0], running.printed()[-3000:]
    tuned = torch.load(tmp_path / 'work' / 'iter_4.pth', weights_only=False)['state_dict']
    start = torch.load(files[1])['state_dict']
    for name, value in start.items():
        assert tuned[name].shape == value.shape
    name = 'backbone.stages.2.0.pointwise_conv1.weight'
    assert not torch.equal(tuned[name], start[name])


def test_fixed_masks_are_fine_tuned_as_the_recipe_is(
    tiny_config: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    words = [f'load_from={files[0]}', *FREE[1:]]
    call(TOOLS / 'train.py', tiny_config, '--work-dir', 'work', '--cfg-options', *words, cwd=tmp_path)
    tuned = torch.load(tmp_path / 'work' / 'iter_4.pth', weights_only=False)['state_dict']
    start = torch.load(files[0])['state_dict']
    name = 'backbone.stages.2.0.pointwise_conv1.weight'
    assert torch.equal(tuned[f'{name}_mask'], start[f'{name}_mask'].expand_as(start[name]))
    assert not tuned[name][~tuned[f'{name}_mask']].any()
    assert not torch.equal(tuned[name], start[name])
