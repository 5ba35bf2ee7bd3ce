"""Throughput: what is measured, and that failures are rows. No timing is judged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# What torch's own tests of its compiler count graphs with; there is no public counterpart.
from torch._dynamo.testing import CompileCounter

from mmpelk.analysis import throughput
from mmpelk.analysis.throughput import (
    LAYOUTS,
    Candidate,
    Setting,
    in_layout,
    measure_throughput,
    precision_flags,
)
from mmpelk.models import PeLK
from mmpelk.models.mixers import StripeMixer
from mmpelk.ops import backends

TINY = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 9, 7, 5))
FLAGS = (torch.backends.cuda.matmul, 'allow_tf32'), (torch.backends.cudnn, 'allow_tf32')


def tiny(**arguments: Any) -> PeLK:
    model = PeLK(arch=TINY, **arguments).eval()
    model.switch_to_deploy()
    return model


def tiny_models() -> dict[str, nn.Module | Candidate]:
    return {
        'PeLK-T': tiny(),
        'dense kernels': Candidate(tiny(), 'dense'),
        'SLaK-T': tiny(mixer='stripe', positional_embedding=None),
        'ConvNeXt-T': tiny(mixer='conv7', positional_embedding=None),
    }


class Probe(nn.Module):
    """Notes what it is called with; fails at the ``fails_at``-th call."""

    def __init__(self, seen: list[Any], fails_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 1, 1))
        self.look: Callable[[nn.Module, Tensor], Any] = lambda model, image: image.shape
        self.seen, self.calls, self.fails_at = seen, 0, fails_at

    def __deepcopy__(self, memo: dict) -> 'Probe':
        other = Probe(self.seen, self.fails_at)  # the copies write into one list
        other.look = self.look
        return other

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise torch.OutOfMemoryError('no memory left\nand a long explanation')
        self.seen.append(self.look(self, image))
        return image


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_every_model_in_every_layout(precision: str) -> None:
    run = measure_throughput(tiny_models(), Setting(precision, batch=2, size=32), rounds=1)
    assert [row.model for row in run.rows] == ['PeLK-T', 'dense kernels', 'SLaK-T', 'ConvNeXt-T']
    for row in run.rows:
        assert [one.layout for one in row.measurements] == list(LAYOUTS)
        assert all(one.failure is None and one.images_per_second for one in row.measurements)
    assert run.machine['torch'] == torch.__version__
    assert run.setting.batch == 2


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names that were timed together. The n-th function takes n seconds in each layout's first, n / 2 in the second."""
    timed: list[list[str]] = []

    def medians(functions: Mapping[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float]:
        timed.append(list(functions))
        return {name: (1 + n // 2) / (1 + n % 2) for n, name in enumerate(functions)}

    monkeypatch.setattr(throughput, 'interleaved_medians', medians)
    return timed


def test_figures_and_ratios(fake_clock: list[list[str]]) -> None:
    run = measure_throughput(tiny_models(), Setting(batch=6, size=32))
    assert len(fake_clock) == 1, 'all take turns in one measurement'
    assert len(fake_clock[0]) == 4 * len(LAYOUTS)
    assert [row.measurements[0].images_per_second for row in run.rows] == [6.0, 3.0, 2.0, 1.5]
    assert [row.images_per_second for row in run.rows] == [12.0, 6.0, 4.0, 3.0], 'the faster layout counts'
    assert [row.best.layout for row in run.rows] == ['channels_last'] * 4
    assert [run.ratio(row.model) for row in run.rows] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert run.ratio('PeLK-T', to='SLaK-T') == pytest.approx(3)
    with pytest.raises(ValueError, match="no 'Swin'; it has PeLK-T"):
        run.row('Swin')


def set_flags(values: Sequence[bool]) -> None:
    for (module, name), value in zip(FLAGS, values, strict=True):
        setattr(module, name, value)


@pytest.fixture
def flags_kept() -> Iterator[None]:
    """Puts the TF32 flags back, which monkeypatch cannot: torch computes these attributes."""
    before = [getattr(*flag) for flag in FLAGS]
    yield
    set_flags(before)


@pytest.mark.usefixtures('flags_kept')
@pytest.mark.parametrize('precision', ['float32', 'tf32', 'bfloat16'])
@pytest.mark.parametrize('before', [(False, True), (True, False)])
def test_tf32_is_set_and_restored(precision: str, before: tuple[bool, bool]) -> None:
    set_flags(before)
    benchmark = torch.backends.cudnn.benchmark

    def fail() -> None:
        with precision_flags(precision):
            assert [getattr(*flag) for flag in FLAGS] == [precision == 'tf32'] * 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert tuple(getattr(*flag) for flag in FLAGS) == before
    assert torch.backends.cudnn.benchmark == benchmark


@pytest.mark.usefixtures('flags_kept')
def test_flags_hold_during_the_measurement_and_are_recorded() -> None:
    set_flags([True, True])
    seen: list[Any] = []
    probe = Probe(seen)
    probe.look = lambda model, image: [getattr(*flag) for flag in FLAGS]
    run = measure_throughput({'probe': probe}, Setting(size=4), rounds=1)
    assert seen
    assert all(flags == [False, False] for flags in seen)
    assert (run.machine['tf32_matmul'], run.machine['tf32_conv']) == (False, False)
    assert [getattr(*flag) for flag in FLAGS] == [True, True]


@pytest.mark.parametrize(('precision', 'dtype'), [('float32', torch.float32), ('bfloat16', torch.bfloat16)])
def test_precision_and_layout_of_what_runs(precision: str, dtype: torch.dtype) -> None:
    seen: list[Any] = []
    probe = Probe(seen).train()
    probe.look = lambda model, image: (
        image.dtype,
        model.weight.dtype,
        image.is_contiguous(memory_format=torch.channels_last),
        model.training or torch.is_grad_enabled(),
    )
    measure_throughput({'probe': probe}, Setting(precision, size=4), rounds=1)
    assert set(seen) == {(dtype, dtype, False, False), (dtype, dtype, True, False)}
    assert probe.training
    assert probe.weight.dtype == torch.float32, 'the model itself is not touched'


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layout_reaches_the_mixers(layout: str) -> None:
    model = tiny(mixer='stripe', positional_embedding=None, conv_ratio=1.0)
    changed = in_layout(model, layout)
    formats = []
    for module in changed.modules():
        if isinstance(module, StripeMixer):
            module.register_forward_pre_hook(
                lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=LAYOUTS[layout]))
            )
    image = torch.randn(2, 3, 64, 64)
    (got,), (want,) = changed(image.to(memory_format=LAYOUTS[layout])), model(image)
    assert formats == [True] * 4
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # float32, summed in another order
    assert not any(stage._forward_pre_hooks for stage in model.stages), 'the model itself is not touched'


def test_forced_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, '_forced', 'fft')  # as MMPELK_BACKEND would
    seen: dict[str, list[Any]] = {'free': [], 'dense': []}
    models: dict[str, nn.Module | Candidate] = {}
    for name, backend in (('free', None), ('dense', 'dense')):
        probe = Probe(seen[name])
        probe.look = lambda model, image: backends._forced
        models[name] = Candidate(probe, backend)
    measure_throughput(models, Setting(size=4), rounds=1)
    assert set(seen['free']) == {None}
    assert set(seen['dense']) == {'dense'}


