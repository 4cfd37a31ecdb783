"""The two ways from JAX to the kernel.

"xla"          Triton translates the kernel into its intermediate language, TTIR, and XLA's own
               compiler does the rest, as it does for Pallas's kernels. Needs no GPU to compile
"triton_call"  jax-triton compiles the kernel with Triton and launches the code. Needs a GPU to
               compile. The launcher of JAX's ROCm plugin has 64 threads per warp, which only gfx9
               has
"""

import functools

import jax
import numpy as np

from pallas_kernels.jax_triton.launch import Launch
from pallas_kernels.targets import Target

#: XLA's name for a kernel in TTIR.
_XLA_TRITON = "__gpu$xla.gpu.triton"
#: Triton's names of data types.
_TYPES = {
    "int8": "i8",
    "uint8": "u8",
    "uint16": "u16",
    "int32": "i32",
    "uint32": "u32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
}


def call_xla(work: Launch, out: jax.ShapeDtypeStruct, target: Target) -> jax.Array:
    """Run the kernel, compiled by XLA."""
    run = jax.ffi.ffi_call(_XLA_TRITON, out)
    sizes = dict(zip(("grid_x", "grid_y", "grid_z"), (*work.grid, 1)))
    sizes |= dict(num_warps=work.warps, num_stages=1)
    attributes = {name: np.int32(size) for name, size in sizes.items()}
    ir = _ttir(types_of((*work.arrays, out)), tuple(work.constants.items()), work.warps, target)
    return run(*work.arrays, name="multiply", ir=ir, debug=False, **attributes)


def call_jax_triton(work: Launch, out: jax.ShapeDtypeStruct, target: Target) -> jax.Array:
    """Run the kernel, compiled and launched by jax-triton.

    Raises:
        NotImplementedError: the GPU has warps of 32 threads.
    """
    if target.wave != 64:
        raise NotImplementedError(
            f"jax-triton launches 64 threads per warp, {target} has {target.wave}:"
            " use through='xla'"
        )
    multiply = _kernel()
    try:
        import jax_triton
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return jax_triton.triton_call(
        *work.arrays,
        kernel=multiply,
        out_shape=out,
        grid=work.grid,
        name="multiply",
        num_warps=work.warps,
        num_stages=1,
        **work.constants,
    )


CALLS = {"xla": call_xla, "triton_call": call_jax_triton}


def types_of(arrays) -> tuple[str, ...]:
    """Return Triton's names of the data types of arrays."""
    return tuple(_TYPES[str(np.dtype(array.dtype))] for array in arrays)


def source(types: tuple[str, ...], constants: dict):
    """Describe the kernel to Triton's compiler.

    Args:
        types: Triton's names of the data types of the arrays, the output last.
        constants: the constants of the kernel.
    """
    multiply = _kernel()
    from triton.compiler import ASTSource

    arrays = dict(zip(multiply.arg_names, (f"*{kind}" for kind in types)))
    return ASTSource(
        multiply,
        arrays | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(arrays))},
    )


@functools.cache
def _ttir(types, constants, warps: int, target: Target) -> str:
    """Translate the kernel into TTIR."""
    described = source(types, dict(constants))
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    gpu = GPUTarget("hip", target.architecture, target.wave)
    backend = make_backend(gpu)
    options = backend.parse_options(dict(num_warps=warps, num_stages=1, enable_fp_fusion=False))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options)
    module = described.make_ir(gpu, options, functions, backend.get_module_map(), context)
    # Without source locations: they would be part of the key of JAX's compilation cache.
    return backend.make_ttir(module, {}, options).str_nodebug()


def _kernel():
    """Import the kernel."""
    try:
        from pallas_kernels.jax_triton import kernel
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return kernel.multiply


def _missing(error: ModuleNotFoundError) -> ImportError:
    return ImportError(
        f"the kernel in Triton's language needs the package {error.name}:"
        " pip install 'rocmforge-jax[jax-triton]'"
    )
