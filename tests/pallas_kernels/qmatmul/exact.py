"""What operands of products stand for, in NumPy: the truth in float64."""

import numpy as np

from pallas_kernels.qmatmul import activations

#: A float32 sum of K products of random sign is off by a few 1e-7, whatever its order.
FLOAT32 = 1e-6
#: Relative errors of quantised normal numbers. A group's integers are off by up to half, evenly, so
#: by 0.29 of the scale on average. The scale is the largest number of the group, about 2 for 32 of
#: them, over 16256 or 127: 4e-5 and 5e-3 of a number of size 1. A product with random weights is
#: off by as much; one with few outputs, or weights of one sign, may be off by more.
ERRORS = {"int16": 1e-4, "int8": 8e-3, "float": FLOAT32}


def integers(acts):
    """The integers of activations [M, G, 32], from their bytes."""
    words = np.ascontiguousarray(acts.words)
    by_part = np.moveaxis(words.view(np.int8).reshape(*words.shape, 4), 3, 2)
    if (
        acts.in_turn
    ):  # two bytes of position p, and of 4 + p, are in word p and the two others in word 4 + p
        by_part = np.moveaxis(
            by_part.reshape(*by_part.shape[:3], 2, 4, 2, 2), (3, 4, 5, 6), (5, 4, 6, 3)
        )
    parts = by_part.reshape(*by_part.shape[:3], 32).astype(np.int64)
    return parts[:, 0] if acts.mode == "int8" else 128 * parts[:, 0] + parts[:, 1]


def numbers(acts):
    """What activations stand for, float64 [M, K]."""
    if acts.mode == "float":
        words = np.moveaxis(np.float64(acts.words)[:, 0], 1, 2) / activations.FLOATS_UNIT
        unnormed = (words * np.float64(acts.scale)[..., None]).reshape(acts.rows, -1)
    else:
        unnormed = (integers(acts) * np.float64(acts.scale)[..., None]).reshape(acts.rows, -1)
    if acts.squares is None:
        return unnormed
    return unnormed / np.sqrt(
        np.float64(acts.squares).sum(axis=1, keepdims=True) / unnormed.shape[1] + acts.epsilon
    )


def off(y, x, values):
    """How far y [M, N] is from x [M, K] @ values [N, K].T, in relation to the size of such a
    product where signs are random.

    A few outputs may be small by chance; their error is not.
    """
    x, values = np.asarray(x).astype(np.float64), np.asarray(values).astype(np.float64)
    return np.linalg.norm(np.float64(y) - x @ values.T) / np.sqrt((x**2 @ (values**2).T).sum())
