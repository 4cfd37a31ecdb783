"""Numbers of every library, collections that are None, and keywords that nobody knows."""

import dataclasses
import fractions
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import rocmforge_jax as rf
from rocmforge_jax import arguments
from rocmforge_jax.backends.numerics import compute_dtype
from rocmforge_jax.formats import quantize
from rocmforge_jax.generate import Engine
from rocmforge_jax.text import ChatTemplate, ChatTemplateError, StopStrings, load_tokenizer

pytestmark = pytest.mark.core
INTEGERS = [7, np.int8(7), np.uint64(7), np.array(7), jnp.int32(7), jnp.array(7, jnp.uint8)]
NUMBERS = [
    *INTEGERS,
    7.0,
    np.float16(7),
    np.float64(7),
    np.array(7.0),
    jnp.float32(7),
    jnp.bfloat16(7),
    ml_dtypes.bfloat16(7),
    fractions.Fraction(7),
]
NO_NUMBERS = [
    True,
    np.True_,
    np.array(True),
    jnp.array(True),
    None,
    "7",
    b"7",
    np.str_("7"),
    [7],
    (7,),
    np.array([7]),
    jnp.array([7]),
    7j,
    np.complex64(7),
    np.timedelta64(7, "s"),
    np.array("7"),
    slice(7),
]


def same_type(found, expected):
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_integers_are_those_of_any_library(value):
    assert same_type(arguments.integer("count", value, 0, 7), 7)
    with pytest.raises(ValueError, match=r"count must be an integer of at least 8, got .*7"):
        arguments.integer("count", value, 8)


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers_are_those_of_any_library(value):
    assert same_type(arguments.number("heat", value, 0), 7.0)
    with pytest.raises(ValueError, match=r"heat must be a finite number above 7 .* 9.5, got"):
        arguments.number("heat", value, 7, 9.5, exclusive=True)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match="count must be an integer from -3 to 9, got"):
        arguments.integer("count", value, -3, 9)
    with pytest.raises(ValueError, match="heat must be a finite number, got"):
        arguments.number("heat", value, -np.inf)


@pytest.mark.parametrize("value", [7.0, np.float32(7), np.array(7.0), jnp.float32(7)], ids=repr)
def test_a_float_is_no_integer(value):
    assert arguments.as_integer(value) is None


@pytest.mark.parametrize(
    "value", [np.inf, -np.inf, np.nan, jnp.float32(np.nan), 10**400, -(10**400)], ids=range(6)
)
def test_numbers_must_be_finite(value):
    with pytest.raises(ValueError, match="heat must be a finite number, got"):
        arguments.number("heat", value, -np.inf)


@pytest.fixture(scope="module")
def lm():
    return rf.load("demo", progress=False)


@pytest.fixture(scope="module")
def chatting(lm):
    """The model with a chat template."""
    template = ChatTemplate("{{ messages[0].content }}: {{ continue_final_message }}")
    return rf.LanguageModel(lm.model, lm.tokenizer, template)


