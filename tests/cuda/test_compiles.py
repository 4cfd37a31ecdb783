"""What runs on NVIDIA GPUs compiles with XLA's own CUDA compiler, into registers. Nothing here runs on one."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import samples, targets
from pallas_kernels.qmatmul.api import Product, Weight, multiply
from pallas_kernels.qmatmul.blocks import Tile
from rocmforge_jax import formats
from rocmforge_jax.quant import groups
from tests.cuda import cubins
from tests.rocm import compiler, programs
from tests.rocm.test_compiles import MIXTURES, PRODUCTS

pytestmark = pytest.mark.cuda

H100 = targets.Target("cuda", "9.0")
STEPS = ("demo prefill", "demo decode", "llama-8b prefill", "llama-8b decode", "qwen3-30b-a3b decode")
#: Bytes of memory in place of registers: none but what is named here.
STACK = {}


def layout_of(fmt) -> str:
    return "groups" if groups.can_hold(fmt) else "rows"


def compiled(device, jitted, args) -> dict[str, cubins.Kernel]:
    executable = compiler.lower(jitted, args, device, "cuda", "NVIDIA H100").compile()
    return cubins.kernels(executable._executable.xla_executable.serialize())


@pytest.mark.parametrize("name", [*STEPS, *PRODUCTS, *MIXTURES])
def test_compiles_into_registers(name, h100, monkeypatch):
    monkeypatch.setenv("ROCMFORGE_KERNELS", "auto")
    with targets.use(H100):
        kernels = compiled(h100, *programs.program(name, layout_of))
    ours = {kernel for kernel in kernels if kernel.startswith(("multiply_", "quantize_"))}
    assert ours
    assert {kernel: used.stack for kernel, used in kernels.items() if used.stack > STACK.get(name, 0)} == {}


def test_a_tile_that_is_too_large_does_not(h100):
    """So what reads the sizes can say no."""
    packing = groups.packing(formats.get("Q6_K"))
    planes = jax.eval_shape(lambda: samples.random_planes(jax.random.key(0), packing, 4096, 128))
    how = dict(mode="float", dtype=jnp.float32, target=H100, tile=Tile(4, 128))
    run = jax.jit(lambda x, planes: multiply(x, [Product((Weight(planes, packing),))], **how))
    kernel = compiled(h100, run, (jax.ShapeDtypeStruct((1, 4096), jnp.float32), planes))["multiply_float"]
    assert kernel.registers == 255 and kernel.stack > 0
