"""The programs in benchmarks/: files as llama.cpp makes them, goals, tables, and workers that
answer.
"""

import contextlib
import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pallas_kernels import targets
from rocmforge_jax import formats
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.locate import DEMO
from rocmforge_jax.models import Mixture, load_decoder
from rocmforge_jax.nn import Routing

ROOT = Path(__file__).resolve().parents[2]
OURS, THEIRS = "rocmforge_jax", "llama_cpp"
RESULT = {
    "device": "c",
    "model": "synthetic-llama-3.2-1b-q8_0.gguf",
    "versions": {"jax": "0.12"},
    "date": "d",
    "repeats": 5,
    "medians": {
        "decode_tokens_per_s": {OURS: 30, THEIRS: 40},
        "first_token_seconds": {OURS: 4, THEIRS: 2},
        "cold_first_token_seconds": {OURS: 20},
    },
}


@pytest.fixture
def program(monkeypatch):
    """Imports a module of benchmarks/ by name, whose modules are no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.core
def test_the_tables_of_measurements_are_current(program):
    page, table = (ROOT / "docs" / "benchmarks.md").read_text(), program("table")
    assert table.renewed(page, table.current()) == page, "run: python benchmarks/table.py"


@pytest.mark.core
def test_a_page_without_marks_is_refused(program):
    with pytest.raises(ValueError, match="needs a line '<!-- table cpu"):
        program("table").renewed("", {"cpu": ""})


@pytest.mark.core
def test_the_table_shows_the_newest_numbers_and_the_ratio(program):
    new = RESULT | {
        "medians": {
            "decode_tokens_per_s": {OURS: 36, THEIRS: 40},
            "prefill_128_tokens_per_s": {OURS: 1234.5},
        }
    }
    rows = program("table").cpu_table([RESULT, new]).splitlines()[2:]
    assert rows == [
        "| c | synthetic-llama-3.2-1b-q8_0 | 36.0 / 40.0 (0.90) | 1,234 | - | - | - | 0.12 | d |"
    ]


@pytest.mark.core
def test_runs_on_a_gpu_that_measured_other_things_share_a_row(program):
    """Beside llama.cpp's on the same device, of the same model, where it was measured."""
    model = {"device": "g", "shape": "s", "mix": "Q4_0"}
    one, other = (
        model
        | {
            "activations": "int8",
            "versions": {"jax": "0.12"},
            "date": "d",
        },
        model | {"device": "h"},
    )
    measured = [one | {"decode_tokens_per_s": 400.4}, one | {"prefill_512_tokens_per_s": 12000}]
    theirs = [
        model | {"decode_tokens_per_s": 300},
        model | {"decode_tokens_per_s": 250},
        other | {"prefill_512_tokens_per_s": 1},
    ]
    rows = program("table").gpu_table(measured, theirs).splitlines()[2:]
    assert rows == ["| g | s Q4_0 | int8 | 400 / 250 (1.60) | - | - | - | 12,000 | - | 0.12 | d |"]


@pytest.mark.core
def test_kernels_of_a_type_share_a_row_the_largest_shape_first(program):
    facts = {"device": "g", "type": "Q4_0", "versions": {"jax": "0.12"}, "date": "d"}
    measured = [
        facts | {"kernel": kernel, "shape": shape, "share_of_copy_bandwidth": share}
        for kernel, shape, share in (
            ("int16", [64, 32], 0.456),
            ("dequantize", [640, 32], 0.8),
            ("int16", [640, 32], 0.9),
            ("int8", [128, 32], 0.7),
        )
    ]
    before = [one | {"device": "an older one"} for one in measured]
    header, _, *rows = program("table").kernels_table(before + measured).splitlines()
    assert (
        header.startswith("| device | type | int16, 640x32 | int8, 640x32 |")
        and "int16, 64x32" in header
    )
    assert rows == ["| g | Q4_0 | 0.90 | - | - | 0.80 | - | 0.46 | - | - | - | - | 0.12 | d |"]


@pytest.mark.core
def test_the_first_launch_after_another_kernel_does_not_count(program, monkeypatch):
    """Nor do launches of other names. Copies are those of the weight's size."""
    kernels = program("gpu_kernels")
    case = kernels.Case("int16", "Q4_0", (64, 128))

    def of_a_run(run):
        return [
            ("a fusion", 1.0),
            ("multiply_int16_2", 99),
            *[("multiply_int16_2", 3.0)] * (len(run()) - 1),
        ]

    monkeypatch.setattr(
        kernels, "launches", lambda runs: [launch for run in runs for launch in of_a_run(run)]
    )
    with targets.use(targets.INTERPRET):
        (line,) = kernels.measure([case], {case: (lambda x, planes: x, None)}, 4000, 5)
    size = 64 * 128 // 32 * 18
    assert (line["microseconds"], line["gb_per_s"]) == (
        3.0,
        size / 3000,
    ) and case.weight_bytes() == size
    monkeypatch.setattr(kernels, "ALONE", {})
    monkeypatch.setattr(
        kernels,
        "launches",
        lambda runs: [("copy", us) for run in runs for us in [99, *[2.0] * (len(run()) - 1)]],
    )
    copies = kernels.measure_copies(
        [case, kernels.Case("int8", "Q4_0", (64, 128)), kernels.Case("int8", "Q8_0", (64, 128))],
        4000,
    )
    assert [(line["kernel"], line["type"], line["microseconds"]) for line in copies] == [
        ("copy", "Q4_0", 2.0),
        ("copy", "Q8_0", 2.0),
    ]


