"""The demo model from its file to text: pieces, stop strings, batches, refusals, and how well it
knows its plays.
"""

import concurrent.futures
import copy
import json
import math
import pickle
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.gguf import open_gguf, write_gguf
from rocmforge_jax.locate import resolve
from rocmforge_jax.text import tokenizer_from_metadata

DEMO, PROMPT = resolve("demo"), "ROMEO:"


@pytest.fixture(scope="module")
def lm():
    return rf.load("demo", progress=False)


@pytest.mark.core
def test_a_completion_has_all_its_parts(lm):
    done = lm.generate(PROMPT, max_tokens=20, seed=1)
    assert isinstance(done, rf.Completion)
    assert len(done.ids) == len(done.logprobs) == 20 and done.finish_reason == "length"
    assert done.prompt_tokens == len(lm.tokenizer.encode(PROMPT))
    assert done.text == lm.tokenizer.decode(done.ids) == str(done)


@pytest.mark.core
def test_logprobs_are_those_of_the_decoder(lm):
    done = lm.generate(PROMPT, max_tokens=20, seed=1)
    ids = lm.tokenizer.encode(PROMPT) + done.ids
    graphdef, state = nnx.split(lm.model)
    logits = jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens)[0][0])(
        state, jnp.array([ids], jnp.int32)
    )
    logits = np.asarray(logits, np.float64)[done.prompt_tokens - 1 : -1]
    expected = logits[np.arange(20), done.ids] - np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(done.logprobs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("options", [{}, {"stop": "\n\n"}, {"temperature": 0}], ids=str)
def test_a_stream_is_the_text_in_pieces(lm, options):
    whole = lm.generate(PROMPT, max_tokens=60, seed=3, **options).text
    stream = lm.generate(PROMPT, max_tokens=60, seed=3, stream=True, **options)
    assert iter(stream) is stream
    pieces = list(stream)
    assert "".join(pieces) == whole and all(pieces[:-1])
    assert len(pieces) > (1 if "stop" not in options else 0)


@pytest.mark.core
def test_a_stop_string_across_tokens(lm):
    """It begins and ends inside tokens.

    The text ends before it, the ids with the token that completes it.
    """
    done = lm.generate(PROMPT, max_tokens=40, seed=1)
    pieces = [lm.tokenizer.decode([id]) for id in done.ids]
    place = next(i for i in range(5, 30) if len(pieces[i]) > 1 and len(pieces[i + 1]) > 1)
    stop = pieces[place][-1:] + pieces[place + 1][:1]
    stop = next(
        s for s in (pieces[place - 1] + pieces[place] + stop, stop) if done.text.count(s) == 1
    )
    stopped = lm.generate(PROMPT, max_tokens=40, seed=1, stop=["never this", stop])
    assert stopped.finish_reason == "stop"
    assert stopped.text == done.text[: done.text.index(stop)]
    assert done.ids[: len(stopped.ids)] == stopped.ids
    assert stop in lm.tokenizer.decode(stopped.ids) and stop not in lm.tokenizer.decode(
        stopped.ids[:-1]
    )


@pytest.mark.core
def test_a_stop_string_lets_the_next_prompt_in(lm, monkeypatch):
    """Six answers of one word take turns in one slot, and not for 200 tokens each."""
    decode, lengths = lm.engine.steps.decode, []

    def watched(slots, tokens):
        lengths.append(tokens)
        return decode(slots, tokens)

    monkeypatch.setattr(lm.engine, "max_slots", 1)
    monkeypatch.setattr(lm.engine.steps, "decode", watched)
    prompts = [f"{name}: I" for name in ("ROMEO", "JULIET", "NURSE", "PARIS", "TYBALT", "PETER")]
    answers = lm.generate(prompts, max_tokens=200, stop=[" ", "\n"], temperature=0)
    assert [answer.finish_reason for answer in answers] == ["stop"] * 6
    most = sum(len(answer.ids) for answer in answers) + 6 * lengths[0]
    assert sum(lengths) <= most < 400


@pytest.mark.parametrize("progress", [None, True, False])
def test_a_list_shows_its_progress(lm, capfd, progress):
    """stderr is no terminal here, so that the default shows nothing."""
    lm.generate(["ROMEO:", "KING"], n=2, max_tokens=4, progress=progress)
    shown = capfd.readouterr().err
    assert ("generate: 100%" in shown and "4/4" in shown) == (progress is True), shown


def test_no_prompts_have_no_answers(lm):
    assert lm.generate([], max_tokens=3) == lm.generate([], n=2) == []


def test_one_set_of_parameters_has_a_seed_for_each_answer(lm):
    prompts, params = ["ROMEO:", "ROMEO:"], rf.SamplingParams(seed=7)
    pairs = lm.generate(prompts, params=params, n=2, max_tokens=8)
    alone = [lm.generate("ROMEO:", seed=seed, max_tokens=8) for seed in (7, 8, 9, 10)]
    assert [done.ids for pair in pairs for done in pair] == [done.ids for done in alone]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_an_engine_of_its_own(lm, copied):
    expected, other = lm.generate(PROMPT, max_tokens=8, temperature=0), copied(lm)
    assert other.generate(PROMPT, max_tokens=8, temperature=0) == expected
    changed = nnx.clone(lm.model)
    changed.output_norm.scale[...] = -changed.output_norm.scale[...]
    other.model = changed
    assert other.generate(PROMPT, max_tokens=8, temperature=0).ids != expected.ids
    assert lm.generate(PROMPT, max_tokens=8, temperature=0) == expected
    assert other.source is lm.source


def test_threads_may_generate_at_once(lm):
    """They compete for the cache of the same prompt, and switch often."""
    ids = lm.tokenizer.encode("First Citizen:\nBefore we proceed any further, hear me speak.")
    assert len(ids) > 16
    expected = lm.generate(ids, max_tokens=2, temperature=0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            tasks = [pool.submit(lm.generate, ids, max_tokens=2, temperature=0) for _ in range(60)]
            assert {tuple(task.result().ids) for task in tasks} == {tuple(expected.ids)}
    finally:
        sys.setswitchinterval(interval)


def test_a_file_may_change_once_it_is_loaded(lm, tmp_path):
    """Weights are copied, also those whose copies take their time."""
    path, original = tmp_path / "model.gguf", DEMO.read_bytes()
    expected = lm.generate(PROMPT, max_tokens=8, temperature=0)
    for _ in range(5):
        path.write_bytes(original)
        loaded = rf.load(path, progress=False)
        path.write_bytes(b"")
        assert loaded.generate(PROMPT, max_tokens=8, temperature=0).ids == expected.ids


def test_a_model_is_not_pickled(lm):
    with pytest.raises(TypeError, match="cannot be pickled: write it with rf.save"):
        pickle.dumps(lm)


def test_a_chat_template_may_be_a_text(lm):
    other = copy.copy(lm)
    other.chat_template = "{{ messages[0].content }}"
    hello = [{"role": "user", "content": PROMPT}]
    assert other.chat(hello, max_tokens=6, temperature=0).ids == (
        lm.generate(PROMPT, max_tokens=6, temperature=0).ids
    )
    with pytest.raises(TypeError, match="chat_template must be .* got int"):
        other.chat_template = 5


@pytest.mark.core
def test_texts_in_a_list_are_those_of_one_after_the_other(lm):
    prompts = ["ROMEO:", "First Citizen:\nBefore we proceed", "KING"]
    together = lm.generate(prompts, max_tokens=12, seed=4)
    alone = [lm.generate(prompt, max_tokens=12, seed=4 + i) for i, prompt in enumerate(prompts)]
    assert [done.ids for done in together] == [done.ids for done in alone]
    assert [done.text for done in together] == [done.text for done in alone]
    assert [done.prompt_tokens for done in together] == [done.prompt_tokens for done in alone]


@pytest.mark.core
def test_seeds(lm):
    texts = [lm.generate(PROMPT, max_tokens=20, seed=seed).text for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.core
def test_a_full_context():
    prompt = len(rf.load_tokenizer(DEMO).encode(PROMPT))
    lm = rf.load("demo", context_length=prompt + 1, progress=False)
    done = lm.generate(PROMPT, max_tokens=None, temperature=0)
    assert (done.finish_reason, done.prompt_tokens, len(done.ids)) == ("context", prompt, 1)
    with pytest.raises(ValueError, match=rf"prompt has \d+ tokens, the context is {prompt + 1}"):
        lm.generate("Now is the winter of our discontent " * 8)


@pytest.mark.core
def test_an_empty_prompt_begins_a_text(lm):
    """With the token that texts begin with."""
    done = lm.generate("", max_tokens=5)
    assert done.prompt_tokens == 1 and len(done.ids) == 5


@pytest.mark.core
def test_chat_without_a_template_says_so(lm):
    with pytest.raises(rf.ChatTemplateError, match="no chat template"):
        lm.chat([{"role": "user", "content": "hi"}])


@pytest.mark.core
def test_chat_renders_the_template_of_the_file(tmp_path, lm):
    demo = open_gguf(DEMO)
    template = "{% for m in messages %}{{ m.content }}:{% endfor %}{{ tail }}"
    tensors = {name: (tensor.format, tensor.data) for name, tensor in demo.tensors.items()}
    write_gguf(
        tmp_path / "chat.gguf", dict(demo.metadata) | {"tokenizer.chat_template": template}, tensors
    )
    chatty = rf.load(tmp_path / "chat.gguf", progress=False)
    answer = chatty.chat(
        [{"role": "user", "content": "ROMEO"}], template={"tail": "\nO"}, max_tokens=1, seed=2
    )
    assert answer.prompt_tokens == len(lm.tokenizer.encode("ROMEO:\nO"))
    assert answer.ids == lm.generate("ROMEO:\nO", max_tokens=1, seed=2).ids


TURNS = (
    "{% for m in messages %}{{ m.role }}<|endoftext|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ROMEO:{% endif %}"
)


@pytest.fixture
def chatty(lm):
    """The demo with a template that has a control token."""
    bos = rf.text.chat_template_from_metadata(open_gguf(DEMO).metadata).bos_token
    before, lm.chat_template = lm.chat_template, rf.text.ChatTemplate(TURNS, bos_token=bos)
    yield lm
    lm.chat_template = before


@pytest.mark.core
def test_control_tokens_in_messages_are_text_unless_asked_for(chatty):
    messages = [{"role": "user", "content": "Now <|endoftext|> then"}]
    text = "user<|endoftext|>Now <|endoftext|> then\nROMEO:"
    encode = chatty.tokenizer.encode
    as_text = encode("user<|endoftext|>", parse_special=True) + encode(text[17:])
    assert chatty.chat(messages, max_tokens=1).prompt_tokens == len(as_text)
    read = chatty.chat(messages, max_tokens=1, parse_special_in_messages=True)
    assert read.prompt_tokens == len(encode(text, parse_special=True)) < len(as_text)


@pytest.mark.core
def test_chat_continues_the_last_message(chatty):
    messages = [
        {"role": "user", "content": "Speak."},
        {"role": "assistant", "content": "Now is the winter of our "},
    ]
    text = "user<|endoftext|>Speak.\nassistant<|endoftext|>Now is the winter of our "
    options = dict(max_tokens=6, seed=1)
    expected = chatty.generate(text, parse_special=True, **options)
    assert chatty.chat(messages, continue_final_message=True, **options) == expected
    stream = chatty.chat(messages, continue_final_message=True, stream=True, **options)
    assert "".join(stream) == expected.text


@pytest.mark.core
@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("temprature", "'temperature'"),
        ("max_token", "'max_tokens'"),
        ("continue_last_message", "'continue_final_message'"),
        ("parse_special", "'parse_special_in_messages'"),
        ("zzz", "it takes .*max_tokens"),
    ],
)
def test_chat_names_the_nearest_keyword(chatty, given, near):
    with pytest.raises(TypeError, match=rf"chat\(\) .*'{given}'.*{near}"):
        chatty.chat([{"role": "user", "content": "hi"}], **{given: 1})


@pytest.mark.core
def test_messages_are_dropped_until_an_answer_fits(chatty):
    system = {"role": "system", "content": "Be kind."}
    turn = [
        {"role": "user", "content": "word " * 60},
        {"role": "assistant", "content": "yes " * 60},
    ]
    messages, length = [system, *turn * 9, turn[0]], chatty.engine.context_length
    lengths = [
        len(chatty.chat_template.encode([system, *turn * count, turn[0]], chatty.tokenizer))
        for count in range(10)
    ]
    for room in (1, 7, length // 4, length, None):
        free = min(room or length, length // 4)
        count = max(count for count, tokens in enumerate(lengths) if tokens + free <= length)
        fitting = chatty.fit_messages(messages, max_tokens=room)
        assert fitting == [system, *turn * count, turn[0]] and count < 9
    assert len(messages) == 20
    long = [*turn, {"role": "user", "content": "word " * length}]
    assert chatty.fit_messages(long) == long[2:]
    with pytest.raises(ValueError, match=rf"has \d+ tokens, the context is {length}"):
        chatty.chat(long[2:])


@pytest.mark.core
def test_strict_refuses_unknown_keys_of_the_tokenizer(tmp_path):
    demo, path = open_gguf(DEMO), tmp_path / "new.gguf"
    tensors = {name: (tensor.format, tensor.data) for name, tensor in demo.tensors.items()}
    write_gguf(path, dict(demo.metadata) | {"tokenizer.ggml.new_rule": True}, tensors)
    with pytest.warns(UserWarning, match="not known here: tokenizer.ggml.new_rule") as caught:
        rf.load(path, progress=False)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.raises(rf.GGUFError, match="not known here: tokenizer.ggml.new_rule"):
        rf.load(path, progress=False, strict=True)


@pytest.mark.core
@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ({1, 2}, {}, TypeError, "list of either, got set"),
        (np.array(3), {}, TypeError, "list of either, got ndarray"),
        ([1, b"a"], {}, TypeError, "got a list with int"),
        ([[1, 2], 3], {}, TypeError, "got a list with int"),
        (b"text", {}, TypeError, "list of either, got bytes"),
        (5, {}, TypeError, "list of either, got int"),
        (None, {}, TypeError, "list of either, got NoneType"),
        ({"content": "text"}, {}, TypeError, "list of either, got dict"),
        ("a", {"max_tokens": -1}, ValueError, "max_tokens must be .* of at least 1, got -1"),
        ("a", {"max_tokens": "9"}, ValueError, "max_tokens must be .* of at least 1, got '9'"),
        ("a", {"stop": b"x"}, TypeError, "stop must be a string or a list of strings, got b'x'"),
        ("a", {"stop": ["x", 1]}, TypeError, "list of strings, got 1 in it"),
        ("a", {"stop": {"a": 1}}, TypeError, "list of strings, got {'a': 1}"),
        ("a", {"top_logprobs": ""}, ValueError, "top_logprobs must be an integer .* got ''"),
        ("a", {"progress": "no"}, TypeError, "progress must be True or False, got 'no'"),
        ([2**70], {}, ValueError, f"prompt has the id {2**70}"),
        ("a", {"params": {"seed": 1}, "seed": 2}, TypeError, "give params or seed, not both"),
        ("a", {"params": []}, ValueError, "1 prompts need as many .* parameters, got 0"),
        (["a", "b"], {"stream": True}, ValueError, "stream=True takes one prompt, got a list of 2"),
        ("a", {"temperature": -1}, ValueError, "temperature must be"),
        ("a", {"max_tokens": 0}, ValueError, "max_tokens must be an integer of at least 1, got 0"),
        ("a", {"stop": ""}, ValueError, "stop strings have at least one character"),
        ("a", {"heat": 1}, TypeError, "heat"),
    ],
    ids=str,
)
def test_what_generate_refuses(lm, prompt, options, error, message):
    """At the call, a stream as well: nothing has to be taken from it first."""
    with pytest.raises(error, match=message):
        lm.generate(prompt, **options)
    if isinstance(prompt, str):
        with pytest.raises(error, match=message):
            lm.generate(prompt, stream=True, **options)


@pytest.mark.core
def test_files_that_cannot_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file nope.gguf"):
        rf.load("nope.gguf")
    with pytest.raises(rf.GGUFError, match="is a folder"):
        rf.load(tmp_path)
    (tmp_path / "text.gguf").write_text("no model at all, but some text")
    with pytest.raises(rf.GGUFError):
        rf.load(tmp_path / "text.gguf")
    (tmp_path / "cut.gguf").write_bytes(DEMO.read_bytes()[:100_000])
    with pytest.raises(rf.GGUFError, match="cut.gguf"):
        rf.load(tmp_path / "cut.gguf")


@pytest.mark.core
def test_a_changed_decoder_is_used_once_assigned(lm):
    other = rf.LanguageModel(lm.model, lm.tokenizer)
    before = other.generate(PROMPT, max_tokens=1, temperature=0).ids
    other.model = nnx.clone(lm.model)
    other.model.output_norm.scale = nnx.Param(-other.model.output_norm.scale.get_value())
    other.model = other.model
    assert (
        other.generate(PROMPT, max_tokens=1, temperature=0).ids
        != before
        == lm.generate(PROMPT, max_tokens=1, temperature=0).ids
    )


def changed_demo(path, *, rows=1024, **metadata):
    """A copy of the demo with `rows` in its embedding: the last ones speak for themselves."""
    demo = open_gguf(DEMO)
    tensors = {name: (tensor.format, tensor.data) for name, tensor in demo.tensors.items()}
    if rows > 1024:
        format, data = tensors["token_embd.weight"]
        again = np.arange(rows) % 1024  # rows that are as likely as those they repeat
        tensors["token_embd.weight"] = format, data[again]
    keys = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    write_gguf(path, dict(demo.metadata) | {"llama.vocab_size": rows} | keys, tensors)
    return rf.load(path, progress=False)


@pytest.mark.core
@pytest.mark.parametrize("temperature", [0, 4.0])
def test_rows_beyond_the_tokens_are_never_drawn(tmp_path, lm, temperature):
    """Half of the rows repeat a token's: the text is the same as without them, in distribution."""
    padded = changed_demo(tmp_path / "padded.gguf", rows=2048)
    done = padded.generate(PROMPT, max_tokens=60, temperature=temperature, top_k=0, min_p=0)
    assert len(done.ids) == 60 and max(done.ids) < 1024
    assert done.text == lm.tokenizer.decode(done.ids)
    if not temperature:
        whole = lm.generate(PROMPT, max_tokens=60, temperature=0)
        assert done.ids == whole.ids
        # Every token shares its probability with a row that is never drawn.
        expected = np.array(whole.logprobs) - np.log(2)
        np.testing.assert_allclose(done.logprobs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.core
def test_suppressed_tokens_of_a_file_are_never_drawn(tmp_path, lm):
    first = lm.generate(PROMPT, max_tokens=9, temperature=0).ids
    with pytest.warns(UserWarning, match="suppress_tokens: 2 ids .* such as -1: .* 1024 tokens"):
        quiet = changed_demo(tmp_path / "quiet.gguf", suppress_tokens=[*first, -1, 1024])
    assert quiet.tokenizer.suppressed_ids == set(first)
    assert not set(quiet.generate(PROMPT, max_tokens=60, temperature=0).ids) & set(first)
    assert lm.tokenizer.suppressed_ids == frozenset()


@pytest.mark.core
@pytest.mark.parametrize("value", [5, [1.5], "text", [[1], [2]]], ids=str)
def test_suppressed_tokens_must_be_a_list_of_integers(value):
    metadata = dict(open_gguf(DEMO).metadata) | {"tokenizer.ggml.suppress_tokens": value}
    with pytest.raises(rf.GGUFError, match="suppress_tokens is .*: expected a list of integers"):
        tokenizer_from_metadata(metadata)


@pytest.mark.core
def test_the_last_seeds_of_a_list_start_again(lm):
    last = 2**64 - 1
    two = lm.generate([PROMPT, PROMPT], max_tokens=9, seed=last)
    assert [done.ids for done in two] == [
        lm.generate(PROMPT, max_tokens=9, seed=seed).ids for seed in (last, 0)
    ]


def test_a_tokenizer_larger_than_the_model_is_refused(lm):
    tokenizer = rf.load_tokenizer(DEMO)
    tokenizer.vocab_size = 2000
    with pytest.raises(ValueError, match="the tokenizer has 2000 tokens, the model embeds 1024"):
        rf.LanguageModel(lm.model, tokenizer)


# A sixth of the windows has 14,000 tokens less, so their mean loss is a few hundredths off.
@pytest.mark.parametrize(
    ("every", "gate"), [pytest.param(1, 1e-3, marks=pytest.mark.heavy), (6, 0.1)]
)
def test_perplexity_of_the_plays_it_was_not_trained_on(lm, reference, every, gate):
    """demo.json's number, computed here from the decoder's logits: windows whose second half is
    predicted.
    """
    told = json.loads(DEMO.with_suffix(".json").read_text())
    text = (reference / "text" / "shakespeare.txt").read_text()
    held_out = text[len(text) * 9 // 10 :]
    assert len(held_out) == told["held_out_characters"]
    ids, window = np.array(lm.tokenizer.encode(held_out), np.int32), told["window"]
    graphdef, state = nnx.split(lm.model)

    @jax.jit
    def loss(state, tokens_T):
        logits = nnx.merge(graphdef, state)(tokens_T[None, :-1])[0][0, window // 2 :]
        return -jnp.take_along_axis(
            jax.nn.log_softmax(logits), tokens_T[window // 2 + 1 :, None], axis=-1
        )[:, 0]

    losses = [
        np.asarray(loss(state, ids[start : start + window]), np.float64)
        for start in range(0, len(ids) - window + 1, every * window)
    ]
    assert math.exp(np.mean(losses)) == pytest.approx(told["held_out_perplexity"], rel=gate)


@pytest.mark.core
def test_it_writes_plays(lm, reference):
    """Speakers in capitals before a colon, in words that the plays have."""
    words = set(
        re.findall(r"[a-z']+", (reference / "text" / "shakespeare.txt").read_text().lower())
    )
    text = PROMPT + lm.generate(PROMPT, max_tokens=200, seed=0).text
    written = re.findall(r"[a-z']+", text.lower())
    assert len(written) > 60 and sum(word in words for word in written) > 0.9 * len(written)
    assert len(re.findall(r"^[A-Z][A-Za-z ]+:$", text, re.MULTILINE)) >= 2
