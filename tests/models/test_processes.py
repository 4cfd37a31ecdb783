"""Two processes of `jax.distributed` load a model, each on its own devices, and share one."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import rocmforge_jax as rf
from rocmforge_jax.locate import DEMO
from tests.conftest import ROOT

pytestmark = pytest.mark.core
PROGRAM = """
import json, sys
import jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import jax.numpy as jnp
import rocmforge_jax as rf
from rocmforge_jax.models.place import Placer
lm = rf.load("demo", progress=False)
logits, _ = lm.model(jnp.array([[1, 2, 3]], jnp.int32))
text = lm.generate("ROMEO:", max_tokens=3, temperature=0).text
found = [jax.process_index(), jax.process_count(), len(jax.devices()), logits[0, -1, :5].tolist()]
read, make = [], Placer._value
Placer._value = lambda self, claim, data, device: (
    read.append(data.nbytes), make(self, claim, data, device)
)[1]
together = []
for sizes in ((1, 2), (2, 1)):
    read.clear()
    mesh = jax.make_mesh(sizes, ("data", "model"), devices=jax.devices())
    lm = rf.load("demo", mesh=mesh, activations="float", progress=False)
    answers = lm.generate(["ROMEO:", "To be"], max_tokens=3, temperature=0)
    together.append([sum(read), [answer.ids for answer in answers]])
print(json.dumps([*found, text, together]))
"""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="both processes would take the GPUs")
def test_two_processes_load_and_generate():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(i)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        printed = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], printed
    lm = rf.load("demo", progress=False)
    logits, _ = lm.model(np.array([[1, 2, 3]], np.int32))
    text = lm.generate("ROMEO:", max_tokens=3, temperature=0).text
    exact = rf.load("demo", activations="float", progress=False)
    answers = exact.generate(["ROMEO:", "To be"], max_tokens=3, temperature=0)
    size = sum(tensor.nbytes for tensor in rf.open_gguf(DEMO).tensors.values())
    for i, (out, _) in enumerate(printed):
        index, count, devices, found, continued, together = json.loads(out.splitlines()[-1])
        assert (index, count, devices) == (i, 2, 2) and continued == text
        np.testing.assert_allclose(found, logits[0, -1, :5], rtol=1e-4, atol=1e-4)
        (half, by_model), (whole, by_batch) = together
        assert by_model == by_batch == [answer.ids for answer in answers]
        assert 0.5 * size < half < 0.52 * size and whole == size  # norms are on every device
