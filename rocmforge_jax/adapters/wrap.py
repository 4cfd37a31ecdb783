"""Puts adapters around linear layers and stacks of experts, and finds them again."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.arguments import as_integer, integer, number, shown
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.models import Decoder, tensor_name
from rocmforge_jax.models.patterns import Patterns, checked, matching
from rocmforge_jax.nn import Embedding, Experts, Linear, LoRAExperts, LoRALinear
from rocmforge_jax.nn.lora import Adapter

#: The projections of attention, where adapters do most for their size. A model has some of them.
ATTENTION = ("blk.*.attn_q", "blk.*.attn_k", "blk.*.attn_v", "blk.*.attn_qkv", "blk.*.attn_output")
#: The class of an adapter for each class of layers that may have one.
ADAPTERS = {Linear: LoRALinear, Experts: LoRAExperts}
_LAYERS = (*ADAPTERS, *ADAPTERS.values())
_FLOATS = tuple(map(jnp.dtype, (jnp.float32, jnp.bfloat16, jnp.float16)))


def lora(
    model: Decoder,
    rank: int,
    names: Patterns = None,
    *,
    alpha: float | None = None,
    rngs: nnx.Rngs | jax.Array | int = 0,
    dtype: Any = jnp.float32,
) -> Decoder:
    """Returns a new model in which linear layers have an adapter that changes nothing yet.

    The new model shares every array with the old one, which stays as it is. Train the adapters
    alone with `nnx.Optimizer(model, optimizer, wrt=nnx.LoRAParam)` and
    `nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))`.

    Args:
        model: A decoder, such as `lm.model`.
        rank: Columns of an adapter's first matrix and rows of its second.
        names: Shell patterns of tensor names, such as "blk.*.ffn_down"; of all that match only
            linear layers and the experts of mixtures get an adapter. True stands for all linear
            layers, without experts. Default: the projections of attention: queries, keys, values
            and output.
        alpha: An adapter's product is multiplied by alpha / rank. Default: the rank.
        rngs: Draws the first matrices: an `nnx.Rngs`, a key of `jax.random`, or a seed.
        dtype: Of the adapters: float32, bfloat16 or float16.

    Raises:
        ValueError: A pattern matches no such layer, or a stack of other layers than experts; a
            layer has an adapter; or the rank is more than the inputs or outputs of every layer.
    """
    layers = adaptable(model)
    rank, dtype = integer("rank", rank, 1), jnp.dtype(dtype)
    if dtype not in _FLOATS:
        raise ValueError(f"an adapter has float32, bfloat16 or float16 numbers, got {dtype}")
    if alpha is not None:
        alpha = number("alpha", alpha, 0, exclusive=True)
    _refuse_embeddings(model, names)
    chosen = _chosen(layers, names)
    useful = max(min(layers[name].kernel.shape[-2:]) for name in chosen)
    if rank > useful:
        raise ValueError(
            f"rank={rank} is more than {useful}, the rank of the largest of these {len(chosen)}"
            " layers: an adapter needs less"
        )
    rngs = _checked_rngs(rngs)
    options: dict[str, Any] = dict(alpha=alpha, dtype=dtype, rngs=rngs)
    return replaced(
        model,
        lambda name, layer: adapted(layer, rank, **options) if name in chosen else layer,
    )


def adapted(layer: Any, rank: int, **options) -> Adapter:
    """Returns a layer with an adapter."""
    return ADAPTERS[type(layer)](layer, rank, **options)


def why_not(name: str, layer: Any) -> str | None:
    """Returns why a layer of `adaptable` can have no adapter; None for one that can."""
    if type(layer) is Experts and not name.endswith("_exps.weight"):
        return f"{name} is a stack of layers that is no mixture's, which can have no adapter"
    return None


def adaptable(model: Decoder) -> dict[str, Any]:
    """Returns linear layers and stacks of them, with adapters or not, by their tensors' names.

    Raises TypeError for what is no decoder.
    """
    if not isinstance(model, Decoder):
        remedy = ": give its .model" if hasattr(model, "model") else ""
        raise TypeError(f"an adapter is for a Decoder, got a {type(model).__name__}{remedy}")
    return {name: layer for _, name, layer in _layers(model)}


def adapters(model: Decoder) -> dict[str, Adapter]:
    """Returns the layers that have an adapter, by the names of their tensors."""
    found = adaptable(model)
    return {name: layer for name, layer in found.items() if isinstance(layer, Adapter)}


def replaced(model: Decoder, replace) -> Decoder:
    """Returns a model that shares all arrays, with replace(name, layer) in place of each layer."""
    new = nnx.merge(*nnx.split(model))
    for holder, name, layer in list(_layers(new)):
        other = replace(name, layer)
        if other is not layer:
            setattr(*holder, other)
    return new


def _layers(model) -> Iterator[tuple[tuple[Any, str], str, Any]]:
    """Yields (its module and attribute, the name of its tensor, the layer) of each layer."""
    modules = {path: module for path, module in nnx.iter_modules(model)}
    for path, module in modules.items():
        inside = path and isinstance(modules[path[:-1]], Adapter)
        if path and not inside and type(module) in _LAYERS:
            holder = modules[path[:-1]], str(path[-1])
            yield holder, tensor_name((*path, "kernel")), module


def _checked_rngs(rngs: Any) -> nnx.Rngs:
    """Returns an nnx.Rngs as it is, and one made of a seed or a key."""
    if isinstance(rngs, nnx.Rngs):
        return rngs
    is_key = jnp.issubdtype(getattr(rngs, "dtype", int), jax.dtypes.prng_key) or (
        getattr(rngs, "dtype", None) == jnp.uint32 and rngs.ndim == 1
    )
    if not is_key and as_integer(rngs) is None:
        raise TypeError(
            f"rngs is an nnx.Rngs, a key of jax.random or a seed of at least 0, got {shown(rngs)}"
        )
    return nnx.Rngs(rngs if is_key else integer("rngs", rngs, 0))


def _refuse_embeddings(model: Decoder, names: Patterns) -> None:
    """Raises ValueError for a pattern that names embeddings alone."""
    embeddings = {
        tensor_name((*path, "embedding"))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, Embedding)
    }
    patterns, layers = checked(names), set(adaptable(model))
    for pattern in () if isinstance(patterns, bool) else patterns:
        found = _matches(pattern, embeddings)
        if found and not _matches(pattern, layers):
            raise ValueError(
                f"{listed(sorted(found), ', ')} is an embedding: only linear layers and experts"
                " can have an adapter"
            )


def _chosen(layers: dict[str, Any], names: Patterns) -> set[str]:
    linear = {name for name, layer in layers.items() if type(layer) in (Linear, LoRALinear)}
    if names is None:
        chosen = set().union(*(_matches(pattern, linear) for pattern in ATTENTION))
    else:
        chosen = matching(names, linear if names is True else layers)
    if not chosen:
        some = listed(sorted(linear), ", ", most=3)
        raise ValueError(f"no layer gets an adapter: give names, of which there are {some}")
    if others := [why for name in sorted(chosen) if (why := why_not(name, layers[name]))]:
        raise ValueError(f"{listed(others)}: give names that leave them out")
    if present := sorted(name for name in chosen if isinstance(layers[name], Adapter)):
        raise ValueError(
            f"{listed(present, ', ')} have an adapter already: use merge_lora or remove_lora first"
        )
    return chosen


def _matches(pattern: str, names: set[str]) -> set[str]:
    try:
        return matching(pattern, names)
    except ValueError:
        return set()
