"""The sizes and options of grouped-query attention."""

import dataclasses
from typing import Literal

from rocmforge_jax.models.make import check_sizes
from rocmforge_jax.models.mixers.temperature import Temperature
from rocmforge_jax.nn import AttentionRule, RopeConfig

_GATE_FUNCTIONS = ("sigmoid", "softplus")


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """The sizes and options of grouped-query attention.

    Attributes:
        heads: The number of query heads, N.
        kv_heads: The number of KV heads, K, a divisor of N.
        head_width: The width of a head of queries, keys and values, H.
        rope: Which elements of a head rotate, and how fast; None for no rotation.
        scale: Factor of the scores, default 1/sqrt(H).
        causal: Whether a token sees only itself and earlier tokens.
        window: The number of tokens that a token sees, including itself; None for all. The KV cache
            is then a ring buffer of about this size. Without `causal`, the window is odd, with
            half of it on each side of the token.
        chunk: The size of chunks; tokens see one another only within a chunk. None for no chunks.
        alibi: The largest exponent of ALiBi, by which scores decrease with distance, or None.
        soft_cap: Soft cap c of the scores, c * tanh(score / c), or None.
        sinks: Whether each head has an attention sink, a learned logit in the softmax
            (attn_sinks).
        qk_norm: The norm of queries and keys, or None. "head": an RMS norm of each head. "unit":
            the same without learned weights. "each": a layer norm of each head with separate
            weights. "width": one RMS norm over all heads.
        clamp: Limit to which queries, keys and values are clipped, [-clamp, clamp], or None.
        sub_norm: Whether the result is normalised before the output projection (attn_sub_norm).
        rotates_first: Whether queries and keys rotate before their norm, not after.
        v_norm: Whether each head of the values is divided by its root mean square.
        gate: A gate of the result, or None. "query": from attn_q (or its part of attn_qkv), in
            which each head's gate follows its query. "width": from attn_gate, one number per
            element. "head": from attn_gate, one number per head.
        gate_function: The activation function of the gate, "sigmoid" or "softplus".
        temperature: Sharpens attention at later positions, or None.
        fused_qkv: Whether q, k and v are one tensor, attn_qkv.
        v_from_k: Whether the values are the output of attn_k before its norm, without an attn_v.
        lends: Whether later layers attend to the KV cache of this layer. The cache then keeps all
            tokens, even with a window.
        source: The number of an earlier layer with `lends`, to whose KV cache this layer attends;
            None if the layer has its own.
    """

    heads: int
    kv_heads: int
    head_width: int
    rope: RopeConfig | None
    scale: float | None = None
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    soft_cap: float | None = None
    alibi: float | None = None
    sinks: bool = False
    qk_norm: Literal["head", "unit", "each", "width"] | None = None
    clamp: float | None = None
    sub_norm: bool = False
    rotates_first: bool = False
    v_norm: bool = False
    gate: Literal["query", "width", "head"] | None = None
    gate_function: Literal["sigmoid", "softplus"] = "sigmoid"
    temperature: Temperature | None = None
    fused_qkv: bool = False
    v_from_k: bool = False
    lends: bool = False
    source: int | None = None
    #: A class constant, not a field: the projection that the layer applies to the result.
    output = "attn_output"

    def __post_init__(self):
        check_sizes(heads=self.heads, kv_heads=self.kv_heads, head_width=self.head_width)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"the model has {self.heads} heads and {self.kv_heads} KV heads: heads must be a"
                " multiple of KV heads"
            )
        if self.rope is not None and self.rope.width > self.head_width:
            raise ValueError(
                f"rope rotates {self.rope.width} elements of a head of {self.head_width}"
            )
        choices = {"qk_norm": ("head", "unit", "each", "width"), "gate": ("query", "width", "head")}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in (*known, None):
                raise ValueError(f"{name} must be {', '.join(known)} or None, got {value!r}")
        if self.gate_function not in _GATE_FUNCTIONS:
            known = " or ".join(_GATE_FUNCTIONS)
            raise ValueError(f"gate_function must be {known}, got {self.gate_function!r}")
        if self.fused_qkv and (self.v_from_k or self.source is not None):
            raise ValueError("a fused attn_qkv holds keys and values of the layer itself")
        if self.source is not None and (self.lends or self.source < 0):
            raise ValueError(
                f"a layer attends to the keys and values of layer {self.source}: it must be at"
                " least 0, and the layer itself has none to lend"
            )
        self._rule()  # AttentionRule checks the remaining numbers

    @property
    def _widths(self) -> dict[str, int]:
        """The total widths of queries, keys and values, without gates."""
        q, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        return {"attn_q": q, "attn_k": kv, "attn_v": kv}

    @property
    def _query_width(self) -> int:
        """The total width of queries, including gates that follow them."""
        return self._widths["attn_q"] * (2 if self.gate == "query" else 1)

    def _projections(self) -> dict[str, int]:
        """The names of the projections of the residual stream, and their output widths."""
        sizes = self._widths | {"attn_q": self._query_width}
        if self.fused_qkv:
            sizes = {"attn_qkv": sum(sizes.values())}
        elif self.source is not None:
            sizes = {"attn_q": sizes["attn_q"]}
        elif self.v_from_k:
            sizes = {name: sizes[name] for name in ("attn_q", "attn_k")}
        if self.gate in ("width", "head"):
            per_head = self.head_width if self.gate == "width" else 1
            sizes = sizes | {"attn_gate": self.heads * per_head}
        return sizes

    def _rule(self, layer=None, slots: int | None = None) -> AttentionRule:
        """Returns the attention rule, with the sinks of a layer.

        Kernels do not support chunks. If all slots fit into one chunk, the rule therefore omits it.
        """
        one_chunk = self.chunk is not None and slots is not None and slots <= self.chunk
        return AttentionRule(
            self.head_width**-0.5 if self.scale is None else self.scale,
            causal=self.causal,
            window=self.window,
            chunk=None if one_chunk else self.chunk,
            soft_cap=self.soft_cap,
            alibi=self.alibi,
            sinks_N=layer.attn_sinks.kernel.get_value()
            if layer is not None and self.sinks
            else None,
        )
