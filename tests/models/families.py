"""Files of llama.cpp's converter with its logits, and the ways in which a decoder gets through one.

Every way returns logits by position, so that all of them compare with the same stored rows.
"""

import dataclasses
import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rocmforge_jax.generate import Engine, SamplingParams
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.models import load_decoder

#: Relative L2 error of float32 logits. llama.cpp's GELU is a table of float16 numbers, which alone
#: makes the second gate necessary.
EXACT, GELU = 1e-5, 5e-4
#: Of a row computed in another way on the same weights. The largest seen is 8.5e-6.
SAME = 1e-5
#: With activations in 15 bits for each product.
INT16 = 1e-3
#: Token that fills rows up to the longest one of a batch. Any would do.
PADDING = 7
#: Tokens that llama.cpp was opened for.
CONTEXT = 1024
#: Slots of a cache: more than the tokens, and not a multiple of anything.
SLOTS = 619


@dataclasses.dataclass(frozen=True)
class File:
    """A reference file.

    Attributes:
        name: Its name without `.gguf`, after the folder's.
        gate: Largest relative error of float32 logits.
        routed: Whether it has experts. In less than float32, and beside llama.cpp's GELU, a token
            may reach another expert, so only the median row has a gate.
        amplifies: Whether its random weights let the rounding of some tokens grow tenfold, as in
            transformers' own float32 logits: then rows beside one causal pass have a gate together.
    """

    name: str
    gate: float = EXACT
    routed: bool = False
    amplifies: bool = False

    def __str__(self):
        return self.name.partition("/")[2]


#: Architectures with windows, soft caps, sinks, biases, convolutions or multipliers.
NEW = (
    File("models/gemma2.Q4_K_M", GELU),
    File("models/gemma3.Q8_0", GELU),
    File("families/gemma4.Q4_K_M", GELU),
    File("families/gemma4-e.Q4_0", GELU),
    File("families/gemma4-moe.Q4_K_M", GELU, routed=True),
    File("families/deepseek2-v3.Q4_K_M", routed=True),
    File("models/gpt-oss.MXFP4_MOE", routed=True),
    File("families/gpt-oss2.MXFP4_MOE", routed=True),
    File("families/lfm2.Q4_K_M"),
    File("families/granite.Q4_K_M"),
    File("families/qwen35.Q4_K_M", amplifies=True),
    File("families/qwen35-mtp.Q4_0", amplifies=True),
    File("families/qwen35moe.Q4_K_M", routed=True, amplifies=True),
    File("families/qwen3next.Q4_K_M", routed=True, amplifies=True),
    File("families/mamba2.Q4_K_M"),
    File("families/granitehybrid.Q4_K_M", routed=True),
    File("families/nemotron_h.Q4_K_M"),
    File("families/falcon-h1.Q4_K_M"),
)
#: Architectures that are data on options of the files above, or that differ in their keys alone.
DATA = (
    File("families/bailingmoe2.Q4_K_M", routed=True),
    File("families/deci.Q4_K_M"),
    File("families/ernie4_5-moe.Q4_K_M", routed=True),
    File("families/ernie4_5.Q4_K_M"),
    File("families/exaone4.Q4_K_M"),
    File("families/glm4moe.Q4_K_M", routed=True),
    File("families/granitemoe.Q4_K_M", routed=True),
    File("families/internlm2.Q4_K_M"),
    File("families/lfm2moe.Q4_K_M", routed=True),
    File("families/llama4.Q4_K_M", routed=True),
    File("families/minimax-m2.Q4_K_M", routed=True),
    File("families/mistral3.Q4_K_M"),
    File("families/olmo2.Q4_K_M"),
    File("families/olmo3.Q4_K_M"),
    File("families/phi3-long.Q4_K_M"),
    File("families/phi3-short.Q8_0"),
    File("families/qwen3vl.Q4_K_M"),
    File("families/seed_oss.Q4_K_M"),
    File("families/smollm3.Q4_K_M"),
)
#: One file of each older architecture; `test_logits` has more of them.
OLD = (
    File("models/llama-rope3.Q5_1"),
    File("models/qwen2.Q4_K_M"),
    File("models/mixtral.Q4_K_M", routed=True),
    File("models/qwen2moe.Q4_K_M", routed=True),
    File("models/qwen3.Q4_1"),
    File("models/qwen3moe.Q4_K_M", routed=True),
    File("models/chatglm.Q4_K_M"),
    File("models/glm4.Q5_1"),
)
FILES = NEW + DATA + OLD


