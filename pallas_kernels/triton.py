"""Wrappers of Pallas's Triton backend. No other file imports the backend.

The backend is deprecated since JAX 0.11, but no other one supports AMD GPUs. Kernels use it through
this file only, so replacing it means rewriting this file. Functions with inline assembly have a
version for NVIDIA, one for AMD, and one in plain jnp for the interpreter.
"""

import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import instructions, packing
from pallas_kernels.targets import Target

# JAX issues this warning whenever a kernel is lowered. No other backend supports AMD GPUs.
warnings.filterwarnings(
    "ignore", message="The Pallas Triton backend is deprecated", category=DeprecationWarning
)


@functools.cache
def _backend() -> Any:
    """Imports the backend at its first use, because CPUs do not need it."""
    from jax.experimental.pallas import triton

    return triton


def call(
    kernel,
    out_shape,
    *,
    grid,
    target: Target,
    warps: int,
    stages: int = 1,
    name: str,
    aliases=None,
    early: bool = True,
):
    """Make a function of arrays that runs a kernel at every point of a grid.

    Args:
        kernel: called as kernel(point, *refs). The point is a tuple of integers. The refs are the
            whole operands and outputs, which the kernel indexes by its point.
        out_shape: shapes and dtypes of the outputs.
        grid: the number of points along each axis.
        target: the compilation target.
        warps: warps per program.
        stages: software pipelining stages of loops; 1 for no prefetch.
        name: the name of the kernel.
        aliases: {operand index: output index} of arrays that share memory.
        early: whether the next launch may begin before this one ends, on GPUs that support it.
    """
    return pl.pallas_call(
        lambda *refs: kernel(_point(grid, target, warps, early and target.overlaps), *refs),
        out_shape,
        grid=grid,
        input_output_aliases=aliases or {},
        compiler_params=_backend().CompilerParams(num_warps=warps, num_stages=stages),
        interpret=target.interpret,
        name=name,
    )


