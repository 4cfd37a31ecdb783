"""A checkpoint of Orbax is restored in another process, packed weights and all."""

import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

import rocmforge_jax as rf
from tests.import_graph import ROOT

RESTORE = """
import sys
import jax, numpy as np, orbax.checkpoint as ocp
from flax import nnx
import rocmforge_jax as rf

structure, state = nnx.split(rf.load("demo", progress=False).model)
abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
with ocp.StandardCheckpointer() as checkpointer:
    model = nnx.merge(structure, checkpointer.restore(sys.argv[1], abstract))
leaves = jax.tree.leaves(nnx.state(model))
np.savez(sys.argv[2], *map(np.asarray, leaves))
"""


def test_a_changed_model_comes_back_in_another_process(tmp_path):
    model = rf.load("demo", progress=False).model
    model.output_norm.scale.set_value(1.5 * model.output_norm.scale.get_value())
    state = nnx.state(model)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", state)
    found = tmp_path / "found.npz"
    command = [sys.executable, "-c", RESTORE, str(tmp_path / "checkpoint"), str(found)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with np.load(found) as arrays:
        for array, leaf in zip(arrays.values(), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(array, np.asarray(leaf))