@pytest.mark.core
def test_goals_bound_speeds_below_and_times_above(program):
    rows = program("cpu_goals").rows(RESULT)
    assert [row[1:] for row in rows] == [
        ("30.0", "40.0", "0.75", ">= 0.6 x", "yes"),
        ("4.00", "2.00", "2.00", "<= 1.5 x", "no"),
        ("20.0", "-", "-", "<= 25", "yes"),
    ]
    alone = RESULT | {"medians": {"decode_tokens_per_s": {OURS: 30}}}
    assert program("cpu_goals").rows(alone)[0][1:] == ("30.0", "-", "-", "-", "-")


@pytest.mark.core
def test_the_mix_gives_half_of_the_layers_more_bits(program):
    type_of = program("mixes").type_of
    more = [i for i in range(16) if type_of(f"blk.{i}.attn_v.weight", 16, True, "q4_k_m") == "Q6_K"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert [type_of("token_embd.weight", 16, tied, "Q4_K_M") for tied in (True, False)] == [
        "Q6_K",
        "Q4_K",
    ]
    assert [
        type_of(name, 16, False, "Q4_K_M") for name in ("output.weight", "blk.0.attn_q.weight")
    ] == ["Q6_K", "Q4_K"]
    assert type_of("blk.0.attn_v.weight", 16, True, "q8_0") == "Q8_0"


@pytest.mark.core
def test_a_made_file_has_no_vocabulary_and_the_factors_of_its_rope(program, tmp_path, monkeypatch):
    synthetic = program("synthetic")
    monkeypatch.setitem(
        synthetic.SHAPES, "llama-3.2-1b", ("llama", 1, 256, 512, 4, 2, 64, 512, 5e5)
    )
    synthetic.write("llama-3.2-1b", "q4_k_m", tmp_path / "made.gguf")
    gguf = open_gguf(tmp_path / "made.gguf")
    factors = gguf.tensors["rope_freqs.weight"].data.view("<f4")
    assert (
        factors.shape == (32,)
        and factors[0] == 1
        and factors[-1] == 32
        and (np.diff(factors) >= 0).all()
    )
    assert (
        gguf.metadata["tokenizer.ggml.model"] == "no_vocab"
        and gguf.tensors["token_embd.weight"].format.name == "Q6_K"
    )


@pytest.mark.core
def test_a_made_mixture_is_one_that_loads(program, tmp_path, monkeypatch):
    """All but the router is quantised, and a device makes the same shapes as the file has."""
    synthetic, made = program("synthetic"), program("made")
    monkeypatch.setitem(synthetic.SHAPES, "small", ("qwen3moe", 1, 256, 512, 4, 2, 64, 512, 1e6))
    monkeypatch.setitem(synthetic.MIXTURES, "small", (4, 2, 256))
    synthetic.write("small", "q4_k", tmp_path / "made.gguf")
    gguf = open_gguf(tmp_path / "made.gguf")
    plain = [
        name
        for name, tensor in gguf.tensors.items()
        if len(tensor.shape) > 1 and tensor.format.name == "F32"
    ]
    assert plain == ["blk.0.ffn_gate_inp.weight"]
    of_file, of_device = load_decoder(gguf).config, made.config("small")
    (of_file,), (of_device,) = of_file.layers, of_device.layers
    mixture = Mixture(4, Routing(2, "softmax", True), 256)
    assert of_file.feed_forward == of_device.feed_forward == mixture
    assert of_file.mixer == of_device.mixer and of_file.mixer.qk_norm == "head"
    assert of_file.biases == of_device.biases == frozenset()


def _small_shapes(shapes, states) -> dict:
    """A small shape of each family that `hybrid_shapes.py` knows."""
    both = [("state", "feed_forward"), ("attention", "feed_forward")]
    state, attention = dict(state=(4, 32, 32, 2)), (4, 2, 32)
    parallel, alone = [("attention", "state", "feed_forward")], [("state",)] * 2
    one_part = [("state",), ("feed_forward",), ("attention",)]
    sizes, convolutions = (256, 512, 64), [("convolution", "feed_forward"), both[1]]
    return {
        "gemma4": shapes.Gemma4(6, *sizes[:2], 4, (2, 32), (1, 64), 64, 64),
        "qwen35": shapes.Qwen35(4, *sizes[:2], 4, 2, (2, 4, 32), 64, head=64),
        "qwen35moe": shapes.Qwen35(4, 256, 256, 4, 2, (2, 4, 32), 64, (4, 2, 256), head=64),
        "lfm2": states.ShortConvolutions("lfm2", *sizes, convolutions, attention),
        "mamba2": states.StateSpace("mamba2", 256, 0, 64, alone, (0, 0, 0), **state),
        "granitehybrid": states.StateSpace("granitehybrid", *sizes, both, attention, **state),
        "nemotron_h": states.StateSpace(
            "nemotron_h", *sizes, one_part, attention, gated=False, **state
        ),
        "falcon-h1": states.StateSpace(
            "falcon-h1", *sizes, parallel, attention, state_norm=False, **state
        ),
        "deepseek2": states.Latent(2, *sizes, 4, (64, 256), (32, 32, 32), (4, 2, 256)),
    }


def test_every_family_is_made_as_a_file_that_loads(program, tmp_path, monkeypatch):
    """No tensor is missing or unknown, and blocks fit into rows."""
    synthetic, states = program("synthetic"), program("state_shapes")
    for family, shape in _small_shapes(program("hybrid_shapes"), states).items():
        monkeypatch.setitem(synthetic.hybrid_shapes.SHAPES, "small", shape)
        synthetic.write("small", "q4_k_m", tmp_path / "made.gguf")
        gguf = open_gguf(tmp_path / "made.gguf")
        layers = load_decoder(gguf).config.layers
        assert (gguf.architecture, len(layers)) == (family, shape.layers)
        assert "norm" not in " ".join(
            name for name, tensor in gguf.tensors.items() if tensor.format.is_quantized
        )


@pytest.mark.core
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "Q8_0", "MXFP4"])
def test_made_weights_have_a_deviation_of_a_few_percent(name, program):
    random = np.random.default_rng(0)
    blocks = program("synthetic").random_blocks(formats.get(name), (64, 512), random)
    assert 0.01 < np.std(formats.dequantize(blocks, name)) < 0.06


