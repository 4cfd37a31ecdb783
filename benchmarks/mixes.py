"""Which type each matrix of a file has: one for all, or a mix of llama.cpp's quantize."""

#: The mixes that files are known by -> the type of most matrices. Any other name is a type for all
#: of them.
MIXES = {"Q4_K_M": "Q4_K", "MXFP4_MOE": "Q8_0"}


#: The type of matrices whose rows are no whole number of a type's blocks.
_OF_OTHER_ROWS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


def fitting(type_name: str, row: int) -> str:
    """Returns the type, or as llama.cpp's quantize does, another for a row that has no blocks."""
    return _OF_OTHER_ROWS.get(type_name, type_name) if row % 256 else type_name


def type_of(name: str, layers: int, tied: bool, mix: str) -> str:
    """Chooses the type of a tensor as llama.cpp's `llama_tensor_get_type` does.

    Args:
        name: of the tensor in the file, such as "blk.3.attn_v.weight".
        layers: layers of the model.
        tied: whether the embedding is the head as well.
        mix: such as "Q4_K_M".
    """
    mix = mix.upper()
    if mix not in MIXES:
        return mix
    if mix == "MXFP4_MOE":
        return "MXFP4" if "_exps" in name else "Q8_0"
    if name == ("token_embd.weight" if tied else "output.weight"):
        return "Q6_K"
    _, _, rest = name.partition("blk.")
    layer, _, kind = rest.partition(".")
    more = kind in ("attn_v.weight", "ffn_down.weight") and _use_more_bits(int(layer), layers)
    return "Q6_K" if more else MIXES[mix]


def _use_more_bits(layer: int, layers: int) -> bool:
    """Whether attn_v and ffn_down of a layer get more bits.

    They do in the first and last eighth of the layers and in every third one between.
    """
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
