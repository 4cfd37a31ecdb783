"""The table of architectures: names, and functions that read the configuration of a file.

To add an architecture, add an entry in `families`, or call `register`, for example in a notebook:

    register(Architecture("mymodel", functools.partial(llama_like, attention=dict(qk_norm="head"))))
"""

import dataclasses
import difflib
import re
from collections.abc import Callable

from rocmforge_jax.gguf import GGUFError, GGUFFile
from rocmforge_jax.gguf.errors import listed, quoted, shortened
from rocmforge_jax.gguf.kinds import why_no_model
from rocmforge_jax.models import families
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.embedding_keys import with_embedding_keys
from rocmforge_jax.models.keys import KeyReader, MissingKeyError


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A supported architecture.

    Attributes:
        name: The value of general.architecture in files.
        read: Makes the configuration from a file's keys.
        ignored_keys: Keys that have no effect here, without the architecture's prefix -> reason.
        nextn: Whether the blocks for multi-token prediction are supported.
    """

    name: str
    read: Callable[[KeyReader], DecoderConfig]
    ignored_keys: dict[str, str] = dataclasses.field(default_factory=dict)
    nextn: bool = False


ARCHITECTURES: dict[str, Architecture] = {}

#: Keys of any architecture that do not affect the computation -> why they are not read.
DESCRIPTIVE_KEYS = {
    "rope.scaling.finetuned": "a note on training",
    "tensor_data_layout": "the reader needs no hint",
    "classifier.output_labels": "what a classifier's outputs are called",
    "embedding_length_out": "the width of embeddings that are no longer logits",
    "dense_2_feat_in": "the tensor shows it",
    "dense_2_feat_out": "the tensor shows it",
    "dense_3_feat_in": "the tensor shows it",
    "dense_3_feat_out": "the tensor shows it",
}
#: Keys that have no effect if they have one of these values. With another value, a key that is not
#: read causes a warning, because llama.cpp also ignores it in architectures that do not read it.
NEUTRAL_VALUES = {
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
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}


def register(architecture: Architecture) -> None:
    """Adds an architecture to the table that `load` uses; replaces an entry of the same name."""
    ARCHITECTURES[architecture.name] = architecture


for _name, (_read, _ignored) in families.FAMILIES.items():
    register(Architecture(_name, _read, _ignored, nextn=_name in families.WITH_NEXTN))


def find(name: str) -> Architecture:
    """Returns the architecture with the given name.

    Raises GGUFError for a name that is not in the table. If the name looks like a misspelling, the
    message suggests the right one.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = next((known for known in ARCHITECTURES if _is_typo(name, known)), None)
    raise GGUFError(
        f"{quoted(name)} is not in this version's table of {len(ARCHITECTURES)} architectures"
        + (f"; did you mean {near}?" if near else " (docs/architectures.md lists them)")
    )


def _is_typo(name: str, known: str) -> bool:
    """Returns whether a name is probably a misspelling of a known one, not another model.

    For example, qwen, qwen4 and qwen2vl are different models from qwen2, not misspellings of it.
    """
    digits, of_known = (re.sub(r"\D", "", text) for text in (name, known))
    if digits != of_known or name.startswith(known) or known.startswith(name):
        return False
    return difflib.SequenceMatcher(None, name.lower(), known.lower()).ratio() >= 0.8


def read_config(
    gguf: GGUFFile, context_length: int | None = None, *, nextn: bool = False
) -> tuple[DecoderConfig, dict[str, str]]:
    """Reads the configuration of a file.

    Args:
        gguf: The file.
        context_length: The context length in tokens with which the model is opened. Default: the
            context length of the training. LongRoPE uses other factors for a long context.
        nextn: Whether to include the blocks for multi-token prediction.

    Returns:
        The configuration, and the architecture's keys that were not used. Each of these keys maps
        to the reason, or to "unknown".

    Raises:
        GGUFError: The file contains no supported model, or keys are missing. The message lists all
            missing keys.
    """
    if why := why_no_model(gguf):
        raise GGUFError(f"{gguf.path}: {why}")
    try:
        architecture = find(gguf.architecture or "")
    except GGUFError as error:
        raise GGUFError(f"{gguf.path}: the architecture {error}") from None
    if not gguf.tensors:
        raise GGUFError(f"{gguf.path}: it has no tensors: it holds no model")
    if nextn and not architecture.nextn:
        raise GGUFError(
            f"{gguf.path}: blocks for multi-token prediction of {architecture.name} cannot be"
            " loaded: load it without nextn=True"
        )
    config, keys = _read_keys(architecture, gguf, context_length, nextn)
    if nextn and not config.nextn:
        raise GGUFError(
            f"{gguf.path}: it has no blocks for multi-token prediction"
            f" ({architecture.name}.nextn_predict_layers is 0): load it without nextn=True"
        )
    left = keys.unread()
    reasons = DESCRIPTIVE_KEYS | architecture.ignored_keys
    unused = {
        f"{architecture.name}.{key}": reasons.get(key) or _neutral(key, value)
        for key, value in left.items()
    }
    return dataclasses.replace(config, architecture=architecture.name), unused


def _read_keys(
    architecture: Architecture, gguf: GGUFFile, context_length: int | None, nextn: bool
) -> tuple[DecoderConfig, KeyReader]:
    """Returns the configuration, and the KeyReader with its record of the keys that were read.

    Assumed values replace missing keys, so that a single error can list all missing keys.
    """
    missing: dict[str, str] = {}
    while True:
        try:
            keys = KeyReader(gguf, context_length, assumed=missing, nextn=nextn)
            config = with_embedding_keys(keys, architecture.read(keys))
        except MissingKeyError as error:
            missing[error.key] = error.problem  # continue: other keys may be missing too
        except ValueError as error:
            if missing:
                break  # the assumed values may have caused this error
            known = isinstance(error, GGUFError)
            raise error if known else GGUFError(f"{gguf.path}: {shortened(str(error))}") from None
        else:
            if missing:
                break
            return config, keys
    raise GGUFError(f"{gguf.path}: {listed([*missing.values()])}")


def _neutral(key: str, value) -> str:
    """Returns why a key has no effect with this value, or "unknown"."""
    neutral = NEUTRAL_VALUES.get(key, ())
    same = any(type(value) is type(one) and value == one for one in neutral)
    return f"{value} changes nothing" if same else "unknown"
