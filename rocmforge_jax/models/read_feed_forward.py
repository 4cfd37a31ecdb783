"""Reads the feed-forwards of a file's layers: dense ones and mixtures of experts."""

import dataclasses
from collections.abc import Collection
from typing import Any

from rocmforge_jax.models.feed_forward import Gated, Mixture
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.nn import Routing


def feed_forwards(
    keys: KeyReader,
    gated: dict,
    mixture: dict,
    routing: dict,
    layers: Collection[int] | None = None,
) -> list[Gated | Mixture | None]:
    """Reads the feed-forward of each layer.

    Args:
        keys: The keys of the file.
        gated: Fields of every `Gated` that differ from the file.
        mixture: Fields of every `Mixture` that differ from the file.
        routing: Fields of the `Routing` of every mixture that differ from the defaults.
        layers: See `feed_forward_layers` of `llama_like`.

    Returns:
        The feed-forward of each block, or None.
    """
    layers = range(keys.blocks) if layers is None else layers
    if not layers:
        return [None] * keys.blocks
    experts = keys.integer("expert_count", 0, low=0)
    if experts == 1 and not keys.has(keys.layers - 1, "ffn_gate_inp.weight"):
        experts = 0  # one expert without a router is a dense feed-forward
    # The key is optional for experts, because they may have a separate key for their size.
    default, low = (0, 0) if experts else (None, 1)
    hidden = keys.integers("feed_forward_length", default, low)
    dense, step, used, groups = keys.blocks, 1, (0,) * keys.blocks, {}
    if experts:
        dense = keys.integer("leading_dense_block_count", 0, low=0)
        step = keys.integer("interleave_moe_layer_step", 1)
        used = keys.integers("expert_used_count", high=experts)
        groups = _groups(keys)

    def of_layer(i):
        if i not in layers:
            return None
        if i >= dense and (i + 1) % step == 0:
            chosen = dataclasses.replace(Routing(used[i], "softmax", True, **groups), **routing)
            mixed = _mixture(keys, i, experts, chosen, hidden[i])
            return dataclasses.replace(mixed, **mixture)
        if not hidden[i]:
            return None
        # A missing ffn_gate means a fused ffn_up; families without gates set `gated=False`.
        fused = not keys.has(i, "ffn_gate.weight")
        return dataclasses.replace(Gated(hidden[i], fused=fused), **gated)

    return [of_layer(i) for i in range(keys.blocks)]


def _mixture(keys, i: int, experts: int, routing: Routing, dense_hidden: int) -> Mixture:
    """Returns the mixture of a layer; tensors determine its options, and sizes without a key."""
    hidden = keys.integers("expert_feed_forward_length", 0, low=0)[i]
    hidden = hidden or keys.inputs(i, "ffn_down_exps.weight") or dense_hidden
    shared = keys.integer("expert_shared_feed_forward_length", 0, low=0)
    shared = shared or keys.inputs(i, "ffn_down_shexp.weight")
    count = keys.integer("expert_shared_count", 0, low=0)
    shared = shared or count * hidden
    latent = keys.integer("moe_latent_size", 0, low=0)
    return Mixture(
        experts=experts,
        routing=routing,
        hidden=hidden,
        shared_hidden=shared,
        latent=(latent or keys.inputs(i, "ffn_latent_up.weight")) or None,
        fused=keys.has(i, "ffn_gate_up_exps.weight"),
        selection_bias=keys.has(i, "exp_probs_b.bias") or keys.has(i, "exp_probs_b"),
        shared_fused=shared > 0 and keys.outputs(i, "ffn_up_shexp.weight") == 2 * shared,
        shared_gate=keys.has(i, "ffn_gate_inp_shexp.weight"),
    )


def _groups(keys: KeyReader) -> dict[str, int]:
    """Reads the groups of experts, as llama.cpp does for every architecture."""
    groups = keys.integer("expert_group_count", 0, low=0) or 1
    used = keys.integer("expert_group_used_count", 0, low=0) or 1
    return dict(groups=groups, groups_used=used if groups > 1 else 1)


#: The values of `expert_gating_func`.
SCORINGS = (None, "softmax", "sigmoid", "softmax_of_chosen", "sqrt_softplus")


def read_routing(keys: KeyReader, scoring: str = "softmax") -> dict[str, Any]:
    """Reads the fields of `Routing` from keys, for families whose files have these keys.

    Args:
        keys: The keys of the file.
        scoring: The default scoring.
    """
    return dict(
        scoring=read_scoring(keys, scoring),
        renormalize=keys.flag("expert_weights_norm", False),
        scale=keys.optional_real("expert_weights_scale") or 1.0,
    )


def read_scoring(keys: KeyReader, default: str) -> str:
    """Reads the function that turns a router's logits into scores: see `Routing`."""
    number = keys.integer("expert_gating_func", 0, low=0, high=len(SCORINGS) - 1)
    return SCORINGS[number] or default
