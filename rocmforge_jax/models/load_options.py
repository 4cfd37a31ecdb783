"""How a file is loaded: the checked arguments of `load`, `load_abstract` and `load_decoder`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from rocmforge_jax import settings
from rocmforge_jax.arguments import flag, integer, shown
from rocmforge_jax.backends import DEFAULT, Numerics, compute_dtype
from rocmforge_jax.backends.on_mesh import automatic, check_mesh
from rocmforge_jax.models.patterns import Patterns, checked


def default_dtype(device: Any = None) -> Any:
    """Returns the dtype in which models compute: float32 on CPUs, bfloat16 on GPUs."""
    platform = jax.default_backend() if device is None else device.platform
    return jnp.float32 if platform == "cpu" else jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """What `load` takes beside the path, checked when it is made.

    Attributes:
        dtype: Of the computation, default `default_dtype()`.
        cache_dtype: Of the keys and values in caches, default `dtype`.
        activations: See `Decoder`.
        backend: See `Decoder`.
        layout: Of the planes, default the one that is fast on the device.
        context_length: See `read_config`.
        device: Where the weights go, default JAX's default device: see `device_of`.
        mesh: The devices that share the model, see `Shares`; default one device.
        layers: How many of the first layers are loaded, default all.
        dequantize: Patterns of the tensors that become dense, in `dtype`: see `matching`.
        strict: Whether unknown keys of the architecture are refused instead of warned about.
        nextn: Whether the blocks for multi-token prediction are loaded as well.
        numerics: How the decoder computes, from the options above.

    Raises:
        ValueError: A value is none that the option can have.
        TypeError: A value is of another type.
    """

    dtype: DTypeLike | None = None
    cache_dtype: DTypeLike | None = None
    activations: str = DEFAULT.activations
    backend: str | None = None
    layout: str | None = None
    context_length: int | None = None
    device: Any = None
    mesh: Mesh | None = None
    layers: int | None = None
    dequantize: Patterns = None
    strict: bool = False
    nextn: bool = False
    numerics: Numerics = dataclasses.field(init=False)

    def __post_init__(self):
        def put(name, value):
            object.__setattr__(self, name, value)

        put("device", device_of(self.device))
        if self.mesh is not None and self.device is not None:
            raise ValueError(f"give device or mesh, not both: {self.device} and {self.mesh}")
        put("mesh", None if self.mesh is None else check_mesh(self.mesh))
        put("dtype", compute_dtype(default_dtype(self.first) if self.dtype is None else self.dtype))
        put("dequantize", checked(self.dequantize))
        put("strict", flag("strict", self.strict))
        put("nextn", flag("nextn", self.nextn))
        if self.layers is not None:
            put("layers", integer("layers", self.layers, 1))
        if self.layers is not None and self.nextn:
            raise ValueError(
                f"layers={self.layers} leaves out what the blocks for multi-token prediction read:"
                " give either layers or nextn=True"
            )
        put("numerics", self._numerics())

    @property
    def first(self) -> Any:
        """The device, or one of the mesh of this process; None for JAX's default device."""
        return self.device if self.mesh is None else self.mesh.local_devices[0]

    def _numerics(self) -> Numerics:
        backend = settings.backend() if self.backend is None else self.backend
        device: Any = self.first
        if backend == "auto" and device is not None and device.platform != jax.default_backend():
            backend = "xla"  # the others ask what JAX's default device can do
        several = self.mesh is not None and self.mesh.size > 1
        mesh = automatic(self.mesh) if self.mesh is not None and several else None
        dtype: Any = self.dtype
        return Numerics(dtype, self.activations, backend, self.cache_dtype, mesh)


#: JAX's names for platforms of GPUs.
_GPUS = ("gpu", "rocm", "cuda")


def device_of(device: Any) -> Any:
    """Returns the device that an argument means.

    Args:
        device: A device of this process; its name, such as "cpu:1" or "cuda:0"; or a platform, such
            as "cpu", for its first device. None stays None.

    Raises:
        ValueError: There is no such device, with those that there are.
        TypeError: It is neither a device nor a text.
    """
    if device is None or isinstance(device, jax.Device):
        return device
    if not isinstance(device, str):
        raise TypeError(
            f'device is a jax.Device or a text such as "cpu:1", got {shown(device)}; mesh= takes'
            " several devices"
        )
    platform, _, number = device.lower().partition(":")
    try:
        found = jax.local_devices(backend=platform) if platform else []
    except RuntimeError:
        found = []
    if not found or (number and not number.isdecimal()) or int(number or 0) >= len(found):
        there = found or jax.local_devices()
        names = ", ".join(f"{one.platform}:{i}" for i, one in enumerate(there))
        no_gpu = platform in _GPUS and all(one.platform == "cpu" for one in there)
        hint = ". No GPU is visible: run `rocmforge-jax doctor`" if no_gpu else ""
        raise ValueError(f"there is no device {shown(device)}; there are {names}{hint}")
    return found[int(number or 0)]
