"""Products with packed weights: checks the operands, then runs the kernel."""

import jax
import numpy as np

from pallas_kernels.jax_triton.calls import CALLS
from pallas_kernels.jax_triton.launch import launch
from pallas_kernels.qmatmul import GEMV_ROWS, MODES, Activations, Weight, check_offsets
from pallas_kernels.qmatmul.activations import quantize_reference
from pallas_kernels.qmatmul.blocks import Tile
from pallas_kernels.targets import Target

#: Names of the dtypes of outputs.
DTYPES = ("float32", "bfloat16", "float16")


def multiply(
    x: jax.Array | Activations,
    weight: Weight,
    *,
    mode: str,
    dtype,
    target: Target | None,
    tile: Tile | None = None,
    through: str = "xla",
) -> jax.Array:
    """Multiply a few rows of activations with a packed weight (GEMV), like `qmatmul.multiply`.

    An array x is quantised by plain XLA. No part of the computation uses Pallas.

    Args:
        x: [M, K] of any float dtype, or Activations.
        weight: the weight, [N, K].
        mode: how x is quantised, one of `qmatmul.MODES`.
        dtype: the dtype of the output.
        target: the compilation target, an AMD GPU; None, which stands for no GPU, is refused.
        tile: the tile sizes; the default is the one of `qmatmul.multiply`.
        through: a key of `calls.CALLS`, which describes them.

    Returns:
        The product, [M, N].

    Raises:
        ImportError: jax-triton or Triton is not installed.
        NotImplementedError: the target is no AMD GPU, or not one for "triton_call"; there are no
            rows, or more than GEMV_ROWS; a norm comes first; or a plane is too large for 32-bit
            offsets.
        ValueError: the operands do not fit together.
    """
    if target is None or target.platform != "rocm":
        raise NotImplementedError(
            f"the kernel in Triton's language is for AMD GPUs, the target is {target}"
        )
    if through not in CALLS:
        raise ValueError(f"through is {' or '.join(CALLS)}, got {through!r}")
    if np.dtype(dtype).name not in DTYPES:
        raise ValueError(f"outputs are {', '.join(DTYPES)}, got {np.dtype(dtype).name}")
    x = _activations(x, mode)
    _check(x, weight)
    out = jax.ShapeDtypeStruct((x.rows, weight.rows), dtype)
    return CALLS[through](launch(x, weight, target, tile), out, target)


def _activations(x, mode) -> Activations:
    if mode not in MODES:
        raise ValueError(f"activations are {', '.join(MODES)}, got {mode!r}")
    if not isinstance(x, Activations):
        return quantize_reference(x, mode)
    if x.mode != mode:
        raise ValueError(f"the activations have mode {x.mode!r}, expected {mode!r}")
    if x.in_turn:
        raise ValueError("bytes of activations are in turn, those of AMD's kernels are not")
    return x


def _check(x: Activations, weight: Weight) -> None:
    if not 1 <= x.rows <= GEMV_ROWS:
        raise NotImplementedError(f"{x.rows} rows, the kernel takes 1 to {GEMV_ROWS}")
    if x.squares is not None:
        raise NotImplementedError("the kernel in Triton's language has no norm before the product")
    if (axes := weight.planes["codes"].ndim) != 3:
        raise ValueError(f"a product without experts has planes of 3 axes, got {axes}")
    if x.groups != weight.groups:
        raise ValueError(
            f"the activations have {x.groups} groups of 32 inputs, the weight has {weight.groups}"
        )
    check_offsets(weight.planes)