@pytest.mark.parametrize(
    "scalar", [np.int64, np.uint8, np.array, jnp.int32], ids=lambda f: f.__name__
)
def test_the_whole_interface_takes_scalars_of_any_library(lm, scalar):
    """Where a count, a size or an id is asked for."""
    expected = lm.generate(
        "ROMEO:", max_tokens=5, seed=3, top_k=7, temperature=2, logit_bias={5: 3}
    )
    options = dict(max_tokens=scalar(5), seed=scalar(3), top_k=scalar(7), temperature=scalar(2))
    bias = {int(scalar(5)) if scalar in (np.array, jnp.int32) else scalar(5): scalar(3)}
    assert lm.generate("ROMEO:", **options, logit_bias=bias) == expected
    cache = lm.model.init_cache(scalar(2), scalar(16))
    assert (cache.batch, cache.length) == (2, 16) and type(cache.length) is int
    assert cache.grown(scalar(32)).length == 32
    other = rf.LanguageModel(lm.model, lm.tokenizer, context_length=scalar(64))
    assert other.engine.context_length == 64
    engine = Engine(
        lm.model,
        ahead=scalar(0),
        max_slots=scalar(1),
        snapshot_bytes=scalar(9),
        suppressed_ids=[scalar(4)],
    )
    ids = [scalar(70), scalar(71)]
    engine.generate([ids], max_tokens=scalar(1), stop_ids=[scalar(7)])  # checks, computes nothing
    rf.validate_matmul_dims([scalar(2), scalar(3), scalar(4)], (2, 3), (3, 4), (2, 4))
    rf.validate_attention_dims(*[[scalar(2), scalar(3), scalar(4), scalar(8)]] * 3)
    values = np.linspace(-1, 1, 32, dtype=np.float32)
    got = rf.formats.dequantize(quantize(values, "q8_0"), "q8_0", count=scalar(5))
    np.testing.assert_array_equal(got, rf.formats.dequantize(quantize(values, "q8_0"), "q8_0")[:5])


def test_sizes_that_would_wrap_in_64_bits_are_counted_exactly():
    size = np.int64(2**40)
    with pytest.raises(ValueError, match=str(2**80)):
        rf.validate_matmul_dims((size, 1, size), (size, 1), (1, size), (size, size))
    with pytest.raises(ValueError, match=str(2**80)):
        rf.validate_attention_dims((size, size, 1, 1), (size, size, 1, 1), (size, size, 1, 1))


def test_none_is_an_empty_collection(lm):
    expected = lm.generate("ROMEO:", max_tokens=4)
    assert lm.generate("ROMEO:", max_tokens=4, stop=None, logit_bias=None) == expected
    names = [field.name for field in dataclasses.fields(rf.SamplingParams)]
    assert rf.SamplingParams(**dict.fromkeys(names)) == rf.SamplingParams()
    nothing = dict.fromkeys(names) | {"stream": None, "params": None}
    assert lm.generate("ROMEO:", max_tokens=4, **nothing) == expected
    params = rf.SamplingParams()
    assert lm.generate("ROMEO:", max_tokens=4, params=params, seed=None) == expected
    assert StopStrings(None).push("text") == "text"
    engine = Engine(lm.model, suppressed_ids=None)
    engine.generate([[70]], max_tokens=1, stop_ids=None)  # checks, computes nothing
    assert engine.suppressed_ids == frozenset()


