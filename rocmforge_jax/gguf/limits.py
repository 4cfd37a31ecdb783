"""Limits on the counts and sizes in a file.

They ensure that rejecting a malicious file costs at most a second and 64 MB. ggml's own limits come
first. The others are ours, each far above the largest known file.
"""

#: ggml.h, GGML_MAX_DIMS.
MAX_DIMS = 4
#: ggml.h, GGML_MAX_NAME is 64 with the terminating zero.
MAX_NAME_BYTES = 63
#: gguf.md: "It can be at most 2^16-1 bytes long."
MAX_KEY_BYTES = 2**16 - 1
#: gguf.cpp stores counts, dims and tensor sizes in int64.
MAX_INT64 = 2**63 - 1
#: gguf.h, GGUF_DEFAULT_ALIGNMENT.
DEFAULT_ALIGNMENT = 32

#: Ours: 16 times the largest page size in use (64 KiB).
MAX_ALIGNMENT = 2**20
#: Ours; models have about 50.
MAX_KEYS = 2**14
#: Ours, for the total length of all keys; models have about 2 KB.
MAX_KEY_BYTES_TOGETHER = 2**24
#: Ours; models have tens to a few thousand.
MAX_TENSORS = 2**15
#: Ours, for all string arrays of a file; a vocabulary of 150,000 tokens has 150,000 merges too.
MAX_STRINGS = 2**21
#: Ours, for metadata and tensor table together; a vocabulary of 150,000 tokens has 6 MB. ggml
#: has the same limit for a single string.
MAX_HEADER_BYTES = 2**30
#: Ours; the largest models have a few dozen files. Each needs a file descriptor, and a process is
#: often limited to 1024.
MAX_SPLITS = 512
