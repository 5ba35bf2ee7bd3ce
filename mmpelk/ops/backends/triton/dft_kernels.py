"""Triton kernels of Fourier transforms as products of matrices: spectrum of the weight, convolution, its gradient.

Of a tile ``X`` the spectrum is ``R X C``: a cosine and a sine part along either axis, hence four quadrants. They are
multiplied by those of the kernel, and the output is ``R' Y C'``. Frequencies are worked through in blocks, whose
quadrants stay in registers. :mod:`mmpelk.ops.backends.dft` says which frequencies, and how spectra are multiplied.

The products have factors in float16 and float32 sums. So that nothing leaves float16's range, a plane is scaled by a
power of two to numbers below 2, and the kernel to a sum of absolute taps below 1: no number of their product is then
larger than the sum of the plane's, 2**15 for 128 x 128. Errors are relative to the largest numbers of a plane.

With ``PARTS`` of 2 every factor is the sum of two float16 numbers, and of the products all but the smallest are taken:
for maps in float16, whose own rounding is as fine as that of one part, and for sums of few numbers.
"""

# mypy: disable-error-code="no-untyped-def"
# What a kernel computes with has no Python types.

import triton
import triton.language as tl

from .kernels import _dot, _load, _multiple, _narrow, _store_tile

__all__ = [
    'FREQUENCIES',
    'WIDTH',
    'dft_add_shares_kernel',
    'dft_conv_kernel',
    'dft_spectrum_kernel',
    'dft_weight_grad_kernel',
]

FREQUENCIES = 64
"""Frequencies of a block along the rows: the rows of one matrix instruction of a warp group on Hopper. Of two warp
groups, twice as many, or both compute the same."""

WIDTH = 16
"""Frequencies of a block along the columns: the fewest that a product takes, so that four quadrants fit registers."""

_LOW = tl.constexpr(FREQUENCIES)  # rows of a tile for which there are registers to spare
_AFTER_ROWS = tl.constexpr(2.0**-7)  # brings the sum over a column's frequencies, cosines and sines, back below 2**16


@triton.jit
def _halves(value, PARTS: tl.constexpr):
    """Float32 as the sum of two float16 numbers, or rounded to the first."""
    high = value.to(tl.float16)
    low = high
    if PARTS > 1:
        low = (value - high.to(tl.float32)).to(tl.float16)
    return high, low


@triton.jit
def _times(a, a_low, b, b_low, acc, PARTS: tl.constexpr):
    """``acc + a @ b``, the small products first."""
    if PARTS > 1:
        acc = _dot(a_low, b, acc)
        acc = _dot(a, b_low, acc)
    return _dot(a, b, acc)


@triton.jit
def _load_parts(table, SIZE: tl.constexpr, PARTS: tl.constexpr):
    """Both parts of a matrix of ``SIZE`` numbers, the second behind the first."""
    high = tl.load(table)
    low = high
    if PARTS > 1:
        low = tl.load(table + SIZE)
    return high, low


@triton.jit
def _zero(number):
    """Zero for any number that is not negative, which the compiler cannot know.

    An address that is computed with it is computed where it is used, not held in registers since the last time that
    something like it was. A multiple of 128: accesses stay as wide.
    """
    return tl.minimum(number, 0) * 128


@triton.jit
def _entries(ROWS: tl.constexpr, COLS: tl.constexpr):
    return tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]