@pytest.mark.parametrize('fails_at', [1, 3], ids=['in the warm-up', 'while it is timed'])
def test_failure_is_a_row(fails_at: int) -> None:
    models = {'well': Probe([]), 'ill': Probe([], fails_at)}
    run = measure_throughput(models, Setting(size=4), rounds=3)
    assert run.row('well').images_per_second
    ill = run.row('ill')
    assert ill.images_per_second is None
    assert [one.failure for one in ill.measurements] == ['OutOfMemoryError: no memory left'] * 2
    assert run.ratio('ill') is None
    assert run.ratio('well', to='ill') is None


def test_compiler_error_is_a_row() -> None:
    class Breaks(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return image

    run = measure_throughput({'breaks': Breaks()}, Setting(compiled=True, size=4), rounds=1, layouts=['channels_first'])
    assert run.rows[0].images_per_second is None
    assert 'graph' in str(run.rows[0].best.failure).lower()


def test_interruption_is_not_a_row() -> None:
    class Stopped(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_throughput({'stopped': Stopped()}, Setting(size=4))


def test_every_compiled_model_is_one_graph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # More than the eight variants after which torch.compile runs a function as it is.
    models = {str(width): nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 2, 1)) for width in range(1, 11)}
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, 'compile', lambda function, **options: compile_(function, backend=counter, **options))
    run = measure_throughput(models, Setting(compiled=True, size=8, batch=2), rounds=2)
    assert all(one.failure is None for row in run.rows for one in row.measurements)
    assert counter.frame_count == len(models) * len(LAYOUTS)


def test_compiled_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced and lowered; generating code, which takes minutes, is torch's business.
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, 'compile', lambda function, **options: compile_(function, backend='aot_eager', **options)
    )
    run = measure_throughput(tiny_models(), Setting(compiled=True, size=32), rounds=1, layouts=['channels_last'])
    assert [row.best.failure for row in run.rows] == [None] * 4


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown precision 'float8'; known: float32, tf32, bfloat16"):
        Setting('float8')
    with pytest.raises(ValueError, match='batch and size are positive'):
        Setting(batch=0)
    with pytest.raises(ValueError, match='TF32 is a mode of NVIDIA GPUs'):
        measure_throughput({'a': nn.Identity()}, Setting('tf32'), 'cpu')
    with pytest.raises(ValueError, match=r"unknown layouts \['blocked'\]; known: channels_first, channels_last"):
        measure_throughput({'a': nn.Identity()}, Setting(), layouts=['blocked'])
    with pytest.raises(ValueError, match='at least one model'):
        measure_throughput({}, Setting())
