"""Locates the key-value pairs of a file.

Keys, types and lengths are checked here. The values are decoded later, from the mapped file.
"""

from typing import NamedTuple

from rocmforge_jax.gguf.cursor import HeaderCursor
from rocmforge_jax.gguf.errors import quoted
from rocmforge_jax.gguf.limits import MAX_KEY_BYTES, MAX_KEY_BYTES_TOGETHER, MAX_KEYS

#: Number types of `enum gguf_type` in gguf.h: id -> (name, code of the struct module and of NumPy).
NUMBERS = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
STRING, ARRAY = 8, 9
_SIZES = {
    code: size for size, codes in {1: "Bb?", 2: "Hh", 4: "Iif", 8: "Qqd"}.items() for code in codes
}
_SMALLEST_PAIR = 8 + 1 + 4 + 1


class Entry(NamedTuple):
    """The type of a value and its place in the file.

    Attributes:
        type: The type of the value, or of the items of an array.
        count: The length of an array; None for a single value.
        code: The type's code in the struct module; "" for strings.
        start: The offset of the first byte of the value.
        stop: The offset after its last byte.
    """

    type: str
    count: int | None  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.count
    code: str
    start: int
    stop: int

    def __str__(self):
        return self.type if self.count is None else f"array[{self.type}] x {self.count}"


def read_entries(cursor: HeaderCursor, count: int) -> dict[str, Entry]:
    """Reads the next `count` key-value pairs and returns their entries by key.

    Raises:
        GGUFError: A key is empty, too long, repeated or not UTF-8, or a type is invalid.
    """
    if count > MAX_KEYS:
        cursor.refuse(f"the header claims {count} keys, the most is {MAX_KEYS}", 16)
    cursor.expect(count * _SMALLEST_PAIR, f"a header with {count} keys")
    entries, together = {}, 0
    for index in range(count):
        start = cursor.position
        key = cursor.text(f"key {index}", MAX_KEY_BYTES)
        if not key:
            cursor.refuse(f"key {index} is empty", start)
        if key in entries:
            cursor.refuse(
                f"key {index} is {quoted(key)} again, first found with its value at byte"
                f" {entries[key].start}",
                start,
            )
        together += len(key)
        if together > MAX_KEY_BYTES_TOGETHER:
            cursor.refuse(
                f"the first {index + 1} keys have {together} bytes of names, the most is"
                f" {MAX_KEY_BYTES_TOGETHER}",
                start,
            )
        entries[key] = _read_entry(cursor, key)
    return entries


def _read_entry(cursor, key):
    value_type = cursor.number("I", f"the type of {quoted(key)}")
    if value_type == ARRAY:
        item_type = cursor.number("I", f"the item type of {quoted(key)}")
        return _read_extent(
            cursor, key, item_type, cursor.number("Q", f"the length of {quoted(key)}")
        )
    return _read_extent(cursor, key, value_type, None)


def _read_extent(cursor, key, value_type, count):
    start, items = cursor.position, 1 if count is None else count
    if value_type == STRING:
        cursor.skip_strings(items, quoted(key))
        return Entry("string", count, "", start, cursor.position)
    if value_type == ARRAY:
        cursor.refuse(
            f"{quoted(key)} is an array of arrays, which ggml does not read either", start - 12
        )
    if value_type not in NUMBERS:
        cursor.refuse(
            f"{quoted(key)} has type {value_type}, types run from 0 to {max(NUMBERS)}",
            start - (4 if count is None else 12),
        )
    name, code = NUMBERS[value_type]
    cursor.skip(items * _SIZES[code], f"{quoted(key)}, {name} x {items},")
    return Entry(name, count, code, start, cursor.position)
