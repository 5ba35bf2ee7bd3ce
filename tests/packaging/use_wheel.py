"""Use an installed mmpelk as another project would, in either of OpenMMLab's lines.

    cd ELSEWHERE && PYTHON use_wheel.py [TOOLBOX ...]

The Python that runs it must have mmpelk from a wheel. The toolboxes that are named (mmseg, mmdet, mmpretrain) build a
small network of a recipe and take a training step. It needs nothing of the checkout and no pytest.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

import mmpelk

SIZE = 64
NANO = {
    'mmseg': 'demo/upernet_pelk_nano_synthetic.py',
    'mmdet': 'demo/mask_rcnn_pelk_nano_synthetic.py',
    'mmpretrain': 'demo/pelk_nano_digits.py',
}
BY_NAME = """
_base_ = __import__('mmpelk').config_path('seg/upernet_pelk_t_ade20k.py')
model = dict(backbone=dict(drop_path_rate=0.2))
"""
PURE_PYTHON = """
from mmengine.config import read_base

with read_base():
    from mmpelk.configs.seg.upernet_pelk_t_ade20k import *

model.backbone.update(drop_path_rate=0.2)
"""


def check_files() -> None:
    """The package is where a wheel puts it, with its recipes and tools as files."""
    package = Path(mmpelk.__file__).parent
    version = importlib.metadata.version('mmpelk')
    assert version == mmpelk.__version__, (version, mmpelk.__version__)
    assert not (package.parent / 'pyproject.toml').exists(), f'{package} is a checkout, not a wheel'
    assert not any(path.is_symlink() for path in package.rglob('*'))
    for tool in ('train', 'test', 'get_flops'):
        command = [sys.executable, str(package / '.mim' / 'tools' / f'{tool}.py'), '--help']
        assert 'usage:' in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(f'mmpelk {version} from {package}')


def check_recipes() -> None:
    """Every recipe resolves whose toolbox is here, and one is inherited by name and in pure Python."""
    names = [name for name in mmpelk.list_configs() if not name.startswith('demo/')]
    installed = {scope: _importable(toolbox) for scope, toolbox in zip(('seg', 'det', 'cls'), NANO, strict=True)}
    resolved = [name for name in names if installed[name.split('/')[0]]]
    for name in resolved:
        assert mmpelk.get_config(name).model.backbone.type in ('mmpelk.PeLK', 'mmpelk.Enlarged'), name
    with tempfile.TemporaryDirectory() as folder:
        for index, text in enumerate((BY_NAME, PURE_PYTHON)):
            path = Path(folder, f'config_{index}.py')
            path.write_text(text, encoding='utf-8')
            backbone = Config.fromfile(path).model.backbone
            assert (backbone.arch, backbone.drop_path_rate) == ('tiny', 0.2), backbone
    print(f'{len(resolved)} of {len(names)} recipes, by name and in pure Python')


def check_backbone() -> None:
    """``type='mmpelk.PeLK'`` is found without ``custom_imports``, and computes."""
    arch = dict(depths=(1, 1), channels=(8, 12), kernel_sizes=(13, 11))
    backbone = MODELS.build(dict(type='mmpelk.PeLK', arch=arch, out_indices=(0, 1), gap_before_final_norm=False))
    maps = backbone(torch.rand(1, 3, SIZE, SIZE))
    assert [tuple(each.shape) for each in maps] == [(1, 8, 16, 16), (1, 12, 8, 8)]
    sum(each.square().mean() for each in maps).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    backbone.eval()
    with torch.no_grad():
        trained = backbone(maps[0].new_ones(1, 3, SIZE, SIZE))
        backbone.switch_to_deploy()
        deployed = backbone(maps[0].new_ones(1, 3, SIZE, SIZE))
    for before, after in zip(trained, deployed, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    print('the registry finds mmpelk.PeLK')


def check_step(toolbox: str) -> None:
    """A network of the demo's recipe takes a training step within its toolbox."""
    init_default_scope(toolbox)
    cfg = mmpelk.get_config(NANO[toolbox])
    if toolbox == 'mmseg':
        cfg.merge_from_dict({'model.data_preprocessor.size': (SIZE, SIZE)})
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    picture = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=[picture] * 2, data_samples=[sample(toolbox), sample(toolbox)]), True)
    losses, _ = model.parse_losses(model(**data, mode='loss'))
    losses.backward()
    assert torch.isfinite(losses), losses
    print(f'{toolbox} {importlib.metadata.version(_distribution(toolbox))}: a training step, loss {losses:.3f}')


def sample(toolbox: str) -> object:
    """Data of one image of a toolbox's task."""
    meta = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE), batch_input_shape=(SIZE, SIZE))
    if toolbox == 'mmseg':
        from mmseg.structures import SegDataSample

        return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.randint(0, 5, (1, SIZE, SIZE))))
    if toolbox == 'mmdet':
        import numpy
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks

        mask = numpy.zeros((1, SIZE, SIZE), numpy.uint8)
        mask[:, 8:40, 8:40] = 1
        box = dict(bboxes=torch.tensor([[8.0, 8, 40, 40]]), labels=torch.tensor([1]))
        none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
        instances = InstanceData(**box, masks=BitmapMasks(mask, SIZE, SIZE))
        return DetDataSample(metainfo=meta, gt_instances=instances, ignored_instances=none)
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=meta).set_gt_label(1)


def _distribution(module: str) -> str:
    return importlib.metadata.packages_distributions()[module][0]


def _importable(module: str) -> bool:
    return module in importlib.metadata.packages_distributions()


def main() -> None:
    print(f'{_distribution("mmengine")} {mmengine.__version__}, torch {torch.__version__}, Python {sys.version[:6]}')
    torch.manual_seed(0)
    check_files()
    check_recipes()
    check_backbone()
    for toolbox in sys.argv[1:]:
        check_step(toolbox)


if __name__ == '__main__':
    main()
