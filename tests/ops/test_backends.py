"""Which backend computes a call: the choice, forcing one, and what the log says."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mmpelk.ops import available_backends, backends, force_backend, peripheral_conv2d, sharing_grid
from mmpelk.ops.backends import BACKENDS as TABLE
from mmpelk.ops.backends import (
    PROCESSORS,
    REFERENCE_PROCESSOR,
    THIS_PROCESSOR,
    Backend,
    calls,
    choice,
    dense,
    dft,
    fastest_backend,
    fft,
    first_results,
    table,
)
from mmpelk.ops.branches import peripheral_branches
from mmpelk.ops.prepared import prepare
from tests.ops.inputs import BACKENDS, Recording, convolve, make_inputs, needs_custom_op, output_and_gradients


@pytest.mark.parametrize('branches', [False, True], ids=['one kernel', 'two kernels'])
@pytest.mark.parametrize('backend', BACKENDS)
def test_forcing_a_backend(backend: str, branches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = (tensor.requires_grad_() for tensor in make_inputs(grid, 10, 9))
    monkeypatch.setattr('mmpelk.ops.backends.calls.BACKENDS', table := Recording())

    def call(name: str | None = None) -> Tensor:
        if branches:
            return sum(peripheral_branches(x, weight, grid, weight[..., :3, :3], backend=name))  # type: ignore[return-value]
        return peripheral_conv2d(x, weight, grid, backend=name)

    with force_backend(backend):
        out = call()
        call('dense')
    out.sum().backward()  # both gradients, outside the block
    assert table.used == [backend, 'dense', backend, backend]
    call()
    assert table.used[-1] == fastest_backend(x, grid)


@pytest.mark.parametrize('branches', [False, True], ids=['one kernel', 'two kernels'])
def test_a_named_backend_computes_all_derivatives(branches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sharing_grid(13, 5)
    inputs = [tensor.requires_grad_() for tensor in make_inputs(grid, 4, 5)]
    monkeypatch.setattr('mmpelk.ops.backends.calls.BACKENDS', table := Recording())
    if branches:
        x, weight, bias = inputs
        outputs = peripheral_branches(x, weight, grid, torch.ones_like(weight[..., :3, :3]), bias, backend='fft')
    else:
        outputs = (convolve(grid, 'fft')(*inputs),)
    grads = torch.autograd.grad(sum(out.square().sum() for out in outputs), inputs, create_graph=True)
    sum(grad.square().sum() for grad in grads).backward()
    assert set(table.used) == {'fft'}


def test_forcing_is_of_a_thread() -> None:
    inside, leave = threading.Event(), threading.Event()

    def force() -> None:
        with force_backend('dense'):
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=force)
    thread.start()
    assert inside.wait(60)
    with force_backend('fft'):  # blocks that overlap
        leave.set()
        thread.join()
        assert backends.forced_backend() == 'fft'
    assert backends.forced_backend() is None


@pytest.mark.parametrize('outside', [None, 'fft'])
def test_a_block_gives_back_what_was_forced_before(outside: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends._FORCED, 'name', outside)  # as MMPELK_BACKEND sets it
    with force_backend('dense'):
        with pytest.raises(ZeroDivisionError), force_backend('dft'):
            _ = 1 / 0
        assert backends.forced_backend() == 'dense'
        with force_backend(None):
            assert backends.forced_backend() is None
    assert backends.forced_backend() == outside


@pytest.mark.parametrize(('text', 'name'), [('fft', 'fft'), ('', None), (None, None)])
def test_what_the_environment_forces(text: str | None, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every thread."""
    monkeypatch.delenv('MMPELK_BACKEND', raising=False)
    if text is not None:
        monkeypatch.setenv('MMPELK_BACKEND', text)
    monkeypatch.setattr(backends, '_FORCED', backends._Forced())
    found = [backends.forced_backend()]
    thread = threading.Thread(target=lambda: found.append(backends.forced_backend()))
    thread.start()
    thread.join()
    assert found == [name] * 2


