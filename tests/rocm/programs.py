"""What is compiled: the steps of generation and dequantisation, on abstract arrays.

No weight is made.

A name is "MODEL prefill", "MODEL decode", with one of MODELS; "product TYPE"; "epilogue TYPE";
"mixture TYPE"; "gpt-oss TYPE"; "attention WIDTH"; "ring WIDTH"; "delta-step WIDTH";
"delta-rule WIDTH"; "scan-step FAMILY"; "scan FAMILY"; or "dequantize TYPE". With "plain" in front,
no kernels of ours are in it.
"""

import functools
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels import targets
from pallas_kernels.attention import (
    AttentionRule,
    NewTokens,
    decode_attention,
    prefill_attention,
)
from pallas_kernels.delta_rule import DeltaHeads, Parameters, RecurrentState, Token, step
from pallas_kernels.router.routing import SCORINGS
from pallas_kernels.selective_scan import Parameters as ScanParameters
from pallas_kernels.selective_scan import ScanHeads
from pallas_kernels.selective_scan import step as scan_step
from rocmforge_jax import dequantize, formats
from rocmforge_jax.backends import Numerics
from rocmforge_jax.generate import Sampler, SamplingParams, Slots, Steps
from rocmforge_jax.generate.params import PENALTY_WINDOW
from rocmforge_jax.generate.steps import PREFILL_CHUNK
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.locate import resolve
from rocmforge_jax.models import Attention, Decoder, DecoderConfig, Gated, Mixture, load_decoder
from rocmforge_jax.models.plan import TOKENS_PER_DISPATCH
from rocmforge_jax.nn import (
    GELU,
    RELU2,
    SILU,
    Activated,
    Experts,
    Gate,
    Linear,
    RMSNorm,
    RopeConfig,
    Routing,
    choose_experts,
    delta_rule,
    mixture,
    only_shapes,
    products,
    selective_scan,
    swiglu_oai,
)
from rocmforge_jax.nn.kv_state import ring_size
from rocmforge_jax.quant import QParam, QTensor, matmul

#: Two layers of Llama 3 8B; its vocabulary and the types of its matrices in a Q4_K_M file.
LLAMA_8B = DecoderConfig.uniform(
    2,
    Attention(32, 8, 128, RopeConfig(width=128, base=500000.0, interleaved=True)),
    Gated(14336),
    width=4096,
    vocabulary=128256,
    context_length=8192,
    norm_epsilon=1e-5,
    tied=False,
)
#: Two layers of Qwen3-30B-A3B, in Q4_K but for its router: what a Llama does not have is an own
#: norm of each head, and experts.
QWEN3_30B_A3B = DecoderConfig.uniform(
    2,
    Attention(32, 4, 128, RopeConfig(width=128, base=1e6), qk_norm="head"),
    Mixture(experts=128, routing=Routing(8, "softmax", True), hidden=768),
    width=2048,
    vocabulary=151936,
    context_length=8192,
    norm_epsilon=1e-6,
    tied=False,
)


#: The mixture of gpt-oss 20B: 90 groups are no multiple of a tile.
GPT_OSS = types.SimpleNamespace(width=2880, hidden=2880, experts=32, used=4)
Q6_K = {"attn_v", "ffn_down", "output"}
#: Shape of the matrix that is dequantised.
MATRIX = (4096, 4096)
#: Shapes (in, out) of the demo model, of an 8B and of a 70B model.
PRODUCTS = ((256, 768), (4096, 14336), (14336, 4096), (8192, 28672))

#: Heads, KV heads and slots of attention with other rules than those of the models, and the window
#: of its ring buffers.
HEADS, KV_HEADS, SLOTS, WINDOW = 16, 2, 4096, 1024
#: Key heads and value heads of Qwen 3.5 9B, taps of its convolution, and sequences of a batch.
DELTA_HEADS, TAPS, BATCHES = (16, 32), 4, (1, 32)
#: Family -> the heads of state spaces: of Granite 4-H Tiny, Falcon-H1 7B and Nemotron Nano 9B.
SCAN_HEADS = {
    "granite": ScanHeads(48, 1, 64, 128),
    "falcon": ScanHeads(24, 1, 128, 256),
    "nemotron": ScanHeads(128, 8, 80, 128),
}
#: Tokens of a mixture: as many as go pair by pair, and many.
TOKENS = (1, 64)