def _point(grid, target, warps, early) -> tuple:
    """Return the indices of this program along the axes of the grid.

    If `early`, the program also signals that the next launch may begin on multiprocessors that
    become free. XLA lets the next launch wait for the end of this one before it reads memory, so
    only the start-up time is saved.

    In a long launch, only the last programs signal: as many as fit on the GPU at once. By then, all
    programs before them have ended. A signal doubles the start-up time of a program (measured:
    docs/kernels.md).
    """
    first, *others = point = [pl.program_id(axis) for axis in range(len(grid))]
    if not early:
        return tuple(point)
    if (programs := math.prod(grid)) <= (resident := target.resident // warps):
        first = _assembly(_LET_THE_NEXT_BEGIN, "=r,r", jnp.full(1, first))
    else:
        number = functools.reduce(
            lambda number, axis: number * grid[axis] + point[axis], reversed(range(len(grid))), 0
        )
        is_last = (number >= programs - resident).astype(jnp.int32)
        first = _assembly(_IF_LAST_LET_IT_BEGIN, "=r,r,r", jnp.full(1, first), jnp.full(1, is_last))
    return first.sum(), *others


_LET_THE_NEXT_BEGIN = "griddepcontrol.launch_dependents; mov.b32 $0, $1;"
_IF_LAST_LET_IT_BEGIN = (
    "{.reg .pred last; setp.ne.b32 last, $2, 0; @last griddepcontrol.launch_dependents; mov.b32 $0,"
    " $1;}"
)


def when_all(conditions: list, run) -> None:
    """Call run() in a kernel if all conditions hold, or always if there are none."""
    if conditions:
        pl.when(functools.reduce(jnp.logical_and, conditions))(run)
    else:
        run()


def shares(number, counts: list[int]):
    """Divide the programs of a launch among several jobs, in the order of `counts`.

    Yields:
        For each job: the index of program `number` among those of the job, and the conditions, for
        `when_all`, under which the program is one of them.
    """
    first = 0
    for count in counts:
        is_alone = len(counts) == 1
        yield number - first, [] if is_alone else [(number >= first) & (number < first + count)]
        first += count


def load(ref, index, mask=None, other=0, hint=None):
    """Load ref[index]. Where the mask is false, nothing is read and the result is `other`.

    hint: a key of HINTS, or None.
    """
    hints = HINTS.get(hint, {})
    if mask is None and not hints:
        return ref[index]
    return _backend().load(
        ref.at[_traced(index)], mask=mask, other=None if mask is None else other, **hints
    )


#: Cache hints. "once": no other program reads the data. "again": all programs read them.
HINTS = {"once": {"eviction_policy": "evict_first"}, "again": {"eviction_policy": "evict_last"}}


def store(ref, index, value, mask=None):
    """Store a value to ref[index] where the mask is true."""
    if mask is None:
        ref[index] = value
    else:
        _backend().store(ref.at[_traced(index)], value, mask=mask)


def barrier(target: Target):
    """Wait until all threads of a program reach this point."""
    if not target.interpret:
        _backend().debug_barrier()


def _traced(index):
    """Convert Python integers to int32, because the interpreter rejects them with a mask."""
    return tuple(jnp.int32(i) if isinstance(i, int) else i for i in index)


def dot(a, b, *, precision=None):
    """Multiply two matrices on the matrix units, with a float32 result.

    precision: "highest" keeps all bits of float32 operands.
    """
    return jax.lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def dot_float32(a, b, target: Target, exact: bool = True):
    """Multiply two float32 matrices, on NVIDIA's matrix units.

    There, each number is the sum of two tensorfloat32, and three of the four products are added,
    for an error of about 1e-6. Unless `exact`, the numbers are rounded to one tensorfloat32, for an
    error of about 4e-4. Other GPUs always multiply in float32.
    """
    if target.platform != "cuda":
        return dot(a, b, precision="highest")
    preset = jax.lax.DotAlgorithmPreset
    return dot(a, b, precision=preset.TF32_TF32_F32_X3 if exact else preset.TF32_TF32_F32)


def dot4(a, b, c, target: Target):
    """Add to each int32 of c the dot product of the four signed bytes in a and those in b."""
    a, b, c = jnp.broadcast_arrays(a, b, c)
    if target.interpret:
        return c + sum(_byte(a, i) * _byte(b, i) for i in range(4))
    return _assembly(instructions.dot4(target), _CONSTRAINTS[target.platform], a, b, c)


_CONSTRAINTS = {"cuda": "=r,r,r,r", "rocm": "=v,v,v,v"}


def multiply_add(a, b, c, target: Target):
    """Compute a * b + c of float32 arrays in one instruction, rounded once.

    Triton does not fuse the two operations by itself. The interpreter rounds twice.
    """
    a, b, c = jnp.broadcast_arrays(a, b, c)
    if target.interpret:
        return a * b + c
    return _assembly(
        _MULTIPLY_ADD[target.platform], _FLOATS[target.platform], a, b, c, dtype=jnp.float32
    )


_MULTIPLY_ADD = {"cuda": "fma.rn.f32 $0, $1, $2, $3;", "rocm": "v_fma_f32 $0, $1, $2, $3"}
_FLOATS = {"cuda": "=f,f,f,f", "rocm": "=v,v,v,v"}


def unsigned_byte(words, i: int, target: Target):
    """Extract byte i of uint32 words, in one instruction where NVIDIA's compiler uses two."""
    if target.platform != "cuda":
        return (words >> np.uint32(8 * i)) & np.uint32(255)
    return _assembly(
        f"prmt.b32 $0, $1, 0, {0x4440 + i:#x};", "=r,r", words.astype(jnp.int32)
    ).astype(jnp.uint32)


def multiply_bits_add(bits, a, c, target: Target):
    """Compute bits * `unit_of_bits` * a + c, for uint32 bits below 2^23 and float32 a and c.

    On NVIDIA's GPUs the integers are not converted to floats. Their bits, read as float32, are
    subnormal numbers, which these GPUs multiply at full speed.
    """
    if target.platform != "cuda":
        return multiply_add(bits.astype(jnp.float32), a, c, target)
    return multiply_add(jax.lax.bitcast_convert_type(bits, jnp.float32), a, c, target)


def unit_of_bits(target: Target) -> float:
    """Return the value of the integer 1 in `multiply_bits_add`."""
    return 2.0**-149 if target.platform == "cuda" else 1.0


def and_or(a, b, c, target: Target):
    """Compute a & b | c of uint32 arrays.

    This is one instruction, where NVIDIA's compiler uses two if b and c are constants.
    """
    if target.platform != "cuda":
        return a & b | c
    return _logic(0xEA, a, b, c)


def twice_bfloat16(x):
    """Return float32 numbers as bfloat16, rounded towards zero, in both halves of uint32 words."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return (bits & np.uint32(0xFFFF0000)) | (bits >> np.uint32(16))


def multiply_bfloat16_pairs(a, b):
    """Multiply two bfloat16 numbers in each uint32 of a with those of b."""
    a, b = (x.astype(jnp.int32) for x in jnp.broadcast_arrays(a, b))
    return _assembly("mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", a, b).astype(jnp.uint32)


def bfloat16_pair(words) -> tuple:
    """Return the lower and the upper halves of uint32 words as bfloat16."""
    return tuple(
        jax.lax.bitcast_convert_type(half.astype(jnp.uint16), jnp.bfloat16)
        for half in (words & np.uint32(0xFFFF), words >> np.uint32(16))
    )


def choose(mask, a, b, target: Target):
    """Like `packing.choose` of uint32 arrays, in one instruction on NVIDIA's GPUs."""
    if target.platform != "cuda":
        return packing.choose(mask, a, b)
    return _logic(0xCA, mask, a, b)


def _logic(table: int, a, b, c):
    """Combine uint32 arrays bit by bit with NVIDIA's `lop3`, by a truth table of three bits."""
    a, b, c = (x.astype(jnp.int32) for x in jnp.broadcast_arrays(a, b, c))
    return _assembly(f"lop3.b32 $0, $1, $2, $3, {table:#x};", _CONSTRAINTS["cuda"], a, b, c).astype(
        jnp.uint32
    )


def zero_after(loaded: list, shape, target: Target):
    """Make int32 zeros that depend on all of `loaded`.

    NVIDIA's compiler saves registers by moving each load to just before its use, which exposes the
    memory latency each time. A computation that begins with these zeros begins after all loads, so
    the compiler gains nothing by moving them.

    Args:
        loaded: arrays of 32-bit numbers that broadcast to `shape`.
        shape: the shape of the zeros.
        target: the compilation target. Except on "cuda", the zeros are constants.
    """
    if target.platform != "cuda":
        return jnp.zeros(shape, jnp.int32)
    words = [
        jnp.broadcast_to(jax.lax.bitcast_convert_type(array, jnp.int32), shape) for array in loaded
    ]
    words += words[-1:] * (1 - len(words) % 2)
    some, pairs = words[0], zip(words[1::2], words[2::2])
    for pair in pairs:
        some = _assembly("lop3.b32 $0, $1, $2, $3, 0xFE;", "=r,r,r,r", some, *pair)
    return _assembly(_NONE_OF, "=r,r", some)


#: A zero that NVIDIA's compiler cannot recognise as zero, or as equal in all threads. It is the AND
#: of a mask with the thread's own bit and a mask with the bits of the threads below it.
_ZERO = """
.reg .b32 zero, below;
mov.u32 zero, %lanemask_eq;
mov.u32 below, %lanemask_lt;
and.b32 zero, zero, below;
"""
_NONE_OF = f"{{{_ZERO}and.b32 $0, $1, zero;}}"


def _assembly(text, constraints, *args, dtype=jnp.int32):
    (result,) = _backend().elementwise_inline_asm(
        text,
        args=args,
        constraints=constraints,
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, dtype)],
    )
    return result


