"""The products in C++ of `rocmforge_jax.cpp` as the implementation "native", for CPUs.

The library is compiled once, by `rocmforge-jax build-native`, into the user's cache folder, and
used from then on where it is current: made from this source for this JAX. Before its first use on a
kind of processor it has multiplied a small matrix of every packing, compared with float32's; a file
beside it remembers that. One that fails is named in a warning, once, and plain XLA stands in.
"""

import concurrent.futures
import contextlib
import functools
import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp

from pallas_kernels import samples, targets
from pallas_kernels.dequantize import reference
from pallas_kernels.qmatmul.api import Product, Weight
from rocmforge_jax.cpp import build
from rocmforge_jax.cpp import library as cpp_library
from rocmforge_jax.cpp import products as api
from rocmforge_jax.locate import cache_folder
from rocmforge_jax.quant import word_packed

#: What to say where there is no library.
HOW = "build it once with: rocmforge-jax build-native"
#: Largest relative error of a product that works, by mode of the activations.
_ERRORS = {"int16": 1e-4, "int8": 2e-2}


def folder() -> Path:
    """Where the library is: in the user's cache folder, or where ROCMFORGE_CPP_FOLDER says."""
    named = os.environ.get("ROCMFORGE_CPP_FOLDER")
    return Path(named) if named else cache_folder() / "cpp"


def find() -> Path | None:
    """The library, None where none is built from this source for this JAX."""
    return _find(folder())


def build_library() -> Path:
    """Compile the library, or find it -> its file.

    RuntimeError, with the compiler's last lines, where that fails.
    """
    library = build.build(folder())
    _find.cache_clear()
    return library


def instructions() -> str:
    """Which instructions the products use here.

    NotImplementedError, with the reason, where they cannot be used.
    """
    if jax.default_backend() != "cpu":
        raise NotImplementedError(
            f"the C++ products are for CPUs, this is a {jax.default_backend()}"
        )
    if (target := targets.current()) is not None:
        raise NotImplementedError(f"the C++ products are for CPUs, this is traced for {target}")
    if (library := find()) is None:
        raise NotImplementedError(f"the C++ products are not built ({HOW})")
    used, problem = _loaded(library)
    if problem:
        raise NotImplementedError(problem)
    return used


def usable() -> bool:
    try:
        return bool(instructions())
    except NotImplementedError:
        return False


def wanted(activations: str | None = None) -> bool:
    """Whether products with a mode of activations (default: the default) are the library's, where
    their planes allow it.
    """
    from rocmforge_jax.quant import kernels  # which needs flax

    return (
        "native" in kernels.kernel_order()
        and (activations or kernels.DEFAULT_MODE) in api.MODES
        and usable()
    )


def require(*weights, mode: str, rows: int = 1) -> None:
    """NotImplementedError, with the reason, for products that the library cannot do."""
    instructions()
    if mode not in api.MODES:
        raise NotImplementedError(
            f"the C++ products turn activations into {' or '.join(api.MODES)}, not {mode}"
        )
    if rows < 1:
        raise NotImplementedError("there is no row to multiply")
    for weight in weights:
        if not hasattr(weight, "type_name"):
            raise NotImplementedError("the weight is not packed")
        if weight.layout != "groups":
            raise NotImplementedError(
                f"{weight.type_name} planes lie in {weight.layout}, the C++ products read groups"
            )
        if not weight.transposed:
            raise NotImplementedError(
                "the weight is seen as it is stored, the C++ products multiply with its transpose"
            )


def require_float32(*operands) -> None:
    """NotImplementedError, with the reason, where attention in C++ cannot be used."""
    instructions()
    if other := [str(a.dtype) for a in operands if a.dtype != jnp.float32]:
        raise NotImplementedError(f"attention in C++ computes in float32, not {other[0]}")


def multiply(
    x_MK, wanted: list[Product], *, mode: str, dtype, norm=None, epsilon: float = 0.0
) -> list[jax.Array]:
    """`rocmforge_jax.cpp.products.multiply`, traced once for all layers of the same shapes.

    In `dtype`.
    """
    packings = tuple(tuple(weight.packing for weight in product.weights) for product in wanted)
    planes = [[weight.planes for weight in product.weights] for product in wanted]
    rest = [(product.bias, product.residual) for product in wanted]
    return _multiply(x_MK, planes, rest, norm, packings, mode, jnp.dtype(dtype), epsilon)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _multiply(x_MK, planes, rest, norm, packings, mode, dtype, epsilon):
    wanted = [
        Product(tuple(map(Weight, of_one, packing)), *others)
        for of_one, packing, others in zip(planes, packings, rest)
    ]
    return [
        y.astype(dtype) for y in api.multiply(x_MK, wanted, mode=mode, norm=norm, epsilon=epsilon)
    ]


@functools.cache
def _find(where: Path) -> Path | None:
    return build.find(where)


@functools.cache
def _loaded(library: Path) -> tuple[str, str | None]:
    """(instructions, None), or what is wrong with a library, which is also said in a warning."""
    used, problem = "", None
    try:
        used = cpp_library.load(library)
        passed = library.with_name(f"{library.stem}-{used.replace(' ', '-')}.passed")
        if not passed.exists():
            problem = _problem()
            if problem is None:
                with contextlib.suppress(
                    OSError
                ):  # a folder that is read only: every process tries
                    passed.touch()
    except Exception as error:  # whatever a loader or the code itself says
        problem = f"{type(error).__name__}: {str(error)[:500]}"
    if problem is not None:
        problem = f"the C++ products of {library.name} do not work here: {problem}"
        warnings.warn(f"{problem}. Plain XLA stands in; {HOW}.", stacklevel=2)
    return used, problem


def _problem() -> str | None:
    """What is wrong with the products of every packing and mode, None if nothing is."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # where nothing is being traced
        for packing in word_packed.packings():
            for mode, allowed in _ERRORS.items():
                error = thread.submit(_error, packing, mode).result()
                if not error <= allowed:
                    return (
                        f"{packing} with {mode} activations has a relative error of {error:.1e},"
                        f" allowed {allowed:.0e}"
                    )
    return None


def _error(packing, mode: str) -> float:
    """Relative error of a small product."""
    planes, x = _sample(packing)
    (y,) = _multiply(
        x, [[planes]], [(None, None)], None, ((packing,),), mode, jnp.dtype("float32"), 0.0
    )
    exact = jnp.dot(x, reference.dequantize(planes, packing).T, precision="highest")
    return float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact))


@functools.partial(jax.jit, static_argnums=0)
def _sample(packing):
    return samples.random_planes(jax.random.key(0), packing, 37, 40), jax.random.normal(
        jax.random.key(1), (3, 40 * 32), jnp.float32
    )
