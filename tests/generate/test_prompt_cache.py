"""The computed beginning of a text: it is used, not changed, and survives a file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.adapters import lora
from rocmforge_jax.generate import Engine, PromptCache, SamplingParams
from rocmforge_jax.generate.flat import _checksum
from rocmforge_jax.generate.prompt_cache import fingerprint
from rocmforge_jax.models import Decoder
from rocmforge_jax.quant import QTensor
from rocmforge_jax.quant.layout import LAYOUTS

pytestmark = pytest.mark.core
PARAMS = SamplingParams(temperature=2.0, top_k=0, seed=3)
BEGINNING = np.random.default_rng(1).integers(0, 64, 37).tolist()
KINDS = ("attention", "lfm2", "windows")


@pytest.fixture(scope="module")
def engines(decoders):
    """One engine of each kind, and what it computed: the tokens of each prefill."""
    made = {}
    for kind in KINDS:
        engine = Engine(decoders(kind))
        made[kind] = engine, watch(engine)
    return made


def watch(engine):
    computed, original = [], engine.steps.prefill

    def prefill(cache, tokens, added, *rest):
        computed.append(int(np.sum(added)))
        return original(cache, tokens, added, *rest)

    engine.steps.prefill = prefill
    return computed


def text_of(engine, prompts, **options):
    texts = [[] for _ in range(len(prompts) * options.get("samples", 1))]
    for dispatch in engine.generate(prompts, PARAMS, max_tokens=12, **options):
        for text, new in zip(texts, dispatch):
            text += new.ids
    return texts


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_goes_on_from_a_cache_as_often_as_one_likes(engines, kind):
    engine, computed = engines[kind]
    engine.forget()
    cache = engine.cache(BEGINNING)
    assert cache.tokens == tuple(BEGINNING[:-1]) and cache.nbytes == cache.cache.nbytes
    arrays = list(map(np.array, jax.tree.leaves(cache.cache)))
    for more in ([], [5], [9, 8, 7]):
        engine.forget()
        expected = text_of(engine, [BEGINNING + more])
        engine.forget()
        computed.clear()
        assert text_of(engine, [BEGINNING + more], cache=cache) == expected
        assert computed == [1 + len(more)]
    for array, now in zip(arrays, jax.tree.leaves(cache.cache)):
        np.testing.assert_array_equal(array, now)


@pytest.mark.parametrize("slots", [None, 2])
def test_prompts_and_samples_share_a_cache(decoder, slots):
    engine = Engine(decoder, max_slots=slots)
    cache, prompts = engine.cache(BEGINNING), [[*BEGINNING, *more] for more in ([1], [2, 3], [4])]
    expected = text_of(engine, prompts, samples=2)
    computed = watch(engine)
    assert text_of(engine, prompts, samples=2, cache=cache) == expected
    assert sum(computed) < len(BEGINNING)


def test_a_prompt_that_differs_later_uses_what_is_common(engines):
    engine, computed = engines["attention"]
    cache, prompt = engine.cache(BEGINNING), BEGINNING[:20] + [1, 2, 3]
    engine.forget()
    expected = text_of(engine, [prompt])
    engine.forget()
    computed.clear()
    assert text_of(engine, [prompt], cache=cache) == expected and computed == [3]


def test_after_an_answer_the_cache_is_there_already(engines):
    engine, computed = engines["attention"]
    engine.forget()
    (ids,) = text_of(engine, [BEGINNING])
    computed.clear()
    cache = engine.cache(BEGINNING + ids + [6])
    assert sum(computed) < 12 and len(cache.tokens) == len(BEGINNING) + len(ids)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_every_bit(decoders, kind, dtype, tmp_path):
    decoder = decoders(kind)
    if dtype != "float32":
        decoder = Decoder(decoder.config, dtype=dtype, rngs=nnx.Rngs(0))
    engine = Engine(decoder)
    cache = engine.cache(BEGINNING)
    cache.save(tmp_path / "beginning")
    again = PromptCache.load(tmp_path / "beginning", Engine(decoder).steps)
    assert (again.tokens, again.model, again.held) == (cache.tokens, cache.model, cache.held)
    for one, other in zip(jax.tree.leaves(again.cache), jax.tree.leaves(cache.cache)):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    engine.forget()
    assert text_of(engine, [BEGINNING], cache=again) == text_of(engine, [BEGINNING], cache=cache)


def test_models_that_differ_have_other_fingerprints(decoder, decoders):
    own = fingerprint(Engine(decoder).steps)
    assert own == fingerprint(Engine(decoder).steps)
    tuned = nnx.clone(decoder)
    tuned.output_norm.scale.set_value(tuned.output_norm.scale.get_value() * 1.01)
    half = Decoder(decoder.config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    longer = dataclasses.replace(decoder.config, context_length=4096)
    other = Decoder(longer, rngs=nnx.Rngs(0))
    others = [tuned, half, other, decoders("lfm2")]
    found = {fingerprint(Engine(one).steps) for one in others}
    assert len(found) == 4 and own not in found


def test_a_cache_of_another_model_is_refused(engines, tmp_path):
    cache = engines["attention"][0].cache(BEGINNING)
    cache.save(tmp_path / "cache")
    other = engines["windows"][0]
    with pytest.raises(ValueError, match="other weights.*lm.cache.*fingerprint"):
        other.generate([BEGINNING], cache=cache)
    with pytest.raises(ValueError, match="cache was computed by another model"):
        PromptCache.load(tmp_path / "cache", other.steps)


def test_a_cache_of_the_weights_before_training_is_refused(decoder):
    """Also weights that were replaced in place, and adapters, which no small weight shows."""
    model = nnx.clone(decoder)
    engine = Engine(model)
    cache = engine.cache(BEGINNING)
    before = text_of(engine, [BEGINNING], cache=cache)
    kernel = model.blk[0].ffn_down.kernel
    kernel.set_value(kernel.get_value().at[3, 5].add(1e-3))
    with pytest.raises(ValueError, match="other weights.*lm.cache"):
        engine.generate([BEGINNING], cache=cache)
    kernel.set_value(decoder.blk[0].ffn_down.kernel.get_value())
    assert text_of(engine, [BEGINNING], cache=cache) == before
    adapted = Engine(lora(model, rank=2))
    with pytest.raises(ValueError, match="other weights.*lm.cache"):
        adapted.generate([BEGINNING], cache=cache)


@pytest.mark.parametrize("type", ["Q4_0", "Q5_0", "Q8_0", "Q6_K"])
def test_checksums_of_packed_weights(type):
    """They are the number of bits that are set, in every layout of planes."""
    fmt = formats.get(type)
    rows = np.random.default_rng(3).integers(0, 256, (48, 3 * fmt.block_bytes)).astype(np.uint8)
    planes = {one: QTensor.from_bytes(rows, type, layout=one) for one in LAYOUTS}
    found = {layout: int(_checksum(tensor)) for layout, tensor in planes.items()}
    assert found == dict.fromkeys(LAYOUTS, np.unpackbits(rows).sum())


def test_prompts_that_do_not_go_on_from_the_cache(engines):
    cache = engines["attention"][0].cache(BEGINNING)
    other = [(BEGINNING[0] + 1) % 64, 2, 3]
    with pytest.raises(ValueError, match=r"holds 36 tokens .* prompt of 3 tokens begins with"):
        engines["attention"][0].generate([BEGINNING, other], cache=cache)
    recurrent = engines["lfm2"][0]
    cache = recurrent.cache(BEGINNING)
    with pytest.raises(ValueError, match="begin with 20 of the cache's 36 tokens.*rewound"):
        recurrent.generate([BEGINNING[:20] + [1, 2]], cache=cache)
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        recurrent.cache([1])
    with pytest.raises(TypeError, match="must be a PromptCache, got int"):
        recurrent.generate([BEGINNING], cache=5)


def test_files_that_are_no_caches(engines, tmp_path):
    steps, path = engines["attention"][0].steps, tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        PromptCache.load(path, steps)
    engines["attention"][0].cache(BEGINNING).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"GGUF", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match="file is no cache of a prompt: it is not an .npz file"
        ):
            PromptCache.load(path, steps)
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = dict(file)
    for changed, message in (
        ({"header": '{"format": "other"}'}, "'other'"),
        ({"leaf_0": np.zeros(3, np.uint8)}, r"array 0 must have \d+ bytes, got 3"),
        ({"tokens": arrays["tokens"][:5]}, "has 5 tokens, its states 36"),
    ):
        with open(path, "wb") as file:
            np.savez(file, **(arrays | changed))
        with pytest.raises(ValueError, match=message):
            PromptCache.load(path, steps)
