"""Which tensors of a model the devices of a mesh share, and along which axis.

A projection into heads or hidden units is split by its outputs, and the one that follows it by its
inputs, so that a layer exchanges two sums: after the mixer and after the feed-forward. Each device
computes its heads and holds their part of the cache. The vocabulary is split too.
"""

import functools
import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rocmforge_jax.backends.on_mesh import MODEL_AXIS, automatic, model_parts
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.models.claims import Claim
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.nn import Embedding, Experts, Linear

#: Projections that are split by their outputs, by their names in the file without "blk.N.". Latent
#: attention makes its heads in attn_q_b; what makes the latents is small, and all heads read it.
BY_OUTPUTS = {
    *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_gate", "attn_q_b"),
    *("ffn_gate", "ffn_up", "ffn_gate_shexp", "ffn_up_shexp"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps"),
    *("ssm_in", "shortconv.in_proj", "per_layer_model_proj"),
    *("token_embd", "per_layer_token_embd", "output", "nextn.embed_tokens"),
    "nextn.shared_head_head",
}
#: Projections that are split by their inputs.
BY_INPUTS = {
    *("attn_output", "ffn_down", "ffn_down_shexp", "ffn_down_exps"),
    *("ssm_out", "shortconv.out_proj"),
}
#: Projections into heads -> the attribute of a mixer that counts them.
_HEADS = {"attn_q": "heads", "attn_q_b": "heads", "attn_k": "kv_heads", "attn_v": "kv_heads"}


class Shares:
    """The PartitionSpecs of a model's tensors on a mesh."""

    def __init__(self, config: DecoderConfig, mesh: Mesh):
        self._config, self._parts = config, model_parts(mesh)

    def spec(self, claim: Claim) -> PartitionSpec:
        """Returns how a variable is split: a kernel of shape (..., in, out), or a table (V, D)."""
        axes: list[str | None] = [None] * len(claim.shape)
        axis = self._axis(claim)
        if axis is not None and self._why_whole(claim) is None:
            axes[axis] = MODEL_AXIS
        return PartitionSpec(*axes)

    def warn(self, claims: Sequence[Claim], path: Any) -> None:
        """Warns of the tensors that every device holds as a whole, and says why."""
        reasons: dict[str, list[str]] = {}
        for claim in claims:
            if self._axis(claim) is None or (why := self._why_whole(claim)) is None:
                continue
            of_all = re.sub(r"^blk\.\d+\.", "blk.*.", claim.name)
            if of_all not in (names := reasons.setdefault(why, [])):
                names.append(of_all)
        if reasons:
            parts = [f"{', '.join(names)} ({why})" for why, names in reasons.items()]
            warnings.warn(
                f"{path}: each of {self._parts} devices holds all of {listed(parts)}", stacklevel=6
            )

    def _axis(self, claim: Claim) -> int | None:
        """Returns the axis of a variable that should be split."""
        is_weight = type(claim.module) in (Linear, Experts, Embedding) and len(claim.shape) > 1
        if self._parts == 1 or not is_weight or claim.attribute not in ("kernel", "embedding"):
            return None
        _, role = _role(claim.name)
        if role in BY_OUTPUTS:
            return -2 if claim.attribute == "embedding" else -1
        return -2 if role in BY_INPUTS else None

    def _why_whole(self, claim: Claim) -> str | None:
        """Returns why a tensor that should be split cannot be."""
        number, role = _role(claim.name)
        if role in BY_INPUTS:
            return self._why_not_inputs(claim)
        return self._why_not_outputs(claim, number, role)

    def _why_not_outputs(self, claim: Claim, number: int, role: str) -> str | None:
        layers = [*self._config.layers, *(one.layer for one in self._config.nextn)]
        mixer = layers[number].mixer if 0 <= number < len(layers) else None
        heads = getattr(mixer, _HEADS.get(role, ""), None)
        if heads is not None:
            kind = "KV heads" if _HEADS[role] == "kv_heads" else "heads"
            return None if heads % self._parts == 0 else f"{heads} {kind}"
        outputs = claim.shape[-2]
        return None if outputs % self._parts == 0 else f"{outputs} outputs"

    def _why_not_inputs(self, claim: Claim) -> str | None:
        inputs, format = claim.shape[-1], claim.tensor.format
        if not format.is_quantized:
            return None if inputs % self._parts == 0 else f"{inputs} inputs"
        blocks = inputs // format.block
        if blocks % self._parts == 0:
            return None
        return f"{inputs} inputs are {blocks} blocks of {format}"


def _role(name: str) -> tuple[int, str]:
    """Returns the layer's number and the name in it: of "blk.3.attn_q.weight" 3 and "attn_q"."""
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", name.rpartition(".")[0])
    return (int(found[1]), found[2]) if found else (-1, name.rpartition(".")[0])


def on_automatic_axes(array: jax.Array) -> jax.Array:
    """Returns an array of a mesh with explicit axes on automatic ones; the buffers are the same.

    Steps combine arrays that are split in ways for which explicit axes would ask.
    """
    sharding = array.sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return array
    mesh = automatic(sharding.mesh)
    same = mesh is sharding.mesh
    return array if same else jax.device_put(array, NamedSharding(mesh, sharding.spec))


def on_every_device(array: jax.Array, decoder: Any) -> jax.Array:
    """Returns an array whole on every device of a decoder, so that every process can read it."""
    mesh = decoder.numerics.mesh
    if mesh is None:
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec()))


def readable(array: jax.Array) -> jax.Array:
    """Returns an array that this process can read; a copy where other processes hold parts of it.

    Then all processes have to call it.
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return array
    mesh: Any = array.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
    return _copied(array, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=1)
def _copied(array, sharding):
    return jax.lax.with_sharding_constraint(array, sharding)