def test_collections_may_be_read_once(lm):
    """Generators, for prompts, stop strings and parameters."""
    expected = lm.generate(["ROMEO:", "KING"], max_tokens=6, stop=["x", "e"], seed=2)
    texts, stops = (text for text in ("ROMEO:", "KING")), (stop for stop in "xe")
    assert lm.generate(texts, max_tokens=6, stop=stops, seed=2) == expected
    params = (rf.SamplingParams(seed=seed) for seed in (2, 3))
    assert lm.generate(["ROMEO:", "KING"], max_tokens=6, stop="xe", params=params)[0].ids == (
        lm.generate("ROMEO:", max_tokens=6, seed=2).ids
    )
    arrays = np.array(["ROMEO:", "KING"]), np.array(["x", "e"])
    assert lm.generate(arrays[0], max_tokens=6, stop=arrays[1], seed=2) == expected
    engine = Engine(lm.model, suppressed_ids=np.arange(3, 9))
    engine.generate(np.array([[70]]), max_tokens=1, stop_ids=np.arange(2))
    assert engine.suppressed_ids == set(range(3, 9))
    (one, two), *_ = lm.engine.generate((iter([70, 71]) for _ in range(2)), max_tokens=1)
    assert one == two


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: rf.load("demo", dtyp="float32"), r"load\(\) .* 'dtyp'; .* 'dtype'\?"),
        (
            lambda lm: lm.generate("a", temprature=1),
            r"generate\(\) .* 'temprature'; .* 'temperature'\?",
        ),
        (
            lambda lm: lm.generate("a", max_token=1),
            r"generate\(\) .* 'max_token'; .* 'max_tokens'\?",
        ),
        (lambda lm: lm.chat([], sed=1), r"chat\(\) .* 'sed'; .* 'seed'\?"),
        (lambda lm: lm.chat([], templat={}), r"chat\(\) .* 'templat'; .* 'template'\?"),
        (
            lambda lm: lm.fit_messages([], max_token=1),
            r"fit_messages\(\) .* 'max_token'; .* 'max_tokens'\?",
        ),
        (lambda lm: lm.chat([], tools=[]), r"chat\(\) .* 'tools'; .* template={'tools': ...}$"),
        (
            lambda lm: lm.fit_messages([], enable_thinking=1),
            r"fit_messages\(\) .* template={'enable_thinking': ...}$",
        ),
        (
            lambda lm: lm.chat([], add_generation_prompt=False),
            r"chat\(\) .* template={'add_generation_prompt': ...}$",
        ),
        (
            lambda lm: lm.chat([], xyz=False),
            r"chat\(\) .*; it takes messages, .* seed; .* template={'xyz': ...}$",
        ),
        (lambda lm: rf.SamplingParams(topp=1), r"SamplingParams\(\) .* 'topp'; .* 'top_p'\?"),
        (lambda lm: Engine(lm.model, max_slot=1), r"Engine\(\) .* 'max_slot'; .* 'max_slots'\?"),
        (lambda lm: lm.generate("a", top_K=1), r"generate\(\) .* 'top_K'; .* 'top_k'\?"),
        (lambda lm: lm.chat([], TEMPERATURE=1), r"chat\(\) .*; did you mean 'temperature'\?"),
        (lambda lm: rf.load("demo", n_ctx=8), r"load\(\) .* 'n_ctx'; .* 'context_length'\?"),
        (lambda lm: rf.load("demo", ctx=8), r"load\(\) .* 'ctx'; .* 'context_length'\?"),
        (lambda lm: lm.chat([], max_new_tokens=8), r"'max_new_tokens'; .* 'max_tokens'\?"),
        (lambda lm: lm.generate("a", n_predict=8), r"'n_predict'; .* 'max_tokens'\?"),
        (
            lambda lm: rf.SamplingParams(repeat_penalty=1.1),
            r"'repeat_penalty'; .* 'repetition_penalty'\?",
        ),
        (lambda lm: lm.generate("a", temp=1), r"'temp'; .* 'temperature'\?"),
        (lambda lm: lm.generate("a", repeat_last_n=1), r"'repeat_last_n'; .* 'penalty_last_n'\?"),
        (lambda lm: rf.load("demo", torch_dtype="float16"), r"'torch_dtype'; .* 'dtype'\?"),
        (lambda lm: rf.load("demo", type_k="float16"), r"'type_k'; .* 'cache_dtype'\?"),
        (lambda lm: rf.load("demo", n_gpu_layers=-1), r"'n_gpu_layers'; .* no partial offload$"),
        (lambda lm: rf.load("demo", gpu_layers=9), r"'gpu_layers'; .* no partial offload$"),
        (lambda lm: rf.load("demo", quantization="q8"), r"'quantization'; .*:Q4_K_M.*quantize\(\)"),
        (lambda lm: rf.load("demo", load_in_4bit=True), r"'load_in_4bit'; .* stay packed"),
        (lambda lm: lm.generate("a", xyz=1), r"generate\(\) .* 'xyz'; it takes prompt, .* seed$"),
    ],
)
def test_an_unknown_keyword_names_the_function_and_the_nearest(lm, call, message):
    with pytest.raises(TypeError, match=message):
        call(lm)


@pytest.mark.parametrize("value", [True, np.True_, np.array(True), jnp.array(True)], ids=repr)
def test_flags_are_those_of_any_library(value):
    assert arguments.flag("strict", value) is True
    assert arguments.flag("strict", value ^ True) is False


