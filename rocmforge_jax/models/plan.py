"""How much memory a model will take on its device, before anything is loaded."""

import dataclasses

import jax
import numpy as np

from rocmforge_jax.gguf import GGUFFile
from rocmforge_jax.models.config import DecoderConfig

#: Tokens of a prompt that are computed at once, and slots of the cache, that the plan counts with.
PROMPT, SLOTS = 512, 4096


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device.

    weights: the packed planes. cache: keys and values of `slots` tokens. temporaries: an estimate
    of what a prompt of 512 tokens needs while it is computed. available: what the device has free,
    None where it does not say.
    """

    weights: int
    cache: int
    slots: int
    temporaries: int
    available: int | None

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.temporaries

    def check(self) -> None:
        """MemoryError, with the numbers, if the model cannot fit."""
        if self.available is not None and self.total > self.available:
            raise MemoryError(f"the model does not fit: {self}")

    def __str__(self):
        free = "unknown" if self.available is None else _gib(self.available)
        return (
            f"weights {_gib(self.weights)} + cache of {self.slots} tokens {_gib(self.cache)} +"
            f" temporaries {_gib(self.temporaries)} = {_gib(self.total)}, available {free}"
        )


def plan_memory(
    gguf: GGUFFile, config: DecoderConfig, dtype, *, context_length: int | None = None
) -> MemoryPlan:
    """The plan for one sequence.

    context_length: as for `load`; the cache is counted for at most 4096 of its tokens.
    """
    itemsize = np.dtype(dtype).itemsize
    slots = min(SLOTS, context_length or config.context_length)
    prompt = min(PROMPT, slots)
    widest = max(config.hidden, config.heads * config.head_width, config.width) * 4
    scores = prompt * slots * config.heads * 4 * 2
    return MemoryPlan(
        weights=sum(tensor.nbytes for tensor in gguf.tensors.values()),
        cache=2 * config.layers * config.kv_heads * config.head_width * slots * itemsize,
        slots=slots,
        temporaries=prompt * widest * 4 + scores + config.vocabulary * 4,
        available=available_bytes(),
    )


def available_bytes(device: jax.Device | None = None) -> int | None:
    """What a device (default: the first) has free; None where nobody says."""
    stats = (device or jax.devices()[0]).memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
    except OSError:
        return None
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
