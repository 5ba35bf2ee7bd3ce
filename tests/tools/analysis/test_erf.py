"""The command of effective receptive fields: its models, its files, refusals."""

import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from mmpelk.analysis import erf
from mmpelk.analysis.erf import Measured, save_scores
from mmpelk.analysis.inference import build_model
from mmpelk.analysis.receptive_field import receptive_field_layers
from mmpelk.models.mixers import MIXERS
from tests.commands import call, load_tool
from tests.paths import CONFIGS, TOOLS

TOOL = TOOLS / 'analysis' / 'erf.py'
NANO = CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py'


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    return load_tool(TOOL)


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for index in range(3):
        assert cv2.imwrite(str(folder / f'{index}.png'), random.integers(0, 256, (30, 50, 3), np.uint8))
    return folder


@pytest.fixture
def options(photos: Path) -> list[object]:
    return ['--images', photos, '--max-images', 2, '--size', 64, '--device', 'cpu']


@pytest.mark.parametrize(
    ('words', 'error', 'message'),
    [
        ([], ValueError, 'a name, a config and a checkpoint'),
        (['PeLK-T'], ValueError, 'a name, a config and a checkpoint'),
        (['PeLK-T', NANO], ValueError, 'a name, a config and a checkpoint'),
        (['a', 'no.py', 'random'], FileNotFoundError, r"no config 'no\.py'"),
        (['a', NANO, 'no.pth'], FileNotFoundError, r"checkpoint 'no\.pth' does not exist"),
        (['a', NANO, 'random', 'b', NANO, 'random'], ValueError, "'b' is no KEY=VALUE"),
    ],
)
def test_models_are_checked(tool: ModuleType, words: list[object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tool.read_requests([list(map(str, words))])


def test_names_are_checked(tool: ModuleType) -> None:
    with pytest.raises(ValueError, match='two models are called a'):
        tool.check_names(['a', 'b', 'a'])


# What tells the default models apart: mixer, kernel sizes, and how many of the first stage's channels they convolve.
DEFAULTS: dict[str, tuple[str, list[int], int]] = {
    'PeLK-T': ('peripheral', [51, 49, 47, 13], 46),  # 3/8 of 124, rounded down
    'PeLK-101-T': ('peripheral', [101, 69, 67, 13], 46),
    'SLaK-T': ('stripe', [51, 49, 47, 13], 124),
    'RepLK-51-T': ('dense', [51, 49, 47, 13], 124),
    'PeLK-T, all channels': ('peripheral', [51, 49, 47, 13], 124),
    'ConvNeXt-T': ('conv7', [7, 7, 7, 7], 96),
}


def test_default_models_are_what_they_are_called(tool: ModuleType) -> None:
    """Their configs exist and their options are read; built without memory."""
    pytest.importorskip('mmpretrain')
    found = {}
    for request in tool.read_requests(tool.DEFAULT_MODELS):
        assert request.checkpoint == 'random'
        with torch.device('meta'):
            network = build_model(tool.config_of(request)).backbone
        block = network.stages[0][0]
        kernels = [layer.kernel_size for layer in receptive_field_layers(network) if layer.padding]
        sizes = [kernels[sum(network.depths[:stage])] for stage in range(network.num_stages)]
        (mixer,) = [name for name, kind in MIXERS.items() if type(block.mixer) is kind]
        found[request.name] = (mixer, sizes, block.mixed_channels)
    assert found == DEFAULTS
    assert list(found) == list(DEFAULTS), 'in the order of the figure'


def test_measures_draws_and_draws_again(options: list[object], tmp_path: Path) -> None:
    conv7 = ['model.backbone.mixer=conv7', 'model.backbone.positional_embedding=None']
    models = ['--model', 'peripheral', NANO, 'random', '--model', '7x7', NANO, 'random', *conv7]
    files = ['--out', 'figures/erf.png', '--json', 'erf.json', '--save-scores', 'erf.npz']
    printed = call(TOOL, *models, *options, *files, cwd=tmp_path)
    assert 'log10(s + 1)' in printed
    report = json.loads((tmp_path / 'erf.json').read_text())
    assert (report['size'], report['layer_scale'], report['images']) == (64, 1.0, [str(options[1])])
    assert 'torch' in report['machine']
    peripheral, seven = report['models']
    assert (peripheral['name'], seven['name']) == ('peripheral', '7x7')
    assert (seven['images'], seven['options'], seven['weights']) == (2, conv7, 'random weights, layer scale 1')
    assert peripheral['support'] == [[0, 63], [0, 63]]
    assert seven['theoretical_size'] == 1 + 3 + 6 * 4 + 4 + 6 * 8
    assert seven['support'] == [seven['theoretical_interval']] * 2, 'measured equals theoretical'
    assert [ratio['threshold'] for ratio in seven['area_ratios']] == [0.2, 0.3, 0.5, 0.99]
    assert len(seven['area_ratios_log']) == 4

    # The same maps drawn again, beside a third one that was measured apart.
    dense = ['--model', 'dense', NANO, 'random', 'model.backbone.mixer=dense', *options]
    call(TOOL, '--load-scores', 'erf.npz', *dense, '--out', 'all.png', '--json', 'all.json', cwd=tmp_path)
    again = json.loads((tmp_path / 'all.json').read_text())['models']
    assert again[:2] == report['models']
    assert [model['name'] for model in again] == ['peripheral', '7x7', 'dense']
    for figure in ('figures/erf.png', 'all.png'):
        picture = cv2.imread(str(tmp_path / figure))
        assert picture is not None
        assert min(picture.shape[:2]) > 300


def test_smallest_default_model(tool: ModuleType, options: list[object], tmp_path: Path) -> None:
    pytest.importorskip('mmpretrain')
    (words,) = [words for words in tool.DEFAULT_MODELS if words[0] == 'ConvNeXt-T']
    call(TOOL, '--model', *words, *options, '--layer-scale', 'init', '--json', 'erf.json', cwd=tmp_path)
    report = json.loads((tmp_path / 'erf.json').read_text())
    assert (report['layer_scale'], report['models'][0]['weights']) == ('init', 'random weights')
    assert report['models'][0]['total'] > 0


def test_machine_is_kept_with_the_scores(
    options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erf, 'environment_info', lambda device: dict(device='elsewhere'))
    call(TOOL, '--model', 'nano', NANO, 'random', *options, '--save-scores', 'scores.npz', cwd=tmp_path)
    monkeypatch.setattr(erf, 'environment_info', lambda device: dict(device='here'))
    call(TOOL, '--load-scores', 'scores.npz', *options, '--json', 'erf.json', cwd=tmp_path)
    written = json.loads((tmp_path / 'erf.json').read_text())
    assert [written['machine'], written['models'][0]['machine']] == [dict(device='elsewhere')] * 2


def test_refuses_the_checkpoint_of_another_model(options: list[object], tmp_path: Path) -> None:
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.zeros(1)}), tmp_path / 'other.pth')
    printed = call(TOOL, '--model', 'a', NANO, tmp_path / 'other.pth', *options, cwd=tmp_path, code=1)
    assert "other.pth' does not fit this backbone: it misses " in printed
    assert not (tmp_path / 'erf.png').exists()


def test_refuses_maps_of_different_sizes(options: list[object], tmp_path: Path) -> None:
    save_scores(tmp_path / 'a.npz', [Measured(np.ones((32, 32)), dict(name='a', images=1, weights=''))])
    printed = call(TOOL, '--load-scores', 'a.npz', '--model', 'b', NANO, 'random', *options, cwd=tmp_path, code=1)
    assert 'the maps differ in size: a (32, 32), b (64, 64)' in printed


def test_refuses_a_layer_scale_that_is_no_number(options: list[object], tmp_path: Path) -> None:
    printed = call(TOOL, *options, '--layer-scale', 'one', cwd=tmp_path, code=2)
    assert "--layer-scale: a number or 'init', got 'one'" in printed
