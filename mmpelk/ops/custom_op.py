"""The convolution as one operator that autograd, ``torch.compile`` and FLOP counters know.

Two operators close under differentiation. ``conv`` is linear in the input and in the weight, and ``conv_backward``
returns all its gradients at once: that of the input is ``conv`` of the output's gradient with the flipped kernel. The
gradients of ``conv_backward`` are those two again, with other arguments. Their ``backend`` is a name, or ``None`` for
the fastest at each computation. Both take a map that has more channels than the weight: those beyond pass unchanged
(Eq. 4), and the result of a network's mixer needs no concatenation. Results have the memory format of ``x``, as those
of ``F.conv2d``.

``conv_prepared`` is ``conv`` for inference, with a kernel that the backend's ``prepare`` has made before.

From torch 2.4 on both are registered with ``torch.library``; before, the same functions are wrapped in an
``autograd.Function``.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .autocast import cast_under_autocast, without_autocast
from .backends import convolve, input_gradient, weight_gradient
from .layout import empty_as

HAS_CUSTOM_OP = hasattr(torch.library, 'custom_op') and hasattr(torch.library, 'register_autograd')
# Private: torch has no public way to ask. Modes, such as FLOP counters, transforms of torch.func, and the profiler see
# operators.
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_transform, _profiles = torch._C._functorch.peek_interpreter_stack, torch.autograd._profiler_enabled
# Private as well: `torch.autograd.grad(is_grads_batched=True)` has a transform of its own. torch 2.1 cannot be asked.
_is_batched: Callable[[Tensor], bool] = getattr(
    torch._C._functorch, 'is_legacy_batchedtensor', lambda tensor: 'Batched' in str(torch._C._dispatch_keys(tensor))
)
_PLAIN_TYPES = Tensor, nn.Parameter
_LIBRARY = torch.library.Library('mmpelk', 'FRAGMENT')  # a registration lasts as long as the library object


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None) -> Tensor:
    return mix(x, weight, bias, grid, backend)


def mix(
    x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None, **kernel: Tensor
) -> Tensor:
    """Convolve the first channels, as many as ``weight`` has, and copy the others."""
    return _mix(x, weight.shape[0], lambda mixed, out: convolve(backend, mixed, weight, bias, grid, out, **kernel))


def _mix(x: Tensor, channels: int, compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What ``compute`` makes of the first channels, given where to, and the others as they are."""
    out = empty_as(x)
    with without_autocast(x.device.type):
        if channels == x.shape[1]:
            return compute(x, out)
        compute(x[:, :channels], out[:, :channels])
    out[:, channels:] = x[:, channels:]
    return out


def _conv_prepared(
    x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str, kernel: Tensor
) -> Tensor:
    return mix(x, weight, bias, grid, backend, kernel=kernel)


def _no_grads(ctx: Any, grad_out: Tensor) -> None:
    raise RuntimeError('a prepared convolution has no gradients: call mmpelk.ops.peripheral_conv2d for them')


def input_grad(
    grad_out: Tensor, weight: Tensor, grid: Sequence[int], backend: str | None, planes: list[Tensor]
) -> Tensor:
    """Gradient of the input: the convolution with the flipped kernel. ``planes`` goes on to :func:`weight_grad`."""
    return _mix(grad_out, weight.shape[0], lambda mixed, out: input_gradient(backend, mixed, weight, grid, out, planes))


def weight_grad(
    x: Tensor, grad_out: Tensor, grid: Sequence[int], backend: str | None, planes: Sequence[Tensor]
) -> Tensor:
    """Gradient of the weight, for all channels of ``x``."""
    with without_autocast(x.device.type):
        return weight_gradient(backend, x, grad_out, grid, planes).contiguous()


def takes_tangents() -> bool:
    """Whether forward-mode derivatives are being taken, of which kernels have none."""
    return forward_ad._current_level >= 0  # private: torch has no public way to ask


def is_watched(grad: Tensor) -> bool:
    """Whether somebody must see the operator that computes gradients: if not, its function takes the host less time."""
    return torch.is_grad_enabled() or _is_seen([grad])


def needs_operators(grad: Tensor) -> bool:
    """Whether gradients are to be differentiated, or something has a way of its own to compute them."""
    return torch.is_grad_enabled() or _is_replaced([grad])


def _is_seen(args: Iterable[Any]) -> bool:
    """Whether somebody must see an operator on the tensors among ``args``, or has another way to compute it."""
    return _function_modes() > 0 or _profiles() or _is_replaced(args)


def _is_replaced(args: Iterable[Any]) -> bool:
    """Whether something has a way of its own to compute an operator on the tensors among ``args``."""
    if _dispatch_modes() > 0 or _transform() is not None or takes_tangents():
        return True
    for value in args:
        if isinstance(value, Tensor) and (
            type(value) not in _PLAIN_TYPES or not (value.is_cpu or value.is_cuda) or _is_batched(value)
        ):
            return True
    return False


