"""The positional term as an operator: the look-ups' numbers, derivatives of any order, and what torch knows of it."""

import pytest
import torch
from torch import Tensor

from mmpelk.ops.positional_op import central_embedding, positional_term
from tests.ops.inputs import needs_custom_op

GRID = [2, 1, 1, 1, 2]


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Weight and embedding of two channels."""
    generator = torch.Generator().manual_seed(0)
    weight, embedding = (torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 1, 5, 5), (2, 7, 7)))
    return weight.requires_grad_(), embedding.requires_grad_()


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (3, 8), (4, 2)], ids=str)
def test_what_a_map_does_not_read_of_an_embedding_changes_nothing(size: tuple[int, int]) -> None:
    weight, embedding = draw()
    centre = central_embedding(embedding, size)
    assert centre.shape[1:] == tuple(min(7, 2 * extent - 1) for extent in size)
    assert centre.permute(1, 2, 0).is_contiguous()
    grad = torch.randn(2, *size, dtype=torch.float64)
    whole, of_centre = (
        [term, *torch.autograd.grad(term, (weight, embedding), grad)]
        for term in (positional_term(weight, part, GRID, *size) for part in (embedding, centre))
    )
    torch.testing.assert_close(of_centre, whole, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('sides', [(6, 7), (7, 9)], ids=str)
def test_an_embedding_that_is_no_centre_of_the_kernel_is_refused(sides: tuple[int, int]) -> None:
    weight, _ = draw()
    with pytest.raises(ValueError, match=f'an embedding of {sides[0]} x {sides[1]} positions is neither'):
        positional_term(weight, torch.zeros(2, *sides, dtype=torch.float64), GRID, 4, 7)


def test_gradients_of_an_embedding_have_its_memory_format() -> None:
    """Those of a stage's blocks are summed without a copy."""
    weight, embedding = draw()
    centre = central_embedding(embedding.detach(), (3, 4)).requires_grad_()
    for part in (embedding, centre):
        (grad,) = torch.autograd.grad(positional_term(weight, part, GRID, 3, 4).sum(), part)
        assert grad.stride() == part.stride()


def test_second_derivatives() -> None:
    assert torch.autograd.gradgradcheck(lambda *inputs: positional_term(*inputs, GRID, 3, 8), draw(), fast_mode=True)


def test_half_precision_is_summed_in_float32() -> None:
    """Over thousands of positions; the gradients have the dtypes of their inputs."""
    inputs = draw(torch.bfloat16)
    term = positional_term(*inputs, GRID, 9, 9)
    torch.testing.assert_close(term, positional_term(*(tensor.float() for tensor in inputs), GRID, 9, 9))
    assert [grad.dtype for grad in torch.autograd.grad(term.sum(), inputs)] == [torch.bfloat16] * 2


def test_autocast_rounds_no_sums() -> None:
    inputs = draw(torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            term = positional_term(*inputs, GRID, 4, 7)
            results.append([term, *torch.autograd.grad(term.square().sum(), inputs)])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@needs_custom_op
def test_torch_knows_it() -> None:
    weight, embedding = draw(torch.float32)
    torch.library.opcheck(torch.ops.mmpelk.positional_term, (weight, embedding, GRID, 4, 7))
    grad = torch.randn(2, 4, 7)
    torch.library.opcheck(torch.ops.mmpelk.positional_term_grads, (grad, weight, embedding, GRID))
    centre = central_embedding(embedding.detach(), (3, 2)).requires_grad_()
    torch.library.opcheck(torch.ops.mmpelk.positional_term, (weight, centre, GRID, 3, 2))
    torch.library.opcheck(torch.ops.mmpelk.positional_term_grads, (grad[:, :3, :2], weight, centre, GRID))
    fake, real = (
        positional_term(*(tensor.to(device) for tensor in draw(torch.bfloat16)), GRID, 4, 7)
        for device in ('meta', 'cpu')
    )
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
