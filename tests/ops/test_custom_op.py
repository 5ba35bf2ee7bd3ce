"""What torch's subsystems see of the operator: autograd, torch.compile, the FLOP counter, autocast."""

from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from mmpelk.ops import expand_kernel, peripheral_conv2d, sharing_grid
from mmpelk.ops.autocast import autocast_dtype
from mmpelk.ops.backends import BACKENDS as TABLE
from mmpelk.ops.branches import peripheral_branches
from mmpelk.ops.positional_op import positional_term
from mmpelk.ops.prepared import Prepared, prepare
from tests.ops.inputs import (
    BACKENDS,
    FAST,
    LAYOUTS,
    convolve,
    make_inputs,
    needs_custom_op,
    needs_half_on_cpu,
    output_and_gradients,
)


@needs_custom_op
@pytest.mark.parametrize('backend', [None, *BACKENDS])
def test_one_operator(backend: str | None) -> None:
    grid = list(sharing_grid(13, 5))
    x, weight, bias = (tensor.requires_grad_() for tensor in make_inputs(grid, 10, 9))
    torch.library.opcheck(torch.ops.mmpelk.peripheral_conv2d, (x, weight, bias, grid, backend))
    torch.library.opcheck(torch.ops.mmpelk.peripheral_conv2d, (x, weight, None, grid, backend))
    for wanted in ([True, True, True], [True, False, False]):
        arguments = x, weight, x.detach().clone(), 3, grid, backend, wanted
        torch.library.opcheck(torch.ops.mmpelk.peripheral_conv2d_backward, arguments)


@needs_custom_op
def test_compiles_to_one_graph() -> None:
    grid = sharing_grid(13, 5)
    x, weight, bias = make_inputs(grid, 10, 9)
    compiled = torch.compile(convolve(grid), fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(
        output_and_gradients(compiled, (x, weight, bias), torch.ones_like(x)),
        output_and_gradients(convolve(grid), (x, weight, bias), torch.ones_like(x)),
    )


@needs_custom_op
def test_profiler_modes_and_traces_see_operators_and_nobody_else_waits_for_them() -> None:
    grid = sharing_grid(13, 5)
    x, weight, _ = make_inputs(grid, 10, 9, torch.float32)
    seen: list[str] = []

    class Watches(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return peripheral_conv2d(x, weight, grid)

    class Marked(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    call(x.as_subclass(Marked), weight)
    assert seen.pop() == 'mmpelk.peripheral_conv2d'
    seen.clear()
    leaves = x.requires_grad_(), weight.requires_grad_()
    with torch.profiler.profile() as profile:
        call(*leaves).sum().backward()
    names = {event.name for event in profile.events()}
    assert {'mmpelk::peripheral_conv2d', 'mmpelk::peripheral_conv2d_backward'} <= names
    with Watches():
        call(*leaves)
    assert 'mmpelk.peripheral_conv2d' in seen
    assert 'mmpelk::peripheral_conv2d' in str(torch.jit.trace(call, leaves, check_trace=False).graph)
    assert call(*(tensor.to('meta') for tensor in leaves)).is_meta
    operator = torch.ops.mmpelk.peripheral_conv2d(*leaves, None, list(grid), None)
    assert type(call(*leaves).grad_fn) is not type(operator.grad_fn)
    with torch.inference_mode():
        inference = x.clone()
        with torch.enable_grad():
            assert torch.equal(call(inference, weight), operator)
    assert torch.equal(call(inference, weight.detach()), operator)


@needs_custom_op
def test_flop_counter_sees_the_dense_form() -> None:
    grid = sharing_grid(13, 5)
    x, weight, bias = (tensor.requires_grad_() for tensor in make_inputs(grid, 10, 9))
    with FlopCounterMode(display=False) as counter:
        peripheral_conv2d(x, weight[:2], grid, bias[:2], partial=True).sum().backward()  # bias and rest count nothing
    assert counter.get_total_flops() == 3 * 2 * x[:, :2].numel() * 13**2
    prepared = prepare(x, weight[:2], grid, None, 'dft')
    with FlopCounterMode(display=False) as counter:
        prepared(x)
    assert counter.get_total_flops() == 2 * x[:, :2].numel() * 13**2


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_half_on_cpu)])
@pytest.mark.parametrize('backend', [None, *BACKENDS])
def test_autocast_casts_as_conv2d_does(backend: str | None, dtype: torch.dtype) -> None:
    """And no further: the result is that of half-precision inputs without autocast."""
    grid = sharing_grid(31, 5)
    inputs = make_inputs(grid, 10, 9, torch.float32)
    call = convolve(grid, backend)
    want = output_and_gradients(call, [tensor.to(dtype) for tensor in inputs], torch.ones_like(inputs[0]))
    with torch.autocast('cpu', dtype):
        got = output_and_gradients(call, inputs, torch.ones_like(inputs[0]))
        assert F.conv2d(inputs[0], expand_kernel(inputs[1], grid), padding=15, groups=3).dtype == dtype
    assert got[0].dtype == dtype
    assert [gradient.dtype for gradient in got[1:]] == [torch.float32] * 3
    torch.testing.assert_close(got, [want[0], *(gradient.float() for gradient in want[1:])], rtol=0, atol=0)


