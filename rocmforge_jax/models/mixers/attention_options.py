"""Sizes and options of grouped-query attention."""

import dataclasses
from typing import Literal

from rocmforge_jax.models.make import check_sizes
from rocmforge_jax.models.mixers.temperature import Temperature
from rocmforge_jax.nn import AttentionRule, RopeConfig

_GATE_FUNCTIONS = ("sigmoid", "softplus")


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """Attention of `heads` query heads to `kv_heads` KV heads of `head_width` each.

    Attributes:
        heads: Query heads, N.
        kv_heads: KV heads, K, a divisor of N.
        head_width: Of queries, keys and values, H.
        rope: Which elements of a head rotate, and how fast; None for no rotation.
        scale: Factor of scores, default 1/sqrt(H).
        causal: Whether a token sees only those before it, and itself.
        window: How many tokens a token sees, itself included; None for all. The state is a ring
            buffer of about this size. Without causal it is odd: as many before as after the token.
        chunk: Tokens see one another only within chunks of this size; None for all.
        alibi: The largest exponent of ALiBi, by which scores fall with distance, or None.
        soft_cap: A cap c that makes c * tanh(score / c) of each score, or None.
        sinks: Whether each head has a learned logit that takes a share of the weights
            (attn_sinks).
        qk_norm: Whether queries and keys are normed: each head by itself ("head"), likewise without
            learned weights ("unit"), likewise by a layer norm with other weights for each head
            ("each"), or over all heads ("width").
        clamp: Queries, keys and values are clamped to -clamp to clamp, or None.
        sub_norm: Whether the result is normed before the output projection (attn_sub_norm).
        rotates_first: Whether queries and keys rotate before they are normed, not after.
        v_norm: Whether each head of the values is divided by its root mean square.
        gate: A gate of the result: "query", from attn_q (or that part of attn_qkv), where
            each head's query is followed by its gate; "width", from attn_gate; "head", likewise,
            one number a head.
        gate_function: What a gate goes through: "sigmoid" or "softplus".
        temperature: Sharpens attention at later positions, or None.
        fused_qkv: Whether q, k and v are one tensor, attn_qkv.
        v_from_k: Whether the values are the product of attn_k as well, before its norm; there is no
            attn_v.
        lends: Whether later layers attend to the keys and values of this layer. Its state holds all
            tokens then, also with a window.
        source: The number of an earlier layer that lends its keys and values, which this layer
            attends to; None if it has its own.
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
    #: A constant of the class, no field: the projection that follows, which the layer applies.
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
        self._rule()  # checks its numbers

    @property
    def _widths(self) -> dict[str, int]:
        """Widths of all queries, keys and values, without gates."""
        q, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        return {"attn_q": q, "attn_k": kv, "attn_v": kv}

    @property
    def _query_width(self) -> int:
        """Width of all queries, with the gates that follow them."""
        return self._widths["attn_q"] * (2 if self.gate == "query" else 1)

    def _projections(self) -> dict[str, int]:
        """The tensors that read the residual stream, and their widths."""
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
        """Returns the rule, with the sinks of a layer, for a number of slots.

        A single chunk is left out, because kernels know no chunks.
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
