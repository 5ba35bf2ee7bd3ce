"""The benchmark of throughput: its file of results, what a stopped run leaves, its table and figure, mistakes."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mmpelk.analysis.throughput import LAYOUTS, Measurement, Row, Run, Setting, library_info, measure_throughput
from tests.commands import call, load_tool
from tests.paths import CONFIGS, ROOT

SCRIPT = ROOT / 'benchmarks' / 'throughput.py'
TINY = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 9, 7, 5))
SMALL = ['--size', 32, '--rounds', 1]


@pytest.fixture
def script() -> ModuleType:
    return load_tool(SCRIPT)


@pytest.fixture(scope='module')
def tiny_recipes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two recipes shrunk, as ``NAME=CONFIG``."""
    folder, words = tmp_path_factory.mktemp('recipes'), []
    shrunk = 'model = dict(backbone=dict(arch=dict(_delete_=True, **{arch!r})), head=dict(in_channels=20))\n'
    for name, recipe in (('Tiny', 'pelk_t_in1k.py'), ('Stripes', 'slak_t_in1k.py')):
        path = folder / f'{name}.py'
        path.write_text(f"_base_ = '{CONFIGS / 'cls' / recipe}'\n{shrunk.format(arch=TINY)}")
        words.append(f'{name}={path}')
    return words


def made_up(setting: Setting, speed: float = 2.0, **machine: Any) -> Run:
    peer = Measurement('channels_last', speed / 4, peak_memory=1024)
    rows = (
        Row('PeLK-T', (Measurement('channels_first', speed), Measurement('channels_last', speed / 2))),
        Row('SLaK-T', (Measurement('channels_first', None, failure='OutOfMemoryError'), peer)),
    )
    return Run(setting, 'cpu', library_info('cpu') | machine, 5, rows)


