"""Converts tensor data of big-endian files.

A block is a C struct. Each of its fields has its bytes reversed in such a file.
"""

import numpy as np

from rocmforge_jax.formats import Format


def to_little_endian(blocks: np.ndarray, fmt: Format) -> np.ndarray:
    """Returns a read-only little-endian copy of big-endian blocks.

    Args:
        blocks: uint8 [n * block bytes], the blocks of a big-endian file.
        fmt: The format of the blocks.
    """
    places, start = [], 0
    for field in fmt.fields:
        size = np.dtype(field.dtype).itemsize
        places.append(np.arange(start, start + field.nbytes).reshape(-1, size)[:, ::-1].ravel())
        start += field.nbytes
    swapped = blocks.reshape(-1, fmt.block_bytes)[:, np.concatenate(places)].reshape(blocks.shape)
    swapped.flags.writeable = False
    return swapped
