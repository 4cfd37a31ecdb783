"""Instructions of GPUs that kernels use through inline assembly, whichever language they are in."""

from pallas_kernels.targets import Target, of_family

#: Dot products of the four signed bytes in each of two words, added to a third.
_DOT4 = {
    "cuda": "dp4a.s32.s32 $0, $1, $2, $3;",
    "rocm": "v_dot4_i32_i8 $0, $1, $2, $3",
    "rocm gfx11": "v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[1,1,0]",
    "rocm gfx12": "v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[1,1,0]",
}


def dot4(target: Target) -> str:
    """Return the instruction for dot products of four signed bytes, without registers."""
    return of_family(_DOT4, target)
