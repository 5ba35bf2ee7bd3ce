"""The Triton kernels: Toeplitz matrices of the weight, the convolution, the gradient of the weight, copies of layout.

A plane is one image of one channel. Let ``G_a`` be the 0/1 matrix that sums the rows of ring ``a`` (``G_a[y, y'] = 1``
where ``y' - y`` lies in the ring) and ``T_a`` the banded Toeplitz matrix of row ``a`` of the weight
(``T_a[x', x] = w[a, b]`` where ``x' - x`` lies in ring ``b``). A plane's output is then ``sum_a (G_a X) T_a``: two
chained matrix products per ring, the shape of an attention kernel, with the box sums ``G_a X`` kept in registers.

All products have 16-bit factors and float32 sums. ``G_a`` is exact in every dtype. A box sum of 16-bit numbers is split
into a high and a low part, so that nothing is rounded that the dense kernel would not round; rings one row wide need no
low part. A float32 number is the sum of three bfloat16 parts, and a product of two such numbers takes the six largest
of the nine products of parts, which is float32's own precision; two parts and three products leave an error of 2**-16.

The convolution and the gradient of the weight read and write planes alone, whose rows are multiples of 16 bytes long,
so that all of a map's numbers are moved 16 bytes at a time. Other maps, those of the networks among them (channels
last), are copied into planes and back.
"""

# mypy: disable-error-code="no-untyped-def"
# What a kernel computes with has no Python types.

import triton
import triton.language as tl

from . import interpreted

__all__ = ['ROWS', 'add_shares_kernel', 'conv_kernel', 'planes_kernel', 'toeplitz_kernel', 'weight_grad_kernel']

ROWS = 64
"""Rows of a tile: those of one matrix instruction of a warp group on Hopper."""

_INTERPRETED = tl.constexpr(interpreted())
_FAR = tl.constexpr(1 << 24)  # a distance beyond every ring