def program(name: str, layout_of: Callable) -> tuple[Callable, tuple]:
    """A jitted function and what to trace it with, abstract but for static arguments.

    layout_of: a type's layout of planes.
    """
    backend = "xla" if name.startswith("plain ") else "auto"
    what, how = name.removeprefix("plain ").split()
    if what == "dequantize":
        return jax.jit(functools.partial(dequantize, backend=backend), static_argnums=1), (
            _packed(MATRIX, how, layout_of, transposed=True),
            jnp.bfloat16,
        )
    if what == "product":
        return jax.jit(functools.partial(_products, backend)), (
            [_packed(shape, how, layout_of, transposed=True) for shape in PRODUCTS],
        )
    if what == "mixture":
        width, moe = QWEN3_30B_A3B.width, QWEN3_30B_A3B.layers[0].feed_forward
        shapes = (width, moe.hidden), (width, moe.hidden), (moe.hidden, width)
        return jax.jit(functools.partial(_mixture, backend)), (
            [_packed((moe.experts, *shape), how, layout_of, transposed=True) for shape in shapes],
        )
    if what == "epilogue":
        shapes = [(GPT_OSS.width, GPT_OSS.hidden)] * 2
        packed = [_packed(shape, how, layout_of, transposed=True) for shape in shapes]
        return jax.jit(functools.partial(_epilogues, backend)), (packed,)
    if what == "gpt-oss":
        shapes = (GPT_OSS.width, GPT_OSS.hidden), (GPT_OSS.hidden, GPT_OSS.width)
        packed = [
            _packed((GPT_OSS.experts, *shape), how, layout_of, transposed=True)
            for shape in (shapes[0], *shapes)
        ]
        return jax.jit(functools.partial(_gpt_oss, backend)), (packed,)
    if what == "attention":
        return jax.jit(_attention), _attention_operands(int(how), SLOTS)
    if what == "ring":
        return jax.jit(_ring), _attention_operands(int(how), ring_size(WINDOW))
    if what == "delta-step":
        return jax.jit(_delta_steps), ([_delta_operands(int(how), batch) for batch in BATCHES],)
    if what == "delta-rule":
        return jax.jit(_delta_rules), _delta_tokens(int(how))
    if what == "scan-step":
        operands = [_scan_operands(SCAN_HEADS[how], batch) for batch in BATCHES]
        return jax.jit(functools.partial(_scan_steps, SCAN_HEADS[how])), (operands,)
    if what == "scan":
        return jax.jit(_scans), _scan_tokens(SCAN_HEADS[how])
    steps, tokens, length = _steps(what, layout_of, backend)
    return {"prefill": _prefill, "decode": _decode}[how](steps, tokens, length)


def _products(backend, weights):
    """Each weight times one and eight rows, and times 32 on the matrix units."""

    def product(weight, count, dtype=jnp.float32, **mode):
        return matmul(jnp.ones((count, weight.shape[0]), dtype), weight, backend=backend, **mode)

    few = [product(weight, count) for weight in weights for count in (1, 8)]
    modes = [product(weights[0], 1, activations=mode) for mode in ("int8", "float")]
    return few, modes, product(weights[0], 32, jnp.bfloat16)


def _mixture(backend, stacks):
    moe, width = QWEN3_30B_A3B.layers[0].feed_forward, QWEN3_30B_A3B.width
    numerics = Numerics(backend=backend)
    modules = [
        nnx.eval_shape(
            lambda shape=stack.shape: Experts(*shape, numerics=numerics, rngs=nnx.Rngs(0))
        )
        for stack in stacks
    ]
    for module, stack in zip(modules, stacks):
        module.kernel = QParam(stack)

    def of(tokens):
        return (
            jnp.arange(tokens * moe.routing.used, dtype=jnp.int32).reshape(tokens, -1) % moe.experts
        )

    return [
        mixture(
            jnp.ones((tokens, width), jnp.bfloat16),
            jnp.ones((tokens, moe.routing.used)),
            of(tokens),
            *modules,
        )
        for tokens in TOKENS
    ]


