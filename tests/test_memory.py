"""What was compiled is dropped when a test process has grown beyond its limit."""

import jax
import jax.numpy as jnp

from tests.memory import FIRST_LIMIT, Memory


def test_programs_are_dropped_at_the_limit_only():
    function = jax.jit(lambda x: x + 1)
    function(jnp.ones(3))
    Memory(limit=1 << 60).give_back()
    assert function._cache_size() == 1
    memory = Memory(limit=0)
    memory.give_back()
    assert function._cache_size() == 0
    function(jnp.ones(3))
    memory.give_back()  # the next limit is FIRST_LIMIT or more
    assert function._cache_size() == 1 and FIRST_LIMIT == 2 << 30
