"""Every backend against the literal float64 reference: output and every gradient."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # no public alias
from torch.utils.flop_counter import FlopCounterMode

from mmpelk.ops import available_backends, expand_kernel, force_backend, peripheral_conv2d, sharing_grid, workspace
from mmpelk.ops.backends import BACKENDS as BACKEND_TABLE
from mmpelk.ops.backends import fastest_backend
from mmpelk.ops.custom_op import HAS_CUSTOM_OP
from mmpelk.ops.reference import peripheral_conv2d_reference
from mmpelk.ops.sharing_grid import mirror_half_grid

BACKENDS = ['dense', 'fft', 'matmul']

needs_custom_op = pytest.mark.skipif(not HAS_CUSTOM_OP, reason='torch.library.custom_op came with torch 2.4')
needs_half_on_cpu = pytest.mark.skipif(not HAS_CUSTOM_OP, reason='older torch has no float16 convolution on a CPU')

# (grid, height, width): maps smaller than the kernel and larger, odd and even, of one pixel, one row, one column.
SHAPES = {
    '13 on 9x12': (sharing_grid(13, 5), 9, 12),
    '13 on 5x4': (sharing_grid(13, 5), 5, 4),
    '31 on 7x20': (sharing_grid(31, 5), 7, 20),
    '51 on 8x8': (sharing_grid(51, 5), 8, 8),
    '101 on 12x11': (sharing_grid(101, 7), 12, 11),
    '7 on 1x1': (sharing_grid(7, 3), 1, 1),
    '9 on 1x13': (sharing_grid(9, 3), 1, 13),
    '9 on 70x1': (sharing_grid(9, 3), 70, 1),
    '5 on 3x150': (sharing_grid(5, 3), 3, 150),
    'dense 5 on 6x9': (sharing_grid(5, 5), 6, 9),
    '1 on 4x4': ((1,), 4, 4),
    'explicit [2,1,2] on 6x5': ((2, 1, 2), 6, 5),
    'explicit rim-fine on 20x9': (mirror_half_grid([1, 1, 2, 4, 8, 1]), 20, 9),
    'no grid of the rule, asymmetric': ((3, 1, 1, 2), 8, 7),
}


def _inputs(grid: Sequence[int], height: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    shapes = [(2, 3, height, width), (3, 1, len(grid), len(grid)), (3, height, width)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def _output_and_gradients(function, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def _relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-300)).item()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('shape', SHAPES)
def test_matches_the_reference(shape: str, backend: str) -> None:
    grid, height, width = SHAPES[shape]
    inputs = _inputs(grid, height, width)
    grad = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = _output_and_gradients(lambda x, w, b: peripheral_conv2d(x, w, grid, b, backend=backend), inputs, grad)
    want = _output_and_gradients(lambda x, w, b: peripheral_conv2d_reference(x, w, grid, b), inputs, grad)
    for name, ours, reference in zip(('output', 'x', 'weight', 'bias'), got, want, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-11, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize('backend', BACKENDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_matches_the_reference_anywhere(backend: str, data: st.DataObject) -> None:
    half = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    grid = mirror_half_grid([*half, data.draw(st.sampled_from([1, 3]))])
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    inputs = _inputs(grid, height, width)
    grad = torch.ones(2, 3, height, width, dtype=torch.float64)
    got = _output_and_gradients(lambda x, w, b: peripheral_conv2d(x, w, grid, b, backend=backend), inputs, grad)
    want = _output_and_gradients(lambda x, w, b: peripheral_conv2d_reference(x, w, grid, b), inputs, grad)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('mean', [0, 3])
@pytest.mark.parametrize('backend', ['fft', 'matmul'])
@pytest.mark.parametrize(
    ('dtype', 'kernel_size', 'size'),
    [
        pytest.param(torch.float32, 51, 56, id='float32-51-56'),
        pytest.param(torch.float32, 47, 14, id='float32-47-14'),
        pytest.param(torch.bfloat16, 31, 20, id='bfloat16-31-20'),
        pytest.param(torch.float16, 31, 20, id='float16-31-20', marks=needs_half_on_cpu),
    ],
)
def test_no_less_exact_than_dense(backend: str, dtype: torch.dtype, kernel_size: int, size: int, mean: float) -> None:
    """The error against float64 is at most 1.5 times that of the dense kernel in the same dtype."""
    grid = sharing_grid(kernel_size, 5)
    x, weight, bias = _inputs(grid, size, size, dtype)
    x = x + mean
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(dtype) + mean

    def errors(name: str) -> list[float]:
        got = _output_and_gradients(lambda *args: peripheral_conv2d(args[0], args[1], grid, args[2], backend=name),
                                    (x, weight, bias), grad)  # fmt: skip
        return [_relative_error(ours, reference) for ours, reference in zip(got, want, strict=True)]

    want = _output_and_gradients(
        lambda *args: peripheral_conv2d(args[0], args[1], grid, args[2], backend='dense'),
        [tensor.double() for tensor in (x, weight, bias)],
        grad.double(),
    )
    for name, ours, dense in zip(('output', 'x', 'weight', 'bias'), errors(backend), errors('dense'), strict=True):
        assert ours <= 1.5 * dense, f'{name}: {ours:.2e} against {dense:.2e} of dense'


def _errors_against_dense(backend: str | None, x: Tensor, weight: Tensor, grid: Sequence[int], grad: Tensor):
    """Errors of output and gradients against float64, of a backend and of dense in the inputs' dtype."""

    def run(name: str | None, *inputs: Tensor) -> list[Tensor]:
        return _output_and_gradients(lambda x, w: peripheral_conv2d(x, w, grid, backend=name), inputs, grad)

    want = run('dense', x.double(), weight.double())
    for name in (backend, 'dense'):
        got = run(name, x, weight)
        yield [_relative_error(ours, reference) for ours, reference in zip(got, want, strict=True)]


