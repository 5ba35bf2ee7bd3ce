"""The benchmark of throughput: what is measured, its results file, table and figure. No timing is judged."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# What torch's own tests of its compiler count graphs with; there is no public counterpart.
from torch._dynamo.testing import CompileCounter

from mmpelk.models import PeLK, StripeMixer
from mmpelk.ops import backends
from tests.commands import call, load_tool
from tests.paths import CONFIGS, ROOT

SCRIPT = ROOT / 'benchmarks' / 'throughput.py'
script = load_tool(SCRIPT)
Setting, measure = script.Setting, script.measure_throughput
TINY = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 9, 7, 5))
FLAGS = (torch.backends.cuda.matmul, 'allow_tf32'), (torch.backends.cudnn, 'allow_tf32')
LAYOUTS = list(script.LAYOUTS)


def tiny(backend: str | None = None, **arguments: Any) -> tuple[PeLK, str | None]:
    model = PeLK(arch=TINY, **arguments).eval()
    model.switch_to_deploy()
    return model, backend


MODELS = {
    'PeLK-T': tiny(),
    'dense kernels': tiny('dense'),
    'SLaK-T': tiny(mixer='stripe', positional_embedding=None),
    'ConvNeXt-T': tiny(mixer='conv7', positional_embedding=None),
}


class Probe(nn.Module):
    """Notes in ``seen`` what it is called with; fails at the ``fails_at``-th call of each copy."""

    def __init__(self, seen: list[Any], look: Callable[..., Any], fails_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 1, 1))
        self.seen, self.look, self.calls, self.fails_at = seen, look, 0, fails_at

    def __deepcopy__(self, memo: dict) -> 'Probe':
        return Probe(self.seen, self.look, self.fails_at)  # the copies write into one list

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise torch.OutOfMemoryError('no memory left\nand a long explanation')
        self.seen.append(self.look(self, image))
        return image


def observe(look: Callable[..., Any], setting: Any, backend: str | None = None) -> list[Any]:
    """What ``look(model, image)`` saw during a measurement."""
    seen: list[Any] = []
    measure({'probe': (Probe(seen, look), backend)}, setting, rounds=1)
    assert seen
    return seen


def speeds(run: Any) -> list[list[float | None]]:
    """Images per second by model and layout."""
    return [[one['images_per_second'] for one in row['measurements']] for row in run['rows']]


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_every_model_in_every_layout(precision: str) -> None:
    run = measure(MODELS, Setting(precision, batch=2, size=32), rounds=1)
    assert [row['model'] for row in run['rows']] == list(MODELS)
    for row in run['rows']:
        assert [one['layout'] for one in row['measurements']] == LAYOUTS
        assert all(one['failure'] is None and one['images_per_second'] for one in row['measurements'])
    assert (run['machine']['torch'], run['setting']['batch']) == (torch.__version__, 2)


def test_figures_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[list[str]] = []

    def medians(functions: Mapping[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float]:
        """The n-th model takes n seconds in the first layout, n / 2 in the second."""
        timed.append(list(functions))
        return {name: (1 + n // 2) / (1 + n % 2) for n, name in enumerate(functions)}

    monkeypatch.setattr(script, 'interleaved_medians', medians)
    run = measure(MODELS, Setting(batch=6, size=32))
    assert [len(names) for names in timed] == [4 * len(LAYOUTS)], 'all take turns in one measurement'
    assert speeds(run) == [[6.0, 12.0], [3.0, 6.0], [2.0, 4.0], [1.5, 3.0]]
    assert [row[3] for row in script.run_table(run).rows] == ['1.000', '0.500', '0.333', '0.250'], 'the faster layout'


@pytest.mark.parametrize('precision', ['float32', 'tf32', 'bfloat16'])
def test_tf32_is_set_and_restored(precision: str) -> None:
    before = [getattr(*flag) for flag in FLAGS], torch.backends.cudnn.benchmark
    assert len(set(before[0])) == 2, 'the flags differ, so that each is restored to its own value'

    def stopped() -> None:
        with script.precision_flags(precision):
            assert [getattr(*flag) for flag in FLAGS] == [precision == 'tf32'] * 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert ([getattr(*flag) for flag in FLAGS], torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_precision_layout_and_backend_of_what_runs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    precision = str(dtype).removeprefix('torch.')

    def look(model: Probe, image: Tensor) -> tuple[Any, ...]:
        last, tf32 = image.is_contiguous(memory_format=torch.channels_last), any(getattr(*flag) for flag in FLAGS)
        return image.dtype, model.weight.dtype, last, model.training or torch.is_grad_enabled() or tf32

    assert set(observe(look, Setting(precision, size=4))) == {(dtype, dtype, last, False) for last in (False, True)}

    monkeypatch.setattr(backends._FORCED, 'name', 'fft')  # as MMPELK_BACKEND would
    for backend in (None, 'dense'):
        assert set(observe(lambda model, image: backends.forced_backend(), Setting(size=4), backend)) == {backend}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layout_reaches_the_mixers(layout: str) -> None:
    model, _ = tiny(mixer='stripe', positional_embedding=None, conv_ratio=1.0)
    changed, wanted, formats = script.in_layout(model, layout), script.LAYOUTS[layout], []
    for module in changed.modules():
        if isinstance(module, StripeMixer):
            module.register_forward_pre_hook(
                lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=wanted))
            )
    image = torch.randn(2, 3, 64, 64)
    (got,), (want,) = changed(image.to(memory_format=wanted)), model(image)
    assert formats == [True] * 4
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # float32, summed in another order
    assert not any(stage._forward_pre_hooks for stage in model.stages), 'the model itself is not touched'


class GraphBreak(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return image


@pytest.mark.slow
@pytest.mark.parametrize(
    ('model', 'compiled', 'message'),
    [
        pytest.param(Probe([], lambda *_: 0, 1), False, 'OutOfMemoryError: no memory left', id='in the warm-up'),
        pytest.param(Probe([], lambda *_: 0, 3), False, 'OutOfMemoryError: no memory left', id='while it is timed'),
        pytest.param(GraphBreak(), True, 'graph', id='in the compiler'),
    ],
)
def test_failure_is_a_row(model: nn.Module, compiled: bool, message: str) -> None:
    models = {'well': (Probe([], lambda *_: 0), None), 'ill': (model, None)}
    run = measure(models, Setting(compiled=compiled, size=4), rounds=3)
    well, ill = run['rows']
    assert speeds(run)[1] == [None, None]
    for one in ill['measurements']:
        assert message in one['failure']
        assert '\n' not in one['failure']
    assert script.run_table(run).rows[1][1:4] == ('failed', 'failed', '-')
    assert compiled or script.best_speed(well)


@pytest.mark.slow
def test_every_compiled_model_is_one_graph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # More than the eight variants after which torch.compile runs a function as it is.
    convs = {str(width): nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 2, 1)) for width in range(1, 11)}
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, 'compile', lambda function, **options: compile_(function, backend=counter, **options))
    run = measure({name: (conv, None) for name, conv in convs.items()}, Setting('float32', True, 2, 8), rounds=2)
    assert all(one['failure'] is None for row in run['rows'] for one in row['measurements'])
    assert counter.frame_count == len(convs) * len(LAYOUTS)


# The results file, the command


@pytest.fixture(scope='module')
def tiny_recipes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two recipes shrunk, as ``NAME=CONFIG``."""
    folder, words = tmp_path_factory.mktemp('recipes'), []
    for name, recipe in (('Tiny', 'pelk_t_in1k.py'), ('Stripes', 'slak_t_in1k.py')):
        path = folder / f'{name}.py'
        shrunk = f'model = dict(backbone=dict(**{TINY!r}), head=dict(in_channels=20))'
        path.write_text(f"_base_ = '{CONFIGS / 'cls' / recipe}'\n{shrunk}\n")
        words.append(f'{name}={path}')
    return words


