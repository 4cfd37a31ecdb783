"""What runs on NVIDIA GPUs compiles with XLA's own CUDA compiler, into registers.

Nothing here runs on one.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import samples, targets
from pallas_kernels.qmatmul import Product, Weight, multiply
from pallas_kernels.qmatmul.blocks import Tile
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.cuda import cubins
from tests.rocm import compiler, programs
from tests.rocm.test_compiles import (
    DELTA_RULES,
    DELTA_STEPS,
    EPILOGUES,
    MIXTURES,
    PRODUCTS,
    RINGS,
    SCAN_STEPS,
    SCANS,
)

pytestmark = pytest.mark.cuda

H100 = targets.Target("cuda", "9.0")
STEPS = (
    "demo prefill",
    "demo decode",
    "llama-8b prefill",
    "llama-8b decode",
    "qwen3-30b-a3b decode",
)
#: Bytes of memory in place of registers: none but what is named here. In the skinny GEMM of 90
#: groups, which need a mask, and in steps of memories of 256 x 256: measured with JAX 0.10.2.
STACK = {"gpt-oss MXFP4": 8, "delta-step 256": 8}


def layout_of(fmt) -> str:
    return "groups" if word_packed.can_hold(fmt) else "rows"


def compiled(device, jitted, args, **options) -> dict[str, cubins.Kernel]:
    executable = compiler.lower(jitted, args, device, "cuda", "NVIDIA H100").compile(
        compiler_options=options
    )
    return cubins.kernels(executable._executable.xla_executable.serialize())


@pytest.mark.parametrize("name", [*STEPS, *PRODUCTS, *EPILOGUES, *MIXTURES])
def test_compiles_into_registers(name, h100):
    with targets.use(H100):
        kernels = compiled(h100, *programs.program(name, layout_of))
    of_gemv = {
        kernel
        for kernel in kernels
        if kernel.startswith(("multiply_int", "multiply_float", "quantize_"))
    }
    assert of_gemv and all(kernels[kernel].lets_next_begin for kernel in of_gemv)
    check_all(kernels, name)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        *((name, "decode_attention") for name in RINGS),
        *((name, "delta_step") for name in DELTA_STEPS),
        *((name, "delta_solve") for name in DELTA_RULES),
        *((name, "scan_step") for name in SCAN_STEPS),
        *((name, "scan_read") for name in SCANS),
    ],
)
def test_other_kernels_compile_into_registers(name, kernel, h100):
    with targets.use(H100):
        kernels = compiled(h100, *programs.program(name, layout_of))
    assert kernel in kernels
    check_all(kernels, name)


def check_all(kernels, name):
    """All kernels wait for the launch before, and use no memory in place of registers."""
    # XLA's part of launches that begin early: what does not wait would read what is not written
    # yet. Its sorts do not, nor are they begun early.
    assert {
        kernel
        for kernel, used in kernels.items()
        if not used.waits and not kernel.startswith("sort_")
    } == set()
    assert {
        kernel: used.stack for kernel, used in kernels.items() if used.stack > STACK.get(name, 0)
    } == {}


def test_rows_of_pairs_are_not_computed_for_each_number_that_is_gathered(h100):
    """XLA would fuse a sum over experts into the gather of their outputs, and repeat it there."""
    with targets.use(H100):
        jitted, args = programs.program("qwen3-30b-a3b prefill", layout_of)
        text = compiler.lower(jitted, args, h100, "cuda", "NVIDIA H100").compile().as_text()
    computations = re.split(r"\n(?=%|ENTRY)", text)
    gathering = [one for one in computations if re.search(r"= (f32|bf16)\S+ gather\(", one)]
    assert gathering and not any("reduce-window(" in one for one in gathering)


def product(tile=None):
    """A jitted product of floats with 4096 x 4096 in Q6_K, and its abstract operands."""
    packing = word_packed.packing(formats.get("Q6_K"))
    planes = jax.eval_shape(lambda: samples.random_planes(jax.random.key(0), packing, 4096, 128))
    how = dict(mode="float", dtype=jnp.float32, target=H100, tile=tile)
    run = jax.jit(lambda x, planes: multiply(x, [Product((Weight(planes, packing),))], **how))
    return run, (jax.ShapeDtypeStruct((1, 4096), jnp.float32), planes)


def test_a_tile_that_is_too_large_does_not(h100):
    """So what reads the sizes can say no."""
    kernel = compiled(h100, *product(Tile(8, 128, load_first=True)))["multiply_float"]
    assert kernel.registers == 255 and kernel.stack > 0


def test_without_early_launches_none_waits(h100):
    """So what reads instructions can say no."""
    kernels = compiled(h100, *product(), xla_gpu_enable_pdl=False)
    assert kernels and not any(kernel.waits for kernel in kernels.values())