@pytest.mark.parametrize('backend', [None, 'fft', 'matmul'], ids=['chosen', 'fft', 'matmul'])
@given(
    kernel_size=st.integers(8, 50).map(lambda n: 2 * n - 1),
    height=st.integers(6, 40),
    width=st.integers(6, 40),
    mean=st.sampled_from([0, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_no_less_exact_than_dense_anywhere(
    backend: str | None, kernel_size: int, height: int, width: int, mean: float, seed: int
) -> None:
    """From K = 15 on, where dense is not the choice; channels enough that the norms do not hang on a few numbers."""
    grid = sharing_grid(kernel_size, 5)
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(2, 8, height, width, generator=generator) + mean for _ in range(2))
    weight = torch.randn(8, 1, len(grid), len(grid), generator=generator)
    ours, dense = _errors_against_dense(backend, x, weight, grid, grad)
    for name, error, bound in zip(('output', 'x', 'weight'), ours, dense, strict=True):
        assert error <= 1.5 * bound, f'{name}: {error:.2e} against {bound:.2e} of dense'


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('bias_dims', [1, 3])
def test_gradcheck_twice(backend: str, bias_dims: int) -> None:
    grid = sharing_grid(9, 3)
    x, weight, bias = _inputs(grid, 5, 6)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias if bias_dims == 3 else bias[:, 0, 0].clone())]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return peripheral_conv2d(x, weight, grid, bias, backend=backend)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


LAYOUTS = {
    'channel slice': lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    'channels last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'channel slice of channels last': lambda x: torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[
        :, : x.shape[1]
    ],
    'transposed': lambda x: x.mT.contiguous().mT,
    'every second column': lambda x: x.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('backend', BACKENDS)
