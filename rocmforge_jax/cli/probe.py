"""Starts JAX for `doctor`, in a separate process that may crash, hang or print anything.

Prints one line of JSON: devices, operations, and the warnings that JAX logged.
"""

import json
import logging
from typing import Any

from rocmforge_jax import settings


def main() -> None:
    """Prints the result of `ask`."""
    print(f"\n{json.dumps(ask())}", flush=True)


def ask() -> dict:
    """Returns the JAX devices, the backends of the operations, and logged warnings."""
    logged = _Logged()
    logging.getLogger("jax").addHandler(logged)
    logging.getLogger("jax").propagate = False
    found = {"devices": devices(), "operations": {}, "logged": logged.messages}
    try:
        found["operations"] = operations()
    except settings.SettingError:  # `doctor` reports it
        pass
    return found


def devices() -> list[dict]:
    """Returns platform, kind and memory of each JAX device."""
    import jax

    from rocmforge_jax.models.plan import available_bytes

    return [
        {
            "platform": device.platform,
            "kind": device.device_kind,
            "memory_bytes": available_bytes(device),
        }
        for device in jax.local_devices()
    ]


def operations() -> dict[str, str]:
    """Returns the backend that `backends.choose` selects for each operation on a Q4_K weight."""
    import jax
    import jax.numpy as jnp

    from rocmforge_jax import formats, nn, settings
    from rocmforge_jax.backends import Numerics, record
    from rocmforge_jax.models import default_dtype
    from rocmforge_jax.quant import QTensor, default_layout, dequantize, matmul, take_rows

    numerics = Numerics(backend=settings.backend())
    fmt = formats.get("Q4_K")
    layout = default_layout(fmt, numerics=numerics)

    def packed(row_bytes):
        return QTensor.from_bytes(row_bytes, fmt, layout=layout)

    def attention(q, starts):
        rule, cache = nn.AttentionRule(1.0), nn.KVState.zeros(1, 1, 64, 256, q.dtype)
        return nn.cached_attention(q, cache, starts, rule, backend=numerics.backend)

    def of(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    by: dict[str, Any] = dict(backend=numerics.backend)
    dtype, rows = default_dtype(), of((256, fmt.block_bytes), jnp.uint8)
    x, ids, q = of((1, 256), dtype), of((1,), jnp.int32), of((1, 1, 4, 64), dtype)
    calls = {
        "dequantize": (lambda rows: dequantize(packed(rows), **by), rows),
        "matmul": (lambda x, rows: matmul(x, packed(rows).T, **by), x, rows),
        "take_rows": (lambda rows, ids: take_rows(packed(rows), ids, **by), rows, ids),
        "attention": (attention, q, ids),
    }
    found = {}
    for name, call in calls.items():
        with record() as decisions:
            try:
                jax.eval_shape(*call)
            except NotImplementedError as reason:  # the user has selected a backend that cannot run
                found[name] = f"cannot run: {reason}"
            else:
                (decision,) = decisions
                found[name] = f"{decision.choice.name}: {decision.choice.reason}"
    return found | {"planes": layout}


class _Logged(logging.Handler):
    """Collects warnings, for example about a plugin that does not start."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        reason = f": {record.exc_info[1]}" if record.exc_info else ""
        self.messages.append(f"{record.getMessage()}{reason}")
