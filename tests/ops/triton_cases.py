"""Cases of the Triton backends; :mod:`test_triton` runs them in Triton's interpreter, :mod:`test_triton_small` a few.

On a machine with a GPU ``pytest tests/ops/triton_cases.py`` runs them compiled.
"""

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmpelk.ops import mixed_norm, sharing_grid, training_norm
from mmpelk.ops.backends import BACKENDS, dense
from mmpelk.ops.backends import triton as backend
from mmpelk.ops.backends.triton import dft, launch, norm
from mmpelk.ops.backends.triton import training_norm as training_kernels
from mmpelk.ops.reference import peripheral_conv2d_reference
from tests.ops.inputs import check_no_less_exact_than_dense, output_and_gradients, relative_error

DEVICE = 'cpu' if backend.interpreted() else 'cuda'
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

if (reason := backend.unavailable_reason()) is not None:
    pytest.skip(reason, allow_module_level=True)


def _patch_once() -> None:
    """The interpreter replaces Triton's functions anew for every function of a kernel, which takes half of its time."""
    from triton.runtime import interpreter

    if not hasattr(interpreter, '_LangPatchScope'):  # private: other versions are as slow as they are
        return
    patch, patched = interpreter._patch_lang, {}

    def patch_once(function: Any) -> Any:
        if id(function.__globals__) not in patched:
            patched[id(function.__globals__)] = patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


if DEVICE == 'cpu':
    _patch_once()


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    few_programs(monkeypatch)


