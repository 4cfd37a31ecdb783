"""Caps on what a file may claim, so that no file costs more than a second and 64 MB to refuse.

ggml's own caps come first; the others are ours, each far above the largest file known. They bound time and memory together.
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
#: Ours; a model has about 50 keys.
MAX_KEYS = 2**14
#: Ours, for the names of all keys together; a model has about 2 KB.
MAX_KEY_BYTES_TOGETHER = 2**24
#: Ours; the largest models have about 2,000.
MAX_TENSORS = 2**15
#: Ours, for the strings of all arrays together; a large vocabulary has 300,000 tokens and 500,000 merges.
MAX_STRINGS = 2**21
#: Ours: metadata and tensor table together; the largest known have 30 MB. ggml allows as much for a single string (GGUF_MAX_STRING_LENGTH).
MAX_HEADER_BYTES = 2**30
#: Ours; the largest models are in about 200 files. Each takes one file descriptor, of which a process often has 1024.
MAX_SPLITS = 512
