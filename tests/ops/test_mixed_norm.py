"""The end of a block's mixer: what happens where its kernel fails. :mod:`triton_cases` has the kernel itself."""

import functools
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from mmpelk.ops import force_backend, mixed_norm, training_norm
from mmpelk.ops.backends import BACKENDS, Backend, first_results, triton
from mmpelk.ops.branches import BranchTensors


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator) + 0.5

    large, small, x = (
        draw(2, channels, 5, 4).to(dtype).contiguous(memory_format=torch.channels_last) for channels in (3, 3, 7)
    )
    norms = [([draw(3) for _ in range(4)], eps) for eps in (0.1, 0.01)]
    return large, small, x, norms, ([draw(7), draw(7)], 1e-3)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In the place of the kernel, right until a test breaks it: ``result`` is called with torch's, in float64."""

    def run(*arguments: Any) -> Tensor:
        stand_in.calls += 1
        *inputs, dtype = arguments
        large, small, x, norms, norm = inputs
        norms = [([tensor.double() for tensor in tensors], eps) for tensors, eps in norms]
        maps = [each.double() for each in (large, small, x)]
        exact = mixed_norm._by_operators(*maps, norms, ([tensor.double() for tensor in norm[0]], norm[1]))
        return stand_in.result(exact).to(dtype)

    stand_in = SimpleNamespace(
        calls=0, result=lambda exact: exact, mixed_norm=run, takes=lambda *_: True, kernel_key=lambda *_: 'key'
    )
    monkeypatch.setattr(mixed_norm, '_kernel', lambda: stand_in)
    monkeypatch.setattr(mixed_norm, '_trusted', set())
    monkeypatch.setattr(mixed_norm, '_refused', set())
    return stand_in


def _raise(error: Exception) -> Any:
    raise error


def _one_channel_off(exact: Tensor) -> Tensor:
    exact[..., 4] = exact[..., 5]
    return exact


def _one_number_off(index: int, exact: Tensor) -> Tensor:
    exact[index, index, index, index] += 1
    return exact


