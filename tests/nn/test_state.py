"""What every kind of state has in common: rows, growing, rewinding, bytes, PartitionSpecs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from rocmforge_jax.nn import (
    Cache,
    CausalConvolution,
    ConvState,
    KVState,
    MemoryState,
    NoState,
    ParallelState,
    causal_convolution,
)

pytestmark = pytest.mark.core

BATCH, LENGTH = 4, 96


def memory(batch):
    return MemoryState.zeros(batch, (6, 5, 7), taps=4, channels=102, dtype=jnp.bfloat16)


STATES = {
    "keys and values": lambda batch: KVState.zeros(batch, 6, 8, LENGTH, jnp.float32),
    "ring buffer": lambda batch: KVState.zeros(batch, 6, 8, 500, jnp.float32, window=20),
    "convolution": lambda batch: ConvState.zeros(batch, 4, 10, jnp.float32),
    "memory": memory,
    "nothing": lambda batch: NoState(),
    "side by side": lambda batch: ParallelState(
        (KVState.zeros(batch, 6, 8, LENGTH, jnp.bfloat16), memory(batch))
    ),
    "side by side, nothing to lose": lambda batch: ParallelState(
        (NoState(), KVState.zeros(batch, 2, 8, LENGTH, jnp.float32))
    ),
}


def filled(state, seed):
    """The same state with random numbers."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape), a.dtype), state)


@pytest.fixture(params=STATES)
def state(request):
    return filled(STATES[request.param](BATCH), 0)


@pytest.fixture
def other(request, state):
    """A state of the same kind for one sequence."""
    return filled(STATES[request.node.callspec.params["state"]](1), 1)


def test_a_row_is_one_sequence_and_replaces_one(state, other):
    changed = jax.jit(type(state).with_row)(state, jnp.int32(2), other)
    leaves = zip(*map(jax.tree.leaves, (changed, state, other)))
    for after, before, row in leaves:
        expected = np.array(before)
        expected[2] = np.asarray(row)[0]
        np.testing.assert_array_equal(after, expected)
    for got, row in zip(jax.tree.leaves(changed.row(2)), jax.tree.leaves(other)):
        np.testing.assert_array_equal(got, row)


def test_bytes_are_those_of_the_arrays_also_of_abstract_ones(state):
    bytes_ = sum(array.nbytes for array in jax.tree.leaves(state))
    assert state.nbytes == jax.eval_shape(lambda: state).nbytes == bytes_


def test_growing_keeps_what_is_there(state):
    grown = state.grown(LENGTH + 32)
    for new, old in zip(jax.tree.leaves(grown), jax.tree.leaves(state)):
        np.testing.assert_array_equal(new[tuple(map(slice, old.shape))], old)
    parts = zip(getattr(grown, "parts", [grown]), getattr(state, "parts", [state]))
    for grown, state in parts:
        _check_growth(grown, state)


def _check_growth(grown, state):
    if isinstance(state, KVState) and state.window is None:
        assert grown.length == LENGTH + 32
    else:  # the size does not depend on the number of tokens
        assert grown.nbytes == state.nbytes


def test_who_can_be_rewound():
    states = {name: make(BATCH) for name, make in STATES.items()}
    assert [name for name, state in states.items() if state.rewinds] == [
        "keys and values",
        "nothing",
        "side by side, nothing to lose",
    ]
    for state in states.values():
        same = jax.tree.leaves(state.rewound(90, 90))
        assert all(a is b for a, b in zip(same, jax.tree.leaves(state), strict=True))
    # The ring has 64 slots for a window of 20: 44 tokens back are still whole.
    assert states["ring buffer"].length == 64
    assert states["ring buffer"].rewound(90, 46) is not None
    assert states["ring buffer"].rewound(90, 45) is None
    assert states["ring buffer"].rewound(64, 1) is not None  # nothing was overwritten
    assert states["convolution"].rewound(90, 89) is None
    assert states["memory"].rewound(90, 89) is None
    assert states["side by side"].rewound(90, 89) is None
    assert states["side by side, nothing to lose"].rewound(90, 89) is not None


def test_a_snapshot_keeps_only_what_cannot_be_rewound():
    """Keys and values beside a state space stay those of the cache; the state space goes back."""
    old, new = (filled(STATES["side by side"](1), seed) for seed in (0, 1))
    lengths = jnp.full(1, 40, jnp.int32)
    (kept,) = Cache((old,), lengths, LENGTH).perishable()
    assert kept.nbytes == old.parts[1].nbytes
    jax.tree.map(np.testing.assert_array_equal, kept.grown(LENGTH + 32), kept)
    assert kept.rewound(40, 40).parts == kept.parts and kept.rewound(40, 39) is None
    (restored,) = Cache((new,), lengths, LENGTH).restored((kept,), 40, 30).layers
    for got, wanted in zip(restored.parts, (new.parts[0], old.parts[1])):
        jax.tree.map(np.testing.assert_array_equal, got, wanted)
    losing_nothing = STATES["side by side, nothing to lose"](1)
    assert losing_nothing.perishable() is None
    assert losing_nothing.restored(None, 40, 30).parts == losing_nothing.rewound(40, 30).parts


