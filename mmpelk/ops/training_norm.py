"""A block's mixer and its norms in training: both kernels, their batch norms and sum, the other channels, layer norm.

On a GPU for which the Triton kernels are, it is one operator of autograd's, whose norms are three kernels either way.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import branches
from .autocast import autocast_dtype, without_autocast
from .backends import requested_backend
from .backends.first_results import attempt, import_kernels, is_capturing, largest_part
from .custom_op import needs_operators
from .functional import check
from .mixed_norm import OF_TERMS, Norm

__all__ = ['mix_and_norm']

_Result = TypeVar('_Result')

_LOGGER = logging.getLogger('mmpelk.ops')
_trusted: set[Hashable] = set()
# Each kernel by itself, because what is recomputed in the backward shall take the way that it took in the forward.
_refused: set[Hashable] = set()
_warned: set[tuple[torch.device, torch.dtype]] = set()
# Of a variance, beside what rounding of the mean adds to it.
_OF_VARIANCE = 2.0**-12
_OF_MEAN = 2.0**-20
_AT_A_TIME = 8  # channels that are copied to float64
_NUMBERS = 2**20  # of whole pixels that are


@dataclass(frozen=True)
class _Settings:
    """What the operator takes beside tensors."""

    grid: Sequence[int]
    backend: str | None
    epsilons: Sequence[float]
    dtype: torch.dtype


def mix_and_norm(
    x: Tensor,
    tensors: branches.BranchTensors,
    grid: Sequence[int],
    backend: str | None,
    norms: Sequence[nn.BatchNorm2d],
    norm: Norm,
    dtype: torch.dtype,
) -> Tensor | None:
    """``layer_norm(cat(norms[0](large) + norms[1](small), others))`` in training, where :func:`.mixed_norm.is_fused`.

    ``large`` and ``small`` are what :func:`.branches.peripheral_branches` makes of the first channels of ``x``.

    The first result of every compiled kernel is compared with an exact one, running statistics included. Where it is
    wrong, or the kernel raises, the logger ``mmpelk.ops`` warns, once for a dtype, and torch's operators take that
    kernel's place in this process: so they do in every backward that is to be differentiated, or takes tangents.

    Args:
        x: ``(N, C, H, W)``.
        tensors: What both kernels take, ``g`` channels of it.
        grid: Ring widths of the peripheral one.
        backend: For the peripheral one, or ``None``.
        norms: Of both kernels' outputs; they have no hooks, and do have all that they can: parameters, running
            statistics and a momentum.
        norm: The layer norm.
        dtype: Of the result.

    Returns:
        ``(N, H, W, C)``; or ``None`` where the caller is to call torch's operators, and nothing has changed.

    Raises:
        torch.cuda.OutOfMemoryError: If the device has no memory for the result.
    """
    of_norms = [tensor for each in norms for tensor in _tensors(each)]
    parameters, running = [*of_norms[:2], *of_norms[5:7], *norm[0]], [*of_norms[2:5], *of_norms[7:]]
    kernel, channels = _kernel(), len(tensors.weight)
    of_mixed = (None if x.dtype == torch.float64 else autocast_dtype(x.device.type)) or x.dtype
    if kernel is None or x.numel() == x.shape[1] or norm[1] <= 0 or len(parameters[0]) != channels:
        return None
    if not kernel.takes(x, parameters, running, of_mixed):
        return None
    key = x.device, kernel.kernel_key(x, parameters, *(each.dtype for each in running), of_mixed, dtype)
    if ('forward', key) in _refused or (is_capturing(x) and ('forward', key) not in _trusted):
        return None
    momenta, epsilons = [each.momentum or 0.0 for each in norms], [*(each.eps for each in norms), norm[1]]
    weight, small = tensors.weight.to(of_mixed), tensors.small.to(of_mixed)
    bias = None if tensors.bias is None else tensors.bias.to(of_mixed)
    copies: list[Tensor] = []

    with torch.no_grad():
        mixed = x[:, :channels].to(of_mixed).contiguous(memory_format=torch.channels_last)
        check(mixed, weight, list(grid), bias)
        backend = requested_backend(mixed, weight, grid, backend)
        maps = *branches.forward(mixed, weight, small, bias, grid, backend), x

        def run(to_update: Sequence[Tensor] = running) -> tuple[Tensor, Tensor]:
            return kernel.forward(maps, parameters, to_update, momenta, epsilons, dtype)

        def first() -> tuple[Tensor, Tensor]:
            copies.extend(tensor.clone() for tensor in running)  # as long as nobody knows what the kernels write
            return run(copies)

        result = _attempt(
            'forward',
            key,
            x,
            channels,
            run,
            lambda result: _forward_error(result, maps, parameters, running, copies, momenta, epsilons),
            first,
        )
        for tensor, copy in zip(running, [] if result is None else copies, strict=False):  # after a first call
            tensor.copy_(copy)
    if result is None:
        return None
    settings = _Settings(list(grid), backend, epsilons, dtype)
    return _MixAndNorm.apply(x, weight, small, bias, *parameters, (*result, mixed, *maps[:2]), settings)


def _attempt(
    direction: str,
    kernel: Hashable,
    x: Tensor,
    channels: int,
    run: Callable[[], _Result],
    error_of: Callable[[Any], float | None],
    first: Callable[[], _Result] | None = None,
) -> _Result | None:
    """:func:`.first_results.attempt` of ``kernel``; ``None`` for torch's operators.

    ``x`` is the block's map, for whose dtype one warning is given, and ``channels`` the number of those that are mixed.
    """
    key = direction, kernel
    if key in _refused:
        return None
    result, reason = attempt(_trusted, lambda: key, x, run, error_of, first)
    if reason is not None:
        _refused.add(key)
        if (x.device, x.dtype) not in _warned:
            _warned.add((x.device, x.dtype))
            _LOGGER.warning(
                'the %s kernel for the norms of a block in training fails in %s on %s for %d mixed channels, where '
                'torch computes them from now on. Kernels compiled for other maps are still used; if one of them fails '
                'too, torch takes its place without another warning in this dtype. Reason: %s',
                direction,
                x.dtype,
                x.device,
                channels,
                reason,
            )
    return result


def _tensors(norm: nn.BatchNorm2d) -> list[Any]:
    return [norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked]


def _kernel() -> ModuleType | None:
    return import_kernels('training_norm')


class _MixAndNorm(torch.autograd.Function):
    """The result that the kernels have computed, and its gradients."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, (out, *saved), ctx.settings = inputs
        ctx.save_for_backward(*tensors, *saved)
        return out.detach()  # of what was made elsewhere autograd allows no changes in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint gives what it recomputed no second time
        tensors, saved = saved[:10], saved[10:]
        grads = None if needs_operators(grad) else _grads(grad, tensors, saved, ctx.settings, ctx.needs_input_grad[:3])
        if grads is None:
            grads = _grads_by_operators(grad, tensors, ctx.settings)
        return *grads, None, None