@triton.jit
def _narrow(value, dtype: tl.constexpr):
    """Round float32 to ``dtype``, to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:  # the interpreter's own cast truncates
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        value = bits.to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def _dot(a, b, acc):
    if _INTERPRETED:  # which has no product of bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def _split(value, dtype: tl.constexpr):
    """``value`` in float32 as a number of ``dtype`` and what is left of it.

    bfloat16 takes the upper 16 bits as they are: bit masks are cheap where conversions share a slow pipe, and three
    such parts are all 24 bits of a float32 number.
    """
    if dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True) & -65536
        high = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        whole = bits.to(tl.float32, bitcast=True)
    else:
        high = value.to(dtype)
        whole = high.to(tl.float32)
    return high, value - whole


@triton.jit
def _parts(value, dtype: tl.constexpr, PARTS: tl.constexpr):
    """``value`` as the sum of ``PARTS`` numbers of ``dtype``, largest first; always three, the rest unused."""
    if value.dtype == dtype:
        high = value
        middle = value
        low = value
    elif PARTS == 1:
        high = _narrow(value, dtype)
        middle = high
        low = high
    else:
        high, rest = _split(value, dtype)
        middle, rest = _split(rest, dtype)
        low = middle
        if PARTS > 2:
            low, rest = _split(rest, dtype)
    return high, middle, low


@triton.jit
def _product(a, b, b_middle, b_low, acc, A_PARTS: tl.constexpr, B_PARTS: tl.constexpr):
    """``acc + a @ b`` with ``a`` to be split, ``b`` already split, and of the products of parts all that matter.

    Tensor cores cut off what they add up, at the size of the accumulator. With three parts, which stand for float32,
    the small products therefore have an accumulator of their own, the large one another, and both are added to ``acc``
    by additions that round.
    """
    a, a_middle, a_low = _parts(a, b.dtype, A_PARTS)
    if A_PARTS < 3 and B_PARTS < 3:
        acc = _dot(a, b, acc)
        if A_PARTS > 1:
            acc = _dot(a_middle, b, acc)
        if B_PARTS > 1:
            acc = _dot(a, b_middle, acc)
    else:
        small = tl.zeros(acc.shape, tl.float32)
        if A_PARTS > 2:
            small = _dot(a_low, b, small)
        if B_PARTS > 2:
            small = _dot(a, b_low, small)
        if A_PARTS > 1 and B_PARTS > 1:
            small = _dot(a_middle, b_middle, small)
        if A_PARTS > 1:
            small = _dot(a_middle, b, small)
        if B_PARTS > 1:
            small = _dot(a, b_middle, small)
        acc += small + _dot(a, b, tl.zeros(acc.shape, tl.float32))
    return acc


@triton.jit
def _multiple(number, ALIGN: tl.constexpr):
    """``number``, a multiple of ``ALIGN``, said so that the compiler knows it and vectorises loads and stores."""
    return number // ALIGN * ALIGN


@triton.jit
def _load(tensor, rows, rows_exist, cols, width, TRANSPOSED: tl.constexpr):
    """A tile of rows (offsets) by columns (indices), or columns by rows if ``TRANSPOSED``; zero outside the map."""
    cols_exist = (cols >= 0) & (cols < width)
    if TRANSPOSED:
        pointers = tensor + (rows[None, :] + cols[:, None])
        mask = rows_exist[None, :] & cols_exist[:, None]
    else:
        pointers = tensor + (rows[:, None] + cols[None, :])
        mask = rows_exist[:, None] & cols_exist[None, :]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _load_window(
    plane, row, cols, height, width, stride_h,
    ROWS: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """``ROWS`` rows of one plane, from ``row`` on."""
    y = row + tl.arange(0, ROWS)
    rows_exist = (y >= 0) & (y < height)
    return _load(plane, y.to(tl.int64) * stride_h, rows_exist, cols, width, TRANSPOSED)


@triton.jit
def _load_images(
    tensor, first_image, cols, images, height, width, stride_n, stride_h,
    ROWS: tl.constexpr, IMAGES: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """All rows of ``IMAGES`` images, ``ROWS / IMAGES`` for each."""
    image = first_image + tl.arange(0, ROWS) // (ROWS // IMAGES)
    y = tl.arange(0, ROWS) % (ROWS // IMAGES)
    rows = image.to(tl.int64) * stride_n + y.to(tl.int64) * stride_h
    return _load(tensor, rows, (image < images) & (y < height), cols, width, TRANSPOSED)


@triton.jit
def _quarantine(tile, broken, ROWS: tl.constexpr, IMAGES: tl.constexpr):
    """Take non-finite values out of a tile of several images and mark the rows of the images that held them.

    The ring matrix multiplies every row of the tile, by zero at least, and would carry them into the other images.
    """
    if IMAGES > 1:
        finite = tl.abs(tile.to(tl.float32)) < float('inf')
        tile = tl.where(finite, tile.to(tl.float32), 0.0).to(tile.dtype)
        row_broken = tl.max(1 - finite.to(tl.int32), axis=1)
        image_broken = tl.max(tl.reshape(row_broken, (IMAGES, ROWS // IMAGES)), axis=1)
        row_broken = tl.broadcast_to(image_broken[:, None], (IMAGES, ROWS // IMAGES))
        broken = tl.maximum(broken, tl.reshape(row_broken, (ROWS,)))
    return tile, broken


@triton.jit
def _image_distance(ROWS: tl.constexpr, IMAGES: tl.constexpr):
    """``y' - y`` of every pair of rows (output, input) of a tile of whole images; far for rows of different images."""
    local = tl.arange(0, ROWS)
    # As a product, ``[-y, 1] @ [1; y']``, the result has the layout of the tensor cores, and so have the ring matrices
    # made of it: they enter the next product without a detour through shared memory.
    term = tl.arange(0, 16)
    outputs = tl.where(term[None, :] == 0, -local[:, None], (term == 1).to(tl.int32)[None, :])
    inputs = tl.where(term[:, None] == 1, local[None, :], (term == 0).to(tl.int32)[:, None])
    distance = tl.dot(outputs.to(tl.float16), inputs.to(tl.float16)).to(tl.int32)
    if IMAGES > 1:
        same_image = local[:, None] // (ROWS // IMAGES) == local[None, :] // (ROWS // IMAGES)
        distance = tl.where(same_image, distance, _FAR)
    return distance


@triton.jit
def _ring_matrix(distance, low, ring_width, dtype: tl.constexpr):
    """1 where ``distance``, in rows from an output to an input, lies in the ring that begins at ``low``; else 0."""
    inside = (distance >= low) & (distance < low + ring_width)
    if _INTERPRETED:  # which has no constants of bfloat16
        matrix = inside.to(tl.float32).to(dtype)
    else:  # a selection, not a conversion
        matrix = tl.where(inside, tl.full((), 1.0, dtype), tl.full((), 0.0, dtype))
    return matrix


