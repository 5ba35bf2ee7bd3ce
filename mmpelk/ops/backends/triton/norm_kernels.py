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


@triton.jit(do_not_specialize=['pixels'], do_not_specialize_on_alignment=[*_PARAMETERS, 'weight', 'bias'])
def mixed_norm_kernel(
    large, small, x, out,
    large_mean, large_var, large_weight, large_bias, small_mean, small_var, small_weight, small_bias, weight, bias,
    pixels, large_eps, small_eps, eps,
    MIXED: tl.constexpr, CHANNELS: tl.constexpr, BRANCHES: tl.constexpr,
    LARGE_STEP: tl.constexpr, SMALL_STEP: tl.constexpr, X_STEP: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``layer_norm(cat(batch_norm(large) + batch_norm(small), x[MIXED:]))`` of ``PIXELS`` pixels.

    ``BRANCHES``: 2, or 1 without ``small``, or 0 where ``large`` is what is concatenated. The ``STEP`` of a map is the
    distance of its pixels, whose channels lie next to each other.
    """
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, BLOCK)
    inside, is_mixed, is_channel = (pixel < pixels)[:, None], channel < MIXED, channel < CHANNELS
    mixed = inside & is_mixed[None, :]
    value = tl.load(large + pixel[:, None] * LARGE_STEP + channel[None, :], mask=mixed, other=0.0).to(tl.float32)
    if BRANCHES > 0:
        value = _batch_norm(value, large_mean, large_var, large_weight, large_bias, large_eps, channel, is_mixed)
    if BRANCHES > 1:
        other = tl.load(small + pixel[:, None] * SMALL_STEP + channel[None, :], mask=mixed, other=0.0).to(tl.float32)
        value += _batch_norm(other, small_mean, small_var, small_weight, small_bias, small_eps, channel, is_mixed)
    if MIXED < CHANNELS:
        rest = inside & (is_channel & (channel >= MIXED))[None, :]
        passed = tl.load(x + pixel[:, None] * X_STEP + channel[None, :], mask=rest, other=0.0).to(tl.float32)
        value = tl.where(is_mixed[None, :], value, passed)
    # The rounding of the mean is larger than that of the numbers around it: what it leaves is taken off as well.
    value = tl.where(is_channel[None, :], value - (tl.sum(value, 1) / CHANNELS)[:, None], 0.0)
    left = tl.sum(value, 1) / CHANNELS
    variance = tl.maximum(tl.sum(value * value, 1) / CHANNELS - left * left, 0.0)
    value = (value - left[:, None]) * tl.rsqrt(variance + eps)[:, None]
    value *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    value += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    value = _narrow(value, out.dtype.element_ty)
    tl.store(out + pixel[:, None] * CHANNELS + channel[None, :], value, mask=inside & is_channel[None, :])