def _layer(cls, shape, packed, backend):
    """A packed layer with a bias and an output scale."""
    options = dict(use_bias=True, use_output_scale=True, numerics=Numerics(backend=backend))
    with only_shapes():
        layer = cls(*shape, **options, rngs=None)
    layer.kernel = QParam(packed)
    layer.bias = nnx.Param(jnp.ones(layer.bias.shape))
    layer.output_scale = nnx.Param(jnp.ones(layer.output_scale.shape))
    return layer


def _epilogues(backend, weights):
    """Each activation function, with a gate and without, after scales and biases."""
    gate, up = (_layer(Linear, weight.shape, weight, backend) for weight in weights)
    modules = [Gate(gate, up, function) for function in (SILU, GELU, RELU2, swiglu_oai())]
    modules += [Activated(up, function) for function in (SILU, GELU, RELU2)]
    return [
        products(jnp.ones((rows, GPT_OSS.width), jnp.bfloat16), [module])
        for module in modules
        for rows in (1, 3)
    ]


def _gpt_oss(backend, stacks):
    """A router of each kind, and a mixture, as gpt-oss has them but for the output scales."""
    layers = [_layer(Experts, stack.shape, stack, backend) for stack in stacks]
    width, experts, used = GPT_OSS.width, GPT_OSS.experts, GPT_OSS.used
    norm = RMSNorm(width, epsilon=1e-5)
    router = Linear(width, experts, use_bias=True, rngs=nnx.Rngs(0))
    outputs = []
    for scoring in SCORINGS:
        routing = Routing(used, scoring, renormalize=True, scale=2.5)
        x_TD, bias_E = jnp.ones((3, width), jnp.bfloat16), jnp.ones(experts)
        how = dict(selection_bias_E=bias_E, norm=norm)
        outputs.append(choose_experts(x_TD, router, routing, **how))
    for tokens in TOKENS:
        x_TD = jnp.ones((tokens, width), jnp.bfloat16)
        weights, ids = choose_experts(
            x_TD, router, Routing(used, "softmax_of_chosen", False), norm=norm
        )
        outputs.append(mixture(x_TD, weights, ids, *layers, norm=norm, activation=swiglu_oai()))
    return outputs