def made_up(setting: Any, speed: float = 2.0, **machine: Any) -> Any:
    ones = [(speed, 1.0), (None, speed / 4)]
    rows = []
    for name, pair in zip(('PeLK-T', 'SLaK-T'), ones, strict=True):
        measured = [
            dict(layout=layout, images_per_second=one, peak_memory=None, failure=None if one else 'OutOfMemoryError')
            for layout, one in zip(LAYOUTS, pair, strict=True)
        ]
        rows.append(dict(model=name, measurements=measured))
    where = script.library_info('cpu') | machine
    return dict(setting=vars(setting), device='cpu', machine=where, rounds=5, rows=rows)


def test_results_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'results.json'
    assert script.load_runs(path) == {}
    settings = [Setting('bfloat16'), Setting(batch=8), Setting(batch=1)]
    runs = {setting: made_up(setting) for setting in settings}
    script.save_runs(path, runs)
    assert list(script.load_runs(path).items()) == list(runs.items())[::-1], 'in the order of the settings'
    assert Setting() in script.load_runs(ROOT / 'benchmarks' / 'results' / 'throughput_cpu.json')
    path.write_text('{"other": 1}')
    with pytest.raises(ValueError, match='does not hold throughput results'):
        script.load_runs(path)


def test_run_of_another_machine_or_version_is_measured_again() -> None:
    models, run = ['PeLK-T', 'SLaK-T'], made_up(Setting(batch=8), date='2000-01-01', tf32_conv='whatever')
    assert script.is_current(run, 'cpu', models, 5)
    for change in ('torch', 'threads', 'device', 'mmpelk', 'cudnn'):
        assert not script.is_current(made_up(Setting(batch=8), **{change: 'other'}), 'cpu', models, 5), change
    assert not script.is_current(run, 'cpu', models, 6), 'fewer rounds than asked for'
    assert not script.is_current(run, 'cpu', models[:1], 5)


