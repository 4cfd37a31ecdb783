"""Rows of a batch with a cache, positions, and shapes that do not fit.

`test_families` compares what goes through a cache with llama.cpp's logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.models import Decoder


@pytest.mark.core
def test_padded_rows_are_the_rows_alone(load, flat, relative, index):
    """Prompts of different lengths in one batch, then two steps each.

    A row's padding and its neighbours change nothing.
    """
    decoder, ids = load("llama-gqa.F32"), np.array(index["ids"], np.int32)
    leaves, merge = flat(decoder)
    step = jax.jit(
        lambda leaves, cache, tokens, lengths: merge(leaves)(
            tokens, cache, lengths_B=lengths, last_only=True
        )
    )
    lengths, tokens = np.array([1, 37, 64], np.int32), np.full((3, 64), 7, np.int32)
    rows = [ids[100 * i : 100 * i + n + 2] for i, n in enumerate(lengths)]
    for row, real, n in zip(tokens, rows, lengths):
        row[:n] = real[:n]

    got, cache = step(leaves, decoder.init_cache(3, 128), tokens, lengths)
    outputs = [got]
    for more in range(2):
        following = np.array([[row[n + more]] for row, n in zip(rows, lengths)])
        got, cache = step(leaves, cache, following, np.ones(3, np.int32))
        outputs.append(got)
    assert cache.lengths_B.tolist() == (lengths + 2).tolist()

    alone = jax.jit(lambda leaves, tokens: merge(leaves)(tokens)[0])
    for b, (row, n) in enumerate(zip(rows, lengths)):
        # What follows changes nothing before it.
        expected = alone(leaves, np.pad(row, (0, 66 - len(row)))[None])[0, n - 1 : n + 2]
        assert relative(np.stack([output[b] for output in outputs]), expected) < 1e-5


@pytest.mark.core
def test_a_row_without_tokens_keeps_its_place(load, flat, index):
    """In a batch, a sequence may have nothing in a piece: its cache stays and its next token comes
    where it would.
    """
    decoder, ids = load("llama-gqa.F32"), np.array(index["ids"][:6], np.int32)
    leaves, merge = flat(decoder)
    step = jax.jit(
        lambda leaves, cache, tokens, lengths: merge(leaves)(
            tokens, cache, lengths_B=lengths, last_only=True
        )
    )
    _, cache = step(
        leaves, decoder.init_cache(2, 32), np.stack([ids[:4], ids[:4]]), np.array([4, 4], np.int32)
    )
    _, paused = step(leaves, cache, np.stack([ids[:4], ids[:4]]), np.array([0, 4], np.int32))
    assert paused.lengths_B.tolist() == [4, 8]
    following = np.array([[ids[4]], [ids[4]]])
    expected, _ = step(leaves, cache, following, np.ones(2, np.int32))
    got, _ = step(leaves, paused, following, np.ones(2, np.int32))
    np.testing.assert_array_equal(got[0], expected[0])


@pytest.mark.core
def test_positions_move_the_rotary_embedding_only_relatively(load, flat, logits, relative, index):
    """Rotary attention sees distances: all positions moved by a thousand give the same logits,
    positions stretched do not.
    """
    decoder, ids = load("llama-gqa.F32"), jnp.array(index["ids"][:64], jnp.int32)[None]
    counted = jnp.arange(64, dtype=jnp.int32)[None]
    leaves, merge = flat(decoder)
    at = jax.jit(lambda leaves, positions: merge(leaves)(ids, positions_BT=positions)[0])
    here = logits(decoder, ids)
    assert relative(at(leaves, counted), here) < 1e-6
    assert relative(at(leaves, counted + 1000), here) < 1e-5
    assert relative(at(leaves, counted * 2), here) > 1e-2


@pytest.mark.core
def test_a_text_is_not_tokens(load):
    with pytest.raises(TypeError, match="takes token ids .* not a text: tokenizer.encode"):
        load("llama-gqa.F32")("To be")


@pytest.mark.core
@pytest.mark.parametrize(
    ("tokens", "batch", "options", "message"),
    [
        (np.zeros((2, 3, 4), np.int32), None, {}, r"integers \[batch, tokens\].*int32 \[2, 3, 4\]"),
        (np.zeros((2, 3), np.float32), None, {}, r"integers \[batch, tokens\].*float32 \[2, 3\]"),
        (np.zeros((2, 0), np.int32), None, {}, r"at least one, got int32 \[2, 0\]"),
        (np.zeros((2, 3), np.int32), 3, {}, "tokens have batch 2, the cache has 3"),
        (np.zeros((2, 33), np.int32), 2, {}, "33 tokens do not fit a cache of 32 slots"),
        (
            np.zeros((2, 3), np.int32),
            2,
            {"lengths_B": np.ones(3, np.int32)},
            r"lengths must be integers \[2\], got int32 \[3\]",
        ),
        (
            np.zeros((2, 3), np.int32),
            2,
            {"lengths_B": np.ones(2, np.float32)},
            r"lengths must be integers \[2\], got float32 \[2\]",
        ),
        (
            np.ones((2, 3), int),
            2,
            {"positions_BT": np.ones((2, 4), np.int32)},
            r"positions must be integers \[2, 3\], got .* \[2, 4\]",
        ),
    ],
)
def test_shapes_that_do_not_fit(load, tokens, batch, options, message):
    decoder = load("llama-gqa.F32")
    with pytest.raises(ValueError, match=message):
        decoder(tokens, batch and decoder.init_cache(batch, 32), **options)


def test_tokens_that_do_not_fit_are_refused_where_the_count_is_known(load, index):
    """Under jit the count is unknown; see the next test."""
    decoder, ids = load("llama-gqa.F32"), np.array(index["ids"], np.int32)
    _, cache = decoder(ids[None, :20], decoder.init_cache(1, 32))
    with pytest.raises(
        ValueError, match=r"13 tokens after 20 do not fit a cache of 32 slots.*grown\(33\)"
    ):
        decoder(ids[None, :13], cache)
    with pytest.raises(ValueError, match="lengths must be 0 to 3, .* got 4$"):
        decoder(ids[None, :3], cache, lengths_B=[4])
    logits, _ = decoder([[1, 2, 3]], cache, lengths_B=[2])
    assert logits.shape[:2] == (1, 3)


@pytest.mark.core
def test_under_jit_rows_beyond_the_cache_are_nan(load, flat, index):
    """The other rows of the batch are those of a cache with room for both."""
    decoder, ids = load("llama-gqa.F32"), np.array(index["ids"][:19], np.int32)
    decoder = Decoder(decoder.config, backend="xla", rngs=nnx.Rngs(0))
    leaves, merge = flat(decoder)

    @jax.jit
    def step(leaves, cache, tokens, lengths):
        return merge(leaves)(tokens, cache, lengths_B=lengths)

    results = []
    for slots in (19, 20):
        cache = decoder.init_cache(2, slots)
        _, cache = step(leaves, cache, np.stack([ids[:17]] * 2), np.array([17, 16], np.int32))
        results.append(step(leaves, cache, np.stack([ids[16:19]] * 2), np.array([3, 3], np.int32)))
    (small, _), (large, _) = results
    assert np.isnan(small[0]).all() and np.isfinite(large).all()
    np.testing.assert_array_equal(small[1], large[1])


@pytest.mark.core
def test_known_operands_inside_of_transformations(load, flat, index):
    """A jitted function may close over tokens, lengths and a cache; they are still checked."""
    decoder = load("llama-gqa.F32")
    leaves, merge = flat(decoder)
    tokens = jnp.array(index["ids"][:10], jnp.int32).reshape(2, 5)
    lengths, cache = jnp.array([3, 5], jnp.int32), decoder.init_cache(2, 7)
    expected, filled = decoder(tokens, cache, lengths_B=lengths)

    run = jax.jit(lambda leaves: merge(leaves)(tokens, cache, lengths_B=lengths)[0])
    # Compiled programs add in another order, which changes the logits far less than they differ.
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(run(leaves), expected, atol=1e-4)
    rows = jax.vmap(lambda row: decoder(row[None], decoder.init_cache(1, 7), lengths_B=[5])[0][0])
    np.testing.assert_allclose(rows(tokens)[1], expected[1], atol=1e-4)
    slope = jax.jit(
        jax.grad(lambda x: (decoder(inputs_embeds=x, lengths_B=lengths)[0] ** 2).mean())
    )(jnp.ones((2, 5, decoder.config.width)))
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0
    for options, message in (
        (dict(lengths_B=jnp.array([3, 6])), "lengths must be 0 to 5, .* got 6"),
        (dict(cache=filled), "5 tokens after 5 do not fit a cache of 7 slots"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.jit(lambda leaves, o=options: merge(leaves)(tokens, **o)[0])(leaves)


@pytest.mark.parametrize("id", [10**6, -1, 2**31 - 1])
@pytest.mark.parametrize("array", [np.array, jnp.array, list], ids=lambda make: make.__name__)
def test_ids_outside_the_vocabulary_are_refused_where_they_are_known(load, index, id, array):
    """Padding may be anything, and under jit ids are clipped."""
    decoder, ids = load("llama-gqa.F32"), [*map(int, index["ids"][:3])]
    vocabulary = decoder.config.vocabulary
    with pytest.raises(ValueError, match=f"id {id}, the vocabulary has {vocabulary}"):
        decoder(array([[*ids, id]]))
    padded, _ = decoder(array([[*ids, id]]), lengths_B=array([3]))
    np.testing.assert_array_equal(padded[:, :3], decoder(array([[*ids, 0]]))[0][:, :3])
    clipped = min(max(id, 0), vocabulary - 1)
    traced, _ = nnx.jit(lambda model, tokens: model(tokens))(decoder, jnp.array([[*ids, id]]))
    # Two programs add the same float32 numbers in another order.
    np.testing.assert_allclose(traced, decoder([[*ids, clipped]])[0], rtol=1e-4, atol=1e-5)
