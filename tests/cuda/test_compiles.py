"""What runs on NVIDIA GPUs compiles with XLA's own CUDA compiler, into registers. Nothing here runs on one."""

import pytest

from pallas_kernels import targets
from rocmforge_jax.quant import groups
from tests.cuda import cubins
from tests.rocm import compiler, programs
from tests.rocm.test_compiles import MIXTURES, PRODUCTS

pytestmark = pytest.mark.cuda

STEPS = ("demo prefill", "demo decode", "llama-8b prefill", "llama-8b decode")
#: Bytes of memory in place of registers: none but what is named here.
STACK = {}


def layout_of(fmt) -> str:
    return "groups" if groups.can_hold(fmt) else "rows"


@pytest.mark.parametrize("name", [*STEPS, *PRODUCTS, *MIXTURES])
def test_compiles_into_registers(name, h100, monkeypatch):
    monkeypatch.setenv("ROCMFORGE_KERNELS", "auto")
    with targets.use(targets.Target("cuda", "9.0")):
        compiled = compiler.lower(*programs.program(name, layout_of), h100, "cuda", "NVIDIA H100").compile()
    kernels = cubins.kernels(compiled._executable.xla_executable.serialize())
    ours = {kernel for kernel in kernels if kernel.startswith(("multiply_", "quantize_"))}
    assert ours
    assert {kernel: used.stack for kernel, used in kernels.items() if used.stack > STACK.get(name, 0)} == {}