@pytest.mark.parametrize(
    ('result', 'reason'),
    [
        *((functools.partial(_one_number_off, index), 'its result is wrong') for index in (0, -1)),
        (lambda exact: _raise(RuntimeError('PassManager::run failed')), 'RuntimeError: PassManager::run failed'),
        (_one_channel_off, 'its result is wrong'),
        (lambda exact: exact * float('nan'), 'its result is wrong'),
    ],
    ids=['first-number', 'last-number', 'raises', 'one-channel-wrong', 'nan'],
)
def test_a_kernel_that_fails(
    result: Any, reason: str, kernel: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = _inputs(torch.bfloat16)
    want = mixed_norm._by_operators(*inputs)
    kernel.result = result
    with caplog.at_level(logging.WARNING, 'mmpelk.ops'):
        got = mixed_norm.mixed_norm(*inputs, torch.float32)
    torch.testing.assert_close(got, want.float(), rtol=0, atol=0)
    assert len(caplog.records) == 1
    assert reason in caplog.text
    assert mixed_norm._refused == {(inputs[2].device, inputs[2].dtype)}


def test_the_operators_are_the_formula() -> None:
    large, small, x, norms, (vectors, eps) = _inputs(torch.float64)
    norms = [([tensor.double() for tensor in tensors], eps) for tensors, eps in norms]
    vectors = [tensor.double() for tensor in vectors]
    for maps in ((large, small), (large,), ()):
        mixed = 0 if maps else large
        for each, (of_norm, of_eps) in zip(maps, norms, strict=False):
            mean, var, weight, bias = (tensor[:, None, None] for tensor in of_norm)
            mixed = mixed + (each - mean) / (var + of_eps).sqrt() * weight + bias
        out = torch.cat([mixed, x[:, 3:]], 1).permute(0, 2, 3, 1)
        var, mean = torch.var_mean(out, -1, unbiased=False, keepdim=True)
        want = (out - mean) / (var + eps).sqrt() * vectors[0] + vectors[1]
        second = maps[1] if len(maps) == 2 else None
        got = mixed_norm._by_operators(large, second, x, norms[: len(maps)], (vectors, eps))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('error', [ModuleNotFoundError, AttributeError, OSError], ids=lambda error: error.__name__)
def test_kernels_that_cannot_be_imported(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a package that is not whole raises."""
    first_results.import_kernels.cache_clear()
    inputs = _inputs()
    batch_norms, dtype = [torch.nn.BatchNorm2d(3) for _ in range(2)], torch.float32
    tensors = BranchTensors(torch.ones(3, 1, 1, 1), torch.ones(3, 1, 1, 1), None)
    monkeypatch.setattr(first_results, 'import_module', lambda name: _raise(error(name)))
    with caplog.at_level(logging.WARNING, 'mmpelk.ops'):
        for _ in range(2):
            assert torch.equal(mixed_norm.mixed_norm(*inputs, torch.float32), mixed_norm._by_operators(*inputs))
            assert training_norm.mix_and_norm(inputs[2], tensors, [1], None, batch_norms, inputs[4], dtype) is None
    first_results.import_kernels.cache_clear()
    assert len(caplog.records) == 2
    assert caplog.text.count(f'Reason: {error.__name__}') == 2


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_kernel_that_is_right_is_compared_once(dtype: torch.dtype, kernel: SimpleNamespace) -> None:
    inputs = _inputs(dtype)
    maps, norms = inputs[:3], inputs[3:]
    want = mixed_norm._by_operators(*(each.float() for each in maps), *norms).to(dtype)
    torch.testing.assert_close(mixed_norm.mixed_norm(*inputs, dtype), want, rtol=0.02, atol=0.02)
    assert len(mixed_norm._trusted) == 1
    kernel.result = _one_channel_off
    assert not torch.equal(mixed_norm.mixed_norm(*inputs, dtype)[..., 4], want[..., 4])
    assert not mixed_norm._refused


@pytest.mark.parametrize('spread', [1e-3, 1, 1e3])
def test_what_sums_in_float32_may_be_off(spread: float, kernel: SimpleNamespace) -> None:
    """Relative to their largest term, which the layer norm divides by the spread, under autocast, too."""
    large, small, x, norms, norm = _inputs()
    norms = [([mean, var, spread * weight, 1 + spread * bias], eps) for (mean, var, weight, bias), eps in norms]
    inputs = large, small, (2 + spread * x).contiguous(memory_format=torch.channels_last), norms, (norm[0], 1e-12)
    kernel.mixed_norm = lambda *arguments: _rounded(*arguments[:5])
    with torch.autocast('cpu', torch.bfloat16):
        mixed_norm.mixed_norm(*inputs, torch.float32)
    assert not mixed_norm._refused
    assert mixed_norm._trusted


def _rounded(*inputs: Any) -> Tensor:
    with torch.autocast('cpu', enabled=False):
        return mixed_norm._by_operators(*inputs) * (1 + 2.0**-22)


def test_a_kernel_for_another_result_is_compared_by_itself(kernel: SimpleNamespace) -> None:
    kernel.kernel_key = lambda *arguments: arguments[5:]
    for count, dtype in enumerate((torch.float32, torch.bfloat16), 1):
        mixed_norm.mixed_norm(*_inputs(), dtype)
        assert len(mixed_norm._trusted) == count


def test_what_is_neither_trusted_nor_refused(kernel: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs()
    want = mixed_norm._by_operators(*inputs)
    with monkeypatch.context() as captured:
        captured.setattr(first_results, 'is_capturing', lambda x: True)
        assert torch.equal(mixed_norm.mixed_norm(*inputs, torch.float32), want)
    with monkeypatch.context() as other_layout:
        other_layout.setattr(kernel, 'takes', lambda *_: False)
        assert torch.equal(mixed_norm.mixed_norm(*inputs, torch.float16), want.half())
    assert kernel.calls == 0
    beyond = *inputs[:4], ([1e6 * inputs[4][0][0], inputs[4][0][1]], 1e-3)
    assert mixed_norm.mixed_norm(*beyond, torch.float16).isinf().any()
    assert kernel.calls == 1
    kernel.result = lambda exact: _raise(torch.cuda.OutOfMemoryError())
    with pytest.raises(torch.cuda.OutOfMemoryError):
        mixed_norm.mixed_norm(*inputs, torch.float32)
    assert not mixed_norm._refused
    assert not mixed_norm._trusted


def test_where_it_is_fused(kernel: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    x = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device=torch.device('cuda', 0), numel=lambda: 1)
    x.is_neg = lambda: False
    gpu: Any = x
    monkeypatch.setitem(BACKENDS, 'triton', Backend('triton', lambda: None, lambda: None))  # type: ignore[arg-type]
    monkeypatch.setattr(triton, 'capability', lambda device: (9, 0))
    assert not mixed_norm.is_fused(gpu)  # gradients are on
    with torch.no_grad():
        assert mixed_norm.is_fused(gpu)
        assert not mixed_norm.is_fused(torch.ones(1, 1, 1, 1))
        x.is_neg = lambda: True
        assert not mixed_norm.is_fused(gpu)
        x.is_neg, x.numel = (lambda: False), lambda: 0
        assert not mixed_norm.is_fused(gpu)
        x.numel = lambda: 1
        assert not mixed_norm.is_fused(gpu, training=True), 'gradients are off'
        with force_backend('triton'):
            assert mixed_norm.is_fused(gpu)
        with FlopCounterMode(display=False):
            assert not mixed_norm.is_fused(gpu)
        with force_backend('fft'):
            assert not mixed_norm.is_fused(gpu)
        with forward_ad.dual_level():  # any tensor may have a tangent
            assert not mixed_norm.is_fused(gpu)
        with monkeypatch.context() as missing:
            missing.setitem(BACKENDS, 'triton', replace(BACKENDS['triton'], unavailable_reason=lambda: 'no triton'))
            assert not mixed_norm.is_fused(gpu)
        x.dtype = torch.float64
        assert not mixed_norm.is_fused(gpu)
        x.dtype = torch.float16
        mixed_norm._refuse(gpu, 'for a test')
        assert not mixed_norm.is_fused(gpu)
    assert mixed_norm.is_fused(gpu, training=True), 'by kernels that are refused by themselves'
