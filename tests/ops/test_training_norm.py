"""The norms of a block in training: what happens where their kernels fail, and second gradients.

:mod:`triton_cases` has the kernels themselves.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mmpelk.ops import training_norm
from mmpelk.ops.backends import first_results


def _maps(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 4, 3, channels, generator=generator, dtype=torch.float64)
        .to(dtype)
        .permute(0, 3, 1, 2)
        .requires_grad_()
        for channels in (3, 3, 5)
    ]


def _norms(dtype: torch.dtype = torch.float64) -> list[nn.BatchNorm2d]:
    norms = [nn.BatchNorm2d(3, momentum=momentum, eps=eps) for momentum, eps in ((0.1, 1e-5), (0.3, 1e-2))]
    for norm in norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return [norm.to(dtype) for norm in norms]


def _call(maps: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], fused: bool = True) -> Tensor:
    large, small, others = maps
    if not fused:
        return training_norm._by_modules(large, small, others, norms)
    x = torch.cat([large, others], 1).detach()
    return training_norm.mixed_batch_norm(large, small, x, others, norms)


def _results(maps: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], fused: bool, times: int = 1) -> list[Tensor]:
    """Output, all gradients and all running statistics, after as many calls."""
    norms = copy.deepcopy(norms)
    inputs = [*maps, *(parameter for norm in norms for parameter in norm.parameters())]
    for _ in range(times):
        out = _call(maps, norms, fused)
        grads = torch.autograd.grad(out, inputs, torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
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
        large, small, x = maps
        out, stats = x[:, large.shape[1] :].double(), []
        mixed: Any = 0
        for i, each in enumerate((large, small)):
            weight, bias = (tensor.double() for tensor in parameters[2 * i : 2 * i + 2])
            of_norm = [tensor.double() for tensor in running[3 * i : 3 * i + 2]]
            mixed = mixed + torch.nn.functional.batch_norm(
                each.double(), *of_norm, weight, bias, True, momenta[i], epsilons[i]
            )
            for tensor, value in zip(running[3 * i : 3 * i + 2], of_norm, strict=True):
                tensor.copy_(value)
            running[3 * i + 2].add_(1)
            var, mean = torch.var_mean(each.double(), (0, 2, 3), unbiased=False)
            stats += [mean, (var + epsilons[i]).rsqrt(), torch.zeros_like(mean)]
        result = torch.cat([mixed, out], 1), torch.stack(stats)
        out, stats = stand_in.forward_result(*result, running)
        # A view, as the kernels' is.
        return out.to(dtype).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), stats

    def backward(
        grad: Tensor, large: Tensor, small: Tensor, stats: Tensor, weights: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        stand_in.calls.append('backward')
        of_maps, of_parameters = [], []
        for each, weight, (mean, deviation, _) in zip((large, small), weights, stats.view(2, 3, -1), strict=True):
            normed = (each - mean[:, None, None]) * deviation[:, None, None]
            of_weight, of_bias = (grad * normed).sum((0, 2, 3)), grad.sum((0, 2, 3))
            count = normed[:, 0].numel()
            factor, mean_grad = (value[:, None, None] / count for value in (of_weight, of_bias))
            of_maps.append((weight * deviation)[:, None, None] * (grad - mean_grad - normed * factor))
            of_parameters += [of_weight, of_bias]
        return stand_in.backward_result(*of_maps, *of_parameters)

    stand_in = SimpleNamespace(
        calls=[],
        forward_result=lambda *result: result[:2],
        backward_result=lambda *result: result,
        forward=forward,
        backward=backward,
        takes=lambda *_: True,
        kernel_key=lambda *_: 'key',
        pixel_step=lambda _: 1,
    )
    monkeypatch.setattr(training_norm, '_kernel', lambda: stand_in)
    monkeypatch.setattr(training_norm, '_trusted', set())
    monkeypatch.setattr(training_norm, '_refused', set())
    monkeypatch.setattr(training_norm, '_warned', set())
    return stand_in


def _raise(error: Exception) -> Any:
    raise error


def _off(index: int, by: float = 0.01, channel: int = -1) -> Callable[..., Any]:
    """A result of which one number of a tensor, the statistics among them, is wrong."""

    def result(*tensors: Any) -> Any:
        tensor = tensors[index] if index < 6 else tensors[2][index - 6]
        flat = tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor
        flat[(*[-1] * (flat.dim() - 1), channel) if flat.dim() else ()] += 1 if tensor.dtype == torch.int64 else by
        return tensors[:2] if len(tensors) == 3 else tensors

    return result


@pytest.mark.parametrize(
    ('direction', 'result', 'reason'),
    [
        ('forward', lambda *_: _raise(RuntimeError('PassManager::run failed')), 'RuntimeError: PassManager::run'),
        *(('forward', _off(index), 'its result is wrong') for index in (0, 1, 6, 7, 8, 9, 10, 11)),
        *(('forward', _off(index, channel=1), 'its result is wrong') for index in (1, 6, 7, 9, 10)),
        ('forward', lambda out, stats, _: (out * float('nan'), stats), 'its result is wrong'),
        ('backward', lambda *_: _raise(RuntimeError('PassManager::run failed')), 'RuntimeError: PassManager::run'),
        *(('backward', _off(index), 'its result is wrong') for index in range(6)),
        *(('backward', _off(index, channel=1), 'its result is wrong') for index in range(2, 6)),
    ],
)
def test_kernels_that_fail(
    direction: str, result: Any, reason: str, kernel: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and the gradients and running statistics of torch's operators, as if there had been no kernels."""
    maps, norms = _maps(), _norms()
    want = _results(maps, norms, False, times=2)
    setattr(kernel, f'{direction}_result', result)
    with caplog.at_level(logging.WARNING, 'mmpelk.ops'):
        got = _results(maps, norms, True, times=2)
    torch.testing.assert_close(got, want)
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert 'in training' in record.getMessage()
    assert kernel.calls == (['forward'] if direction == 'forward' else ['forward', 'backward', 'forward'])


