"""How others use the project from folders of their own: each way of ``docs/inheritance.md``."""

import argparse
import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config

import mmpelk
from mmpelk.engine.command_line import load_config
from tests.commands import call, mim, run
from tests.conftest import TINY_MODEL, schedule
from tests.paths import CONFIGS, RECIPES, ROOT

RECIPE = 'seg/upernet_pelk_t_ade20k.py'
READ_BASE = """
from mmengine.config import read_base

with read_base():
    from mmpelk.configs.seg.upernet_pelk_t_ade20k import *
"""


def toolbox(name: str) -> Path:
    """Folder in which an installed toolbox keeps its configs and tools."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f'{name} is not installed')
    return Path(spec.origin).parent / '.mim'


@pytest.mark.slow
def test_mim_trains_a_config_that_inherits_by_path(tiny_config: Path, tmp_path: Path) -> None:
    """What mim tests with is called here; mim itself tests in tests/configs/test_real_images.py."""
    config = tmp_path / 'by_path.py'  # whose tool knows nothing of machines without a GPU
    config.write_text(f"_base_ = {str(tiny_config)!r}\noptim_wrapper = dict(type='OptimWrapper')\n")
    log = run(mim(), 'train', 'mmseg', config, '--gpus', 0, '--work-dir', 'work', cwd=tmp_path)
    assert 'Iter(train) [4/4]' in log
    tool = toolbox('mmseg') / 'tools' / 'test.py'
    log = call(tool, config, 'work/iter_4.pth', '--work-dir', 'test', cwd=tmp_path)
    assert 'mIoU' in log
    assert 'do not match' not in log, 'neither a missing nor an unexpected key'


@pytest.mark.slow
def test_backbone_in_a_config_of_mmseg(tiny_ade20k: Path, tmp_path: Path) -> None:
    mmseg = toolbox('mmseg')
    base = mmseg / 'configs' / 'upernet' / 'upernet_r50_4xb4-80k_ade20k-512x512.py'
    model = TINY_MODEL.replace('backbone=dict(', "backbone=dict(_delete_=True, type='mmpelk.PeLK',").replace(
        'arch=dict(_delete_=True,', 'out_indices=(0, 1, 2, 3), gap_before_final_norm=False, arch=dict('
    )
    config = tmp_path / 'pelk.py'
    config.write_text(f"""
_base_ = {str(base)!r}
{model}
model['pretrained'] = None
{schedule(tiny_ade20k)}
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    constructor='mmpelk.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='layer_wise'),
)
""")
    assert 'custom_imports' not in Config.fromfile(config)
    log = call(mmseg / 'tools' / 'train.py', config, cwd=tmp_path)
    assert 'Iter(train) [4/4]' in log
    assert (tmp_path / 'work_dirs' / 'pelk' / 'iter_4.pth').exists()


@pytest.mark.slow
def test_pure_python_config(tiny_ade20k: Path, tmp_path: Path) -> None:
    config = tmp_path / 'pure_python.py'
    config.write_text(f"""{READ_BASE}
