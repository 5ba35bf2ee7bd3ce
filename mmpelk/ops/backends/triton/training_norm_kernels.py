"""The norms of a block in training, forward and backward: batch norms of both branches, their sum, the concatenation
with the other channels, and the layer norm over all.

Operators one by one read and write the mixed channels some twenty times a step and the map eight times; these kernels
twelve times and four times.

Maps, in channels last, are read and written as rows of ``length`` numbers: the channels of some pixels, of an even
number of them if the channels are odd, so that ``ALIGN`` numbers are moved at a time whatever the number of channels.
How many channels and pixels there are is no constant: a network needs few kernels.

Each lane of a program adds up in float32 what it reads. The sums over lanes and programs, and what is computed from
them once per channel, are in float64, but those of a pixel's channels. Their order is fixed: there are no atomics.
``stats`` are rows of ``mixed`` numbers: mean, inverse deviation, and what rounding took from the mean, of the large
kernel's branch and then of the small one's.
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
    'norm_grads_kernel',
    'statistics_kernel',
    'sums_kernel',
]

_BUFFERS = [f'{branch}_{name}' for branch in ('large', 'small') for name in ('mean', 'var', 'count')]
_PARAMETERS = [f'{branch}{name}' for branch in ('large_', 'small_', '') for name in ('weight', 'bias')]


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


@triton.jit
def _of_channel(vector, channel, exists):
    return tl.load(vector + channel, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _affine(stats, large_weight, large_bias, small_weight, small_bias, channel, mixed):
    """For each place of a row the means and factors of both batch norms, and the sum of their biases."""
    is_mixed = channel < mixed
    large_factor = _of_channel(large_weight, channel, is_mixed) * _of_channel(stats + mixed, channel, is_mixed)
    small_factor = _of_channel(small_weight, channel, is_mixed) * _of_channel(stats + 4 * mixed, channel, is_mixed)
    shift = _of_channel(large_bias, channel, is_mixed) + _of_channel(small_bias, channel, is_mixed)
    large_mean, small_mean = _of_channel(stats, channel, is_mixed), _of_channel(stats + 3 * mixed, channel, is_mixed)
    return large_mean, large_factor, small_mean, small_factor, shift


@triton.jit
def _block_map(
    large, small, x, large_mean, large_factor, small_mean, small_factor, shift,
    row, place, inside, length, mixed, channels, ALIGN: tl.constexpr,
):  # fmt: skip
    """Of a row the sum of both branches' norms, with the other channels of ``x``; distances of both branches from their
    means; where the mixed channels lie; and which numbers of ``x`` are read.
    """
    channel, pixel = place % channels, place // channels
    partner = place ^ (ALIGN - 1)  # which is moved together with it, even if one of the two alone is mixed
    is_mixed, has_mixed = channel < mixed, partner % channels < mixed
    beside = partner // channels * mixed + partner % channels + (place - partner)
    in_row = tl.where(is_mixed, pixel * mixed + channel, beside)
    in_row = tl.max_contiguous(tl.multiple_of(in_row, ALIGN), ALIGN)
    at = row * _multiple(length // channels * mixed, ALIGN)
    moved = inside & tl.max_constancy(is_mixed | has_mixed, ALIGN)
    # The mean goes first, so that it costs no digits.
    of_large = _load(large + at, in_row, moved) - large_mean
    of_small = _load(small + at, in_row, moved) - small_mean
    value = of_large * large_factor + (of_small * small_factor + shift)
    has_others = inside & tl.max_constancy((channel >= mixed) | (partner % channels >= mixed), ALIGN)
    value = tl.where(is_mixed, value, _load(x + row * length, place, has_others))
    return value, of_large, of_small, at, in_row, has_others


@triton.jit
def _mean_of_pixels(value, pixel, pixels_a_row, channels):
    """For each number of a row the mean over the channels of its pixel."""
    # Zeros in the registers' layout of the numbers: it would be changed twice for others.
    mean = tl.where(pixel < 0, value, 0.0)
    for each in range(pixels_a_row):
        own = pixel == each
        mean = tl.where(own, tl.sum(tl.where(own, value, 0.0), 0) / channels, mean)
    return mean


@triton.jit
def _means_of_pixels(a, b, pixel, pixels_a_row, channels):
    """Those of two rows at once."""
    mean_a, mean_b = tl.where(pixel < 0, a, 0.0), tl.where(pixel < 0, b, 0.0)
    for each in range(pixels_a_row):
        own = pixel == each
        mean_a = tl.where(own, tl.sum(tl.where(own, a, 0.0), 0) / channels, mean_a)
        mean_b = tl.where(own, tl.sum(tl.where(own, b, 0.0), 0) / channels, mean_b)
    return mean_a, mean_b


@triton.jit
def _layer_norm(value, pixel, pixels_a_row, channels, eps):
    """A row without mean and deviation of its pixels, and one over these deviations."""
    # A first mean of few digits, so that the squares are those of distances.
    value -= _mean_of_pixels(value, pixel, pixels_a_row, channels)
    # The rounding of the mean is larger than that of the numbers around it: what it leaves is taken off as well.
    left, squares = _means_of_pixels(value, value * value, pixel, pixels_a_row, channels)
    scale = tl.rsqrt(tl.maximum(squares - left * left, 0.0) + eps)
    return (value - left) * scale, scale


@triton.jit(
    do_not_specialize=['numbers', 'length', 'mixed', 'channels', 'pixels_a_row'],
    do_not_specialize_on_alignment=_PARAMETERS,
)
def apply_kernel(
    large, small, x, stats, large_weight, large_bias, small_weight, small_bias, weight, bias, out,
    eps, numbers, length, mixed, channels, pixels_a_row, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of ``layer_norm(cat(batch_norm(large) + batch_norm(small), x[mixed:]))``."""
    numbers, length = _multiple(numbers, ALIGN), _multiple(length, ALIGN)
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = (place < length) & (row * length + place < numbers)
    channel, pixel = place % channels, place // channels
    large_mean, large_factor, small_mean, small_factor, shift = _affine(
        stats, large_weight, large_bias, small_weight, small_bias, channel, mixed
    )  # fmt: skip
    value, _, _, _, _, _ = _block_map(
        large, small, x, large_mean, large_factor, small_mean, small_factor, shift,
        row, place, inside, length, mixed, channels, ALIGN,
    )  # fmt: skip
    value, _ = _layer_norm(value, pixel, pixels_a_row, channels, eps)
    value = value * _of_channel(weight, channel, inside) + _of_channel(bias, channel, inside)
    tl.store(out + row * length + place, _narrow(value, out.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=['numbers', 'length', 'mixed', 'channels', 'pixels_a_row', 'steps'],
    do_not_specialize_on_alignment=_PARAMETERS,
)
def norm_grads_kernel(
    grad, large, small, x, stats, large_weight, large_bias, small_weight, small_bias, weight, of_x, of_mixed, sums,
    eps, numbers, length, mixed, channels, pixels_a_row, steps,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Through the layer norm: gradients of the other channels, in ``of_x``, and of the mixed ones.

    ``sums``, float64 ``(programs, 5, length)``, over a program's ``steps`` rows: of ``grad`` and of its products with
    the normalised map; of the mixed channels' gradient and of its products with either branch less its mean.
    """
    numbers, length = _multiple(numbers, ALIGN), _multiple(length, ALIGN)
    place = tl.arange(0, BLOCK)
    exists = place < length
    channel, pixel = place % channels, place // channels
    is_mixed = channel < mixed
    # Once for all rows: otherwise the compiler keeps their addresses, which take twice the registers.
    factor = _of_channel(weight, channel, exists)
    large_mean, large_factor, small_mean, small_factor, shift = _affine(
        stats, large_weight, large_bias, small_weight, small_bias, channel, mixed
    )  # fmt: skip
    of_bias, of_weight = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    with_large, with_small = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        row = tl.program_id(0).to(tl.int64) * steps + step
        inside = exists & (row * length + place < numbers)
        d = _load(grad + row * length, place, inside)
        value, large_off, small_off, at, in_row, has_others = _block_map(
            large, small, x, large_mean, large_factor, small_mean, small_factor, shift,
            row, place, inside, length, mixed, channels, ALIGN,
        )  # fmt: skip
        normed, scale = _layer_norm(value, pixel, pixels_a_row, channels, eps)
        of_bias += d
        of_weight += d * normed  # beyond the map d is zero
        d *= factor
        mean, product = _means_of_pixels(d, d * normed, pixel, pixels_a_row, channels)
        d = (d - mean - normed * product) * scale
        tl.store(of_x + row * length + place, _narrow(d, of_x.dtype.element_ty), mask=has_others)
        in_row = tl.max_contiguous(tl.multiple_of(in_row, ALIGN), ALIGN)
        tl.store(of_mixed + at + in_row, d, mask=inside & is_mixed)
        d = tl.where(is_mixed, d, 0.0)
        total += d
        with_large += d * large_off
        with_small += d * small_off
    at = sums + tl.program_id(0).to(tl.int64) * 5 * length + place
    tl.store(at, of_bias.to(tl.float64), mask=exists)
    tl.store(at + length, of_weight.to(tl.float64), mask=exists)
    tl.store(at + 2 * length, total.to(tl.float64), mask=exists)
    tl.store(at + 3 * length, with_large.to(tl.float64), mask=exists)
    tl.store(at + 4 * length, with_small.to(tl.float64), mask=exists)


@triton.jit
def _add_up(sums, programs, length, channels, channel, exists, ENTRIES: tl.constexpr, BLOCK: tl.constexpr):
    """A sum over all programs, and the pixels of a row."""
    total = tl.zeros((BLOCK,), tl.float64)
    pixels_a_row = length // channels
    for first in range(0, programs * pixels_a_row, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        mask = (entry < programs * pixels_a_row)[:, None] & exists[None, :]
        at = (entry // pixels_a_row).to(tl.int64) * 5 * length + entry % pixels_a_row * channels
        total += tl.sum(tl.load(sums + at[:, None] + channel[None, :], mask=mask, other=0.0), 0)
    return total


@triton.jit
def _store(vector, value, channel, exists):
    tl.store(vector + channel, _narrow(value.to(tl.float32), vector.dtype.element_ty), mask=exists)


@triton.jit
def _store_grads(at, of_map, of_grad, stats, of_weight, of_bias, pixels, channel, is_mixed, mixed):
    """Gradients of a norm's weight and bias, and what :func:`grads_kernel` takes of the sum of products."""
    deviation = tl.load(stats + mixed + channel, mask=is_mixed, other=0.0).to(tl.float64)
    # The products are with distances from the rounded mean.
    of_map -= tl.load(stats + 2 * mixed + channel, mask=is_mixed, other=0.0).to(tl.float64) * of_grad
    of_map *= deviation
    _store(of_weight, of_map, channel, is_mixed)
    _store(of_bias, of_grad, channel, is_mixed)
    tl.store(at + channel, (of_map * deviation / pixels).to(tl.float32), mask=is_mixed)


@triton.jit(do_not_specialize=['pixels', 'programs', 'length', 'mixed', 'channels'])
def sums_kernel(
    sums, stats, factors, of_large_weight, of_large_bias, of_small_weight, of_small_bias, of_weight, of_bias,
    pixels, programs, length, mixed, channels, ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the norms' parameters.

    ``factors``, ``(3, mixed)``: the mean of the mixed channels' gradient, and for each branch that of its products with
    the normalised map, over the deviation.
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists, is_mixed = channel < channels, channel < mixed
    _store(of_bias, _add_up(sums, programs, length, channels, channel, exists, ENTRIES, BLOCK), channel, exists)
    of_norm = _add_up(sums + length, programs, length, channels, channel, exists, ENTRIES, BLOCK)
    _store(of_weight, of_norm, channel, exists)
    if tl.program_id(0) * BLOCK < mixed:
        total = _add_up(sums + 2 * length, programs, length, channels, channel, is_mixed, ENTRIES, BLOCK)
        of_large = _add_up(sums + 3 * length, programs, length, channels, channel, is_mixed, ENTRIES, BLOCK)
        of_small = _add_up(sums + 4 * length, programs, length, channels, channel, is_mixed, ENTRIES, BLOCK)
        tl.store(factors + channel, (total / pixels).to(tl.float32), mask=is_mixed)
        _store_grads(
            factors + mixed, of_large, total, stats, of_large_weight, of_large_bias, pixels, channel, is_mixed, mixed
        )  # fmt: skip
        _store_grads(
            factors + 2 * mixed, of_small, total, stats + 3 * mixed, of_small_weight, of_small_bias, pixels, channel,
            is_mixed, mixed,
        )  # fmt: skip


@triton.jit
def _grad_of(value, mean, deviation, weight, factor, d, channel, exists):
    """The gradient of a branch from ``d``, the output's less its mean."""
    value -= _row(mean, channel, exists)
    scale = _row(weight, channel, exists) * _row(deviation, channel, exists)
    return (d - value * _row(factor, channel, exists)) * scale


@triton.jit(
    do_not_specialize=['images', 'length', 'mixed'],
    do_not_specialize_on_alignment=['large_weight', 'small_weight'],
)
def grads_kernel(
    grad, large, small, stats, factors, large_weight, small_weight, of_large, of_small, of_term,
    images, length, mixed, ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of both branches, and of a map that was added to the large kernel's of every image: ``of_term``.

    Rows are whole images here, of which a program has the same block, so that it adds up what ``of_term`` is.
    """
    length = _multiple(length, ALIGN)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, exists = place % mixed, place < length
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, images, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < images)[:, None] & exists[None, :]
        at = _dense(row, place, length, ALIGN)
        d = _load(grad, at, inside) - _row(factors, channel, exists)
        a, b = _load(large, at, inside), _load(small, at, inside)
        a = _grad_of(a, stats, stats + mixed, large_weight, factors + mixed, d, channel, exists)
        b = _grad_of(b, stats + 3 * mixed, stats + 4 * mixed, small_weight, factors + 2 * mixed, d, channel, exists)
        tl.store(of_large + at, _narrow(a, of_large.dtype.element_ty), mask=inside)
        tl.store(of_small + at, _narrow(b, of_small.dtype.element_ty), mask=inside)
        total += tl.where(inside, a, 0.0)
    tl.store(of_term + place, _narrow(tl.sum(total, 0), of_term.dtype.element_ty), mask=exists)
