"""Ring buffers of layers with a sliding window, against float64 and beside ordinary buffers."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.backends import Numerics, pallas, record
from rocmforge_jax.nn import (
    AttentionRule,
    KVState,
    RMSNorm,
    RopeConfig,
    apply_rope,
    attend_to_new,
    cached_attention,
    rope_table,
)
from tests.heavy import some

#: Sequences, heads, KV heads, width of a head, and tokens of the longest sequence.
B, N, K, H, L = 3, 4, 2, 32, 300
ROPE = RopeConfig(24)
#: Tokens of a step, and how many of each sequence are real. Decode between prefill, padding, rows
#: without a real token; the first steps wrap nothing, the last ones more than once around.
STEPS = [
    (33, [33, 7, 0]),
    *[(1, [1, 1, 1])] * 5,
    (33, [20, 33, 1]),
    (33, [0, 7, 3]),
    *[(1, [1, 0, 1])] * 70,
    (97, [97, 61, 90]),
    *[(1, [1, 1, 1])] * 9,
    (33, [31, 0, 33]),
    (97, [0, 97, 2]),
    *[(1, [1, 1, 1])] * 20,
]
RULES = {
    "window of 1": dict(window=1),
    "window of 17": dict(window=17),
    "window of a step": dict(window=33),
    "sinks and soft cap": dict(window=21, sinks=True, soft_cap=1.5, scale=0.3),
}


def made(rule, normal):
    """Returns an AttentionRule, and the arguments of the reference that are not the mask."""
    rule = dict(scale=H**-0.5) | rule
    sinks = normal(N, seed=7) if rule.pop("sinks", False) else None
    numbers = dict(scale=rule["scale"], soft_cap=rule.get("soft_cap"), sinks=sinks)
    return AttentionRule(**rule, sinks_N=None if sinks is None else jnp.asarray(sinks)), numbers


@functools.partial(jax.jit, static_argnames=("rope", "backend"))
def step(q, k, v, state, starts_B, lengths_B, rule, *, rope, backend):
    positions_BT = starts_B[:, None] + jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    table = None if rope is None else rope_table(positions_BT, rope)
    numerics = Numerics(backend=backend)
    out, state = attend_to_new(
        q, k, v, table, rope, state, starts_B, rule, lengths_B=lengths_B, numerics=numerics
    )
    return out.array, state


def streams(normal, dtype=np.float32):
    """Returns queries, keys and values of all tokens, [B, L, heads, H]; dtype holds them."""
    made = (normal(B, L, heads, H, seed=i) for i, heads in enumerate((N, K, K)))
    return [np.asarray(jnp.asarray(array, dtype).astype(jnp.float32)) for array in made]


def run(arrays, state, rule, backend, *, steps=STEPS, starts=(0, 0, 0), rope=ROPE, cast=None):
    """Returns attention of every token [B, L, N, H], where the sequences end, and the state.

    Padding holds large numbers.
    """
    out, starts = np.zeros_like(arrays[0]), np.array(starts, np.int32)
    for T, lengths in steps:
        new = [np.full((B, T, *a.shape[2:]), 1e3, np.float32) for a in arrays]
        for b, length in enumerate(lengths):
            for one, array in zip(new, arrays):
                one[b, :length] = array[b, starts[b] : starts[b] + length]
        operands = *(jnp.asarray(a, cast) for a in new), state, starts, np.int32(lengths), rule
        attended, state = step(*operands, rope=rope, backend=backend)
        for b, length in enumerate(lengths):
            shown = np.asarray(attended[b, :length].astype(jnp.float32)).reshape(length, N, H)
            out[b, starts[b] : starts[b] + length] = shown
        starts = starts + np.int32(lengths)
    return out, starts, state


def truth(arrays, ends, rule, numbers, attention, rope=ROPE):
    """Returns attention of all tokens before `ends` in float64; zeros after them."""
    q, k, v = map(jnp.asarray, arrays)
    if rope is not None:
        positions = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), (B, L))
        q, k = (apply_rope(heads, rope_table(positions, rope), rope) for heads in (q, k))
    query, slot = np.arange(L)[:, None], np.arange(L)
    mask = (slot <= query) & (slot > query - rule.window)
    out = attention(q, k, v, np.broadcast_to(mask, (B, L, L)), **numbers)
    return np.where(slot[:, None, None] < ends[:, None, None, None], out, 0)


def in_order(state, ends):
    """Returns (keys, values) of the newest tokens of a ring by (sequence, position)."""
    S, found = state.length, {}
    for b, end in enumerate(ends):
        for p in range(max(0, end - S), end):
            found[b, p] = state.keys[b, :, :, p % S], state.values[b, :, p % S]
    return found


def quick_rings(name, backend):
    """The interpreter of kernels takes seconds for each rule."""
    return backend != "pallas" or name in ("window of 17", "sinks and soft cap")


@pytest.mark.parametrize(
    ("name", "backend"),
    some(itertools.product(RULES, ("xla", "cpp", "pallas")), quick_rings),
    indirect=["backend"],
)
def test_a_ring_computes_what_an_ordinary_buffer_does(name, backend, normal, attention, distance):
    """Both see the same tokens, and the ring holds the newest tokens of the ordinary buffer."""
    (rule, numbers), arrays = made(RULES[name], normal), streams(normal)
    ring = KVState.zeros(B, K, H, 10**6, jnp.float32, rule.window)
    out, ends, ring = run(arrays, ring, rule, backend)
    whole = KVState.zeros(B, K, H, L + 97, jnp.float32)
    beside, _, whole = run(arrays, whole, rule, backend)
    assert ends.min() > 3 * 64 and ring.length in (64, 128) and ring.wraps
    assert distance(out, np.float64(beside)) < 1e-6
    assert distance(out, truth(arrays, ends, rule, numbers, attention)) < 1e-5
    keys, values = np.asarray(whole.keys), np.asarray(whole.values)
    ring = jax.tree.map(np.asarray, ring)
    for (b, p), (key, value) in in_order(ring, ends).items():
        np.testing.assert_array_equal(key, keys[b, :, :, p])
        np.testing.assert_array_equal(value, values[b, :, p])


def test_nothing_differs_before_a_ring_is_full(backend, normal):
    """A window that is larger than the context: the slots are those of an ordinary buffer."""
    rule, arrays, steps = AttentionRule(H**-0.5, window=200), streams(normal), STEPS[:15]
    ring = KVState.zeros(B, K, H, 113, jnp.float32, rule.window)
    assert ring.length == 128 and not ring.wraps
    found = run(arrays, ring, rule, backend, steps=steps)
    exact = run(arrays, KVState.zeros(B, K, H, 128, jnp.float32), rule, backend, steps=steps)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("backend", ["xla", "pallas"], indirect=True)
def test_narrow_rings(backend, normal, attention, distance):
    """Operands are exact in bfloat16: only weights and results are rounded to it."""
    (rule, numbers), arrays = made(RULES["sinks and soft cap"], normal), streams(normal, "bfloat16")
    ring = KVState.zeros(B, K, H, 10**6, jnp.bfloat16, rule.window)
    out, ends, _ = run(arrays, ring, rule, backend, rope=None, cast=jnp.bfloat16)
    assert distance(out, truth(arrays, ends, rule, numbers, attention, rope=None)) < 2**-8


@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("normed", [False, True])
def test_layers_without_rope(window, normed, backend, normal, attention, distance):
    """Heads are normed or not, and nothing rotates: several tokens, then one after the other."""
    rule, rngs = AttentionRule(H**-0.5, window=window), np.random.default_rng(0)
    arrays = [array[:, :80] for array in streams(normal)]
    norms, normed_arrays = None, list(arrays)
    if normed:
        norms = [RMSNorm(H, epsilon=epsilon) for epsilon in (1e-3, 0.1)]
        for i, norm in enumerate(norms):
            norm.scale.set_value(jnp.asarray(rngs.uniform(0.5, 2, H), jnp.float32))
            scale, x = np.float64(norm.scale.get_value()), np.float64(arrays[i])
            mean = (x**2).mean(axis=-1, keepdims=True)
            normed_arrays[i] = x / np.sqrt(mean + norm.epsilon) * scale
    state, out = KVState.zeros(B, K, H, 10**4 if window else 80, jnp.float32, window), []
    for first, last in ((0, 70), *((i, i + 1) for i in range(70, 80))):
        operands = [jnp.asarray(array[:, first:last]) for array in arrays]
        starts = jnp.full(B, first, jnp.int32)
        found, state = attend_to_new(
            *operands,
            None,
            None,
            state,
            starts,
            rule,
            norms=norms,
            numerics=Numerics(backend=backend),
        )
        out.append(np.asarray(found.array).reshape(B, last - first, N, H))
    query, slot = np.arange(80)[:, None], np.arange(80)
    mask = (slot <= query) & (slot > query - (window or 80))
    expected = attention(*normed_arrays, np.broadcast_to(mask, (B, 80, 80)))
    assert distance(np.concatenate(out, axis=1), expected) < 1e-5


def test_without_a_cache_nothing_rotates_either(backend, normal, attention, distance):
    arrays = [array[:, :9] for array in streams(normal)]
    rule, numerics = AttentionRule(H**-0.5, window=4), Numerics(backend=backend)
    operands = *map(jnp.asarray, arrays), None, None, None, None, rule
    out, state = attend_to_new(*operands, numerics=numerics)
    query, slot = np.arange(9)[:, None], np.arange(9)
    mask = np.broadcast_to((slot <= query) & (slot > query - 4), (B, 9, 9))
    assert state is None
    assert distance(out.array.reshape(B, 9, N, H), attention(*arrays, mask)) < 1e-5


def test_rows_without_real_tokens_keep_their_ring(backend, normal):
    """The rings are full; padding would overwrite what is still seen."""
    rule = AttentionRule(1.0, window=17)
    shapes = (B, K, H, 64), (B, K, 64, H)
    ring = KVState(*(jnp.asarray(normal(*s, seed=i)) for i, s in enumerate(shapes)), 17)
    new = [jnp.full((B, 33, heads, H), 1e3) for heads in (N, K, K)]
    starts, lengths = np.int32([200, 64, 130]), np.int32([0, 5, 0])
    _, after = step(*new, ring, starts, lengths, rule, rope=ROPE, backend=backend)
    for b in (0, 2):
        np.testing.assert_array_equal(after.keys[b], ring.keys[b])
        np.testing.assert_array_equal(after.values[b], ring.values[b])
    assert (np.asarray(after.values[1, :, :5]) == 1e3).all()
    np.testing.assert_array_equal(after.values[1, :, 5:], ring.values[1, :, 5:])


def test_a_ring_grows_to_its_full_size_on_the_way(backend, normal, attention, distance):
    """And no further."""
    (rule, numbers), arrays = made(dict(window=70), normal), streams(normal)
    ring = KVState.zeros(B, K, H, 40, jnp.float32, 70)
    assert ring.length == 64 and not ring.wraps
    first, ends, ring = run(arrays, ring, rule, backend, steps=STEPS[:6])
    assert ring.grown(60) is ring
    ring = ring.grown(10**5)
    assert ring.length == 128 and ring.wraps and ring.grown(10**6) is ring
    rest, ends, ring = run(arrays, ring, rule, backend, steps=STEPS[6:], starts=ends)
    assert distance(first + rest, truth(arrays, ends, rule, numbers, attention)) < 1e-5


@pytest.mark.parametrize(
    ("window", "length", "slots"),
    [
        (1, 10**6, 64),
        (32, 10**6, 64),
        (33, 10**6, 128),
        (1024, 10**6, 1088),
        (1024, 1000, 1024),
        (1024, 65, 128),
        (4096, 32000, 4160),
    ],
)
def test_the_size_of_a_ring_is_that_of_its_window(window, length, slots):
    ring = jax.eval_shape(lambda: KVState.zeros(2, K, H, length, jnp.bfloat16, window))
    assert ring.length == slots and ring.window == window
    assert ring.nbytes == 2 * 2 * K * H * slots * 2
    assert ring.wraps == (slots >= window + 32)
    assert not ring.rewinds and KVState.zeros(1, K, H, 8, jnp.float32).rewinds


@pytest.mark.parametrize("window", [17, 21, 64])
def test_a_rewound_ring_goes_on_as_if_nothing_had_been_added(window, normal, attention, distance):
    """By all tokens that a ring allows, after it has wrapped, with one token or several at once."""
    (rule, numbers), arrays = made(dict(window=window), normal), streams(normal)
    ring = KVState.zeros(B, K, H, 10**6, jnp.float32, window)
    spare = ring.length - window
    assert spare >= 32
    _, ends, ring = run(arrays, ring, rule, "xla", steps=[(97, [97] * 3)] * 2)
    held = int(ends[0])
    assert ring.rewound(held, held - spare) is ring
    assert ring.rewound(held, held - spare - 1) is None
    assert ring.rewound(ring.length, 0) is ring
    other = [normal(*array.shape, seed=9) for array in arrays]
    start = held - spare
    text = [np.concatenate([a[:, :start], b[:, start:]], axis=1) for a, b in zip(arrays, other)]
    for steps in ([(1, [1] * 3)] * 40, [(33, [33, 5, 1]), *[(1, [1] * 3)] * 10]):
        out, ends, _ = run(text, ring, rule, "xla", steps=steps, starts=[start] * 3)
        exact = truth(text, ends, rule, numbers, attention)
        assert distance(out[:, start:], exact[:, start:]) < 1e-5


def test_a_ring_that_has_not_wrapped_rewinds_to_any_length():
    ring = KVState.zeros(B, K, H, 100, jnp.float32, 200)
    assert ring.length == 128 and ring.rewound(100, 1) is ring
    whole = KVState.zeros(B, K, H, 100, jnp.float32)
    assert whole.rewound(100, 1) is whole


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_a_decode_step_updates_a_donated_ring_in_place(batch, dtype, optimised):
    ring = jax.eval_shape(lambda: KVState.zeros(batch, 2, 64, 10**6, dtype, 500))
    of, starts = jax.ShapeDtypeStruct, jax.ShapeDtypeStruct((batch,), jnp.int32)
    new = [of((batch, 1, heads, 64), jnp.float32) for heads in (4, 2, 2)]
    decode = jax.jit(
        functools.partial(step.__wrapped__, rope=RopeConfig(64), backend="xla"), donate_argnums=3
    )
    operands = *new, ring, starts, None, AttentionRule(0.1, window=500)
    compiled = decode.lower(*operands).compile(optimised)
    found = re.findall(r"= \w+\[([\d,]+)\]\S* (copy|transpose|convert)\(", compiled.as_text())
    size, memory = ring.keys.size, compiled.memory_analysis()
    assert not [match for match in found if math.prod(map(int, match[0].split(","))) >= size]
    assert memory.alias_size_in_bytes == ring.nbytes
    assert memory.temp_size_in_bytes < ring.nbytes / 4


def test_a_donated_ring_stays_where_it_is(backend, normal):
    rule, ring = AttentionRule(0.1, window=21), KVState.zeros(B, K, H, 10**6, jnp.float32, 21)
    decode = jax.jit(
        functools.partial(step.__wrapped__, rope=ROPE, backend=backend), donate_argnums=3
    )
    new = [jnp.asarray(normal(B, 1, heads, H)) for heads in (N, K, K)]
    before, old = _place(ring), ring
    for position in (63, 64, 300):
        _, ring = decode(*new, ring, jnp.full(B, position, jnp.int32), None, rule)
    assert old.keys.is_deleted() and (_place(ring) == before or backend == "pallas")


def _place(state):
    return state.keys.unsafe_buffer_pointer(), state.values.unsafe_buffer_pointer()


@pytest.mark.parametrize("T", [1, 5])
def test_gradients_of_a_ring(T, backend, normal, distance):
    shapes = (B, K, H, 64), (B, K, 64, H)
    ring = KVState(*(jnp.asarray(normal(*s, seed=i)) for i, s in enumerate(shapes)), 17)
    new = [jnp.asarray(normal(B, T, heads, H, seed=3 + i)) for i, heads in enumerate((N, K, K))]
    starts, rule = np.int32([200, 3, 64]), AttentionRule(0.2, window=17, soft_cap=2.0)

    def loss(backend, q, k, v, ring):
        out, after = step(q, k, v, ring, starts, None, rule, rope=None, backend=backend)
        return (out**2).sum() + (after.values**2).sum()

    found, exact = (
        jax.grad(functools.partial(loss, name), argnums=(0, 1, 2, 3))(*new, ring)
        for name in (backend, "xla")
    )
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    for one, other in leaves:
        assert np.linalg.norm(other) > 0 and distance(one, np.float64(other)) < 1e-5


@pytest.mark.parametrize("T", [1, 5])
def test_the_report_names_the_ring(T, backend):
    ring = KVState.zeros(1, K, H, 10**6, jnp.float32, 17)
    new = [jnp.ones((1, T, heads, H)) for heads in (N, K, K)]
    rule, numerics = AttentionRule(1.0, window=17), Numerics(backend=backend)
    with record() as decisions:
        attend_to_new(*new, None, None, ring, jnp.array([99], jnp.int32), rule, numerics=numerics)
    (decision,) = decisions
    assert decision.choice.name == backend
    assert "ring of 64 slots" in decision.choice.reason or backend == "xla"
    assert "rotates" not in decision.choice.reason


@pytest.mark.parametrize("backend", ["pallas"], indirect=True)
@pytest.mark.parametrize("rope", [None, ROPE])
def test_a_kernel_is_tried_with_what_it_is_used_for(rope, backend, monkeypatch):
    """The trial is on a ring, of tokens that rotate only where those of the call do."""
    tried = []

    def require(what, error, allowed):
        tried.append(what)
        assert error() < 1e-6 < allowed

    monkeypatch.setattr(pallas, "require", require)
    ring, starts = KVState.zeros(1, K, H, 10**6, jnp.float32, 17), jnp.array([99], jnp.int32)
    q, kv = jnp.ones((1, 1, N, H)), jnp.ones((1, 1, K, H))
    table = None if rope is None else rope_table(starts[:, None], rope)
    rule, numerics = AttentionRule(1.0, window=17, soft_cap=2.0), Numerics(backend=backend)
    attend_to_new(q, kv, kv, table, rope, ring, starts, rule, numerics=numerics)
    described = "decode attention of 2 heads of 32 a group, float32, window, soft cap, ring"
    assert tried == [described if rope else f"{described}, no rope"]


def test_windows_of_the_cache_and_of_the_rule_must_be_equal(backend):
    ring, q = KVState.zeros(1, K, H, 10**6, jnp.float32, 17), jnp.ones((1, 1, N, H))
    starts, kv = jnp.zeros(1, jnp.int32), jnp.ones((1, 1, K, H))
    for window in (16, None):
        rule, numerics = AttentionRule(1.0, window=window), Numerics(backend=backend)
        with pytest.raises(ValueError, match=f"window of 17.* {window}"):
            cached_attention(q, ring, starts, rule, backend=backend)
        with pytest.raises(ValueError, match=f"window of 17.* {window}"):
            attend_to_new(q, kv, kv, None, None, ring, starts, rule, numerics=numerics)


def test_several_tokens_do_not_attend_to_a_ring_itself(backend):
    ring, rule = KVState.zeros(1, K, H, 10**6, jnp.float32, 17), AttentionRule(1.0, window=17)
    starts, new = jnp.zeros(1, jnp.int32), jnp.ones((1, 3, K, H))
    with pytest.raises(ValueError, match="64 slots, got 3: use attend_to_new"):
        cached_attention(jnp.ones((1, 3, N, H)), ring, starts, rule, backend=backend)
    with pytest.raises(ValueError, match="64 slots takes 1 token at a time, got 3"):
        ring.write(new, new, starts)


def test_every_sequence_needs_its_number_of_real_tokens():
    ring, rule = KVState.zeros(2, K, H, 10**6, jnp.float32, 17), AttentionRule(1.0, window=17)
    q, kv, starts = jnp.ones((2, 3, N, H)), jnp.ones((2, 3, K, H)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match=r"lengths_B has shape \[1\] for 2 sequences"):
        attend_to_new(q, kv, kv, None, None, ring, starts, rule, lengths_B=np.ones(1, np.int32))


def test_a_table_and_rope_come_together():
    q, kv, starts = jnp.ones((1, 1, N, H)), jnp.ones((1, 1, K, H)), jnp.zeros(1, jnp.int32)
    state, rule = KVState.zeros(1, K, H, 8, jnp.float32), AttentionRule(1.0)
    with pytest.raises(ValueError, match="rope without a table"):
        attend_to_new(q, kv, kv, None, ROPE, state, starts, rule)
    with pytest.raises(ValueError, match="a table without rope"):
        attend_to_new(q, kv, kv, rope_table(starts[:, None], ROPE), None, state, starts, rule)
