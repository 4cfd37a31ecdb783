"""Looks up formats by name and by ggml id."""

import difflib
import re
import sys

from rocmforge_jax.formats import iq, k_quants, legacy, mx, plain, ternary
from rocmforge_jax.formats.format import Format

FORMATS: dict[str, Format] = {
    f.name: f for family in (plain, legacy, k_quants, iq, ternary, mx) for f in family.FORMATS
}
_BY_ID: dict[int, Format] = {f.ggml_id: f for f in FORMATS.values() if f.ggml_id is not None}
_BUILT_IN = frozenset(FORMATS.values())

#: Ids that ggml no longer uses. Files with them must be converted again.
REMOVED_IDS = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


#: llama.cpp's names for mixtures of types.
_MIXTURES = re.compile(r"(UD-)?(Q[2-8]_K_(XL|[SML])|IQ[1-4]_(M|XS|XL)|MXFP4_MOE)")


def register(format: Format) -> None:
    """Adds a format, which can then be used by its name or id.

    Raises:
        ValueError: The name is not in capitals, or another format has the name or the id.
    """
    if format.name != format.name.upper():
        raise ValueError(f"names of formats are in capitals, got {format.name!r}")
    if format.name in FORMATS:
        raise ValueError(f"there is a format named {format.name!r} already")
    if format.ggml_id in _BY_ID:
        raise ValueError(f"{_BY_ID[format.ggml_id]} has the ggml id {format.ggml_id} already")
    FORMATS[format.name] = format
    if format.ggml_id is not None:
        _BY_ID[format.ggml_id] = format


def unregister(format: Format) -> None:
    """Removes a format that `register` added.

    Raises:
        ValueError: The format is not registered, or is built in.
    """
    if format in _BUILT_IN:
        raise ValueError(f"{format.name} is one of ggml's formats, which stay")
    if FORMATS.get(format.name) is not format:
        raise ValueError(f"{format.name!r} is not registered")
    del FORMATS[format.name]
    if format.ggml_id is not None:
        del _BY_ID[format.ggml_id]
    if "jax" in sys.modules:
        # Traced functions are cached by the format's name, which another format may get next.
        sys.modules["jax"].clear_caches()


def _unknown(name: str) -> str:
    """Returns the message for a name that is no format."""
    if _MIXTURES.fullmatch(name.upper()):
        return (
            f"{name} is a mixture of types: give one type, such as Q4_K, or one for each pattern of"
            " tensor names, such as *.ffn_down=Q6_K (docs/export.md has an example)"
        )
    near = difflib.get_close_matches(name.upper(), FORMATS, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else "docs/formats.md lists them"
    return f"no format is named {name!r}; {hint}"


def get(which: str | int | Format) -> Format:
    """Returns the format with a name (any case) or a ggml type id.

    Raises:
        ValueError: The format is unknown. The message lists the nearest names, or says that ggml
            removed the id.
    """
    if isinstance(which, Format):
        return which
    if isinstance(which, str):
        if found := FORMATS.get(which.upper()):
            return found
        raise ValueError(_unknown(which))
    if which in REMOVED_IDS:
        raise ValueError(
            f"ggml type {which} was {REMOVED_IDS[which]}, which ggml no longer has: convert the"
            " model again"
        )
    if which not in _BY_ID:
        newer = ": a newer type, or a damaged file" if which > max(_BY_ID) else ""
        raise ValueError(f"no ggml type has id {which}; ids run from 0 to {max(_BY_ID)}{newer}")
    return _BY_ID[which]