@pytest.mark.slow
def test_measures_writes_and_draws(tiny_recipes: list[str], tmp_path: Path) -> None:
    out, plot = tmp_path / 'results.json', tmp_path / 'figures' / 'throughput.png'
    earlier = {setting: made_up(setting) for setting in (Setting(batch=8), Setting(batch=2, size=32))}
    script.save_runs(out, earlier)
    options = ['--size', 32, '--rounds', 1, '--precision', 'float32', '--mode', 'eager', '--out', out, '--plot', plot]
    printed = call(SCRIPT, '--models', *tiny_recipes, '--batch', 1, 2, *options, cwd=tmp_path)
    assert 'Images per second: float32, eager, 2 x 32 x 32' in printed
    runs = script.load_runs(out)
    assert runs.pop(Setting(batch=8)) == earlier[Setting(batch=8)], 'settings that are not measured stay'
    assert list(runs) == [Setting(batch=batch, size=32) for batch in (1, 2)]
    for run in runs.values():
        assert [row['model'] for row in run['rows']] == ['Tiny', 'Tiny, dense kernels', 'Stripes']
        assert all(script.best_speed(row) for row in run['rows'])
    assert plot.read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_stopped_run_resumes(tiny_recipes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, measured, small = tmp_path / 'results.json', [], ['--size', 32, '--rounds', 1]

    def main(*words: object) -> None:
        monkeypatch.setattr(sys, 'argv', ['throughput.py', *map(str, words)])
        script.main()

    def stopped_at_the_second(models: Any, setting: Any, *others: Any) -> Any:
        measured.append(setting.batch)
        if measured == [1, 8]:
            raise KeyboardInterrupt
        return measure(models, setting, *others)

    monkeypatch.setattr(script, 'measure_throughput', stopped_at_the_second)
    options = ['--models', *tiny_recipes, '--no-dense-kernels', '--quick', *small, '--out', out]
    with pytest.raises(KeyboardInterrupt):
        main(*options)
    first = script.load_runs(out)
    assert list(first) == [Setting(batch=1, size=32)]
    main(*options, '--resume')
    assert measured == [1, 8, 8]
    runs = script.load_runs(out)
    assert list(runs) == [Setting(batch=batch, size=32) for batch in (1, 8)]
    assert runs[Setting(batch=1, size=32)] == first[Setting(batch=1, size=32)]


@pytest.mark.slow
def test_default_models_are_deployed_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['throughput.py'])
    networks = list(script.recipes(script.parse_args()))
    names = ['PeLK-T', 'PeLK-T, dense kernels', 'PeLK-101-T', 'SLaK-T', 'RepLK-51-T', 'ConvNeXt-T']
    assert [name for name, _, _ in networks] == names
    assert [backend for _, _, backend in networks] == [None, 'dense', None, None, None, None]
    for _, config, _ in networks:
        with torch.device('meta'):  # shapes alone
            model = script.build(config)
            assert model(torch.empty(2, 3, 32, 32)).shape == (2, 1000)
        assert not any('BatchNorm' in type(module).__name__ for module in model.modules()), 'norms are merged'


def test_table_and_figure() -> None:
    table = script.run_table(made_up(Setting()))
    assert table.columns[1:4] == ['channels first', 'channels last', 'to PeLK-T']
    assert list(table.rows[1]) == ['SLaK-T', 'failed', '0.5', '0.250', '-', 'OutOfMemoryError']
    assert 'median of 5 rounds' in table.notes[0]
    settings = [Setting(batch=1), Setting(batch=8), Setting('bfloat16', True, 8)]
    figure = script.draw({setting: made_up(setting, float(setting.batch)) for setting in settings})
    first, _, _, second = figure.axes
    assert (first.get_title(), second.get_title()) == ('float32, eager', 'bfloat16, compiled')
    pelk, slak = first.get_lines()
    assert (list(pelk.get_xdata()), list(pelk.get_ydata())) == ([1, 8], [1.0, 8.0])
    assert list(slak.get_ydata()) == [0.25, 2.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['PeLK-T', 'SLaK-T']


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    for words, message in (
        (['--models', 'Swin-T'], "unknown model 'Swin-T'; known: PeLK-T, PeLK-101-T"),
        (['--precision', 'tf32'], 'cpu has no tf32; take float32, bfloat16'),
        (['--batch', '0'], 'batch and size are positive'),
        (['--models', 'PeLK-T=nowhere.py'], "there is no config 'nowhere.py'"),
    ):
        printed = call(SCRIPT, *words, '--out', 'results.json', cwd=tmp_path, code=1)
        assert printed.startswith('error: ')
        assert message in printed
        assert len(printed.splitlines()) == 1
