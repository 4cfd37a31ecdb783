"""What needs no compiler: lowered for AMD GPUs, a program takes no branch that is meant for CPUs."""

import jax
import jax.numpy as jnp
import pytest

from rocmforge_jax.nn import LayerCache

pytestmark = pytest.mark.core


@pytest.mark.parametrize(("platform", "conditional"), [("rocm", False), ("cuda", False), ("cpu", True)])
def test_only_cpus_write_the_cache_under_a_condition(platform, conditional):
    """It keeps XLA:CPU from copying the whole cache; on a GPU it would cost a round trip to the host."""
    cache = jax.eval_shape(lambda: LayerCache.zeros(1, 2, 64, 256, jnp.bfloat16))
    new = jax.ShapeDtypeStruct((1, 1, 2, 64), jnp.bfloat16)
    traced = jax.jit(LayerCache.write).trace(cache, new, new, jax.ShapeDtypeStruct((1,), jnp.int32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "dynamic_update_slice" in text
    assert ("stablehlo.case" in text or "stablehlo.if" in text) == conditional
