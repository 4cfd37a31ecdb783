"""What runs today compiles for AMD GPUs with XLA's own ROCm compiler. Nothing here runs on one."""

import pytest

from pallas_kernels import targets
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.rocm.targets import MAX_THREADS, TARGETS

pytestmark = pytest.mark.rocm

#: The engine's own jitted steps. Programs of one line share a process.
STEPS = [
    ("demo prefill", "demo decode"),
    ("llama-8b prefill", "llama-8b decode"),
    ("qwen3-30b-a3b decode",),
    ("plain demo prefill", "plain demo decode", "plain llama-8b prefill", "plain llama-8b decode"),
]
#: Products of every type that has kernels, at the shapes of the demo, an 8B and a 70B model, a few
#: rows and many, in each mode.
PRODUCTS = tuple(
    f"product {name}" for name, fmt in formats.FORMATS.items() if word_packed.can_hold(fmt)
)
MIXTURES = ("mixture Q4_K", "mixture Q6_K", "mixture MXFP4", "gpt-oss MXFP4")
#: Scales, biases and activation functions after products.
EPILOGUES = ("epilogue Q4_0", "epilogue MXFP4")
#: Attention with windows, soft caps, sinks and without a causal mask, by width of heads.
ATTENTION = ("attention 128", "attention 256", "attention 512")
#: Decode from ring buffers, likewise, of tokens that rotate and that do not.
RINGS = ("ring 64", "ring 128", "ring 256")
#: Steps of delta nets, by width of heads.
DELTA_STEPS = ("delta-step 32", "delta-step 128", "delta-step 256")
#: Many tokens of delta nets, by width of heads.
DELTA_RULES = ("delta-rule 32", "delta-rule 128")
#: Steps of state spaces, by family.
SCAN_STEPS = ("scan-step granite", "scan-step falcon", "scan-step nemotron")
#: Many tokens of state spaces, likewise.
SCANS = ("scan granite", "scan falcon", "scan nemotron")
DEQUANTIZE = tuple(
    f"dequantize {name}" for name, fmt in formats.FORMATS.items() if fmt.is_quantized
)
#: Bytes of the keys and values of `llama-8b`: two layers, 8 KV heads of 128, 4096 slots, bfloat16.
CACHE_BYTES = 2 * 2 * 8 * 128 * 4096 * 2
#: Bytes of its smallest matrix over the whole width, 4096 x 4096, in bfloat16.
DENSE_BYTES = 4096 * 4096 * 2
#: And the codes of its largest, the head, a byte each.
CODES_BYTES = 4096 * 128256
#: Registers that may spill. In prefill: in XLA's own fusion of an RMSNorm with the residual sums
#: before it, whose tile of 8 x 4096 is too large for waves of 32. That costs some time, once for
#: each piece of a prompt. Measured: 52 and 51 with JAX 0.10.2, 75 and 57 with 0.12. In
#: attention with heads of 512: gfx11 spilled with all of the sizes tried. Measured: 1292 in nine
#: kernels with JAX 0.10.2.
SPILLS = {
    "llama-8b prefill": {"gfx1100": 75, "gfx1201": 57},
    "plain llama-8b prefill": {"gfx1100": 75, "gfx1201": 57},
    "attention 512": {"gfx1100": 1292},
}


def programs(*groups, where=lambda name: True):
    """Parameters for each program, with those it shares a process with."""
    chosen = [
        pytest.param(name, group, id=name) for group in groups for name in group if where(name)
    ]
    return pytest.mark.parametrize(("name", "group"), chosen)


@pytest.fixture(params=TARGETS)
def target(request):
    return TARGETS[request.param]


@pytest.fixture
def record(compiled, target, name, group):
    record = compiled(target.isa, group)[name]
    assert "error" not in record, record["error"]
    return record


@programs(
    *STEPS,
    PRODUCTS,
    EPILOGUES,
    MIXTURES,
    ATTENTION,
    RINGS,
    DELTA_STEPS,
    SCAN_STEPS,
    DEQUANTIZE,
)
def test_compiles_within_the_limits_of_the_target(record, target, name):
    """Code for this target and no other, for everything that is launched.

    Threads, local data share and registers suffice.
    """
    (triple,) = record["targets"]
    assert triple.endswith(target.triple)
    assert record["kernels"] > 0
    assert not record["launched_without_code"]
    assert 0 < record["threads_max"] <= MAX_THREADS
    assert record["lds_max"] <= target.lds
    assert record["spills"] <= SPILLS.get(name, {}).get(target.isa, 0)


@pytest.mark.parametrize(
    "target",
    [isa for isa in TARGETS if targets.Target("rocm", isa).multiplies_float32],
    indirect=True,
)
@programs(DELTA_RULES, SCANS)
def test_many_tokens_of_recurrences_do_not_spill(record):
    """Elsewhere plain XLA computes them."""
    assert record["spills"] == 0


@programs(*STEPS, PRODUCTS, EPILOGUES, MIXTURES, where=lambda name: not name.endswith("prefill"))
def test_products_with_kernels_are_integer_dot_products(record, name):
    """Of four bytes at a time, by one instruction.

    Without kernels there are none, so what counts them can say no.
    """
    assert (record["signed_dot4s"] > 0) == (not name.startswith("plain"))


@programs(*STEPS)
def test_nothing_is_done_as_on_a_cpu(record, name):
    """The cache is written without the condition that XLA:CPU needs: a prefill has no other."""
    assert "decode" in name or record["conditionals"] == 0


@pytest.mark.parametrize(
    ("name", "group", "dense"),
    [("llama-8b decode", STEPS[1], DENSE_BYTES), ("plain llama-8b decode", STEPS[3], CODES_BYTES)],
    ids=["kernels", "plain"],
)
def test_a_decode_step_writes_its_cache_in_place_and_no_dense_weight(record, dense):
    """Plain XLA does write the codes of one weight, a byte each.

    With JAX 0.12 only sums of the head's groups, 132 to 263 MB.
    """
    assert record["donated_bytes"] >= CACHE_BYTES
    assert record["temp_bytes"] < dense