def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program costs the interpreter a fixed time; and small problems have to reach the code for large ones."""
    monkeypatch.setattr(launch, '_calls', {})
    monkeypatch.setattr(launch, 'PROGRAMS', 4)
    monkeypatch.setattr(dft, 'PROGRAMS', 2)
    monkeypatch.setattr(training_kernels, 'PROGRAMS', 2)
    monkeypatch.setattr(launch, 'PAIR_FROM', 2)
    monkeypatch.setattr(launch, 'PACK_FROM', 2)


def _inputs(shape: Sequence[int], rings: int, bias: str, dtype: torch.dtype, mean: float) -> tuple[list[Any], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    channels = shape[1]
    biases = {'none': None, 'channel': (channels,), 'map': tuple(shape[1:])}
    x, weight = draw(*shape) + mean, draw(channels, 1, rings, rings) / rings
    tensors = [x, weight, None if biases[bias] is None else draw(*biases[bias])]
    grad_out = draw(*shape)
    return [None if t is None else t.to(DEVICE, dtype) for t in tensors], grad_out.to(DEVICE, dtype)


def _check(shape: Sequence[int], grid: Sequence[int], bias: str, dtype: torch.dtype, mean: float) -> None:
    """Output and gradients are at most half as far again from the exact ones as those of the dense kernel."""
    tensors, grad_out = _inputs(shape, len(grid), bias, dtype, mean)
    tensors = [tensor for tensor in tensors if tensor is not None]

    def exact(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if sum(grid) <= 51:
            return peripheral_conv2d_reference(x, weight, grid, bias)
        return dense.forward(x.double(), weight.double(), None if bias is None else bias.double(), grid)

    # A dense result of few terms can be right by luck: rounding the result alone costs a quarter of eps on average, and
    # in float32 both have the roundings of a sum besides.
    floor = torch.finfo(dtype).eps * (1 if dtype == torch.float32 else 0.25)
    expected = output_and_gradients(exact, tensors, grad_out.double())
    backends = [
        name
        for name in ('triton', 'triton_dft')
        if BACKENDS[name].unsupported_reason(tensors[0], tensors[1], grid) is None
    ]
    assert 'triton_dft' in backends or dtype != torch.bfloat16
    check_no_less_exact_than_dense(backends, grid, tensors, grad_out, expected, floor)


# Images, channels, height, width; grid; bias.
WHOLE = {
    '14x14-k13-packed': ((9, 1, 14, 14), sharing_grid(13), 'channel'),
    '7x9-k51-smaller_than_kernel': ((3, 2, 7, 9), sharing_grid(51), 'map'),
    '33x40-k31': ((2, 1, 33, 40), sharing_grid(31), 'none'),
    '12x17-asymmetric': ((1, 2, 12, 17), (9, 1, 2, 3, 6), 'channel'),
    '5x6-k3': ((1, 2, 5, 6), (1, 1, 1), 'map'),
    '5x6-k1': ((1, 1, 5, 6), (1,), 'none'),
}
TILED = {
    '67x20-k17-high': ((2, 1, 67, 20), sharing_grid(17), 'map'),
    '6x130-k13-wide': ((2, 1, 6, 130), sharing_grid(13), 'channel'),
    '66x70-asymmetric': ((1, 1, 66, 70), (4, 1, 2), 'none'),
    '65x3-k151': ((1, 1, 65, 3), sharing_grid(151, 7), 'map'),
    '66x2-ring_of_36': ((1, 1, 66, 2), (36, 1, 36), 'none'),
    '70x66-k51': ((1, 1, 70, 66), sharing_grid(51), 'map'),
    '28x26-k49-packed': ((3, 1, 28, 26), sharing_grid(49), 'map'),
    '90x12-k101': ((1, 1, 90, 12), sharing_grid(101, 7), 'map'),
}
TRUNCATED = {'24x31-k51': ((2, 1, 24, 31), sharing_grid(51), 'map'), '67x20-k17-high': TILED['67x20-k17-high']}


@pytest.mark.parametrize('case', [*WHOLE, *TILED])
def test_bfloat16_with_mean_3(case: str) -> None:
    _check(*(WHOLE | TILED)[case], torch.bfloat16, 3.0)


@pytest.mark.parametrize(
    ('case', 'dtype'),
    [
        ('14x14-k13-packed', 'float32'),
        ('14x14-k13-packed', 'float16'),
        ('12x17-asymmetric', 'float16'),
        ('28x26-k49-packed', 'float16'),
        ('67x20-k17-high', 'float32'),
    ],
)
def test_float32_and_float16_with_mean_3(case: str, dtype: str) -> None:
    _check(*(WHOLE | TILED)[case], DTYPES[dtype], 3.0)


@pytest.mark.skipif(DEVICE != 'cpu', reason='on a GPU the tiles are those for its architecture')
@pytest.mark.parametrize('case', ['33x40-k31', '67x20-k17-high'])
def test_float32_in_the_tiles_of_older_gpus(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'is_hopper', lambda device: False)
    _check(*(WHOLE | TILED)[case], torch.float32, 3.0)


@pytest.mark.skipif(DEVICE != 'cpu', reason='on a GPU the tiles are those for its architecture')
def test_bfloat16_in_the_tiles_of_older_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'is_hopper', lambda device: False)
    _check(*TILED['90x12-k101'], torch.bfloat16, 3.0)


@st.composite
def _problems(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], str, torch.dtype]:
    half = draw(st.lists(st.integers(1, 6), min_size=0, max_size=3))
    other = draw(st.lists(st.integers(1, 6), min_size=0, max_size=3))
    grid = (*half, 1, *other)
    if sum(grid) % 2 == 0:
        grid = (*grid, 1)
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 20), st.integers(1, 20)))
    return shape, grid, draw(st.sampled_from(['none', 'channel', 'map'])), draw(st.sampled_from([*DTYPES.values()]))


@given(_problems())
@settings(max_examples=8)
def test_any_small_problem_with_mean_0(problem: tuple) -> None:
    _check(*problem, 0.0)


LAYOUTS = {
    'view_of_channels': lambda x: torch.cat((x, x + 1, x - 1), 1)[:, 2:4],
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.mT.contiguous().mT,
    'cropped': lambda x: torch.nn.functional.pad(x, (1, 2, 3, 0))[..., 3:, 1:-2],
    'expanded': lambda x: x[:, :, :1, :1].expand(x.shape),
}


@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
@pytest.mark.parametrize(
    ('layout', 'shape'),
    [*((layout, (2, 2, 9, 12)) for layout in LAYOUTS), ('channels_last', (1, 2, 65, 2)), ('transposed', (1, 2, 65, 2))],
    ids=str,
)
def test_strides_change_nothing(layout: str, shape: tuple[int, ...], kernels: ModuleType) -> None:
    grid = (2, 1, 2)
    (x, weight, _), grad_out = _inputs(shape, len(grid), 'none', torch.bfloat16, 0.0)
    x, grad_out = LAYOUTS[layout](x), LAYOUTS[layout](grad_out)
    assert not x.is_contiguous()
    bias, weight_t = x[0], weight.mT.contiguous().mT
    in_rows = torch.nn.functional.pad(bias, (0, -bias.shape[2] % 8), value=9.0)[..., : bias.shape[2]]
    assert torch.equal(
        kernels.forward(x, weight_t, bias, grid), kernels.forward(x.contiguous(), weight, bias.contiguous(), grid)
    )
    assert torch.equal(kernels.forward(x, weight, bias, grid), kernels.forward(x, weight, in_rows, grid))
    assert torch.equal(
        kernels.weight_grad(x, grad_out, grid), kernels.weight_grad(x.contiguous(), grad_out.contiguous(), grid)
    )


def test_numbers_that_lie_in_memory_with_the_other_sign() -> None:
    (x, weight, bias), grad_out = _inputs((1, 2, 5, 6), 3, 'map', torch.float32, 0.0)
    lazy = [torch.complex(each, -each).conj().imag for each in (x, weight, bias, grad_out)]
    assert all(each.is_neg() for each in lazy)
    assert torch.equal(launch.forward(*lazy[:3], (2, 1, 2)), launch.forward(x, weight, bias, (2, 1, 2)))
    assert torch.equal(launch.prepare(lazy[1], (2, 1, 2), x), launch.prepare(weight, (2, 1, 2), x))
    assert torch.equal(launch.weight_grad(*lazy[::3], (2, 1, 2)), launch.weight_grad(x, grad_out, (2, 1, 2)))


FAR = 2**31 + 8


def _far(folder: Path, name: str) -> Tensor:
    if DEVICE != 'cpu':
        return torch.empty(FAR + 256, dtype=torch.float16, device=DEVICE)
    # A sparse file: few pages of it are ever written.
    return torch.from_file(str(folder / name), shared=True, size=FAR + 256, dtype=torch.float16)


@pytest.mark.parametrize('width', [7, 8], ids=['copied', 'in place'])
@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
def test_offsets_beyond_32_bits(tmp_path: Path, kernels: ModuleType, width: int) -> None:
    read, written, grid = _far(tmp_path, 'read'), _far(tmp_path, 'written'), (2, 1, 2)
    (x, weight, _), grad_out = _inputs((2, 2, 5, width), len(grid), 'none', torch.float16, 0.0)
    for strides in ((FAR, 5 * width, width, 1), (5 * width, FAR, width, 1)):
        far, far_out = (storage.as_strided(x.shape, strides) for storage in (read, written))
        far.copy_(x)
        assert torch.equal(kernels.forward(far, weight, None, grid, far_out), kernels.forward(x, weight, None, grid))
        far_out.copy_(grad_out)
        assert torch.equal(kernels.weight_grad(far, far_out, grid), kernels.weight_grad(x, grad_out, grid))


def test_norms_of_pixels_beyond_32_bits(tmp_path: Path) -> None:
    large, small, x, norms, of_block = _norm_inputs((1, 7, 1, 3), 3, 2, torch.float16, 0.0)
    want = norm.mixed_norm(large, small, x, norms, of_block, x.dtype)
    step = FAR // 2
    far = _far(tmp_path, 'far').as_strided(large.shape, (3 * step, 1, 3 * step, step)).copy_(large)
    assert norm.takes(far, small, x, norms, of_block)
    assert torch.equal(norm.mixed_norm(far, small, x, norms, of_block, x.dtype), want)


@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
@pytest.mark.parametrize(
    ('shape', 'image', 'value'),
    [
        *(((3, 2, 7, 9), 1, float('nan')), ((4, 2, 17, 7), 1, float('inf')), ((4, 2, 17, 7), 2, float('-inf'))),
        *(((3, 1, 7, 70), 1, float('nan')), ((2, 1, 65, 3), 1, float('nan'))),
    ],
    ids=['packed-nan', 'two-inf', 'two-inf-second', 'packed-wide-nan', 'tiled-nan'],
)
def test_non_finite_value_stays_in_its_plane(
    shape: tuple[int, ...], image: int, value: float, kernels: ModuleType
) -> None:
    grid = sharing_grid(5, 3)
    (x, weight, _), _ = _inputs(shape, len(grid), 'none', torch.bfloat16, 0.0)
    clean = kernels.forward(x, weight, None, grid)
    x[image, 0, 4, 1] = value
    out = kernels.forward(x, weight, None, grid)
    reached = ~dense.forward(x, weight, None, grid).isfinite()
    assert reached.any()
    assert not out[reached].isfinite().any()
    others = torch.ones(shape[:2], dtype=torch.bool, device=DEVICE)
    others[image, 0] = False
    assert torch.equal(out[others], clean[others])


def test_transforms_of_numbers_of_any_size() -> None:
    """Powers of two go through the products, up to maps of the largest numbers of the dtype."""
    grid = (2, 1, 2)
    (x, weight, _), _ = _inputs((1, 1, 5, 6), len(grid), 'none', torch.bfloat16, 0.0)
    x = -x.abs()
    want = dft.forward(x, weight, None, grid)
    for of_x, of_weight in ((127 - int(x.abs().max().log2()), -110), (-110, 115)):
        got = dft.forward(x * 2.0**of_x, weight * 2.0**of_weight, None, grid) * 2.0 ** -(of_x + of_weight)
        torch.testing.assert_close(got, want, rtol=0.02, atol=0.02, msg=lambda text: f'{of_x}: {text}')  # noqa: B023


def test_float16_taps_that_cancel() -> None:
    """What a spectrum is scaled by does not follow from the sum of the taps."""
    (x, weight, _), _ = _inputs((2, 3, 20, 20), 13, 'none', torch.float16, 0.0)
    weight = weight - weight.flip(-1)
    grid = [1] * 13
    exact = peripheral_conv2d_reference(x.double(), weight.double(), grid)
    assert relative_error(dft.forward(x, weight, None, grid), exact) < torch.finfo(torch.float16).eps


@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
def test_float16_box_sums_beyond_its_range(kernels: ModuleType) -> None:
    """A ring's sum of inputs may exceed 65504 where the output does not."""
    grid = (16, 1, 16)
    x = torch.full((1, 1, 20, 20), -3e4, dtype=torch.float16, device=DEVICE)
    weight = torch.full((1, 1, 3, 3), 2.0**-14, dtype=torch.float16, device=DEVICE)
    for value in (
        kernels.forward(x, weight, None, grid),
        kernels.weight_grad(x, torch.full_like(x, 2.0**-18), grid),
    ):
        assert value.isfinite().all()
    exact = dense.forward(x.double(), weight.double(), None, grid)
    assert relative_error(kernels.forward(x, weight, None, grid), exact) < torch.finfo(torch.float16).eps


