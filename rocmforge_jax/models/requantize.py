"""Decoders with the same weights in other types: packed ones dense, dense ones packed."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.formats import Format
from rocmforge_jax.formats.quantizers import require_quantizer
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.models.claims import stays_packed, tensor_name
from rocmforge_jax.models.patterns import Patterns, matching
from rocmforge_jax.quant import QParam, default_layout, dequantize, quantize
from rocmforge_jax.quant.qtensor import value_of

#: A type, or one for each pattern of tensor names.
Types = str | int | Format | Mapping[str, str | int | Format]
#: Small matrices that llama-quantize keeps as they are, because their errors weigh most.
_KEPT = (
    *("ffn_gate_inp", "ffn_gate_inp_shexp", "altup_", "laurel_", "per_layer_model_proj"),
    *("position_embd", "token_types"),
)


def dequantized(decoder, names: Patterns = True, dtype=None):
    """Returns a decoder with dense weights in place of packed ones; all other arrays are shared.

    Args:
        decoder: Stays as it is.
        names: Patterns of the tensors: see `matching`.
        dtype: Of the dense weights, default that of the decoder's computation.

    Raises:
        ValueError: A pattern matches no packed weight.
    """
    dtype = decoder.numerics.dtype if dtype is None else dtype
    clone = nnx.clone(decoder)
    packed = {name: place for name, place in _matrices(clone) if _is_packed(*place)}
    for name in matching(names, packed):
        module, attribute = packed[name]
        setattr(module, attribute, nnx.Param(dequantize(getattr(module, attribute), dtype)))
    return clone


def requantized(decoder, type: Types, names: Patterns = True):
    """Returns a decoder with matrices packed in a type; all other arrays are shared.

    The routers of experts, learned positions, and other small matrices that llama-quantize keeps,
    are packed only where a pattern other than "*" names them. A matrix that has the type already
    stays.

    Args:
        decoder: Stays as it is.
        type: The type, or a mapping of patterns to types: the first pattern that matches a tensor
            counts. F32, F16 and BF16 make dense weights.
        names: Patterns of the tensors: see `matching`.

    Raises:
        NotImplementedError: There is no quantiser for a type.
        ValueError: A pattern matches no matrix, rows are not whole blocks (with the whole list), or
            values are too large for a type.
    """
    clone = nnx.clone(decoder)
    places = dict(_matrices(clone))
    for name, format in wanted_formats(clone, type, names).items():
        module, attribute = places[name]
        variable = getattr(module, attribute)
        if type_of(variable) != format.name:
            new = _packed(variable, format, attribute == "kernel", decoder.numerics)
            setattr(module, attribute, new)
    return clone


def wanted_formats(decoder, type: Types, names: Patterns = True) -> dict[str, Format]:
    """Returns the format of each matrix that `requantized` changes, and raises what it raises."""
    places = dict(_matrices(decoder))
    wanted = _wanted(type, names, places)
    for name, format in wanted.items():
        if type_of(getattr(*places[name])) != format.name:
            require_quantizer(format)
    _check_rows(places, wanted)
    return wanted


def type_of(variable: nnx.Variable) -> str:
    """Returns the name of the type that a variable's values have."""
    value: Any = value_of(variable)
    if isinstance(variable, QParam):
        return value.type_name
    return {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(str(value.dtype), "")


def _matrices(decoder) -> Iterator[tuple[str, tuple[nnx.Module, str]]]:
    """Yields the name and the place of each matrix that products read packed."""
    for path, module in nnx.iter_modules(decoder):
        for attribute, variable in list(vars(module).items()):
            if isinstance(variable, nnx.Variable) and stays_packed(
                module, attribute, variable.shape
            ):
                yield tensor_name((*path, attribute)), (module, attribute)


def _is_packed(module, attribute: str) -> bool:
    return isinstance(getattr(module, attribute), QParam)


def _wanted(types: Types, names: Patterns, places) -> dict[str, Format]:
    """Returns the format of each tensor that gets one."""
    if not isinstance(types, Mapping):
        format = formats.get(types)
        return {name: format for name in sorted(_named(names, places))}
    allowed = set(places) if names is True else matching(names, places)
    wanted: dict[str, Format] = {}
    for pattern, type in types.items():
        format = formats.get(type)
        for name in sorted(_named(pattern, places) & allowed - wanted.keys()):
            wanted[name] = format
    return wanted


def _named(patterns: Patterns, places) -> set[str]:
    """Returns the names that match, without those that are kept where all are meant."""
    if patterns is True or patterns == "*":
        return {name for name in places if not any(kept in name for kept in _KEPT)}
    return matching(patterns, places)


def _check_rows(places, wanted: dict[str, Format]) -> None:
    """Raises ValueError with all matrices whose rows are not whole blocks."""
    odd: dict[tuple[int, Format], list[str]] = {}
    for name, format in wanted.items():
        module, attribute = places[name]
        elements = getattr(module, attribute).shape[-2 if attribute == "kernel" else -1]
        if elements % format.block:
            odd.setdefault((elements, format), []).append(name)
    if odd:
        groups = [
            f"{len(names)} with rows of {elements}, {format} blocks of {format.block}:"
            f" {listed(names, ', ', most=4)}"
            for (elements, format), names in odd.items()
        ]
        raise ValueError(
            f"rows of matrices are not whole blocks: {listed(groups)}. Give these another type,"
            " such as Q8_0 or IQ4_NL with blocks of 32, or F16"
        )


def _packed(variable, format: Format, is_kernel: bool, numerics) -> nnx.Variable:
    """Returns a variable of another type."""
    if format.is_quantized:
        layout = default_layout(format, numerics=numerics)
        return QParam(quantize(variable, format, transposed=is_kernel, layout=layout))
    value: Any = value_of(variable)
    dtype = np.dtype(format.fields[0].dtype)
    values = dequantize(value) if isinstance(variable, QParam) else value
    return nnx.Param(jnp.asarray(values).astype(dtype))
