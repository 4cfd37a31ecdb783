"""Compiles small tables of replacements as SentencePiece does, for tests."""

import itertools

import numpy as np


def charsmap(replacements: dict[str, str]) -> np.ndarray:
    """The bytes of `tokenizer.ggml.precompiled_charsmap` for texts and what replaces them."""
    trie: dict = {}
    texts, places = b"", {}
    for key, replacement in replacements.items():
        places[key.encode()] = len(texts)
        texts += replacement.encode() + b"\0"
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
    nodes: dict[int, int] = {0: 0}
    _place(trie, b"", 0, nodes, places)
    array = np.zeros(max(nodes) + 256, "<u4")
    array[list(nodes)] = list(nodes.values())
    data = array.nbytes.to_bytes(4, "little") + array.tobytes() + texts
    return np.frombuffer(data, np.uint8).copy()


def _place(children, prefix, node, nodes, places):
    """Finds room for the children of a node, which is index `node` ^ offset ^ byte for each."""
    ends = prefix in places
    taken = [*children, *([0] if ends else [])]
    offset = next(
        offset
        for offset in itertools.count(1)
        if all(node ^ offset ^ byte not in nodes for byte in taken)
    )
    nodes[node] |= offset << 10 | ends << 8
    base = node ^ offset
    if ends:
        nodes[base] = places[prefix]
    for byte in children:
        nodes[base ^ byte] = byte
    for byte, below in children.items():
        _place(below, prefix + bytes([byte]), base ^ byte, nodes, places)