@pytest.mark.parametrize('backend', [None, *BACKENDS])
def test_autocast_leaves_float64(backend: str | None) -> None:
    grid = sharing_grid(31, 5)
    inputs = make_inputs(grid, 10, 9)
    want = convolve(grid, backend)(*inputs)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(convolve(grid, backend)(*inputs), want)


def test_autocast_of_one_device_is_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(torch, 'get_autocast_dtype'):
        monkeypatch.setattr(torch, 'is_autocast_enabled', 'cuda'.__eq__)
        monkeypatch.setattr(torch, 'get_autocast_dtype', {'cuda': torch.float16}.__getitem__)
    else:
        monkeypatch.setattr(torch, 'is_autocast_enabled', lambda: True)
        monkeypatch.setattr(torch, 'get_autocast_gpu_dtype', lambda: torch.float16)
    assert [autocast_dtype(kind) for kind in ('cpu', 'meta', 'cuda')] == [None, None, torch.float16]


@needs_custom_op
def test_the_operator_itself_has_the_autocast_rule() -> None:
    grid = list(sharing_grid(31, 5))
    x, weight, bias = make_inputs(grid, 10, 9, torch.float32)
    for backend in BACKENDS:
        with torch.autocast('cpu', torch.bfloat16):
            out = torch.ops.mmpelk.peripheral_conv2d(x, weight, bias, grid, backend)
        half = (tensor.bfloat16() for tensor in (x, weight, bias))
        assert torch.equal(out, torch.ops.mmpelk.peripheral_conv2d(*half, grid, backend))


@pytest.mark.parametrize('backend', FAST)
def test_keeps_no_more_than_its_inputs_for_the_backward(backend: str) -> None:
    saved: list[Tensor] = []
    grid = sharing_grid(31, 5)
    x, weight, _ = (tensor.requires_grad_() for tensor in make_inputs(grid, 20, 20))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        peripheral_conv2d(x, weight, grid, backend=backend)
    assert {tensor.data_ptr() for tensor in saved} <= {x.data_ptr(), weight.data_ptr()}


@needs_custom_op
@pytest.mark.parametrize('branches', [False, True], ids=['one kernel', 'two kernels'])
def test_transforms_of_gradients_are_seen(branches: bool) -> None:
    """Gradients of a batch of gradients are those of each; a tangent that arises after the operator is refused."""
    grid = sharing_grid(9)
    x, weight, _ = make_inputs(grid, 7, 5)
    small = torch.randn(len(weight), 1, 3, 3, dtype=weight.dtype)

    def output(weight: Tensor) -> Tensor:
        if not branches:
            return peripheral_conv2d(x, weight, grid)
        return sum(peripheral_branches(x, weight, grid, small))  # type: ignore[return-value]

    jacobian = torch.autograd.functional.jacobian
    pooled = lambda weight: output(weight).sum((0, 2, 3))  # noqa: E731
    torch.testing.assert_close(jacobian(pooled, weight, vectorize=True), jacobian(pooled, weight))
    with forward_ad.dual_level():
        scale = forward_ad.make_dual(torch.ones_like(weight[:, 0, 0, 0]), torch.ones_like(weight[:, 0, 0, 0]))
        total = (output(weight.detach().requires_grad_()) * scale[:, None, None]).sum()
        with pytest.raises(NotImplementedError, match='no forward-mode derivative'):
            total.backward()