def test_a_cache_is_rewound_only_with_all_of_its_layers():
    kv, conv = STATES["keys and values"](1), STATES["convolution"](1)
    lengths = jnp.full(1, 40, jnp.int32)
    assert Cache((kv, NoState()), lengths, LENGTH).rewound(40, 7).lengths_B.tolist() == [7]
    assert Cache((kv, conv), lengths, LENGTH).rewound(40, 7) is None
    assert Cache((kv, conv), lengths, LENGTH).rewound(40, 40).lengths_B.tolist() == [40]


def test_a_memory_is_in_float32():
    """6 heads of 5 by 7 numbers; 3 inputs of a filter of 4 taps, in the cache's dtype."""
    state = STATES["memory"](BATCH)
    assert (state.memory_BNHW.shape, state.memory_BNHW.dtype) == ((BATCH, 6, 5, 7), jnp.float32)
    assert state.conv.inputs.shape == (BATCH, 3, 102)
    assert state.conv.inputs.dtype == jnp.bfloat16
    assert state.nbytes == BATCH * (6 * 5 * 7 * 4 + 3 * 102 * 2)


@pytest.mark.parametrize(
    ("sizes", "names", "kv", "conv", "lengths"),
    [
        (
            (2, 3),
            ("data", "model"),
            P("data", "model", None, None),
            P("data", None, None),
            P("data"),
        ),
        ((2, 4), ("data", "model"), P("data", None, None, None), P("data", None, None), P("data")),
        ((3, 2), ("data", "model"), P(None, "model", None, None), P(None, None, None), P(None)),
        ((8,), ("other",), P(None, None, None, None), P(None, None, None), P(None)),
    ],
)
def test_partition_specs(sizes, names, kv, conv, lengths):
    """The batch over "data", heads over "model", wherever the mesh divides them."""
    kinds = ("keys and values", "convolution", "nothing", "memory", "side by side")
    states = tuple(STATES[kind](BATCH) for kind in kinds)
    cache = Cache(states, jnp.zeros(BATCH, jnp.int32), LENGTH)
    specs = cache.specs(AbstractMesh(sizes, names))
    assert (specs.layers[0].keys, specs.layers[0].values) == (kv, kv)
    assert specs.layers[1].inputs == conv and specs.lengths_B == lengths
    assert specs.layers[4].parts[0].keys == kv
    for state in (specs.layers[3], specs.layers[4].parts[1]):
        assert (state.memory_BNHW, state.conv.inputs) == (kv, conv)
    assert jax.tree.structure(specs) == jax.tree.structure(cache)


def test_the_bias_of_a_convolution_is_added_to_its_outputs():
    random = np.random.default_rng(4)
    x, kernel, bias = (
        jnp.asarray(random.normal(size=s), jnp.float32) for s in ((2, 5, 6), (3, 6), 6)
    )
    module = CausalConvolution(3, 6, use_bias=True, rngs=nnx.Rngs(0))
    module.kernel.set_value(kernel)
    module.bias.set_value(bias)
    np.testing.assert_allclose(module(x)[0], causal_convolution(x, kernel)[0] + bias[None, None])


def test_a_convolution_checks_its_operands():
    x, kernel = jnp.ones((2, 5, 6)), jnp.ones((3, 6))
    with pytest.raises(ValueError, match=r"x has 6 channels, the kernel is \[3, 7\]"):
        causal_convolution(x, jnp.ones((3, 7)))
    with pytest.raises(ValueError, match=r"holds \[2, 3, 6\].* needs \[2, 2, 6\]"):
        causal_convolution(x, kernel, ConvState.zeros(2, 4, 6, jnp.float32))
    with pytest.raises(ValueError, match=r"holds \[1, 2, 6\]"):
        causal_convolution(x, kernel, ConvState.zeros(1, 3, 6, jnp.float32))


def test_padding_never_enters_the_state_of_a_convolution():
    """Rows with 0, 2 and 5 real tokens of 5, and the next token, against the rows alone."""
    random = np.random.default_rng(3)
    x, kernel = random.normal(size=(3, 6, 4)), random.normal(size=(3, 4))
    counts, padded = np.array([0, 2, 5]), np.full((3, 5, 4), 1e3)
    for b, count in enumerate(counts):
        padded[b, :count] = x[b, :count]
    state = ConvState.zeros(3, 3, 4, jnp.float32)
    y, state = causal_convolution(
        jnp.asarray(padded, jnp.float32), jnp.asarray(kernel, jnp.float32), state, counts
    )
    following = np.stack([x[b, count] for b, count in enumerate(counts)])[:, None]
    after, _ = causal_convolution(
        jnp.asarray(following, jnp.float32), jnp.asarray(kernel, jnp.float32), state
    )
    for b, count in enumerate(counts):
        before = np.concatenate([np.zeros((2, 4)), x[b]])
        expected = [(before[t : t + 3] * kernel).sum(axis=0) for t in range(count + 1)]
        np.testing.assert_allclose(
            y[b, :count], np.reshape(expected[:-1], (count, 4)), rtol=2e-5, atol=1e-5
        )
        np.testing.assert_allclose(after[b, 0], expected[-1], rtol=2e-5, atol=1e-5)