@pytest.mark.core
def test_rows_without_whole_blocks_have_another_type(program):
    fitting = program("mixes").fitting
    assert [fitting(name, 192) for name in ("Q4_K", "Q6_K", "Q4_0")] == ["Q5_0", "Q8_0", "Q4_0"]
    assert fitting("Q4_K", 512) == "Q4_K"


@pytest.mark.core
def test_a_launch_that_waits_for_another_counts_from_its_end(program):
    found = [("c", 30, 35), ("a", 10, 20), ("b", 12, 27), ("inside", 31, 33)]
    assert program("kernel_trace").one_after_the_other(found) == [
        ("a", 10),
        ("b", 7),
        ("inside", 2),
        ("c", 2),
    ]


@pytest.mark.core
def test_what_llama_cpp_prints_gets_our_names(program, tmp_path):
    """In place of its programs: ones that print a line of each kind, and what is no JSON."""
    kinds = [(512, 0, 0, 1.0), (2048, 0, 0, 2.0), (0, 128, 0, 3.0), (0, 128, 4096, 4.0)]
    line = (
        '{{"n_prompt": {}, "n_gen": {}, "n_depth": {}, "avg_ts": {}, "gpu_info": "g",'
        ' "build_commit": "c"}}'
    )
    out = {
        "llama-bench": [line.format(*kind) for kind in kinds],
        "llama-batched-bench": ['{"pl": 8, "speed_tg": 5.0}', '{"pl": 32, "speed_tg": 6.0}'],
    }
    for name, lines in out.items():
        (tmp_path / name).write_text(
            "#!/bin/sh\necho loading\n" + "".join(f"echo '{each}'\n" for each in lines)
        )
        (tmp_path / name).chmod(0o755)
    assert program("gpu_llama_cpp").measure(tmp_path, tmp_path / "model.gguf") == {
        "device": "g",
        "llama_cpp": "c",
        "prefill_512_tokens_per_s": 1.0,
        "prefill_2048_tokens_per_s": 2.0,
        "decode_tokens_per_s": 3.0,
        "decode_at_4096_tokens_per_s": 4.0,
        "decode_batch_8_tokens_per_s": 5.0,
        "decode_batch_32_tokens_per_s": 6.0,
    }


@pytest.mark.parametrize("package", [OURS, THEIRS])
def test_a_worker_measures_what_it_is_asked(program, tmp_path, package):
    if package == THEIRS:
        importlib.util.find_spec(THEIRS) or pytest.skip("llama-cpp-python is not installed")
    with contextlib.closing(program("cpu").Worker(package, DEMO, 1, tmp_path)) as worker:
        answer = worker.ask(20, 9)
        assert (
            0 < worker.first_token_seconds < worker.answer_seconds
            and worker.peak_rss_bytes > DEMO.stat().st_size
        )
    assert (
        set(answer) == {"first_seconds", "rest_seconds", "idle_share"} and min(answer.values()) >= 0
    )