def _first_channels(x: Tensor, count: int) -> Tensor:
    return x if x.shape[1] == count else x[:, :count]


def _bias_grad(grad_out: Tensor, weight: Tensor, bias_dims: int) -> Tensor:
    return grad_out[:, : weight.shape[0]].sum(0 if bias_dims == 3 else (0, 2, 3))


def _conv_backward(
    x: Tensor,
    weight: Tensor,
    grad_out: Tensor,
    bias_dims: int,
    grid: Sequence[int],
    backend: str | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    channels = weight.shape[0]
    planes: list[Tensor] = []
    mixed, grad_mixed = _first_channels(x, channels), _first_channels(grad_out, channels)
    return (
        input_grad(grad_out, weight, grid, backend, planes) if wanted[0] else x.new_empty(0),
        weight_grad(mixed, grad_mixed, grid, backend, planes) if wanted[1] else x.new_empty(0),
        _bias_grad(grad_out, weight, bias_dims) if wanted[2] else x.new_empty(0),
    )


def _conv_backward_fake(
    x: Tensor,
    weight: Tensor,
    grad_out: Tensor,
    bias_dims: int,
    grid: Sequence[int],
    backend: str | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty_as(grad_out) if wanted[0] else x.new_empty(0),
        weight.new_empty(weight.shape) if wanted[1] else x.new_empty(0),
        _bias_grad(grad_out, weight, bias_dims) if wanted[2] else x.new_empty(0),
    )


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.grid, ctx.backend = inputs
    ctx.bias_dims = 0 if bias is None else bias.dim()
    ctx.save_for_backward(x, weight)


def _conv_grads(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    function: Callable[..., Any] = conv_backward if is_watched(grad_out) else _conv_backward
    grads = function(*ctx.saved_tensors, grad_out, ctx.bias_dims, ctx.grid, ctx.backend, wanted)
    return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None


def _conv_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, grad_out, ctx.bias_dims, ctx.grid, ctx.backend, ctx.wanted = inputs
    ctx.save_for_backward(x, weight, grad_out)


def _conv_backward_grads(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """``conv_backward`` is linear in ``grad_out``, its first result in ``weight``, its second in ``x``."""
    x, weight, grad_out = ctx.saved_tensors
    of_x, of_weight, of_bias = (grad if want else None for grad, want in zip(grads, ctx.wanted, strict=True))
    of_x = torch.zeros_like(x) if of_x is None else of_x
    of_weight = torch.zeros_like(weight) if of_weight is None else of_weight
    mixed, grad_mixed = x[:, : len(weight)], grad_out[:, : len(weight)]
    settings = ctx.grid, ctx.backend
    grad_x = grad_weight = grad_grad_out = None
    if ctx.needs_input_grad[0]:
        grad_x = conv_backward(mixed, of_weight, grad_mixed, 0, *settings, [True, False, False])[0]
        grad_x = _fill_rest(grad_x, x)
    if ctx.needs_input_grad[1]:
        grad_weight = conv_backward(of_x, weight, grad_out, 0, *settings, [False, True, False])[1]
    if ctx.needs_input_grad[2]:
        grad_grad_out = conv(of_x, weight, of_bias, *settings) + _fill_rest(conv(mixed, of_weight, None, *settings), x)
    return grad_x, grad_weight, grad_grad_out, None, None, None, None


def _fill_rest(mixed: Tensor, x: Tensor) -> Tensor:
    """A gradient that the channels which pass unchanged have no part in."""
    rest = x[:, mixed.shape[1] :]
    return torch.cat([mixed, torch.zeros_like(rest)], 1) if rest.shape[1] else mixed


def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None) -> Tensor:
    return empty_as(x)


def register(
    name: str, schema: str, function: Callable, fake: Callable, setup: Callable, backward: Callable
) -> Callable[..., Any]:
    """An operator with its gradients: ``torch.ops.mmpelk.<name>``, or before torch 2.4 a plain function."""
    if not HAS_CUSTOM_OP:
        return _autograd_function(name, forward=function, setup_context=setup, backward=backward)
    define(name, schema, function, fake)
    torch.library.register_autograd(f'mmpelk::{name}', backward, setup_context=setup, lib=_LIBRARY)

    def forward(ctx: Any, *args: Any) -> Any:
        output = function(*args)
        setup(ctx, args, output)
        return output

    # With a setup_context each call would bind its arguments anew, which takes as long as the operator.
    unseen = _autograd_function(name, forward=forward, backward=backward)
    return _unless_unseen(_without_tangents(getattr(torch.ops.mmpelk, name)), function, unseen)


def _unless_unseen(operator: Callable, function: Callable, differentiable: Callable) -> Callable[..., Any]:
    """Call the operator where somebody sees it, or one of two functions that compute the same.

    torch's gradients of operators that are written in Python take the host as long as four launches.

    Args:
        operator: Of ``torch.ops.mmpelk``.
        function: For tensors that no gradients are recorded of.
        differentiable: Records gradients.
    """

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_seen(args):
            return operator(*args)
        records = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if records and any(isinstance(value, Tensor) and value.requires_grad for value in args):
            return differentiable(*args)
        return function(*args)

    return call


def define(name: str, schema: str, function: Callable, fake: Callable) -> None:
    """Define ``torch.ops.mmpelk.<name>``.

    Not by ``torch.library.custom_op``, whose checks of every call take the host as long as two launches; the tests run
    the same checks by ``torch.library.opcheck``.
    """
    torch.library.define(f'mmpelk::{name}', schema, lib=_LIBRARY, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, function, 'CompositeExplicitAutograd')

    def shapes(*args: Any) -> Any:
        # Torch takes this for maps with numbers, too, as soon as one of the other tensors has none.
        devices = {str(value.device) for value in args if isinstance(value, Tensor)}
        if len(devices) > 1:
            raise ValueError(f'the tensors are on {" and ".join(sorted(devices))}; move all of them to one device')
        return fake(*args)

    torch.library.register_fake(f'mmpelk::{name}', shapes, lib=_LIBRARY)


def _without_tangents(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse forward-mode derivatives, which torch.func loses without an error at operators of this kind."""

    def call(*args: Any) -> Any:
        if takes_tangents():
            tensors = [value for value in args if isinstance(value, Tensor)]
            if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
                raise NotImplementedError(
                    'the peripheral convolution has no forward-mode derivative (jvp, jacfwd): use reverse mode, '
                    'torch.autograd.grad, which it supports any number of times'
                )
        return operator(*args)

    return call


def _autograd_function(name: str, **methods: Callable) -> Callable[..., Any]:
    body = {key: staticmethod(method) for key, method in methods.items()}
    subclass: Any = type(name, (torch.autograd.Function,), body)
    return subclass.apply


conv = register(
    'peripheral_conv2d',
    '(Tensor x, Tensor weight, Tensor? bias, int[] grid, str? backend) -> Tensor',
    _conv,
    _conv_fake,
    _conv_setup,
    _conv_grads,
)
conv_backward = register(
    'peripheral_conv2d_backward',
    '(Tensor x, Tensor weight, Tensor grad_out, int bias_dims, int[] grid, str? backend, bool[] wanted)'
    ' -> (Tensor, Tensor, Tensor)',
    _conv_backward,
    _conv_backward_fake,
    _conv_backward_setup,
    _conv_backward_grads,
)
"""Gradients of input, weight and bias, those that are not ``wanted`` as empty tensors."""

if HAS_CUSTOM_OP:
    define(
        'peripheral_conv2d_prepared',
        '(Tensor x, Tensor weight, Tensor? bias, int[] grid, str backend, Tensor kernel) -> Tensor',
        _conv_prepared,
        lambda x, weight, bias, grid, backend, kernel: empty_as(x),
    )
    torch.library.register_autograd('mmpelk::peripheral_conv2d_prepared', _no_grads, lib=_LIBRARY)
    _prepared_op = _without_tangents(torch.ops.mmpelk.peripheral_conv2d_prepared)
    conv_prepared: Callable[..., Tensor] = _unless_unseen(_prepared_op, _conv_prepared, _prepared_op)
else:
    conv_prepared = _conv_prepared


def dense_flops(x_shape: Sequence[int], channels: int, kernel_size: int) -> int:
    """Multiply-adds of the dense form, times two: the convention of ``torch.utils.flop_counter``."""
    batch, _, height, width = x_shape
    return 2 * batch * channels * height * width * kernel_size**2


def _register_flops() -> None:
    from torch.utils.flop_counter import register_flop_formula

    @register_flop_formula([torch.ops.mmpelk.peripheral_conv2d, torch.ops.mmpelk.peripheral_conv2d_prepared])
    def conv_flops(x_shape, weight_shape, bias_shape, grid, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
        return dense_flops(x_shape, weight_shape[0], sum(grid))

    @register_flop_formula(torch.ops.mmpelk.peripheral_conv2d_backward)
    def backward_flops(x_shape, weight_shape, _, __, grid, ___, wanted, **kwargs) -> int:  # type: ignore[no-untyped-def]
        return sum(wanted[:2]) * dense_flops(x_shape, weight_shape[0], sum(grid))


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
    _register_flops()
    _register_autocast()
