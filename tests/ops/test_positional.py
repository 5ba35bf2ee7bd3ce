"""The positional term against literal Eq. 3."""

import pytest
import torch

from mmpelk.ops import sharing_grid
from mmpelk.ops.positional import positional_constant, positional_map, prefix_sum, summed_area_table
from mmpelk.ops.positional_op import positional_term
from mmpelk.ops.reference import peripheral_conv2d_reference

SIZES = [(1, 1), (3, 8), (9, 12), (25, 6)]


@pytest.mark.parametrize('form', ['look-ups', 'operator', 'constant'])
@pytest.mark.parametrize('size', SIZES, ids=lambda size: f'{size[0]}x{size[1]}')
def test_term_matches_equation_3(size: tuple[int, int], form: str) -> None:
    grid = sharing_grid(13, 5)
    generator = torch.Generator().manual_seed(0)
    weight, embedding = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 1, 9, 9), (3, 13, 13))
    )
    mode = 'constant' if form == 'constant' else 'in_bounds'
    nothing = torch.zeros(1, 3, *size, dtype=torch.float64)
    want = peripheral_conv2d_reference(nothing, weight, grid, embedding=embedding, embedding_mode=mode)[0]
    if form == 'operator':
        got = positional_term(weight, embedding, grid, *size)
    elif form == 'look-ups':
        got = positional_map(summed_area_table(weight, grid, embedding), size)
    else:
        got = positional_constant(weight, grid, embedding)[:, None, None].expand_as(want)
    grad = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        [got, *torch.autograd.grad(got, (weight, embedding), grad)],
        [want, *torch.autograd.grad(want, (weight, embedding), grad)],
        rtol=1e-11,
        atol=1e-11,
    )


def test_table_is_kept_in_float32_under_autocast() -> None:
    grid = sharing_grid(13, 5)
    weight, embedding = torch.randn(3, 1, 9, 9), torch.randn(3, 13, 13)
    with torch.autocast('cpu', torch.bfloat16):
        table = summed_area_table(weight.bfloat16(), grid, embedding)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, summed_area_table(weight.bfloat16().float(), grid, embedding))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_products_of_numbers_in_16_bits_are_not_rounded(dtype: torch.dtype) -> None:
    grid = sharing_grid(13, 5)
    weight, embedding = torch.randn(3, 1, 9, 9).to(dtype), torch.randn(3, 13, 13).to(dtype)
    for function in (
        lambda *tensors: summed_area_table(tensors[0], grid, tensors[1]),
        lambda *tensors: positional_constant(tensors[0], grid, tensors[1]),
        lambda *tensors: positional_term(*tensors, grid, 9, 12),
    ):
        assert torch.equal(function(weight, embedding), function(weight.float(), embedding.float()))


def test_large_table_keeps_float32_precision() -> None:
    """Four look-ups cancel; at 101 x 101 the map still agrees with float64 to 1e-5 of its largest value."""
    grid = sharing_grid(101, 7)
    weight, embedding = torch.randn(2, 1, 17, 17), torch.randn(2, 101, 101)
    got = positional_map(summed_area_table(weight, grid, embedding), (30, 200))
    want = positional_map(summed_area_table(weight.double(), grid, embedding.double()), (30, 200))
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize('dim', [0, 1, -1])
def test_prefix_sum(dim: int) -> None:
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(prefix_sum(x, dim), x.cumsum(dim))


class OnCuda(torch.Tensor):
    """Says that it is, where ``cumsum`` has no deterministic kernel."""

    is_cuda = True

    def cumsum(self, dim: int) -> torch.Tensor:
        raise RuntimeError(f'cumsum_cuda_kernel does not have a deterministic implementation (dim {dim})')


@pytest.mark.parametrize('dim', [0, -1])
def test_deterministic_prefix_sum_on_cuda(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    x = torch.randn(40, 3, 500)
    got = prefix_sum(x.as_subclass(OnCuda), dim).as_subclass(torch.Tensor)
    # Summed in float64, rounded once.
    torch.testing.assert_close(got, x.double().cumsum(dim).float(), rtol=2 * torch.finfo(torch.float32).eps, atol=0)
