"""The positional term as an operator: the look-ups' numbers, derivatives of any order, and what torch knows of it."""

import pytest
import torch
from torch import Tensor

from mmpelk.ops.positional import positional_map, summed_area_table
from mmpelk.ops.positional_op import positional_term
from tests.ops.inputs import needs_custom_op

GRID = [2, 1, 1, 1, 2]


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Weight and embedding of two channels."""
    generator = torch.Generator().manual_seed(0)
    weight, embedding = (torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 1, 5, 5), (2, 7, 7)))
    return weight.requires_grad_(), embedding.requires_grad_()


@pytest.mark.parametrize('size', [(1, 1), (3, 8), (25, 6)], ids=str)
def test_term_and_gradients_are_those_of_the_look_ups(size: tuple[int, int]) -> None:
    inputs = draw()
    results = [
        positional_term(*inputs, GRID, *size),
        positional_map(summed_area_table(inputs[0], GRID, inputs[1]), size),
    ]
    grad = torch.randn(2, *size, dtype=torch.float64)
    ours, wanted = ([result, *torch.autograd.grad(result, inputs, grad)] for result in results)
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


def test_second_derivatives() -> None:
    assert torch.autograd.gradgradcheck(lambda *inputs: positional_term(*inputs, GRID, 3, 8), draw(), fast_mode=True)


def test_half_precision_is_summed_in_float32() -> None:
    """Over thousands of positions; the gradients have the dtypes of their inputs."""
    inputs = draw(torch.bfloat16)
    term = positional_term(*inputs, GRID, 9, 9)
    torch.testing.assert_close(term, positional_term(*(tensor.float() for tensor in inputs), GRID, 9, 9))
    assert [grad.dtype for grad in torch.autograd.grad(term.sum(), inputs)] == [torch.bfloat16] * 2


@needs_custom_op
def test_torch_knows_it() -> None:
    weight, embedding = draw(torch.float32)
    torch.library.opcheck(torch.ops.mmpelk.positional_term, (weight, embedding, GRID, 4, 7))
    grad = torch.randn(2, 4, 7)
    torch.library.opcheck(torch.ops.mmpelk.positional_term_grads, (grad, weight, embedding, GRID))
    fake, real = (
        positional_term(*(tensor.to(device) for tensor in draw(torch.bfloat16)), GRID, 4, 7)
        for device in ('meta', 'cpu')
    )
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
