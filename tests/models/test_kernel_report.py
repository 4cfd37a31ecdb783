"""What `kernel_report` lists: exactly what runs, on a CPU, in the interpreter, with one backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax import formats
from rocmforge_jax.backends import pallas, record
from rocmforge_jax.models import (
    Attention,
    Decoder,
    DecoderConfig,
    Mixture,
    kernel_report,
    load_decoder,
)
from rocmforge_jax.nn import RopeConfig, Routing

pytestmark = pytest.mark.core

DEVICE = targets.Target("interpret", "of this device")
PACKED = {
    "token_embd.weight": "Q4_1",
    "blk.0.attn_q.weight": "Q4_0",
    "blk.1.attn_q.weight": "Q4_0",
    "blk.0.ffn_down.weight": "Q8_0",
}


@pytest.fixture
def decoder(small_file):
    """Makes a decoder of two layers, with four matrices packed and the others not."""
    from tests.models.conftest import SMALL_SHAPES

    random = np.random.default_rng(2)
    shapes = SMALL_SHAPES | {
        name.replace("blk.0", "blk.1"): shape for name, shape in SMALL_SHAPES.items()
    }

    def plain(shape):
        return ("F32", random.normal(0, 0.2, shape).astype(np.float32))

    def packed(kind, shape):
        return (kind, formats.quantize(plain(shape)[1], kind))

    tensors = {
        name: packed(PACKED[name], shape) if name in PACKED else plain(shape)
        for name, shape in shapes.items()
    }

    def make(**options):
        options = {"layout": "groups"} | options
        return load_decoder(small_file({"llama.block_count": 2}, tensors), **options)

    return make


def of(report, *, name, tokens="one token", operation=None):
    return [
        (entry.kind, entry.operation, entry.backend, entry.why)
        for entry in report
        if entry.name == name and entry.tokens == tokens
        if operation is None or entry.operation == operation
    ]


def test_every_matrix_and_attention_are_named(decoder):
    """Under the file's names, in the order in which they are computed; norms are not matrices."""
    report = kernel_report(decoder())
    matrices = [
        f"blk.{i}.{part}.weight"
        for i in range(2)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    ]
    for tokens in ("one token", "many tokens"):
        entries = [entry for entry in report if entry.tokens == tokens]
        named = [name for entry in entries for name in entry.name.split(" + ")]
        assert set(named) == {"token_embd.weight", *matrices, "attention"}
        assert named.count("attention") == 2
        multiplied = [entry.name for entry in entries if entry.operation == "matmul"]
        assert multiplied == [*matrices, "token_embd.weight"]


def test_the_report_is_what_a_forward_pass_decides(decoder):
    """By construction; this holds it to what a traced step of the model itself chooses."""
    model = decoder()
    with targets.use(targets.INTERPRET):
        report = kernel_report(model)
        with record() as decisions:
            tokens = jnp.zeros((1, 1), jnp.int32)
            jax.eval_shape(lambda: model(tokens, model.init_cache(1, 8), last_only=True))
    expected = [(d.operation.name, d.choice.name, d.choice.reason) for d in decisions]
    found = [(e.operation, e.backend, e.why) for e in report if e.tokens == "one token"]
    assert found == expected


@pytest.mark.parametrize("layout", ["groups", "columns"])
def test_on_a_cpu_all_is_plain_xla(layout, decoder):
    if targets.current() is not None:
        pytest.skip("this machine has a GPU")
    report = kernel_report(decoder(layout=layout))
    assert {entry.backend for entry in report} == {"xla"}
    for tokens in ("one token", "many tokens"):
        options = dict(tokens=tokens, operation="matmul")
        ((kind, _, _, why),) = of(report, name="blk.0.attn_q.weight", **options)
        assert kind == "Q4_0" and "rocmforge-jax build-native" in why
        ((kind, _, _, why),) = of(report, name="blk.0.attn_k.weight", **options)
        few = tokens == "one token"
        assert kind == "float32" and (
            "rocmforge-jax build-native" in why if few else why == "the weight is not packed"
        )
        for kind, _, _, why in of(report, name="attention", tokens=tokens):
            assert kind == "float32" and "rocmforge-jax build-native" in why


def test_in_the_interpreter_each_says_what_its_kernel_does(decoder):
    with targets.use(targets.INTERPRET):
        report = kernel_report(decoder())
    name = "blk.0.ffn_down.weight"
    assert of(report, name=name) == [
        (
            "Q8_0",
            "products",
            "pallas",
            "1 product in one or two launches, int16 activations, interpret",
        )
    ]
    assert of(report, name=name, tokens="many tokens") == [
        ("Q8_0", "products", "xla", "128 rows, the fused kernels take 1 to 16"),
        ("Q8_0", "matmul", "pallas", "dequantised, then XLA's product, interpret"),
    ]
    ((kind, _, backend, why),) = set(of(report, name="attention"))
    assert (kind, backend) == ("float32", "pallas")
    assert "stores and reads the cache once for all heads of a group, interpret" in why
    ((_, _, _, why),) = set(of(report, name="attention", tokens="many tokens"))
    assert why.startswith("flash attention, interpret")


