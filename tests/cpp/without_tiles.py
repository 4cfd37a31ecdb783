"""Computes a product in a process to which Linux refuses the tiles of AMX.

    python -m tests.cpp.without_tiles LIBRARY OUT.npy

A seccomp filter makes the request for the permission fail. The process prints the instruction sets
that the library offers, and the one that it chose.
"""

import ctypes
import errno
import json
import struct
import sys
from pathlib import Path

#: Constants of linux/prctl.h, linux/seccomp.h, linux/filter.h, linux/audit.h and asm/prctl.h.
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL_WITH = 0x7FFF0000, 0x00050000
_X86_64, _ARCH_PRCTL, _REQUEST_PERMISSION = 0xC000003E, 158, 0x1023
#: Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


def refuse_tiles() -> None:
    """Makes arch_prctl(ARCH_REQ_XCOMP_PERM) fail in this thread and those that it starts."""
    wanted = (
        (_ARCHITECTURE, _X86_64),
        (_NUMBER, _ARCH_PRCTL),
        (_FIRST_ARGUMENT, _REQUEST_PERMISSION),
    )
    program, left = b"", 2 * len(wanted)
    for offset, value in wanted:
        program += struct.pack("HBBI", _LOAD_WORD, 0, 0, offset)
        left -= 2  # instructions after the jump and before the first return
        program += struct.pack("HBBI", _JUMP_IF_EQUAL, 0, left + 1, value)
    program += struct.pack("HBBI", _RETURN, 0, 0, _FAIL_WITH | errno.EPERM)
    program += struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), None, None, None),
        (_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), described, None, None),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl fails")


def product():
    """Computes a product whose rows AMX would multiply."""
    import jax.numpy as jnp

    from pallas_kernels.qmatmul import Product
    from rocmforge_jax.cpp import products
    from tests.cpp.test_products import drawn, made

    x = jnp.asarray(drawn(1, 19, 768))
    return products.multiply(x, [Product((made("Q4_K", 70, 768)[0],))], mode="int16")[0]


def main():
    refuse_tiles()
    import numpy as np

    from rocmforge_jax.cpp import library

    path = Path(sys.argv[1])
    chosen = library.load(path)
    np.save(sys.argv[2], product())
    print(json.dumps({"chosen": chosen, "offered": library.instructions(path)}))


if __name__ == "__main__":
    main()