@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
def test_channels_in_chunks(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    grid = sharing_grid(9, 3)
    (x, weight, bias), _ = _inputs((2, 5, 9, 12), len(grid), 'map', torch.bfloat16, 0.0)
    at_once = kernels.forward(x, weight, bias, grid)
    monkeypatch.setattr(launch, '_calls', {})
    monkeypatch.setattr(launch, 'WORKSPACE', 2 * 2 * len(grid) * 16 * 16)  # two channels
    assert torch.equal(kernels.forward(x, weight, bias, grid), at_once)


def test_a_kernel_prepared_for_fewer_numbers() -> None:
    """Spectra of the same shape have another dtype then."""
    grid = sharing_grid(9, 3)
    (x, weight, _), _ = _inputs((2, 2, 40, 20), len(grid), 'none', torch.bfloat16, 0.0)
    prepared = dft.prepare(weight, grid, x[:1])
    assert prepared.dtype != dft.prepare(weight, grid, x).dtype
    assert torch.equal(dft.forward(x, weight, None, grid, kernel=prepared), dft.forward(x, weight, None, grid))


@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
def test_images_in_pieces(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    grid = sharing_grid(9, 3)
    dtype = torch.float32 if kernels is launch else torch.bfloat16
    (x, weight, bias), grad_out = _inputs((3, 2, 9, 16), len(grid), 'map', dtype, 0.0)

    def results() -> list[Tensor]:
        of_x = kernels.input_grad(grad_out, weight, grid[::-1], torch.empty_like(x), [])
        return [kernels.forward(x, weight, bias, grid), of_x, kernels.weight_grad(x, grad_out, grid)]

    at_once = results()
    # Two images at a time, and their results.
    monkeypatch.setattr(launch, 'workspace_limit', lambda device_type: 2 * 2 * 2 * 9 * 16 * dtype.itemsize)
    torch.testing.assert_close(results(), at_once)


def test_tf32_flag_takes_fewer_products() -> None:
    grid = sharing_grid(13)
    (x, weight, _), grad_out = _inputs((2, 1, 14, 14), len(grid), 'none', torch.float32, 3.0)
    exact = dense.forward(x.double(), weight.double(), None, grid)
    exact_grad = dense.weight_grad(x.double(), grad_out.double(), grid)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for flag in (False, True):  # the second call of these shapes, too
            torch.backends.cuda.matmul.allow_tf32 = flag
            out, grad = launch.forward(x, weight, None, grid), launch.weight_grad(x, grad_out, grid)
            for value, target in ((out, exact), (grad, exact_grad)):
                error, eps = relative_error(value, target), torch.finfo(torch.float32).eps
                assert eps < error < 2**-14 if flag else error <= 4 * eps
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.skipif(DEVICE != 'cpu', reason='on a GPU the tensor cores are the real ones')
def test_float32_where_tensor_cores_truncate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor cores cut off the bits below the accumulator's where the interpreter rounds."""
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        acc = d.data.astype(np.float64)
        for k in range(0, a.data.shape[1], 16):  # one instruction
            acc = acc + a.data[:, k : k + 16].astype(np.float64) @ b.data[k : k + 16].astype(np.float64)
            nearest = acc.astype(np.float32)
            too_far = np.abs(nearest) > np.abs(acc)
            acc = np.where(too_far, np.nextafter(nearest, np.float32(0)), nearest).astype(np.float64)
        return TensorHandle(acc.astype(np.float32), d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, 'create_dot', dot)
    for case in ('24x31-k51', '67x20-k17-high'):
        _check(*TRUNCATED[case], torch.float32, 0.0)


def _norm_inputs(shape: Sequence[int], mixed: int, branches: int, dtype: torch.dtype, mean: float) -> tuple[Any, ...]:
    """Arguments of :func:`mmpelk.ops.mixed_norm.mixed_norm` but the last; ``large`` is a slice of more channels."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(DEVICE)

    def draw_map(channels: int) -> Tensor:
        return (draw(shape[0], *shape[2:], channels) + mean).to(dtype).permute(0, 3, 1, 2)

    large = draw_map(mixed + 2)
    large[:, mixed:] = float('nan')  # is not read
    x = draw_map(shape[1])
    x[:, :mixed] = float('nan')
    norms = [((draw(mixed), draw(mixed).exp(), draw(mixed), draw(mixed)), 10.0**-i) for i in range(branches)]
    small = draw_map(mixed) - mean if branches == 2 else None
    return large[:, :mixed], small, x, norms, ((draw(shape[1]), draw(shape[1])), 0.03)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('branches', [0, 1, 2])
@pytest.mark.parametrize(
    ('shape', 'mixed'),
    [((2, 7, 3, 5), 3), ((1, 46, 5, 3), 46), ((3, 124, 3, 1), 46), ((1, 249, 1, 7), 93), ((1, 998, 2, 3), 374)],
    ids=str,
)
def test_norms_of_a_block(shape: tuple[int, ...], mixed: int, branches: int, dtype: str) -> None:
    """As exact as torch's operators, each of which rounds to the maps' dtype; and what the first use accepts."""
    for mean in (0.0, 3.0):
        inputs = _norm_inputs(shape, mixed, branches, DTYPES[dtype], mean)
        large, small, x, norms, (parameters, eps) = inputs
        assert norm.takes(*inputs)
        got = norm.mixed_norm(*inputs, DTYPES[dtype])
        exact = mixed_norm._by_operators(
            large.double(),
            None if small is None else small.double(),
            x.double(),
            [(tuple(tensor.double() for tensor in tensors), eps) for tensors, eps in norms],
            (tuple(tensor.double() for tensor in parameters), eps),
        )
        of_maps = tuple(tensor.to(x.dtype) for tensor in parameters)  # as torch wants them without autocast
        today = mixed_norm._by_operators(large, small, x, norms, (of_maps, eps))
        floor = torch.finfo(x.dtype).eps * (0.5 if x.dtype == torch.float32 else 0.25)
        assert relative_error(got, exact) <= max(1.5 * relative_error(today, exact), floor)
        error = mixed_norm._largest_error(got, *inputs)
        assert error is not None
        assert error <= 1
        got[..., -1] += 2 * got[..., -1].abs() + 1
        assert (mixed_norm._largest_error(got, *inputs) or 0) > 1


def test_norms_of_what_the_kernel_does_not_read() -> None:
    large, _, x, norms, of_block = _norm_inputs((2, 7, 4, 6), 3, 1, torch.bfloat16, 0.0)
    crop = x[:, :, 1:, 1:]
    for each in (crop, crop.contiguous(), x[:1].expand(2, 7, 4, 6)):
        assert not norm.takes(large, None, each, norms, of_block)
    (weight, bias), eps = of_block
    assert not norm.takes(large, None, x, norms, ((weight[:6], bias), eps))
    assert not norm.takes(large, None, x, norms, ((weight, weight[:1].expand(7)), eps))
    empty = norm.mixed_norm(large[:0], None, x[:0], norms, of_block, torch.float16)
    assert (empty.shape, empty.dtype) == ((0, 4, 6, 7), torch.float16)


def _in_training_by_operators(
    maps: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], norm: nn.LayerNorm, grad: Tensor
) -> dict[str, Tensor]:
    """Output, gradients and running statistics, by name."""
    norms, norm, channels = copy.deepcopy(norms), copy.deepcopy(norm), maps[0].shape[1]
    large, small, x = (each.detach().requires_grad_() for each in maps)
    out = torch.cat([norms[0](large) + norms[1](small), x[:, channels:]], 1).permute(0, 2, 3, 1)
    out = norm(out.to(norm.weight.dtype)).to(grad.dtype)
    parameters = {f'{name}{i}': each for i, of in enumerate((*norms, norm)) for name, each in of.named_parameters()}
    of_large, of_small, of_x, *of_parameters = torch.autograd.grad(out, [large, small, x, *parameters.values()], grad)
    of_maps = dict(large=of_large, small=of_small, others=of_x[:, channels:], term=of_large.sum(0))
    of_norms = {f'{name}{i}': each for i, of in enumerate(norms) for name, each in of.named_buffers()}
    return {'output': out, **of_maps, **dict(zip(parameters, of_parameters, strict=True)), **of_norms}


def _in_training_by_kernels(
    maps: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], norm: nn.LayerNorm, grad: Tensor
) -> dict[str, Tensor]:
    """The same; and what the first use of the kernels accepts."""
    norms, channels = copy.deepcopy(norms), maps[0].shape[1]
    vectors = [each.detach() for of in (*norms, norm) for each in of.parameters()]
    running, momenta = [each for of in norms for each in of.buffers()], [of.momentum or 0.0 for of in norms]
    before, epsilons = [each.clone() for each in running], [of.eps for of in (*norms, norm)]
    assert training_kernels.takes(maps[2], vectors, running, maps[0].dtype)
    result = training_kernels.forward(maps, vectors, running, momenta, epsilons, grad.dtype)
    error = training_norm._forward_error(result, maps, vectors, before, running, momenta, epsilons)
    assert error is not None
    assert error <= 1
    out, stats = result
    grads = training_kernels.backward(grad, maps, stats, vectors, norm.eps)
    error = training_norm._backward_error(grads, grad, maps, stats, vectors, norm.eps)
    assert error is not None
    assert error <= 1
    of_x, _, of_large, of_small, of_term, *of_parameters = grads
    of_maps = dict(large=of_large, small=of_small, others=of_x[:, channels:], term=of_term)
    names = [f'{name}{i}' for i in range(3) for name in ('weight', 'bias')]
    of_norms = {f'{name}{i}': each for i, of in enumerate(norms) for name, each in of.named_buffers()}
    return {'output': out, **of_maps, **dict(zip(names, of_parameters, strict=True)), **of_norms}


@pytest.mark.parametrize(
    ('shape', 'mixed', 'dtype'),
    [
        *itertools.product([(2, 9, 3, 5), (3, 124, 9, 5), (2, 249, 4, 7)], [0.375], ['float32', 'bfloat16', 'float16']),
        ((2, 46, 5, 3), 1.0, 'float32'),
        ((3, 124, 9, 5), 0.375, 'autocast'),
        # Numbers that cannot be moved two at a time: of any map, and of all but the mixed channels.
        ((1, 9, 3, 7), 0.375, 'bfloat16'),
        ((2, 11, 3, 5), 0.375, 'float16'),
    ],
    ids=str,
)
def test_norms_of_a_block_in_training(shape: tuple[int, ...], mixed: float, dtype: str) -> None:
    """As exact as torch's operators, which sum in float64 on a CPU."""
    of_mixed, of_map = DTYPES.get(dtype, torch.bfloat16), DTYPES.get(dtype, torch.float32)
    channels = int(shape[1] * mixed)
    generator = torch.Generator().manual_seed(0)

    def draw_map(channels: int, dtype: torch.dtype, mean: float = 0.0) -> Tensor:
        values = torch.randn(shape[0], *shape[2:], channels, generator=generator) + mean
        return values.to(DEVICE, dtype).permute(0, 3, 1, 2)

    for mean in (0.0, 3.0):
        maps = draw_map(channels, of_mixed, mean), draw_map(channels, of_mixed, -mean), draw_map(shape[1], of_map, mean)
        modules = [*(nn.BatchNorm2d(channels, eps, momentum) for eps, momentum in ((1e-3, 0.1), (1e-1, 0.3)))]
        modules.append(nn.LayerNorm(shape[1], 1e-3))
        for parameter in (parameter for each in modules for parameter in each.parameters()):
            nn.init.normal_(parameter, generator=generator)
        *norms, norm = (each.to(DEVICE) for each in modules)
        grad = draw_map(shape[1], of_mixed).permute(0, 2, 3, 1)
        got, today = (call(maps, norms, norm, grad) for call in (_in_training_by_kernels, _in_training_by_operators))
        exact = _in_training_by_operators(
            [each.double() for each in maps],
            [copy.deepcopy(each).double() for each in norms],
            copy.deepcopy(norm).double(),
            grad.double(),
        )
        assert set(got) == set(exact)
        floor = torch.finfo(of_mixed).eps * (1 if of_mixed == torch.float32 else 0.25)  # as in `_check`
        for name, want in exact.items():
            assert got[name].dtype == today[name].dtype, name
            error, bound = relative_error(got[name], want), max(1.5 * relative_error(today[name], want), floor)
            assert error <= bound, f'{name}: relative error {error:.2e}, allowed {bound:.2e}'


@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
@pytest.mark.parametrize('shape', [(0, 2, 5, 5), (2, 0, 5, 5), (2, 2, 0, 5)])
def test_empty(shape: tuple[int, ...], kernels: ModuleType) -> None:
    x = torch.zeros(shape, device=DEVICE)
    weight = torch.zeros(shape[1], 1, 3, 3, device=DEVICE)
    assert kernels.forward(x, weight, None, (1, 1, 1)).shape == shape
    assert torch.equal(kernels.weight_grad(x, x, (1, 1, 1)), weight)


@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
@pytest.mark.skipif(DEVICE == 'cpu', reason='the interpreter runs one program after the other')
def test_same_bits_twice(kernels: ModuleType) -> None:
    grid = sharing_grid(51)
    (x, weight, _), grad_out = _inputs((16, 24, 56, 56), len(grid), 'none', torch.bfloat16, 0.0)
    for _ in range(3):
        assert torch.equal(kernels.forward(x, weight, None, grid), kernels.forward(x, weight, None, grid))
        assert torch.equal(kernels.weight_grad(x, grad_out, grid), kernels.weight_grad(x, grad_out, grid))