@triton.jit
def _pick(index, VALUES: tl.constexpr):
    """``VALUES[index]``, by comparisons: a table in memory would have to be copied to the device and kept alive."""
    value = index * 0 + VALUES[0]
    for other in tl.static_range(1, len(VALUES)):
        value = tl.where(index == other, VALUES[other], value)
    return value


@triton.jit
def _scale(ring_width):
    """A power of two that brings the box sums of a ring, in float16, to the size of one input."""
    # The exponent of the width as a float32 number, negated: 2 ** -floor(log2(width)).
    exponent = 254 - (ring_width.to(tl.float32).to(tl.int32, bitcast=True) >> 23)
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _ring_of_distance(first_distance, COL_EDGES: tl.constexpr, FIRST_COL_RING: tl.constexpr, COLS: tl.constexpr):
    """Ring of ``x' - x`` for a ``COLS x COLS`` matrix that begins with ``first_distance``; -1 outside the kernel."""
    distance = first_distance + tl.arange(0, COLS)[:, None] - tl.arange(0, COLS)[None, :]
    ring = tl.where(distance >= COL_EDGES[0], FIRST_COL_RING, -1)
    for edge in tl.static_range(1, len(COL_EDGES) - 1):
        ring = tl.where(distance >= COL_EDGES[edge], FIRST_COL_RING + edge, ring)
    return tl.where(distance < COL_EDGES[len(COL_EDGES) - 1], ring, -1)


