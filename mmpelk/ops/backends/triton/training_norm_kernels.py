"""The batch norms of a mixer's two branches in training, their sum and the concatenation, forward and backward.

Operators one by one read and write the mixed channels some twenty times a step; these kernels thirteen times.

Maps, in channels last, are read and written as rows of ``length`` numbers: one pixel, or two if rows of an odd number
of channels are to begin at a multiple of ``ALIGN`` numbers, so that ``ALIGN`` of them are moved at a time whatever the
number of channels. How many channels and pixels there are is no constant: a network needs few kernels.

Each of the ``ROWS`` lanes of a program adds up in float32 what it reads. The sums over lanes and programs, and what is
computed from them once per channel, are in float64. Their order is fixed: there are no atomics. ``stats`` are rows of
``mixed`` numbers: mean, inverse deviation, and what rounding took from the mean, of the large kernel's branch and then
of the small one's. The ``step`` of a map is the distance of its pixels, whose channels lie next to each other.
"""

# mypy: disable-error-code="no-untyped-def"
# What a kernel computes with has no Python types.

import triton
import triton.language as tl

from .kernels import _multiple, _narrow

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
def _row(vector, channel, exists):
    return tl.load(vector + channel, mask=exists, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _tile(first_row, block, numbers, length, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows, places in a block of columns, and which of both there are, of ``numbers`` in rows of ``length``."""
    numbers, length = _multiple(numbers, ALIGN), _multiple(length, ALIGN)
    row = first_row + tl.arange(0, ROWS)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = (place < length)[None, :] & (row.to(tl.int64)[:, None] * length + place[None, :] < numbers)
    return row, place, inside


@triton.jit
def _dense(row, place, length, ALIGN: tl.constexpr):
    """Where the numbers of a tile lie in a map without gaps."""
    return row.to(tl.int64)[:, None] * _multiple(length, ALIGN) + place[None, :]


@triton.jit
def _load(values, at, inside):
    return tl.load(values + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load_spread(values, row, place, inside, length, channels, step, ALIGN: tl.constexpr):
    """A tile of a map whose pixels are ``step`` apart, of each of which rows have ``channels``."""
    row_step = _multiple(length // channels * step, ALIGN)
    at = row.to(tl.int64) * row_step
    # A hint reaches the compiler where its value is computed: not from a function of its own.
    in_row = place // channels * step + place % channels
    in_row = tl.max_contiguous(tl.multiple_of(in_row, ALIGN), ALIGN)
    value = _load(values, at[:, None] + in_row[None, :], inside)
    if ALIGN > 1:
        # A second pixel's first number came with the first pixel's last one, and so from the place after that.
        second = tl.max((place == channels).to(tl.int32), 0) > 0
        if second & (channels < length):
            pair = tl.arange(0, ALIGN)
            exists = tl.max((inside & (place == channels)[None, :]).to(tl.int32), 1) > 0
            both = _load(values, (at + (step - 1) // ALIGN * ALIGN)[:, None] + pair[None, :], exists[:, None])
            first = tl.sum(tl.where(pair[None, :] == (step - 1) % ALIGN + 1, both, 0.0), 1)
            value = tl.where((place == channels)[None, :], first[:, None], value)
    return value


@triton.jit
def _follow(mean, squares, value, inside, part):
    """Mean and summed squared distances from it with one more ``value``, which weighs ``part`` (Welford)."""
    off = tl.where(inside, value - mean, 0.0)
    mean += off * part
    return mean, squares + off * (value - mean)


@triton.jit
def _store_moments(at, mean, squares, count, place, length):
    """Those of all lanes, which have seen ``count`` rows each."""
    count = count.to(tl.float64)
    mean = mean.to(tl.float64)
    total = tl.sum(mean * count, 0) / tl.maximum(tl.sum(count, 0), 1.0)
    off = mean - total[None, :]
    tl.store(at + place, total, mask=place < length)
    tl.store(at + length + place, tl.sum(squares.to(tl.float64) + count * off * off, 0), mask=place < length)


@triton.jit(do_not_specialize=['numbers', 'length', 'steps'])
def moments_kernel(
    large, small, moments, numbers, length, steps, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and summed squared distances of a program's ``steps * ROWS`` rows: float64 ``(programs, 4, length)``."""
    of_large, of_small = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    large_squares, small_squares = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    first = tl.program_id(0) * steps * ROWS
    for step in range(steps):
        row, place, inside = _tile(first + step * ROWS, tl.program_id(1), numbers, length, ALIGN, ROWS, BLOCK)
        at, part = _dense(row, place, length, ALIGN), 1.0 / (step + 1)
        of_large, large_squares = _follow(of_large, large_squares, _load(large, at, inside), inside, part)
        of_small, small_squares = _follow(of_small, small_squares, _load(small, at, inside), inside, part)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    # The last row may have fewer pixels.
    rows = (numbers // length).to(tl.int32) + (place < numbers % length).to(tl.int32)
    left = rows[None, :] - first - tl.arange(0, ROWS)[:, None]
    count = tl.maximum(tl.minimum((left + ROWS - 1) // ROWS, steps), 0)
    at = moments + tl.program_id(0).to(tl.int64) * 4 * length
    _store_moments(at, of_large, large_squares, count, place, length)
    _store_moments(at + 2 * length, of_small, small_squares, count, place, length)


@triton.jit
def _rows_of(entry, pixels, pixels_a_row, run):
    """How many rows of its run have the pixel that an entry, of every program and pixel of a row, is for."""
    place = entry % pixels_a_row
    rows = (pixels // pixels_a_row + (place < pixels % pixels_a_row).to(tl.int32)).to(tl.int64)
    return tl.maximum(tl.minimum(rows - (entry // pixels_a_row).to(tl.int64) * run, run), 0).to(tl.float64)


@triton.jit
def _statistics(
    moments, stats, running_mean, running_var, batches, momentum, eps, pixels, programs, run, mixed, pixels_a_row,
    ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_mixed = channel < mixed
    length = pixels_a_row * mixed
    mean = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, programs * pixels_a_row, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        mask = (entry < programs * pixels_a_row)[:, None] & is_mixed[None, :]
        count = _rows_of(entry, pixels, pixels_a_row, run)[:, None]
        at = moments + (entry // pixels_a_row * 4 * length + entry % pixels_a_row * mixed)[:, None] + channel[None, :]
        mean += tl.sum(tl.load(at, mask=mask, other=0.0) * count, 0)
    mean /= pixels
    squares = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, programs * pixels_a_row, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        mask = (entry < programs * pixels_a_row)[:, None] & is_mixed[None, :]
        count = _rows_of(entry, pixels, pixels_a_row, run)[:, None]
        at = moments + (entry // pixels_a_row * 4 * length + entry % pixels_a_row * mixed)[:, None] + channel[None, :]
        off = tl.load(at, mask=mask, other=0.0) - mean[None, :]
        squares += tl.sum(tl.load(at + length, mask=mask, other=0.0) + off * off * count, 0)
    rounded = mean.to(tl.float32)
    tl.store(stats + channel, rounded, mask=is_mixed)
    tl.store(stats + mixed + channel, (1.0 / tl.sqrt(squares / pixels + eps)).to(tl.float32), mask=is_mixed)
    tl.store(stats + 2 * mixed + channel, (mean - rounded).to(tl.float32), mask=is_mixed)
    _run_on(running_mean, mean, momentum, channel, is_mixed)
    _run_on(running_var, squares / (pixels - 1), momentum, channel, is_mixed)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit
def _run_on(running, value, momentum, channel, is_mixed):
    before = tl.load(running + channel, mask=is_mixed, other=0.0).to(tl.float64)
    after = (before * (1 - momentum) + value * momentum).to(tl.float32)
    tl.store(running + channel, _narrow(after, running.dtype.element_ty), mask=is_mixed)


@triton.jit(
    do_not_specialize=['pixels', 'programs', 'run', 'mixed', 'pixels_a_row'], do_not_specialize_on_alignment=_BUFFERS
)
def statistics_kernel(
    moments, stats, large_mean, large_var, large_count, small_mean, small_var, small_count,
    large_momentum, large_eps, small_momentum, small_eps, pixels, programs, run, mixed, pixels_a_row,
    ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``stats`` from the moments of runs of rows, and the running statistics as ``nn.BatchNorm2d`` updates them."""
    _statistics(
        moments, stats, large_mean, large_var, large_count, large_momentum, large_eps, pixels, programs, run,
        mixed, pixels_a_row, ENTRIES, BLOCK,
    )  # fmt: skip
    _statistics(
        moments + 2 * pixels_a_row * mixed, stats + 3 * mixed, small_mean, small_var, small_count, small_momentum,
        small_eps, pixels, programs, run, mixed, pixels_a_row, ENTRIES, BLOCK,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=['numbers', 'length', 'mixed', 'channels', 'x_step'], do_not_specialize_on_alignment=_PARAMETERS
)
def apply_kernel(
    large, small, x, stats, large_weight, large_bias, small_weight, small_bias, out,
    numbers, length, mixed, channels, x_step, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of ``cat(batch_norm(large) + batch_norm(small), x[mixed:])``, whose rows have all ``channels``."""
    row, place, inside = _tile(tl.program_id(0) * ROWS, tl.program_id(1), numbers, length, ALIGN, ROWS, BLOCK)
    channel, pixel = place % channels, place // channels
    partner = place ^ (ALIGN - 1)  # which is moved together with it, even if one of the two alone is mixed
    is_mixed, has_mixed = channel < mixed, partner % channels < mixed
    beside = partner // channels * mixed + partner % channels + (place - partner)
    in_row = tl.where(is_mixed, pixel * mixed + channel, beside)
    in_row = tl.max_contiguous(tl.multiple_of(in_row, ALIGN), ALIGN)
    at = row.to(tl.int64)[:, None] * _multiple(length // channels * mixed, ALIGN) + in_row[None, :]
    moved = inside & tl.max_constancy(is_mixed | has_mixed, ALIGN)[None, :]
    # The mean goes first, so that it costs no digits.
    value = _load(large, at, moved) - _row(stats, channel, is_mixed)
    value *= _row(large_weight, channel, is_mixed) * _row(stats + mixed, channel, is_mixed)
    other = _load(small, at, moved) - _row(stats + 3 * mixed, channel, is_mixed)
    other *= _row(small_weight, channel, is_mixed) * _row(stats + 4 * mixed, channel, is_mixed)
    value += other + (_row(large_bias, channel, is_mixed) + _row(small_bias, channel, is_mixed))
    in_row = pixel * x_step + channel
    in_row = tl.max_contiguous(tl.multiple_of(in_row, ALIGN), ALIGN)
    at = row.to(tl.int64)[:, None] * _multiple(length // channels * x_step, ALIGN) + in_row[None, :]
    moved = inside & tl.max_constancy((channel >= mixed) | (partner % channels >= mixed), ALIGN)[None, :]
    value = tl.where(is_mixed[None, :], value, _load(x, at, moved))
    tl.store(out + _dense(row, place, length, ALIGN), _narrow(value, out.dtype.element_ty), mask=inside)


@triton.jit
def _store_sum(at, value, is_mixed):
    tl.store(at, tl.sum(value.to(tl.float64), 0), mask=is_mixed)


@triton.jit(do_not_specialize=['numbers', 'length', 'mixed', 'grad_step', 'steps'])
def products_kernel(
    grad, large, small, stats, products, numbers, length, mixed, grad_step, steps,
    ALIGN: tl.constexpr, STEP_ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of ``grad``, ``grad (large - mean)``, ``grad (small - mean)``: float64 ``(programs, 3, length)``."""
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = place < length
    large_mean, small_mean = _row(stats, place % mixed, exists), _row(stats + 3 * mixed, place % mixed, exists)
    of_grad = tl.zeros((ROWS, BLOCK), tl.float32)
    of_large, of_small = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(steps):
        row, place, inside = _tile(
            (tl.program_id(0) * steps + step) * ROWS, tl.program_id(1), numbers, length, ALIGN, ROWS, BLOCK
        )
        d = _load_spread(grad, row, place, inside, length, mixed, grad_step, STEP_ALIGN)
        at = _dense(row, place, length, ALIGN)
        of_grad += d
        of_large += d * (_load(large, at, inside) - large_mean)
        of_small += d * (_load(small, at, inside) - small_mean)
    at = products + tl.program_id(0).to(tl.int64) * 3 * length + place
    _store_sum(at, of_grad, exists)
    _store_sum(at + length, of_large, exists)
    _store_sum(at + 2 * length, of_small, exists)


@triton.jit
def _store_grads(at, of_map, of_grad, stats, of_weight, of_bias, pixels, channel, is_mixed, mixed):
    """Gradients of a norm's weight and bias, and what :func:`grads_kernel` takes of the sum of products."""
    deviation = tl.load(stats + mixed + channel, mask=is_mixed, other=0.0).to(tl.float64)
    # The products are with distances from the rounded mean.
    of_map -= tl.load(stats + 2 * mixed + channel, mask=is_mixed, other=0.0).to(tl.float64) * of_grad
    of_map *= deviation
    weight_grad, bias_grad = of_map.to(tl.float32), of_grad.to(tl.float32)
    tl.store(of_weight + channel, _narrow(weight_grad, of_weight.dtype.element_ty), mask=is_mixed)
    tl.store(of_bias + channel, _narrow(bias_grad, of_bias.dtype.element_ty), mask=is_mixed)
    tl.store(at + channel, (of_map * deviation / pixels).to(tl.float32), mask=is_mixed)


@triton.jit(do_not_specialize=['pixels', 'programs', 'mixed', 'pixels_a_row'])
def sums_kernel(
    products, stats, factors, of_large_weight, of_large_bias, of_small_weight, of_small_bias,
    pixels, programs, mixed, pixels_a_row, ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the norms' parameters.

    ``factors``, ``(3, mixed)``: the mean of the gradient, and for each branch that of its products with the normalised
    map, over the deviation.
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_mixed = channel < mixed
    length = pixels_a_row * mixed
    of_grad, of_large, of_small = (
        tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64),
    )  # fmt: skip
    for first in range(0, programs * pixels_a_row, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        mask = (entry < programs * pixels_a_row)[:, None] & is_mixed[None, :]
        at = products + (entry // pixels_a_row * 3 * length + entry % pixels_a_row * mixed)[:, None] + channel[None, :]
        of_grad += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
        of_large += tl.sum(tl.load(at + length, mask=mask, other=0.0), 0)
        of_small += tl.sum(tl.load(at + 2 * length, mask=mask, other=0.0), 0)
    tl.store(factors + channel, (of_grad / pixels).to(tl.float32), mask=is_mixed)
    _store_grads(
        factors + mixed, of_large, of_grad, stats, of_large_weight, of_large_bias, pixels, channel, is_mixed, mixed
    )  # fmt: skip
    _store_grads(
        factors + 2 * mixed, of_small, of_grad, stats + 3 * mixed, of_small_weight, of_small_bias, pixels, channel,
        is_mixed, mixed,
    )  # fmt: skip


@triton.jit
def _grad_of(value, mean, deviation, weight, factor, d, channel, exists):
    """The gradient of a branch from ``d``, the output's less its mean."""
    value -= _row(mean, channel, exists)
    scale = _row(weight, channel, exists) * _row(deviation, channel, exists)
    return (d - value * _row(factor, channel, exists)) * scale


@triton.jit(
    do_not_specialize=['numbers', 'length', 'mixed', 'grad_step'],
    do_not_specialize_on_alignment=['large_weight', 'small_weight'],
)
def grads_kernel(
    grad, large, small, stats, factors, large_weight, small_weight, of_large, of_small,
    numbers, length, mixed, grad_step,
    ALIGN: tl.constexpr, STEP_ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of both branches, a tile of them, without gaps in channels last."""
    row, place, inside = _tile(tl.program_id(0) * ROWS, tl.program_id(1), numbers, length, ALIGN, ROWS, BLOCK)
    channel, exists = place % mixed, place < length
    d = _load_spread(grad, row, place, inside, length, mixed, grad_step, STEP_ALIGN) - _row(factors, channel, exists)
    at = _dense(row, place, length, ALIGN)
    a, b = _load(large, at, inside), _load(small, at, inside)
    a = _grad_of(a, stats, stats + mixed, large_weight, factors + mixed, d, channel, exists)
    b = _grad_of(b, stats + 3 * mixed, stats + 4 * mixed, small_weight, factors + 2 * mixed, d, channel, exists)
    tl.store(of_large + at, _narrow(a, of_large.dtype.element_ty), mask=inside)
    tl.store(of_small + at, _narrow(b, of_small.dtype.element_ty), mask=inside)
