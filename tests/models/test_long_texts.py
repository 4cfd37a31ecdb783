"""Context extensions of each kind in a text of 5000 tokens, against a decoder in float64."""

import numpy as np
import pytest

from rocmforge_jax.gguf import open_gguf, write_gguf
from rocmforge_jax.models import load_decoder
from tests.models import families, float64

TOKENS, PIECE = 5000, 1000
#: Relative L2 error of float32 logits over the last piece. The largest seen is 5.8e-6 (longrope).
GATE = 1e-5
#: Kind -> a reference file, and changes of its keys. No reference file has linear scaling.
KINDS = {
    "linear": (
        "families/smollm3.Q4_K_M",
        {"smollm3.rope.scaling.type": "linear", "smollm3.rope.scaling.factor": 3.7},
    ),
    "factors of Llama 3": ("families/exaone4.Q4_K_M", {}),
    "yarn": ("families/gpt-oss2.MXFP4_MOE", {}),
    "longrope": ("families/phi3-long.Q4_K_M", {}),
    "yarn with a log multiplier": ("families/mistral3.Q4_K_M", {}),
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text(kind, whole_reference, tmp_path):
    name, changes = KINDS[kind]
    file = open_gguf(whole_reference / f"{name}.gguf")
    tensors = {one: (tensor.format, tensor.data) for one, tensor in file.tensors.items()}
    write_gguf(tmp_path / "changed.gguf", dict(file.metadata) | changes, tensors)
    gguf = open_gguf(tmp_path / "changed.gguf")
    decoder = load_decoder(gguf, backend="xla", activations="float", context_length=TOKENS)
    rope = decoder.config.layers[0].mixer.rope
    assert rope.scale != 1 or rope.factors is not None
    ids = np.random.default_rng(4).integers(3, decoder.config.vocabulary, TOKENS).astype(np.int32)
    expected = float64.forward(decoder, ids[None])[0, -PIECE:]
    step, cache = families.compiled(decoder), decoder.init_cache(1, TOKENS)
    for first in range(0, TOKENS, PIECE):
        logits_BTV, cache = step(cache, ids[None, first : first + PIECE])
    assert np.linalg.norm(logits_BTV[0] - expected) / np.linalg.norm(expected) < GATE
