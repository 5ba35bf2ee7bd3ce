"""The mixer and the norms of a block in training: what happens where their kernels fail, and second gradients.

:mod:`triton_cases` has the kernels themselves.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from mmpelk.ops import force_backend, training_norm
from mmpelk.ops.backends import first_results
from mmpelk.ops.branches import BranchTensors, peripheral_branches
from tests.ops.inputs import Recording

GRID = [2, 1, 2]


def _inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The map; weights, and what is added to the first output; weight and bias of the layer norm."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 8, 4, 3), (3, 1, 3, 3), (3, 1, 3, 3), (3, 4, 3), (8,), (8,)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    drawn[0] = drawn[0].to(memory_format=torch.channels_last)
    return [each.requires_grad_() for each in drawn]


def _norms(dtype: torch.dtype = torch.float64) -> list[nn.BatchNorm2d]:
    norms = [nn.BatchNorm2d(3, momentum=momentum, eps=eps) for momentum, eps in ((0.1, 1e-5), (0.3, 1e-2))]
    for norm in norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return [norm.to(dtype) for norm in norms]


def _call(inputs: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], fused: bool = True) -> Tensor:
    """As a block calls it."""
    x, weight, small, bias, *norm = inputs
    if fused:
        dtype = torch.bfloat16 if torch.is_autocast_cpu_enabled() else x.dtype
        tensors = BranchTensors(weight, small, bias)
        out = training_norm.mix_and_norm(x, tensors, GRID, None, norms, (norm, 1e-6), dtype)
        if out is not None:
            return out
    outputs = peripheral_branches(x[:, :3], weight, GRID, small, bias)
    mixed = norms[0](outputs[0]) + norms[1](outputs[1])
    out = torch.cat([mixed, x[:, 3:]], 1).permute(0, 2, 3, 1)
    return F.layer_norm(out.to(norm[0].dtype), (8,), *norm, 1e-6)


def _results(inputs: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], fused: bool, times: int = 1) -> list[Tensor]:
    """Output, all gradients and all running statistics, after as many calls."""
    norms = copy.deepcopy(norms)
    leaves = [*inputs, *(parameter for norm in norms for parameter in norm.parameters())]
    for _ in range(times):
        out = _call(inputs, norms, fused)
        grads = torch.autograd.grad(out, leaves, torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        assert len({grad.data_ptr() for grad in grads}) == len(grads), 'a write to one would change another'
    return [out, *grads, *(buffer for norm in norms for buffer in norm.buffers())]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In the place of the kernels, right until a test breaks them by ``forward_result`` and ``backward_result``."""

    def forward(
        maps: Sequence[Tensor],
        parameters: Sequence[Tensor],
        running: Sequence[Tensor],
        momenta: Sequence[float],
        epsilons: Sequence[float],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        stand_in.calls.append('forward')
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)
        large, small, x = (each.double() for each in maps)
        mixed, stats = torch.zeros_like(large), []
        for i, each in enumerate((large, small)):
            weight, bias = (tensor.double() for tensor in parameters[2 * i : 2 * i + 2])
            of_norm = [tensor.double() for tensor in running[3 * i : 3 * i + 2]]
            mixed = mixed + F.batch_norm(each, *of_norm, weight, bias, True, momenta[i], epsilons[i])
            for tensor, value in zip(running[3 * i : 3 * i + 2], of_norm, strict=True):
                tensor.copy_(value)
            running[3 * i + 2].add_(1)
            var, mean = torch.var_mean(each, (0, 2, 3), unbiased=False)
            stats += [mean, (var + epsilons[i]).rsqrt(), torch.zeros_like(mean)]
        out = torch.cat([mixed, x[:, 3:]], 1).permute(0, 2, 3, 1)
        out = F.layer_norm(out, (8,), *(tensor.double() for tensor in parameters[4:]), epsilons[2])
        out, stats, *_ = stand_in.forward_result(out.permute(0, 3, 1, 2).to(dtype), torch.stack(stats), *running)
        return out.permute(0, 2, 3, 1).contiguous(), stats

    def backward(
        grad: Tensor, maps: Sequence[Tensor], stats: Tensor, parameters: Sequence[Tensor], eps: float
    ) -> tuple[Tensor, ...]:
        stand_in.calls.append('backward')
        assert all(each.is_contiguous() for each in (grad, stats, *parameters))
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)
        with torch.enable_grad(), torch.autocast('cpu', enabled=False):
            leaves = [each.detach().double().requires_grad_() for each in (*maps, *parameters)]
            large, small, x, *of_norms = leaves
            term = torch.zeros(large.shape[1:], dtype=torch.float64, requires_grad=True)
            mixed = torch.zeros((), dtype=torch.float64)
            for i, each in enumerate((large + term, small)):
                of_eps = stats[3 * i + 1].double().pow(-2) - each.var((0, 2, 3), unbiased=False)
                vectors = of_norms[2 * i : 2 * i + 2]
                mixed = mixed + F.batch_norm(each, None, None, *vectors, True, 0.0, of_eps.mean().item())
            mixed.retain_grad()
            out = torch.cat([mixed, x[:, 3:]], 1).permute(0, 2, 3, 1)
            F.layer_norm(out, (8,), *of_norms[4:], eps).backward(grad.double())
        assert x.grad is not None
        of_maps = [x.grad, mixed.grad, large.grad, small.grad, term.grad]
        kinds = maps[2], mixed, maps[0], maps[1], maps[0], *parameters
        grads = zip([*of_maps, *(each.grad for each in of_norms)], kinds, strict=True)
        return stand_in.backward_result(*(each.to(like.dtype) for each, like in grads))  # type: ignore[union-attr]

    stand_in = SimpleNamespace(
        calls=[],
        forward_result=lambda *result: result,
        backward_result=lambda *result: result,
        forward=forward,
        backward=backward,
        takes=lambda *_: True,
        kernel_key=lambda *_: 'key',
    )
    monkeypatch.setattr(training_norm, '_kernel', lambda: stand_in)
    monkeypatch.setattr(training_norm, '_trusted', set())
    monkeypatch.setattr(training_norm, '_refused', set())
    monkeypatch.setattr(training_norm, '_warned', set())
    return stand_in


