"""From pre-training through segmentation to a deployed network: what is learnt flows downstream."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from tests.commands import call
from tests.configs.resolved import config
from tests.paths import TOOLS

pytestmark = [pytest.mark.slow, pytest.mark.scope('mmpretrain')]

NANO = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 11, 9, 7))


@pytest.fixture(scope='module')
def pretrained(tiny_imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PeLK-T's recipe through tools/train.py, shrunk: two epochs, sparse, with EMA."""
    folder = tmp_path_factory.mktemp('pretrain')
    pipeline = '[dict(type="LoadImageFromFile"),dict(type="Resize",scale=48),dict(type="PackInputs")]'
    path = folder / 'pretrain.py'
    path.write_text(f"""
_base_ = {str(config('cls/pelk_t_in1k'))!r}
model = dict(backbone=dict(**{NANO!r}), head=dict(in_channels=20))
dataset = dict(data_root={str(tiny_imagenet)!r}, pipeline={pipeline})
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dataset)
train_cfg = dict(max_epochs=2)
param_scheduler = None
custom_hooks = [dict(update_interval=2, prune_rate=0.5, **_base_.sparsity), _base_.ema]
""")
    log = call(TOOLS / 'train.py', path, '--work-dir', 'work', cwd=folder)
    assert 'accuracy/top1' in log
    state = torch.load(folder / 'work' / 'epoch_2.pth', weights_only=False)['state_dict']
    masks = torch.cat([value.flatten() for name, value in state.items() if name.endswith('_mask')])
    assert masks.float().mean().item() == pytest.approx(0.6, abs=1e-3), 'so has the copy of EMA, which is saved'
    return folder / 'work' / 'epoch_2.pth'


@pytest.fixture(scope='module')
def fine_tuned(pretrained: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Segmentation from that checkpoint through the documented line; its config and log."""
    folder = tmp_path_factory.mktemp('finetune')
    path = folder / 'finetune.py'
    # The masks of the pre-training are kept, as docs/sparsity.md says. A learning rate of 0 leaves what was loaded.
    path.write_text(f"""
_base_ = {str(tiny_config)!r}
model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='none', prefix='backbone.')))
custom_hooks = [dict(type='mmpelk.SparsityHook', mode='fixed')]
optim_wrapper = dict(optimizer=dict(lr=0.0))
train_cfg = dict(max_iters=2, val_interval=2)
""")
    log = call(TOOLS / 'train.py', path, '--work-dir', 'work',
              '--cfg-options', f'model.backbone.init_cfg.checkpoint={pretrained}', cwd=folder)  # fmt: skip
    return path, log


def backbone_of(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, map_location='cpu', weights_only=False)['state_dict']
    return {name: value for name, value in state.items() if name.startswith('backbone.')}


def test_every_backbone_tensor_flows_downstream(pretrained: Path, fine_tuned: tuple[Path, str]) -> None:
    path, _ = fine_tuned
    before, after = backbone_of(pretrained), backbone_of(path.parent / 'work' / 'iter_2.pth')
    # Batch norms follow the new images; all that is learnt is what the checkpoint holds, bit for bit, and so are masks.
    learnt = [name for name in before if 'running_' not in name and 'num_batches' not in name]
    assert any(name.endswith('_mask') for name in learnt)
    assert any(name.endswith('positional_embedding') for name in learnt)
    for name in learnt:
        assert torch.equal(after[name], before[name]), name
    new = {name for name in after if name not in before}
    assert new == {f'backbone.norm{i}.{kind}' for i in range(3) for kind in ('weight', 'bias')}
    line = next(line for line in fine_tuned[1].splitlines() if "of the backbone's" in line)
    # The masks are tensors of the backbone, too: the hook has registered them before the weights are loaded.
    count = len(backbone_of(pretrained))
    assert f"loaded {count} of the backbone's {count + 6} tensors from '{pretrained}'" in line
    assert 'missing there and initialised: norm0.weight, norm0.bias, norm1.weight, norm1.bias, and 2 more' in line
    assert 'but not of the backbone: none' in line


def test_deployed_segmentor_is_the_fine_tuned_one(fine_tuned: tuple[Path, str]) -> None:
    path, _ = fine_tuned
    folder, trained = path.parent, path.parent / 'work' / 'iter_2.pth'
    printed = call(TOOLS / 'reparameterize_model.py', path, trained, 'deployed.pth', cwd=folder)
    assert 'model.backbone.deploy=True' in printed
    init_default_scope('mmseg')
    outs = []
    for weights, options in ((trained, {}), (folder / 'deployed.pth', {'model.backbone.deploy': True})):
        cfg = Config.fromfile(path)
        cfg.merge_from_dict({'model.backbone.init_cfg': None, **options})
        model: nn.Module = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
        state = torch.load(weights, map_location='cpu', weights_only=False)['state_dict']
        state = {name: value for name, value in state.items() if not name.endswith('_mask')}
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            outs.append(model(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), mode='tensor'))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5)