def _attention(q_BTNH, keys, values, lengths, sinks_N, new):
    """Decode, decode with new tokens and prefill, with each kind of rule.

    No model with windows to both sides has heads of more than 256.
    """
    rules = (
        AttentionRule(0.1),
        AttentionRule(0.1, window=WINDOW, soft_cap=50.0, sinks_N=sinks_N),
        AttentionRule(0.1, causal=False),
    )
    both_sides = AttentionRule(0.1, causal=False, window=WINDOW // 2 * 2 + 1)
    narrow = (both_sides,) if q_BTNH.shape[-1] <= 256 else ()
    last, target = q_BTNH[:, -1], targets.current()
    tokens = NewTokens(*new, interleaved=False)
    return [
        (
            decode_attention(last, keys, values, lengths, rule, target=target),
            decode_attention(last, keys, values, lengths, rule, target=target, new=tokens),
            prefill_attention(q_BTNH, keys, values, lengths - 1, rule, target=target),
        )
        for rule in rules
    ] + [
        prefill_attention(q_BTNH, keys, values, lengths - 1, rule, target=target) for rule in narrow
    ]


def _ring(q_BTNH, keys, values, lengths, sinks_N, new):
    """Decode from a ring buffer: of tokens in it, and of new ones that rotate and that do not."""
    rule = AttentionRule(0.1, window=WINDOW, soft_cap=50.0, sinks_N=sinks_N)
    k_BKH, v_BKH, *angles = new
    return [
        decode_attention(
            q_BTNH[:, -1],
            keys,
            values,
            lengths,
            rule,
            target=targets.current(),
            new=tokens,
            ring=True,
        )
        for tokens in (
            None,
            NewTokens(k_BKH, v_BKH, *angles, interleaved=False),
            NewTokens(k_BKH, v_BKH, None, None, interleaved=False),
        )
    ]


def _attention_operands(width, slots):
    of, dtype = jax.ShapeDtypeStruct, jnp.bfloat16
    return (
        of((1, 64, HEADS, width), dtype),
        of((1, KV_HEADS, width, slots), dtype),
        of((1, KV_HEADS, slots, width), dtype),
        of((1,), jnp.int32),
        of((HEADS,), jnp.float32),
        [of((1, KV_HEADS, width), dtype)] * 2 + [of((1, width // 2), jnp.float32)] * 2,
    )


def _delta_steps(operands):
    """A step of a delta net, for each batch, with heads in each order."""
    outputs = []
    for token, parameters, state in operands:
        width = state.memory_BNHW.shape[-1]
        for grouped in (False, True):
            heads = DeltaHeads(*DELTA_HEADS, width, width, grouped)
            how = dict(epsilons=(1e-6, 1e-6), activations="int16", target=targets.current())
            lengths_B = jnp.ones(len(state.memory_BNHW), jnp.int32) if grouped else None
            outputs.append(step(token, parameters, state, heads, lengths_B=lengths_B, **how))
    return outputs


def _delta_operands(width, batch):
    of, dtype = jax.ShapeDtypeStruct, jnp.bfloat16
    heads = DeltaHeads(*DELTA_HEADS, width, width, grouped=False)
    N, C = heads.value_heads, heads.channels
    numbers, memory = of((batch, N), dtype), of((batch, N, width, width), jnp.float32)
    token = Token(of((batch, C), dtype), of((batch, N, width), dtype), numbers, numbers)
    of_heads = of((N,), jnp.float32)
    parameters = of((TAPS, C), jnp.float32), of_heads, of_heads, of((width,), jnp.float32)
    return token, Parameters(*parameters), RecurrentState(memory, of((batch, TAPS - 1, C), dtype))


def _delta_rules(*operands):
    """Many tokens of a delta net, in full float32 and rounded."""
    return [delta_rule(*operands, exact=exact) for exact in (True, False)]


def _delta_tokens(width):
    of, of_heads = jax.ShapeDtypeStruct, (1, PREFILL_CHUNK, DELTA_HEADS[1])
    wide, numbers = of((*of_heads, width), jnp.float32), of(of_heads, jnp.float32)
    memory = of((1, DELTA_HEADS[1], width, width), jnp.float32)
    return wide, wide, wide, numbers, numbers, memory


def _scan_steps(heads, operands):
    """A step of a state space, for each batch, with a norm and a bias and without."""
    outputs = []
    for projected, parameters, state in operands:
        plain = parameters._replace(bias_C=None, scale_I=None)
        how = dict(epsilon=1e-6, activations="int16", target=targets.current())
        lengths_B = jnp.ones(len(projected), jnp.int32)
        outputs.append(scan_step(projected, parameters, state, heads, lengths_B=lengths_B, **how))
        outputs.append(scan_step(projected, plain, state, heads, **how))
    return outputs


def _scan_operands(heads: ScanHeads, batch):
    of, dtype, number = jax.ShapeDtypeStruct, jnp.bfloat16, jnp.float32
    N, C = heads.heads, heads.channels
    shapes = (TAPS, C), (C,), (N,), (N,), (N,), (heads.inner,)
    memory = of((batch, N, heads.head_width, heads.state_width), number)
    state = RecurrentState(memory, of((batch, TAPS - 1, C), dtype))
    parameters = ScanParameters(*(of(shape, number) for shape in shapes))
    return of((batch, heads.projected), dtype), parameters, state


def _scans(*operands):
    """Many tokens of a state space, in full float32 and rounded."""
    return [selective_scan(*operands, exact=exact) for exact in (True, False)]


def _scan_tokens(heads: ScanHeads):
    of, tokens = jax.ShapeDtypeStruct, (1, PREFILL_CHUNK)
    N, directions = heads.heads, (*tokens, heads.groups, heads.state_width)
    sizes = (*tokens, N, heads.head_width), (*tokens, N), (N,), directions, directions, (N,)
    memory = 1, N, heads.head_width, heads.state_width
    return tuple(of(shape, jnp.float32) for shape in (*sizes, memory))


def _prefill(steps, tokens, length):
    cache = jax.eval_shape(lambda: steps.init_cache(1, length))
    ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    added = jax.ShapeDtypeStruct((1,), jnp.int32)
    logits = jax.ShapeDtypeStruct((1, steps.config.vocabulary), jnp.float32)
    return steps.prefill.jitted, (steps.leaves, cache, ids, added, logits)


def _decode(steps, tokens, length):
    slots = Slots(
        cache=jax.eval_shape(lambda: steps.init_cache(1, length)),
        last_B=jax.ShapeDtypeStruct((1,), jnp.int32),
        recent_BW=jax.ShapeDtypeStruct((1, PENALTY_WINDOW), jnp.int32),
        sampler=jax.eval_shape(lambda: Sampler.of([SamplingParams()])),
        active_B=jax.ShapeDtypeStruct((1,), jnp.bool_),
    )
    return steps.decode.jitted, steps.decode.arguments(slots, TOKENS_PER_DISPATCH)


def _steps(model, layout_of, backend) -> tuple[Steps, int, int]:
    """The steps of a model, and the tokens of a prompt and length of a cache to compile for."""
    if model not in MODELS:
        raise ValueError(f"no model is named {model!r}; there are {', '.join(MODELS)}")
    return MODELS[model](layout_of, backend)


@functools.cache
def _demo(layout_of, backend):
    layout = layout_of(formats.get("Q8_0"))  # all types of the demo have the same
    return (
        Steps(
            load_decoder(
                open_gguf(resolve("demo")), dtype=jnp.bfloat16, layout=layout, backend=backend
            )
        ),
        64,
        256,
    )


@functools.cache
def _llama_8b(layout_of, backend):
    return (
        _packed_steps(
            LLAMA_8B, lambda name: "Q6_K" if name in Q6_K else "Q4_K", layout_of, backend
        ),
        PREFILL_CHUNK,
        4096,
    )


@functools.cache
def _qwen3_30b_a3b(layout_of, backend):
    return (
        _packed_steps(
            QWEN3_30B_A3B,
            lambda name: None if name == "ffn_gate_inp" else "Q4_K",
            layout_of,
            backend,
        ),
        PREFILL_CHUNK,
        4096,
    )


MODELS = {"demo": _demo, "llama-8b": _llama_8b, "qwen3-30b-a3b": _qwen3_30b_a3b}


def _packed_steps(config: DecoderConfig, type_of: Callable, layout_of, backend) -> Steps:
    """Of an abstract decoder. type_of: a matrix's name -> the name of its type, or None."""
    decoder = nnx.eval_shape(
        lambda: Decoder(config, dtype=jnp.bfloat16, backend=backend, rngs=nnx.Rngs(0))
    )
    for path, module in list(nnx.iter_modules(decoder)):
        for attribute, variable in list(vars(module).items()):
            if isinstance(variable, nnx.Variable) and len(variable.shape) > 1 and type_of(path[-1]):
                packed = _packed(
                    variable.shape, type_of(path[-1]), layout_of, transposed=attribute == "kernel"
                )
                setattr(module, attribute, QParam(packed))
    return Steps(decoder)


def _packed(shape, type_name, layout_of, *, transposed) -> QTensor:
    """An abstract packed matrix, or stack of them, that is seen as `shape`."""
    *stack, rows, columns = (*shape[:-2], *reversed(shape[-2:])) if transposed else shape
    row_bytes = jax.ShapeDtypeStruct(
        (*stack, rows, formats.get(type_name).row_bytes(columns)), jnp.uint8
    )
    layout = layout_of(formats.get(type_name))
    return jax.eval_shape(
        lambda data: QTensor.from_bytes(data, type_name, layout=layout, transposed=transposed),
        row_bytes,
    )
