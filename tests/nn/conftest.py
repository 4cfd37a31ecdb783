"""The truth that tests of attention compare with, and the backends that compute it."""

import numpy as np
import pytest

from pallas_kernels import targets


@pytest.fixture(scope="session")
def attention():
    """softmax(cap(q k^T / sqrt(H)) + mask) v, one head after the other, in float64.

    A query that sees nothing gets zeros.
    """

    def reference(q, k, v, mask, scale=None, soft_cap=None, sinks=None):
        q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
        (B, _, N, H), K = q.shape, k.shape[2]
        out = np.zeros(q.shape)
        for b in range(B):
            for n in range(N):
                keys, values = k[b, :, n // (N // K)], v[b, :, n // (N // K)]
                scores = q[b, :, n] @ keys.T * (1 / np.sqrt(H) if scale is None else scale)
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                scores = np.where(mask[b], scores, -np.inf)
                sink = -np.inf if sinks is None else np.float64(sinks[n])
                highest = np.maximum(np.maximum(scores.max(axis=-1, keepdims=True), sink), -1e300)
                weights = np.exp(scores - highest)
                total = weights.sum(axis=-1, keepdims=True) + np.exp(sink - highest)
                out[b, :, n] = weights / np.where(total > 0, total, 1) @ values
        return out

    return reference


@pytest.fixture(params=["xla", "cpp", "pallas"])
def backend(request):
    """Makes one backend after the other available: Pallas on a GPU, or in its interpreter."""
    if request.param == "cpp":
        request.getfixturevalue("in_cpp")
    if request.param != "pallas":
        yield request.param
        return
    with targets.use(targets.current() or targets.INTERPRET):
        yield request.param