def _byte(words, i):
    """Extract byte i of int32 words as a signed number."""
    return (words << (24 - 8 * i)) >> 24


def bytes_of_table(nibbles, table: tuple[int, ...], target: Target, in_turn: bool = False):
    """Look up eight 4-bit codes of each uint32 word in a table.

    Returns:
        Two int32 arrays of four bytes: table[code] of the low nibbles, and of the high nibbles.
        With `in_turn`: of the lower four nibbles, and of the upper four, which is the order of
        NVIDIA's instruction.
    """
    entries = np.array(table).astype(np.uint8)
    if target.platform == "cuda":
        return _select_cuda(nibbles.astype(jnp.int32), entries, in_turn)
    if target.interpret:
        words = tuple(
            _looked_up((nibbles >> np.uint32(shift)) & np.uint32(0x0F0F0F0F), table)
            for shift in (0, 4)
        )
    else:
        words = _select_rocm(nibbles.astype(jnp.int32), entries)
    return _bytes_in_turn(*words) if in_turn else words


def _bytes_in_turn(low, high):
    """Interleave two words: bytes a, b, c, d and e, f, g, h -> a, e, b, f and c, g, d, h."""

    def apart(words):
        return (words & 255) | ((words & 0xFF00) << 8)

    def shifted(words):
        return jax.lax.shift_right_logical(words, 16)

    return tuple(
        apart(part(low)) | (apart(part(high)) << 8) for part in (lambda words: words, shifted)
    )