@triton.jit(
    do_not_specialize=['weight_c', 'weight_a', 'weight_b', 'in_tiles', 'left'],
    do_not_specialize_on_alignment=['weight'],
)
def toeplitz_kernel(
    weight, toeplitz, weight_c, weight_a, weight_b, in_tiles, left,
    ROW_RINGS: tl.constexpr, ROW_WIDTHS: tl.constexpr, COL_EDGES: tl.constexpr, FIRST_COL_RING: tl.constexpr,
    COLS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write the matrices ``T``, ``(C, in_tiles, rings, PARTS, COLS, COLS)``; one program for each and all its parts."""
    dtype: tl.constexpr = toeplitz.dtype.element_ty
    rings: tl.constexpr = len(ROW_RINGS)
    program = tl.program_id(0)
    ring = program % rings
    tile = program // rings % in_tiles
    channel = (program // rings // in_tiles).to(tl.int64)
    columns = _ring_of_distance(tile * COLS - left, COL_EDGES, FIRST_COL_RING, COLS)
    row = _pick(ring, ROW_RINGS)
    value = tl.load(weight + channel * weight_c + row * weight_a + columns * weight_b, mask=columns >= 0, other=0.0)
    if dtype == tl.float16:
        value = _narrow(value.to(tl.float32) / _scale(_pick(ring, ROW_WIDTHS)), dtype)
    entry = tl.arange(0, COLS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    toeplitz += program.to(tl.int64) * (PARTS * COLS * COLS) + entry
    high, middle, low = _parts(value, dtype, PARTS)
    tl.store(toeplitz, high)
    if PARTS > 1:
        tl.store(toeplitz + COLS * COLS, middle)
    if PARTS > 2:
        tl.store(toeplitz + 2 * COLS * COLS, low)


@triton.jit
def _load_matrix(matrices, COLS: tl.constexpr, PARTS: tl.constexpr):
    """The parts of one Toeplitz matrix; always three, the rest unused."""
    high = tl.load(matrices)
    middle = high
    low = high
    if PARTS > 1:
        middle = tl.load(matrices + COLS * COLS)
    if PARTS > 2:
        low = tl.load(matrices + 2 * COLS * COLS)
    return high, middle, low


@triton.jit
def _store_tile(
    acc, out, bias, first_image, row, cols, images, height, width, out_n, out_h, bias_h, bias_rows,
    ROWS: tl.constexpr, IMAGES: tl.constexpr, BIAS_MAP: tl.constexpr,
):  # fmt: skip
    """Add the bias and store. ``out`` and ``bias`` point at the channel, whose bias is a number or ``BIAS_MAP``.

    Without a bias it is a map of no rows: gradients of the input need no kernels of their own.
    """
    local = tl.arange(0, ROWS)
    image = first_image + local // (ROWS // IMAGES)
    y = (row + local % (ROWS // IMAGES)).to(tl.int64)
    mask = ((image < images) & (y < height))[:, None] & (cols < width)[None, :]
    if BIAS_MAP:
        has_bias = mask & (y < bias_rows)[:, None]
        acc += tl.load(bias + (y[:, None] * bias_h + cols[None, :]), mask=has_bias, other=0.0).to(tl.float32)
    else:
        acc += tl.load(bias).to(tl.float32)
    rows = image.to(tl.int64) * out_n + y * out_h
    tl.store(out + (rows[:, None] + cols[None, :]), _narrow(acc, out.dtype.element_ty), mask=mask)


@triton.jit
def _add_whole(acc, sums, x, x_middle, x_low, t, t_middle, t_low, scale, PARTS: tl.constexpr, BOX_PARTS: tl.constexpr):
    """``acc + (G X) T`` where the tile holds all rows that any ring reaches."""
    box = _product(sums, x, x_middle, x_low, tl.zeros(acc.shape, tl.float32), 1, PARTS)
    if t.dtype == tl.float16:
        box *= scale
    return _product(box, t, t_middle, t_low, acc, BOX_PARTS, PARTS)


@triton.jit
def _add_window(
    acc, plane, row, ring_width, distance, cols, height, width, stride_h, t, t_middle, t_low, scale,
    ROWS: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, BOX_PARTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``acc + (G X) T`` with the rows that one ring reaches: ``ROWS`` from ``row`` on; ``TAIL`` more if ``WIDE``."""
    x = _load_window(plane, row, cols, height, width, stride_h, ROWS, False)
    if not WIDE:  # the rows are the box sums
        return _product(x, t, t_middle, t_low, acc, PARTS, PARTS)
    x, x_middle, x_low = _parts(x, t.dtype, PARTS)
    sums = _ring_matrix(distance, 0, ring_width, t.dtype)
    box = _product(sums, x, x_middle, x_low, tl.zeros(acc.shape, tl.float32), 1, PARTS)
    x = _load_window(plane, row + ROWS, cols, height, width, stride_h, TAIL, False)
    x, x_middle, x_low = _parts(x, t.dtype, PARTS)
    distance = ROWS + tl.arange(0, TAIL)[None, :] - tl.arange(0, ROWS)[:, None]
    sums = _ring_matrix(distance, 0, ring_width, t.dtype)
    box = _product(sums, x, x_middle, x_low, box, 1, PARTS)
    if t.dtype == tl.float16:
        box *= scale
    return _product(box, t, t_middle, t_low, acc, BOX_PARTS, PARTS)


@triton.jit(
    do_not_specialize=[
        'images', 'height', 'width', 'x_n', 'x_c', 'x_h', 'out_n', 'out_c', 'out_h', 'bias_c', 'bias_h',
        'wide_rings', 'rings', 'groups', 'row_tiles', 'col_tiles', 'in_tiles', 'left', 'bias_rows',
    ]
)  # fmt: skip
def conv_kernel(
    x, toeplitz, bias, out,
    images, height, width, x_n, x_c, x_h, out_n, out_c, out_h, bias_c, bias_h,
    wide_rings, rings, groups, row_tiles, col_tiles, in_tiles, left, bias_rows,
    ROW_LOWS: tl.constexpr, ROW_WIDTHS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, TAIL: tl.constexpr, IMAGES: tl.constexpr, WHOLE: tl.constexpr,
    PARTS: tl.constexpr, PAIR: tl.constexpr, BIAS_MAP: tl.constexpr,
):  # fmt: skip
    """A ``ROWS x COLS`` tile of one channel's output; if ``PAIR``, of two tiles that are ``WHOLE``.

    ``WHOLE``: the map has at most ``ROWS`` rows; a tile holds all rows of ``IMAGES`` images and is read once. Otherwise
    a tile is part of one image, and each ring reads the rows that it reaches: ``ROWS`` of them and, if the ring is
    wider than one row, up to ``TAIL`` more. The first ``wide_rings`` of the ``rings`` are wider than
    one row; both are arguments, because loops of constant length are unrolled, which takes too many registers.
    ``bias_rows`` comes last, because before the others it makes the assembler spill on Hopper.
    """
    tl.static_assert(WHOLE or not PAIR)
    dtype: tl.constexpr = toeplitz.dtype.element_ty
    BOX_PARTS: tl.constexpr = PARTS if PARTS > 1 else 2
    SIZE: tl.constexpr = COLS * COLS * PARTS
    ALIGN: tl.constexpr = 16 // (out.dtype.element_ty.primitive_bitwidth // 8)
    width, x_n, x_c, x_h = _multiple(width, ALIGN), _multiple(x_n, ALIGN), _multiple(x_c, ALIGN), _multiple(x_h, ALIGN)
    out_n, out_c, out_h = _multiple(out_n, ALIGN), _multiple(out_c, ALIGN), _multiple(out_h, ALIGN)
    left = _multiple(left, 16)
    program = tl.program_id(0)
    first_col = program % col_tiles * COLS
    row = program // col_tiles % row_tiles * ROWS
    program = program // col_tiles // row_tiles
    first_image = program % groups * (IMAGES * (1 + PAIR))
    next_image = first_image + IMAGES
    channel = (program // groups).to(tl.int64)

    x += channel * x_c
    plane = x + first_image.to(tl.int64) * x_n
    acc_a = tl.zeros((ROWS, COLS), tl.float32)
    acc_b = tl.zeros((ROWS, COLS), tl.float32)
    broken_a = tl.zeros((ROWS,), tl.int32)
    broken_b = tl.zeros((ROWS,), tl.int32)
    distance = _image_distance(ROWS, IMAGES)
    entry = tl.arange(0, COLS)[:, None] * COLS + tl.arange(0, COLS)[None, :]

    # Of the tiles of input columns only those that meet the map.
    first_tile = tl.maximum(left - first_col, 0) // COLS
    last_tile = tl.minimum(in_tiles, tl.cdiv(width + left - first_col, COLS))
    for tile in range(first_tile, last_tile):
        cols = first_col - left + tile * COLS + tl.arange(0, COLS)
        matrices = toeplitz + (channel * in_tiles + tile) * rings * SIZE + entry
        if WHOLE:
            x_a = _load_images(x, first_image, cols, images, height, width, x_n, x_h, ROWS, IMAGES, False)
            x_a, broken_a = _quarantine(x_a, broken_a, ROWS, IMAGES)
            x_a0, x_a1, x_a2 = _parts(x_a, dtype, PARTS)
            if PAIR:
                x_b = _load_images(x, next_image, cols, images, height, width, x_n, x_h, ROWS, IMAGES, False)
                x_b, broken_b = _quarantine(x_b, broken_b, ROWS, IMAGES)
                x_b0, x_b1, x_b2 = _parts(x_b, dtype, PARTS)
        for ring in range(0, wide_rings):
            t0, t1, t2 = _load_matrix(matrices + ring * SIZE, COLS, PARTS)
            low = _pick(ring, ROW_LOWS)
            ring_width = _pick(ring, ROW_WIDTHS)
            scale = _scale(ring_width)
            if WHOLE:
                sums = _ring_matrix(distance, low, ring_width, dtype)
                acc_a = _add_whole(acc_a, sums, x_a0, x_a1, x_a2, t0, t1, t2, scale, PARTS, BOX_PARTS)
                if PAIR:
                    acc_b = _add_whole(acc_b, sums, x_b0, x_b1, x_b2, t0, t1, t2, scale, PARTS, BOX_PARTS)
            else:
                acc_a = _add_window(
                    acc_a, plane, row + low, ring_width, distance, cols, height, width, x_h, t0, t1, t2, scale,
                    ROWS, TAIL, PARTS, BOX_PARTS, True,
                )  # fmt: skip
        for ring in range(wide_rings, rings):
            t0, t1, t2 = _load_matrix(matrices + ring * SIZE, COLS, PARTS)
            low = _pick(ring, ROW_LOWS)
            if WHOLE:
                shift = _ring_matrix(distance, low, 1, dtype)
                acc_a = _add_whole(acc_a, shift, x_a0, x_a1, x_a2, t0, t1, t2, 1.0, PARTS, PARTS)
                if PAIR:
                    acc_b = _add_whole(acc_b, shift, x_b0, x_b1, x_b2, t0, t1, t2, 1.0, PARTS, PARTS)
            else:
                acc_a = _add_window(
                    acc_a, plane, row + low, 1, distance, cols, height, width, x_h, t0, t1, t2, 1.0,
                    ROWS, TAIL, PARTS, PARTS, False,
                )  # fmt: skip

    cols = first_col + tl.arange(0, COLS)
    if BIAS_MAP:
        bias_c, bias_h = _multiple(bias_c, ALIGN), _multiple(bias_h, ALIGN)
    out += channel * out_c
    bias += channel * bias_c
    if IMAGES > 1:
        acc_a = tl.where(broken_a[:, None] > 0, float('nan'), acc_a)
        acc_b = tl.where(broken_b[:, None] > 0, float('nan'), acc_b)
    _store_tile(
        acc_a, out, bias, first_image, row, cols, images, height, width, out_n, out_h, bias_h,
        bias_rows, ROWS, IMAGES, BIAS_MAP,
    )  # fmt: skip
    if PAIR:
        _store_tile(
            acc_b, out, bias, next_image, row, cols, images, height, width, out_n, out_h, bias_h,
            bias_rows, ROWS, IMAGES, BIAS_MAP,
        )  # fmt: skip


@triton.jit
def _store_band_sums(acc, partial, columns, scale, all_rings):
    """``partial[b]``: the sum of ``acc`` where ``x' - x`` lies in ring ``b``, divided by ``scale``."""
    for ring in range(0, all_rings):
        band = tl.where(columns == ring, acc, 0.0)
        tl.store(partial + ring, tl.sum(tl.sum(band, axis=1), axis=0) / scale)


@triton.jit
def _add_whole_grad(acc, x_t, sums, grad, grad_middle, grad_low, scale, PARTS: tl.constexpr, BOX_PARTS: tl.constexpr):
    """``acc + (G X)^T dY`` where the tile holds all rows that any ring reaches. ``sums`` is ``G`` transposed."""
    box = _product(x_t, sums, sums, sums, tl.zeros((x_t.shape[0], sums.shape[1]), tl.float32), PARTS, 1)
    if grad.dtype == tl.float16:
        box *= scale
    return _product(box, grad, grad_middle, grad_low, acc, BOX_PARTS, PARTS)


@triton.jit
def _add_window_grad(
    acc, plane, row, sums, sums_tail, cols, height, width, stride_h, grad, grad_middle, grad_low, scale,
    ROWS: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, BOX_PARTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``acc + (G X)^T dY`` with the rows that one ring reaches, as in :func:`_add_window`."""
    x_t = _load_window(plane, row, cols, height, width, stride_h, ROWS, True)
    if not WIDE:
        return _product(x_t, grad, grad_middle, grad_low, acc, PARTS, PARTS)
    box = _product(x_t, sums, sums, sums, tl.zeros((x_t.shape[0], ROWS), tl.float32), PARTS, 1)
    x_t = _load_window(plane, row + ROWS, cols, height, width, stride_h, TAIL, True)
    box = _product(x_t, sums_tail, sums_tail, sums_tail, box, PARTS, 1)
    if grad.dtype == tl.float16:
        box *= scale
    return _product(box, grad, grad_middle, grad_low, acc, BOX_PARTS, PARTS)


@triton.jit(
    do_not_specialize=[
        'images', 'height', 'width', 'x_n', 'x_c', 'x_h', 'grad_n', 'grad_c', 'grad_h',
        'row_tiles', 'col_tiles', 'in_tiles', 'left', 'steps', 'splits',
    ]
)  # fmt: skip
def weight_grad_kernel(
    x, grad_out, partial,
    images, height, width, x_n, x_c, x_h, grad_n, grad_c, grad_h,
    row_tiles, col_tiles, in_tiles, left, steps, splits,
    ROW_RINGS: tl.constexpr, ROW_LOWS: tl.constexpr, ROW_WIDTHS: tl.constexpr,
    WIDE_RINGS: tl.constexpr, ALL_RINGS: tl.constexpr,
    COL_EDGES: tl.constexpr, FIRST_COL_RING: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, TAIL: tl.constexpr, IMAGES: tl.constexpr, WHOLE: tl.constexpr,
    PARTS: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """One row of one channel's weight gradient, or two if ``PAIR``, from one share of the tiles.

    ``D_a``, the sum over tiles of ``(G_a X)^T dY``, is the gradient of ``T_a``; the sums of its bands are that of
    ``w[a, :]``. The shares are added afterwards, in order: ``partial`` is ``(C, splits, in_tiles, k', k')``. The first
    ``WIDE_RINGS`` of the rings are wider than one row; the two rows of a pair both are, or neither.
    """
    float32: tl.constexpr = x.dtype.element_ty == tl.float32
    dtype: tl.constexpr = tl.bfloat16 if float32 else x.dtype.element_ty
    BOX_PARTS: tl.constexpr = 2 if PARTS == 1 else PARTS
    ALIGN: tl.constexpr = 16 // (x.dtype.element_ty.primitive_bitwidth // 8)
    width, x_n, x_c, x_h = _multiple(width, ALIGN), _multiple(x_n, ALIGN), _multiple(x_c, ALIGN), _multiple(x_h, ALIGN)
    grad_n, grad_c, grad_h = _multiple(grad_n, ALIGN), _multiple(grad_c, ALIGN), _multiple(grad_h, ALIGN)
    left = _multiple(left, 16)
    program = tl.program_id(0)
    rings: tl.constexpr = len(ROW_RINGS)
    SIZE: tl.constexpr = 1 + PAIR
    wide_pairs: tl.constexpr = (WIDE_RINGS + PAIR) // SIZE
    pairs: tl.constexpr = wide_pairs + (rings - WIDE_RINGS + PAIR) // SIZE
    pair = program % pairs
    wide = pair < wide_pairs
    ring_a = tl.where(wide, pair * SIZE, WIDE_RINGS + (pair - wide_pairs) * SIZE)
    # Without a partner the same row is computed and written twice.
    ring_b = tl.minimum(ring_a + 1, tl.where(wide, WIDE_RINGS, rings) - 1)
    tile = program // pairs % in_tiles
    program = program // pairs // in_tiles
    split = program % splits
    channel = (program // splits).to(tl.int64)
    x += channel * x_c
    grad_out += channel * grad_c

    low_a = _pick(ring_a, ROW_LOWS)
    low_b = _pick(ring_b, ROW_LOWS)
    width_a = _pick(ring_a, ROW_WIDTHS)
    width_b = _pick(ring_b, ROW_WIDTHS)
    scale_a = _scale(width_a)
    scale_b = _scale(width_b)
    distance = tl.trans(_image_distance(ROWS, IMAGES))
    distance_tail = ROWS + tl.arange(0, TAIL)[:, None] - tl.arange(0, ROWS)[None, :]
    # A window begins where its ring does.
    sums_a = _ring_matrix(distance, low_a if WHOLE else 0, width_a, dtype)
    sums_b = _ring_matrix(distance, low_b if WHOLE else 0, width_b, dtype)
    tail_a = _ring_matrix(distance_tail, 0, width_a, dtype)
    tail_b = _ring_matrix(distance_tail, 0, width_b, dtype)
    acc_a = tl.zeros((COLS, COLS), tl.float32)
    acc_b = tl.zeros((COLS, COLS), tl.float32)

    share = tl.cdiv(steps, splits)
    for step in range(split * share, tl.minimum(steps, (split + 1) * share)):
        first_col = step % col_tiles * COLS
        row = step // col_tiles % row_tiles * ROWS
        first_image = step // col_tiles // row_tiles * IMAGES
        out_cols = first_col + tl.arange(0, COLS)
        cols = out_cols - left + tile * COLS
        if WHOLE:
            grad = _load_images(
                grad_out, first_image, out_cols, images, height, width, grad_n, grad_h, ROWS, IMAGES, False
            )
            g0, g1, g2 = _parts(grad, dtype, PARTS)
            x_t = _load_images(x, first_image, cols, images, height, width, x_n, x_h, ROWS, IMAGES, True)
            acc_a = _add_whole_grad(acc_a, x_t, sums_a, g0, g1, g2, scale_a, PARTS, BOX_PARTS)
            if PAIR:
                acc_b = _add_whole_grad(acc_b, x_t, sums_b, g0, g1, g2, scale_b, PARTS, BOX_PARTS)
        else:
            grad_plane = grad_out + first_image.to(tl.int64) * grad_n
            plane = x + first_image.to(tl.int64) * x_n
            grad = _load_window(grad_plane, row, out_cols, height, width, grad_h, ROWS, False)
            g0, g1, g2 = _parts(grad, dtype, PARTS)
            if wide:
                acc_a = _add_window_grad(
                    acc_a, plane, row + low_a, sums_a, tail_a, cols, height, width, x_h, g0, g1, g2, scale_a,
                    ROWS, TAIL, PARTS, BOX_PARTS, True,
                )  # fmt: skip
                if PAIR:
                    acc_b = _add_window_grad(
                        acc_b, plane, row + low_b, sums_b, tail_b, cols, height, width, x_h, g0, g1, g2, scale_b,
                        ROWS, TAIL, PARTS, BOX_PARTS, True,
                    )  # fmt: skip
            else:
                acc_a = _add_window_grad(
                    acc_a, plane, row + low_a, sums_a, tail_a, cols, height, width, x_h, g0, g1, g2, scale_a,
                    ROWS, TAIL, PARTS, PARTS, False,
                )  # fmt: skip
                if PAIR:
                    acc_b = _add_window_grad(
                        acc_b, plane, row + low_b, sums_b, tail_b, cols, height, width, x_h, g0, g1, g2, scale_b,
                        ROWS, TAIL, PARTS, PARTS, False,
                    )  # fmt: skip

    if dtype != tl.float16:  # nothing was scaled
        scale_a = 1.0
        scale_b = 1.0
    columns = _ring_of_distance(tile * COLS - left, COL_EDGES, FIRST_COL_RING, COLS)
    partial += ((channel * splits + split) * in_tiles + tile) * ALL_RINGS * ALL_RINGS
    _store_band_sums(acc_a, partial + _pick(ring_a, ROW_RINGS) * ALL_RINGS, columns, scale_a, ALL_RINGS)
    if PAIR:
        _store_band_sums(acc_b, partial + _pick(ring_b, ROW_RINGS) * ALL_RINGS, columns, scale_b, ALL_RINGS)


@triton.jit(do_not_specialize=['shares', 'rings', 'first', 'last'])
def add_shares_kernel(partial, out, shares, rings, first, last, BLOCK: tl.constexpr):
    """The weight gradient ``(C, k', k')`` of a channel from its ``shares``, added in order.

    Rows of rings before ``first`` and from ``last`` on meet no map: nobody has written their shares.
    """
    entry = tl.arange(0, BLOCK)
    size = rings * rings
    row = entry // rings
    exists = entry < size
    written = exists & (row >= first) & (row < last)
    channel = tl.program_id(0).to(tl.int64)
    partial += channel * shares * size + entry
    total = tl.zeros((BLOCK,), tl.float32)
    for share in range(0, shares):
        total += tl.load(partial + share * size, mask=written, other=0.0)
    tl.store(out + channel * size + entry, _narrow(total, out.dtype.element_ty), mask=exists)


@triton.jit(
    do_not_specialize=[
        'channels', 'height', 'width', 'row_length', 'map_n', 'map_c', 'map_h', 'map_w', 'channel_tiles',
    ]
)  # fmt: skip
def planes_kernel(
    tensor, planes, channels, height, width, row_length, map_n, map_c, map_h, map_w, channel_tiles,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, BY_CHANNELS: tl.constexpr, ALIGN: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Copy a map ``(N, C, H, W)`` of any strides into contiguous planes ``(N, C, H, row_length)``, zero beyond ``W``.

    ``BACK``: the other way. ``BY_CHANNELS``: the channels of the map lie next to each other, and ``ALIGN`` of them are
    moved at a time. A tile passes through shared memory, so that either side is read or written in whole sectors.
    """
    ALIGN_PLANES: tl.constexpr = 16 // (planes.dtype.element_ty.primitive_bitwidth // 8)
    program = tl.program_id(0)
    channel = program % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    position = program // channel_tiles * PIXELS + tl.arange(0, PIXELS)
    image = tl.program_id(1).to(tl.int64)
    size = _multiple(height * row_length, ALIGN_PLANES)
    plane = (image * channels + channel) * size
    planes += plane[None, :] + position[:, None]
    in_planes = (position < size)[:, None] & (channel < channels)[None, :]

    image_offset = image * map_n
    if BY_CHANNELS:
        map_c = 1
        image_offset, map_h, map_w = _multiple(image_offset, ALIGN), _multiple(map_h, ALIGN), _multiple(map_w, ALIGN)
        channels = _multiple(channels, ALIGN)
    y = position // row_length
    x = position % row_length
    pixel = image_offset + y.to(tl.int64) * map_h + x.to(tl.int64) * map_w
    tensor += pixel[:, None] + channel.to(tl.int64)[None, :] * map_c
    in_map = ((y < height) & (x < width))[:, None] & (channel < channels)[None, :]
    if BACK:
        tl.store(tensor, tl.load(planes, mask=in_planes, other=0.0), mask=in_map)
    else:
        tl.store(planes, tl.load(tensor, mask=in_map, other=0.0), mask=in_planes)