def test_results_file_round_trip(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'results.json'
    assert script.load_runs(path) == {}
    runs = [made_up(Setting('bfloat16')), made_up(Setting(batch=8)), made_up(Setting(batch=1))]
    script.save_runs(path, runs)
    assert list(script.load_runs(path).values()) == [runs[2], runs[1], runs[0]], 'in the order of the settings'
    expected = dict(precision='float32', compiled=False, batch=1, size=224)
    assert json.loads(path.read_text())['runs'][0]['setting'] == expected
    assert [file.name for file in path.parent.iterdir()] == ['results.json']
    path.write_text('{"other": 1}')
    with pytest.raises(ValueError, match='does not hold throughput results'):
        script.load_runs(path)


@pytest.mark.parametrize('change', ['torch', 'threads', 'device', 'mmpelk', 'cudnn'])
def test_run_of_another_machine_or_version_is_measured_again(script: ModuleType, change: str) -> None:
    models, layouts = ['PeLK-T', 'SLaK-T'], list(LAYOUTS)
    run = made_up(Setting(batch=8), date='2000-01-01', tf32_conv='whatever')
    assert script.is_current(run, 'cpu', models, 5, layouts)
    assert not script.is_current(made_up(Setting(batch=8), **{change: 'other'}), 'cpu', models, 5, layouts)
    assert not script.is_current(run, 'cpu', models, 6, layouts), 'fewer rounds than asked for'
    assert not script.is_current(run, 'cpu', models[:1], 5, layouts)
    assert not script.is_current(run, 'cpu', models, 5, layouts[:1])


def test_measures_writes_and_draws(script: ModuleType, tiny_recipes: list[str], tmp_path: Path) -> None:
    out, plot = tmp_path / 'results.json', tmp_path / 'figures' / 'throughput.png'
    other, again = made_up(Setting(batch=8)), made_up(Setting(batch=2, size=32))
    script.save_runs(out, [other, again])
    options = ['--batch', 1, 2, '--precision', 'float32', '--mode', 'eager', '--out', out, '--plot', plot]
    printed = call(SCRIPT, '--models', *tiny_recipes, *SMALL, *options, cwd=tmp_path)
    assert 'Images per second: float32, eager, 2 x 32 x 32' in printed
    runs = script.load_runs(out)
    assert runs.pop(other.setting) == other, 'settings that are not measured stay'
    assert list(runs) == [Setting(batch=batch, size=32) for batch in (1, 2)]
    for run in runs.values():
        assert [row.model for row in run.rows] == ['Tiny', 'Tiny, dense kernels', 'Stripes']
        assert all(row.images_per_second for row in run.rows)
    assert plot.read_bytes().startswith(b'\x89PNG')


def test_stopped_run_resumes(
    script: ModuleType,
    tiny_recipes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out, measured = tmp_path / 'results.json', []

    def main(*words: object) -> None:
        monkeypatch.setattr(sys, 'argv', ['throughput.py', *map(str, words)])
        script.main()

    def stopped_at_the_second(models: Any, setting: Setting, *others: Any) -> Run:
        measured.append(setting.batch)
        if measured == [1, 8]:
            raise KeyboardInterrupt
        return measure_throughput(models, setting, *others)

    monkeypatch.setattr(script, 'measure_throughput', stopped_at_the_second)
    options = ['--models', *tiny_recipes, '--no-dense-kernels', '--quick', *SMALL, '--out', out]
    with pytest.raises(KeyboardInterrupt):
        main(*options)
    first = script.load_runs(out)
    assert list(first) == [Setting(batch=1, size=32)]
    main(*options, '--resume')
    assert measured == [1, 8, 8]
    runs = script.load_runs(out)
    assert list(runs) == [Setting(batch=batch, size=32) for batch in (1, 8)]
    assert runs[Setting(batch=1, size=32)] == first[Setting(batch=1, size=32)]
    capsys.readouterr()
    monkeypatch.setattr(script, 'measure_throughput', None)
    main('--show', '--out', out)
    assert capsys.readouterr().out.count('Images per second') == 2


def test_default_models_are_deployed_classifiers(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['throughput.py'])
    networks = list(script.recipes(script.parse_args()))
    assert [name for name, _, _ in networks] == [
        'PeLK-T',
        'PeLK-T, dense kernels',
        'PeLK-101-T',
        'SLaK-T',
        'RepLK-51-T',
        'ConvNeXt-T',
    ]
    assert [backend for _, _, backend in networks] == [None, 'dense', None, None, None, None]
    for _, config, _ in networks:
        with torch.device('meta'):  # shapes alone
            model = script.build(config)
            assert model(torch.empty(2, 3, 32, 32)).shape == (2, 1000)
        assert not any('BatchNorm' in type(module).__name__ for module in model.modules()), 'norms are merged'


def test_table_shows_ratios_and_failures(script: ModuleType) -> None:
    table = script.run_table(made_up(Setting()))
    assert table.columns[1:4] == ['channels first', 'channels last', 'to PeLK-T']
    assert list(table.rows[1]) == ['SLaK-T', 'failed', '0.50', '0.250', '0', 'OutOfMemoryError']
    assert 'median of 5 rounds' in table.notes[0]


def test_figure(script: ModuleType) -> None:
    speeds = {1: 2.0, 8: 8.0}
    settings = [Setting('float32', False, 1), Setting('float32', False, 8), Setting('bfloat16', True, 8)]
    figure = script.draw([made_up(setting, speeds[setting.batch]) for setting in settings])
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ('float32, eager', 'bfloat16, compiled')
    assert second.get_xlabel() == 'batch, images'
    assert first.get_ylabel() == 'throughput, images/s'
    pelk, slak = first.get_lines()
    assert (list(pelk.get_xdata()), list(pelk.get_ydata())) == ([1, 8], [2.0, 8.0])
    assert list(slak.get_ydata()) == [0.5, 2.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['PeLK-T', 'SLaK-T']
    assert '224 x 224' in figure.get_suptitle()
    assert len({(style['linestyle'], style['marker']) for style in script.STYLES}) == len(script.STYLES), (
        'readable in grey'
    )


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--models', 'Swin-T'], "unknown model 'Swin-T'; known: PeLK-T, PeLK-101-T"),
        (['--precision', 'tf32'], 'cpu has no tf32; take float32, bfloat16'),
        (['--batch', '0'], 'batch and size are positive'),
        (['--models', 'PeLK-T=nowhere.py'], "there is no config 'nowhere.py'"),
        (['--show', '--out', 'nothing.json'], "nothing measured in 'nothing.json'"),
    ],
    ids=['model', 'precision', 'batch', 'config', 'nothing to show'],
)
def test_mistakes_are_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    printed = call(SCRIPT, *words, *([] if '--out' in words else ['--out', 'results.json']), cwd=tmp_path, code=1)
    assert printed.startswith('error: ')
    assert message in printed
    assert len(printed.splitlines()) == 1
