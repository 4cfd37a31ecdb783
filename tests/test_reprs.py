"""What objects look like in a notebook: escaped, short, and with the numbers that are true."""

import dataclasses
import html.parser
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.completion import Answer
from rocmforge_jax.generate import Generated, Perplexity
from rocmforge_jax.gguf import write_gguf
from rocmforge_jax.locate import DEMO
from rocmforge_jax.models import Decoder, DecoderConfig
from rocmforge_jax.models.config import LayerConfig
from rocmforge_jax.models.make import Norms
from rocmforge_jax.models.mixers import ShortConvolution

SCRIPT = '<script>alert(1)</script><img src="http://a" onerror=x>'


class Reader(html.parser.HTMLParser):
    """Reads HTML whose tags must be balanced; keeps the texts, tags and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "


def shown(value, most=40_000):
    """The text of an object's HTML, which is harmless and short."""
    text = value._repr_html_()
    reader = Reader(text)
    harmless = {"div", "b", "i", "small", "span", "table", "tr", "th", "td", "details", "summary"}
    assert set(reader.tags) <= harmless | {"svg", "rect", "text"}
    assert set(reader.attributes) <= {
        *("style", "title", "width", "height", "x", "y", "fill", "font-size", "text-anchor")
    }
    assert len(text) < most
    return reader.text


@pytest.fixture(scope="module")
def lm():
    return rf.load("demo", progress=False, backend="xla")


@pytest.fixture
def hostile(tmp_path):
    """A file whose names and values are markup, or far too long."""
    keys = {
        "general.architecture": SCRIPT,
        "a\"b'<c>": "'\"<&>",
        "long": "x" * 10_000_000,
        "tokens": [SCRIPT, "y" * 100_000] * 40,
        "numbers": np.arange(1000, dtype=np.int32),
    }
    vector = "F32", np.ones(3, np.float32)
    tensors = {f"<b>{i}</b>\"'": vector for i in range(170)}
    write_gguf(tmp_path / "<i>.gguf", keys, tensors)
    return rf.open_gguf(tmp_path / "<i>.gguf")


def test_a_hostile_file_is_escaped_and_short(hostile):
    text = shown(hostile)
    assert "<i>.gguf" in text and SCRIPT in text and "'\"<&>" in text
    assert "(10,000,000 characters)" in text and "and 72 more" in text and "and 992 more" in text
    assert "170 tensors" in text and "and 120 more" in text and "<b>49</b>" in text
    assert SCRIPT in shown(hostile.metadata) and "<b>0</b>" in shown(hostile.tensors)
    assert len(repr(hostile.tensors)) < 200 and "167 more" in repr(hostile.tensors)


def test_a_hostile_model_is_escaped():
    layer = LayerConfig(None, None, Norms(1e-5))
    config = DecoderConfig((layer,), 8, 11, 16, 1e-5, architecture=SCRIPT)
    assert SCRIPT in shown(Decoder(config, rngs=nnx.Rngs(0)))


def test_a_hostile_completion_is_escaped_and_short():
    done = rf.Completion(SCRIPT, [1], "stop", [-0.5], 1, None, [SCRIPT])
    assert SCRIPT in shown(done) and "60.7%" in done._repr_html_()
    assert SCRIPT in shown(dataclasses.replace(done, pieces=None))
    long = rf.Completion("a" * 50_000, [1] * 50_000, "length", [-1.0] * 50_000, 1, None)
    assert "(50,000 characters)" in shown(long) and len(repr(long)) < 200
    many = dataclasses.replace(long, pieces=["a"] * 50_000)
    assert "and 49,000 more" in shown(many, most=150_000)


def test_a_file_shows_its_bytes_by_type():
    file = rf.open_gguf(DEMO)
    text = shown(file)
    for name in {tensor.format.name for tensor in file.tensors.values()}:
        of_type = [one for one in file.tensors.values() if one.format.name == name]
        nbytes = sum(one.nbytes for one in of_type)
        assert re.search(rf"{name}\s+{len(of_type)}\s+{nbytes / 1e3:.2f} kB", text)


def test_a_model_shows_its_weights_and_bytes_by_device(lm):
    sizes = [array.nbytes for array in jax.tree.leaves(nnx.state(lm.model))]
    text = shown(lm)
    assert f"{sum(sizes) / 1e6:.2f} MB" in text and f"cpu:0 {sum(sizes) / 1e6:.2f} MB" in text
    assert f"{rf.models.param_count(lm.model):,} weights" in text
    assert "blk.*.attn_q.weight x4" in text and "1024 tokens" in text
    assert len(repr(lm.engine)) < 120 and "512" in repr(lm.engine)


