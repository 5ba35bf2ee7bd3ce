"""The command of effective receptive fields: its models, its files, refusals."""

import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmpelk.analysis.erf import Measured, load_model
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


@pytest.mark.parametrize(('weights', 'scale'), [('random', 0.5), ('random', 0), ('trained', 0.5)])
def test_report_of_a_model(
    weights: str, scale: float, tool: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which network is measured, prepared in which way; the measurement itself has tests of its own."""
    measured: list[nn.Module] = []

    def measure(model: nn.Module, images: list[np.ndarray], facts: dict) -> Measured:
        measured.append(model)
        assert [image.shape for image in images] == [(32, 32, 3)]
        ratios = [dict(threshold=0.5, side=3, area_ratio=0.25)]
        found = dict(machine={}, seconds=1.0, images=1, theoretical_size=9, area_ratios=ratios, area_ratios_log=ratios)
        return Measured(np.ones((32, 32)), {**facts, **found})

    cfg = Config.fromfile(NANO)
    cfg.model.backbone.layer_scale_init_value = 1e-6
    cfg.dump(tmp_path / 'nano.py')
    monkeypatch.setattr(tool, 'measure', measure)
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    checkpoint = weights
    if weights == 'trained':
        checkpoint = tmp_path / 'weights' / 'nano.pth'
        checkpoint.parent.mkdir()
        torch.save(load_model(cfg, 'random', 1).state_dict(), checkpoint)
    words = ['--model', 'net', tmp_path / 'nano.py', checkpoint, '--images', photos, '--max-images', 1, '--size', 32]
    words += ['--seed', 5, '--layer-scale', scale, '--device', 'cpu', '--json', tmp_path / 'new' / 'erf.json']
    monkeypatch.setattr('sys.argv', ['erf.py', *map(str, words), '--out', str(tmp_path / 'erf.png')])
    tool.run(tool.parse_args())
    report = json.loads((tmp_path / 'new' / 'erf.json').read_text())
    assert (report['seed'], report['layer_scale'], report['size'], report['machine']) == (5, scale, 32, {})
    assert report['images'] == [str(photos)]
    (facts,) = report['models']
    random = weights == 'random'
    assert facts['config'] == 'nano.py', 'below the project root'
    assert facts['checkpoint'] == ('random' if random else 'weights/nano.pth')
    assert facts['weights'] == (f'random weights, layer scale {scale}' if random else 'nano.pth')
    block = measured[0].backbone.stages[0][0]
    assert (block.gamma == (scale if random else 1e-6)).all()
    assert bool(block.mixer.small_norm.running_mean.any()) == random, 'statistics of the images'
    stem = load_model(cfg, 'random', 5 if random else 1).backbone.downsample_layers[0][0].weight
    assert torch.equal(measured[0].backbone.downsample_layers[0][0].weight, stem)


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


def test_words_and_paths_as_they_are_given(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [tool.layer_scale(word) for word in ('init', '0', '1e-6')] == [None, 0.0, 1e-6]
    monkeypatch.setattr(tool, 'ROOT', tmp_path / 'project')
    monkeypatch.chdir(tmp_path)
    assert [tool.shown(path) for path in ('photos/x.png', 'project/x.png')] == ['photos/x.png', 'x.png']
