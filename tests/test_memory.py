"""What was compiled is dropped when a test process has grown beyond its limit."""

import jax
import jax.numpy as jnp

from tests.memory import Memory


def test_programs_are_dropped_at_the_limit_only():
    function = jax.jit(lambda x: x + 1)
    function(jnp.ones(3))
    Memory(limit=1 << 60).give_back()
    assert function._cache_size() == 1
    memory = Memory(limit=0)
    memory.give_back()
    assert function._cache_size() == 0
    function(jnp.ones(3))
    memory.give_back()  # the next limit is higher than what the process has now
    assert function._cache_size() == 1