@dataclasses.dataclass(frozen=True)
class Reference:
    """The prompt of a file, and llama.cpp's logits at some of its positions.

    Attributes:
        ids: int32 [600].
        rows: The positions, int [R].
        logits: float32 [R, V].
    """

    ids: np.ndarray
    rows: np.ndarray
    logits: np.ndarray

    def errors(self, found: dict[int, np.ndarray]) -> np.ndarray:
        """Returns the errors [R', V] of the R' stored rows that are found, at least one.

        They are relative to the L2 norm of all stored rows, which is what the gates are for. A way
        that gives few rows is compared with one causal pass as well: see `check_beside_whole`. The
        norm of the result is the relative error.
        """
        stored = [i for i, row in enumerate(self.rows) if row in found]
        assert stored
        expected = np.float64(self.logits[stored])
        got = np.float64([found[row] for row in self.rows[stored]])
        return (got - expected) / np.linalg.norm(np.float64(self.logits))

    def median_error(self, found: dict[int, np.ndarray]) -> float:
        """Returns the error of the median row, relative to the mean row."""
        errors = self.errors(found)
        return np.median(np.linalg.norm(errors, axis=1)) * np.sqrt(len(self.rows))


@functools.cache
def read(reference, name: str) -> Reference:
    """Returns what the reference folder holds for a file."""
    folder = reference / name.partition("/")[0]
    index = json.loads((folder / "index.json").read_text())
    logits = np.load(reference / f"{name}.npy")
    return Reference(np.array(index["ids"], np.int32), np.array(index["rows"]), logits)


def check(file: File, truth: Reference, found: dict[int, np.ndarray], activations: str) -> None:
    """Asserts that logits are llama.cpp's, as near as the mode of activations allows."""
    if activations == "float" and file.routed and file.gate == GELU:
        assert truth.median_error(found) < file.gate
    elif activations == "float":
        assert np.linalg.norm(truth.errors(found)) < file.gate
    elif file.routed:
        assert truth.median_error(found) < INT16
    else:
        assert np.linalg.norm(truth.errors(found)) < INT16


def check_beside_whole(
    file: File, whole_TV, found: dict[int, np.ndarray], activations: str
) -> None:
    """Asserts that logits are those of one causal pass in float32 on XLA, every row by itself.

    Rows of a file that amplifies rounding are taken together.

    Args:
        file: Of the logits.
        whole_TV: Those of the causal pass.
        found: Those of another way, by position.
        activations: Its mode.
    """
    positions = sorted(found)
    expected = np.float64(whole_TV[positions])
    got = np.float64([found[position] for position in positions])
    rows = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    if file.amplifies and (activations == "float" or not file.routed):
        rows = np.linalg.norm(got - expected, keepdims=True) / np.linalg.norm(expected)
    if activations == "float":
        assert rows.max() < SAME
    else:
        assert (np.median(rows) if file.routed else rows.max()) < INT16


@functools.cache
def whole(reference, name: str) -> np.ndarray:
    """Returns the logits [600, V] of one causal pass in float32 on XLA."""
    decoder = load(reference, name, "xla", "float")
    (found,) = in_one_go(decoder, read(reference, name).ids)
    return np.stack([found[position] for position in sorted(found)])


@functools.cache
def load(reference, name: str, backend: str | None, activations: str):
    """Returns the decoder of a file, computing in float32."""
    gguf = open_gguf(reference / f"{name}.gguf")
    options = dict(dtype=jnp.float32, backend=backend, activations=activations)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*blocks for multi-token prediction are not loaded")
        return load_decoder(gguf, context_length=CONTEXT, **options)


def flat(decoder):
    """Returns a decoder's arrays, and forward(arrays, cache or None, tokens_BT, lengths_B)."""
    graphdef, state = nnx.split(decoder)
    leaves, treedef = jax.tree.flatten(state)

    def forward(leaves, cache, tokens, lengths=None):
        merged = nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))
        return merged(tokens, cache, lengths_B=lengths)

    return leaves, forward


@functools.cache
def compiled(decoder):
    """Returns step(cache or None, tokens_BT, lengths_B) -> (logits_BTV, cache), jitted.

    The ways below share its programs.
    """
    leaves, forward = flat(decoder)
    return functools.partial(jax.jit(forward, donate_argnums=1), leaves)


def by_position(logits_TV, first: int = 0) -> dict[int, np.ndarray]:
    """Returns logits by position, of consecutive tokens from position `first` on."""
    return dict(enumerate(np.asarray(logits_TV), first))


def in_one_go(decoder, ids) -> list[dict[int, np.ndarray]]:
    """Computes the prompt without a cache."""
    return [by_position(compiled(decoder)(None, ids[None])[0][0])]


def in_pieces(decoder, ids, sizes=(150, 7, 300, 143)) -> list[dict[int, np.ndarray]]:
    """Computes the prompt piece by piece through a cache."""
    step, cache, found = compiled(decoder), decoder.init_cache(1, SLOTS), {}
    for size in sizes:
        logits_BTV, cache = step(cache, ids[None, len(found) : len(found) + size])
        found |= by_position(logits_BTV[0], len(found))
    assert cache.lengths_B.tolist() == [len(found)] == [len(ids)]
    return [found]


