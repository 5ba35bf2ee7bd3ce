"""The end of a block's mixer in training: batch norms of both branches, their sum and the other channels.

On a GPU for which the Triton kernels are, they are one operator of autograd's, three kernels either way; where one
fails or is wrong, torch's operators.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autocast import without_autocast
from .backends.first_results import attempt, import_kernels, largest_part
from .custom_op import takes_tangents
from .mixed_norm import OF_TERMS

__all__ = ['mixed_batch_norm']

_Result = TypeVar('_Result')

_LOGGER = logging.getLogger('mmpelk.ops')
_trusted: set[Hashable] = set()
# Each kernel by itself, because what is recomputed in the backward shall take the way that it took in the forward.
_refused: set[Hashable] = set()
_warned: set[tuple[torch.device, torch.dtype]] = set()
# Of a variance, beside what rounding of the mean adds to it.
_OF_VARIANCE = 2.0**-12
_OF_MEAN = 2.0**-20
# Channels that are copied to float64.
_AT_A_TIME = 8


def mixed_batch_norm(
    large: Tensor, small: Tensor, x: Tensor, others: Tensor | None, norms: Sequence[nn.BatchNorm2d]
) -> Tensor:
    """``cat(norms[0](large) + norms[1](small), others)`` in training, where :func:`.mixed_norm.is_fused` says so.

    The first result of every compiled kernel is compared with an exact one, running statistics included. Where it is
    wrong, or the kernel raises, the logger ``mmpelk.ops`` warns, once for a dtype, and torch's operators take that
    kernel's place in this process: so they do in every backward that is to be differentiated, or takes tangents.

    Args:
        large: ``(N, g, H, W)``.
        small: The same.
        x: ``(N, C, H, W)``, whose last channels are ``others``; no gradient goes through it.
        others: ``(N, C - g, H, W)``, or ``None`` if there are none.
        norms: Those of ``large`` and of ``small``, which have no hooks, and do have all that they can: parameters,
            running statistics and a momentum.

    Returns:
        ``(N, C, H, W)``, channels last.

    Raises:
        torch.cuda.OutOfMemoryError: If the device has no memory for the result.
    """
    tensors = [tensor for norm in norms for tensor in _tensors(norm)]
    parameters, running = [*tensors[:2], *tensors[5:7]], [*tensors[2:5], *tensors[7:]]
    maps, kernel = (large, small, x), _kernel()
    if kernel is None or large.numel() == large.shape[1] or not kernel.takes(maps, parameters, running):
        return _by_modules(large, small, others, norms)
    dtype = large.dtype if others is None else torch.promote_types(large.dtype, x.dtype)
    momenta, epsilons = [norm.momentum or 0.0 for norm in norms], [norm.eps for norm in norms]
    copies: list[Tensor] = []

    def run(to_update: Sequence[Tensor] = running) -> tuple[Tensor, Tensor]:
        return kernel.forward(maps, parameters, to_update, momenta, epsilons, dtype)

    def first() -> tuple[Tensor, Tensor]:
        copies.extend(tensor.clone() for tensor in running)  # as long as nobody knows what the kernels write
        return run(copies)

    with torch.no_grad():
        result = _attempt(
            'forward',
            (x.device, kernel.kernel_key(maps, *parameters, *running, dtype)),
            x.dtype,
            large,
            run,
            lambda result: _forward_error(result, maps, parameters, running, copies, momenta, epsilons),
            first,
        )
        for tensor, copy in zip(running, [] if result is None else copies, strict=False):  # after a first call
            tensor.copy_(copy)
    if result is None:
        return _by_modules(large, small, others, norms)
    settings = x.dtype, None if others is None else others.dtype, epsilons
    return _Mixed.apply(large, small, others, *parameters, result, settings)


def _attempt(
    direction: str,
    kernel: Hashable,
    dtype: torch.dtype,
    mixed: Tensor,
    run: Callable[[], _Result],
    error_of: Callable[[Any], float | None],
    first: Callable[[], _Result] | None = None,
) -> _Result | None:
    """:func:`.first_results.attempt` of ``kernel``; ``None`` for torch's operators.

    ``dtype`` is the block's map's, for which one warning is given, and ``mixed`` a tensor of the mixed channels.
    """
    key = direction, kernel
    if key in _refused:
        return None
    result, reason = attempt(_trusted, lambda: key, mixed, run, error_of, first)
    if reason is not None:
        _refused.add(key)
        if (mixed.device, dtype) not in _warned:
            _warned.add((mixed.device, dtype))
            _LOGGER.warning(
                'the %s kernel for the norms of a block in training fails in %s on %s for %d mixed channels, where '
                'torch computes them from now on. Kernels compiled for other maps are still used; if one of them fails '
                'too, torch takes its place without another warning in this dtype. Reason: %s',
                direction,
                dtype,
                mixed.device,
                mixed.shape[1],
                reason,
            )
    return result


def _tensors(norm: nn.BatchNorm2d) -> list[Any]:
    return [norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked]


def _kernel() -> ModuleType | None:
    return import_kernels('training_norm')


def _by_modules(large: Tensor, small: Tensor, others: Tensor | None, norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    mixed = norms[0](large) + norms[1](small)
    if others is None:
        return mixed
    return torch.cat([part.permute(0, 2, 3, 1) for part in (mixed, others)], -1).permute(0, 3, 1, 2)


class _Mixed(torch.autograd.Function):
    """The result that the kernels have computed, and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        large: Tensor,
        small: Tensor,
        others: Tensor | None,
        large_weight: Tensor,
        large_bias: Tensor,
        small_weight: Tensor,
        small_bias: Tensor,
        result: tuple[Tensor, Tensor],
        settings: tuple[torch.dtype, torch.dtype | None, Sequence[float]],
    ) -> Tensor:
        out, stats = result
        ctx.dtype, ctx.dtype_of_others, ctx.epsilons = settings
        ctx.save_for_backward(large, small, large_weight, small_weight, stats)
        return out.detach()  # of a view made elsewhere autograd allows no changes in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        large, small, *weights, stats = ctx.saved_tensors
        mixed = grad[:, : large.shape[1]]
        grads = None
        if not torch.is_grad_enabled() and not takes_tangents():
            grads = _grads(mixed, large, small, stats, weights, ctx.dtype)
        if grads is None:
            grads = _grads_by_operators(mixed, large, small, weights, ctx.epsilons)
        of_large, of_small, *of_parameters = grads
        of_others = None if ctx.dtype_of_others is None else grad[:, large.shape[1] :].to(ctx.dtype_of_others)
        return of_large, of_small, of_others, *of_parameters, None, None