@needs_custom_op
def test_compiled_code_sees_what_is_forced() -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 10, 9)
    names: list[str] = []

    def record(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        calls = [node for node in graph.graph.nodes if 'peripheral_conv2d' in str(node.target)]
        names.extend(str(call.args[-1]) for call in calls)
        return graph

    compiled = torch.compile(lambda x: peripheral_conv2d(x, weight, grid), fullgraph=True, backend=record)
    compiled(x)
    with force_backend('dense'):
        compiled(x)
    assert names == ['None', 'dense']


def test_inputs_that_a_named_backend_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = replace(TABLE['fft'], unsupported_reason=lambda x, weight, grid: f'no {x.dtype}')
    monkeypatch.setitem(TABLE, 'fft', stub)
    x, weight, _ = make_inputs((1,), 4, 4)
    with pytest.raises(ValueError, match="'fft' cannot compute this call: no"):
        peripheral_conv2d(x, weight, (1,), backend='fft')


@pytest.mark.slow
def test_backend_from_the_environment() -> None:
    program = (
        'import torch\nfrom mmpelk.ops.backends import requested_backend\n'
        'print(requested_backend(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 1, 1), [1], None))'
    )
    environment = {**os.environ, 'MMPELK_BACKEND': 'fft'}
    assert subprocess.check_output([sys.executable, '-c', program], env=environment, text=True) == 'fft\n'


def test_the_choice_is_said_once_per_shape(caplog: pytest.LogCaptureFixture) -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 11, 23)
    with caplog.at_level('DEBUG', 'mmpelk.ops'):
        for _ in range(3):
            peripheral_conv2d(x, weight.requires_grad_(), grid).sum().backward()
    said = [record.getMessage() for record in caplog.records if '11, 23' in record.getMessage()]
    assert len(said) == 2, said
    assert (
        said[0] == f'convolution of {tuple(x.shape)} {x.dtype} on cpu with K = 13: backend {fastest_backend(x, grid)!r}'
    )
    assert said[1].startswith('gradient of the weight of')


# Processor, channels, side or sides of the map, K, centre, dtype; the fastest for the output and for the gradient of
# the weight, as measured where the constants come from; of two sides, as the costs say.
CHOICES = """
AVX2   46 128 51  1 float32  fft   fft
AVX2   46  56 51  1 float32  dft   fft
AVX2   46 256 51  1 float32  fft   fft
AVX2   93  28 49  1 float32  dft   dft
AVX2  187  14 47  1 float32  dft   dft
AVX2  187  14 47  1 bfloat16 dft   dft
AVX2  374   7 13  1 float32  dense dft
AVX2   46 128 13  1 bfloat16 fft   fft
AVX2  374  16 13  1 bfloat16 dense dft
AVX2   46  56 13  1 float64  dft   fft
AVX2   46  56  5  1 float32  dense dense
AVX2   46  56  5  1 float64  dense dense
AVX2   46  28  9  1 float64  dft   dft
AVX2   46  14 31  5 bfloat16 dft   dft
AVX2   46 20x80 31 5 float32 dft   dft
AVX2   46 80x20 31 5 float32 dft   fft
AVX512 46 12x48 31 5 float32 dense dft
AVX512 46 12x48 31 5 bfloat16 dft  dft
AVX512 46 128 51  5 float32  fft   fft
AVX512 46  96 51  5 float32  fft   fft
AVX512 46  56 51  5 float32  dft   fft
AVX512 62  96 101 5 float32  fft   fft
AVX512 46  56 101 5 float32  dft   fft
AVX512 93  28 49  5 float32  dft   dft
AVX512 187 24 47  5 float32  dft   dft
AVX512 187 14 47  5 float32  dense dft
AVX512 374 16 13  5 float32  dft   dft
AVX512 374  7 13  5 float32  dense dft
"""


@pytest.mark.parametrize('row', CHOICES.strip().splitlines())
def test_choice_on_a_cpu(row: str) -> None:
    processor, channels, side, kernel_size, center_size, dtype, output, weight_grad = row.split()
    sides = [int(each) for each in side.split('x')]
    x = torch.empty(1, dtype=getattr(torch, dtype)).expand(1, int(channels), sides[0], sides[-1])
    grid = sharing_grid(int(kernel_size), int(center_size))
    assert fastest_backend(x, grid, processor=processor) == output
    assert fastest_backend(x, grid, weight_grad=True, processor=processor) == weight_grad


