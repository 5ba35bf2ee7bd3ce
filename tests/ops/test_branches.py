"""Both kernels of a mixer as one operator: what the operators one by one return, to any derivative."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmpelk.ops import peripheral_conv2d, sharing_grid
from mmpelk.ops.branches import _Stack, peripheral_branches, stacked_branches
from tests.ops.inputs import BACKENDS, LAYOUTS, needs_custom_op

GRID = sharing_grid(13, 5)


def one_by_one(
    x: Tensor, weight: Tensor, small: Tensor, bias: Tensor | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    large = peripheral_conv2d(x, weight, GRID, bias, backend=backend)
    return large, F.conv2d(x, small, padding=small.shape[-1] // 2, groups=len(small))


def at_once(
    x: Tensor, weight: Tensor, small: Tensor, bias: Tensor | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    return peripheral_branches(x, weight, GRID, small, bias, backend=backend)


def draw(*, bias: bool, dtype: torch.dtype = torch.float64, size: tuple[int, int] = (10, 9)) -> list[Tensor]:
    """A map of two images and three channels, weight, small kernel, and a map to add."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, *size), (3, 1, len(GRID), len(GRID)), (3, 1, 5, 5), (3, *size)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes[: 4 if bias else 3]
    ]


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no-bias'])
@pytest.mark.parametrize('layout', ['contiguous', 'channels last', 'channel slice of channels last'])
@pytest.mark.parametrize('backend', [None, *BACKENDS])
def test_outputs_and_gradients(backend: str | None, layout: str, bias: bool) -> None:
    results = []
    for function in (one_by_one, at_once):
        inputs = draw(bias=bias)
        out = function(LAYOUTS[layout](inputs[0]), *inputs[1:], backend=backend)
        loss = sum((i + 1) * tensor.cos().sum() for i, tensor in enumerate(out))
        results.append([*out, *torch.autograd.grad(loss, inputs)])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11, check_stride=True)


@pytest.mark.parametrize('wanted', list(itertools.product([True, False], repeat=4)), ids=str)
def test_gradients_of_some_inputs(wanted: tuple[bool, ...]) -> None:
    """Frozen kernels, a network's first map: what is not asked for is neither computed nor returned."""
    results = []
    for function in (one_by_one, at_once):
        inputs = [tensor.requires_grad_(want) for tensor, want in zip(draw(bias=True), wanted, strict=True)]
        large, small = function(*inputs)
        if any(wanted):
            (large.sin() + 2 * small.sin()).sum().backward()
        results.append([tensor.grad for tensor in inputs])
    assert [grad is not None for grad in results[1]] == list(wanted)
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no-bias'])
@pytest.mark.parametrize('backend', BACKENDS)
def test_second_derivatives(backend: str, bias: bool) -> None:
    inputs = draw(bias=bias, size=(4, 5))
    assert torch.autograd.gradgradcheck(lambda *tensors: at_once(*tensors, backend=backend), inputs, fast_mode=True)


@pytest.mark.parametrize('wanted', [each for each in itertools.product([True, False], repeat=3) if any(each)], ids=str)
def test_second_derivatives_of_some_inputs(wanted: tuple[bool, ...]) -> None:
    """Of both outputs, or of one, so that nothing is to be differentiated in the other's gradient."""
    x, weight, small = wanted
    for used in ((0, x or weight), (1, x or small)), ((0, x or weight),), ((1, x or small),):
        results = []
        for function in (one_by_one, at_once) if any(depends for _, depends in used) else ():
            inputs = [tensor.requires_grad_(want) for tensor, want in zip(draw(bias=False), wanted, strict=True)]
            outputs, leaves = function(*inputs), [tensor for tensor in inputs if tensor.requires_grad]
            grad = functools.partial(torch.autograd.grad, inputs=leaves, allow_unused=True, materialize_grads=True)
            firsts = grad(sum(outputs[index].sin().sum() for index, _ in used), create_graph=True)
            results.append(grad(sum(first.square().sum() for first in firsts)))
        torch.testing.assert_close(results[:1], results[1:], rtol=1e-11, atol=1e-11)