def _grads(
    grad: Tensor, large: Tensor, small: Tensor, stats: Tensor, weights: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, ...] | None:
    """Gradients by the kernels, or ``None``."""
    kernel = _kernel()
    if kernel is None:
        return None
    if kernel.pixel_step(grad) is None:
        grad = grad.contiguous(memory_format=torch.channels_last)
    # Hooks on saved tensors may have changed the layout of these.
    maps = [grad, *(each.contiguous(memory_format=torch.channels_last) for each in (large, small))]
    return _attempt(
        'backward',
        (grad.device, kernel.kernel_key(maps, *weights)),
        dtype,
        grad,
        lambda: kernel.backward(*maps, stats, weights),
        lambda result: _backward_error(result, maps, stats, weights),
    )


def _grads_by_operators(
    grad: Tensor, large: Tensor, small: Tensor, weights: Sequence[Tensor], epsilons: Sequence[float]
) -> tuple[Tensor, ...]:
    """Gradients by torch's operators, differentiable where gradients are enabled."""
    create_graph = torch.is_grad_enabled()
    grad = grad.to(large.dtype)
    of_bias = grad.sum((0, 2, 3), dtype=weights[0].dtype)
    grads: list[Tensor] = []
    for each, weight, eps in zip((large, small), weights, epsilons, strict=True):
        with torch.enable_grad(), without_autocast(grad.device.type):
            # Views end the gradient here, whatever computed these tensors.
            inputs = [
                t.view_as(t) if create_graph and t.requires_grad else t.detach().requires_grad_()
                for t in (each, weight)
            ]
            out = F.batch_norm(inputs[0], None, None, inputs[1], None, True, 0.0, eps)
            grads += torch.autograd.grad(out, inputs, grad, create_graph=create_graph)
    of_large, of_weight, of_small, of_small_weight = grads
    return of_large, of_small, of_weight, of_bias, of_small_weight, of_bias.clone()


class _Comparison:
    """Numbers of results beside exact ones, to be compared at once."""

    def __init__(self) -> None:
        self._got: list[Tensor] = []
        self._want: list[Tensor] = []
        self._allowed: list[Tensor] = []
        self._fits: list[Tensor] = []

    def add(self, got: Tensor, want: Tensor, allowed: Tensor) -> None:
        """``allowed`` beside rounding ``want`` twice."""
        limits = torch.finfo(got.dtype)
        self._got.append(got.double().flatten())
        self._want.append(want.flatten())
        self._allowed.append((2 * limits.eps * want.abs() + allowed + limits.tiny).flatten())
        self._fits.append((want.abs() < limits.max).flatten())

    def largest(self) -> float | None:
        """Largest error as a part of what is allowed; ``None`` unless all fit their dtype."""
        return largest_part(*map(torch.cat, (self._got, self._want, self._allowed, self._fits)))


def _ends(size: int) -> slice:
    """The first and the last."""
    return slice(None, None, max(1, size - 1))


def _corners(x: Tensor) -> Tensor:
    """Of the first and the last image, in float64."""
    return x[_ends(x.shape[0]), :, _ends(x.shape[2]), _ends(x.shape[3])].double()