def test_blocks_that_differ_are_shown_apart(lm):
    model = nnx.clone(lm.model)
    model.blk[1].attn_norm.scale = nnx.Param(jnp.zeros(3))
    found = re.findall(r"\n    (\d[\d to]*): Layer\(", repr(model))
    assert found == ["0", "1", "2 to 3"]


@pytest.mark.parametrize(
    "type_name, layout", [("Q5_1", "groups"), ("Q6_K", "rows"), ("IQ4_XS", "columns")]
)
def test_a_tensor_shows_its_values_and_its_first_block(type_name, layout, normal):
    rows = normal(3, 70, 256)
    if type_name == "Q5_1":
        packed = rf.formats.quantize(rows, type_name)
    else:  # any bytes are blocks; small scales keep the values finite
        packed = np.random.default_rng(3).integers(0, 50, (3, 70, _bytes(type_name)), np.uint8)
    w = rf.QTensor.from_bytes(packed, type_name, layout=layout, transposed=True)
    values = np.asarray(rf.formats.dequantize(packed[0], type_name), np.float64)
    text = shown(w)
    assert f"{type_name} 3 x 256 x 70" in text and f"17,920 of {rows.size:,} values" in text
    assert f"mean {values.mean():.4g}, standard deviation {values.std():.4g}" in text
    assert f"{values.min():.4g} {values.max():.4g}" in text
    block = values.reshape(-1)[: rf.formats.get(type_name).block]
    assert ", ".join(f"{value:.4g}" for value in block[:8]) in text
    for field in rf.formats.get(type_name).fields:
        assert f"{field.name} {field.dtype}" in text


def _bytes(type_name):
    return rf.formats.get(type_name).row_bytes(256)


def test_values_that_are_not_finite_are_counted():
    packed = np.full((2, 18), 0xFF, np.uint8)  # the scale of Q4_0 is NaN
    assert "none of 64 values is finite" in shown(rf.QTensor.from_bytes(packed, "Q4_0"))
    packed[0] = 0
    assert "32 not finite" in shown(rf.QTensor.from_bytes(packed, "Q4_0"))


def test_what_has_no_numbers_shows_its_sizes(lm):
    kernel = lm.model.blk[0].attn_q.kernel
    assert "65,536 weights" in shown(kernel)
    shapes = jax.eval_shape(lambda w: w, kernel.get_value())
    text = shown(shapes)
    assert "65,536 weights" in text and "of 65,536 values" not in text
    seen = []
    jax.jit(lambda cache: seen.append((repr(cache), shown(cache))))(lm.model.init_cache(3, 8))
    assert "tokens=?" in seen[0][0] and "tokens held: ?" in seen[0][1]


def test_a_cache_shows_sizes_and_no_numbers(lm):
    ids = lm.tokenizer.encode("ROMEO:\nO,")
    cache = lm.model.init_cache(1, 32)
    _, cache = lm.model(jnp.array([ids]), cache)
    assert f"tokens=[{len(ids)}]" in repr(cache) and f"tokens held: [{len(ids)}]" in shown(cache)
    assert "4 x KVState" in shown(cache)
    assert repr(cache.layers[0]) == (
        "KVState(keys=float32[1, 2, 32, 32], values=float32[1, 2, 32, 32], window=None)"
    )
    state = ShortConvolution(24, 3).init_state(2, 8, jnp.float32)
    assert repr(state) == "ConvState(inputs=float32[2, 2, 24])"


def test_a_report_is_its_table(lm):
    report = rf.kernel_report(lm.model)
    assert repr(report) == str(report) and "x4" in repr(report)
    assert "token_embd.weight" in shown(report) and "xla" in shown(report)


def test_a_perplexity_shows_its_numbers():
    assert re.sub(r"\s+", " ", shown(Perplexity(12.34567, 0.25, 1234, 5, 512))).strip() == (
        "perplexity 12.3457 +/- 0.2500 over 1,234 tokens in 5 windows of 512"
    )


@pytest.mark.parametrize("options", [dict(max_tokens=23), dict(max_tokens=40, stop=["e", "th"])])
def test_pieces_of_a_completion_are_its_text(lm, options):
    for seed in range(3):
        done = lm.generate("JULIET:", seed=seed, **options)
        assert "".join(done.pieces) == done.text and len(done.pieces) == len(done.ids)
        assert f"Completion({done.text!r}, {len(done.ids)} tokens, {done.finish_reason}" in repr(
            done
        )


