"""Compile GEMV kernels for one target, in three ways, and print a JSON line for each:
`python -m tests.jax_triton.compile PLUGIN FOLDER TARGET PROGRAM...`.

A program is "TYPE MODE ROWS": a product of ROWS rows of 14336 activations with a weight of 4096
rows. The ways are "pallas", "xla" (the kernel in Triton's language, compiled by XLA) and "triton"
(compiled by Triton itself, as jax-triton does). FOLDER has Triton.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from pallas_kernels import jax_triton
from pallas_kernels.jax_triton import calls
from pallas_kernels.jax_triton.launch import launch
from pallas_kernels.qmatmul import Product, Weight, activations, gemv
from pallas_kernels.targets import Target
from tests.pallas_kernels.qmatmul.operands import abstract_weight
from tests.rocm import code_objects, compiler
from tests.rocm.targets import TARGETS

#: Inputs and outputs of the products: the last of a layer of Llama 3 8B, in several steps.
INPUTS, OUTPUTS = 14336, 4096


def main(plugin: str, folder: str, name: str, *programs: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    sys.path.append(folder)  # behind the installed packages
    target = Target("rocm", name)
    for way, compile in WAYS.items():
        if way == "pallas":  # Triton's compiler crashes in a process that has loaded XLA's
            compiler.load_plugin(Path(plugin))
        for program in programs:
            x, weight = operands(program)
            record = {"program": f"{program} {way}", "target": name, "jax": jax.__version__}
            print(json.dumps(record | numbers_of(compile(x, weight, target))), flush=True)


def operands(program: str):
    """The activations and the weight of a program, abstract."""
    name, mode, rows = program.split()
    x = jax.ShapeDtypeStruct((int(rows), INPUTS), jnp.float32)
    acts = jax.eval_shape(lambda x: activations.quantize_reference(x, mode), x)
    return acts, abstract_weight(name, OUTPUTS, INPUTS)


def by_pallas(x, weight, target):
    def product(x, planes):
        products = [Product((Weight(planes, weight.packing),))]
        return gemv.multiply(x, products, jnp.float32, target)

    return _compiled_by_xla(product, x, weight, target)


def by_xla(x, weight, target):
    def product(x, planes):
        how = dict(mode=x.mode, dtype=jnp.float32, target=target)
        return jax_triton.multiply(x, Weight(planes, weight.packing), **how)

    return _compiled_by_xla(product, x, weight, target)


def by_triton(x, weight, target):
    import triton
    from triton.backends.compiler import GPUTarget

    work = launch(x, weight, target)
    types = calls.types_of((*work.arrays, x.scale))
    compiled = triton.compile(
        calls.source(types, work.constants),
        target=GPUTarget("hip", target.architecture, target.wave),
        options=dict(num_warps=work.warps, num_stages=1, enable_fp_fusion=True),
    )
    return compiled.asm["hsaco"]


WAYS = {"triton": by_triton, "pallas": by_pallas, "xla": by_xla}


def _compiled_by_xla(function, x, weight, target):
    card = TARGETS[target.architecture]
    arguments = x, weight.planes
    lowered = compiler.lower(jax.jit(function), arguments, compiler.device(card), "rocm", card.isa)
    executable = lowered.compile()._executable.xla_executable
    (code,) = (
        code
        for code in code_objects.code_objects(executable.serialize())
        if any("multiply" in kernel.name for kernel in code_objects.kernels(code))
    )
    return code


def numbers_of(code: bytes) -> dict:
    """What a code object of one kernel says."""
    (kernel,) = code_objects.kernels(code)
    return {
        "triple": kernel.target,
        "vgprs": kernel.vgprs,
        "sgprs": kernel.sgprs,
        "lds": kernel.lds,
        "spills": kernel.spills,
        "scratch": kernel.scratch,
        "signed_dot4s": code_objects.signed_dot4s(code),
        "loop_bytes": code_objects.loop_bytes(code),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
