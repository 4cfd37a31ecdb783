"""Models of embeddings beside llama.cpp: states of tokens and pooled vectors.

The reference files come from llama.cpp's converter, the others from `encoder_files`.
"""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.gguf import GGUFError, open_gguf
from rocmforge_jax.models import Decoder, kernel_report, load_decoder
from tests.conftest import DATA
from tests.heavy import some
from tests.models import encoder_files
from tests.models.families import EXACT, GELU

#: Reference file -> its gate, see `families`: llama.cpp's GELU is a table of float16 numbers.
FILES = {
    "bert.Q8_0": GELU,
    "nomic-bert.Q8_0": EXACT,
    "gemma-embedding.Q4_0": GELU,
    "gemma-embedding-dense.Q5_0": GELU,
    "qwen3-embedding.Q8_0": EXACT,
}
#: Those of which a ragged batch is computed: with GELU and without, with positions and with RoPE,
#: by plain XLA and by attention in C++. The others are heavy, and "gemma-embedding" is one of these
#: without its last layers.
RAGGED = {
    ("bert.Q8_0", "xla"),
    ("nomic-bert.Q8_0", "cpp"),
    ("gemma-embedding-dense.Q5_0", "cpp"),
    ("qwen3-embedding.Q8_0", "xla"),
}
#: Families whose units are GELU, and those with other units.
WITH_GELU = ("bert", "jina-bert", "nomic-bert-moe", "modern-bert")


def relative(got, expected):
    got, expected = np.float64(got), np.float64(expected)
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def embed(decoder, tokens_BT, lengths_B=None, **options):
    """`Decoder.embed`, jitted."""
    graphdef, state = nnx.split(decoder)

    @jax.jit
    def run(state, tokens_BT, lengths_B):
        return nnx.merge(graphdef, state).embed(tokens_BT, lengths_B, **options)

    lengths_B = None if lengths_B is None else jnp.asarray(lengths_B, jnp.int32)
    return np.asarray(run(state, jnp.asarray(tokens_BT, jnp.int32), lengths_B))


def batch(texts, padding: int, more: int = 0):
    """Returns texts in one array that is `more` wider than the longest, and their lengths."""
    lengths = [len(text) for text in texts]
    tokens = np.full((len(texts), max(lengths) + more), padding, np.int32)
    for row, text in zip(tokens, texts):
        row[: len(text)] = text
    return tokens, np.array(lengths)


@functools.cache
def loaded(path, backend):
    return load_decoder(open_gguf(path), dtype=jnp.float32, backend=backend, activations="float")


@pytest.fixture(params=["xla", "cpp"])
def backend(request):
    """What computes: plain XLA, or with attention in C++."""
    if request.param == "cpp":
        request.getfixturevalue("in_cpp")
    return request.param


@pytest.fixture(params=FILES)
def file(request, whole_reference, backend):
    """(decoder, ids of the text, rows whose states are stored, folder/name, gate)."""
    name, folder = request.param, whole_reference / "families"
    index = json.loads((folder / "index.json").read_text())
    ids = index["ids"][: index["files"][name]["n_ids"]]
    rows = [row for row in index["rows"] if row < len(ids)]
    # C++ products do not take float activations: those are XLA's, attention is not.
    decoder = loaded(folder / f"{name}.gguf", "auto" if backend == "cpp" else "xla")
    attention = {one.backend for one in kernel_report(decoder) if one.operation == "attention"}
    assert attention == {backend}
    return decoder, ids, rows, folder / name, FILES[name]


def stored(path, suffix):
    return np.load(f"{path}{suffix}")


def test_a_text_in_one_go(file):
    decoder, ids, rows, path, gate = file
    assert relative(embed(decoder, [ids]), stored(path, ".npy")) < gate
    states = embed(decoder, [ids], pooling="none")[0, rows]
    assert relative(states, stored(path, ".tok.npy")) < gate


@pytest.mark.parametrize(
    ("backend", "file"),
    some(itertools.product(("xla", "cpp"), FILES), lambda *case: case[::-1] in RAGGED),
    indirect=True,
)
def test_a_text_in_a_ragged_batch(file):
    """With texts that are shorter and longer. What padding holds changes nothing."""
    decoder, ids, rows, path, gate = file
    longest = min(len(ids) + 40, decoder.config.positions or 10**9)
    texts = [ids[:3], ids, (ids * 2)[:longest], ids[5:66]]
    found = [embed(decoder, *batch(texts, padding)) for padding in (0, 77)]
    np.testing.assert_array_equal(*found)
    assert relative(found[0][1:2], stored(path, ".npy")) < gate
    states = embed(decoder, *batch(texts, 5), pooling="none")
    assert relative(states[1, rows], stored(path, ".tok.npy")) < gate
    assert not states[0, 3:].any()
    for row, text in ((0, texts[0]), (3, texts[3])):
        assert relative(found[0][row], embed(decoder, [text])[0]) < EXACT


