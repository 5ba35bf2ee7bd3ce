"""The end of a block's mixer in inference as one kernel: batch norms, sum, concatenation and layer norm.

Operators one by one read and write the mixed channels seven times and the map four times; the kernel reads each
branch and the other channels once and writes the map once, in the dtype that the linear layer wants. All sums are in
float32. A program holds all channels of a few pixels in registers, so that threads next to each other read and write
channels next to each other.
"""

# mypy: disable-error-code="no-untyped-def"
# What a kernel computes with has no Python types.

import triton
import triton.language as tl

from .kernels import _narrow

__all__ = ['mixed_norm_kernel']

_PARAMETERS = [f'{branch}_{name}' for branch in ('large', 'small') for name in ('mean', 'var', 'weight', 'bias')]


@triton.jit
def _batch_norm(value, mean, var, weight, bias, eps, channel, inside):
    """``value`` in float32 as a batch norm in eval mode leaves it; the mean goes first, so that it costs no digits."""
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    scale *= tl.rsqrt(tl.load(var + channel, mask=inside, other=1.0).to(tl.float32) + eps)
    value -= tl.load(mean + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    return value * scale[None, :] + tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _moved(wanted, partner_is_wanted, TWO: tl.constexpr):
    """Which numbers are moved: those that are ``wanted``, with their partners."""
    if TWO:
        wanted = tl.max_constancy(wanted | partner_is_wanted, 2)
    return wanted


@triton.jit
def _numbers(row, place, wanted, CHANNELS: tl.constexpr, STEP: tl.constexpr, TWO: tl.constexpr):
    """Where the numbers of a map's rows lie; those that are not ``wanted`` lie beside their partners."""
    at = place // CHANNELS * STEP + place % CHANNELS
    if TWO:
        partner = place ^ 1
        beside = partner // CHANNELS * STEP + partner % CHANNELS + (place - partner)
        at = tl.max_contiguous(tl.multiple_of(tl.where(wanted, at, beside), 2), 2)
    return row[:, None] * (STEP * (1 + TWO)) + at[None, :]


@triton.jit
def _means(value, second, CHANNELS: tl.constexpr, TWO: tl.constexpr):
    """Of each pixel, at all of its places."""
    if TWO:
        of_first = tl.sum(tl.where(second[None, :], 0.0, value), 1) / CHANNELS
        of_second = tl.sum(tl.where(second[None, :], value, 0.0), 1) / CHANNELS
        means = tl.where(second[None, :], of_second[:, None], of_first[:, None])
    else:
        means = (tl.sum(value, 1) / CHANNELS)[:, None]
    return means


@triton.jit(do_not_specialize=['pixels'], do_not_specialize_on_alignment=[*_PARAMETERS, 'weight', 'bias'])
def mixed_norm_kernel(
    large, small, x, out,
    large_mean, large_var, large_weight, large_bias, small_mean, small_var, small_weight, small_bias, weight, bias,
    pixels, large_eps, small_eps, eps,
    MIXED: tl.constexpr, CHANNELS: tl.constexpr, BRANCHES: tl.constexpr,
    LARGE_STEP: tl.constexpr, SMALL_STEP: tl.constexpr, X_STEP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    """``layer_norm(cat(batch_norm(large) + batch_norm(small), x[MIXED:]))`` of ``ROWS`` pixels, or pairs if ``TWO``.

    ``BRANCHES``: 2, or 1 without ``small``, or 0 where ``large`` is what is concatenated. The ``STEP`` of a map is the
    distance of its pixels, whose channels lie next to each other. ``TWO``: channels and steps are odd numbers, so that
    not every pixel, but every pair of pixels begins at an even one; then two numbers are moved at a time.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, BLOCK)
    channel, of_partner = place % CHANNELS, (place ^ 1) % CHANNELS
    is_channel, second = place < CHANNELS * (1 + TWO), place >= CHANNELS
    inside, is_mixed = (row < pixels // (1 + TWO))[:, None] & is_channel[None, :], channel < MIXED
    moved = inside & _moved(is_mixed, of_partner < MIXED, TWO)[None, :]
    is_mixed = is_mixed & is_channel
    at = _numbers(row, place, is_mixed, CHANNELS, LARGE_STEP, TWO)
    value = tl.load(large + at, mask=moved, other=0.0).to(tl.float32)
    if BRANCHES > 0:
        value = _batch_norm(value, large_mean, large_var, large_weight, large_bias, large_eps, channel, is_mixed)
    if BRANCHES > 1:
        at = _numbers(row, place, is_mixed, CHANNELS, SMALL_STEP, TWO)
        other = tl.load(small + at, mask=moved, other=0.0).to(tl.float32)
        value += _batch_norm(other, small_mean, small_var, small_weight, small_bias, small_eps, channel, is_mixed)
    if MIXED < CHANNELS:
        moved = inside & _moved(channel >= MIXED, of_partner >= MIXED, TWO)[None, :]
        at = _numbers(row, place, channel >= MIXED, CHANNELS, X_STEP, TWO)
        value = tl.where(is_mixed[None, :], value, tl.load(x + at, mask=moved, other=0.0).to(tl.float32))
    # The rounding of the mean is larger than that of the numbers around it: what it leaves is taken off as well.
    value = tl.where(is_channel[None, :], value - _means(value, second, CHANNELS, TWO), 0.0)
    left = _means(value, second, CHANNELS, TWO)
    variance = tl.maximum(_means(value * value, second, CHANNELS, TWO) - left * left, 0.0)
    value = (value - left) * tl.rsqrt(variance + eps)
    value *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    value += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    value = _narrow(value, out.dtype.element_ty)
    tl.store(out + row[:, None] * (CHANNELS * (1 + TWO)) + place[None, :], value, mask=inside)
