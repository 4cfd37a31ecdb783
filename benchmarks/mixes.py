"""The type of each matrix of a file: one type for all, or a mix as in llama.cpp's quantize."""

#: Name of a mix -> the type of most matrices. Any other name is the type of all matrices.
MIXES = {"Q4_K_M": "Q4_K", "MXFP4_MOE": "Q8_0"}


#: Type -> the type that replaces it for matrices whose rows do not consist of whole blocks.
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
