"""Caps on what a file may claim, so that no file costs more than a second and 64 MB to refuse.

ggml's own caps come first; the others are ours, each far above the largest file known. They bound
time and memory together.
"""

#: ggml.h, GGML_MAX_DIMS.
MAX_DIMS = 4
#: ggml.h, GGML_MAX_NAME is 64 with the terminating zero.
MAX_NAME_BYTES = 63
#: gguf.md: "It can be at most 2^16-1 bytes long."
MAX_KEY_BYTES = 2**16 - 1
#: gguf.cpp holds counts, dims and tensor sizes in int64.
MAX_INT64 = 2**63 - 1
#: gguf.h, GGUF_DEFAULT_ALIGNMENT.
DEFAULT_ALIGNMENT = 32

#: Ours: 16 times the largest page size in use (64 KiB).
MAX_ALIGNMENT = 2**20
#: Ours; models have about 50.
MAX_KEYS = 2**14
#: Ours, for the names of all keys together; models have about 2 KB.
MAX_KEY_BYTES_TOGETHER = 2**24
#: Ours; models have tens to some thousands.
MAX_TENSORS = 2**15
#: Ours, for the strings of all arrays of a file; a vocabulary of 150,000 tokens has as many merges.
MAX_STRINGS = 2**21
#: Ours, for metadata and tensor table together; a vocabulary of 150,000 tokens has 6 MB. ggml
#: allows as much for one string.
MAX_HEADER_BYTES = 2**30
#: Ours; the largest models are in some dozens of files. Each takes a file descriptor, of which a
#: process often has 1024.
MAX_SPLITS = 512
