"""The tensors of small files, by the parts of a layer."""

from tests.models.synthetic import VOCABULARY

#: Of the residual stream, query and KV heads, the width of a head, hidden units.
WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN = 48, 6, 2, 8, 56
#: Experts, those that a token goes through, and units of one.
EXPERTS, USED, EXPERT_HIDDEN = 8, 3, 24
KEYS = {
    "embedding_length": WIDTH,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "feed_forward_length": HIDDEN,
}
RMS = {"attention.layer_norm_rms_epsilon": 1e-5}
LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
EXPERT_KEYS = {
    "expert_count": EXPERTS,
    "expert_used_count": USED,
    "expert_feed_forward_length": EXPERT_HIDDEN,
}


def norm(name: str, width: int = WIDTH, *, bias: bool = False):
    """A norm."""
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def linear(name: str, inputs: int, outputs: int, *, bias: bool = False):
    """A linear layer."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def attention(
    *,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
    head: int = HEAD,
    bias: bool = False,
    output_bias: bool = False,
    fused: bool = False,
    query: int = 1,
):
    """The projections of attention. query: 2 where each query is followed by a gate."""
    sizes = {"attn_q": query * heads * head, "attn_k": kv_heads * head, "attn_v": kv_heads * head}
    if fused:
        sizes = {"attn_qkv": sum(sizes.values())}
    made = {}
    for name, size in sizes.items():
        made |= linear(name, WIDTH, size, bias=bias)
    return made | linear("attn_output", heads * head, WIDTH, bias=output_bias)


def gated(hidden: int = HIDDEN, *, gate: bool = True, bias: bool = False):
    """A feed-forward."""
    names = ("ffn_gate", "ffn_up") if gate else ("ffn_up",)
    made = {}
    for name in names:
        made |= linear(name, WIDTH, hidden, bias=bias)
    return made | linear("ffn_down", hidden, WIDTH, bias=bias)


def experts(hidden: int = EXPERT_HIDDEN, *, shared: int = 0, gate: bool = True):
    """A mixture. shared: Units of the shared expert."""
    first = ("ffn_gate", "ffn_up") if gate else ("ffn_up",)
    made = linear("ffn_gate_inp", WIDTH, EXPERTS)
    made |= {f"{name}_exps.weight": (EXPERTS, hidden, WIDTH) for name in first}
    made["ffn_down_exps.weight"] = (EXPERTS, WIDTH, hidden)
    if shared:
        for name in first:
            made |= linear(f"{name}_shexp", WIDTH, shared)
        made |= linear("ffn_down_shexp", shared, WIDTH)
    return made


def head_norms(head: int = HEAD):
    """Norms of the heads of queries and keys."""
    return norm("attn_q_norm", head) | norm("attn_k_norm", head)


def file(
    *layers: dict,
    tied: bool = False,
    bias: bool = False,
    head_bias: bool = False,
    output_norm: str = "output_norm",
    more: dict | None = None,
):
    """All tensors of a file of these layers.

    Args:
        *layers: Tensors of each.
        tied: Whether the head is the embedding.
        bias: Whether the norm before the head has a bias.
        head_bias: Whether the head has a bias.
        output_norm: The norm before the head, "" for none with weights.
        more: Further tensors of the file.
    """
    made = {"token_embd.weight": (VOCABULARY, WIDTH)} | (more or {})
    if output_norm:
        made |= norm(output_norm, bias=bias)
    if not tied:
        made |= linear("output", WIDTH, VOCABULARY, bias=head_bias)
    for i, layer in enumerate(layers):
        made |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return made


def nextn(*, own: bool = False):
    """What a block for multi-token prediction has besides. own: An embedding and a head too."""
    made = norm("nextn.enorm") | norm("nextn.hnorm") | linear("nextn.eh_proj", 2 * WIDTH, WIDTH)
    if own:
        made |= linear("nextn.embed_tokens", WIDTH, VOCABULARY)
        made |= linear("nextn.shared_head_head", WIDTH, VOCABULARY)
        made |= norm("nextn.shared_head_norm")
    return made