@needs_custom_op
@pytest.mark.parametrize('index', range(4), ids=['map', 'weight', 'small weight', 'bias'])
def test_a_tangent_of_any_tensor_is_refused(index: int) -> None:
    grid = sharing_grid(9)
    x, weight, bias = make_inputs(grid, 7, 5)
    tensors = [x, weight, weight[..., :3, :3].clone(), bias]
    with forward_ad.dual_level():
        tensors[index] = forward_ad.make_dual(tensors[index], torch.ones_like(tensors[index]))
        x, weight, small, bias = tensors
        prepared = Prepared(weight, bias, list(grid), 'dft', TABLE['dft'].prepare(weight.detach(), grid, x))
        calls = [lambda: peripheral_branches(x, weight, grid, small, bias)]
        calls += [] if index == 2 else [lambda: peripheral_conv2d(x, weight, grid, bias), lambda: prepared(x)]  # type: ignore[list-item]
        for call in calls:
            with pytest.raises(NotImplementedError, match='no forward-mode derivative'):
                call()


def _layouts(tensors: Iterable[Tensor]) -> list[object]:
    return [
        (each.shape, each.dtype, [step for step, size in zip(each.stride(), each.shape, strict=True) if size > 1])
        for each in tensors
    ]


@needs_custom_op
@pytest.mark.parametrize('index', [0, 1], ids=['map', 'gradient'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_maps_without_numbers_are_laid_out_as_others(layout: str, index: int) -> None:
    """What compiled code relies on."""
    grid, operators = list(sharing_grid(9)), torch.ops.mmpelk
    x, weight, bias = make_inputs(grid, 7, 6, torch.float32)
    kernel = TABLE['dft'].prepare(weight, grid, x)  # type: ignore[misc]

    def results(device: str) -> list[Tensor]:
        maps = [x.to(device), x.to(device)]
        maps[index] = LAYOUTS[layout](maps[index])
        image, grad = maps
        one, added, spectrum = (each.to(device) for each in (weight, bias, kernel))
        tensors, settings, wanted = (image, one, one[..., :3, :3].contiguous()), (grid, 'fft'), [True] * 3
        return [
            operators.peripheral_conv2d(image, one, added, *settings),
            operators.peripheral_conv2d_prepared(image, one, added, grid, 'dft', spectrum),
            *operators.peripheral_conv2d_backward(image, one, grad, 3, *settings, wanted),
            *operators.peripheral_branches(*tensors, added, *settings),
            *operators.peripheral_branches_backward(*tensors, grad, grad, *settings, wanted),
        ]

    without = results('meta')
    assert all(each.is_meta for each in without)
    assert _layouts(without) == _layouts(results('cpu'))


@needs_custom_op
def test_tensors_without_numbers_beside_others_are_refused() -> None:
    """As parameters are that no checkpoint has filled."""
    grid = list(sharing_grid(9))
    x, weight, _ = make_inputs(grid, 7, 5)
    with pytest.raises(ValueError, match='cpu and meta; move'):
        peripheral_branches(x, weight, grid, torch.empty(len(weight), 1, 3, 3, dtype=x.dtype, device='meta'))
    with pytest.raises(ValueError, match='cpu and meta; move'):
        positional_term(weight, torch.empty(len(weight), 9, 9, dtype=x.dtype, device='meta'), grid, 7, 5)


@pytest.mark.parametrize('partial', [False, True])
@pytest.mark.parametrize('index', [0, 1], ids=['map', 'weight'])
def test_second_derivatives_of_one_input(index: int, partial: bool) -> None:
    """The output is linear in it: its gradient does not depend on it, but on the gradient that comes in."""
    inputs = [*make_inputs(sharing_grid(5, 3), 4, 5)[:2]]
    inputs[1] = inputs[1][: 2 if partial else 3].clone()
    inputs[index].requires_grad_()

    def output(tensor: Tensor) -> Tensor:
        x, weight = (tensor if i == index else each for i, each in enumerate(inputs))
        return peripheral_conv2d(x, weight, sharing_grid(5, 3), partial=partial)

    assert torch.autograd.gradgradcheck(output, inputs[index])
