"""The table of architectures: a name, and the function that reads a file's configuration.

A new one is an entry in `families`, or a call of `register` in a notebook:

    register(Architecture("mymodel", functools.partial(llama_like, attention=dict(qk_norm="head"))))
"""

import dataclasses
import difflib
from collections.abc import Callable

from rocmforge_jax.gguf import GGUFError, GGUFFile
from rocmforge_jax.models import families
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.keys import KeyReader


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A value of general.architecture.

    Attributes:
        name: The value.
        read: Makes the configuration from a file's keys.
        ignored_keys: Keys (without the architecture's prefix) that change nothing here -> why.
    """

    name: str
    read: Callable[[KeyReader], DecoderConfig]
    ignored_keys: dict[str, str] = dataclasses.field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {}

#: Keys of any architecture that describe and do not shape the model -> why they are not read.
DESCRIPTIVE_KEYS = {
    "rope.scaling.finetuned": "a note on training",
    "tensor_data_layout": "the reader needs no hint",
}
#: Keys that change nothing while they have one of these values. With another value the key is
#: unknown here, which is a warning.
NEUTRAL_VALUES = {
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "attention.shared_kv_layers": (0,),
    "attention.sliding_window": (0,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_length_per_layer_input": (0,),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "expert_weights_norm": (False,),
    "leading_dense_block_count": (0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}


def register(architecture: Architecture) -> None:
    """Makes an architecture known to `load`, in place of an entry of the same name."""
    ARCHITECTURES[architecture.name] = architecture


for _name, (_read, _ignored) in families.FAMILIES.items():
    register(Architecture(_name, _read, _ignored))


def find(name: str | None) -> Architecture:
    """Returns the architecture of a name; GGUFError names the nearest ones."""
    if name is None:
        raise GGUFError("the file has no general.architecture: it holds no model")
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0)
        raise GGUFError(
            f"the architecture {name!r} is not supported; the nearest are {', '.join(near)}"
        )
    return ARCHITECTURES[name]


def read_config(
    gguf: GGUFFile, context_length: int | None = None
) -> tuple[DecoderConfig, dict[str, str]]:
    """Returns a file's configuration, and the architecture's keys that were not used.

    Each of these keys maps to the reason, or to "unknown".

    Args:
        gguf: The file.
        context_length: Tokens that the model is opened for, default what it was trained for.
            LongRoPE has other factors for a long context.
    """
    architecture = find(gguf.architecture)
    try:
        keys = KeyReader(gguf, context_length)
        config = architecture.read(keys)
    except GGUFError:
        raise
    except ValueError as error:
        raise GGUFError(f"{gguf.path}: {error}") from None
    reasons = DESCRIPTIVE_KEYS | architecture.ignored_keys
    unused = {
        f"{architecture.name}.{key}": reasons.get(key) or _neutral(key, value)
        for key, value in keys.unread().items()
    }
    return dataclasses.replace(config, architecture=architecture.name), unused


def _neutral(key: str, value) -> str:
    """Returns why a key changes nothing with its value, or "unknown"."""
    neutral = NEUTRAL_VALUES.get(key, ())
    same = any(type(value) is type(one) and value == one for one in neutral)
    return f"{value} changes nothing" if same else "unknown"