def test_a_fused_operation_that_cannot_run_says_why(decoder):
    """Two of the three products of one input are dense here, so the third is multiplied alone."""
    with targets.use(targets.INTERPRET):
        report = kernel_report(decoder())
    together = " + ".join(f"blk.0.attn_{part}.weight" for part in "qkv")
    assert of(report, name=together) == [
        ("Q4_0 + float32", "products", "xla", "a weight is not packed")
    ]
    assert of(report, name="blk.0.attn_q.weight") == [
        ("Q4_0", "matmul", "pallas", "packed weight, int16 activations, interpret")
    ]


def test_what_chooses_experts_says_so_for_few_tokens():
    config = DecoderConfig.uniform(
        1,
        Attention(2, 1, 16, RopeConfig(16)),
        Mixture(4, Routing(2, "softmax", True), 32),
        width=32,
        vocabulary=40,
        context_length=64,
        norm_epsilon=1e-5,
    )
    model = Decoder(config, rngs=nnx.Rngs(0))
    with targets.use(targets.INTERPRET):
        report = kernel_report(model)
    name = "blk.0.ffn_gate_inp.weight"
    launches = "norm, product and choice in two launches, interpret"
    assert of(report, name=name) == [("float32", "choice of experts", "pallas", launches)]
    assert of(report, name=name, tokens="many tokens", operation="choice of experts") == [
        ("float32", "choice of experts", "xla", "128 tokens, the kernels take 1 to 64")
    ]
    stacks = " + ".join(f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
    ((_, _, backend, why),) = of(report, name=stacks)
    assert (backend, why) == ("xla", "a stack of experts is not packed")


def test_planes_that_no_kernel_reads(decoder):
    with targets.use(targets.INTERPRET):
        report = kernel_report(decoder(layout="rows"))
    for tokens in ("one token", "many tokens"):
        ((kind, _, backend, why),) = of(
            report, name="blk.1.attn_q.weight", tokens=tokens, operation="matmul"
        )
        assert (kind, backend) == ("Q4_0", "xla") and "Q4_0 planes lie in rows" in why


def test_a_model_keeps_the_backend_that_it_was_made_with(decoder, monkeypatch):
    """The environment is read when a model is made, and never again."""
    monkeypatch.setenv("ROCMFORGE_BACKEND", "xla")
    made_then = decoder()
    monkeypatch.setenv("ROCMFORGE_BACKEND", "pallas")
    with targets.use(targets.INTERPRET):
        report = kernel_report(made_then)
        assert {entry.backend for entry in kernel_report(decoder(backend="xla"))} == {"xla"}
    assert {entry.backend for entry in report} == {"xla"}
    assert {entry.why for entry in report if entry.name == "attention"} == {
        "the backend xla is asked for"
    }
    assert decoder().numerics.backend == "pallas"


def test_a_kernel_that_fails_its_trial(decoder, monkeypatch, tmp_path):
    """Its type is plain XLA's and the report gives the reason; the others keep their kernels.

    There is one warning, as at its first use.
    """
    model = decoder()
    monkeypatch.setattr(targets, "of_device", lambda device: DEVICE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def error(what):
        return lambda: jnp.float32(1.0 if "Q8_0" in what else 0.0)

    require = pallas.require
    monkeypatch.setattr(
        pallas, "require", lambda what, _, allowed: require(what, error(what), allowed)
    )
    message = "the kernel for Q8_0 and int16 activations is wrong"
    with pytest.warns(UserWarning, match=message) as warned:
        report = kernel_report(model)
    assert len(warned) == 1
    for tokens in ("one token", "many tokens"):
        options = dict(tokens=tokens, operation="matmul")
        ((_, _, backend, why),) = of(report, name="blk.0.ffn_down.weight", **options)
        assert backend == "xla" and f"{DEVICE}: its relative error is 1.0e+00, allowed 1e-04" in why
    others = [e for e in report if e.operation == "attention" or e.operation == "matmul"]
    packed = [e.backend for e in others if e.kind in ("Q4_0", "Q4_1") or e.name == "attention"]
    assert set(packed) == {"pallas"}


def test_as_text_layers_that_agree_share_a_line(decoder):
    with targets.use(targets.INTERPRET):
        lines = str(kernel_report(decoder())).splitlines()
    words = [line.split() for line in lines if line.startswith("one token")]
    multiplied = [w for w in words if "matmul" in w and "blk.*.attn_q.weight" in w]
    assert [w[2:7] for w in multiplied] == [
        ["blk.*.attn_q.weight", "x2", "Q4_0", "matmul", "pallas"]
    ]
    down = [w[3] for w in words if w[2] == "blk.*.ffn_down.weight"]
    assert set(down) == {"Q8_0", "float32"}
    assert len({line.index("  pallas  ") for line in lines if "  pallas  " in line}) == 1
    assert not [line for line in lines if "blk.0" in line or "blk.1" in line]
