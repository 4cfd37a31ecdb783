"""Writes GGUF files with the writer of the gguf package."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.gguf.container import ALIGNMENT_KEY, read_container
from rocmforge_jax.gguf.entries import NUMBERS, STRING

_TYPE_IDS = {name: type_id for type_id, (name, _) in NUMBERS.items()} | {"string": STRING}
_FLOAT32_MAX = float(np.finfo("float32").max)
_INTEGERS = ("int32", "uint32", "int64", "uint64")


def write_gguf(
    path: str | os.PathLike,
    metadata: Mapping,
    tensors: Mapping,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a GGUF file, version 3, little endian.

    An existing file is replaced only when the new one is complete.

    NumPy scalars and arrays in the metadata keep their type. A Python int becomes uint32 and a list
    of ints int32, or a wider type if needed. A float becomes float32, or float64 beyond its range.
    A bool becomes bool; str and bytes become string.

    Args:
        path: The file to write.
        metadata: Key -> value.
        tensors: Name -> (format or its name, row-major array). The array holds values in the dtype
            of an unquantised format, or the blocks of any format as uint8 [..., row bytes]. It may
            be an object with `shape` and `dtype` that NumPy converts when it is written.
        progress: Called with (bytes written, bytes in all) after each tensor.

    Raises:
        ValueError: A value has no GGUF type, a list is empty (the gguf package writes none), or an
            array does not match its format.
        GGUFError: A reader would reject the file, for example because a name is too long.
    """
    from gguf import GGUFWriter  # a slow import

    path = Path(path)
    unfinished = path.with_name(f"{path.name}.unfinished")
    writer = GGUFWriter(unfinished, arch="")
    for key, value in metadata.items():
        _add_value(writer, key, value)
    sizes = [_add_tensor(writer, name, *tensor) for name, tensor in tensors.items()]
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for i, (_, array) in enumerate(tensors.values(), 1):
            writer.write_tensor_data(np.ascontiguousarray(np.asarray(array)).view(np.uint8))
            if progress is not None:
                progress(sum(sizes[:i]), sum(sizes))
        writer.close()
        read_container(unfinished)
        os.replace(unfinished, path)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)


def _add_value(writer, key, value):
    from gguf import GGUFValueType

    if key == ALIGNMENT_KEY:
        writer.add_custom_alignment(int(value))
        return
    value, type_name, is_array = _typed(key, value)
    value_type = GGUFValueType(_TYPE_IDS[type_name])
    if is_array:
        writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=value_type)
    else:
        writer.add_key_value(key, value, value_type)


def _typed(key, value):
    """Returns a value as a Python object, its GGUF type's name, and whether it is an array."""
    if isinstance(value, np.ndarray | np.generic):
        is_array, type_name = (
            value.ndim > 0,
            ("string" if value.dtype.kind in "UST" else value.dtype.name),
        )
        value = value.tolist()
    else:
        is_array = isinstance(value, list | tuple)
        type_name = _narrowest(value) if is_array else _narrowest([value], "uint32")
    if type_name not in _TYPE_IDS or is_array and (not value or isinstance(value[0], list)):
        raise ValueError(
            f"{key!r}: no GGUF type for {value!r:.100}: give a number, bool, str, or a list or"
            " NumPy array of one of these"
        )
    return value, type_name, is_array


def _narrowest(values, *preferred):
    """Returns the first GGUF type that holds all of `values` (Python objects), or None."""
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return "bool"
    if kinds <= {str, bytes}:
        return "string"
    if kinds == {int}:

        def fits(name):
            return np.iinfo(name).min <= min(values) and max(values) <= np.iinfo(name).max

        return next(filter(fits, (*preferred, *_INTEGERS)), None)
    if kinds <= {int, float}:
        return (
            "float32"
            if all(abs(value) <= _FLOAT32_MAX for value in values if math.isfinite(value))
            else "float64"
        )
    return None


def _add_tensor(writer, name, which, array) -> int:
    """Registers a tensor with the writer and returns its size in bytes."""
    fmt, array = formats.get(which), _described(array)
    if fmt.ggml_id is None:
        raise ValueError(f"{name!r}: GGUF has no id for {fmt}")
    if not array.shape:
        raise ValueError(f"{name!r}: a tensor has at least one dimension, got a scalar")
    dtypes = [np.dtype(np.uint8)] + ([] if fmt.is_quantized else [np.dtype(fmt.fields[0].dtype)])
    if array.dtype not in dtypes:
        raise ValueError(
            f"{name!r}: {fmt} is written from an array of {' or '.join(map(str, dtypes))}, got"
            f" {array.dtype}"
        )
    *lead, last = array.shape
    row_bytes = last * np.dtype(array.dtype).itemsize
    try:
        elements = fmt.row_blocks(row_bytes) * fmt.block
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None
    nbytes = math.prod(lead) * row_bytes
    # Any dtype but uint8: for uint8 the package computes the shape from the type, and it does not
    # support all types.
    writer.add_tensor_info(
        name, (*lead, elements), np.dtype(np.int8), nbytes, raw_dtype=fmt.ggml_id
    )
    return nbytes


def _described(array):
    """An array, or an object that has the shape and dtype of one."""
    return array if hasattr(array, "shape") and hasattr(array, "dtype") else np.asarray(array)