@triton.jit
def _per_row(value, ROWS: tl.constexpr, IMAGES: tl.constexpr):
    """A number per image as one per row."""
    return tl.reshape(tl.broadcast_to(value[:, None], (IMAGES, ROWS // IMAGES)), (ROWS,))


@triton.jit
def _power(exponent):
    """``2 ** (exponent - 127)`` for an exponent of 0 to 254, as float32 numbers have them; 0 for 0."""
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _scaled(tile, ROWS: tl.constexpr, IMAGES: tl.constexpr):
    """A tile in float16 with each image scaled to numbers below 2, and per image what undoes it.

    Numbers that are not finite are taken out, because the products would carry them to other images; what undoes the
    scale is NaN for their image.
    """
    value = tile.to(tl.float32)
    if tile.dtype == tl.bfloat16 and ROWS <= _LOW:
        finite = tl.abs(value) < float('inf')
        value = tl.where(finite, value, 0.0)
        broken = tl.max(tl.reshape(tl.max(1 - finite.to(tl.int32), axis=1), (IMAGES, ROWS // IMAGES)), axis=1)
        largest = tl.max(tl.reshape(tl.max(tl.abs(value), axis=1), (IMAGES, ROWS // IMAGES)), axis=1)
    else:  # for want of registers by 16 bits, which are ordered as absolute numbers are
        bits = tl.max(tile.to(tl.int16, bitcast=True) & 0x7FFF, axis=1)
        largest = tl.max(tl.reshape(bits, (IMAGES, ROWS // IMAGES)), axis=1).to(tl.int16)
        largest = largest.to(tile.dtype, bitcast=True).to(tl.float32)
        broken = 1 - (largest < float('inf')).to(tl.int32)
        value = tl.where(tl.abs(value) < float('inf'), value, 0.0)
    exponent = largest.to(tl.int32, bitcast=True) >> 23
    scale = _power(tl.maximum(254 - exponent, 1))
    half = (value * _per_row(scale, ROWS, IMAGES)[:, None]).to(tl.float16)
    return half, tl.where(broken > 0, float('nan'), _power(tl.minimum(exponent, 253)))


@triton.jit
def _load_tile(
    tensor, first_image, row, col, images, height, width, stride_n, stride_h,
    ROWS: tl.constexpr, COLS: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """Rows from ``row`` on and columns from ``col`` on, ``ROWS / IMAGES`` by ``COLS``, of ``IMAGES`` images."""
    local = tl.arange(0, ROWS)
    image = first_image + local // (ROWS // IMAGES)
    y = row + local % (ROWS // IMAGES)
    rows = image.to(tl.int64) * stride_n + y.to(tl.int64) * stride_h
    return _load(tensor, rows, (image < images) & (y >= 0) & (y < height), col + tl.arange(0, COLS), width, False)


@triton.jit
def _quadrants(x_cc, x_sc, x_cs, x_ss, k_cc, k_sc, k_cs, k_ss):
    """Spectrum of the correlation of two maps, from cosine and sine part along the rows, then along the columns.

    The gradient of the kernel's spectrum is that of the input and the output's gradient.
    """
    y_cc = x_cc * k_cc + x_sc * k_sc + x_cs * k_cs + x_ss * k_ss
    y_sc = x_sc * k_cc - x_cc * k_sc + x_ss * k_cs - x_cs * k_ss
    y_cs = x_cs * k_cc + x_ss * k_sc - x_cc * k_cs - x_sc * k_ss
    y_ss = x_ss * k_cc - x_cs * k_sc - x_sc * k_cs + x_cc * k_ss
    return y_cc, y_sc, y_cs, y_ss


@triton.jit
def _along_columns(x, waves, ROWS: tl.constexpr, COLS: tl.constexpr, FREQS: tl.constexpr, PARTS: tl.constexpr):
    """Cosine and sine part of the rows of ``x``, a block of frequencies of each, in one or two parts."""
    SIZE: tl.constexpr = COLS * FREQS
    waves += _entries(COLS, FREQS)
    cosine, cosine_low = _load_parts(waves, SIZE, PARTS)
    sine, sine_low = _load_parts(waves + SIZE * PARTS, SIZE, PARTS)
    zero = tl.zeros((ROWS, FREQS), tl.float32)
    c = zero
    s = zero
    if PARTS > 1:  # the map itself is exact in one part
        c = _dot(x, cosine_low, c)
        s = _dot(x, sine_low, s)
    c, c_low = _halves(_dot(x, cosine, c), PARTS)
    s, s_low = _halves(_dot(x, sine, s), PARTS)
    return c, c_low, s, s_low


@triton.jit
def _along_rows(
    c, c_low, s, s_low, cosine, cosine_low, sine, sine_low,
    BLOCK: tl.constexpr, FREQS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The four quadrants of a block of frequencies, from what :func:`_along_columns` returns."""
    zero = tl.zeros((BLOCK, FREQS), tl.float32)
    return (
        _times(cosine, cosine_low, c, c_low, zero, PARTS),
        _times(sine, sine_low, c, c_low, zero, PARTS),
        _times(cosine, cosine_low, s, s_low, zero, PARTS),
        _times(sine, sine_low, s, s_low, zero, PARTS),
    )


@triton.jit
def _sum_of_taps(weight, row_sizes, col_sizes, weight_a, weight_b, rings, RINGS: tl.constexpr):
    """Sum of the absolute taps of a dense kernel: no number of its spectrum is larger."""
    ring = tl.arange(0, RINGS)
    exist = ring < rings
    rows = tl.load(row_sizes + ring, mask=exist, other=0.0)
    cols = tl.load(col_sizes + ring, mask=exist, other=0.0)
    mask = exist[:, None] & exist[None, :]
    taps = tl.load(weight + ring[:, None] * weight_a + ring[None, :] * weight_b, mask=mask, other=0.0)
    return tl.sum(tl.sum(tl.abs(taps.to(tl.float32)) * rows[:, None] * cols[None, :], axis=1), axis=0)


@triton.jit
def _exponent_of_spectrum(weight, row_sizes, col_sizes, weight_a, weight_b, rings, RINGS: tl.constexpr):
    """That of a power of two beyond every number of the kernel's spectrum, at most 252."""
    largest = _sum_of_taps(weight, row_sizes, col_sizes, weight_a, weight_b, rings, RINGS)
    return tl.minimum((largest.to(tl.int32, bitcast=True) >> 23) + 1, 252)


@triton.jit(
    do_not_specialize=['weight_c', 'weight_a', 'weight_b', 'rings', 'blocks'],
    do_not_specialize_on_alignment=['weight'],
)
def dft_spectrum_kernel(
    weight, spectrum, row_rings, col_rings, row_sizes, col_sizes, weight_c, weight_a, weight_b, rings, blocks,
    RINGS: tl.constexpr, ROW_FREQS: tl.constexpr, FREQS: tl.constexpr,
):  # fmt: skip
    """Write the spectra, ``(C, row blocks, column blocks, 4, ROW_FREQS, FREQS)``; one program for each block."""
    program = tl.program_id(0)
    block = program % blocks
    col_blocks = tl.num_programs(1)
    col_block = tl.program_id(1)
    channel = (program // blocks).to(tl.int64)
    weight += channel * weight_c
    scale = _power(254 - _exponent_of_spectrum(weight, row_sizes, col_sizes, weight_a, weight_b, rings, RINGS))
    ring = tl.arange(0, RINGS)
    exist = ring < rings
    freq = tl.arange(0, FREQS)
    # Tables of rings by cosine or sine by frequency.
    col_rings += col_block * (2 * FREQS) + ring[:, None] * (col_blocks * 2 * FREQS) + freq[None, :]
    cosine = tl.load(col_rings, mask=exist[:, None], other=0.0)
    sine = tl.load(col_rings + FREQS, mask=exist[:, None], other=0.0)
    row_rings += block * (2 * ROW_FREQS) + tl.arange(0, ROW_FREQS)
    cc = tl.zeros((ROW_FREQS, FREQS), tl.float32)
    sc = tl.zeros((ROW_FREQS, FREQS), tl.float32)
    cs = tl.zeros((ROW_FREQS, FREQS), tl.float32)
    ss = tl.zeros((ROW_FREQS, FREQS), tl.float32)
    for row in range(0, rings):
        taps = tl.load(weight + row * weight_a + ring * weight_b, mask=exist, other=0.0).to(tl.float32)
        taps = (taps * scale)[:, None]
        c = tl.sum(taps * cosine, axis=0)[None, :]
        s = tl.sum(taps * sine, axis=0)[None, :]
        row_cosine = tl.load(row_rings + row * (blocks * 2 * ROW_FREQS))[:, None]
        row_sine = tl.load(row_rings + row * (blocks * 2 * ROW_FREQS) + ROW_FREQS)[:, None]
        cc += row_cosine * c
        sc += row_sine * c
        cs += row_cosine * s
        ss += row_sine * s
    SIZE: tl.constexpr = ROW_FREQS * FREQS
    spectrum += (program.to(tl.int64) * col_blocks + col_block) * (4 * SIZE) + _entries(ROW_FREQS, FREQS)
    dtype: tl.constexpr = spectrum.dtype.element_ty
    tl.store(spectrum, cc.to(dtype))
    tl.store(spectrum + SIZE, sc.to(dtype))
    tl.store(spectrum + 2 * SIZE, cs.to(dtype))
    tl.store(spectrum + 3 * SIZE, ss.to(dtype))


@triton.jit(
    do_not_specialize=[
        'images', 'height', 'width', 'x_n', 'x_c', 'x_h', 'out_n', 'out_c', 'out_h', 'bias_c', 'bias_h',
        'bias_rows', 'weight_c', 'weight_a', 'weight_b', 'rings', 'steps', 'splits', 'row_tiles', 'col_tiles', 'left',
        'col_blocks', 'norm',
    ],
    do_not_specialize_on_alignment=['weight'],
)  # fmt: skip
def dft_conv_kernel(
    x, spectrum, weight, bias, out, row_waves, row_back, row_sizes, col_waves, col_back, col_sizes,
    images, height, width, x_n, x_c, x_h, out_n, out_c, out_h, bias_c, bias_h, bias_rows,
    weight_c, weight_a, weight_b, rings,
    steps, splits, row_tiles, col_tiles, left, col_blocks, norm,
    ROWS_IN: tl.constexpr, COLS_IN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TOP: tl.constexpr,
    ROW_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, FREQS: tl.constexpr, IMAGES: tl.constexpr, RINGS: tl.constexpr,
    PARTS: tl.constexpr, ALONE: tl.constexpr, BIAS_MAP: tl.constexpr,
):  # fmt: skip
    """One share of the ``steps`` tiles of a channel's output: ``ROWS`` by ``COLS``, all of the map or a part of it.

    A tile reads ``ROWS_IN`` rows from ``TOP`` above it on and ``COLS_IN`` columns from ``left`` of it on. ``ALONE``: a
    share is one tile, for want of registers in a loop.
    """
    ALIGN: tl.constexpr = 16 // (out.dtype.element_ty.primitive_bitwidth // 8)
    width, x_n, x_c, x_h = _multiple(width, ALIGN), _multiple(x_n, ALIGN), _multiple(x_c, ALIGN), _multiple(x_h, ALIGN)
    out_n, out_c, out_h = _multiple(out_n, ALIGN), _multiple(out_c, ALIGN), _multiple(out_h, ALIGN)
    if BIAS_MAP:
        bias_c, bias_h = _multiple(bias_c, ALIGN), _multiple(bias_h, ALIGN)
    left = _multiple(left, 16)
    ROW_FREQS: tl.constexpr = BLOCK // IMAGES
    IN: tl.constexpr = BLOCK * ROWS_IN
    BACK: tl.constexpr = BLOCK * ROWS
    COL_BACK: tl.constexpr = FREQS * COLS
    SIZE: tl.constexpr = ROW_FREQS * FREQS
    program = tl.program_id(0)
    split = program % splits
    channel = (program // splits).to(tl.int64)
    x += channel * x_c
    out += channel * out_c
    bias += channel * bias_c
    weight += channel * weight_c
    if not ALONE:
        exponent = _exponent_of_spectrum(weight, row_sizes, col_sizes, weight_a, weight_b, rings, RINGS)
    # The rows of several images share a tile, and so the kernel's spectrum.
    entry = (tl.arange(0, BLOCK) % ROW_FREQS)[:, None] * FREQS + tl.arange(0, FREQS)[None, :]
    spectrum += channel * (ROW_BLOCKS * col_blocks * 4 * SIZE) + entry
    row_waves += _entries(BLOCK, ROWS_IN)
    row_back += _entries(ROWS, BLOCK)
    if ROW_BLOCKS == 1:
        cosine, cosine_low = _load_parts(row_waves, IN, PARTS)
        sine, sine_low = _load_parts(row_waves + IN * PARTS, IN, PARTS)
        back_c, back_c_low = _load_parts(row_back, BACK, PARTS)
        back_s, back_s_low = _load_parts(row_back + BACK * PARTS, BACK, PARTS)

    first = split * tl.cdiv(steps, splits)
    end = tl.minimum(steps, first + tl.cdiv(steps, splits))
    if ALONE:
        first = split
        end = split + 1
    for step in range(first, end):
        col = step % col_tiles * COLS
        row = step // col_tiles % row_tiles * ROWS
        first_image = step // col_tiles // row_tiles * IMAGES
        tile = _load_tile(
            x, first_image, row - TOP, col - left, images, height, width, x_n, x_h, ROWS_IN, COLS_IN, IMAGES
        )
        tile, inverse = _scaled(tile, ROWS_IN, IMAGES)
        acc = tl.zeros((ROWS, COLS), tl.float32)
        for block in range(0, col_blocks):
            c, c_low, s, s_low = _along_columns(
                tile, col_waves + block * (2 * PARTS * COLS_IN * FREQS), ROWS_IN, COLS_IN, FREQS, PARTS
            )
            u_c = tl.zeros((ROWS, FREQS), tl.float32)
            u_s = tl.zeros((ROWS, FREQS), tl.float32)
            for row_block in range(0, ROW_BLOCKS):
                if ROW_BLOCKS > 1:
                    cosine, cosine_low = _load_parts(row_waves + row_block * (2 * PARTS * IN), IN, PARTS)
                    sine, sine_low = _load_parts(row_waves + (row_block * 2 + 1) * (PARTS * IN), IN, PARTS)
                x_cc, x_sc, x_cs, x_ss = _along_rows(
                    c, c_low, s, s_low, cosine, cosine_low, sine, sine_low, BLOCK, FREQS, PARTS
                )
                kernel = spectrum + (row_block * col_blocks + block) * (4 * SIZE)
                k_cc = tl.load(kernel).to(tl.float32)
                k_sc = tl.load(kernel + SIZE).to(tl.float32)
                k_cs = tl.load(kernel + 2 * SIZE).to(tl.float32)
                k_ss = tl.load(kernel + 3 * SIZE).to(tl.float32)
                y_cc, y_sc, y_cs, y_ss = _quadrants(x_cc, x_sc, x_cs, x_ss, k_cc, k_sc, k_cs, k_ss)
                if ROW_BLOCKS > 1:
                    back_c, back_c_low = _load_parts(row_back + row_block * (2 * PARTS * BACK), BACK, PARTS)
                    back_s, back_s_low = _load_parts(row_back + (row_block * 2 + 1) * (PARTS * BACK), BACK, PARTS)
                y, y_low = _halves(y_cc, PARTS)
                u_c = _times(back_c, back_c_low, y, y_low, u_c, PARTS)
                y, y_low = _halves(y_sc, PARTS)
                u_c = _times(back_s, back_s_low, y, y_low, u_c, PARTS)
                y, y_low = _halves(y_cs, PARTS)
                u_s = _times(back_c, back_c_low, y, y_low, u_s, PARTS)
                y, y_low = _halves(y_ss, PARTS)
                u_s = _times(back_s, back_s_low, y, y_low, u_s, PARTS)
            waves = col_back + block * (2 * PARTS * COL_BACK) + _entries(FREQS, COLS)
            wave, wave_low = _load_parts(waves, COL_BACK, PARTS)
            u, u_low = _halves(u_c * _AFTER_ROWS, PARTS)
            acc = _times(u, u_low, wave, wave_low, acc, PARTS)
            wave, wave_low = _load_parts(waves + COL_BACK * PARTS, COL_BACK, PARTS)
            u, u_low = _halves(u_s * _AFTER_ROWS, PARTS)
            acc = _times(u, u_low, wave, wave_low, acc, PARTS)
        if ALONE:
            exponent = _exponent_of_spectrum(weight, row_sizes, col_sizes, weight_a, weight_b, rings, RINGS)
        acc = acc * (_power(exponent) * (norm / _AFTER_ROWS)) * _per_row(inverse, ROWS, IMAGES)[:, None]
        if ALONE:
            row, col, first_image = row + _zero(images), col + _zero(images), first_image + _zero(images)
        _store_tile(
            acc, out, bias, first_image, row, col + tl.arange(0, COLS), images, height, width, out_n, out_h, bias_h,
            bias_rows, ROWS, IMAGES, BIAS_MAP,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        'images', 'height', 'width', 'x_n', 'x_c', 'x_h', 'grad_n', 'grad_c', 'grad_h', 'rings', 'steps', 'splits',
        'row_tiles', 'col_tiles', 'left', 'col_blocks', 'row_blocks',
    ]
)  # fmt: skip
def dft_weight_grad_kernel(
    x, grad_out, partial, row_waves, col_waves, grad_row_waves, grad_col_waves, row_rings,
    images, height, width, x_n, x_c, x_h, grad_n, grad_c, grad_h, rings,
    steps, splits, row_tiles, col_tiles, left, col_blocks, row_blocks,
    ROWS_IN: tl.constexpr, COLS_IN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TOP: tl.constexpr,
    BLOCK: tl.constexpr, FREQS: tl.constexpr, IMAGES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One block of frequencies of one channel's weight gradient, from one share of the tiles, as sums over its rings.

    The shares and the blocks of the rows are added afterwards, in order: ``partial`` is
    ``(C, splits, row blocks, k', column blocks, 2, FREQS)``.
    """
    ALIGN: tl.constexpr = 16 // (x.dtype.element_ty.primitive_bitwidth // 8)
    width, x_n, x_c, x_h = _multiple(width, ALIGN), _multiple(x_n, ALIGN), _multiple(x_c, ALIGN), _multiple(x_h, ALIGN)
    grad_n, grad_c, grad_h = _multiple(grad_n, ALIGN), _multiple(grad_c, ALIGN), _multiple(grad_h, ALIGN)
    left = _multiple(left, 16)
    ROW_FREQS: tl.constexpr = BLOCK // IMAGES
    IN: tl.constexpr = BLOCK * ROWS_IN
    OUT: tl.constexpr = BLOCK * ROWS
    program = tl.program_id(0)
    block = program % col_blocks
    row_block = program // col_blocks % row_blocks
    share_of = program // col_blocks // row_blocks
    split = share_of % splits
    channel = (share_of // splits).to(tl.int64)
    x += channel * x_c
    grad_out += channel * grad_c
    row_waves += row_block * (2 * PARTS * IN) + _entries(BLOCK, ROWS_IN)
    cosine, cosine_low = _load_parts(row_waves, IN, PARTS)
    sine, sine_low = _load_parts(row_waves + IN * PARTS, IN, PARTS)
    grad_row_waves += row_block * (2 * PARTS * OUT) + _entries(BLOCK, ROWS)
    grad_cosine, grad_cosine_low = _load_parts(grad_row_waves, OUT, PARTS)
    grad_sine, grad_sine_low = _load_parts(grad_row_waves + OUT * PARTS, OUT, PARTS)
    col_waves += block * (2 * PARTS * COLS_IN * FREQS)
    grad_col_waves += block * (2 * PARTS * COLS * FREQS)
    sum_cc = tl.zeros((BLOCK, FREQS), tl.float32)
    sum_sc = tl.zeros((BLOCK, FREQS), tl.float32)
    sum_cs = tl.zeros((BLOCK, FREQS), tl.float32)
    sum_ss = tl.zeros((BLOCK, FREQS), tl.float32)

    share = tl.cdiv(steps, splits)
    for step in range(split * share, tl.minimum(steps, (split + 1) * share)):
        zero = _zero(step)
        col = step % col_tiles * COLS
        row = step // col_tiles % row_tiles * ROWS
        first_image = step // col_tiles // row_tiles * IMAGES
        tile = _load_tile(
            x, first_image, row - TOP, col - left, images, height, width, x_n, x_h, ROWS_IN, COLS_IN, IMAGES
        )
        tile, inverse = _scaled(tile, ROWS_IN, IMAGES)
        c, c_low, s, s_low = _along_columns(tile, col_waves + zero, ROWS_IN, COLS_IN, FREQS, PARTS)
        x_cc, x_sc, x_cs, x_ss = _along_rows(
            c, c_low, s, s_low, cosine, cosine_low, sine, sine_low, BLOCK, FREQS, PARTS
        )
        tile = _load_tile(grad_out, first_image, row, col, images, height, width, grad_n, grad_h, ROWS, COLS, IMAGES)
        tile, grad_inverse = _scaled(tile, ROWS, IMAGES)
        c, c_low, s, s_low = _along_columns(tile, grad_col_waves + zero, ROWS, COLS, FREQS, PARTS)
        g_cc, g_sc, g_cs, g_ss = _along_rows(
            c, c_low, s, s_low, grad_cosine, grad_cosine_low, grad_sine, grad_sine_low, BLOCK, FREQS, PARTS
        )
        y_cc, y_sc, y_cs, y_ss = _quadrants(x_cc, x_sc, x_cs, x_ss, g_cc, g_sc, g_cs, g_ss)
        undo = (_per_row(inverse, BLOCK, IMAGES) * _per_row(grad_inverse, BLOCK, IMAGES))[:, None]
        sum_cc += y_cc * undo
        sum_sc += y_sc * undo
        sum_cs += y_cs * undo
        sum_ss += y_ss * undo

    program = tl.program_id(0) + _zero(images)
    block = program % col_blocks
    row_block = program // col_blocks % row_blocks
    share_of = program // col_blocks // row_blocks
    split = share_of % splits
    channel = (share_of // splits).to(tl.int64)
    row_rings += row_block * (2 * ROW_FREQS) + tl.arange(0, BLOCK) % ROW_FREQS
    partial += ((channel * splits + split) * row_blocks + row_block) * (rings * col_blocks * 2 * FREQS)
    partial += block * (2 * FREQS) + tl.arange(0, FREQS)
    for ring in range(0, rings):
        row_cosine = tl.load(row_rings + ring * (row_blocks * 2 * ROW_FREQS))[:, None]
        row_sine = tl.load(row_rings + ring * (row_blocks * 2 * ROW_FREQS) + ROW_FREQS)[:, None]
        target = partial + ring * (col_blocks * 2 * FREQS)
        tl.store(target, tl.sum(row_cosine * sum_cc + row_sine * sum_sc, axis=0))
        tl.store(target + FREQS, tl.sum(row_cosine * sum_cs + row_sine * sum_ss, axis=0))


@triton.jit(do_not_specialize=['shares', 'rings', 'frequencies'])
def dft_add_shares_kernel(
    partial, col_rings, out, shares, rings, frequencies, RINGS: tl.constexpr, FREQS: tl.constexpr
):  # fmt: skip
    """The weight gradient ``(C, k', k')`` of a channel: its ``shares``, added in order, times the columns' rings.

    ``partial`` is ``(C, shares, k', frequencies)``, ``col_rings`` ``(k', frequencies)``. No matrix product, whose
    factors tensor cores would round.
    """
    row = tl.arange(0, RINGS)
    frequency = tl.arange(0, FREQS)
    exists = frequency < frequencies
    mask = (row < rings)[:, None] & exists[None, :]
    channel = tl.program_id(0).to(tl.int64)
    partial += channel * shares * rings * frequencies + row[:, None] * frequencies + frequency[None, :]
    total = tl.zeros((RINGS, FREQS), tl.float32)
    for share in range(0, shares):
        total += tl.load(partial + share * rings * frequencies, mask=mask, other=0.0)
    out += channel * rings * rings + row * rings
    for ring in range(0, rings):
        spectrum = tl.load(col_rings + ring * frequencies + frequency, mask=exists, other=0.0)
        value = tl.sum(total * spectrum[None, :], axis=1)
        tl.store(out + ring, _narrow(value, out.dtype.element_ty), mask=row < rings)
