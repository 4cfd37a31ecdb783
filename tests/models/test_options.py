"""Every option of a layer and of a decoder, against a decoder in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.models import (
    Attention,
    Decoder,
    DecoderConfig,
    DeltaRule,
    Gated,
    GatedAndMixture,
    LatentAttention,
    LayerConfig,
    Mamba,
    Mamba2,
    Mixture,
    Norms,
    ParallelMixers,
    PerLayerInput,
    Projection,
    ShortConvolution,
    Temperature,
)
from rocmforge_jax.models.laurel import Laurel
from rocmforge_jax.nn import GELU, RELU2, XIELU, RopeConfig, Routing, Yarn, swiglu_oai
from tests.heavy import some
from tests.models import float64

WIDTH, VOCABULARY, TOKENS = 48, 70, 37
ATTENTION = Attention(6, 2, 16, RopeConfig(16))
LATENT = LatentAttention(6, 20, 11, 9, RopeConfig(10, interleaved=True), 0.3)
GATED = Gated(40)
DELTA_RULE = DeltaRule(2, 6, key_width=10, value_width=14, taps=4)
FUSED_RULE = dataclasses.replace(DELTA_RULE, grouped=True, fused_input=True, fused_shares=True)
MAMBA = Mamba(inner=38, state_width=10, time_rank=7, taps=4)
MAMBA2 = Mamba2(heads=6, head_width=10, state_width=14, groups=2, taps=4)
POST = dict(
    before_mixer=None,
    after_mixer="post_attention_norm",
    before_feed_forward=None,
    after_feed_forward="post_ffw_norm",
)
BOTH = dict(after_mixer="post_attention_norm", after_feed_forward="post_ffw_norm")
SUMS = dict(
    before_mixer=None,
    after_mixer_sum="attn_output_norm",
    before_feed_forward=None,
    after_feed_forward_sum="layer_output_norm",
)
BIASES = frozenset(
    f"{part}{number}"
    for number in ("", "_norm")
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "attn", "ffn")
) | frozenset(("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"))
STACKS = frozenset(("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"))
SOFTMAX = Routing(3, "softmax", True)
MIXTURE = Mixture(8, SOFTMAX, 24)


def attention(**changes):
    return dict(mixer=dataclasses.replace(ATTENTION, **changes))


def gated(**changes):
    return dict(feed_forward=dataclasses.replace(GATED, **changes))


def mixed(*routing, **changes):
    chosen = Routing(*routing) if routing else SOFTMAX
    return dict(feed_forward=dataclasses.replace(MIXTURE, routing=chosen, **changes))


def shared(**changes):
    """A layer that attends to the keys and values of the first one."""
    lender = dataclasses.replace(ATTENTION, lends=True, **changes)
    return dict(first=lender, mixer=dataclasses.replace(ATTENTION, source=0, **changes))


#: Name -> changes of the second layer, or of the decoder (those that a layer has not). "first" is
#: the mixer of the first layer.
OPTIONS = {
    "plain": {},
    "no rotation": attention(rope=None),
    "learned positions": dict(**attention(rope=None), positions=TOKENS, embedding_scale=3.0),
    "part rotates, interleaved": attention(rope=RopeConfig(10, base=500.0, interleaved=True)),
    "linear scaling and factors": attention(
        rope=RopeConfig(16, scale=4.0, factors=(1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 8.0, 9.0))
    ),
    "pairs that stand still": attention(
        rope=RopeConfig(8, factors=(1.0, np.inf, 1.0, np.inf), interleaved=True)
    ),
    "YaRN": attention(rope=RopeConfig(16, scale=8.0, yarn=Yarn(23, 4.0), magnitude=1.2)),
    "scale": attention(scale=0.4),
    "not causal": attention(causal=False),
    "ALiBi": attention(rope=None, alibi=8.0, soft_cap=1.5),
    "ALiBi to both sides": attention(causal=False, alibi=3.0),
    "window to both sides": attention(causal=False, window=7),
    "window": attention(window=7),
    "chunks": attention(chunk=8),
    "one chunk": attention(chunk=64),
    "window, soft cap and sinks": attention(window=11, soft_cap=1.5, sinks=True),
    "norms of heads": attention(qk_norm="head"),
    "norms of heads, no rotation": attention(qk_norm="head", rope=None),
    "norms over all heads": attention(qk_norm="width"),
    "norms of heads without weights": attention(qk_norm="unit"),
    "norms of heads after rotation": attention(qk_norm="head", rotates_first=True),
    "norms without weights after rotation, scaled": attention(
        qk_norm="unit", rotates_first=True, rope=RopeConfig(10, magnitude=1.7)
    ),
    "norms without weights, temperature, no rotation": attention(
        qk_norm="unit", rotates_first=True, rope=None, temperature=Temperature(0.5, 7, 1)
    ),
    "norms of heads and of values": attention(qk_norm="head", v_norm=True),
    "layer norms of each head": attention(qk_norm="each"),
    "layer norms of each head, with biases": dict(
        **attention(qk_norm="each", rotates_first=True),
        biases=frozenset(("attn_q_norm", "attn_k_norm")),
    ),
    "clamped queries, keys and values": attention(clamp=0.7),
    "clamped, fused, with gates": attention(clamp=0.7, fused_qkv=True, gate="query"),
    "a norm before the output": attention(sub_norm=True, gate="head"),
    "a norm before the output, shared keys and values": shared(sub_norm=True),
    "gate in attn_q": attention(gate="query", qk_norm="head"),
    "gate in a fused attn_qkv": attention(gate="query", qk_norm="head", fused_qkv=True),
    "gate of each number": attention(gate="width"),
    "gate of each head": attention(gate="head"),
    "softplus gates": attention(gate="width", gate_function="softplus"),
    "temperature": attention(temperature=Temperature(0.5, 9)),
    "temperature after norms": attention(temperature=Temperature(0.5, 8, 1), qk_norm="head"),
    "fused attn_qkv": attention(fused_qkv=True),
    "values from keys": attention(v_from_k=True, v_norm=True, qk_norm="head"),
    "shared keys and values": shared(qk_norm="head", v_norm=True, temperature=Temperature(0.5, 9)),
    "shared keys and values, normed after rotation": shared(qk_norm="unit", rotates_first=True),
    "shared keys and values, a window and a gate": shared(window=7, gate="query", sinks=True),
    "latent attention": dict(mixer=LATENT),
    "latent attention, latents of queries, temperature": dict(
        mixer=dataclasses.replace(LATENT, query_rank=13, temperature=Temperature(0.5, 9))
    ),
    "convolution": dict(mixer=ShortConvolution(WIDTH, 3)),
    "convolution of five taps": dict(mixer=ShortConvolution(WIDTH, 5)),
    "projection in place of attention": dict(mixer=Projection(WIDTH)),
    "projection with a bias": dict(mixer=Projection(WIDTH), biases=frozenset(("attn_output",))),
    "delta rule": dict(mixer=DELTA_RULE),
    "delta rule, one key head": dict(mixer=dataclasses.replace(DELTA_RULE, key_heads=1)),
    "delta rule, value heads grouped": dict(mixer=dataclasses.replace(DELTA_RULE, grouped=True)),
    "delta rule, fused shares": dict(mixer=dataclasses.replace(FUSED_RULE, fused_input=False)),
    "delta rule, fused input": dict(mixer=dataclasses.replace(FUSED_RULE, fused_shares=False)),
    "delta rule, all fused": dict(mixer=FUSED_RULE, output_scales=frozenset(("ssm_in", "ssm_ba"))),
    "diagonal state space": dict(mixer=MAMBA),
    "diagonal state space, norms, biases": dict(
        mixer=dataclasses.replace(MAMBA, norm="learned", taps=3),
        biases=frozenset(("ssm_in", "ssm_conv1d", "ssm_x", "ssm_dt", "ssm_out")),
    ),
    "diagonal state space, norms without weights": dict(
        mixer=dataclasses.replace(MAMBA, norm="unit"), output_scales=frozenset(("ssm_x",))
    ),
    "state space": dict(mixer=MAMBA2),
    "state space, one group, scaled": dict(
        mixer=dataclasses.replace(MAMBA2, groups=1),
        output_scales=frozenset(("ssm_in", "ssm_out")),
    ),
    "state space, biases": dict(
        mixer=dataclasses.replace(MAMBA2, groups=6, taps=3),
        biases=frozenset(("ssm_in", "ssm_conv1d", "ssm_out")),
    ),
    "state space without a norm": dict(mixer=dataclasses.replace(MAMBA2, norm=False)),
    "attention beside a state space": dict(mixer=ParallelMixers((ATTENTION, MAMBA2))),
    "a window beside a state space, norms after": dict(
        mixer=ParallelMixers((dataclasses.replace(ATTENTION, window=7, rope=None), MAMBA2)),
        norms=BOTH,
        residual_scale=0.3,
    ),
    "three mixers": dict(mixer=ParallelMixers((ShortConvolution(WIDTH, 3), ATTENTION, MAMBA2))),
    "no mixer": dict(mixer=None),
    "inputs of a layer": dict(per_layer_input=PerLayerInput(12), output_factor=True),
    "gated and mixture": dict(
        feed_forward=GatedAndMixture(GATED, dataclasses.replace(MIXTURE, activation=GELU)),
        norms=BOTH,
        output_scales=frozenset(("ffn_down_exps",)),
    ),
    "no feed-forward": dict(feed_forward=None),
    "gelu": gated(activation=GELU),
    "relu2 without gate": gated(activation=RELU2, gated=False),
    "clamped swiglu": gated(activation=swiglu_oai(limit=0.5)),
    "gates with a cutoff": gated(cutoff=0.4, activation=GELU),
    "a norm of hidden units": gated(sub_norm=True),
    "xIELU": gated(activation=XIELU(0.3, 0.8, 0.5, -1e-6), gated=False, sub_norm=True),
    "LAuReL": dict(laurel=Laurel(9), residual_scale=0.3),
    "LAuReL beside norms after": dict(laurel=Laurel(9), norms=POST),
    "fused gate and up": gated(fused=True, activation=GELU),
    "norms after": dict(norms=POST),
    "norms of sums": dict(norms=SUMS),
    "norms of the mixer and of sums": dict(norms=SUMS | BOTH, residual_scale=0.3),
    "encoder": attention(causal=False)
    | dict(
        norms=dict(kind="layer") | SUMS,
        norm_kind="layer",
        biases=BIASES | {"attn_output_norm", "layer_output_norm"},
        head=frozenset(("output_norm", "token_embd_norm")),
        positions=TOKENS,
        token_types=2,
        embedding_norm="token_embd_norm",
        embedding_scale=3.0,
    ),
    "norms before and after": dict(norms=BOTH, residual_scale=0.3),
    "layer norms without weights": dict(norms=dict(kind="unit_layer"), norm_kind="unit_layer"),
    "layer norms": dict(norms=dict(kind="layer"), norm_kind="layer"),
    "biases everywhere": dict(
        biases=BIASES, norms=dict(kind="layer"), norm_kind="layer", head=frozenset(("output_norm",))
    ),
    "parallel": dict(parallel=True, norms=dict(before_feed_forward="attn_norm")),
    "multipliers": dict(
        residual_scale=0.25, embedding_scale=3.0, logit_scale=0.5, **attention(scale=0.1)
    ),
    "logit cap": dict(logit_cap=2.0),
    "name of the last norm": dict(output_norm="token_embd_norm"),
    "head with a bias": dict(tied=False, head=frozenset(("output",))),
    "output scales": dict(output_scales=frozenset(("attn_q", "attn_output", "ffn_up"))),
    "softmax": mixed(),
    "softmax, not renormalised": mixed(3, "softmax", False, 2.5),
    "softmax of the chosen": mixed(3, "softmax_of_chosen", False),
    "sigmoid with a selection bias": mixed(3, "sigmoid", True, 1.5, selection_bias=True),
    "groups": mixed(3, "sigmoid", True, 2.0, 4, 2, selection_bias=True),
    "square root of softplus": mixed(3, "sqrt_softplus", True),
    "shared expert": mixed(shared_hidden=16),
    "shared expert with a gate": mixed(shared_hidden=16, shared_gate=True),
    "shared expert with a fused gate and a factor": mixed(
        shared_hidden=16, shared_fused=True, shared_scale=0.4
    ),
    "weights first": mixed(1, "sigmoid", False, weights_first=True, shared_hidden=16),
    "fused stacks": mixed(fused=True),
    "experts without gates": mixed(gated=False, activation=RELU2, shared_hidden=16),
    "experts that read a latent": mixed(latent=20),
    "experts without gates that read a latent": mixed(
        3, "sigmoid", True, 1.5, latent=20, gated=False, activation=RELU2, shared_hidden=16
    )
    | dict(output_scales=frozenset(("ffn_latent_down", "ffn_latent_up"))),
    "experts of gpt-oss": mixed(3, "softmax_of_chosen", False, activation=swiglu_oai())
    | dict(biases=STACKS | {"ffn_gate_inp"}),
    "scaled experts": mixed() | dict(output_scales=STACKS),
}


@pytest.fixture(scope="module")
def decoder():
    """decoder(name): two layers of which the second has the options, all weights random."""

    def make(name):
        options = dict(OPTIONS[name])
        head, first = options.pop("head", frozenset()), options.pop("first", ATTENTION)
        of_layer = {f.name for f in dataclasses.fields(LayerConfig)} & set(options)
        layer = {key: options.pop(key) for key in of_layer}
        norms = Norms(1e-5, **layer.pop("norms", {}))
        parts = dict(mixer=ATTENTION, feed_forward=GATED, norms=norms) | layer
        plain = LayerConfig(first, GATED, Norms(1e-5))
        sizes = dict(width=WIDTH, vocabulary=VOCABULARY, context_length=64, norm_epsilon=1e-5)
        config = DecoderConfig((plain, LayerConfig(**parts)), biases=head, **sizes | options)
        made = Decoder(config, activations="float", backend="xla", rngs=nnx.Rngs(0))
        _randomize(made)
        return made

    return make


def _randomize(decoder):
    """Gives biases, scales and sinks values that matter."""
    random = np.random.default_rng(1)
    for _, module in nnx.iter_modules(decoder):
        for name, variable in vars(module).items():
            if isinstance(variable, nnx.Variable) and name != "embedding":
                value = np.asarray(variable.get_value())
                if value.ndim < 2 or name in ("bias", "scale"):
                    around = {"scale": 1.0, "output_scale": 1.0, "ssm_a": -1.5}.get(name, 0.0)
                    new = random.normal(around, 0.4, value.shape)
                    variable.set_value(jnp.asarray(new, value.dtype))


def relative(got, expected):
    return np.linalg.norm(np.asarray(got, np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.core
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_against_float64(name, decoder):
    made = decoder(name)
    tokens_BT = np.random.default_rng(2).integers(0, VOCABULARY, (2, TOKENS))
    expected = float64.forward(made, tokens_BT)
    graphdef, state = nnx.split(made)

    @jax.jit
    def whole(state, tokens):
        return nnx.merge(graphdef, state)(tokens)[0]

    assert relative(whole(state, jnp.asarray(tokens_BT, jnp.int32)), expected) < 1e-5


#: Options of tokens that see later ones: they need the whole text at once.
BOTH_WAYS = ("not causal", "window to both sides", "ALiBi to both sides", "encoder")


#: Options from this one on act on each token alone: feed-forwards, norms, factors and experts.
OF_A_TOKEN = list(OPTIONS)[list(OPTIONS).index("gelu") :]
#: Those whose pieces are heavy: all but some kinds, since pieces change nothing for them.
ALONE = {*OF_A_TOKEN} - {"gelu", "parallel", "groups", "biases everywhere", "experts of gpt-oss"}


@pytest.mark.parametrize(
    "name",
    some(((name,) for name in OPTIONS if name not in BOTH_WAYS), lambda name: name not in ALONE),
)
def test_an_option_in_padded_pieces(name, decoder):
    """A ragged batch: 5 and 9 tokens, then 12 and 0, then 1 and 1, each padded, then one by one.

    What padding holds changes nothing.
    """
    made = decoder(name)
    random = np.random.default_rng(2)
    tokens_BT = random.integers(0, VOCABULARY, (2, TOKENS))
    expected = float64.forward(made, tokens_BT)
    graphdef, state = nnx.split(made)

    @jax.jit
    def step(state, cache, tokens, lengths):
        model = nnx.merge(graphdef, state)
        return model(tokens, cache, lengths_B=lengths)

    cache, at = made.init_cache(2, 64), np.zeros(2, int)
    pieces = [((5, 9), 16), ((12, 0), 16), ((1, 1), 16), ((1, 1), 1), ((1, 1), 1)]
    for added, padded in pieces:
        piece = random.integers(0, VOCABULARY, (2, padded))
        for b in range(2):
            piece[b, : added[b]] = tokens_BT[b, at[b] : at[b] + added[b]]
        lengths = jnp.asarray(added, jnp.int32)
        logits, cache = step(state, cache, jnp.asarray(piece, jnp.int32), lengths)
        for b in range(2):
            if added[b]:
                wanted = expected[b, at[b] : at[b] + added[b]]
                assert relative(logits[b, : added[b]], wanted) < 2e-5
        at += added
    assert cache.lengths_B.tolist() == at.tolist()


def test_the_factor_of_a_fresh_layer_changes_nothing():
    def logits(**options):
        layer = LayerConfig(ATTENTION, GATED, Norms(1e-5), **options)
        sizes = dict(width=WIDTH, vocabulary=VOCABULARY, context_length=64, norm_epsilon=1e-5)
        decoder = Decoder(DecoderConfig((layer,), **sizes), backend="xla", rngs=nnx.Rngs(0))
        return np.asarray(decoder(np.arange(5, dtype=np.int32)[None])[0])

    np.testing.assert_array_equal(logits(output_factor=True), logits())
