"""Every backend against the literal float64 reference: output and every gradient."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmpelk.ops import peripheral_conv2d, sharing_grid
from mmpelk.ops.prepared import prepare
from mmpelk.ops.reference import peripheral_conv2d_reference
from mmpelk.ops.sharing_grid import mirror_half_grid
from tests.ops.inputs import (
    BACKENDS,
    FAST,
    LAYOUTS,
    check_no_less_exact_than_dense,
    convolve,
    make_inputs,
    needs_half_on_cpu,
    output_and_gradients,
)

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


def _check_against_the_reference(backend: str, grid: Sequence[int], height: int, width: int) -> None:
    inputs = make_inputs(grid, height, width)
    grad = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = output_and_gradients(convolve(grid, backend), inputs, grad)
    want = output_and_gradients(lambda x, w, b: peripheral_conv2d_reference(x, w, grid, b), inputs, grad)
    for name, ours, reference in zip(('output', 'x', 'weight', 'bias'), got, want, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-11, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('shape', SHAPES)
def test_matches_the_reference(shape: str, backend: str) -> None:
    _check_against_the_reference(backend, *SHAPES[shape])


@pytest.mark.parametrize('backend', BACKENDS)
@given(
    half=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    centre=st.sampled_from([1, 3]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
)
@settings(max_examples=25)
def test_matches_the_reference_anywhere(backend: str, half: list[int], centre: int, height: int, width: int) -> None:
    _check_against_the_reference(backend, mirror_half_grid([*half, centre]), height, width)


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_number_per_channel_as_bias(backend: str) -> None:
    grid = sharing_grid(13, 5)
    x, weight, bias = make_inputs(grid, 9, 12)
    got, want = (
        output_and_gradients(function, [x, weight, bias[:, 0, 0]], x)
        for function in (
            convolve(grid, backend),
            lambda x, w, b: peripheral_conv2d_reference(x, w, grid, b[:, None, None].expand(x.shape[1:])),
        )
    )
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('mean', [0, 3])
@pytest.mark.parametrize(
    ('dtype', 'kernel_size', 'size'),
    [
        pytest.param(torch.float32, 51, 56, id='float32-51-56'),
        pytest.param(torch.float32, 47, 14, id='float32-47-14'),
        pytest.param(torch.bfloat16, 31, 20, id='bfloat16-31-20'),
        pytest.param(torch.float16, 31, 20, id='float16-31-20', marks=needs_half_on_cpu),
    ],
)
def test_no_less_exact_than_dense(dtype: torch.dtype, kernel_size: int, size: int, mean: float) -> None:
    grid = sharing_grid(kernel_size, 5)
    x, weight, bias = make_inputs(grid, size, size, dtype)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(dtype) + mean
    _check_fast_backends(grid, [x + mean, weight, bias], grad)


def _check_fast_backends(grid: Sequence[int], inputs: Sequence[Tensor], grad: Tensor) -> None:
    exact = output_and_gradients(convolve(grid, 'dense'), [tensor.double() for tensor in inputs], grad.double())
    check_no_less_exact_than_dense([None, *FAST], grid, inputs, grad, exact)


@given(
    kernel_size=st.integers(8, 50).map(lambda n: 2 * n - 1),
    height=st.integers(6, 30),
    width=st.integers(6, 30),
    mean=st.sampled_from([0, 3]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 99),
)
@settings(max_examples=10)
def test_no_less_exact_than_dense_anywhere(
    kernel_size: int, height: int, width: int, mean: float, layout: torch.memory_format, seed: int
) -> None:
    """From K = 15 on, where dense is not the choice; channels enough that the norms do not hang on a few numbers."""
    grid = sharing_grid(kernel_size, 5)
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(2, 8, height, width, generator=generator) + mean for _ in range(2))
    x, grad = (tensor.contiguous(memory_format=layout) for tensor in (x, grad))
    weight = torch.randn(8, 1, len(grid), len(grid), generator=generator)
    _check_fast_backends(grid, [x, weight], grad)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('bias_dims', [1, 3])
def test_second_derivatives(backend: str, bias_dims: int) -> None:
    grid = sharing_grid(9, 3)
    x, weight, bias = make_inputs(grid, 5, 6)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias if bias_dims == 3 else bias[:, 0, 0].clone())]
    # fast_mode: one random direction per argument instead of one pass per number, of which there are hundreds.
    assert torch.autograd.gradgradcheck(convolve(grid, backend), inputs, fast_mode=True)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('backend', BACKENDS)
def test_any_strides(backend: str, layout: str) -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 10, 9)
    strided = LAYOUTS[layout](x)
    assert torch.equal(strided, x)
    grad = LAYOUTS[layout](torch.ones_like(x))
    got = output_and_gradients(convolve(grid, backend), (strided, weight), grad)
    native = F.conv2d(strided, torch.zeros(3, 1, 1, 1, dtype=x.dtype), groups=3)
    # The memory format of conv2d's result, which keeps the input's; that of the input's gradient follows grad's.
    assert [tensor.stride() for tensor in got[:2]] == [native.stride()] * 2
    torch.testing.assert_close(got, output_and_gradients(convolve(grid, backend), (x, weight), grad))


def test_output_is_contiguous_where_the_dense_kernel_works_channels_last() -> None:
    grid = sharing_grid(31, 5)
    x, weight, _ = make_inputs(grid, 14, 14, torch.float32)
    assert peripheral_conv2d(x, weight, grid, backend='dense').is_contiguous()


@pytest.mark.parametrize('bias_dims', [0, 1, 3])
@pytest.mark.parametrize('channels', [16, 21])
@pytest.mark.parametrize('layout', ['contiguous', 'channels last'])
def test_channels_that_dense_fills_up(layout: str, channels: int, bias_dims: int) -> None:
    """To vectors of 16, for torch's kernels for channels last; also with a kernel that is prepared."""
    grid = sharing_grid(15, 5)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator)
        for shape in ((2, channels, 8, 7), (channels, 1, len(grid), len(grid)), (channels, 8, 7))
    )
    x, added = LAYOUTS[layout](x), {0: None, 1: bias[:, 0, 0], 3: bias}[bias_dims]
    want = peripheral_conv2d_reference(x, weight, grid, added).float()
    torch.testing.assert_close(peripheral_conv2d(x, weight, grid, added, backend='dense'), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prepare(x, weight, grid, added, 'dense')(x), want, rtol=1e-4, atol=1e-4)


