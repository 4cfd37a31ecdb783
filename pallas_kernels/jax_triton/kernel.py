"""The GEMV kernel in Triton's own language: the computation of `qmatmul.gemv`, for AMD GPUs.

A program multiplies some rows of a weight with some rows of activations, W groups at a time. Arrays
are [W], like those of `qmatmul.dots`: Triton distributes arrays of two axes in several ways, and
copies between them through local memory. Names in capitals are constants of the compiled kernel.
"""

import triton
import triton.language as tl


@triton.jit
def multiply(
    words,
    scales,
    sums,
    codes,
    d,
    multiples,
    out,
    M: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    LOW_TABLE: tl.constexpr,
    HIGH_TABLE: tl.constexpr,
    SCALE: tl.constexpr,
    HALVES: tl.constexpr,
    SPAN: tl.constexpr,
    MINIMUM: tl.constexpr,
    PARTS: tl.constexpr,
    UNIT: tl.constexpr,
    DOT4: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    BATCH: tl.constexpr,
):
    """Compute out [M, N], the activations times the transposed weight.

    Args:
        words: of the activations, int32 [M, PARTS, 8, G], or float32 [M, 1, 32, G].
        scales: of the activations, [M, G].
        sums: of the activations, [M, 2, G].
        codes: the plane of codes, [N, BITS, G].
        d: the plane `d`, [N, G / SPAN]; any array if the packing has no such plane.
        multiples: the plane `scale`, [N, HALVES, G]; any array if there is no such plane.
        out: the output.
        M: rows of activations.
        N: rows of the weight.
        G: groups of a row.
        BITS: as in `packing.Packing`.
        OFFSET: likewise.
        LOW_TABLE: the first eight bytes of the table, as one integer.
        HIGH_TABLE: the last eight bytes; 0 without a table. In mode "float", bytes are unsigned.
        SCALE: as in `packing.Packing`.
        HALVES: likewise.
        SPAN: likewise.
        MINIMUM: likewise.
        PARTS: bytes of an integer of the activations; 0 in mode "float".
        UNIT: the factor of the words in mode "float".
        DOT4: the instruction for dot products of four bytes.
        R: rows of the weight that a program computes.
        W: groups of a step.
        BATCH: rows of activations that a program computes.
    """
    # The last programs overlap their neighbours. Both then write the same numbers.
    start = tl.minimum(tl.program_id(0) * R, N - R)
    first = tl.minimum(tl.program_id(1) * BATCH, M - BATCH)
    totals = ()
    for _ in tl.static_range(R * BATCH):
        totals += (tl.zeros([W], tl.float32),)
    for step in range(0, (G + W - 1) // W):
        g = step * W + tl.arange(0, W)
        inside = g < G if G % W else True  # masks that are constants cost nothing
        of_weight = ()
        for r in tl.static_range(R):
            of_weight += (
                _read_weight(
                    *(codes, d, multiples, start + r, g, inside, G),
                    *(BITS, SCALE, HALVES, SPAN, MINIMUM),
                ),
            )
        added = ()
        for b in tl.static_range(BATCH):
            x = _read_activations(words, scales, sums, first + b, g, inside, G, HALVES, PARTS)
            for r in tl.static_range(R):
                code_words, factors = of_weight[r]
                # Triton unpacks each row once, when it is first needed, which takes few registers.
                positions = _unpacked(code_words, BITS, LOW_TABLE, HIGH_TABLE)
                added += (
                    _add_products(
                        *(totals[b * R + r], positions, factors, x),
                        *(BITS, OFFSET, HALVES, MINIMUM, PARTS, UNIT, DOT4),
                    ),
                )
        totals = added
    for b in tl.static_range(BATCH):
        for r in tl.static_range(R):
            y = tl.sum(totals[b * R + r], axis=0)
            tl.store(out + (first + b) * N + start + r, y.to(out.dtype.element_ty))


@triton.jit
def _read_weight(
    codes,
    d,
    multiples,
    row,
    g,
    inside,
    G: tl.constexpr,
    BITS: tl.constexpr,
    SCALE: tl.constexpr,
    HALVES: tl.constexpr,
    SPAN: tl.constexpr,
    MINIMUM: tl.constexpr,
):
    """Read groups of a row: the words of the codes, and the factors of each half."""
    words = ()
    for i in tl.static_range(BITS):
        words += (_load(codes, (row * BITS + i) * G + g, inside),)
    factors = ()
    for half in tl.static_range(HALVES):
        factors += (_factors(d, multiples, row, g, inside, G, SCALE, HALVES, SPAN, MINIMUM, half),)
    return words, factors


@triton.jit
def _load(array, at, inside):
    """Read numbers of an array, or zeros where `inside` is false."""
    return tl.load(array + at, mask=inside, other=0)


@triton.jit
def _unpacked(words, BITS: tl.constexpr, LOW_TABLE: tl.constexpr, HIGH_TABLE: tl.constexpr):
    """Unpack the codes of each position."""
    positions = ()
    for position in tl.static_range(8):
        positions += (_codes(words, position, BITS, LOW_TABLE, HIGH_TABLE),)
    return positions


@triton.jit
def _codes(
    words,
    POSITION: tl.constexpr,
    BITS: tl.constexpr,
    LOW_TABLE: tl.constexpr,
    HIGH_TABLE: tl.constexpr,
):
    """Unpack the codes of a position into the bytes of int32 words."""
    HIGHEST: tl.constexpr = 8 if BITS == 8 else (4 if BITS >= 4 else (2 if BITS >= 2 else 1))
    word = _field(words, POSITION, 0, HIGHEST, 0)
    if BITS > HIGHEST:
        word |= _field(words, POSITION, HIGHEST, BITS - HIGHEST, HIGHEST)
    if HIGH_TABLE:
        word = _look_up(word, LOW_TABLE, HIGH_TABLE)
    return word.to(tl.int32, bitcast=True)


@triton.jit
def _field(
    words,
    POSITION: tl.constexpr,
    FIRST: tl.constexpr,
    PART: tl.constexpr,
    LOW: tl.constexpr,
):
    """Extract the PART bits of a position from the words from FIRST on, to bit LOW of each byte."""
    if PART == 8:
        word = words[POSITION]
    else:
        IN_NIBBLE: tl.constexpr = 4 // PART
        LEFT: tl.constexpr = LOW - (POSITION // 4 * 4 + POSITION % IN_NIBBLE * PART)
        word = words[FIRST + POSITION % 4 // IN_NIBBLE]
        if LEFT > 0:
            word = word << LEFT
        elif LEFT < 0:
            word = word >> -LEFT
        word = word & (((1 << PART) - 1 << LOW) * 0x01010101)
    return word


@triton.jit
def _look_up(codes, LOW_TABLE: tl.constexpr, HIGH_TABLE: tl.constexpr):
    """Replace each byte, 0 to 15, by the byte of the table at that place."""
    low = _select(codes & 0x07070707, LOW_TABLE)
    high = _select(codes & 0x07070707, HIGH_TABLE)
    is_high = ((codes >> 3) & 0x01010101) * 255
    return (low & (is_high ^ 0xFFFFFFFF)) | (high & is_high)


@triton.jit
def _select(codes, EIGHT: tl.constexpr):
    """Replace each byte, 0 to 7, by one of eight bytes."""
    upper = tl.full(codes.shape, EIGHT >> 32, tl.uint32)
    lower = tl.full(codes.shape, EIGHT & 0xFFFFFFFF, tl.uint32)
    return tl.inline_asm_elementwise(
        "v_perm_b32 $0, $1, $2, $3",
        "=v,v,v,v",
        [upper, lower, codes],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _factors(
    d,
    multiples,
    row,
    g,
    inside,
    G: tl.constexpr,
    SCALE: tl.constexpr,
    HALVES: tl.constexpr,
    SPAN: tl.constexpr,
    MINIMUM: tl.constexpr,
    HALF: tl.constexpr,
):
    """Read the scale and the minimum of a half of each group; the scale twice without a minimum."""
    if SCALE != "d":
        multiple = _load(multiples, (row * HALVES + HALF) * G + g, inside)
    if SCALE != "e8m0" and SCALE != "e4m3":
        unit = _load(d, row * (G // SPAN) + g // SPAN, inside)
    if SCALE == "e8m0":
        scale = (tl.maximum(multiple.to(tl.int32) - 1, 0) << 23).to(tl.float32, bitcast=True)
        minimum = scale
    elif SCALE == "e4m3":
        code = multiple.to(tl.int32)
        bits = tl.where(code == 127, 0, (code & 127) << 7)
        scale = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 128.0
        minimum = scale
    elif MINIMUM:
        scale = unit.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        minimum = (unit >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        if SCALE != "d":
            BELOW: tl.constexpr = 4 if SCALE == "nibbles" else 8
            both = multiple.to(tl.int32)
            scale *= (both & ((1 << BELOW) - 1)).to(tl.float32)
            minimum *= -(both >> BELOW).to(tl.float32)
    else:
        scale = unit.to(tl.float32)
        if SCALE == "int8":
            scale *= multiple.to(tl.float32)
        minimum = scale
    return scale, minimum


@triton.jit
def _read_activations(
    words,
    scales,
    sums,
    row,
    g,
    inside,
    G: tl.constexpr,
    HALVES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Read groups of a row: the words, the scale, and the sums of each half."""
    COUNT: tl.constexpr = 8 * PARTS if PARTS else 32
    read = ()
    for i in tl.static_range(COUNT):
        read += (_load(words, (row * COUNT + i) * G + g, inside),)
    first = _load(sums, row * 2 * G + g, inside)
    second = _load(sums, (row * 2 + 1) * G + g, inside)
    if HALVES == 2:
        of_halves = (first, second)
    else:
        of_halves = (first + second,)
    return read, _load(scales, row * G + g, inside), of_halves


@triton.jit
def _add_products(
    total,
    positions,
    factors,
    x,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    HALVES: tl.constexpr,
    MINIMUM: tl.constexpr,
    PARTS: tl.constexpr,
    UNIT: tl.constexpr,
    DOT4: tl.constexpr,
):
    """Add the products of groups of a weight and of activations to `total`."""
    words, scale, sums = x
    of_groups = total * 0
    for half in tl.static_range(HALVES):
        if PARTS == 0:
            dot = _float_dot(positions, words, sums[half], BITS, OFFSET, HALVES, UNIT, half)
        else:
            dot = _integer_dot(positions, words, sums[half], OFFSET, HALVES, PARTS, DOT4, half)
        if half == 0:
            of_groups = dot.to(tl.float32) * factors[half][0]
        else:
            of_groups = tl.fma(dot.to(tl.float32), factors[half][0], of_groups)
    if MINIMUM:
        for half in tl.static_range(HALVES):
            of_groups = tl.fma(sums[half].to(tl.float32), factors[half][1], of_groups)
    return tl.fma(of_groups, scale, total)


@triton.jit
def _integer_dot(
    positions,
    words,
    of_half,
    OFFSET: tl.constexpr,
    HALVES: tl.constexpr,
    PARTS: tl.constexpr,
    DOT4: tl.constexpr,
    HALF: tl.constexpr,
):
    """Multiply the bytes of half a group, or of all of it -> int32 [W]."""
    dot = of_half & 0
    for part in tl.static_range(PARTS):
        dot = dot << 7
        if part == PARTS - 1:
            dot -= OFFSET * of_half
        for p in tl.static_range(8 // HALVES * HALF, 8 // HALVES * (HALF + 1)):
            dot = _dot4(positions[p], words[8 * part + p], dot, DOT4)
    return dot


@triton.jit
def _dot4(a, b, c, DOT4: tl.constexpr):
    """Add to c the dot product of the four signed bytes in a and those in b."""
    return tl.inline_asm_elementwise(
        DOT4, "=v,v,v,v", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _float_dot(
    positions,
    words,
    of_half,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    HALVES: tl.constexpr,
    UNIT: tl.constexpr,
    HALF: tl.constexpr,
):
    """Multiply the codes of half a group, or of all of it, with float32 numbers -> float32 [W].

    Signed codes are made unsigned, because AMD's GPUs convert any unsigned byte of a word to a
    float in one instruction.
    """
    MORE: tl.constexpr = OFFSET + 128 if BITS == 8 else OFFSET
    dot = of_half * (-MORE * UNIT)
    for p in tl.static_range(8 // HALVES * HALF, 8 // HALVES * (HALF + 1)):
        code = positions[p].to(tl.uint32, bitcast=True)
        if BITS == 8:
            code ^= 0x80808080
        for i in tl.static_range(4):
            byte = (code >> (8 * i)) & 255
            dot = tl.fma(byte.to(tl.float32), words[4 * p + i], dot)
    return dot * (1 / UNIT)