def _looked_up(codes, table):
    def look_up(byte):
        code = (codes >> np.uint32(8 * byte)) & np.uint32(15)
        return sum(
            jnp.where(code == np.uint32(i), np.uint32((entry & 255) << (8 * byte)), 0)
            for i, entry in enumerate(table)
        )

    return (look_up(0) | look_up(1) | look_up(2) | look_up(3)).astype(jnp.int32)


def _select_cuda(words, entries, in_turn):
    """Look up codes with NVIDIA's `prmt`.

    Each nibble of the selector of `prmt` selects one of eight bytes by its lower three bits. If the
    top bit of the nibble is set, the result is the sign bit of that byte, repeated eight times.

    Every code is looked up in both halves of the table. The half with the entry returns the entry.
    The other half returns a repeated sign bit. The exclusive or of both is the result. It is
    correct because entries i and i + 8 have the same sign, and negative entries of the lower half
    are stored inverted: the sign bits of the upper half invert them back.
    """
    lower, upper = entries[:8].view(np.int8), entries[8:].view(np.int8)
    if ((lower < 0) != (upper < 0)).any():
        raise ValueError(
            "entries i and i + 8 of a table must have one sign, got"
            f" {entries.view(np.int8).tolist()}"
        )
    halves = np.concatenate([np.where(lower < 0, ~lower, lower), upper]).view(np.uint32)
    look_up = "{" + _ZERO + _LOOK_UP.format(*(f"{four:#x}" for four in halves.tolist())) + "}"
    others = words ^ np.int32(0x88888888 - 2**32)

    def shifted(a):
        return jax.lax.shift_right_logical(a, 16)

    first, second = (
        _assembly(look_up, "=r,r,r", words, others),
        _assembly(look_up, "=r,r,r", shifted(words), shifted(others)),
    )
    if in_turn:
        return first, second
    return tuple(
        _assembly(f"prmt.b32 $0, $1, $2, {bytes:#x};", "=r,r,r", first, second)
        for bytes in (0x6420, 0x7531)
    )


#: Half of each table is in a register. OR with `zero` keeps it there: numbers that are equal in all
#: threads would be kept elsewhere by the compiler, and copied before each use.
_LOOK_UP = """
.reg .b32 lower, upper;
or.b32 lower, zero, {0};
or.b32 upper, zero, {2};
prmt.b32 lower, lower, {1}, $1;
prmt.b32 upper, upper, {3}, $2;
xor.b32 $0, lower, upper;
"""


def _select_rocm(words, entries):
    """Look up codes with AMD's `v_perm_b32`, which selects four bytes out of eight."""
    entries = entries.view(np.int32)

    def pick(low, high, selector):
        operands = (jnp.full(words.shape, high), jnp.full(words.shape, low), selector)
        return _assembly("v_perm_b32 $0, $1, $2, $3", _CONSTRAINTS["rocm"], *operands)

    def look_up(codes):
        lower, upper = (
            pick(entries[2 * half], entries[2 * half + 1], codes & 0x07070707) for half in (0, 1)
        )
        top = ((codes >> 3) & 0x01010101) * 255
        return (lower & ~top) | (upper & top)

    return look_up(words & 0x0F0F0F0F), look_up(jax.lax.shift_right_logical(words, 4) & 0x0F0F0F0F)