def test_fft_of_a_small_map_is_rounded_once() -> None:
    """Dense sums few terms there, and float32 transforms would be less exact."""
    grid = sharing_grid(31, 5)
    x, weight, bias = make_inputs(grid, 15, 15, torch.float32)
    want = peripheral_conv2d(x.double(), weight.double(), grid, bias.double(), backend='fft')
    assert torch.equal(peripheral_conv2d(x, weight, grid, bias, backend='fft'), want.float())


@pytest.mark.parametrize('bias_dims', [1, 3])
@pytest.mark.parametrize('size', [20, 40])
@pytest.mark.parametrize('backend', FAST)
def test_numbers_of_16_bits_are_rounded_once(backend: str, size: int, bias_dims: int) -> None:
    """The result's, whatever the bias is: sums are in float32."""
    grid = sharing_grid(31, 5)
    x, weight, bias = make_inputs(grid, size, size, torch.bfloat16)
    bias = 100 * (bias if bias_dims == 3 else bias[:, 0, 0])
    want = peripheral_conv2d(x.float(), weight.float(), grid, bias.float(), backend=backend)
    assert torch.equal(peripheral_conv2d(x, weight, grid, bias, backend=backend), want.bfloat16())


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_non_finite_values_stay_in_their_plane(bad: float) -> None:
    """The fast backends spread them over the plane that holds them, as documented, and no further."""
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 40, 40)
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
    _, weight, _ = make_inputs(grid, 10, 9)
    for backend in BACKENDS:
        assert peripheral_conv2d(weight.new_zeros(0, 3, 10, 9), weight, grid, backend=backend).shape == (0, 3, 10, 9)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(sharing_grid=(2, 2, 2)), 'odd sum'),
        (dict(sharing_grid=()), 'odd sum'),
        (dict(sharing_grid=(1, 0, 1, 0, 1)), 'odd sum'),
        (dict(sharing_grid=(2, 1, 2)), 'a grid of 3 rings'),
        (dict(x=torch.zeros(2, 4, 6, 6)), 'weight must be'),
        (dict(x=torch.zeros(2, 3, 6, 6, dtype=torch.int64)), 'floating-point'),
        (dict(x=torch.zeros(3, 6, 6)), 'floating-point tensor'),
        (dict(x=torch.zeros(2, 3, 0, 6)), 'at least one row'),
        (dict(x=torch.zeros(2, 3, 6, 0)), 'at least one row'),
        (dict(bias=torch.zeros(4)), 'bias must be'),
        (dict(bias=torch.zeros(3, 1, 1)), 'bias must be'),
        (dict(bias=torch.zeros(3, 6, 5)), 'bias must be'),
        (dict(bias=torch.zeros(3, dtype=torch.float64)), 'bias is torch.float64 on cpu'),
        (dict(bias=torch.zeros(3, device='meta')), 'bias is torch.float32 on meta'),
        (dict(weight=torch.zeros(3, 1, 5, 5, device='meta')), 'must agree'),
        (dict(weight=torch.zeros(3, 1, 5, 5, dtype=torch.float64)), 'must agree'),
        (dict(backend='magic'), 'known: dense'),
    ],
)
def test_refuses(change: dict, message: str) -> None:
    good = dict(x=torch.zeros(2, 3, 6, 6), weight=torch.zeros(3, 1, 5, 5), sharing_grid=(1,) * 5)
    with pytest.raises(ValueError, match=message):
        peripheral_conv2d(**(good | change))


@pytest.mark.parametrize('bias_dims', [None, 1, 3])
@pytest.mark.parametrize('backend', BACKENDS)
def test_further_channels_pass_unchanged(backend: str, bias_dims: int | None) -> None:
    """And so do their gradients; the others are those of the slice, to any order."""
    grid = sharing_grid(9, 3)
    x, weight, bias = make_inputs(grid, 6, 7)
    wide = torch.cat([x, x[:, :2]], 1).contiguous(memory_format=torch.channels_last)
    biases = [] if bias_dims is None else [bias if bias_dims == 3 else bias[:, 0, 0]]

    def partial(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        return peripheral_conv2d(x, weight, grid, *bias, backend=backend, partial=True)

    def sliced(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        return torch.cat([peripheral_conv2d(x[:, :3], weight, grid, *bias, backend=backend), x[:, 3:]], 1)

    grad = torch.randn(wide.shape, dtype=wide.dtype, generator=torch.Generator().manual_seed(0))
    results = [output_and_gradients(function, (wide, weight, *biases), grad) for function in (partial, sliced)]
    torch.testing.assert_close(*results)
    assert results[0][0].is_contiguous(memory_format=torch.channels_last)
    inputs = [tensor.detach()[:1, ..., :3, :3].requires_grad_() for tensor in (wide, weight.repeat(1, 1, 1, 1))]
    assert torch.autograd.gradgradcheck(lambda x, w: partial(x, weight * w.sum()), inputs, fast_mode=True)
