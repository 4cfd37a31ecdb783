"""The C++ backend for CPUs: finds, tries and calls the C++ library.

A wheel may contain the library. `rocmforge-jax build-native` compiles another one into the user's
cache folder, which takes precedence. That one is used only if it is current, that is, built from
this source for this version of JAX.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp

from pallas_kernels import samples, targets
from pallas_kernels.attention import AttentionRule
from pallas_kernels.attention.checks import require_kernel_rule
from pallas_kernels.dequantize import reference
from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul import Product, Weight
from rocmforge_jax import locate, settings
from rocmforge_jax.backends.choice import WrongDevice
from rocmforge_jax.backends.trials import Trials, relative_error
from rocmforge_jax.cpp import (
    attention,
    build,
    current,
    dense,
    library,
    packaged,
    products,
    recurrence,
    tuning,
)

#: Advice to users about a missing library.
REMEDY = "build it once with: rocmforge-jax build-native"
#: The largest relative error with which a product passes its trial, by mode of its activations.
_ALLOWED = {"int16": 1e-4, "int8": 2e-2}


def build_library() -> Path:
    """Compiles the library, unless there is a current one, and returns its file.

    Raises BuildError, with the last lines that the compiler printed.
    """
    return build.build(settings.cpp_folder())


def instructions() -> str:
    """Returns the name of the instruction set that the library uses on this processor.

    Raises:
        WrongDevice: JAX computes on something other than a CPU.
        NotImplementedError: The library is not built or does not load.
    """
    if jax.default_backend() != "cpu":
        device = jax.default_backend().upper()
        raise WrongDevice(f"backend 'cpp' needs a CPU; this device is a {device}")
    if (target := targets.current()) is not None:
        raise WrongDevice(f"backend 'cpp' needs a CPU; this is traced for {target}")
    return _loaded(file())


def file() -> Path:
    """Returns the file of the library, or raises NotImplementedError if there is none."""
    if (found := find()) is None:
        raise NotImplementedError(f"the C++ library is not built ({REMEDY})")
    return found


def advice() -> str | None:
    """Returns why a CPU computes slowly, with the remedy; None if it does not, or on a GPU."""
    try:
        instructions()
    except WrongDevice:
        return None
    except NotImplementedError as reason:
        return f"plain XLA computes, several times slower than C++: {reason}"
    return None


def usable() -> bool:
    """Returns whether the library is built and loads on this machine."""
    try:
        return bool(instructions())
    except NotImplementedError:
        return False


def require_mode(mode: str) -> None:
    """Raises NotImplementedError, with the reason, unless products support a mode here."""
    instructions()
    if mode not in products.MODES:
        known = " or ".join(products.MODES)
        raise NotImplementedError(f"C++ products turn activations into {known}, not {mode}")


def require_packing(packing: Packing, mode: str) -> None:
    """Tries the products of a packing on this processor before their first use.

    Raises NotImplementedError, with the reason, if they do not work.
    """
    require_mode(mode)
    products.require_form(packing)
    what = f"the C++ product for {packing} and {mode} activations"
    _trials().require(what, functools.partial(_error, packing, mode), _ALLOWED[mode])


def check_attention(q, keys, rule: AttentionRule) -> None:
    """Raises NotImplementedError, with the reason, unless attention supports the operands here."""
    instructions()
    require_kernel_rule(rule)
    if others := [str(array.dtype) for array in (q, keys) if array.dtype != jnp.float32]:
        raise NotImplementedError(f"attention in C++ computes in float32, not {others[0]}")


def try_all(packings: Iterable[Packing]) -> None:
    """Tries every packing and mode now. A failure causes a warning, as at the first use."""
    for packing in packings:
        for mode in _ALLOWED:
            with contextlib.suppress(NotImplementedError):
                require_packing(packing, mode)


def tune(packings: Iterable[Packing]) -> dict[library.Prefetch, float]:
    """Measures which prefetch is fastest here, uses it from now on, and saves it to a file.

    Args:
        packings: The packings of the matrices to measure.

    Returns:
        The bytes per second that products read with each prefetch.

    Raises:
        NotImplementedError: The library is not built or does not load.
    """
    instructions()
    found = file()
    measured = tuning.measure(found, packings)
    tuning.remember(_tuned(found), found)
    return measured


def _tuned(found: Path) -> Path:
    """Returns the file that stores the prefetch of a library on this kind of processor."""
    return locate.compiled_folder("tuned") / f"{found.stem}.json"


def multiply(x_MK, wanted, *, mode: str, dtype, norm=None, epsilon: float = 0.0) -> list[jax.Array]:
    """Computes several products of x: see `rocmforge_jax.cpp.products.multiply`."""
    return _multiply(x_MK, wanted, norm, mode, jnp.dtype(dtype), epsilon)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _multiply(x_MK, wanted, norm, mode, dtype, epsilon):
    outputs = products.multiply(x_MK, wanted, mode=mode, norm=norm, epsilon=epsilon)
    return [y.astype(dtype) for y in outputs]


@functools.partial(jax.jit, static_argnames="transposed")
def multiply_dense(x_MK, weight, *, transposed: bool) -> jax.Array:
    """Computes x @ weight, a dense matrix: see `rocmforge_jax.cpp.dense.multiply`."""
    return dense.multiply(x_MK, weight, transposed=transposed)


takes_dense = dense.takes
find = current.find
attend = attention.attend
rotate_and_store = attention.rotate_and_store
delta_step = recurrence.delta_step
scan_step = recurrence.scan_step


def _loaded(found: Path) -> str:
    """Loads the library and returns its instructions, or raises NotImplementedError."""
    used, problem = _load(found)
    if problem:
        raise NotImplementedError(problem)
    return used


@functools.cache
def _load(found: Path) -> tuple[str, str | None]:
    """Loads the library; returns (instructions, None), or ("", problem) after one warning."""
    try:
        used = library.load(found)
        tuning.recall(_tuned(found), found)
        return used, None
    except Exception as error:  # a loader may raise anything
        text = f"{type(error).__name__}: {str(error)[:500]}"
        problem = f"the C++ library {found.name} does not load: {text}"
        warnings.warn(f"{problem}. Plain XLA is used instead; {REMEDY}.", stacklevel=3)
        return "", problem


def _trials() -> Trials:
    return _trials_of(file(), instructions())


@functools.cache
def _trials_of(found: Path, used: str) -> Trials:
    name = f"{found.stem}-{used.replace(' ', '-')}.passed"
    if found == packaged.find():  # works with several versions of JAX; the folder is not the user's
        name = f"jax-{jax.__version__}-{name}"
        return _trials_in(settings.cpp_folder() / name, used)
    return _trials_in(found.with_name(name), used)


def _trials_in(file: Path, used: str) -> Trials:
    return Trials(file, f"this processor ({used})", f"To try another build, {REMEDY}")


def _error(packing, mode: str) -> jax.Array:
    """Returns the largest relative error of small products: few rows, many rows, experts."""
    planes = samples.random_planes(jax.random.key(0), packing, 2 * 37, 40)
    dense = reference.dequantize(planes, packing).reshape(2, 37, -1)
    stack = {name: plane.reshape(2, 37, *plane.shape[1:]) for name, plane in planes.items()}
    first = Weight({name: plane[0] for name, plane in stack.items()}, packing)
    many, experts = jax.random.normal(jax.random.key(1), (19, 40 * 32)), jnp.array([1, 0, 1])
    few, chosen = many[:3], Product((Weight(stack, packing),), experts=experts)
    cases = [
        (few, Product((first,)), dense[:1].repeat(3, 0)),
        (many, Product((first,)), dense[:1].repeat(19, 0)),
        (few, chosen, dense[experts]),
    ]

    def error(x, product, weights):
        exact = jnp.einsum("mk,mnk->mn", x, weights, precision="highest")
        (found,) = _multiply(x, [product], None, mode, jnp.dtype("float32"), 0.0)
        return relative_error(found, exact)

    return jnp.stack([error(*case) for case in cases]).max()