def _columns(*vectors: Tensor) -> list[Tensor]:
    return [vector.double()[:, None, None] for vector in vectors]


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, mean of the absolute values and variance of each channel, in float64."""
    parts = []
    for planes in x.split(_AT_A_TIME, 1):
        planes = planes.double()
        var, mean = torch.var_mean(planes, (0, 2, 3), unbiased=False)
        parts.append(torch.stack([mean, planes.abs().mean((0, 2, 3)), var]))
    mean, size, var = torch.cat(parts, 1)
    return mean, size, var


def _forward_error(
    result: tuple[Tensor, Tensor],
    maps: Sequence[Tensor],
    parameters: Sequence[Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    momenta: Sequence[float],
    epsilons: Sequence[float],
) -> float | None:
    """Of all statistics, and of the corners of all channels by exact statistics: see :class:`_Comparison`."""
    (out, stats), compared = result, _Comparison()
    rest = _corners(maps[2][:, len(parameters[0]) :])
    sums = bounds = torch.zeros((), dtype=torch.float64, device=out.device)
    for branch, each in enumerate(maps[:2]):
        mean, deviation, low = stats[3 * branch : 3 * branch + 3].double()
        want, size, var = _moments(each)
        of_mean = OF_TERMS * size
        compared.add(mean + low, want, of_mean)
        var = var + epsilons[branch]
        of_var = _OF_VARIANCE * var + (_OF_MEAN * want).square()
        compared.add(deviation.pow(-2), var, of_var)
        momentum, count = momenta[branch], each[:, 0].numel()
        exact = want, (var - epsilons[branch]) * count / (count - 1)
        for i, allowed in enumerate((of_mean, 2 * of_var)):
            old, new = (running[3 * branch + i] for running in (before, after))
            compared.add(new, torch.lerp(old.double(), exact[i], momentum), allowed)
        compared.add(after[3 * branch + 2].double(), before[3 * branch + 2].double() + 1, torch.zeros_like(var[0]))
        weight, bias, mean, deviation, of_mean, of_deviation = _columns(
            *parameters[2 * branch : 2 * branch + 2], want, var.rsqrt(), of_mean, of_var / (2 * var)
        )
        points = _corners(each)
        normed, scale = (points - mean) * deviation, (deviation * weight).abs()
        sums = sums + (normed * weight + bias)
        bounds = bounds + OF_TERMS * ((points.abs() + mean.abs()) * scale + bias.abs())
        bounds = bounds + of_mean * scale + of_deviation * (normed * weight).abs()
    bounds = torch.cat([bounds, OF_TERMS * rest.abs()], 1)
    compared.add(_corners(out).to(out.dtype), torch.cat([sums, rest], 1), bounds)
    return compared.largest()


def _products(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    """Sums over each channel, in float64: the gradient, its product with ``x - mean``, and sizes of their terms."""
    parts = []
    (mean,) = _columns(mean)
    splits = grad.split(_AT_A_TIME, 1), x.split(_AT_A_TIME, 1), mean.split(_AT_A_TIME)
    for d, planes, middle in zip(*splits, strict=True):
        d, planes = d.double(), planes.double() - middle
        sizes = planes.abs() + 2 * middle.abs()
        parts.append(torch.stack([each.sum((0, 2, 3)) for each in (d, d.abs(), d * planes, (d * sizes).abs())]))
    return torch.cat(parts, 1).unbind()


def _backward_error(
    grads: Sequence[Tensor], maps: Sequence[Tensor], stats: Tensor, weights: Sequence[Tensor]
) -> float | None:
    """Of all sums, and of the corners of all channels: see :class:`_Comparison`."""
    grad, *branches = maps
    compared, points, count = _Comparison(), _corners(grad), grad[:, 0].numel()
    # Sums that were rounded to the dtype of the parameters are what the rest is computed of here.
    of_sums = max(OF_TERMS, 2 * torch.finfo(weights[0].dtype).eps)
    for branch, (each, weight) in enumerate(zip(branches, weights, strict=True)):
        of_map, (of_weight, of_bias) = grads[branch], grads[2 + 2 * branch : 4 + 2 * branch]
        mean, deviation, low = stats[3 * branch : 3 * branch + 3].double()
        total, size, product, size_of_product = _products(grad, each, mean + low)
        compared.add(of_bias, total, OF_TERMS * size)
        compared.add(of_weight, product * deviation, OF_TERMS * size_of_product * deviation)
        # Sums of the kernels that are not finite are wrong where the exact ones are: these stand in for them here.
        of_bias, of_weight = (
            torch.where(got.isfinite(), got, want)
            for got, want in ((of_bias.double(), total), (of_weight.double(), product * deviation))
        )
        weight, mean, deviation, mean_grad, factor = _columns(
            weight, mean, deviation, of_bias / count, of_weight / count
        )
        scale, normed, values = (
            weight * deviation,
            (_corners(each) - mean) * deviation,
            _corners(each).abs() + mean.abs(),
        )
        size = OF_TERMS * (points.abs() + values * deviation * factor.abs())
        size = size + of_sums * (mean_grad.abs() + (normed * factor).abs())
        compared.add(
            _corners(of_map).to(of_map.dtype), scale * (points - mean_grad - normed * factor), scale.abs() * size
        )
    return compared.largest()