def test_one_warning_for_a_dtype(kernel: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    kernel.kernel_key = lambda maps, *_: (maps[0].shape, maps[0].dtype)
    kernel.forward_result = lambda *_: _raise(RuntimeError('broken'))
    with caplog.at_level(logging.WARNING, 'mmpelk.ops'):
        for dtype, records in ((torch.float64, 1), (torch.float32, 2)):
            for rows in (3, 4):
                _call([each[:, :, :rows] for each in _maps(dtype)], _norms(dtype))
                assert len(caplog.records) == records
    assert len(kernel.calls) == 4


@pytest.mark.parametrize('by_kernel', [True, False])
def test_maps_in_half_precision_beside_a_float32_map(by_kernel: bool, kernel: SimpleNamespace) -> None:
    """As under autocast: the mixed channels lose digits, the others none; gradients have the dtype of their tensor."""
    *mixed, others = _maps(torch.float32)
    maps, norms = [*(each.detach().bfloat16().requires_grad_() for each in mixed), others], _norms(torch.float32)
    want = _results(maps, norms, False)
    if not by_kernel:
        kernel.backward_result = lambda *_: _raise(RuntimeError('broken'))
    got = _results(maps, norms, True)
    assert [each.dtype for each in got] == [each.dtype for each in want]
    assert got[0].dtype == torch.float32
    assert torch.equal(got[0][:, 3:], others)
    torch.testing.assert_close(got, want, rtol=2**-5, atol=2**-5)


@pytest.mark.parametrize('direction', ['forward', 'backward'])
def test_sums_over_a_middle_channel_that_miss_pixels(
    direction: str, kernel: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """What the corners hold agrees with such sums; torch's results are taken."""
    run, maps, norms = getattr(kernel, direction), _maps(), _norms()

    def blind(first: Any, *others: Any) -> Any:
        tensors = list(first) if direction == 'forward' else [first]
        tensors[0] = tensors[0].clone()
        tensors[0][:, 1, 1:-1, 1:-1] = 0
        return run(tensors if direction == 'forward' else tensors[0], *others)

    setattr(kernel, direction, blind)
    with caplog.at_level(logging.WARNING, 'mmpelk.ops'):
        torch.testing.assert_close(_results(maps, norms, True), _results(maps, norms, False))
    assert f'the {direction} kernel for the norms of a block in training fails' in caplog.text
    assert 'for 3 mixed channels' in caplog.text


def test_kernels_that_are_right_are_compared_once(kernel: SimpleNamespace) -> None:
    maps, norms = _maps(), _norms()
    want = _results(maps, norms, False, times=2)
    torch.testing.assert_close(_results(maps, norms, True, times=2), want)
    assert kernel.calls == ['forward', 'backward'] * 2
    assert len(training_norm._trusted) == 2
    kernel.forward_result, kernel.backward_result = _off(0, 1), _off(2, 1)
    got = _results(maps, norms, True, times=2)
    assert [torch.allclose(a, b) for a, b in zip(got[:6], want[:6], strict=True)] == [False, *[True] * 3, False, True]
    assert not training_norm._refused


def test_what_is_neither_trusted_nor_refused(kernel: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, norms = _maps(), _norms()
    want = _results(maps, norms, False)
    with monkeypatch.context() as captured:
        captured.setattr(first_results, 'is_capturing', lambda x: True)
        torch.testing.assert_close(_results(maps, norms, True), want)
    with monkeypatch.context() as other_layout:
        other_layout.setattr(kernel, 'takes', lambda *_: False)
        torch.testing.assert_close(_results(maps, norms, True), want)
    assert not kernel.calls
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        _call([each[:1, :, :1, :1] for each in maps], norms)
    kernel.forward_result = lambda *_: _raise(torch.cuda.OutOfMemoryError())
    with pytest.raises(torch.cuda.OutOfMemoryError):
        _results(maps, norms, True)
    assert not training_norm._refused
    assert not training_norm._trusted


def test_second_gradients(kernel: SimpleNamespace) -> None:
    """Those of torch's operators; the kernels compute first gradients."""
    norms = _norms()
    parameters = {f'{i}.{name}': tensor for i, norm in enumerate(norms) for name, tensor in norm.named_parameters()}
    inputs = [*_maps(), *parameters.values()]

    def call(*tensors: Tensor) -> Tensor:
        return _call(tensors[:3], norms)

    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
    assert 'backward' not in kernel.calls

    def penalty(fused: bool) -> tuple[Tensor, ...]:
        maps = inputs[:3]
        out = _call([each * each for each in maps], norms, fused)
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)  # type: ignore[arg-type, return-value]

    torch.testing.assert_close(penalty(True), penalty(False))


def test_frozen_tensors_and_a_gradient_without_layout(kernel: SimpleNamespace) -> None:
    """Of what needs none no gradient; a sum's gradient, expanded from one number, is made dense."""
    layouts = []
    kernel.pixel_step = lambda grad: layouts.append(grad.stride(1)) if grad.stride(1) == 0 else 1
    maps, norms = _maps(), _norms()
    maps[0] = maps[0].detach()
    for parameter in norms[1].parameters():
        parameter.requires_grad_(False)
    _call(maps, norms).sum().backward()
    assert layouts == [0]
    assert kernel.calls == ['forward', 'backward']
    assert maps[0].grad is norms[1].weight.grad is norms[1].bias.grad is None
    torch.testing.assert_close(norms[0].bias.grad, torch.full((3,), 24.0, dtype=torch.float64))
    torch.testing.assert_close(maps[2].grad, torch.ones_like(maps[2]))


def test_result_may_be_changed_in_place(kernel: SimpleNamespace) -> None:
    norms = _norms()

    def results(fused: bool) -> tuple[Tensor, ...]:
        maps = _maps()
        out = _call(maps, norms, fused)
        out.permute(0, 2, 3, 1).mul_(torch.arange(8.0))  # as the layer norm takes it
        out[:, 1:].square_()
        return torch.autograd.grad(out.sum(), [*maps, *norms[0].parameters(), *norms[1].parameters()])

    torch.testing.assert_close(results(True), results(False))
    assert kernel.calls == ['forward', 'backward']


def test_tangents_that_arise_after_the_norms(kernel: SimpleNamespace) -> None:
    """Those of gradients are torch's: the kernels know of none."""
    norms = _norms()

    def tangents(fused: bool) -> list[Tensor | None]:
        maps = _maps()
        factor = forward_ad.make_dual(torch.linspace(0, 1, 8), torch.linspace(1, -1, 8))
        out = _call(maps, norms, fused) * factor[:, None, None]
        grads = torch.autograd.grad(out.sin().sum(), [*maps, *norms[0].parameters(), *norms[1].parameters()])
        return [forward_ad.unpack_dual(grad).tangent for grad in grads]

    with forward_ad.dual_level():
        got, want = tangents(True), tangents(False)
    assert all(each is not None for each in want)
    torch.testing.assert_close(got, want)
    assert kernel.calls == ['forward']
