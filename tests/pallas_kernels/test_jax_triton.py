"""The kernel in Triton's language, as far as it goes without Triton: `make test-jax-triton`."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import instructions
from pallas_kernels.jax_triton import multiply
from pallas_kernels.jax_triton.launch import launch
from pallas_kernels.qmatmul import activations
from pallas_kernels.qmatmul.blocks import Tile
from pallas_kernels.targets import INTERPRET, Target
from tests.pallas_kernels.qmatmul.operands import abstract_weight

pytestmark = pytest.mark.core

GFX9, GFX11 = Target("rocm", "gfx942"), Target("rocm", "gfx1100")


def abstract(rows, inputs, mode):
    x = jax.ShapeDtypeStruct((rows, inputs), jnp.float32)
    return jax.eval_shape(lambda x: activations.quantize_reference(x, mode), x)


def run(x, weight, target=GFX9, mode="int16", dtype=jnp.float32, **how):
    return multiply(x, weight, mode=mode, dtype=dtype, target=target, **how)


@pytest.mark.parametrize("through", ["xla", "triton_call"])
def test_a_missing_package_is_named(through, monkeypatch):
    for name in ("triton", "jax_triton", "pallas_kernels.jax_triton.kernel"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'rocmforge-jax\[jax-triton\]'"):
        run(abstract(1, 256, "int16"), abstract_weight("Q4_K", 7, 256), through=through)


@pytest.mark.parametrize("target", [None, INTERPRET, Target("cuda", "9.0")], ids=str)
def test_other_targets_are_refused(target):
    with pytest.raises(NotImplementedError, match=f"AMD GPUs, the target is {target}"):
        run(abstract(1, 256, "int16"), abstract_weight("Q4_K", 7, 256), target)


def test_jax_triton_is_refused_where_it_launches_too_many_threads():
    with pytest.raises(NotImplementedError, match="64 threads per warp, rocm gfx1100 has 32"):
        run(
            abstract(1, 256, "int16"),
            abstract_weight("Q4_K", 7, 256),
            GFX11,
            through="triton_call",
        )


@pytest.mark.parametrize(
    ("rows", "inputs", "mode", "how", "error", "message"),
    [
        (17, 256, "int16", {}, NotImplementedError, "17 rows, the kernel takes 1 to 16"),
        (1, 512, "int16", {}, ValueError, "16 groups of 32 inputs, the weight has 8"),
        (1, 256, "int8", {}, ValueError, "mode 'int8', expected 'int16'"),
        (1, 256, "int16", {"mode": "int4"}, ValueError, "int16, int8, float, got 'int4'"),
        (1, 256, "int16", {"dtype": "float64"}, ValueError, "float16, got float64"),
        (1, 256, "int16", {"through": "mlir"}, ValueError, "xla or triton_call, got 'mlir'"),
    ],
)
def test_operands_that_do_not_fit(rows, inputs, mode, how, error, message):
    with pytest.raises(error, match=message):
        run(abstract(rows, inputs, mode), abstract_weight("Q4_K", 7, 256), **how)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"squares": jnp.ones((1, 8))}, NotImplementedError, "no norm"),
        ({"in_turn": True}, ValueError, "in turn"),
    ],
)
def test_activations_that_the_kernel_does_not_know(change, error, message):
    x = dataclasses.replace(abstract(1, 256, "int16"), **change)
    with pytest.raises(error, match=message):
        run(x, abstract_weight("Q4_K", 7, 256))


def test_experts_are_refused():
    with pytest.raises(ValueError, match="planes of 3 axes, got 4"):
        run(abstract(1, 256, "int16"), abstract_weight("Q4_K", 7, 256, experts=3))


@pytest.mark.parametrize(
    ("target", "instruction"),
    [
        (GFX9, "v_dot4_i32_i8 $0, $1, $2, $3"),
        (GFX11, "v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[1,1,0]"),
        (Target("rocm", "gfx1201"), "v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[1,1,0]"),
        (Target("rocm", "gfx1030"), "v_dot4_i32_i8 $0, $1, $2, $3"),
        (Target("cuda", "9.0"), "dp4a.s32.s32 $0, $1, $2, $3;"),
    ],
    ids=str,
)
def test_the_instruction_of_a_target(target, instruction):
    assert instructions.dot4(target) == instruction


def test_a_launch_covers_all_rows():
    """Programs of 4 rows of the weight for 10, and of 2 rows of activations for 5."""
    work = launch(
        abstract(5, 96, "int8"),
        abstract_weight("Q5_1", 10, 96),
        GFX11,
        Tile(4, 64, batch=2, warps=2),
    )
    assert (work.grid, work.warps) == ((3, 3), 2)
    sizes = {name: work.constants[name] for name in ("M", "N", "G", "R", "W", "BATCH", "PARTS")}
    assert sizes == {"M": 5, "N": 10, "G": 3, "R": 4, "W": 4, "BATCH": 2, "PARTS": 1}


@pytest.mark.parametrize(
    ("name", "mode", "values"),
    [
        ("IQ4_NL", "int16", [-127, -104, 1, 38, 113]),
        ("IQ4_NL", "float", [-127, -104, 1, 38, 113]),
        ("MXFP4", "float", [0, 6, 12, -1, -12]),
    ],
)
def test_the_bytes_of_a_table(name, mode, values):
    """Signed, or in mode "float" unsigned; less the offset they are ggml's values."""
    constants = launch(abstract(1, 64, mode), abstract_weight(name, 3, 64), GFX9).constants
    both = constants["LOW_TABLE"] | constants["HIGH_TABLE"] << 64
    entries = np.frombuffer(both.to_bytes(16, "little"), np.uint8 if mode == "float" else np.int8)
    assert set(values) < set((entries.astype(int) - constants["OFFSET"]).tolist())
