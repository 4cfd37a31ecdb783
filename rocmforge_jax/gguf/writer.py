"""Writing GGUF files, on the writer of the gguf package."""

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
    """Write a GGUF file, version 3, little endian.

    A file that is there already is replaced once the new one is complete.

    metadata: key -> value. NumPy scalars and arrays keep their type. Of Python's, an int becomes
    uint32, a list of ints int32, either a wider type where it must; a float float32, or float64
    beyond its range; bool bool; str and bytes string. tensors: name -> (format or its name, array),
    row-major: values in the dtype of a format that is not quantised, or the blocks of any, uint8
    [..., row bytes]. An array may be an object with `shape` and `dtype`, of which NumPy makes an
    array when it is written. progress: called with (bytes written, bytes in all) after each tensor.

    ValueError for a value without a type, an empty list (the gguf package writes none) or an array
    that is not of its format; GGUFError for what no reader would accept, such as a name that is too
    long.
    """
    from gguf import GGUFWriter  # takes 0.3 s

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
    """A value as Python's own, the name of its GGUF type, and whether it is an array of that."""
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
    """Finds the first GGUF type that holds all of `values`, Python's own; None if none does."""
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
    """Announce a tensor to the writer. -> its bytes."""
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
    # any dtype but uint8: for that one the package would look the shape up, and it does not know
    # all types
    writer.add_tensor_info(
        name, (*lead, elements), np.dtype(np.int8), nbytes, raw_dtype=fmt.ggml_id
    )
    return nbytes


def _described(array):
    """An array, or an object that has the shape and dtype of one."""
    return array if hasattr(array, "shape") and hasattr(array, "dtype") else np.asarray(array)
