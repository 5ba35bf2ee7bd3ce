"""The command of effective receptive fields: its models, its files, refusals."""

import json
from pathlib import Path
from types import ModuleType

import cv2
import pytest
import torch

from mmpelk.analysis.inference import build_model
from mmpelk.models.mixers import MIXERS
from tests.commands import call, load_tool
from tests.paths import CONFIGS, TOOLS

TOOL = TOOLS / 'analysis' / 'erf.py'
NANO = CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py'


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    return load_tool(TOOL)


@pytest.fixture
def options(photos: Path) -> list[object]:
    return ['--images', photos, '--max-images', 2, '--size', 64, '--device', 'cpu']


def test_refuses(options: list[object], tmp_path: Path) -> None:
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.zeros(1)}), tmp_path / 'other.pth')
    for words, message in (
        (['PeLK-T', NANO], 'a name, a config and a checkpoint'),
        (['a', 'no.py', 'random'], "no config 'no.py'"),
        (['a', NANO, 'no.pth'], "checkpoint 'no.pth' does not exist"),
        (['a', NANO, 'random', 'b', NANO, 'random'], "KEY=VALUE pairs without spaces around the =, got 'b'"),
        (['a', NANO, 'random', '--model', 'a', NANO, 'random'], 'two models are called a'),
        (['a', NANO, 'random', '--images', 'nowhere'], "there is no image or folder 'nowhere'"),
        (['a', NANO, 'OTHER'], "other.pth' does not fit this backbone: it misses "),
    ):
        given = [tmp_path / 'other.pth' if word == 'OTHER' else word for word in words]
        printed = call(TOOL, *options, '--model', *given, cwd=tmp_path, code=1)
        assert printed.splitlines()[-1].startswith('error: ')
        assert message in printed
        assert not (tmp_path / 'erf.png').exists()


# What tells the default models apart: mixer, kernel sizes, and how many of the first stage's channels they convolve.
DEFAULTS: dict[str, tuple[str, list[int], int]] = {
    'PeLK-T': ('peripheral', [51, 49, 47, 13], 46),  # 3/8 of 124, rounded down
    'PeLK-101-T': ('peripheral', [101, 69, 67, 13], 46),
    'SLaK-T': ('stripe', [51, 49, 47, 13], 124),
    'RepLK-51-T': ('dense', [51, 49, 47, 13], 124),
    'PeLK-T, all channels': ('peripheral', [51, 49, 47, 13], 124),
    'ConvNeXt-T': ('conv7', [7, 7, 7, 7], 96),
}


@pytest.mark.slow
def test_default_models_are_what_they_are_called(tool: ModuleType) -> None:
    """Their configs exist and their options are read; built without memory."""
    pytest.importorskip('mmpretrain')
    found = {}
    for facts, cfg in tool.read_requests(tool.DEFAULT_MODELS):
        assert facts['checkpoint'] == 'random'
        with torch.device('meta'):
            network = build_model(cfg).backbone
        block = network.stages[0][0]
        sizes = [max(stage[0].mixer.receptive_field) for stage in network.stages]
        (mixer,) = [name for name, kind in MIXERS.items() if type(block.mixer) is kind]
        found[facts['name']] = (mixer, sizes, block.mixed_channels)
    assert found == DEFAULTS
    assert list(found) == list(DEFAULTS), 'in the order of the figure'


@pytest.mark.slow
def test_measures_and_draws(options: list[object], tmp_path: Path) -> None:
    conv7 = ['model.backbone.mixer=conv7', 'model.backbone.positional_embedding=None']
    models = ['--model', 'peripheral', NANO, 'random', '--model', '7x7', NANO, 'random', *conv7]
    printed = call(TOOL, *models, *options, '--out', 'figures/erf.png', '--json', 'erf.json', cwd=tmp_path)
    assert 'log10(s + 1)' in printed
    report = json.loads((tmp_path / 'erf.json').read_text())
    assert (report['size'], report['layer_scale'], report['images']) == (64, 1.0, [str(options[1])])
    assert {'torch', 'cpu_capability'} <= report['machine'].keys()
    peripheral, seven = report['models']
    assert (peripheral['name'], seven['name']) == ('peripheral', '7x7')
    assert (seven['images'], seven['options'], seven['weights']) == (2, conv7, 'random weights, layer scale 1')
    assert seven['theoretical_size'] == 1 + 3 + 6 * 4 + 4 + 6 * 8
    assert [ratio['threshold'] for ratio in seven['area_ratios']] == [0.2, 0.3, 0.5, 0.99]
    assert len(seven['area_ratios_log']) == 4
    picture = cv2.imread(str(tmp_path / 'figures/erf.png'))
    assert picture is not None
    assert min(picture.shape[:2]) > 300


@pytest.mark.slow
def test_layer_scales_as_they_are(tool: ModuleType, options: list[object], tmp_path: Path) -> None:
    pytest.importorskip('mmpretrain')
    words = tool.DEFAULT_MODELS[-1]
    call(TOOL, '--model', *words, *options, '--layer-scale', 'init', '--json', 'erf.json', cwd=tmp_path)
    report = json.loads((tmp_path / 'erf.json').read_text())
    assert (report['layer_scale'], report['models'][0]['weights']) == ('init', 'random weights')
    assert report['models'][0]['total'] > 0
    printed = call(TOOL, *options, '--layer-scale', 'one', cwd=tmp_path, code=2)
    assert "--layer-scale: a number or 'init', got 'one'" in printed