@pytest.mark.parametrize("name", encoder_files.FILES)
def test_llama_cpps_other_encoders(name, backend, tmp_path):
    encoder_files.write(name, tmp_path / "encoder.gguf")
    decoder = load_decoder(
        open_gguf(tmp_path / "encoder.gguf"),
        backend="auto" if backend == "cpp" else "xla",
        activations="float",
        strict=True,
    )
    texts, gate = encoder_files.texts(), GELU if name.startswith(WITH_GELU) else EXACT
    with np.load(DATA / "embeddings.npz") as arrays:
        pooled, states = arrays[name], arrays[f"{name}, tokens"]
    assert relative(embed(decoder, *batch(texts, 3, more=5)), pooled) < gate
    assert relative(embed(decoder, texts[1:2], pooling="none")[0], states) < gate


@pytest.mark.core
def test_states_pooling_and_logits_are_public(whole_reference):
    """`embed` is `hidden` and `pool`; logits are those of a call."""
    from rocmforge_jax.nn import pool

    decoder = loaded(whole_reference / "families" / "qwen3-embedding.Q8_0.gguf", "xla")
    tokens, lengths = jnp.arange(24, dtype=jnp.int32).reshape(2, 12), jnp.array([12, 5])
    states, cache = decoder.hidden(tokens, lengths_B=lengths)
    assert cache is None and states.shape == (2, 12, 256)
    for kind in ("mean", "cls", "last"):
        np.testing.assert_allclose(
            pool(states, lengths, kind),
            decoder.embed(tokens, lengths, pooling=kind),
            rtol=1e-5,
            atol=1e-5,
        )
    logits = decoder(tokens, lengths_B=lengths)[0]
    np.testing.assert_allclose(decoder.logits(states), logits, rtol=1e-4, atol=1e-4)
    states, cache = decoder.hidden(tokens, decoder.init_cache(2, 40))
    assert cache.lengths_B.tolist() == [12, 12]


@pytest.mark.core
def test_the_gradient_of_an_embedding(tmp_path):
    """Is finite for every weight, also beside padding and an empty text."""
    encoder_files.write("modern-bert", tmp_path / "encoder.gguf")
    decoder = load_decoder(open_gguf(tmp_path / "encoder.gguf"), backend="xla")
    tokens, lengths = batch(encoder_files.texts()[1:3] + [[]], 3)

    def loss(decoder):
        return (decoder.embed(tokens, jnp.asarray(lengths)) ** 2).sum()

    gradients = nnx.to_pure_dict(nnx.grad(loss)(decoder))
    leaves = jax.tree.leaves(gradients)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert sum(float(abs(leaf).sum()) for leaf in leaves) > 0


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """encoder(name): a decoder of `encoder_files`, loaded once."""
    folder = tmp_path_factory.mktemp("encoders")

    @functools.cache
    def load(name) -> Decoder:
        encoder_files.write(name, folder / "encoder.gguf")
        return load_decoder(open_gguf(folder / "encoder.gguf"), backend="xla")

    return load


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("bert", lambda model, ids: model(ids), "bert .* no logits.*hidden"),
        ("bert", lambda model, ids: model.logits(jnp.ones((1, 1, 48))), "bert .* no logits"),
        ("bert", lambda model, ids: model.init_cache(1, 8), "bert .* no cache"),
        ("bert", lambda model, ids: model.embed(jnp.zeros((1, 161), jnp.int32)), "161 .* 160"),
        ("bert", lambda model, ids: model.embed(ids, pooling="rank"), "bert .* classifier.*mean"),
        ("bert", lambda model, ids: model.embed(ids, pooling="max"), "'max'"),
        ("bert", lambda model, ids: model.embed(ids, jnp.ones(3, jnp.int32)), r"lengths .*\[3\]"),
        ("bert", lambda model, ids: model.embed(ids + 90), "id 90, the vocabulary has 90"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(name, call, message, encoders):
    with pytest.raises(ValueError, match=message):
        call(encoders(name), jnp.zeros((1, 4), jnp.int32))


@pytest.mark.core
def test_an_encoder_takes_no_cache(encoders):
    with_head = encoders("qwen2 without a causal mask")
    assert with_head(jnp.zeros((1, 4), jnp.int32))[0].shape == (1, 4, 90)
    cache = encoders("qwen3, reranker").init_cache(1, 8)
    with pytest.raises(ValueError, match="qwen2 .* takes no cache"):
        with_head(jnp.zeros((1, 4), jnp.int32), cache)


@pytest.mark.core
def test_the_report_of_a_file_that_ranks_without_a_classifier(small_file):
    """It reports what embeds, though the pooling that the file names cannot be computed."""
    keys = {"llama.pooling_type": 4, "llama.attention.causal": False}
    decoder = load_decoder(small_file(keys=keys), backend="xla")
    with pytest.raises(ValueError, match="llama has no classifier"):
        decoder.embed(jnp.zeros((1, 4), jnp.int32))
    assert {entry.operation for entry in kernel_report(decoder)} >= {"attention", "take_rows"}


@pytest.mark.core
def test_a_file_that_names_no_pooling(encoders, small_file):
    model = load_decoder(small_file())
    with pytest.raises(ValueError, match="llama names no pooling.*none, mean, cls, last, rank"):
        model.embed(jnp.zeros((1, 4), jnp.int32))
    assert model.embed(jnp.zeros((1, 4), jnp.int32), pooling="mean").shape == (1, 32)
    with pytest.raises(GGUFError, match="llama.pooling_type .* 0 to 4.* 7"):
        load_decoder(small_file(keys={"llama.pooling_type": 7}))
