"""The batch norms of a mixer's two branches in training, their sum and the concatenation, forward and backward.

Operators one by one read and write the mixed channels some twenty times a step; these kernels thirteen times.

Each of the ``PIXELS`` lanes of a program adds up in float32 what it reads. The sums over lanes and programs, and what
is computed from them once per channel, are in float64. Their order is fixed: there are no atomics. ``stats`` are rows
of ``MIXED`` numbers: mean, inverse deviation, and what rounding took from the mean, of the large kernel's branch and
then of the small one's. The ``STEP`` of a map is the distance of its pixels, whose
channels lie next to each other.
"""

# mypy: disable-error-code="no-untyped-def"
# What a kernel computes with has no Python types.

import triton
import triton.language as tl

from .kernels import _narrow

__all__ = [
    'apply_kernel',
    'grads_kernel',
    'moments_kernel',
    'products_kernel',
    'statistics_kernel',
    'sums_kernel',
]

_BUFFERS = [f'{branch}_{name}' for branch in ('large', 'small') for name in ('mean', 'var', 'count')]
_PARAMETERS = [f'{branch}_{name}' for branch in ('large', 'small') for name in ('weight', 'bias')]


@triton.jit
def _row(vector, channel, is_mixed):
    return tl.load(vector + channel, mask=is_mixed, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _pixels(values, pixel, channel, mask, STEP: tl.constexpr):
    return tl.load(values + pixel[:, None] * STEP + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _follow(mean, squares, value, inside, part):
    """Mean and summed squared distances from it with one more ``value``, which weighs ``part`` (Welford)."""
    off = tl.where(inside[:, None], value - mean, 0.0)
    mean += off * part
    return mean, squares + off * (value - mean)


@triton.jit
def _store_moments(at, mean, squares, count, is_mixed, MIXED: tl.constexpr):
    """Those of all lanes, which have seen ``count`` pixels each."""
    count = count.to(tl.float64)[:, None]
    mean = mean.to(tl.float64)
    total = tl.sum(mean * count, 0) / tl.sum(count, 0)
    off = mean - total[None, :]
    tl.store(at, total, mask=is_mixed)
    tl.store(at + MIXED, tl.sum(squares.to(tl.float64) + count * off * off, 0), mask=is_mixed)


@triton.jit(do_not_specialize=['pixels', 'steps'])
def moments_kernel(
    large, small, moments, pixels, steps,
    MIXED: tl.constexpr, LARGE_STEP: tl.constexpr, SMALL_STEP: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and summed squared distances of a program's ``steps * PIXELS`` pixels: float64 ``(programs, 4, MIXED)``."""
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_mixed = channel < MIXED
    of_large, of_small = tl.zeros((PIXELS, BLOCK), tl.float32), tl.zeros((PIXELS, BLOCK), tl.float32)
    large_squares, small_squares = tl.zeros((PIXELS, BLOCK), tl.float32), tl.zeros((PIXELS, BLOCK), tl.float32)
    count = tl.zeros((PIXELS,), tl.int32)
    for step in range(steps):
        pixel = (tl.program_id(0).to(tl.int64) * steps + step) * PIXELS + tl.arange(0, PIXELS)
        inside = pixel < pixels
        mask, part = inside[:, None] & is_mixed[None, :], 1.0 / (step + 1)
        a = _pixels(large, pixel, channel, mask, LARGE_STEP)
        b = _pixels(small, pixel, channel, mask, SMALL_STEP)
        of_large, large_squares = _follow(of_large, large_squares, a, inside, part)
        of_small, small_squares = _follow(of_small, small_squares, b, inside, part)
        count += inside.to(tl.int32)
    at = moments + tl.program_id(0) * 4 * MIXED + channel
    _store_moments(at, of_large, large_squares, count, is_mixed, MIXED)
    _store_moments(at + 2 * MIXED, of_small, small_squares, count, is_mixed, MIXED)


@triton.jit
def _statistics(
    moments, stats, running_mean, running_var, batches, momentum, eps, pixels, programs, run,
    MIXED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_mixed = channel < MIXED
    mean = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < programs)[:, None] & is_mixed[None, :]
        count = tl.maximum(tl.minimum(pixels - row.to(tl.int64) * run, run), 0).to(tl.float64)
        mean += tl.sum(
            tl.load(moments + row[:, None] * 4 * MIXED + channel[None, :], mask=mask, other=0.0) * count[:, None], 0
        )
    mean /= pixels
    squares = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < programs)[:, None] & is_mixed[None, :]
        count = tl.maximum(tl.minimum(pixels - row.to(tl.int64) * run, run), 0).to(tl.float64)
        at = moments + row[:, None] * 4 * MIXED + channel[None, :]
        off = tl.load(at, mask=mask, other=0.0) - mean[None, :]
        squares += tl.sum(tl.load(at + MIXED, mask=mask, other=0.0) + off * off * count[:, None], 0)
    rounded = mean.to(tl.float32)
    tl.store(stats + channel, rounded, mask=is_mixed)
    tl.store(stats + MIXED + channel, (1.0 / tl.sqrt(squares / pixels + eps)).to(tl.float32), mask=is_mixed)
    tl.store(stats + 2 * MIXED + channel, (mean - rounded).to(tl.float32), mask=is_mixed)
    _run_on(running_mean, mean, momentum, channel, is_mixed)
    _run_on(running_var, squares / (pixels - 1), momentum, channel, is_mixed)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit
def _run_on(running, value, momentum, channel, is_mixed):
    before = tl.load(running + channel, mask=is_mixed, other=0.0).to(tl.float64)
    after = (before * (1 - momentum) + value * momentum).to(tl.float32)
    tl.store(running + channel, _narrow(after, running.dtype.element_ty), mask=is_mixed)


@triton.jit(do_not_specialize=['pixels', 'programs', 'run'], do_not_specialize_on_alignment=_BUFFERS)
def statistics_kernel(
    moments, stats, large_mean, large_var, large_count, small_mean, small_var, small_count,
    large_momentum, large_eps, small_momentum, small_eps, pixels, programs, run,
    MIXED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``stats`` from the moments of runs of pixels, and the running statistics as ``nn.BatchNorm2d`` updates them."""
    _statistics(
        moments, stats, large_mean, large_var, large_count, large_momentum, large_eps, pixels, programs, run,
        MIXED, ROWS, BLOCK,
    )  # fmt: skip
    _statistics(
        moments + 2 * MIXED, stats + 3 * MIXED, small_mean, small_var, small_count, small_momentum, small_eps,
        pixels, programs, run, MIXED, ROWS, BLOCK,
    )  # fmt: skip


@triton.jit(do_not_specialize=['pixels'], do_not_specialize_on_alignment=_PARAMETERS)
def apply_kernel(
    large, small, x, stats, large_weight, large_bias, small_weight, small_bias, out, pixels,
    MIXED: tl.constexpr, CHANNELS: tl.constexpr, LARGE_STEP: tl.constexpr, SMALL_STEP: tl.constexpr,
    X_STEP: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``cat(batch_norm(large) + batch_norm(small), x[MIXED:])`` of ``PIXELS`` pixels, all channels of each."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, BLOCK)
    inside, is_mixed, is_channel = (pixel < pixels)[:, None], channel < MIXED, channel < CHANNELS
    mixed = inside & is_mixed[None, :]
    # The mean goes first, so that it costs no digits.
    value = _pixels(large, pixel, channel, mixed, LARGE_STEP) - _row(stats, channel, is_mixed)
    value *= _row(large_weight, channel, is_mixed) * _row(stats + MIXED, channel, is_mixed)
    other = _pixels(small, pixel, channel, mixed, SMALL_STEP) - _row(stats + 3 * MIXED, channel, is_mixed)
    other *= _row(small_weight, channel, is_mixed) * _row(stats + 4 * MIXED, channel, is_mixed)
    value += other + (_row(large_bias, channel, is_mixed) + _row(small_bias, channel, is_mixed))
    if MIXED < CHANNELS:
        rest = inside & (is_channel & (channel >= MIXED))[None, :]
        value = tl.where(is_mixed[None, :], value, _pixels(x, pixel, channel, rest, X_STEP))
    value = _narrow(value, out.dtype.element_ty)
    tl.store(out + pixel[:, None] * CHANNELS + channel[None, :], value, mask=inside & is_channel[None, :])


@triton.jit
def _store_sum(at, value, is_mixed):
    tl.store(at, tl.sum(value.to(tl.float64), 0), mask=is_mixed)


@triton.jit(do_not_specialize=['pixels', 'steps'])
def products_kernel(
    grad, large, small, stats, products, pixels, steps,
    MIXED: tl.constexpr, GRAD_STEP: tl.constexpr, LARGE_STEP: tl.constexpr, SMALL_STEP: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of ``grad``, ``grad (large - mean)``, ``grad (small - mean)``: float64 ``(programs, 3, MIXED)``."""
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_mixed = channel < MIXED
    large_mean, small_mean = _row(stats, channel, is_mixed), _row(stats + 3 * MIXED, channel, is_mixed)
    of_grad = tl.zeros((PIXELS, BLOCK), tl.float32)
    of_large, of_small = tl.zeros((PIXELS, BLOCK), tl.float32), tl.zeros((PIXELS, BLOCK), tl.float32)
    for step in range(steps):
        pixel = (tl.program_id(0).to(tl.int64) * steps + step) * PIXELS + tl.arange(0, PIXELS)
        mask = (pixel < pixels)[:, None] & is_mixed[None, :]
        d = _pixels(grad, pixel, channel, mask, GRAD_STEP)
        of_grad += d
        of_large += d * (_pixels(large, pixel, channel, mask, LARGE_STEP) - large_mean)
        of_small += d * (_pixels(small, pixel, channel, mask, SMALL_STEP) - small_mean)
    at = products + tl.program_id(0) * 3 * MIXED + channel
    _store_sum(at, of_grad, is_mixed)
    _store_sum(at + MIXED, of_large, is_mixed)
    _store_sum(at + 2 * MIXED, of_small, is_mixed)


@triton.jit
def _store_grads(at, of_map, of_grad, stats, of_weight, of_bias, pixels, channel, is_mixed, MIXED: tl.constexpr):
    """Gradients of a norm's weight and bias, and what :func:`grads_kernel` takes of the sum of products."""
    deviation = tl.load(stats + MIXED + channel, mask=is_mixed, other=0.0).to(tl.float64)
    # The products are with distances from the rounded mean.
    of_map -= tl.load(stats + 2 * MIXED + channel, mask=is_mixed, other=0.0).to(tl.float64) * of_grad
    of_map *= deviation
    weight_grad, bias_grad = of_map.to(tl.float32), of_grad.to(tl.float32)
    tl.store(of_weight + channel, _narrow(weight_grad, of_weight.dtype.element_ty), mask=is_mixed)
    tl.store(of_bias + channel, _narrow(bias_grad, of_bias.dtype.element_ty), mask=is_mixed)
    tl.store(at + channel, (of_map * deviation / pixels).to(tl.float32), mask=is_mixed)


@triton.jit(do_not_specialize=['pixels', 'programs'])
def sums_kernel(
    products, stats, factors, of_large_weight, of_large_bias, of_small_weight, of_small_bias, pixels, programs,
    MIXED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the norms' parameters.

    ``factors``, ``(3, MIXED)``: the mean of the gradient, and for each branch that of its products with the normalised
    map, over the deviation.
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_mixed = channel < MIXED
    of_grad, of_large, of_small = (
        tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64),
    )  # fmt: skip
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < programs)[:, None] & is_mixed[None, :]
        at = products + row[:, None] * 3 * MIXED + channel[None, :]
        of_grad += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
        of_large += tl.sum(tl.load(at + MIXED, mask=mask, other=0.0), 0)
        of_small += tl.sum(tl.load(at + 2 * MIXED, mask=mask, other=0.0), 0)
    tl.store(factors + channel, (of_grad / pixels).to(tl.float32), mask=is_mixed)
    _store_grads(
        factors + MIXED, of_large, of_grad, stats, of_large_weight, of_large_bias, pixels, channel, is_mixed, MIXED
    )  # fmt: skip
    _store_grads(
        factors + 2 * MIXED, of_small, of_grad, stats + 3 * MIXED, of_small_weight, of_small_bias, pixels, channel,
        is_mixed, MIXED,
    )  # fmt: skip


@triton.jit
def _grad_of(value, mean, deviation, weight, factor, d, channel, is_mixed):
    """The gradient of a branch from ``d``, the output's less its mean."""
    value -= _row(mean, channel, is_mixed)
    scale = _row(weight, channel, is_mixed) * _row(deviation, channel, is_mixed)
    return (d - value * _row(factor, channel, is_mixed)) * scale


@triton.jit(do_not_specialize=['pixels'], do_not_specialize_on_alignment=['large_weight', 'small_weight'])
def grads_kernel(
    grad, large, small, stats, factors, large_weight, small_weight, of_large, of_small, pixels,
    MIXED: tl.constexpr, GRAD_STEP: tl.constexpr, LARGE_STEP: tl.constexpr, SMALL_STEP: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of both branches, dense in channels last, of ``PIXELS`` pixels."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_mixed = channel < MIXED
    mask = (pixel < pixels)[:, None] & is_mixed[None, :]
    d = _pixels(grad, pixel, channel, mask, GRAD_STEP) - _row(factors, channel, is_mixed)
    a = _pixels(large, pixel, channel, mask, LARGE_STEP)
    b = _pixels(small, pixel, channel, mask, SMALL_STEP)
    a = _grad_of(a, stats, stats + MIXED, large_weight, factors + MIXED, d, channel, is_mixed)
    b = _grad_of(b, stats + 3 * MIXED, stats + 4 * MIXED, small_weight, factors + 2 * MIXED, d, channel, is_mixed)
    at = pixel[:, None] * MIXED + channel[None, :]
    tl.store(of_large + at, _narrow(a, of_large.dtype.element_ty), mask=mask)
    tl.store(of_small + at, _narrow(b, of_small.dtype.element_ty), mask=mask)
