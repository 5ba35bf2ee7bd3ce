"""Recipes whose images have other than three channels, such as of several sensors, in the tools that make images."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from tests.commands import call
from tests.paths import TOOLS
from tests.tools.conftest import DEMO_RECIPE


@pytest.fixture(params=[1, 6])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The demo's recipe for so many channels, and a checkpoint of it."""
    config, checkpoint = tmp_path / 'recipe.py', tmp_path / 'trained.pth'
    config.write_text(
        f'_base_ = {str(DEMO_RECIPE)!r}\nmodel = dict(data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False), '
        f"backbone=dict(in_channels={request.param}, norm_cfg=dict(type='BN')), "
        "decode_head=dict(norm_cfg=dict(type='BN')))"
    )
    model = MODELS.build(Config.fromfile(config).model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    return config, checkpoint


@pytest.mark.scope('mmseg')
def test_counts_and_deployed_form(recipe: tuple[Path, Path], tmp_path: Path) -> None:
    assert 'large_kernels' in call(TOOLS / 'get_flops.py', recipe[0], '--shape', 64, 64, cwd=tmp_path)
    printed = call(TOOLS / 'reparameterize_model.py', *recipe, 'deployed.pth', cwd=tmp_path)
    assert 'of the largest output' in printed


@pytest.mark.slow
@pytest.mark.scope('mmseg')
@pytest.mark.parametrize(
    ('recipe', 'options'), [(1, ['--dynamic']), (6, ['--fold-preprocessing'])], indirect=['recipe'], ids=str
)
def test_exported_file(recipe: tuple[Path, Path], options: list[str], tmp_path: Path) -> None:
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name, reason='pip install -e .[export]')
    fold = [option for option in options if option != '--dynamic']
    for tool, out, words in (('export_onnx', 'demo.onnx', fold), ('export_torch', 'demo.pt2', options)):
        printed = call(TOOLS / f'{tool}.py', *recipe, out, '--shape', 64, 96, *words, cwd=tmp_path)
        assert '64 x 96: differs by' in printed