def token_by_token(decoder, ids) -> list[dict[int, np.ndarray]]:
    """Computes the prompt in a scan over single tokens."""
    leaves, forward = flat(decoder)

    @jax.jit
    def run(leaves, cache, tokens_T):
        def body(cache, token):
            logits_BTV, cache = forward(leaves, cache, token[None, None])
            return cache, logits_BTV[0, 0]

        return jax.lax.scan(body, cache, tokens_T)[1]

    return [by_position(run(leaves, decoder.init_cache(1, SLOTS), jnp.asarray(ids)))]


def token_by_token_at_first(decoder, ids) -> list[dict[int, np.ndarray]]:
    """Computes the start of the prompt, longer than a window, in a scan over single tokens."""
    return token_by_token(decoder, ids[:190])


#: Tokens of each sequence in each piece of a ragged batch: prompts of different lengths, then
#: single tokens, of which one sequence misses two, then a few at once.
SCHEDULE = ((211, 5, 62, 253), (1, 1, 1, 1), (1, 1, 0, 1), (1, 1, 0, 1), (3, 2, 1, 3), (1, 1, 1, 1))


def in_a_ragged_batch(decoder, ids) -> list[dict[int, np.ndarray]]:
    """Computes starts of the prompt of several lengths, beside a sequence of other tokens.

    Returns what is found for each sequence but that one.
    """
    step, cache = compiled(decoder), decoder.init_cache(len(SCHEDULE[0]), SLOTS)
    texts = [ids[::-1], *[ids] * (len(SCHEDULE[0]) - 1)]
    found = [{} for _ in texts]
    for counts in SCHEDULE:
        tokens = np.full((len(texts), max(counts)), PADDING, np.int32)
        for row, text, held, count in zip(tokens, texts, found, counts):
            row[:count] = text[len(held) : len(held) + count]
        logits_BTV, cache = step(cache, tokens, np.array(counts, np.int32))
        for held, logits_TV, count in zip(found, np.asarray(logits_BTV), counts):
            held |= by_position(logits_TV[:count], len(held))
    assert cache.lengths_B.tolist() == [len(held) for held in found]
    return found[1:]


def after_rewinding(decoder, ids) -> list[dict[int, np.ndarray]]:
    """Computes the prompt after a cache that held other tokens from position 293 on.

    Returns nothing for a cache that cannot be rewound, which has a state that says so.
    """
    step, cache, found = compiled(decoder), decoder.init_cache(1, SLOTS), {}
    known, held = 293, 450
    for first, piece in ((0, ids[:300]), (300, ids[:150])):
        logits_BTV, cache = step(cache, piece[None])
        found |= by_position(logits_BTV[0], first)
    rewound = cache.rewound(held, known)
    if rewound is None:
        assert not all(state.rewinds for state in cache.layers)
        return []
    cache, found = rewound, {position: found[position] for position in range(known)}
    for size in (7, 300):
        logits_BTV, cache = step(cache, ids[None, len(found) : len(found) + size])
        found |= by_position(logits_BTV[0], len(found))
    assert cache.lengths_B.tolist() == [len(found)] == [len(ids)]
    return [found]


def recorded_logits(engine: Engine) -> list[np.ndarray]:
    """Returns a list that grows by the logits [V] after each prompt of an engine."""
    logits, prefill = [], engine.steps.prefill_prompts

    def recording(*operands):
        logits_BV, cache = prefill(*operands)
        logits.extend(np.asarray(logits_BV))
        return logits_BV, cache

    engine.steps.prefill_prompts = recording
    return logits


#: Tokens of consecutive prompts. The answers between them are not those of the next prompt, so each
#: prompt reuses a part of the text before it: a longer one, a shorter one, one that is within it.
TURNS = (241, 401, 258, 256, 441, 600)


def after_other_answers(decoder, ids) -> list[dict[int, np.ndarray]]:
    """Computes starts of the prompt as the turns of a conversation whose answers are dropped."""
    engine = Engine(decoder)
    recorded = recorded_logits(engine)
    for tokens in TURNS:
        prompt = ids[:tokens].tolist()
        for _ in engine.generate([prompt], SamplingParams(temperature=0), max_tokens=9):
            pass
    return [{tokens - 1: logits for tokens, logits in zip(TURNS, recorded, strict=True)}]


#: Ways through the prompt. Each takes a decoder and the ids [600], and returns logits by position,
#: once for each sequence that began with the prompt.
WAYS = (
    in_one_go,
    in_pieces,
    token_by_token,
    in_a_ragged_batch,
    after_rewinding,
    after_other_answers,
)