def _raise(error: Exception) -> Any:
    raise error


def _off(index: int, by: float = 0.01, channel: int = -1) -> Callable[..., Any]:
    """A result of which one number of a tensor, the running statistics among them, is wrong."""

    def result(*tensors: Any) -> Any:
        flat = tensors[index]
        flat = flat.movedim(-3, -1) if flat.dim() > 2 else flat
        flat[(*[-1] * (flat.dim() - 1), channel) if flat.dim() else ()] += 1 if flat.dtype == torch.int64 else by
        return tensors

    return result


@pytest.mark.parametrize(
    ('direction', 'result', 'reason'),
    [
        ('forward', lambda *_: _raise(RuntimeError('PassManager::run failed')), 'RuntimeError: PassManager::run'),
        *(('forward', _off(index), 'its result is wrong') for index in range(8)),
        *(('forward', _off(index, channel=1), 'its result is wrong') for index in (1, 2, 3, 5, 6)),
        ('forward', lambda out, *others: (out * float('nan'), *others), 'its result is wrong'),
        ('backward', lambda *_: _raise(RuntimeError('PassManager::run failed')), 'RuntimeError: PassManager::run'),
        *(('backward', _off(index), 'its result is wrong') for index in range(11)),
        *(('backward', _off(index, channel=1), 'its result is wrong') for index in range(1, 11)),
    ],
)
def test_kernels_that_fail(
    direction: str, result: Any, reason: str, kernel: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and the gradients and running statistics of torch's operators, as if there had been no kernels."""
    inputs, norms = _inputs(), _norms()
    want = _results(inputs, norms, False, times=2)
    setattr(kernel, f'{direction}_result', result)
    with caplog.at_level(logging.WARNING, 'mmpelk.ops'):
        got = _results(inputs, norms, True, times=2)
    torch.testing.assert_close(got, want)
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert 'in training' in record.getMessage()
    assert kernel.calls == (['forward'] if direction == 'forward' else ['forward', 'backward', 'forward'])


def test_one_warning_for_a_dtype(kernel: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    kernel.kernel_key = lambda x, *_: (x.shape, x.dtype)
    kernel.forward_result = lambda *_: _raise(RuntimeError('broken'))
    with caplog.at_level(logging.WARNING, 'mmpelk.ops'):
        for dtype, records in ((torch.float64, 1), (torch.float32, 2)):
            for rows in (3, 4):
                x, weight, small, bias, *norm = _inputs(dtype)
                for _ in range(2):
                    _call([x[:, :, :rows], weight, small, bias[:, :rows], *norm], _norms(dtype))
                assert len(caplog.records) == records
    assert len(kernel.calls) == 4


@pytest.mark.parametrize('by_kernel', [True, False])
def test_autocast(by_kernel: bool, kernel: SimpleNamespace) -> None:
    """The mixed channels and the result lose digits; gradients have the dtype of their tensor."""
    inputs, norms = _inputs(torch.float32), _norms(torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        want = _results(inputs, norms, False)
        if not by_kernel:
            kernel.backward_result = lambda *_: _raise(RuntimeError('broken'))
        got = _results(inputs, norms, True)
    assert [each.dtype for each in got[1:]] == [each.dtype for each in want[1:]]
    assert got[0].dtype == torch.bfloat16
    torch.testing.assert_close(got[0].float(), want[0], rtol=2**-5, atol=2**-5)
    torch.testing.assert_close(got[1:], want[1:], rtol=2**-5, atol=2**-3)
    assert kernel.calls == ['forward', 'backward']


@pytest.mark.parametrize('inside', ['forward', 'backward'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_autocast_on_one_side(dtype: torch.dtype, inside: str, kernel: SimpleNamespace) -> None:
    """float64 is mixed as it is; torch's operators compute gradients as the forward computed, whatever the backward's
    autocast."""
    trained = _norms(dtype)

    def results(fused: bool, autocast: bool = True) -> list[Tensor]:
        inputs, norms = _inputs(dtype), copy.deepcopy(trained)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast and inside == 'forward'):
            out = _call(inputs, norms, fused).to(dtype)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast and inside == 'backward'):
            out.backward(torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out))
        return [*(each.grad for each in inputs), *(buffer for norm in norms for buffer in norm.buffers())]  # type: ignore[list-item]

    kernel.backward_result = lambda *_: _raise(RuntimeError('broken'))
    got, exact = results(True), results(False, autocast=False)
    assert kernel.calls == ['forward', 'backward']
    if inside == 'backward':
        torch.testing.assert_close(got, exact)
    else:
        statistics = [[each for each in tensors[-6:] if each.dtype == dtype] for tensors in (got, exact)]
        same = all(torch.allclose(*pair) for pair in zip(*statistics, strict=True))
        assert same == (dtype == torch.float64)


def test_layer_norm_keeps_its_digits_where_the_map_has_fewer(kernel: SimpleNamespace) -> None:
    """Under autocast the map may be in 16 bits; the sum of a gradient then has more."""
    inputs = _inputs(torch.float32)
    inputs[0] = inputs[0].detach().bfloat16().requires_grad_()
    kernel.backward_result = lambda *_: _raise(RuntimeError('broken'))
    with torch.autocast('cpu', torch.bfloat16):
        out = _call(inputs, _norms(torch.float32))
    out.backward(torch.full_like(out, 1 + 2**-7))
    assert kernel.calls == ['forward', 'backward']
    assert inputs[5].grad is not None
    assert inputs[5].grad.tolist() == [24 * (1 + 2**-7)] * 8


def test_every_dtype_tells_kernels_apart(kernel: SimpleNamespace) -> None:
    """The map's, the parameters', the running statistics', that of what is mixed and the result's; and where the
    gradient lies in memory."""
    keys: list[tuple[Any, ...]] = []

    def key_of(x: Tensor, parameters: Sequence[Tensor], *others: Any) -> str:
        keys.append((x.dtype, *{each.dtype for each in parameters}, *others))
        return str(keys[-1])

    kernel.kernel_key = key_of
    inputs, norms = _inputs(torch.float32), _norms(torch.float32)
    running = [buffer.dtype for norm in norms for buffer in norm.buffers()]
    for half, autocast in ((torch.float32, False), (torch.bfloat16, True)):
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            out = _call(inputs, norms)
        numbers = torch.ones(out.numel() + 16, dtype=half)
        start = -numbers.data_ptr() % 16 // numbers.itemsize
        for offset in (0, 1):
            grad = numbers[start + offset :][: out.numel()].view_as(out)
            out.backward(grad, retain_graph=True)
            assert keys.pop() == (torch.float32, torch.float32, half, half, offset * numbers.itemsize)
        assert keys == [(torch.float32, torch.float32, *running, half, half)]
        keys.clear()
    assert len(training_norm._trusted) == 6
    assert kernel.calls == ['forward', 'backward', 'backward'] * 2


@pytest.mark.parametrize('direction', ['forward', 'backward'])
def test_sums_over_a_middle_channel_that_miss_pixels(
    direction: str, kernel: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """What the corners hold agrees with such sums; torch's results are taken."""
    run, inputs, norms = getattr(kernel, direction), _inputs(), _norms()

    def blind(first: Any, *others: Any) -> Any:
        if direction == 'forward':
            large = first[0].clone()
            large[:, 1, 1:-1, 1:-1] = 0
            return run((large, *first[1:]), *others)
        grad = first.clone()
        grad[:, 1:-1, 1:-1, 1] = 0
        return run(grad, *others)

    setattr(kernel, direction, blind)
    with caplog.at_level(logging.WARNING, 'mmpelk.ops'):
        torch.testing.assert_close(_results(inputs, norms, True), _results(inputs, norms, False))
    assert f'the {direction} kernel for the norms of a block in training fails' in caplog.text
    assert 'for 3 mixed channels' in caplog.text


def test_kernels_that_are_right_are_compared_once(kernel: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, norms = _inputs(), _norms()
    want = _results(inputs, norms, False, times=2)
    with torch.autograd.profiler.profile():  # which is to see what runs without it
        torch.testing.assert_close(_results(inputs, norms, True, times=2), want)
    assert kernel.calls == ['forward', 'backward'] * 2
    assert len(training_norm._trusted) == 2
    kernel.forward_result, kernel.backward_result = _off(0, 1), _off(9, 1)
    for module in (training_norm, first_results):  # a graph may capture them from now on
        monkeypatch.setattr(module, 'is_capturing', lambda x: True)
    got = _results(inputs, norms, True, times=2)
    assert [i for i, pair in enumerate(zip(got, want, strict=True)) if not torch.allclose(*pair)] == [0, 5]
    assert not training_norm._refused


def test_what_is_neither_trusted_nor_refused(kernel: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, norms = _inputs(), _norms()
    want = _results(inputs, norms, False)
    with monkeypatch.context() as captured:
        captured.setattr(training_norm, 'is_capturing', lambda x: True)
        torch.testing.assert_close(_results(inputs, norms, True), want)
    with monkeypatch.context() as other_layout:
        other_layout.setattr(kernel, 'takes', lambda *_: False)
        torch.testing.assert_close(_results(inputs, norms, True), want)
    assert not kernel.calls
    x, weight, small, bias, *norm = inputs
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        _call([x[:1, :, :1, :1], weight, small, bias[:, :1, :1], *norm], _norms())
    with pytest.raises(RuntimeError, match='should contain 3 elements'):
        _call(inputs, [nn.BatchNorm2d(5, dtype=torch.float64) for _ in range(2)])
    with pytest.raises(ValueError, match='bias must be'):
        _call([x, weight, small, bias[:, 1:], *norm], _norms())
    tensors = BranchTensors(weight, small, bias)
    assert training_norm.mix_and_norm(x, tensors, GRID, None, norms, (norm, 0.0), x.dtype) is None, 'no epsilon'
    assert not kernel.calls
    kernel.forward_result = lambda *_: _raise(torch.cuda.OutOfMemoryError())
    with pytest.raises(torch.cuda.OutOfMemoryError):
        _results(inputs, norms, True)
    kernel.forward_result = lambda *result: result
    with monkeypatch.context() as captured:  # of the backward alone
        captured.setattr(first_results, 'is_capturing', lambda x: 'forward' in kernel.calls[1:])
        torch.testing.assert_close(_results(inputs, norms, True), want)
    assert kernel.calls == ['forward'] * 2
    assert not training_norm._refused
    assert len(training_norm._trusted) == 1


def test_second_gradients(kernel: SimpleNamespace) -> None:
    """Those of torch's operators; the kernels compute first gradients."""
    norms = _norms()
    parameters = [parameter for norm in norms for parameter in norm.parameters()]
    inputs = _inputs()

    def call(*tensors: Tensor) -> Tensor:
        return _call(tensors[:6], norms)

    assert torch.autograd.gradgradcheck(call, (*inputs, *parameters), fast_mode=True)
    assert 'backward' not in kernel.calls

    def penalty(fused: bool) -> tuple[Tensor, ...]:
        out = _call([each * each for each in inputs], norms, fused)
        grads = torch.autograd.grad(out.square().sum(), [*inputs, *parameters], create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), [*inputs, *parameters])  # type: ignore[arg-type, return-value]

    torch.testing.assert_close(penalty(True), penalty(False))


@pytest.mark.parametrize('frozen', [[0], [1, 2, 3], [4, 5]], ids=['map', 'kernels', 'norm'])
def test_frozen_tensors_and_a_gradient_without_layout(frozen: list[int], kernel: SimpleNamespace) -> None:
    """Of what needs none no gradient; a sum's gradient, expanded from one number, is made dense."""

    def grads(fused: bool) -> list[Tensor | None]:
        inputs, norms = _inputs(), _norms()
        for index in frozen:
            inputs[index].requires_grad_(False)
        norms[1].requires_grad_(False)
        _call(inputs, norms, fused).sum().backward()
        return [each.grad for each in (*inputs, *norms[0].parameters(), *norms[1].parameters())]

    torch.manual_seed(0)
    got = grads(True)
    torch.manual_seed(0)
    torch.testing.assert_close(got, grads(False))
    assert kernel.calls == ['forward', 'backward']
    assert all(got[index] is None for index in (*frozen, -1, -2))


@pytest.mark.parametrize('broken', [False, True])
@pytest.mark.parametrize('named', [False, True])
def test_backend_of_all_derivatives(
    named: bool, broken: bool, kernel: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named one and a forced one, whether or not it still is in the backward."""
    monkeypatch.setattr('mmpelk.ops.backends.calls.BACKENDS', table := Recording())
    x, weight, small, bias, *norm = inputs = _inputs()
    if broken:
        kernel.backward_result = lambda *_: _raise(RuntimeError('broken'))
    with nullcontext() if named else force_backend('fft'):
        tensors, name = BranchTensors(weight, small, bias), 'fft' if named else None
        out = training_norm.mix_and_norm(x, tensors, GRID, name, _norms(), (norm, 1e-6), x.dtype)
    assert out is not None
    torch.autograd.grad(out.sum(), inputs)
    assert set(table.used) == {'fft'}
    assert kernel.calls == ['forward', 'backward']


def test_recomputed_in_the_backward(kernel: SimpleNamespace) -> None:
    inputs, trained = _inputs(), _norms()

    def results(fused: bool) -> list[Tensor]:
        norms = copy.deepcopy(trained)
        out = checkpoint(_call, inputs, norms, fused, use_reentrant=False)
        grads = torch.autograd.grad(out.square().sum(), [*inputs, *norms[0].parameters()])
        return [*grads, *norms[1].buffers()]

    torch.testing.assert_close(results(True), results(False))
    assert kernel.calls == ['forward', 'forward', 'backward']


def test_vectors_that_come_back_with_gaps(kernel: SimpleNamespace) -> None:
    """From hooks on saved tensors; the kernels read memory."""
    inputs, norms = _inputs(), _norms()
    leaves = [*inputs, *norms[0].parameters()]
    want = torch.autograd.grad(_call(inputs, norms).square().sum(), leaves)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: torch.stack([t, t], -1), lambda t: t[..., 0]):
        out = _call(inputs, norms)
    torch.testing.assert_close(torch.autograd.grad(out, leaves, 2 * out.detach()), want)
    assert kernel.calls == ['forward', 'backward'] * 2
    assert not training_norm._refused


def test_without_a_term(kernel: SimpleNamespace) -> None:
    x, weight, small, _, *norm = _inputs()
    inputs, norms = [x, weight, small, None, *norm], _norms()

    def grads(fused: bool) -> tuple[Tensor, ...]:
        out = _call(inputs, norms, fused)  # type: ignore[arg-type]
        return torch.autograd.grad(out.square().sum(), [each for each in inputs if each is not None])

    torch.testing.assert_close(grads(True), grads(False))
    kernel.backward_result = lambda *_: _raise(RuntimeError('broken'))
    training_norm._trusted.clear()
    torch.testing.assert_close(grads(True), grads(False))
    assert kernel.calls == ['forward', 'backward'] * 2


def test_result_may_be_changed_in_place(kernel: SimpleNamespace) -> None:
    norms = _norms()

    def results(fused: bool) -> tuple[Tensor, ...]:
        inputs = _inputs()
        out = _call(inputs, norms, fused)
        out.mul_(torch.arange(8.0))
        out[:, 1:].square_()
        return torch.autograd.grad(out.sum(), [*inputs, *norms[0].parameters(), *norms[1].parameters()])

    torch.testing.assert_close(results(True), results(False))
    assert kernel.calls == ['forward', 'backward']


def test_tangents_that_arise_after_the_norms(kernel: SimpleNamespace) -> None:
    """They go through torch's operators, and so to the convolution, which refuses them, as it does without kernels."""
    norms = _norms()

    def tangents(fused: bool) -> list[Tensor | None]:
        inputs = _inputs()
        factor = forward_ad.make_dual(torch.linspace(0, 1, 8), torch.linspace(1, -1, 8))
        out = _call(inputs, norms, fused) * factor
        grads = torch.autograd.grad(out.sin().sum(), inputs)
        return [forward_ad.unpack_dual(grad).tangent for grad in grads]

    with forward_ad.dual_level():
        for fused in (True, False):
            with pytest.raises(NotImplementedError, match=r'no forward-mode derivative|with forward mode AD'):
                tangents(fused)
    assert kernel.calls == ['forward']