def _grads(
    grad: Tensor,
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor],
    settings: _Settings,
    wanted: Sequence[bool],
) -> Sequence[Tensor | None] | None:
    """Gradients by the kernels, or ``None``."""
    x, weight, small, bias, *parameters = tensors
    stats, mixed, *maps = saved
    kernel = _kernel()
    if kernel is None:
        return None
    # Hooks on saved tensors may have changed the layout of these.
    mixed, *maps = (each.contiguous(memory_format=torch.channels_last) for each in (mixed, *maps, x))
    stats, *parameters = (each.contiguous() for each in (stats, *parameters))
    grad, eps = grad.contiguous(), settings.epsilons[2]
    grads = _attempt(
        'backward',
        (x.device, kernel.kernel_key(maps[2], parameters, mixed.dtype, grad.dtype, grad.data_ptr() % 16)),
        x,
        len(weight),
        lambda: kernel.backward(grad, maps, stats, parameters, eps),
        lambda grads: _backward_error(grads, grad, maps, stats, parameters, eps),
    )
    if grads is None:
        return None
    of_x, _, of_large, of_small, of_term, *of_parameters = grads
    of_kernels = branches.backward(
        mixed, weight, small, of_large, of_small, settings.grid, settings.backend, wanted, of_x[:, : len(weight)]
    )
    of_inputs = [of if want else None for of, want in zip((of_x, *of_kernels[1:]), wanted, strict=True)]
    return *of_inputs, None if bias is None else of_term, *of_parameters