model.backbone.update(
    arch=dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 11, 9, 7)), init_cfg=None
)
model.decode_head.update(in_channels=[8, 12, 16, 20], channels=8, pool_scales=(1, 2))
model.auxiliary_head.update(in_channels=16, channels=8)
model.data_preprocessor.update(size=(64, 64))
train_pipeline[3].update(crop_size=(64, 64))
train_dataloader.update(num_workers=0, persistent_workers=False)
train_dataloader.dataset.update(data_root={str(tiny_ade20k)!r}, pipeline=train_pipeline)
optim_wrapper.update(type='OptimWrapper')
train_cfg.update(max_iters=2)
val_cfg = val_dataloader = val_evaluator = None
""")
    log = call(toolbox('mmseg') / 'tools' / 'train.py', config, cwd=tmp_path)
    assert 'Saving checkpoint at 2 iterations' in log


def test_every_recipe_has_its_module_for_pure_python_configs(tmp_path: Path) -> None:
    """The modules are one and the same; the first of each family is read."""
    folder, config = ROOT / 'mmpelk' / 'configs', tmp_path / 'pure_python.py'
    modules = {path.relative_to(folder).as_posix() for path in folder.glob('*/*.py') if path.name != '__init__.py'}
    assert {name for name in RECIPES if not name.startswith('demo/')} <= modules <= set(RECIPES), (
        'copy an existing one-line module of mmpelk/configs'
    )
    assert len({(folder / name).read_text() for name in modules}) == 1
    families = {name.partition('_')[0]: name for name in sorted(modules, reverse=True)}
    assert len(families) > 8
    plain = mmpelk.resolve_recipe(str(folder / RECIPE))
    assert type(plain) is type(plain['model']) is dict
    for name in families.values():
        module = f'mmpelk.configs.{name.removesuffix(".py").replace("/", ".")}'
        config.write_text(READ_BASE.replace('mmpelk.configs.seg.upernet_pelk_t_ade20k', module))
        pure, text = Config.fromfile(config).to_dict(), Config.fromfile(CONFIGS / name).to_dict()
        assert {key: value for key, value in pure.items() if key != 'read_base'} == text, name


def test_text_config(tmp_path: Path) -> None:
    absolute = str(CONFIGS / RECIPE)
    relative = f'{"../" * (len(tmp_path.resolve().parts) - 1)}{absolute.lstrip("/")}'
    for base in (repr(absolute), repr(relative), f"__import__('mmpelk').config_path({RECIPE!r})"):
        (tmp_path / 'text.py').write_text(f'_base_ = {base}\nmodel = dict(backbone=dict(drop_path_rate=0.2))\n')
        cfg = Config.fromfile(tmp_path / 'text.py')
        assert cfg.model.backbone.drop_path_rate == 0.2
        assert cfg.model.backbone.type == 'mmpelk.PeLK'


@pytest.mark.parametrize('name', [RECIPE, 'seg/upernet_pelk_t_ade20k', 'upernet_pelk_t_ade20k'])
def test_recipe_by_name(name: str) -> None:
    assert Path(mmpelk.config_path(name)).samefile(CONFIGS / RECIPE)
    cfg = mmpelk.get_config(name, {'model.backbone.drop_path_rate': 0.2})
    assert cfg.model.backbone.drop_path_rate == 0.2
    assert cfg.model.backbone.arch == 'tiny'


def test_tools_take_a_recipe_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = load_config(
        argparse.Namespace(config='upernet_pelk_t_ade20k', cfg_options=None, launcher='none', work_dir=None)
    )
    assert Path(cfg.filename).samefile(CONFIGS / RECIPE)
    assert cfg.work_dir == './work_dirs/upernet_pelk_t_ade20k'


def test_recipe_of_an_installed_toolbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'mmfolder').mkdir()  # a namespace without code
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="no toolbox 'mmfolder' is installed"):
        mmpelk.config_path('mmfolder::dino/x')
    name = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco'
    assert Path(mmpelk.config_path(name)) == toolbox('mmdet') / 'configs' / 'dino' / 'dino-4scale_r50_8xb2-12e_coco.py'
    with pytest.raises(ValueError, match=r"no recipe 'dino/x' in "):
        mmpelk.config_path('mmdet::dino/x')
    with pytest.raises(ValueError, match="no toolbox 'mmnothing' is installed"):
        mmpelk.config_path('mmnothing::dino/x')


def test_unknown_recipe_and_ablation_by_its_whole_name() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'upernet_pelk_x'; known: .*seg/upernet_pelk_t_ade20k\.py"):
        mmpelk.config_path('upernet_pelk_x')
    for part in ('pelk_t_ade20k', 'seg', 'g/upernet_pelk_t_ade20k', 'upernet_pelk_t_ade20k.p'):  # of a name
        with pytest.raises(ValueError, match=f'no recipe {part!r}'):
            mmpelk.config_path(part)
    name = 'cls/ablations/table6_center_3.py'
    assert Path(mmpelk.config_path(name)).samefile(CONFIGS / name)
    with pytest.raises(ValueError, match='no recipe'):
        mmpelk.config_path('cls/ablations/table6_center_2.py')
