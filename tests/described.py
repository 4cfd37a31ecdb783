"""GPUs that are not there, as jax is told of them."""

import contextlib

import jax


def as_if_on(platform: str, kind: str):
    """A context in which Pallas lowers for a device of a platform and a kind, as jax names them:
    from JAX 0.11 on it asks the abstract mesh.
    """
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