def _grads_by_operators(grad: Tensor, tensors: Sequence[Tensor], settings: _Settings) -> Sequence[Tensor | None]:
    """Gradients by torch's operators, differentiable where gradients are enabled; computes all again."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(grad.device.type):
        # Views end the gradient here, whatever computed these tensors.
        inputs = [
            t if t is None else t.view_as(t) if create_graph and t.requires_grad else t.detach().requires_grad_()
            for t in tensors
        ]
        out = _by_operators(inputs, settings)
        given = [each for each in inputs if each is not None]
        grads = iter(torch.autograd.grad(out, given, grad, create_graph=create_graph))
    return [None if each is None else next(grads) for each in inputs]


def _by_operators(tensors: Sequence[Tensor], settings: _Settings) -> Tensor:
    """As :func:`mix_and_norm`, without running statistics."""
    x, weight, small, bias, *of_batch_norms, of_norm, of_norm_bias = tensors
    mixed, others = x.split([len(weight), x.shape[1] - len(weight)], 1)
    outputs = branches.peripheral_branches(
        mixed.to(weight.dtype), weight, settings.grid, small, bias, backend=settings.backend
    )
    mixed, more = (
        F.batch_norm(each, None, None, of_batch_norms[2 * i], of_batch_norms[2 * i + 1], True, 0.0, eps)
        for i, (each, eps) in enumerate(zip(outputs, settings.epsilons, strict=False))
    )
    out = torch.cat([part.permute(0, 2, 3, 1) for part in (mixed + more, others)], -1)
    out = out.to(torch.promote_types(out.dtype, of_norm.dtype))
    vectors = of_norm.to(out.dtype), of_norm_bias.to(out.dtype)
    return F.layer_norm(out, x.shape[1:2], *vectors, settings.epsilons[2]).to(settings.dtype)


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


def _edges(x: Tensor) -> Tensor:
    """The corners of every image, in float64."""
    return x[:, :, _ends(x.shape[2]), _ends(x.shape[3])].double()


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
    normed, of_normed, _ = _layer_norm(torch.cat([sums, rest], 1), bounds, epsilons[2])
    weight, bias = _columns(*parameters[4:])
    got = _corners(out.permute(0, 3, 1, 2)).to(out.dtype)
    compared.add(got, normed * weight + bias, of_normed * weight.abs() + OF_TERMS * bias.abs())
    return compared.largest()


def _layer_norm(values: Tensor, bounds: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``values`` without mean and deviation of each pixel; how far that is off for values off by ``bounds``; scales."""
    var, mean = torch.var_mean(values, 1, unbiased=False, keepdim=True)
    scale = (var + eps).rsqrt()
    normed = (values - mean) * scale
    return normed, bounds.amax(1, keepdim=True) * scale * (2 + normed.abs()), scale


def _through_layer_norm(
    grad: Tensor, maps: Sequence[Tensor], stats: Tensor, parameters: Sequence[Tensor], eps: float
) -> tuple[Tensor, ...]:
    """In float64: the gradient of what is normed, the normed map, and for both how far they may be off."""
    grad, large, small, x = (each.double() for each in (grad, *maps))
    value = size = torch.zeros((), dtype=torch.float64, device=grad.device)
    for branch, each in enumerate((large, small)):
        weight, bias, mean, deviation = _columns(
            *parameters[2 * branch : 2 * branch + 2], *stats[3 * branch : 3 * branch + 2]
        )
        value = value + ((each - mean) * (deviation * weight) + bias)
        size = size + ((each.abs() + mean.abs()) * (deviation * weight).abs() + bias.abs())
    rest = x[:, large.shape[1] :]
    value, size = torch.cat([value, rest], 1), torch.cat([size, rest.abs()], 1)
    normed, of_normed, scale = _layer_norm(value, OF_TERMS * size, eps)
    product = grad * _columns(parameters[4])[0]
    factor, terms = (product * normed).mean(1, keepdim=True), product.abs()
    d = scale * (product - product.mean(1, keepdim=True) - normed * factor)
    of_factor = (terms * of_normed).mean(1, keepdim=True)
    of_d = scale * (of_normed * factor.abs() + normed.abs() * of_factor + of_normed.amax(1, keepdim=True) * terms)
    of_d = of_d + OF_TERMS * scale * (terms + terms.mean(1, keepdim=True) + (normed * factor).abs())
    of_d = of_d + d.abs() * of_normed.amax(1, keepdim=True)
    return d, normed, of_d, of_normed