def test_only_backends_that_run_here_are_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, 'dft', replace(TABLE['dft'], unavailable_reason=lambda: 'no sines'))
    assert [name for name in TABLE if name in available_backends()] == available_backends()
    assert set(available_backends()) & set(BACKENDS) == {'dense', 'fft'}
    x, weight, _ = make_inputs((1,), 4, 4)
    for name, error, message in (
        ('dft', RuntimeError, "'dft' does not run here: no sines"),
        ('magic', ValueError, "unknown backend 'magic'"),
    ):
        with pytest.raises(error, match=message):
            peripheral_conv2d(x, weight, (1,), backend=name)
        with pytest.raises(error, match=message), force_backend(name):
            pass


def test_what_the_fast_backends_prepare() -> None:
    assert {name: TABLE[name].prepare is None for name in BACKENDS} == {'dense': False, 'dft': False, 'fft': True}
    assert {name for name in TABLE if TABLE[name].by_plane} == {'triton_dft'}
    assert {name for name in TABLE if TABLE[name].kernel_key} == {'triton', 'triton_dft'}


def test_choice_follows_this_machine_unless_a_class_is_named() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    assert (capability if capability in PROCESSORS else REFERENCE_PROCESSOR) == THIS_PROCESSOR
    for size, kernel_size in itertools.product((7, 14, 28, 56), (13, 31, 47, 51)):
        x, grid = torch.empty(1).expand(1, 187, size, size), sharing_grid(kernel_size)
        assert fastest_backend(x, grid) == fastest_backend(x, grid, processor=THIS_PROCESSOR)


