"""A decoder in NumPy, float64, written from the definitions of its parts: the truth of options.

It reads the weights of a Decoder by the names of the file and shares no code with the package but
`dequantize`, which equals ggml's to the bit.
"""

from types import SimpleNamespace

import numpy as np

from rocmforge_jax.quant import QTensor, dequantize
from tests.nn.rope_frequencies import frequencies

GELU = SimpleNamespace(name="gelu")


#: Queries that attend at once: the scores of a long text would not fit into memory.
BLOCK = 512


def weight(module):
    """The weight of a linear layer, a stack, a vector: float64, (in, out)."""
    return dense(module.kernel)


def dense(variable):
    """The values of a variable, quantised or not, in float64."""
    value = variable.get_value()
    return np.asarray(dequantize(value) if isinstance(value, QTensor) else value, np.float64)


def linear(layer, x):
    y = x @ weight(layer)
    if layer.output_scale is not None:
        y = y * np.asarray(layer.output_scale.get_value(), np.float64)
    return y if layer.bias is None else y + np.asarray(layer.bias.get_value(), np.float64)


def rms(x, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)


def norm(module, x, kind, epsilon):
    if module is None:
        return x
    if kind in ("layer", "unit_layer"):
        x = x - x.mean(-1, keepdims=True)
    y = rms(x, epsilon)
    if kind != "unit_layer":
        y = y * np.asarray(module.scale.get_value(), np.float64)
    bias = getattr(module, "bias", None)
    return y if bias is None else y + np.asarray(bias.get_value(), np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def activate(function, gate, up=None):
    if str(function) == "xielu":
        above = np.logaddexp(0, function.alpha_p) * gate**2
        slope = function.beta + np.logaddexp(0, function.alpha_n)
        below = slope * (np.exp(np.minimum(gate, function.epsilon)) - 1 - gate)
        return np.where(gate > 0, above, below) + function.beta * gate
    if function.name == "swiglu_oai":
        gate, up = np.minimum(gate, function.limit), np.clip(up, -function.limit, function.limit)
        return gate * sigmoid(function.alpha * gate) * (up + 1)
    y = {
        "silu": lambda x: x * sigmoid(x),
        "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "relu2": lambda x: np.maximum(x, 0) ** 2,
    }[function.name](gate)
    return y if up is None else y * up


def rotate(x_BTNH, positions, rope):
    """Rotates pairs of elements by position * frequency, and multiplies them by the magnitude."""
    if rope is None:
        return x_BTNH
    turn = rope.magnitude * np.exp(1j * positions[:, None] * frequencies(rope))[None, :, None]
    y, half = x_BTNH.copy(), rope.width // 2
    first, second = (
        (slice(0, rope.width, 2), slice(1, rope.width, 2))
        if rope.interleaved
        else (slice(0, half), slice(half, rope.width))
    )
    turned = (x_BTNH[..., first] + 1j * x_BTNH[..., second]) * turn
    y[..., first], y[..., second] = turned.real, turned.imag
    return y


def attention(mixer, layer, x, kind, epsilon, kept):
    """kept: keys and values of the layers before; those of this one are appended."""
    B, T, _ = x.shape
    N, K, H = mixer.heads, mixer.kv_heads, mixer.head_width
    positions, gate = np.arange(T), None
    if mixer.fused_qkv:
        of_queries = N * H * (2 if mixer.gate == "query" else 1)
        ends = [of_queries, of_queries + K * H]
        q, k, v = np.split(linear(layer.attn_qkv, x), ends, axis=-1)
    else:
        q = linear(layer.attn_q, x)
        k = v = None
        if mixer.source is None:
            k = linear(layer.attn_k, x)
            v = k if mixer.v_from_k else linear(layer.attn_v, x)
    if mixer.gate == "query":
        q = q.reshape(B, T, N, 2 * H)
        q, gate = q[..., :H].reshape(B, T, -1), q[..., H:]
    elif mixer.gate:
        gate = linear(layer.attn_gate, x).reshape(B, T, N, -1)
    if mixer.clamp is not None:
        q, k, v = (a if a is None else np.clip(a, -mixer.clamp, mixer.clamp) for a in (q, k, v))

    def of_heads(heads, name):
        """Norms and rotates queries or keys."""
        if mixer.qk_norm == "width":
            heads = norm(getattr(layer, name), heads, kind, epsilon)
        heads = heads.reshape(B, T, -1, H)
        if mixer.rotates_first:
            heads = rotate(heads, positions, mixer.rope)
        if mixer.qk_norm == "head":
            heads = norm(getattr(layer, name), heads, kind, epsilon)
        elif mixer.qk_norm == "each":
            heads = norm(getattr(layer, name), heads, "layer", epsilon)
        elif mixer.qk_norm == "unit":
            heads = rms(heads, epsilon)
        return heads if mixer.rotates_first else rotate(heads, positions, mixer.rope)

    q = of_heads(q, "attn_q_norm")
    if mixer.source is None:
        v = v.reshape(B, T, -1, H)
        kept.append((of_heads(k, "attn_k_norm"), rms(v, epsilon) if mixer.v_norm else v))
    else:
        kept.append(kept[mixer.source])
    k, v = kept[-1]
    q = q * temperature(mixer.temperature, positions)
    k, v = (np.repeat(heads, N // K, axis=2) for heads in (k, v))
    of_sinks = np.exp(weight(layer.attn_sinks))[None, :, None, None] if mixer.sinks else 0
    blocks = [slice(first, first + BLOCK) for first in range(0, T, BLOCK)]
    out = [attend(mixer, q[:, block], positions[block], k, v, of_sinks) for block in blocks]
    out = np.concatenate(out, axis=1)
    function = sigmoid if mixer.gate_function == "sigmoid" else lambda z: np.log1p(np.exp(z))
    out = out if gate is None else out * function(gate)
    out = out.reshape(B, T, -1)
    if mixer.sub_norm:
        out = norm(layer.attn_sub_norm, out, kind, epsilon)
    return linear(layer.attn_output, out)


def attend(mixer, q, positions, k, v, of_sinks):
    """Attention of some queries at their positions to all keys and values."""
    scores = np.einsum("btnh,bsnh->bnts", q, k, optimize=True)
    scores = scores * (q.shape[-1] ** -0.5 if mixer.scale is None else mixer.scale)
    if mixer.soft_cap is not None:
        scores = mixer.soft_cap * np.tanh(scores / mixer.soft_cap)
    t, s = positions[:, None], np.arange(k.shape[1])[None]
    if mixer.alibi is not None:
        N = q.shape[2]
        power = 2 ** int(np.log2(N))
        slopes = [2 ** (-mixer.alibi * (n + 1) / power) for n in range(power)]
        slopes += [2 ** (-mixer.alibi / 2 * (2 * n + 1) / power) for n in range(N - power)]
        scores = scores - np.array(slopes)[None, :, None, None] * abs(t - s)
    seen = (s <= t) if mixer.causal else np.ones((t.size, s.size), bool)
    if mixer.window and mixer.causal:
        seen = seen & (s > t - mixer.window)
    elif mixer.window:
        seen = abs(s - t) <= mixer.window // 2
    seen = seen & (s // mixer.chunk == t // mixer.chunk) if mixer.chunk else seen
    weights = np.where(seen, np.exp(scores), 0)
    total = weights.sum(-1, keepdims=True) + of_sinks
    return np.einsum("bnts,bsnh->btnh", weights / total, v, optimize=True)


def short_convolution(mixer, layer, x, kind, epsilon):
    b, c, x = np.split(linear(layer.shortconv.in_proj, x), 3, axis=-1)
    kernel, y = weight(layer.shortconv.conv), np.zeros_like(x)
    for tap in range(mixer.taps):
        back = mixer.taps - 1 - tap
        y[:, back:] += kernel[tap] * (b * x)[:, : x.shape[1] - back]
    return linear(layer.shortconv.out_proj, c * y)


def latent_attention(mixer, layer, x, kind, epsilon):
    """Not absorbed: keys and values of every head are made from the latents."""
    B, T, _ = x.shape
    N, H, positions = mixer.heads, mixer.key_width, np.arange(T)
    q = x
    if mixer.query_rank is not None:
        q = norm(layer.attn_q_a_norm, linear(layer.attn_q_a, x), kind, epsilon)
    q = linear(layer.attn_q if mixer.query_rank is None else layer.attn_q_b, q)
    q = q.reshape(B, T, N, -1)
    latents = linear(layer.attn_kv_a_mqa, x)
    rotated = rotate(latents[..., None, mixer.rank :], positions, mixer.rope)
    latents = norm(layer.attn_kv_a_norm, latents[..., : mixer.rank], kind, epsilon)
    k = np.einsum("btr,nhr->btnh", latents, weight(layer.attn_k_b))
    k = np.concatenate([k, np.repeat(rotated, N, axis=2)], axis=-1)
    v = np.einsum("btr,nrh->btnh", latents, weight(layer.attn_v_b))
    q = np.concatenate([q[..., :H], rotate(q[..., H:], positions, mixer.rope)], axis=-1)
    q = q * temperature(mixer.temperature, positions)
    scores = np.einsum("btnh,bsnh->bnts", q, k) * mixer.scale
    weights = np.where(positions[None] <= positions[:, None], np.exp(scores), 0)
    out = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    return linear(layer.attn_output, out.reshape(B, T, -1))


def temperature(options, positions):
    """The factors of queries [T, 1, 1]."""
    if options is None:
        return 1.0
    steps = np.floor((positions + options.offset) / options.floor_scale)
    return (1 + options.scale * np.log(1 + steps))[:, None, None]


def projection(mixer, layer, x, kind, epsilon):
    return linear(layer.attn_output, x)


def delta_rule(mixer, layer, x, kind, epsilon):
    (B, T, _), K, N = x.shape, mixer.key_heads, mixer.value_heads
    H, W, G = mixer.key_width, mixer.value_width, mixer.value_heads // mixer.key_heads
    if mixer.fused_input:  # of each key head: its query, its key, the values and gates of G heads
        fused = linear(layer.ssm_in, x).reshape(B, T, K, 2 * H + 2 * G * W)
        q, k, v, z = np.split(fused, [H, 2 * H, 2 * H + G * W], axis=-1)
        qkv = np.concatenate([part.reshape(B, T, -1) for part in (q, k, v)], axis=-1)
    else:
        qkv, z = linear(layer.attn_qkv, x), linear(layer.attn_gate, x)
    if mixer.fused_shares:  # of each key head: the shares and rates of G heads
        shares = linear(layer.ssm_ba, x).reshape(B, T, K, 2, G)
        beta, alpha = (shares[..., i, :].reshape(B, T, N) for i in range(2))
    else:
        beta, alpha = linear(layer.ssm_beta, x), linear(layer.ssm_alpha, x)
    kernel, seen = weight(layer.ssm_conv1d), np.zeros_like(qkv)
    for tap in range(mixer.taps):
        back = mixer.taps - 1 - tap
        seen[:, back:] += kernel[tap] * qkv[:, : T - back]
    seen = seen * sigmoid(seen)
    q, k, v = np.split(seen, [K * H, 2 * K * H], axis=-1)
    q, k = (part.reshape(B, T, K, H) for part in (q, k))
    q, k = (part / np.sqrt((part**2).sum(-1, keepdims=True) + epsilon) for part in (q, k))
    rate = np.log1p(np.exp(alpha + np.asarray(layer.ssm_dt.bias.get_value(), np.float64)))
    decay = np.exp(rate * np.asarray(layer.ssm_a.get_value(), np.float64))
    v, out = v.reshape(B, T, N, W), np.zeros((B, T, N, W))
    for b, n in np.ndindex(B, N):
        memory, head = np.zeros((H, W)), n // G if mixer.grouped else n % K
        for t in range(T):
            key = k[b, t, head]
            memory = decay[b, t, n] * memory
            change = sigmoid(beta[b, t, n]) * (v[b, t, n] - key @ memory)
            memory = memory + np.outer(key, change)
            out[b, t, n] = q[b, t, head] @ memory / np.sqrt(H)
    out = norm(layer.ssm_norm, out, kind, epsilon).reshape(B, T, -1)
    z = z.reshape(B, T, -1)
    return linear(layer.ssm_out, out * z * sigmoid(z))


def mamba(mixer, layer, x, kind, epsilon):
    (B, T, _), N, W, R = x.shape, mixer.inner, mixer.state_width, mixer.time_rank
    x, z = np.split(linear(layer.ssm_in, x), 2, axis=-1)
    kernel, seen = weight(layer.ssm_conv1d), np.zeros_like(x)
    for tap in range(mixer.taps):
        back = mixer.taps - 1 - tap
        seen[:, back:] += kernel[tap] * x[:, : T - back]
    if layer.ssm_conv1d.bias is not None:
        seen = seen + np.asarray(layer.ssm_conv1d.bias.get_value(), np.float64)
    seen = seen * sigmoid(seen)
    dt, b, c = np.split(linear(layer.ssm_x, seen), [R, R + W], axis=-1)
    if mixer.norm == "unit":
        dt, b, c = (rms(part, epsilon) for part in (dt, b, c))
    elif mixer.norm == "learned":
        names = ("ssm_dt_norm", "ssm_b_norm", "ssm_c_norm")
        dt, b, c = (
            norm(getattr(layer, name), part, kind, epsilon) for name, part in zip(names, (dt, b, c))
        )
    dt = np.log1p(np.exp(linear(layer.ssm_dt, dt)))
    a, d = (np.asarray(p.get_value(), np.float64) for p in (layer.ssm_a, layer.ssm_d))
    out, memory = d * seen, np.zeros((B, N, W))
    for t in range(T):
        written = (dt[:, t] * seen[:, t])[..., None] * b[:, t, None]
        memory = np.exp(dt[:, t, :, None] * a) * memory + written
        out[:, t] += np.einsum("bnw,bw->bn", memory, c[:, t])
    return linear(layer.ssm_out, out * z * sigmoid(z))


def mamba2(mixer, layer, x, kind, epsilon):
    (B, T, _), N, H, W, K = x.shape, mixer.heads, mixer.head_width, mixer.state_width, mixer.groups
    ends = np.cumsum([N * H, N * H + 2 * K * W])
    z, xbc, dt = np.split(linear(layer.ssm_in, x), ends, axis=-1)
    kernel, seen = weight(layer.ssm_conv1d), np.zeros_like(xbc)
    for tap in range(mixer.taps):
        back = mixer.taps - 1 - tap
        seen[:, back:] += kernel[tap] * xbc[:, : T - back]
    if layer.ssm_conv1d.bias is not None:
        seen = seen + np.asarray(layer.ssm_conv1d.bias.get_value(), np.float64)
    seen = seen * sigmoid(seen)
    inputs, b, c = np.split(seen, [N * H, N * H + K * W], axis=-1)
    inputs = inputs.reshape(B, T, N, H)
    b, c = (np.repeat(part.reshape(B, T, K, W), N // K, axis=2) for part in (b, c))
    dt = np.log1p(np.exp(dt + np.asarray(layer.ssm_dt.bias.get_value(), np.float64)))
    a, d = (np.asarray(p.get_value(), np.float64) for p in (layer.ssm_a, layer.ssm_d))
    out = d[:, None] * inputs
    for i, n in np.ndindex(B, N):
        memory = np.zeros((H, W))
        for t in range(T):
            written = np.outer(dt[i, t, n] * inputs[i, t, n], b[i, t, n])
            memory = np.exp(dt[i, t, n] * a[n]) * memory + written
            out[i, t, n] += memory @ c[i, t, n]
    out = out.reshape(B, T, -1) * z * sigmoid(z)
    if mixer.norm:
        scale = np.asarray(layer.ssm_norm.scale.get_value(), np.float64)
        out = (rms(out.reshape(B, T, K, -1), epsilon) * scale).reshape(B, T, -1)
    return linear(layer.ssm_out, out)


def parallel_mixers(mixer, layer, x, kind, epsilon):
    total = np.zeros_like(x)
    for one in mixer.mixers:
        kept = [[]] if type(one).__name__ == "Attention" else []
        total += MIXERS[type(one).__name__](one, layer, x, kind, epsilon, *kept)
    return total


MIXERS = {
    "Attention": attention,
    "DeltaRule": delta_rule,
    "LatentAttention": latent_attention,
    "Mamba": mamba,
    "Mamba2": mamba2,
    "ParallelMixers": parallel_mixers,
    "Projection": projection,
    "ShortConvolution": short_convolution,
}


def gated(part, layer, x):
    if part.gated and part.fused:
        gate, up = np.split(linear(layer.ffn_up, x), 2, axis=-1)
        hidden = activate(part.activation, gate, up)
    elif part.gated:
        gate = linear(layer.ffn_gate, x)
        if part.cutoff is not None:
            deviation = gate.std(-1, ddof=1, keepdims=True)
            least = gate.mean(-1, keepdims=True) + part.cutoff * deviation
            gate = np.maximum(gate - least, 0)
        hidden = activate(part.activation, gate, linear(layer.ffn_up, x))
    else:
        hidden = activate(part.activation, linear(layer.ffn_up, x))
    if part.sub_norm:
        norms = layer.config.norms
        hidden = norm(layer.ffn_sub_norm, hidden, norms.kind, norms.epsilon)
    return linear(layer.ffn_down, hidden)


def expert(stack, e, x):
    y = x @ weight(stack)[e]
    if stack.output_scale is not None:
        y = y * np.asarray(stack.output_scale.get_value(), np.float64)[e]
    return y if stack.bias is None else y + np.asarray(stack.bias.get_value(), np.float64)[e]


def one_expert(part, layer, e, x):
    if part.fused:
        gate, up = np.split(expert(layer.ffn_gate_up_exps, e, x), 2, axis=-1)
        hidden = activate(part.activation, gate, up)
    elif part.gated:
        hidden = activate(
            part.activation, expert(layer.ffn_gate_exps, e, x), expert(layer.ffn_up_exps, e, x)
        )
    else:
        hidden = activate(part.activation, expert(layer.ffn_up_exps, e, x))
    return expert(layer.ffn_down_exps, e, hidden)


def choose(part, layer, x):
    """The ids and weights of the experts of one token."""
    routing, logits = part.routing, linear(layer.ffn_gate_inp, x)
    scores = {
        "softmax": lambda z: np.exp(z) / np.exp(z).sum(),
        "sigmoid": sigmoid,
        "softmax_of_chosen": lambda z: z,
        "sqrt_softplus": lambda z: np.sqrt(np.log1p(np.exp(z))),
    }[routing.scoring](logits)
    by = scores.copy()
    if part.selection_bias:
        by = by + np.asarray(layer.exp_probs_b.bias.get_value(), np.float64)
    if routing.groups > 1:
        of_groups = by.reshape(routing.groups, -1)
        best = np.sort(of_groups, axis=1)[:, -2:].sum(axis=1)
        kept = np.argsort(-best)[: routing.groups_used]
        dropped = np.setdiff1d(np.arange(routing.groups), kept)
        of_groups[dropped] = -np.inf
    ids = np.argsort(-by)[: routing.used]
    weights = scores[ids]
    if routing.scoring == "softmax_of_chosen":
        weights = np.exp(weights) / np.exp(weights).sum()
    if routing.renormalize:
        weights = weights / max(weights.sum(), 2.0**-14)
    return ids, weights * routing.scale


def mixture(part, layer, x, of_router=None):
    """of_router: what the router reads, where it is not x."""
    of_router = x if of_router is None else of_router
    read = x if part.latent is None else linear(layer.ffn_latent_down, x)
    y = np.zeros_like(read)
    for at in np.ndindex(*x.shape[:-1]):
        for e, w in zip(*choose(part, layer, of_router[at])):
            if part.weights_first:
                y[at] += one_expert(part, layer, e, w * read[at])
            else:
                y[at] += w * one_expert(part, layer, e, read[at])
    if part.latent is not None:
        y = linear(layer.ffn_latent_up, y)
    if part.shared_hidden:
        up = linear(layer.ffn_up_shexp, x)
        if part.gated and part.shared_fused:
            hidden = activate(part.activation, *np.split(up, 2, axis=-1))
        elif part.gated:
            hidden = activate(part.activation, linear(layer.ffn_gate_shexp, x), up)
        else:
            hidden = activate(part.activation, up)
        shared = part.shared_scale * linear(layer.ffn_down_shexp, hidden)
        if part.shared_gate:
            shared = shared * sigmoid(x @ weight(layer.ffn_gate_inp_shexp))[..., None]
        y = y + shared
    return y


def gated_and_mixture(part, layer, x, read):
    """x: the residual stream. read: what comes out of the norm before the feed-forward."""
    epsilon = layer.config.norms.epsilon

    def normed(name, x):
        return norm(getattr(layer, name), x, "rms", epsilon)

    dense = normed("post_ffw_norm_1", gated(part.gated, layer, read))
    of_router = normed("ffn_gate_inp_norm", x) / np.sqrt(x.shape[-1])
    experts = mixture(part.mixture, layer, normed("pre_ffw_norm_2", x), of_router)
    return dense + normed("post_ffw_norm_2", experts)


FEED_FORWARDS = {"Gated": gated, "Mixture": mixture}


def forward(decoder, tokens_BT):
    """The logits of one causal pass, [B, T, V]."""
    config = decoder.config
    table = dense(decoder.token_embd.embedding)
    x = table[np.asarray(tokens_BT)] * config.embedding_scale
    if config.token_types:
        x = x + dense(decoder.token_types.embedding)[0]
    if config.positions:
        x = x + dense(decoder.position_embd.embedding)[: x.shape[1]]
    if config.embedding_norm:
        of_embeddings = getattr(decoder, config.embedding_norm)
        x = norm(of_embeddings, x, config.norm_kind, config.norm_epsilon)
    inputs, kept = per_layer_inputs(decoder, tokens_BT, x), []
    for i, layer in enumerate(decoder.blk):
        x = one_layer(layer, x, kept, None if inputs is None else inputs[..., i, :])
    final = getattr(decoder, config.output_norm)
    x = norm(final, x, config.norm_kind, config.norm_epsilon)
    logits = x @ table.T if decoder.output is None else linear(decoder.output, x)
    logits = logits * config.logit_scale
    cap = config.logit_cap
    return logits if cap is None else cap * np.tanh(logits / cap)


def per_layer_inputs(decoder, tokens_BT, x):
    """The inputs of the layers [B, T, L, P], or None."""
    if not hasattr(decoder, "per_layer_model_proj"):
        return None
    scale = np.asarray(decoder.per_layer_proj_norm.scale.get_value(), np.float64)
    shape = *x.shape[:2], len(decoder.blk), len(scale)
    table = dense(decoder.per_layer_token_embd.embedding)
    of_tokens = table[np.asarray(tokens_BT)].reshape(shape) * np.sqrt(len(scale))
    projected = linear(decoder.per_layer_model_proj, x).reshape(shape) / np.sqrt(x.shape[-1])
    normed = rms(projected, decoder.config.norm_epsilon) * scale
    return (of_tokens + normed) / np.sqrt(2)


def one_layer(layer, x, kept, inputs):
    config, norms = layer.config, layer.config.norms

    def normed(name, x):
        module = None if name is None else getattr(layer, name)
        return norm(module, x, norms.kind, norms.epsilon)

    before = x
    if config.mixer is not None:
        mix = MIXERS[type(config.mixer).__name__]
        kept_or_none = [kept] if mix is attention else []
        read = normed(norms.before_mixer, x)
        y = mix(config.mixer, layer, read, norms.kind, norms.epsilon, *kept_or_none)
        x = normed(norms.after_mixer_sum, x + config.residual_scale * normed(norms.after_mixer, y))
    if config.laurel is not None:
        read = normed(norms.before_mixer, before)
        y = linear(layer.laurel_r, linear(layer.laurel_l, read))
        x = (x + read + normed("laurel_post_norm", y)) / np.sqrt(2)
    if config.feed_forward is not None:
        part = config.feed_forward
        read = normed(norms.before_feed_forward, before if config.parallel else x)
        if type(part).__name__ == "GatedAndMixture":
            y = gated_and_mixture(part, layer, x, read)
        else:
            y = FEED_FORWARDS[type(part).__name__](part, layer, read)
        y = normed(norms.after_feed_forward, y)
        x = normed(norms.after_feed_forward_sum, x + config.residual_scale * y)
    if config.per_layer_input is not None:
        y = linear(layer.proj, activate(GELU, linear(layer.inp_gate, x), inputs))
        x = x + norm(layer.post_norm, y, norms.kind, norms.epsilon)
    return x * weight(layer.layer_output_scale) if config.output_factor else x
