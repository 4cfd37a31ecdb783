"""What `kernel_report` says of a model: on a CPU, in the interpreter, with kernels switched off,
with one that fails its trial.
"""

import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax import formats
from rocmforge_jax.models import Decoder, DecoderConfig, kernel_report, load_decoder
from rocmforge_jax.models.config import MoEConfig
from rocmforge_jax.nn import RopeConfig
from rocmforge_jax.quant import kernels, trials

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
    """decoder(layout): two layers, four matrices packed, the others not."""
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
    return lambda layout="groups": load_decoder(
        small_file({"llama.block_count": 2}, tensors), layout=layout
    )


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    monkeypatch.delenv("ROCMFORGE_KERNELS", raising=False)


def of(report, *, name):
    return [
        (entry.kind, entry.operation, entry.implementation, entry.why)
        for entry in report
        if entry.name == name
    ]


def test_every_matrix_and_attention_are_named(decoder):
    """Under the file's names, in the order of the model; norms are no matrices."""
    report = kernel_report(decoder())
    matrices = [
        f"blk.{i}.{part}.weight"
        for i in range(2)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    ]
    assert {entry.name for entry in report} == {"token_embd.weight", *matrices, "attention"}
    counts = {
        name: sum(entry.name == name for entry in report)
        for name in {entry.name for entry in report}
    }
    assert all(
        count == (2 if name in PACKED or name == "attention" else 1)
        for name, count in counts.items()
    )


@pytest.mark.parametrize("layout", ["groups", "columns"])
def test_on_a_cpu_all_is_plain_xla(layout, decoder):
    if targets.current() is not None:
        pytest.skip("this machine has a GPU")
    report, why = (
        kernel_report(decoder(layout)),
        "the C++ products are not built (build it once with: rocmforge-jax build-native)",
    )
    assert {entry.implementation for entry in report} == {"xla"}
    assert of(report, name="blk.0.attn_q.weight") == [
        ("Q4_0", "few rows", "xla", why),
        ("Q4_0", "many rows", "xla", why),
    ]
    assert of(report, name="blk.0.attn_k.weight") == [
        ("float32", "product", "xla", "the weight is not packed")
    ]
    assert of(report, name="attention") == [
        ("float32", "one token", "xla", why),
        ("float32", "many tokens", "xla", why),
    ]


def test_in_the_interpreter_each_says_what_its_kernel_does(decoder):
    with targets.use(targets.INTERPRET):
        report = kernel_report(decoder())
    assert of(report, name="blk.0.ffn_down.weight") == [
        ("Q8_0", "few rows", "triton", "packed weight, int16 activations, interpret"),
        (
            "Q8_0",
            "many rows",
            "triton",
            "matrix units; from 65 rows on dequantised first, interpret",
        ),
    ]
    assert of(report, name="blk.0.attn_k.weight") == [
        ("float32", "product", "xla", "the weight is not packed")
    ]
    assert of(report, name="attention") == [
        (
            "float32",
            "one token",
            "triton",
            "reads the cache once for all heads of a group, interpret",
        ),
        ("float32", "many tokens", "triton", "flash attention, interpret"),
    ]


def test_what_chooses_experts_says_so_for_few_tokens():
    config = DecoderConfig(
        layers=1,
        width=32,
        hidden=32,
        heads=2,
        kv_heads=1,
        head_width=16,
        vocabulary=40,
        context_length=64,
        norm_epsilon=1e-5,
        rope=RopeConfig(16),
        moe=MoEConfig(experts=4, used=2, hidden=32),
    )
    model = Decoder(config, rngs=nnx.Rngs(0))
    with targets.use(targets.INTERPRET):
        report = kernel_report(model)
    assert of(report, name="blk.0.ffn_gate_inp.weight") == [
        ("float32", "few tokens", "triton", "norm, product and choice in two launches, interpret"),
        ("float32", "product", "xla", "the weight is not packed"),
    ]


def test_planes_that_no_kernel_reads(decoder):
    with targets.use(targets.INTERPRET):
        report = kernel_report(decoder("rows"))
    why = "Q4_0 planes lie in rows, kernels read groups"
    assert of(report, name="blk.1.attn_q.weight") == [
        ("Q4_0", "few rows", "xla", why),
        ("Q4_0", "many rows", "xla", why),
    ]


def test_switched_off(decoder, monkeypatch):
    monkeypatch.setenv("ROCMFORGE_KERNELS", "xla")
    with targets.use(targets.INTERPRET):
        report = kernel_report(decoder())
    packed = [entry for entry in report if entry.kind.startswith("Q") or entry.name == "attention"]
    assert len(packed) == 2 * len(PACKED) + 2
    assert {(entry.implementation, entry.why) for entry in packed} == {
        ("xla", "ROCMFORGE_KERNELS=xla")
    }
    assert all(entry.implementation == "xla" for entry in report)


def test_a_kernel_that_fails_its_trial(decoder, monkeypatch, tmp_path):
    """Its type is plain XLA's and the report says why; the others keep their kernels.

    One warning, as at its first use.
    """
    model = decoder()
    monkeypatch.setattr(targets, "of_device", lambda device: DEVICE)
    monkeypatch.setattr(trials, "_findings", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        kernels, "_error", lambda packing, mode, target: 1.0 if packing.bits == 8 else 0.0
    )
    monkeypatch.setattr("rocmforge_jax.nn.attention._kernel_error", lambda *args: 0.0)
    with pytest.warns(
        UserWarning, match="the kernel for Q8_0 and int16 activations is wrong"
    ) as warned:
        report = kernel_report(model)
    assert len(warned) == 1
    why = (
        f"the kernel for Q8_0 and int16 activations is wrong on {DEVICE}: its relative error is"
        " 1.0e+00, allowed 1e-04"
    )
    assert of(report, name="blk.0.ffn_down.weight") == [
        ("Q8_0", "few rows", "xla", why),
        ("Q8_0", "many rows", "xla", why),
    ]
    assert {
        entry.implementation
        for entry in report
        if entry.kind in ("Q4_0", "Q4_1") or entry.name == "attention"
    } == {"triton"}


def test_as_text_layers_that_agree_share_a_line(decoder):
    with targets.use(targets.INTERPRET):
        lines = str(kernel_report(decoder())).splitlines()

    def begin(start):
        return [line for line in lines if line.startswith(start)]

    few, many = begin("blk.*.attn_q.weight")
    assert few.split()[:6] == ["blk.*.attn_q.weight", "x2", "Q4_0", "few", "rows", "triton"]
    assert many.split()[:6] == ["blk.*.attn_q.weight", "x2", "Q4_0", "many", "rows", "triton"]
    assert [line.split()[:3] for line in begin("blk.*.ffn_down.weight")] == [
        ["blk.*.ffn_down.weight", "Q8_0", "few"],
        ["blk.*.ffn_down.weight", "Q8_0", "many"],
        ["blk.*.ffn_down.weight", "float32", "product"],
    ]
    assert len({line.index("  triton  ") for line in lines if "  triton  " in line}) == 1
    assert not begin("blk.0") and not begin("blk.1")
