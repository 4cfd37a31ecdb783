"""Sizes of programs, and that kernels lower for every GPU."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention import AttentionRule, blocks
from pallas_kernels.targets import INTERPRET, Target
from tests.pallas_kernels.attention.cases import decode_jit, prefill_jit
from tests.pallas_kernels.conftest import lowered_to_triton

pytestmark = pytest.mark.core

GPUS = [
    Target("cuda", "9.0"),
    *(Target("rocm", isa) for isa in ("gfx90a", "gfx942", "gfx1100", "gfx1201")),
]


@pytest.mark.parametrize(
    "target", [*GPUS, Target("rocm", "gfx1300"), Target("cuda", "12.0"), INTERPRET], ids=str
)
@pytest.mark.parametrize("table", ["DECODE", "PREFILL"])
def test_every_target_has_blocks(target, table):
    for itemsize in (2, 4):
        for width in (1, 64, 65, 80, 128, 129, 256, 257, 512):
            for slots in (100, 100_000):
                chosen = getattr(blocks, table).of(target, itemsize, width, slots, 100_000)
                assert (
                    1 <= chosen.warps(target)
                    and chosen.warps(target) * target.wave == chosen.threads <= 1024
                )
                assert all(
                    size >= 16 and size & (size - 1) == 0
                    for size in (chosen.slots, chosen.rows, chosen.threads)
                )


@pytest.mark.parametrize("table", ["DECODE", "PREFILL"])
def test_long_caches_are_read_in_larger_blocks(table):
    sizes = getattr(blocks, table)
    for target in GPUS:
        short = sizes.of(target, 2, 128, sizes.slots - 1, sizes.queries)
        long = sizes.of(target, 2, 128, sizes.slots, sizes.queries)
        assert (long.slots > short.slots) == (target == Target("cuda", "9.0"))
        assert long.slots == short.slots or long.programs <= short.programs
        assert sizes.of(target, 2, 128, sizes.slots, sizes.queries - 1) == short


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize(
    ("run", "q", "kernels"),
    [
        (decode_jit, (2, 14, 80), 2),
        (prefill_jit, (2, 19, 14, 80), 1),
        (decode_jit, (2, 14, 512), 2),
        (prefill_jit, (2, 19, 14, 512), 1),
    ],
)
def test_kernels_lower_to_triton(target, dtype, run, q, kernels):
    """The interpreter runs what GPUs do not have: an operation without a rule is an error here."""
    H, of = q[-1], jax.ShapeDtypeStruct
    arrays = of(q, dtype), of((2, 2, H, 100), dtype), of((2, 2, 100, H), dtype), of((2,), jnp.int32)
    rules = (
        AttentionRule(0.1, window=50, soft_cap=30.0, sinks_N=of((14,), jnp.float32)),
        AttentionRule(0.1, causal=False),
    )
    for rule in rules:
        text = lowered_to_triton(
            target, lambda *operands: run(*operands, target=target), *arrays, rule
        )
        assert text.count("__gpu$xla.gpu.triton") == kernels
