"""The truth that tests of attention compare with."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def attention():
    """softmax(q k^T / sqrt(H) + mask) v, one head after the other, in float64.

    A query that sees nothing gets the mean value.
    """

    def reference(q, k, v, mask, scale=None):
        q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
        (B, _, N, H), K = q.shape, k.shape[2]
        out = np.zeros(q.shape)
        for b in range(B):
            for n in range(N):
                keys, values = k[b, :, n // (N // K)], v[b, :, n // (N // K)]
                scores = q[b, :, n] @ keys.T * (1 / np.sqrt(H) if scale is None else scale)
                scores = np.where(mask[b], scores, -np.inf)
                scores[~mask[b].any(axis=-1)] = 0
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                out[b, :, n] = weights / weights.sum(axis=-1, keepdims=True) @ values
        return out

    return reference