@pytest.mark.parametrize("value", [None, 0, 1, "no", "", 1.0, np.int8(1), [True], np.array([True])])
def test_what_is_no_flag(value):
    with pytest.raises(TypeError, match="strict must be True or False, got"):
        arguments.flag("strict", value)


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: rf.load("demo", strict="no"), "strict .* 'no'"),
        (lambda lm: load_tokenizer("no such file", strict=1), "strict .* 1"),
        (lambda lm: lm.generate("a", stream="no"), "stream .* 'no'"),
        (lambda lm: lm.generate("a", parse_special="no"), "parse_special .* 'no'"),
        (lambda lm: lm.tokenizer.encode("a", parse_special="no"), "parse_special .* 'no'"),
        (lambda lm: lm.tokenizer.encode("a", strict="no"), "strict .* 'no'"),
        (lambda lm: lm.tokenizer.encode("a", add_special="no"), "add_special .* 'no'"),
        (lambda lm: lm.tokenizer.decode([], skip_special="no"), "skip_special .* 'no'"),
        (lambda lm: lm.chat(HI, stream="no"), "stream .* 'no'"),
        (
            lambda lm: lm.chat(HI, parse_special_in_messages="no"),
            "parse_special_in_messages .* 'no'",
        ),
        (lambda lm: lm.chat(HI, continue_final_message=1), "continue_final_message .* 1"),
        (
            lambda lm: lm.fit_messages(HI, template={"add_generation_prompt": "no"}),
            "add_generation_prompt .* 'no'",
        ),
        (lambda lm: lm.chat(HI, template=["tools"]), "template .* list"),
        (lambda lm: lm.chat(HI, template={1: 2}), "template .* 1"),
        (lambda lm: lm.fit_messages(HI, template={"messages": []}), "template .* 'messages'"),
        (lambda lm: lm.generate("a", stop=5), "stop .* 5"),
        (lambda lm: lm.generate("a", params=5), "params .* 5"),
        (lambda lm: lm.generate("a", params={"seed": 1}), "params .* {'seed': 1}"),
        (lambda lm: lm.tokenizer.decode(5), "ids .* int 5"),
        (lambda lm: lm.tokenizer.decode(None), "ids .* NoneType None"),
        (lambda lm: lm.tokenizer.decode([True]), "token id .* True"),
        (lambda lm: lm.tokenizer.stream(after=5), "after .* int 5"),
    ],
)
def test_what_is_of_the_wrong_type(chatting, call, message):
    """Before anything is computed."""
    with pytest.raises(TypeError, match=message):
        call(chatting)


@pytest.mark.parametrize("max_tokens", [0, -3, "7", 2.5, True])
def test_room_for_an_answer_is_an_integer(chatting, max_tokens):
    with pytest.raises(ValueError, match=f"max_tokens .* at least 1, got {max_tokens!r}"):
        chatting.fit_messages(HI, max_tokens=max_tokens)
    with pytest.raises(ChatTemplateError, match="messages .* NoneType"):
        chatting.fit_messages(None)


def test_variables_of_a_template_may_be_called_like_arguments(chatting):
    names = ["tokenizer", "self", "continue_final_message", "parse_special_in_messages"]
    given = dict.fromkeys(names, "seven")
    assert chatting.chat(HI, template=given, max_tokens=1).prompt_tokens > 1
    assert chatting.fit_messages(HI, template=given) == HI


