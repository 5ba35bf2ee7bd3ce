"""The convolution as one operator that autograd, ``torch.compile`` and FLOP counters know.

Two operators close under differentiation. ``conv`` is linear in the input and in the weight: the gradient of its input
is ``conv`` of the output's gradient with the flipped kernel, and the gradient of its weight is ``weight_grad``, whose
own gradients are ``conv`` again. Their ``backend`` is a name, or ``None`` for the fastest at each computation. Both
take a map that has more channels than the weight: those beyond pass unchanged (Eq. 4), and the result of a network's
mixer needs no concatenation. Results have the memory format of ``x``, as those of ``F.conv2d``.

``conv_prepared`` is ``conv`` for inference, with a kernel that the backend's ``prepare`` has made before.

From torch 2.4 on both are registered with ``torch.library``; before, the same functions are wrapped in an
``autograd.Function``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .autocast import cast_under_autocast, without_autocast
from .backends import BACKENDS, fastest_backend
from .layout import empty_as

__all__ = ['HAS_CUSTOM_OP', 'conv', 'conv_prepared', 'register', 'weight_grad']

HAS_CUSTOM_OP = hasattr(torch.library, 'custom_op') and hasattr(torch.library, 'register_autograd')


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None) -> Tensor:
    return _mix(x, weight, bias, grid, backend, {})


def _mix(
    x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None, kernel: dict[str, Tensor]
) -> Tensor:
    """Convolve the first channels, as many as ``weight`` has, and copy the others."""
    out, channels = empty_as(x), weight.shape[0]
    mixed = x[:, :channels]
    name = backend or fastest_backend(mixed, grid)
    with without_autocast(x.device.type):
        BACKENDS[name].forward(mixed, weight, bias, grid, out[:, :channels], **kernel)
    if channels < x.shape[1]:
        out[:, channels:] = x[:, channels:]
    return out


def _conv_prepared(
    x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str, kernel: Tensor
) -> Tensor:
    return _mix(x, weight, bias, grid, backend, {'kernel': kernel})


def _weight_grad(x: Tensor, grad_out: Tensor, channels: int, grid: Sequence[int], backend: str | None) -> Tensor:
    x, grad_out = x[:, :channels], grad_out[:, :channels]
    name = backend or fastest_backend(x, grid, weight_grad=True)
    with without_autocast(x.device.type):
        return BACKENDS[name].weight_grad(x, grad_out, grid).contiguous()


def _conv_transposed(grad_out: Tensor, weight: Tensor, grid: Sequence[int], backend: str | None) -> Tensor:
    return conv(grad_out, weight.flip(-1, -2), None, list(reversed(grid)), backend)


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.grid, ctx.backend = inputs
    ctx.bias_shape = None if bias is None else bias.shape
    ctx.save_for_backward(x, weight)


def _conv_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _conv_transposed(grad_out, weight, ctx.grid, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_weight = weight_grad(x, grad_out, weight.shape[0], ctx.grid, ctx.backend)
    if ctx.needs_input_grad[2]:
        grad_bias = grad_out[:, : weight.shape[0]].sum((0, 2, 3) if len(ctx.bias_shape) == 1 else 0)
    return grad_x, grad_weight, grad_bias, None, None


def _weight_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grad_out, ctx.channels, ctx.grid, ctx.backend = inputs
    ctx.save_for_backward(x, grad_out)


def _weight_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, grad_out = ctx.saved_tensors
    grad_x = grad_grad_out = None
    if ctx.needs_input_grad[0]:
        grad_x = _of_mixed(_conv_transposed, grad_out, grad, ctx)
    if ctx.needs_input_grad[1]:
        grad_grad_out = _of_mixed(lambda x, weight, grid, backend: conv(x, weight, None, grid, backend), x, grad, ctx)
    return grad_x, grad_grad_out, None, None, None


def _of_mixed(function: Callable[..., Tensor], x: Tensor, weight: Tensor, ctx: Any) -> Tensor:
    """A gradient that the channels which pass unchanged have no part in."""
    mixed = function(x[:, : ctx.channels], weight, ctx.grid, ctx.backend)
    rest = x.shape[1] - ctx.channels
    return torch.cat([mixed, torch.zeros_like(x[:, ctx.channels :])], 1) if rest else mixed


def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None) -> Tensor:
    return empty_as(x)


def _weight_grad_fake(x: Tensor, grad_out: Tensor, channels: int, grid: Sequence[int], backend: str | None) -> Tensor:
    return x.new_empty(channels, 1, len(grid), len(grid))


def register(
    name: str, schema: str, function: Callable, fake: Callable, setup: Callable, backward: Callable
) -> Callable[..., Any]:
    """An operator with its gradients: ``torch.ops.mmpelk.<name>``, or before torch 2.4 a plain function."""
    if not HAS_CUSTOM_OP:
        return _autograd_function(name, function, setup, backward)
    operator = torch.library.custom_op(f'mmpelk::{name}', function, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup)
    return getattr(torch.ops.mmpelk, name)


def _autograd_function(name: str, function: Callable, setup: Callable, backward: Callable) -> Callable[..., Tensor]:
    body = {'forward': function, 'setup_context': setup, 'backward': backward}
    subclass: Any = type(name, (torch.autograd.Function,), {key: staticmethod(value) for key, value in body.items()})
    return subclass.apply


conv = register(
    'peripheral_conv2d',
    '(Tensor x, Tensor weight, Tensor? bias, int[] grid, str? backend) -> Tensor',
    _conv,
    _conv_fake,
    _conv_setup,
    _conv_backward,
)
weight_grad = register(
    'peripheral_conv2d_weight_grad',
    '(Tensor x, Tensor grad_out, int channels, int[] grid, str? backend) -> Tensor',
    _weight_grad,
    _weight_grad_fake,
    _weight_grad_setup,
    _weight_grad_backward,
)

if HAS_CUSTOM_OP:
    _prepared = torch.library.custom_op(
        'mmpelk::peripheral_conv2d_prepared',
        _conv_prepared,
        mutates_args=(),
        schema='(Tensor x, Tensor weight, Tensor? bias, int[] grid, str backend, Tensor kernel) -> Tensor',
    )
    _prepared.register_fake(lambda x, weight, bias, grid, backend, kernel: empty_as(x))
    conv_prepared: Callable[..., Tensor] = torch.ops.mmpelk.peripheral_conv2d_prepared
else:
    conv_prepared = _conv_prepared


def _dense_flops(x_shape: Sequence[int], channels: int, kernel_size: int) -> int:
    """Multiply-adds of the dense form, times two: the convention of ``torch.utils.flop_counter``."""
    batch, _, height, width = x_shape
    return 2 * batch * channels * height * width * kernel_size**2


def _register_flops() -> None:
    from torch.utils.flop_counter import register_flop_formula

    @register_flop_formula(torch.ops.mmpelk.peripheral_conv2d)
    def conv_flops(x_shape, weight_shape, bias_shape, grid, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
        return _dense_flops(x_shape, weight_shape[0], sum(grid))

    @register_flop_formula(torch.ops.mmpelk.peripheral_conv2d_weight_grad)
    def weight_grad_flops(x_shape, grad_out_shape, channels, grid, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
        return _dense_flops(x_shape, channels, sum(grid))


def _register_autocast() -> None:
    """The operator's own rule, as :func:`torch.library.register_autocast`, whose dtype would be a fixed one."""

    def conv_under_autocast(
        x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None
    ) -> Tensor:
        x, weight, bias = cast_under_autocast(x, weight, bias)
        with without_autocast(x.device.type):
            return conv(x, weight, bias, grid, backend)

    for key in ('AutocastCPU', 'AutocastCUDA'):
        _LIBRARY.impl('peripheral_conv2d', conv_under_autocast, key)


if HAS_CUSTOM_OP:
    # A registration lasts as long as the library object.
    _LIBRARY = torch.library.Library('mmpelk', 'FRAGMENT')
    _register_flops()
    _register_autocast()
