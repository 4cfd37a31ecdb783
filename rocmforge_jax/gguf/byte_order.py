"""Blocks of big-endian files: each member of a block's C struct is in the other byte order."""

import numpy as np

from rocmforge_jax.formats import Format


def to_little_endian(blocks: np.ndarray, fmt: Format) -> np.ndarray:
    """Copies blocks of a big-endian file, uint8 [n * block bytes], to little endian, read-only."""
    places, start = [], 0
    for field in fmt.fields:
        size = np.dtype(field.dtype).itemsize
        places.append(np.arange(start, start + field.nbytes).reshape(-1, size)[:, ::-1].ravel())
        start += field.nbytes
    swapped = blocks.reshape(-1, fmt.block_bytes)[:, np.concatenate(places)].reshape(blocks.shape)
    swapped.flags.writeable = False
    return swapped