@pytest.mark.parametrize(
    ('kernel_size', 'unavailable', 'unsupported', 'choice'),
    [
        (51, None, None, 'triton'),
        (51, 'no triton', None, 'fft'),
        (51, None, 'float64', 'fft'),
        (5, None, None, 'dense'),
    ],
)
def test_choice_on_cuda(
    kernel_size: int, unavailable: str | None, unsupported: str | None, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = replace(
        TABLE['triton'], unavailable_reason=lambda: unavailable, unsupported_reason=lambda *args: unsupported
    )
    monkeypatch.setitem(TABLE, 'triton', stub)
    x = SimpleNamespace(is_cuda=True, dtype=torch.float32, device=torch.device('cuda'), shape=(1, 1, 56, 56))
    for weight_grad in (False, True):
        assert fastest_backend(x, sharing_grid(kernel_size), weight_grad=weight_grad) == choice


class _Compiled:
    """A compiled backend in the place of Triton's, chosen as on CUDA; ``damage`` makes its results."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Tensor], Tensor]) -> None:
        self.calls, self.damage = 0, damage
        backend = Backend('triton', self.forward, self.weight_grad, kernel_key=lambda x, grid: tuple(grid))
        monkeypatch.setitem(TABLE, 'triton', backend)
        monkeypatch.setattr(choice, '_fastest_on_cpu', lambda *args: choice._fastest_on_cuda(*args[:-1]))
        monkeypatch.setattr(table, '_refusals', {})
        monkeypatch.setattr(calls, '_trusted', set())

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: Sequence[int],
        out: Tensor,
        kernel: Tensor | None = None,
    ) -> Tensor:
        self.calls += 1
        return out.copy_(self.damage(dense.forward(x, weight, bias, grid)))

    def weight_grad(self, x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
        self.calls += 1
        return self.damage(dense.weight_grad(x, grad_out, grid))


@pytest.mark.parametrize(
    ('size', 'kernel', 'by_terms', 'by_positions'),
    [
        ((20, 20), 5, True, False),
        ((20, 20), 11, True, False),  # 121 terms
        ((8, 15), 51, True, True),
        ((8, 16), 51, False, True),
        ((15, 17), 151, False, True),
        ((16, 16), 151, False, False),
    ],
)
def test_sums_of_few_terms_are_transformed_in_float64(
    size: tuple[int, int], kernel: int, by_terms: bool, by_positions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = sharing_grid(kernel)
    x, weight = torch.zeros(1, 1, *size, dtype=torch.bfloat16), torch.zeros(1, 1, len(grid), len(grid))
    assert (dft._plan(x, grid, torch.float32).dtype == torch.float64) == by_terms
    plans: list[torch.dtype] = []
    plan = fft._Plan
    monkeypatch.setattr(fft, '_Plan', lambda *args: plans.append(args[-1]) or plan(*args))  # type: ignore[func-returns-value]
    fft.forward(x, weight, None, grid)
    fft.weight_grad(x, x, grid)
    assert [dtype == torch.float64 for dtype in plans] == [by_positions, True]


def test_what_tells_trusted_kernels_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout and the place of every map among them; of maps that are alike a backend is asked once."""
    asked: list[Tensor] = []

    def kernel_key(x: Tensor, grid: Sequence[int]) -> object:
        asked.append(x)
        return x.shape, x.stride(), x.data_ptr() % 16, tuple(grid)

    for name in ('triton', 'triton_dft'):
        monkeypatch.setitem(TABLE, name, replace(TABLE[name], kernel_key=kernel_key))
    numbers = torch.empty(2 * 3 * 8 * 8 + 1)
    x, shifted = numbers[:-1].view(2, 3, 8, 8), numbers[1:].view(2, 3, 8, 8)
    alike, last, grid = torch.empty_like(x), x.contiguous(memory_format=torch.channels_last), [1, 1, 1]
    keys = [
        calls._key(*arguments, grid)
        for arguments in (
            ('triton', False, 0, [x, alike]),
            ('triton_dft', False, 0, [x, alike]),
            ('triton', True, 0, [x, alike]),
            ('triton', False, 1, [x, alike]),
            ('triton', False, 3, [x, alike]),
            *(('triton', False, 0, [x, other]) for other in (shifted, last, x[:1])),
            *(('triton', False, 0, [other, alike]) for other in (shifted, last, x.double(), x.to('meta'))),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert calls._key('triton', False, 0, [alike, x], grid) == keys[0] != calls._key('triton', False, 0, [x], [3])
    asked.clear()
    calls._key('triton', False, 0, [x, alike], grid)
    assert len(asked) == 1


def test_every_map_of_a_call_tells_kernels_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    _Compiled(monkeypatch, lambda result: result)
    asked: list[tuple[int, ...]] = []
    kernel_key = lambda x, grid: asked.append(x.stride())  # noqa: E731
    monkeypatch.setitem(TABLE, 'triton', replace(TABLE['triton'], kernel_key=kernel_key))
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 12, 9, torch.float32)
    last = x.contiguous(memory_format=torch.channels_last)
    for call in (
        lambda: calls.convolve(None, x, weight, None, grid, torch.empty_like(last)),
        lambda: calls.input_gradient(None, x, weight, grid, torch.empty_like(last), []),
        lambda: calls.weight_gradient(None, x, last, grid),
    ):
        asked.clear()
        call()
        assert set(asked) == {x.stride(), last.stride()}


def test_an_empty_batch_is_no_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _Compiled(monkeypatch, lambda result: result)
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 12, 9, torch.float32)
    output_and_gradients(convolve(grid), (x[:0], weight), x[:0])
    assert not caplog.records
    assert not calls._trusted


@pytest.mark.parametrize('bias_dims', [0, 1, 3])
def test_what_sums_of_rounded_products_may_be_off(
    bias_dims: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Relative to the sum of their absolute values at that place, that of the bias included."""
    grid = sharing_grid(13, 5)
    x, weight, bias = make_inputs(grid, 12, 9, torch.float32)
    weight[:, :, :5, :5] *= 1e-3  # the last corner sums little
    added = {0: None, 1: -10 * bias[:, 0, 0].abs(), 3: -10 * bias.abs()}[bias_dims]

    def off(part: float, places: tuple[slice, ...]) -> int:
        """Warnings about kernels that are off by a part of the sums, in some places."""
        caplog.clear()

        def forward(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], out: Tensor) -> Tensor:
            out.copy_(dense.forward(x, weight, bias, grid))
            out[places] += (
                part * dense.forward(x.abs(), weight.abs(), None if bias is None else bias.abs(), grid)[places]
            )
            return out

        def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int]) -> Tensor:
            grad = dense.weight_grad(x, grad_out, grid)
            grad[places] += part * dense.weight_grad(x.abs(), grad_out.abs(), grid)[places]
            return grad

        _Compiled(monkeypatch, lambda result: result)
        monkeypatch.setitem(TABLE, 'triton', replace(TABLE['triton'], forward=forward, weight_grad=weight_grad))
        inputs = [each.requires_grad_() for each in (x, weight)]
        peripheral_conv2d(*inputs, grid, added).backward(x.detach().flip(-1, -2))
        return len(caplog.records)

    everywhere, corner = (slice(None),) * 4, (..., slice(-1, None), slice(-1, None))
    assert off(2.0**-14, everywhere) == 0
    assert off(2.0**-12, corner) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ('got', 'exact', 'fits', 'tells', 'part'),
    [
        ([1, 0], [1, 0], True, None, 0),
        ([1, -3], [1, 0], True, None, 6),
        ([1, 3], [1, 0], True, None, 6),
        ([1, float('nan')], [1, 0], True, None, float('inf')),
        ([1, float('-inf')], [1, 0], True, None, float('inf')),
        ([0, 0], [0, 0], True, None, None),
        ([0, 0.25], [0, 0], True, None, None),
        ([0, 1], [0, 0], True, None, 2),
        ([1, 2], [1, 2], True, False, None),
        ([1, 3], [1, 2], True, False, 2),
        ([0, 0], [0, 0], True, True, 0),
        ([1, 9], [1, 2], [True, False], None, None),
        ([1, 9], [1, 2], [True, False], True, None),
    ],
)
def test_largest_error_as_a_part_of_what_is_allowed(
    got: list[float], exact: list[float], fits: bool | list[bool], tells: bool | None, part: float | None
) -> None:
    fit, tell = torch.tensor(fits), None if tells is None else torch.tensor(tells)
    given = torch.tensor(got), torch.tensor(exact, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    assert first_results.largest_part(*given, fit, tell) == part


def test_sums_beyond_the_dtype_tell_nothing() -> None:
    """Even if what remains of them is not."""
    of = [torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (1.0, 1e6)]
    assert calls._largest_error(of[0].half() * float('inf'), *of, None, torch.tensor(True)) is None


def _raise(error: Exception) -> Callable[[Tensor], Tensor]:
    def damage(result: Tensor) -> Tensor:
        raise error

    return damage


def _one_tap_less(result: Tensor) -> Tensor:
    """An error as small as an index that is wrong at the rim makes it."""
    result[..., -1, -1] += 0.01 * result.abs().mean()
    return result


def _one_plane(index: int, result: Tensor) -> Tensor:
    """Of the first image and channel, or the last."""
    result[index, index] += result.abs().mean()
    return result


FAILURES = {
    'compiler': (_raise(RuntimeError('PassManager::run failed')), 'RuntimeError: PassManager::run failed'),
    'no_gcc': (_raise(FileNotFoundError('gcc')), 'FileNotFoundError: gcc'),
    'launch': (_raise(RuntimeError('Triton Error [CUDA]: invalid argument')), 'invalid argument'),
    'zeros': (torch.zeros_like, 'its result is wrong'),
    'nan': (lambda result: result * float('nan'), 'its result is wrong, by inf'),
    'one_number': (_one_tap_less, 'its result is wrong'),
    'first_plane': (partial(_one_plane, 0), 'its result is wrong'),
    'last_plane': (partial(_one_plane, -1), 'its result is wrong'),
}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('failure', FAILURES)
def test_the_next_backend_goes_on(
    failure: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = FAILURES[failure]
    if failure == 'one_number' and dtype == torch.bfloat16:
        pytest.skip('less than a rounding')
    compiled = _Compiled(monkeypatch, damage)
    grid = sharing_grid(13, 5)
    *inputs, _ = make_inputs(grid, 12, 9, dtype)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = [output_and_gradients(convolve(grid), inputs, grad) for _ in range(2)]
    expected = output_and_gradients(convolve(grid, 'fft'), inputs, grad)
    for result in results:
        assert all(torch.equal(value, want) for value, want in zip(result, expected, strict=True))
    assert compiled.calls == 2  # each of the two kernels once
    said = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert len(said) == 2
    assert all(reason in message and str(dtype) in message for message in said), said
    with nullcontext() if 'wrong' in reason else pytest.raises((RuntimeError, OSError), match=reason.split(': ')[-1]):
        peripheral_conv2d(*inputs, grid, backend='triton')  # named, it is used as it is


@pytest.mark.parametrize('zero', ['grad', 'weight'])
def test_right_zeros_prove_nothing(
    zero: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory to which no kernel has written may hold them, as gradients do behind a layer that begins with zeros."""
    compiled = _Compiled(monkeypatch, lambda result: result)
    grid = sharing_grid(13, 5)
    x, weight, bias = make_inputs(grid, 12, 9, torch.float32)
    nothing = torch.zeros_like(x if zero == 'grad' else weight)
    first = ((x, weight, bias), nothing) if zero == 'grad' else ((x, nothing, bias), x)
    output_and_gradients(convolve(grid), *first)
    assert not caplog.records
    compiled.damage = torch.zeros_like
    got, want = (output_and_gradients(convolve(grid, name), (x, weight, bias), x) for name in (None, 'fft'))
    checked = slice(1, 3) if zero == 'grad' else slice(0, 2)  # input's and weight's gradient; output and input's
    assert all(map(torch.equal, got[checked], want[checked]))


@pytest.mark.parametrize('fails', [False, True])
def test_the_gradient_of_the_weight_takes_what_that_of_the_input_has_kept(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of a backend that failed."""
    _Compiled(monkeypatch, lambda result: result)
    kept = []

    def input_grad(grad_out: Tensor, weight: Tensor, grid: Sequence[int], out: Tensor, planes: list[Tensor]) -> Tensor:
        planes.append(torch.full_like(grad_out, 3.0) if fails else grad_out.clone())
        return out.copy_(dense.forward(grad_out, weight.flip(-1, -2), None, grid)).mul_(1 + fails)

    def weight_grad(x: Tensor, grad_out: Tensor, grid: Sequence[int], planes: Sequence[Tensor]) -> Tensor:
        kept.append(len(planes))
        return dense.weight_grad(x, [*planes, grad_out][0], grid)

    kernels = replace(TABLE['triton'], input_grad=input_grad, weight_grad=weight_grad)
    monkeypatch.setitem(TABLE, 'triton', kernels)
    grid = (1, 2, 1, 4, 1)
    x, _, _ = make_inputs(grid, 12, 9, torch.float64)
    weight = torch.randn(x.shape[1], 1, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got, want = (output_and_gradients(convolve(grid, name), (x, weight), x) for name in (None, 'fft'))
    assert kept == [0 if fails else 1]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ('by_plane', 'part', 'warnings'), [(False, 2.0**-9, 2), (True, 2.0**-9, 0), (True, 2.0**-7, 2)]
)
def test_what_a_transform_spreads_over_a_plane_is_no_error(
    by_plane: bool, part: float, warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Relative to the root mean square of the plane, or of the channel's gradient."""
    _Compiled(monkeypatch, lambda result: result + part * result.square().mean((-2, -1), keepdim=True).sqrt())
    monkeypatch.setitem(TABLE, 'triton', replace(TABLE['triton'], by_plane=by_plane))
    grid = (1,) * 7
    x, weight = torch.randn(2, 2, 20, 20), torch.randn(2, 1, 7, 7)
    output_and_gradients(convolve(grid), (x, weight), torch.randn(2, 2, 20, 20))
    assert len(caplog.records) == warnings


def test_costs_of_the_dense_kernel_are_those_of_its_taps() -> None:
    """Rows of the kernel that read inside the map, times the columns that do for some output."""
    costs = choice.Costs(dense_tap=1, dft_product=0, dft_number=0, fft_number=0, dense_row=0)
    for height, width, kernel_size in ((20, 30, 13), (5, 9, 13), (4, 3, 31), (1, 1, 5)):
        radius = kernel_size // 2
        inside = [sum(0 <= row + tap < height for tap in range(-radius, radius + 1)) for row in range(height)]
        columns = 2 * min(radius, width - 1) + 1
        assert choice.dense_ns(height, width, kernel_size, costs) == sum(inside) * width * columns
        rows = replace(costs, dense_tap=0, dense_row=1)
        assert choice.dense_ns(height, width, kernel_size, rows) == sum(inside) * width


def test_a_map_of_single_points_is_no_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Exact zeros are compared with what a transform leaves of them."""
    compiled = _Compiled(monkeypatch, lambda result: result)
    x = torch.zeros(2, 3, 20, 20)
    x[:, :, 3, 4], x[:, :, 17, 11] = 1, -0.3
    grid = sharing_grid(13, 5)
    weight = torch.randn(3, 1, len(grid), len(grid), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        output_and_gradients(convolve(grid), (x, weight), x)
    assert compiled.calls == 6
    assert not caplog.records


@pytest.mark.parametrize('failure', ['compiler', 'zeros', 'while it is prepared'])
def test_the_next_backend_goes_on_where_a_kernel_is_prepared(
    failure: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damage = FAILURES.get(failure, FAILURES['compiler'])[0]
    compiled = _Compiled(monkeypatch, damage)
    make = damage if failure not in FAILURES else torch.clone
    monkeypatch.setitem(TABLE, 'triton', replace(TABLE['triton'], prepare=lambda weight, grid, x: make(weight)))
    grid = sharing_grid(13, 5)
    x, weight, bias = make_inputs(grid, 12, 9, torch.float32)
    expected = peripheral_conv2d(x, weight, grid, bias, backend='fft')
    prepared = prepare(x, weight, grid, bias)
    for _ in range(3):
        assert torch.equal(prepared(x), expected)
    assert compiled.calls == len([record for record in caplog.records if record.levelname == 'WARNING']) == 1
    if failure in FAILURES and failure != 'zeros':
        with pytest.raises(RuntimeError, match='PassManager'):
            prepare(x, weight, grid, bias, 'triton')(x)


def test_a_compiled_kernel_is_compared_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    compiled = _Compiled(monkeypatch, lambda result: result)
    compared = []
    of = calls._largest_error
    monkeypatch.setattr(calls, '_largest_error', lambda *args: compared.append(of(*args)) or compared[-1])
    grid = sharing_grid(13, 5)
    x, weight, bias = make_inputs(grid, 12, 9, torch.float32)
    for value in (float('nan'), 1e30, 1.0, 1.0):  # the first and the second, beyond float32, tell nothing
        x[0, 0, 0, 0] = value
        output_and_gradients(convolve(grid), (x, weight * 1e9, bias), x)
    assert compiled.calls == 12
    # With the bias, without it for the gradient of the input, and the gradient of the weight.
    assert [error is None for error in compared].count(False) == 3
    peripheral_conv2d(x.bfloat16(), weight.bfloat16(), grid)  # of another dtype, another kernel
    assert [error is None for error in compared].count(False) == 4
    assert not caplog.records


def test_running_out_of_memory_is_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _Compiled(monkeypatch, _raise(torch.cuda.OutOfMemoryError('out of memory')))
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 12, 9, torch.float32)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        peripheral_conv2d(x, weight, grid)


def test_no_unknown_kernel_in_a_captured_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = _Compiled(monkeypatch, lambda result: result)
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 12, 9, torch.float32)
    monkeypatch.setattr(first_results, 'is_capturing', lambda x: True)
    peripheral_conv2d(x, weight, grid)
    assert compiled.calls == 0
    assert 'warm up first' in caplog.text
    monkeypatch.undo()
    compiled = _Compiled(monkeypatch, lambda result: result)
    peripheral_conv2d(x, weight, grid)
    monkeypatch.setattr(first_results, 'is_capturing', lambda x: True)
    peripheral_conv2d(x, weight, grid)
    assert compiled.calls == 2
