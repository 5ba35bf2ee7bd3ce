"""The two kernels of a mixer in training as one operator: the peripheral one, and a small one.

``branches`` returns the output of each kernel, ``branches_backward`` all gradients. One by one these are six
operators of autograd's, one of them a sum of gradients of the same tensor. The gradients of ``branches_backward`` are
the same two operators again: it is linear in the gradients that it takes, and each of its results in all tensors of the
others.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import autocast_dtype, cast_under_autocast, without_autocast
from .backends import requested_backend
from .custom_op import HAS_CUSTOM_OP, dense_flops, input_grad, is_watched, mix, register, weight_grad
from .functional import check
from .layout import dense, empty_as
from .positional_op import positional_term


class BranchTensors(NamedTuple):
    """What :func:`peripheral_branches` takes beside the map, from :func:`stacked_branches`."""

    weight: Tensor
    small: Tensor
    bias: Tensor | None


def stacked_branches(
    x: Tensor, weights: Sequence[Tensor], smalls: Sequence[Tensor], grid: Sequence[int], embedding: Tensor
) -> list[BranchTensors]:
    """Weights and positional terms of several blocks, made in a fraction of the operators that each by itself takes.

    Those that are copied or cast are so once for all blocks.

    Args:
        x: A map of the size, dtype and device of those to come.
        weights: Of the peripheral kernels, ``(C, 1, k', k')`` each.
        smalls: Of the small kernels, ``(C, 1, s, s)`` each.
        grid: ``k'`` ring widths, those of every kernel.
        embedding: ``(C, K, K)`` or its centre, which the kernels share.
    """
    channels, blocks = len(embedding), len(weights)
    dtype = None if x.dtype == torch.float64 else autocast_dtype(x.device.type)
    if dtype is None:
        weight = torch.cat(list(weights))
        parts: Sequence[Tensor] = [*weight.split(channels), *smalls]
    else:
        weight, *parts = _Stack.apply(dtype, *weights, *smalls)
    dtype = dtype or x.dtype
    term = positional_term(weight, embedding, grid, *x.shape[-2:])
    term = _Planes.apply(term, dtype) if _in_planes(x) else term.to(dtype)
    # Split with the channels last, so that the gradients of the terms need no copy.
    terms = [part.permute(2, 0, 1) for part in term.permute(1, 2, 0).split(channels, -1)]
    return [BranchTensors(*each) for each in zip(parts[:blocks], parts[blocks:], terms, strict=True)]


class _Stack(torch.autograd.Function):
    """The weights of several blocks, one after the other; and these weights and the small kernels in ``dtype``."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes, ctx.numbers = [tensor.shape for tensor in tensors], [tensor.numel() for tensor in tensors]
        numbers = torch.cat([tensor.flatten() for tensor in tensors])
        weights = tensors[: len(tensors) // 2]
        weight = numbers[: sum(ctx.numbers[: len(weights)])].view(-1, *weights[0].shape[1:])
        return weight, *_Stack._split(ctx, numbers.to(dtype))

    @staticmethod
    def backward(ctx: Any, of_weight: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Not by `flatten`, which batches of gradients do not know.
        numbers = torch.cat([grad.reshape(-1) for grad in grads]).to(of_weight.dtype)
        numbers[: of_weight.numel()].add_(of_weight.reshape(-1))
        return None, *_Stack._split(ctx, numbers)

    @staticmethod
    def _split(ctx: Any, numbers: Tensor) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(numbers.split(ctx.numbers), ctx.shapes, strict=True)]


def _in_planes(x: Tensor) -> bool:
    """Whether the terms are made as the Triton kernels read them: each call would copy its own."""
    return x.is_cuda


class _Planes(torch.autograd.Function):
    """A term ``(C, H, W)`` cast to planes, whose rows lie multiples of 16 bytes apart."""

    @staticmethod
    def forward(term: Tensor, dtype: torch.dtype) -> Tensor:
        step, width = 16 // dtype.itemsize, term.shape[2]
        planes = term.new_empty((*term.shape[:2], -(-width // step) * step), dtype=dtype)
        return planes[..., :width].copy_(term)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


def peripheral_branches(
    x: Tensor,
    weight: Tensor,
    sharing_grid: Sequence[int],
    small: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A peripheral and a small dense kernel, both depthwise, on the same map.

    Differentiable any number of times. Under autocast as :func:`mmpelk.ops.peripheral_conv2d`.

    Args:
        x: ``(N, C, H, W)``, floating point, any strides.
        weight: ``(C, 1, k', k')`` of the peripheral kernel.
        sharing_grid: ``k'`` ring widths along either axis; their sum is the odd kernel size ``K``.
        small: ``(C, 1, s, s)`` with an odd ``s``.
        bias: ``(C, H, W)`` in any dtype, added to the peripheral kernel's output for every image, as the positional
            term is; or ``None``.
        backend: As :func:`mmpelk.ops.peripheral_conv2d` takes it, for the peripheral kernel.

    Returns:
        The output of the peripheral kernel and that of the small one, both like ``x`` and in its memory format.

    Raises:
        ValueError: As :func:`mmpelk.ops.peripheral_conv2d`.
        RuntimeError: As :func:`mmpelk.ops.peripheral_conv2d`.
    """
    grid = [int(width) for width in sharing_grid]
    x, weight, cast = cast_under_autocast(x, weight, small)
    bias = None if bias is None else bias.to(x.dtype)
    check(x, weight, grid, bias)
    return _branches_op(x, weight, cast, bias, grid, requested_backend(x, weight, grid, backend))


def forward(
    x: Tensor, weight: Tensor, small: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None
) -> tuple[Tensor, Tensor]:
    """:func:`peripheral_branches` of checked arguments, without derivatives."""
    x = dense(x, like=x)  # once for both kernels, which read it many times
    with without_autocast(x.device.type):
        output = F.conv2d(x, small, padding=small.shape[-1] // 2, groups=len(small))
    return mix(x, weight, bias, grid, backend), dense(output, like=x)


def _branches_fake(
    x: Tensor, weight: Tensor, small: Tensor, bias: Tensor | None, grid: Sequence[int], backend: str | None
) -> tuple[Tensor, Tensor]:
    return empty_as(x), empty_as(x)


def backward(
    x: Tensor,
    weight: Tensor,
    small: Tensor,
    grad: Tensor,
    grad_small: Tensor,
    grid: Sequence[int],
    backend: str | None,
    wanted: Sequence[bool],
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`branches_backward` without derivatives; the gradient of ``x`` in ``out``, of any dtype, if given."""
    of_x, of_weight, of_small = (x.new_empty(0) for _ in range(3))
    planes: list[Tensor] = []
    x = dense(x, like=x)
    if wanted[0] or wanted[2]:
        padding = [small.shape[-1] // 2] * 2
        mask = [wanted[0], wanted[2], False]
        conv = x, small, None, [1, 1], padding, [1, 1], False, [0, 0], len(small), mask
        with without_autocast(x.device.type):
            of_x_by_small, of_small_or_none, _ = torch.ops.aten.convolution_backward(grad_small, *conv)
        of_small = of_small_or_none.contiguous() if wanted[2] else of_small
    if wanted[0]:
        of_x = input_grad(grad, weight, grid, backend, planes)
        of_x = torch.add(of_x, of_x_by_small, out=of_x if out is None else out)
    if wanted[1]:
        of_weight = weight_grad(x, grad, grid, backend, planes)
    return of_x, of_weight, of_small


def _backward_fake(
    x: Tensor,
    weight: Tensor,
    small: Tensor,
    grad: Tensor,
    grad_small: Tensor,
    grid: Sequence[int],
    backend: str | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty_as(grad) if wanted[0] else x.new_empty(0),
        weight.new_empty(weight.shape) if wanted[1] else x.new_empty(0),
        small.new_empty(small.shape) if wanted[2] else x.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, _, ctx.grid, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _grads(ctx: Any, grad: Tensor, grad_small: Tensor) -> tuple[Tensor | None, ...]:
    *wanted, wants_bias = ctx.needs_input_grad[:4]
    grads: list[Tensor | None] = [None] * 3
    if any(wanted):
        function: Callable[..., Any] = branches_backward if is_watched(grad) else backward
        values = function(*ctx.saved_tensors, grad, grad_small, ctx.grid, ctx.backend, wanted)
        grads = [value if want else None for value, want in zip(values, wanted, strict=True)]
    of_bias = (grad[0] if len(grad) == 1 else grad.sum(0)) if wants_bias else None
    return *grads, of_bias, None, None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.grid, ctx.backend, ctx.wanted = inputs
    ctx.save_for_backward(*tensors)


def _backward_grads(ctx: Any, *seconds: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, grad, grad_small = ctx.saved_tensors
    x, weight, small = tensors
    of_x, of_weight, of_small = (
        value if want else torch.zeros_like(tensor)
        for value, tensor, want in zip(seconds, tensors, ctx.wanted, strict=True)
    )
    grads, settings = (grad, grad_small), (ctx.grid, ctx.backend)
    first, second = (x, of_weight, of_small), (of_x, weight, small)
    results: list[Tensor | None] = [None] * 5
    need = ctx.needs_input_grad
    if need[0]:
        results[0] = branches_backward(*first, *grads, *settings, [True, False, False])[0]
    if need[1] or need[2]:
        _, *results[1:3] = branches_backward(*second, *grads, *settings, [False, need[1], need[2]])
    if need[3] or need[4]:
        pairs = zip(_branches_op(*first, None, *settings), _branches_op(*second, None, *settings), strict=True)
        results[3:] = [a + b for a, b in pairs]
    return *(value if want else None for value, want in zip(results, need, strict=False)), None, None, None


_branches_op = register(
    'peripheral_branches',
    '(Tensor x, Tensor weight, Tensor small, Tensor? bias, int[] grid, str? backend) -> (Tensor, Tensor)',
    forward,
    _branches_fake,
    _setup,
    _grads,
)
branches_backward = register(
    'peripheral_branches_backward',
    '(Tensor x, Tensor weight, Tensor small, Tensor grad, Tensor grad_small, int[] grid, str? backend, '
    'bool[] wanted) -> (Tensor, Tensor, Tensor)',
    backward,
    _backward_fake,
    _backward_setup,
    _backward_grads,
)
"""Gradients of ``x``, ``weight`` and ``small``, those that are not ``wanted`` as empty tensors."""


def _register_flops() -> None:
    from torch.utils.flop_counter import register_flop_formula

    def flops(x_shape, small_shape, grid, large_times=1, small_times=1) -> int:  # type: ignore[no-untyped-def]
        sides = large_times * [sum(grid)] + small_times * [small_shape[-1]]
        return sum(dense_flops(x_shape, x_shape[1], side) for side in sides)

    @register_flop_formula(torch.ops.mmpelk.peripheral_branches)
    def forward_flops(x_shape, _, small_shape, __, grid, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
        return flops(x_shape, small_shape, grid)

    @register_flop_formula(torch.ops.mmpelk.peripheral_branches_backward)
    def backward_flops(  # type: ignore[no-untyped-def]
        x_shape, _, small_shape, __, ___, grid, backend, wanted, **kwargs
    ) -> int:
        return flops(x_shape, small_shape, grid, wanted[0] + wanted[1], wanted[0] + wanted[2])


if HAS_CUSTOM_OP:
    _register_flops()