def test_a_character_of_several_tokens_is_one_piece(lm):
    """The demo's tokens are bytes where it has no others."""
    text = "\u00fc\u4e2d"
    ids = lm.tokenizer.encode(text)
    answer = Answer(lm.tokenizer, [], None)
    for id in ids:
        answer.take(Generated([id], [-1.0], None))
    answer.take(Generated([], [], "length"))
    done = answer.completion()
    assert done.text == text and len(ids) > 2
    assert [piece for piece in done.pieces if piece] == ["\u00fc", "\u4e2d"]
    cut = Answer(lm.tokenizer, [], None)
    cut.take(Generated(ids[:1], [-1.0], None))
    cut.take(Generated([], [], "length"))
    assert cut.completion().pieces == ["\ufffd"] == [cut.completion().text]


NOTEBOOK = """
import sys, warnings
warnings.simplefilter("error")
import IPython.core.interactiveshell, ipykernel.zmqshell
ipykernel.zmqshell.ZMQInteractiveShell.instance()
{missing}
from rocmforge_jax.progress import is_widget, note, progress_bar
assert is_widget() is {widget}, is_widget()
with progress_bar(progress=None, total=3) as bar:
    assert bar.disable is {hidden} and (bar.disable or bar.delay == 1)
    note(bar, "silent")
"""


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_gets_widgets_and_no_warning_without_them(widgets):
    if widgets:
        pytest.importorskip("ipywidgets")
    pytest.importorskip("ipykernel")
    missing = "" if widgets else "sys.modules['ipywidgets'] = None"
    code = NOTEBOOK.format(missing=missing, widget=widgets, hidden=not widgets)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "") and "silent" not in run.stdout


def test_a_line_beside_a_bar_goes_to_stderr_with_the_bar(capsys):
    from rocmforge_jax.progress import is_widget, note, progress_bar

    assert not is_widget()
    for progress, expected in ((True, "a plan"), (False, "")):
        with progress_bar(progress=progress, total=2) as bar:
            note(bar, "a plan")
            bar.update(2)
        printed = capsys.readouterr()
        assert printed.out == "" and (expected in printed.err) and bool(printed.err) is progress


@pytest.mark.parametrize("function", [lambda a: str(a.dtype), np.shape, jnp.max])
def test_a_mapped_state_prints_what_is_in_place_of_planes(lm, function):
    state = jax.tree.map(function, nnx.state(lm.model.blk[0].attn_q))
    (packed,) = [v.get_value() for _, v in nnx.to_flat_state(state)]
    expected = ", ".join(f"'{name}': {value!r}" for name, value in packed.planes.items())
    assert f"QTensor({packed.type_name}, planes={{{expected}}})" in repr(state)
    assert packed.type_name in packed._repr_html_()


def test_a_model_shows_its_number_of_parameters(lm):
    """Counted from the shapes in the file; the demo's head is tied."""
    with rf.open_gguf(DEMO) as file:
        count = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    assert repr(lm).endswith(f", {count:,} parameters>")


def test_tabulate_is_refused_before_it_changes_classes(lm):
    before = type(lm.model).__call__, type(lm.model.blk[0]).__call__
    for module in (lm.model, lm.model.blk[0]):
        with pytest.raises(NotImplementedError, match=f"{type(module).__name__}.*param_count"):
            nnx.tabulate(module, jnp.ones((1, 3), jnp.int32))
    assert (type(lm.model).__call__, type(lm.model.blk[0]).__call__) == before


def test_capture_records_arrays_alone(lm):
    capture = nnx.capture(lm.model, nnx.Intermediate, method_outputs=nnx.Intermediate)
    _, seen = capture(jnp.array([[1, 2, 3]]))
    found = {path: variable.get_value() for path, variable in nnx.to_flat_state(seen)}
    assert ("blk", 0, "__call__") in found
    for value in found.values():
        parts = jax.tree.leaves(value, is_leaf=lambda part: isinstance(part, nnx.Module))
        assert not any(isinstance(part, nnx.Module | nnx.Variable) for part in parts)


def test_capture_on_explicit_axes_warns():
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    model = rf.load("demo", mesh=mesh, progress=False).model
    capture = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
    with pytest.warns(UserWarning, match="capture.*Explicit.*Auto"):
        capture(jnp.array([[1, 2, 3]]))