@pytest.mark.parametrize(
    ("dtype", "got"),
    [
        ("int8", "'int8'"),
        ("complex64", "'complex64'"),
        ("f128", "'f128'"),
        ("F64", "'F64'"),
        (bool, "bool"),
        (np.float64, "float64"),
        (float, "float64"),
        (jnp.float8_e4m3fn, "float8_e4m3fn"),
        ("bf 16", "'bf 16'"),
        ("", "''"),
        (7, "7"),
    ],
    ids=str,
)
def test_dtypes_that_cannot_compute_are_refused_before_anything_is_read(lm, dtype, got):
    message = f"float32, bfloat16, float16, got {got}"
    with pytest.raises(ValueError, match=message):
        rf.load("no such file", dtype=dtype)
    with pytest.raises(ValueError, match=message):
        rf.load("no such file", cache_dtype=dtype)
    with pytest.raises(ValueError, match=message):
        lm.model.init_cache(1, 8, dtype=dtype)


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        jnp.bfloat16,
        np.dtype("bfloat16"),
        ml_dtypes.bfloat16,
        "bf16",
        "BF16",
        "BFloat16",
    ],
)
def test_a_dtype_has_many_spellings(lm, dtype):
    assert lm.model.init_cache(1, 8, dtype).layers[0].keys.dtype == jnp.bfloat16
    with pytest.raises(FileNotFoundError):
        rf.load("no such file", dtype=dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "int4"}, "activations must be one of int16, int8, float, got 'int4'"),
        ({"activations": None}, "activations must be one of int16, int8, float, got None"),
        ({"backend": "cuda"}, "backend must be one of auto, pallas, cpp, xla, got 'cuda'"),
        ({"backend": ""}, "backend must be one of auto, pallas, cpp, xla, got ''"),
        ({"context_length": 1}, "context_length must be an integer from 2 to .*, got 1"),
        ({"context_length": True}, "context_length must be an integer from 2 to .*, got True"),
        ({"context_length": "512"}, "context_length must be an integer from 2 to .*, got '512'"),
    ],
    ids=str,
)
def test_options_of_load_are_checked_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        rf.load("no such file", **options)


@pytest.mark.parametrize(
    ("short", "dtype"),
    [("f32", "float32"), ("FP32", "float32"), ("Float32", "float32"), ("single", "float32")]
    + [(name, "float16") for name in ("f16", "F16", "fp16", "half")],
)
def test_short_names_of_dtypes(short, dtype):
    assert compute_dtype(short) == jnp.dtype(dtype)


@pytest.mark.parametrize("path", [None, 5, 2.5, ["demo"]], ids=repr)
def test_what_is_no_path_is_named(path):
    with pytest.raises(TypeError, match=rf"load\(\) .* path, got {re.escape(repr(path))}"):
        rf.load(path)


@pytest.mark.parametrize(
    "field",
    ["temperature", "top_k", "seed", "presence_penalty", "penalty_last_n", "logit_bias"],
)
@pytest.mark.parametrize(
    ("value", "got"),
    [(-(10**5000), "an integer of 16,610 bits"), ([7] * 10**6, r"\[7, 7, .*\.\.\.")],
    ids=["integer", "list"],
)
def test_values_are_shortened_in_messages(field, value, got):
    if field == "presence_penalty" and isinstance(value, int):
        value = [value]
    with pytest.raises(ValueError, match=f"{field} must .*{got}") as caught:
        rf.SamplingParams(**{field: value})
    assert len(str(caught.value)) < 400


def test_a_single_prompt_has_no_number(lm):
    with pytest.raises(ValueError, match=r"^logit_bias has the id 999999, .* \d+$"):
        lm.generate("a", logit_bias={999999: 1})
    with pytest.raises(ValueError, match=r"^logit_bias 0 has the id 999999"):
        lm.generate(["a", "b"], logit_bias={999999: 1})


@pytest.mark.parametrize("device", ["rocm", "cuda:1", "GPU"])
def test_a_gpu_that_is_not_there_names_doctor(device):
    if jax.default_backend() != "cpu":
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match=f"no device '{device}'; there are cpu:0.* doctor"):
        rf.load("no such file", device=device)
    with pytest.raises(ValueError, match=r"no device 'cpu:99'; there are [^.]*$"):
        rf.load("no such file", device="cpu:99")