def _parts(*maps: Tensor) -> Iterator[list[Tensor]]:
    """The maps in parts of some pixels."""
    images, channels, rows, columns = maps[-1].shape
    of_images = max(1, _NUMBERS // (channels * rows * columns))
    of_rows = max(1, min(rows, _NUMBERS // (channels * columns)))
    for image in range(0, images, of_images):
        for row in range(0, rows, of_rows):
            yield [each[image : image + of_images, :, row : row + of_rows] for each in maps]


def _backward_error(
    grads: Sequence[Tensor],
    grad: Tensor,
    maps: Sequence[Tensor],
    stats: Tensor,
    parameters: Sequence[Tensor],
    eps: float,
) -> float | None:
    """Of all sums, and of the corners of all channels: see :class:`_Comparison`."""
    of_x, of_mixed, *of_branches, of_term = grads[:5]
    of_parameters, mixed = grads[5:], len(parameters[0])
    grad, compared, count = grad.permute(0, 3, 1, 2), _Comparison(), maps[2][:, 0].numel()
    sums: Any = 0
    for part, *of_maps in _parts(grad, *maps):
        d, normed, of_d, of_normed = _through_layer_norm(part, of_maps, stats, parameters, eps)
        part, d, of_d = part.double(), d[:, :mixed], of_d[:, :mixed]
        terms = [part, OF_TERMS * part.abs(), part * normed, part.abs() * of_normed, d, of_d]
        for branch, each in enumerate(of_maps[:2]):
            mean, low = _columns(stats[3 * branch], stats[3 * branch + 2])
            each = each.double() - mean - low
            terms += [d * each, of_d * (each.abs() + 2 * mean.abs())]
        sums = sums + torch.cat([term.sum((0, 2, 3)) for term in terms])
    widths = [grad.shape[1]] * 4 + [mixed] * 6
    bias, of_bias, weight, of_weight, total, of_total, *of_products = sums.split(widths)
    compared.add(of_parameters[5], bias, of_bias)
    compared.add(of_parameters[4], weight, of_weight)
    d, _, of_d, _ = _through_layer_norm(_corners(grad), [_corners(each) for each in maps], stats, parameters, eps)
    compared.add(_corners(of_x)[:, mixed:].to(of_x.dtype), d[:, mixed:], of_d[:, mixed:])
    compared.add(_corners(of_mixed).float(), d[:, :mixed], of_d[:, :mixed])
    # What the rest is computed of here: those of the kernels, and sums that were rounded to the parameters' dtype.
    points, of_sums = _edges(of_mixed), max(OF_TERMS, 2 * torch.finfo(parameters[0].dtype).eps)
    for branch, each in enumerate(maps[:2]):
        mean, deviation, _ = stats[3 * branch : 3 * branch + 3].double()
        product, of_product = of_products[2 * branch : 2 * branch + 2]
        of_weight, of_bias = of_parameters[2 * branch : 2 * branch + 2]
        compared.add(of_bias, total, of_total)
        compared.add(of_weight, product * deviation, of_product * deviation)
        # Sums of the kernels that are not finite are wrong where the exact ones are: these stand in for them here.
        of_bias, of_weight = (
            torch.where(got.isfinite(), got, want)
            for got, want in ((of_bias.double(), total), (of_weight.double(), product * deviation))
        )
        weight, mean, deviation, mean_grad, factor = _columns(
            parameters[2 * branch], mean, deviation, of_bias / count, of_weight / count
        )
        scale, values = weight * deviation, _edges(each)
        normed, values = (values - mean) * deviation, values.abs() + mean.abs()
        size = OF_TERMS * (points.abs() + values * deviation * factor.abs())
        size = scale.abs() * (size + of_sums * (mean_grad.abs() + (normed * factor).abs()))
        want = scale * (points - mean_grad - normed * factor)
        compared.add(_edges(of_branches[branch]).to(each.dtype), want, size)
        if branch == 0:
            compared.add(_corners(of_term[None])[0].to(of_term.dtype), want.sum(0), size.sum(0))
    return compared.largest()
