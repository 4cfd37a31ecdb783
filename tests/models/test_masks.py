"""Own masks, packed sequences, embeddings in place of tokens, and the head alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated, ShortConvolution
from rocmforge_jax.models.config import LayerConfig, Norms
from rocmforge_jax.models.mixers import LatentAttention
from rocmforge_jax.nn import RopeConfig

pytestmark = pytest.mark.core
V, D = 61, 24
PLAIN = Attention(6, 2, 8, RopeConfig(8))
MIXERS = {
    "attention": (PLAIN, dataclasses.replace(PLAIN, qk_norm="head")),
    "window": (dataclasses.replace(PLAIN, window=5), PLAIN),
    "chunk": (dataclasses.replace(PLAIN, chunk=4), PLAIN),
    "latent": (LatentAttention(3, 12, 8, 8, RopeConfig(4), 0.3), PLAIN),
}
LENGTHS = (7, 1, 11, 5)
RNG = np.random.default_rng(3)
TEXTS = [RNG.integers(0, V, length) for length in LENGTHS]


def decoder_of(*mixers, **options):
    config = DecoderConfig(
        tuple(LayerConfig(mixer, Gated(40), Norms(1e-5)) for mixer in mixers),
        width=D,
        vocabulary=V,
        context_length=64,
        norm_epsilon=1e-5,
        tied=False,
        **options,
    )
    return Decoder(config, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module", params=MIXERS)
def decoder(request):
    return decoder_of(*MIXERS[request.param])


@pytest.fixture(scope="module")
def plain():
    return decoder_of(*MIXERS["attention"])


@functools.partial(jax.jit, static_argnums=0)
def _compiled(graphdef, state, tokens, cache, arrays):
    return nnx.merge(graphdef, state)(tokens, cache, **arrays)


def run(decoder, tokens=None, cache=None, **arrays):
    """The decoder in one program: op by op takes ten times as long."""
    return _compiled(*nnx.split(decoder), tokens, cache, arrays)


def near(found, truth, allowed=1e-6):
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    assert found.shape == truth.shape
    assert np.linalg.norm(found - truth) <= allowed * np.linalg.norm(truth)


def test_packed_sequences_are_those_of_one_after_the_other(decoder):
    """Two rows, each with two texts; the ids of segments are any, and the first comes again."""
    rows = [np.concatenate(TEXTS[:2]), np.concatenate(TEXTS[2:])]
    longest = max(map(len, rows)) + 3
    tokens = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    ids = np.stack(
        [np.repeat([4, 9, 4], [*pair, longest - sum(pair)]) for pair in (LENGTHS[:2], LENGTHS[2:])]
    )
    logits, cache = run(decoder, tokens, segment_ids=ids)
    assert cache is None
    for row, first, text in ((0, 0, 0), (0, 7, 1), (1, 0, 2), (1, 11, 3)):
        alone, _ = run(decoder, TEXTS[text][None])
        near(logits[row, first : first + LENGTHS[text]], alone[0])


def test_a_causal_mask_is_what_there_is_without_one(decoder):
    tokens = np.stack([TEXTS[2], TEXTS[2][::-1]])
    T = tokens.shape[1]
    causal = np.tril(np.ones((T, T), bool))[None]
    near(run(decoder, tokens, mask=causal)[0], run(decoder, tokens)[0])
    # And packing by hand: a mask of blocks with positions that restart.
    blocks = causal & (np.arange(T) < 6)[None, None] | causal & (np.arange(T) >= 6)[None, :, None]
    blocks &= ~((np.arange(T) >= 6)[:, None] & (np.arange(T) < 6)[None])[None]
    if any(layer.mixer.chunk for layer in decoder.config.layers if hasattr(layer.mixer, "chunk")):
        return  # chunks count from the row's start
    positions = np.tile(np.concatenate([np.arange(6), np.arange(T - 6)]), (2, 1))
    packed = run(decoder, tokens, mask=blocks, positions_BT=positions)[0]
    near(packed, run(decoder, tokens, segment_ids=np.repeat([[1, 2]] * 2, [6, T - 6], axis=1))[0])


def test_a_mask_with_a_cache(plain):
    """Whatever the slots after the tokens hold."""
    tokens, cache = TEXTS[2][None], plain.init_cache(1, 16)
    causal = np.tril(np.ones((11, 11), bool))
    mask = np.ones((1, 6, 16), bool)
    _, cache = run(plain, tokens[:, :5], cache)
    mask[:, :, :11] = causal[5:]
    mask[:, :, 2] = False
    with_hole = causal.copy()
    with_hole[5:, 2] = False
    found, after = run(plain, tokens[:, 5:], cache, mask=mask)
    near(found, run(plain, tokens, mask=with_hole[None])[0][:, 5:])
    assert after.lengths_B.tolist() == [11]


def test_a_mask_that_hides_nothing_lets_tokens_see_later_ones(plain):
    tokens = TEXTS[2][None]
    both = run(plain, tokens, mask=np.ones((1, 1, 1), bool))[0]
    changed = tokens.copy()
    changed[0, -1] = (changed[0, -1] + 1) % V
    moved = run(plain, changed, mask=np.ones((1, 1, 1), bool))[0]
    assert np.abs(np.asarray(moved - both))[0, 0].max() > 1e-4
    near(run(plain, changed)[0][:, :-1], run(plain, tokens)[0][:, :-1])


def test_embeddings_in_place_of_tokens():
    for scale in (1.0, 3.5):
        decoder = decoder_of(PLAIN, embedding_scale=scale)
        tokens = TEXTS[0][None]
        rows = decoder.token_embd(tokens)
        near(run(decoder, inputs_embeds=rows)[0], run(decoder, tokens)[0], 0)
        cache = decoder.init_cache(1, 16)
        near(run(decoder, inputs_embeds=rows, cache=cache)[0], run(decoder, tokens)[0])

    def loss(rows):
        return run(decoder, inputs_embeds=rows)[0].sum()

    gradient = jax.grad(loss)(rows)
    assert gradient.shape == rows.shape and np.isfinite(gradient).all() and gradient.any()


def test_the_head_is_the_norm_and_the_output(plain):
    tokens = TEXTS[0][None]
    x = plain.token_embd(tokens)
    found = plain.head(x[:, 3])
    near(found, plain.logits(plain.output_norm(x))[:, 3])
    assert found.dtype == jnp.float32 and found.shape == (1, V)


def test_masks_work_under_jit_and_give_gradients(plain):
    graphdef, state = nnx.split(plain)
    ids = jnp.array([[1] * 4 + [2] * 7])

    @jax.jit
    def loss(state, ids):
        return nnx.merge(graphdef, state)(TEXTS[2][None], segment_ids=ids)[0].var()

    near(loss(state, ids), run(plain, TEXTS[2][None], segment_ids=ids)[0].var(), 1e-5)
    gradients = jax.grad(loss)(state, ids)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "tokens or inputs_embeds, one of the two"),
        ({"tokens_BT": [[1]], "inputs_embeds": np.zeros((1, 1, D), np.float32)}, "one of the two"),
        ({"inputs_embeds": np.zeros((2, 3, 25), np.float32)}, r"tokens, 24\], .* \[2, 3, 25\]"),
        ({"inputs_embeds": np.zeros((2, 3, D), np.int32)}, r"must be floats .* int32 \[2, 3, 24\]"),
        ({"tokens_BT": [[1, 2]], "mask": np.ones((1, 3, 3), bool)}, r"\[1, 2, 2\], .* \[1, 3, 3\]"),
        ({"tokens_BT": [[1, 2]], "mask": np.ones((2, 2), bool)}, r"\[1, 2, 2\], .* \[2, 2\]"),
        ({"tokens_BT": [[1, 2]], "mask": np.ones((1, 2, 2))}, r"mask must be bool .* float"),
        ({"tokens_BT": [[1, 2]], "segment_ids": [[1, 1, 1]]}, r"integers \[1, 2\], .* \[1, 3\]"),
        ({"tokens_BT": [[1, 2]], "segment_ids": [[1.0, 2.0]]}, r"integers \[1, 2\], got float"),
    ],
    ids=str,
)
def test_what_is_refused(plain, arguments, message):
    with pytest.raises(ValueError, match=message):
        plain(**arguments)


def test_segments_with_a_cache_are_refused(plain):
    with pytest.raises(ValueError, match="segment_ids with a cache of 16 slots"):
        plain([[1, 2]], plain.init_cache(1, 16), segment_ids=[[1, 2]])


def test_layers_with_a_state_and_rings_are_refused():
    with pytest.raises(ValueError, match="layer 1 .* ShortConvolution"):
        decoder_of(PLAIN, ShortConvolution(D, 3))([[1, 2]], segment_ids=[[1, 2]])
    windowed = decoder_of(*MIXERS["window"])
    cache = windowed.init_cache(1, 512)
    with pytest.raises(ValueError, match="window of 5 keeps a ring buffer of"):
        windowed([[1, 2]], cache, mask=np.ones((1, 2, 512), bool))


@pytest.mark.parametrize("backend", ["pallas", "cpp"])
def test_a_backend_that_is_asked_for_by_name_says_why_not(backend, request):
    from rocmforge_jax.backends import BackendError

    if backend == "cpp":
        request.getfixturevalue("in_cpp")
    config = decoder_of(PLAIN).config
    decoder = Decoder(config, backend=backend, rngs=nnx.Rngs(0))
    with pytest.raises(BackendError, match=f"attention: {backend}: .* mask"):
        decoder([[1, 2]], mask=np.ones((1, 2, 2), bool))