def test_any_strides(backend: str, layout: str) -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = _inputs(grid, 10, 9)
    strided = LAYOUTS[layout](x)
    assert torch.equal(strided, x)
    grad = LAYOUTS[layout](torch.ones_like(x))
    call = lambda x, w: peripheral_conv2d(x, w, grid, backend=backend)  # noqa: E731
    torch.testing.assert_close(
        _output_and_gradients(call, (strided, weight), grad), _output_and_gradients(call, (x, weight), grad)
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_small_workspace_changes_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sharing_grid(13, 5)
    x, weight, bias = _inputs(grid, 10, 9)
    call = lambda *args: peripheral_conv2d(args[0], args[1], grid, args[2], backend=backend)  # noqa: E731
    want = _output_and_gradients(call, (x, weight, bias), torch.ones_like(x))
    monkeypatch.setattr(workspace, '_limit_mb', 1e-4)
    torch.testing.assert_close(_output_and_gradients(call, (x, weight, bias), torch.ones_like(x)), want)


class _LargestStorage(TorchDispatchMode):
    """Bytes of the largest storage that is made inside, beside the input's and the output's."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.shape, self.known, self.bytes = x.shape, {x.untyped_storage().data_ptr()}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            storage = out.untyped_storage()
            if out.shape == self.shape:
                self.known.add(storage.data_ptr())
            elif storage.data_ptr() not in self.known:
                self.bytes = max(self.bytes, storage.nbytes())
        return out


@pytest.mark.parametrize('backend', ['fft', 'matmul'])
def test_workspace_is_bounded(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images and channels there are."""
    monkeypatch.setattr(workspace, '_limit_mb', 1)
    grid = sharing_grid(31, 5)
    x, weight = torch.randn(32, 16, 40, 40), torch.randn(16, 1, len(grid), len(grid))
    with _LargestStorage(x) as largest:
        BACKEND_TABLE[backend].forward(x, weight, None, grid)
        BACKEND_TABLE[backend].weight_grad(x, x, grid)
    assert 0 < largest.bytes <= 2**20


@pytest.mark.parametrize(('text', 'megabytes'), [('0.5', 0.5), ('', 64)])
def test_workspace_from_the_environment(text: str, megabytes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMPELK_WORKSPACE_MB', text)
    assert workspace.workspace_limit('cpu') == megabytes * 2**20


@pytest.mark.parametrize('text', ['much', '0', '-1'])
def test_workspace_from_the_environment_refuses(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMPELK_WORKSPACE_MB', text)
    with pytest.raises(ValueError, match='MMPELK_WORKSPACE_MB'):
        workspace.workspace_limit('cpu')


def test_equals_conv2d_with_the_expanded_kernel() -> None:
    grid = sharing_grid(31, 5)
    x, weight, bias = _inputs(grid, 17, 18)
    want = F.conv2d(x, expand_kernel(weight, grid), bias[:, 0, 0], padding=15, groups=3)
    torch.testing.assert_close(peripheral_conv2d(x, weight, grid, bias[:, 0, 0]), want)


@needs_custom_op
@pytest.mark.parametrize('backend', [None, *BACKENDS])
def test_one_operator(backend: str | None) -> None:
    grid = list(sharing_grid(13, 5))
    x, weight, bias = (tensor.requires_grad_() for tensor in _inputs(grid, 10, 9))
    torch.library.opcheck(torch.ops.mmpelk.peripheral_conv2d, (x, weight, bias, grid, backend))
    torch.library.opcheck(torch.ops.mmpelk.peripheral_conv2d, (x, weight, None, grid, backend))
    torch.library.opcheck(torch.ops.mmpelk.peripheral_conv2d_weight_grad, (x, x.detach().clone(), grid, backend))


@needs_custom_op
def test_compiles_to_one_graph() -> None:
    grid = sharing_grid(13, 5)
    x, weight, bias = _inputs(grid, 10, 9)
    eager = lambda x, w, b: peripheral_conv2d(x, w, grid, b).relu()  # noqa: E731
    compiled = torch.compile(eager, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(
        _output_and_gradients(compiled, (x, weight, bias), torch.ones_like(x)),
        _output_and_gradients(eager, (x, weight, bias), torch.ones_like(x)),
    )


@needs_custom_op
def test_flop_counter_sees_the_dense_form() -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = (tensor.requires_grad_() for tensor in _inputs(grid, 10, 9))
    with FlopCounterMode(display=False) as counter:
        peripheral_conv2d(x, weight, grid).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * x.numel() * 13**2


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_half_on_cpu)])
@pytest.mark.parametrize('backend', [None, *BACKENDS])
def test_autocast_casts_as_conv2d_does(backend: str | None, dtype: torch.dtype) -> None:
    """And no further: the result is that of half-precision inputs without autocast."""
    grid = sharing_grid(31, 5)
    inputs = _inputs(grid, 10, 9, torch.float32)
    call = lambda *args: peripheral_conv2d(args[0], args[1], grid, args[2], backend=backend)  # noqa: E731
    want = _output_and_gradients(call, [tensor.to(dtype) for tensor in inputs], torch.ones_like(inputs[0]))
    with torch.autocast('cpu', dtype):
        got = _output_and_gradients(call, inputs, torch.ones_like(inputs[0]))
        assert F.conv2d(inputs[0], expand_kernel(inputs[1], grid), padding=15, groups=3).dtype == dtype
    assert got[0].dtype == dtype
    assert [gradient.dtype for gradient in got[1:]] == [torch.float32] * 3
    torch.testing.assert_close(got, [want[0], *(gradient.float() for gradient in want[1:])], rtol=0, atol=0)


@needs_custom_op
def test_the_operator_itself_has_the_autocast_rule() -> None:
    grid = list(sharing_grid(31, 5))
    x, weight, bias = _inputs(grid, 10, 9, torch.float32)
    for backend in BACKENDS:
        with torch.autocast('cpu', torch.bfloat16):
            out = torch.ops.mmpelk.peripheral_conv2d(x, weight, bias, grid, backend)
        half = (tensor.bfloat16() for tensor in (x, weight, bias))
        assert torch.equal(out, torch.ops.mmpelk.peripheral_conv2d(*half, grid, backend))


@pytest.mark.parametrize('backend', ['fft', 'matmul'])
def test_keeps_no_more_than_its_inputs_for_the_backward(backend: str) -> None:
    saved: list[Tensor] = []
    grid = sharing_grid(31, 5)
    x, weight, _ = (tensor.requires_grad_() for tensor in _inputs(grid, 20, 20))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        peripheral_conv2d(x, weight, grid, backend=backend)
    assert {tensor.data_ptr() for tensor in saved} <= {x.data_ptr(), weight.data_ptr()}


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_non_finite_values_stay_in_their_plane(bad: float) -> None:
    """The fast backends spread them over the plane that holds them, as documented, and no further."""
    grid = sharing_grid(13, 5)
    x, weight, _ = _inputs(grid, 40, 40)
    x[0, 1, 20, 20] = bad
    for backend in BACKENDS:
        finite = peripheral_conv2d(x, weight, grid, backend=backend).isfinite()
        assert not finite[0, 1, 20, 20]
        finite[0, 1] = True
        assert finite.all()
    dense = peripheral_conv2d(x, weight, grid, backend='dense').isfinite()
    assert dense[0, 1, 0, 0]


def test_empty_batch() -> None:
    grid = sharing_grid(13, 5)
    _, weight, _ = _inputs(grid, 10, 9)
    for backend in BACKENDS:
        assert peripheral_conv2d(weight.new_zeros(0, 3, 10, 9), weight, grid, backend=backend).shape == (0, 3, 10, 9)


@pytest.mark.parametrize('backend', BACKENDS)
def test_forcing_a_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = _inputs(grid, 10, 9)
    used: list[str] = []
    monkeypatch.setattr('mmpelk.ops.custom_op.BACKENDS', _recording(used))
    with force_backend(backend):
        peripheral_conv2d(x, weight, grid)
        peripheral_conv2d(x, weight, grid, backend='dense')
    assert used == [backend, 'dense']


def test_the_choice_is_said_once_per_shape(caplog: pytest.LogCaptureFixture) -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = _inputs(grid, 11, 23)
    with caplog.at_level('DEBUG', 'mmpelk.ops'):
        for _ in range(3):
            peripheral_conv2d(x, weight.requires_grad_(), grid).sum().backward()
    said = [record.getMessage() for record in caplog.records if '11, 23' in record.getMessage()]
    assert len(said) == 2, said
    assert (
        said[0] == f'convolution of {tuple(x.shape)} {x.dtype} on cpu with K = 13: backend {fastest_backend(x, grid)!r}'
    )
    assert said[1].startswith('gradient of the weight of')


def _recording(used: list[str]):
    class Recording(dict):
        def __getitem__(self, name: str):
            used.append(name)
            return BACKEND_TABLE[name]

    return Recording()


@pytest.mark.parametrize(
    ('size', 'kernel_size', 'dtype', 'output', 'weight_grad'),
    [
        (56, 51, torch.float32, 'fft', 'fft'),
        (28, 49, torch.float32, 'fft', 'fft'),
        (28, 15, torch.float32, 'dense', 'fft'),
        (14, 47, torch.float32, 'dense', 'fft'),
        (14, 47, torch.bfloat16, 'matmul', 'fft'),
        (14, 47, torch.float64, 'matmul', 'fft'),
        (7, 13, torch.float32, 'dense', 'fft'),
        (128, 13, torch.bfloat16, 'dense', 'fft'),
        (56, 13, torch.float64, 'fft', 'fft'),
        (56, 5, torch.float32, 'dense', 'dense'),
    ],
)
def test_choice_on_a_cpu(size: int, kernel_size: int, dtype: torch.dtype, output: str, weight_grad: str) -> None:
    x, grid = torch.empty(1, 1, size, size, dtype=dtype), sharing_grid(kernel_size, 1)
    assert fastest_backend(x, grid) == output
    assert fastest_backend(x, grid, weight_grad=True) == weight_grad
    assert {'dense', 'fft', 'matmul'} <= set(available_backends())


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
        BACKEND_TABLE['triton'], unavailable_reason=lambda: unavailable, unsupported_reason=lambda *args: unsupported
    )
    monkeypatch.setitem(BACKEND_TABLE, 'triton', stub)
    x = SimpleNamespace(is_cuda=True, dtype=torch.float32, shape=(1, 1, 56, 56))
    for weight_grad in (False, True):
        assert fastest_backend(x, sharing_grid(kernel_size), weight_grad=weight_grad) == choice


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(sharing_grid=(2, 2, 2)), 'odd sum'),
        (dict(sharing_grid=()), 'odd sum'),
        (dict(sharing_grid=(2, 1, 2)), 'a grid of 3 rings'),
        (dict(x=torch.zeros(2, 4, 6, 6)), 'weight must be'),
        (dict(x=torch.zeros(2, 3, 6, 6, dtype=torch.int64)), 'floating-point'),
        (dict(x=torch.zeros(3, 6, 6)), 'floating-point tensor'),
        (dict(bias=torch.zeros(4)), 'bias must be'),
        (dict(weight=torch.zeros(3, 1, 5, 5, dtype=torch.float64)), 'must agree'),
        (dict(backend='magic'), 'known: dense'),
    ],
    ids=['even', 'empty', 'rings', 'channels', 'integers', 'three dims', 'bias', 'dtype', 'backend'],
)
def test_refuses(change: dict, message: str) -> None:
    good = dict(x=torch.zeros(2, 3, 6, 6), weight=torch.zeros(3, 1, 5, 5), sharing_grid=(1,) * 5)
    with pytest.raises(ValueError, match=message):
        peripheral_conv2d(**(good | change))