@needs_custom_op
def test_torch_knows_it() -> None:
    inputs = draw(bias=True)
    grid = list(GRID)
    torch.library.opcheck(torch.ops.mmpelk.peripheral_branches, (*inputs, grid, None))
    torch.library.opcheck(torch.ops.mmpelk.peripheral_branches, (*inputs[:3], None, grid, None))
    grads = torch.randn_like(inputs[0]), torch.randn_like(inputs[0])
    for wanted in ([True] * 3, [False, True, False]):
        arguments = *inputs[:3], *grads, grid, None, wanted
        torch.library.opcheck(torch.ops.mmpelk.peripheral_branches_backward, arguments)


@needs_custom_op
def test_flop_counter_sees_the_dense_forms() -> None:
    x, *others = draw(bias=True)
    with FlopCounterMode(display=False) as counter:
        sum(tensor.sum() for tensor in at_once(x, *others)).backward()
    assert counter.get_total_flops() == 3 * 2 * x.numel() * (13**2 + 5**2)
    others[0].requires_grad_(False)  # then the gradient of the small weight alone is computed
    with FlopCounterMode(display=False) as counter:
        sum(tensor.sum() for tensor in at_once(x.detach(), *others[:2])).backward()
    assert counter.get_total_flops() == 2 * x.numel() * (13**2 + 2 * 5**2)


def test_under_autocast_as_conv2d() -> None:
    """The results are those of half-precision inputs."""
    inputs = draw(bias=True, dtype=torch.float32)
    half = [tensor.detach().bfloat16() for tensor in inputs]
    with torch.autocast('cpu', torch.bfloat16):
        out = at_once(*inputs)
    assert [tensor.dtype for tensor in out] == [torch.bfloat16] * 2
    torch.testing.assert_close(out, at_once(*half), rtol=0, atol=0)
    sum(tensor.float().sum() for tensor in out).backward()
    assert [tensor.grad.dtype for tensor in inputs] == [torch.float32] * 4


def test_keeps_no_more_than_its_inputs_for_the_backward() -> None:
    saved: list[Tensor] = []
    inputs = draw(bias=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        at_once(*inputs)
    assert {tensor.data_ptr() for tensor in saved} <= {tensor.data_ptr() for tensor in inputs}


def test_refuses_what_the_operator_refuses() -> None:
    x, weight, small, bias = draw(bias=True)
    with pytest.raises(ValueError, match='a grid of 3 rings'):
        peripheral_branches(x, weight, (2, 1, 2), small)
    with pytest.raises(ValueError, match='bias must be'):
        at_once(x, weight, small, bias[:1])
    with pytest.raises(ValueError, match="unknown backend 'magic'"):
        at_once(x, weight, small, bias, 'magic')


@needs_custom_op
def test_batches_of_gradients_of_stacked_weights() -> None:
    grid = sharing_grid(9)
    weights, smalls = ([torch.randn(3, 1, s, s, requires_grad=True) for _ in range(2)] for s in (len(grid), 3))
    with torch.autocast('cpu', torch.bfloat16):
        stacked = stacked_branches(torch.randn(2, 3, 7, 5), weights, smalls, grid, torch.randn(3, 9, 9))
    outputs, leaves = [tensor for each in stacked for tensor in each], [*weights, *smalls]
    grads = [torch.randn(2, *output.shape).to(output.dtype) for output in outputs]
    got = torch.autograd.grad(outputs, leaves, grads, retain_graph=True, is_grads_batched=True)
    want = [torch.autograd.grad(outputs, leaves, each, retain_graph=True) for each in zip(*grads, strict=True)]
    torch.testing.assert_close(got, tuple(map(torch.stack, zip(*want, strict=True))))


def test_gradients_of_stacked_weights_are_summed_in_their_own_dtype() -> None:
    """That of the positional term has more digits than that of the rounded weight."""
    tensors = [torch.randn(3, 1, side, side, requires_grad=True) for side in (5, 5, 3, 3)]
    outputs = _Stack.apply(torch.bfloat16, *tensors)
    grads = [torch.randn_like(output) for output in outputs]
    want = [grad.float() for grad in grads[1:]]
    want[:2] = [a + b for a, b in zip(want, grads[0].split(3), strict=False)]
    torch.testing.assert_close(torch.autograd.grad(outputs, tensors, grads), tuple(want), rtol=0, atol=0)
