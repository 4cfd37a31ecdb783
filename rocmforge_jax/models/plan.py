"""How much memory a model will take on its device, before anything is loaded."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rocmforge_jax import memory
from rocmforge_jax.gguf import GGUFFile
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.empty_cache import bytes_on_a_device, init_cache

#: Tokens of a prompt that are computed at once, and tokens of a text, that the plan counts with.
PROMPT, TOKENS = 512, 4096
#: Slots of the smallest cache; larger ones are powers of two.
SMALLEST_CACHE = 256
#: Tokens that one dispatch generates. The last dispatch of a text may go past its end by as many.
TOKENS_PER_DISPATCH = 8


def cache_length(tokens: int, context_length: int) -> int:
    """Slots per sequence of a cache that has room for `tokens` tokens.

    A power of two, so that few programs are compiled, but no more than a full context and the last
    dispatch can use.
    """
    power = max(SMALLEST_CACHE, 1 << (tokens - 1).bit_length())
    return max(tokens, min(power, context_length + TOKENS_PER_DISPATCH))


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on a device for one sequence.

    Attributes:
        weights: the packed planes.
        cache: the KV cache of `slots` slots, as the engine allocates it.
        slots: slots of the cache.
        temporaries: an estimate of the workspace for a prompt of 512 tokens.
        available: free bytes of the device, None if it does not report them.
    """

    weights: int
    cache: int
    slots: int
    temporaries: int
    available: int | None

    @property
    def total(self) -> int:
        """Weights, cache and temporaries."""
        return self.weights + self.cache + self.temporaries

    def check(self) -> None:
        """Raises MemoryError, with the numbers, if the model cannot fit."""
        if self.available is not None and self.total > self.available:
            raise MemoryError(f"the model does not fit: {self}")

    def __str__(self):
        free = "unknown" if self.available is None else _gib(self.available)
        return (
            f"weights {_gib(self.weights)} + cache of {self.slots} slots {_gib(self.cache)} +"
            f" temporaries {_gib(self.temporaries)} = {_gib(self.total)}, available {free}"
        )


def plan_memory(
    gguf: GGUFFile,
    config: DecoderConfig,
    dtype,
    *,
    context_length: int | None = None,
    weights: int | None = None,
    device: Any = None,
    mesh: Mesh | None = None,
) -> MemoryPlan:
    """Plans the memory of one sequence.

    Args:
        gguf: the file with the weights.
        config: the decoder's configuration.
        dtype: of the cache.
        context_length: tokens of the longest text, default what the model was trained for. At most
            4096 of them are counted for the cache. The padding of a prompt that nearly fills a
            short context is not.
        weights: bytes of the weights on the device, default those of all tensors.
        device: where the model goes, default the first of this process.
        mesh: the devices that share the model, of which `device` is one, or None.
    """
    context_length = context_length or config.context_length
    tokens = min(TOKENS, context_length + TOKENS_PER_DISPATCH)  # of a full context, see above
    slots = cache_length(tokens, context_length)
    cache = jax.eval_shape(lambda: init_cache(config, 1, slots, np.dtype(dtype)))
    placement = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return MemoryPlan(
        weights=sum(t.nbytes for t in gguf.tensors.values()) if weights is None else weights,
        cache=bytes_on_a_device(cache, placement),
        slots=slots,
        temporaries=temporary_bytes(config, slots),
        available=available_bytes(device),
    )


def temporary_bytes(config: DecoderConfig, slots: int) -> int:
    """An estimate of the workspace of one prompt of up to 512 tokens with a cache of `slots`."""
    prompt = min(PROMPT, slots)
    mixers = [layer.mixer for layer in config.layers if layer.mixer is not None]
    feeds = [layer.feed_forward for layer in config.layers if layer.feed_forward is not None]
    widest = max(
        prompt * config.width * config.streams,
        *(mixer.workspace(prompt, slots) for mixer in mixers),
        *(4 * feed.workspace(prompt) for feed in feeds),
    )
    return (widest + config.vocabulary) * 4


def available_bytes(device: Any = None) -> int | None:
    """Free bytes of a device (default: the first of this process), None if unknown.

    For a device that keeps no statistics, such as a CPU, this is the free memory of the machine.
    """
    stats = (device or jax.local_devices()[0]).memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return memory.available_bytes()


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
