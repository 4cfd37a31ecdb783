"""Language models: a decoder with its tokenizer and chat template, for texts and embeddings."""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from rocmforge_jax import compilation_cache
from rocmforge_jax.arguments import check_keywords, flag, integer, named_values, shown
from rocmforge_jax.backends import cpp
from rocmforge_jax.completion import Answer, Completion, Piece, streamed
from rocmforge_jax.generate import (
    Embedder,
    Engine,
    GenerateOptions,
    Perplexity,
    PromptCache,
    SamplingOptions,
    SamplingParams,
    check_context_length,
    perplexity,
)
from rocmforge_jax.generate.options import Processor
from rocmforge_jax.gguf import GGUFError, GGUFFile, open_gguf
from rocmforge_jax.gguf.errors import about_file
from rocmforge_jax.html import element, escape, joined
from rocmforge_jax.locate import resolve
from rocmforge_jax.models import (
    Decoder,
    DecoderConfig,
    LoadOptions,
    Source,
    abstract_decoder,
    checked_pooling,
    decoder_of,
    param_count,
    plan_memory,
)
from rocmforge_jax.models.overview import decoder_html
from rocmforge_jax.models.patterns import Patterns
from rocmforge_jax.progress import note, progress_bar, updates
from rocmforge_jax.requested import Prompt, as_prompts, best, counts, each_params
from rocmforge_jax.text import (
    ChatTemplate,
    StopStrings,
    Tokenizer,
    chat_template_from_metadata,
    tokenizer_from_metadata,
    without_oldest_turn,
)

#: The variables of chat templates that are most often taken for keywords of `chat`.
_TEMPLATE_VARIABLES = {
    "template": (
        "tools",
        "documents",
        "enable_thinking",
        "reasoning_effort",
        "add_generation_prompt",
    )
}


def _check_parts(model: Any, tokenizer: Any) -> None:
    """Raises TypeError unless the arguments are a decoder and a tokenizer, in this order."""
    if not isinstance(model, Decoder) or isinstance(tokenizer, Decoder):
        raise TypeError(
            "a LanguageModel is made of a Decoder and a Tokenizer, in this order, got a"
            f" {type(model).__name__} and a {type(tokenizer).__name__}"
        )


class LanguageModel:
    """A decoder with its tokenizer, chat template and caches.

    `model` is the decoder, a Flax NNX module like any other. Tokens that the tokenizer suppresses
    are never generated. Neither are rows of the embedding beyond the tokenizer's tokens.

    A text is generated with the arrays that `model` has when the text begins, so the model may be
    trained in place. Models of the same structure share compiled programs.

    `close`, or the end of a `with` block, frees the memory of weights and caches.

    Attributes:
        source: The parts of the GGUF file that `save` needs; None without a file.
    """

    source: Source | None = None

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None = None,
        *,
        context_length: int | None = None,
    ):
        _check_parts(model, tokenizer)
        if tokenizer.vocab_size > model.config.vocabulary:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model embeds"
                f" {model.config.vocabulary}"
            )
        self.tokenizer = tokenizer
        self.chat_template = chat_template or ChatTemplate(None)
        self._context_length = context_length
        padding = range(tokenizer.vocab_size, model.config.vocabulary)
        self._suppressed_ids = tokenizer.suppressed_ids.union(padding)
        self._engine: Engine | None = None
        self.model = model

    @property
    def model(self) -> Decoder:
        """The decoder, a Flax NNX module. Assign another decoder to generate with it."""
        return self._open(self._model)

    @model.setter
    def model(self, model: Decoder):
        _check_parts(model, self.tokenizer)
        if self._engine is not None and model.config == self._engine.config:
            self._engine.use(model)
        else:
            self._engine = Engine(
                model, context_length=self._context_length, suppressed_ids=self._suppressed_ids
            )
        self._model, self._embedder = model, None

    @property
    def engine(self) -> Engine:
        """The engine, which generates token ids."""
        return self._open(self._engine)

    def close(self) -> None:
        """Frees the memory of the model, its caches and its compiled steps.

        Arrays with other references stay in memory: for example, if a variable refers to `model`,
        or a text is still being streamed. The tokenizer remains. A closed model computes nothing
        until another decoder is assigned to `model`.
        """
        self._model = self._engine = self._embedder = None

    def __enter__(self) -> "LanguageModel":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _open(self, part):
        """Returns `part` unchanged; raises ValueError if it is None because the model is closed."""
        if part is None:
            raise ValueError("this LanguageModel is closed: load it again")
        return part

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata keys of the GGUF file; empty without a file."""
        return {} if self.source is None else self.source.metadata

    @property
    def opened_for(self) -> int | None:
        """The `context_length` given at loading; None if none was given."""
        return self._context_length

    @property
    def embedder(self) -> Embedder:
        """The embedder, which computes embeddings of token ids. It is created at its first use."""
        if self._embedder is None:
            self._embedder = Embedder(self.model, self.engine.context_length)
        return self._embedder

    def __repr__(self):
        if self._model is None:
            return "<LanguageModel: closed>"
        config = self.model.config
        return (
            f"<LanguageModel {config.architecture}: {len(config.layers)} layers, width"
            f" {config.width}, vocabulary {config.vocabulary}, {param_count(self.model):,}"
            " parameters>"
        )

    def _repr_html_(self) -> str:
        if self._model is None:
            return escape(repr(self))
        context = f"context of {self.engine.context_length:,} tokens"
        return joined(decoder_html(self.model), element("div", f"{self.tokenizer}, {context}"))

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = 256,
        n: int | None = None,
        stream: Literal[True],
        parse_special: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Piece]: ...

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = 256,
        n: None = None,
        stream: Literal[False] | None = False,
        parse_special: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = 256,
        n: int,
        stream: Literal[False] | None = False,
        parse_special: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: Iterable[Prompt],
        *,
        max_tokens: int | None = 256,
        n: None = None,
        stream: Literal[False] | None = False,
        parse_special: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: Iterable[Prompt],
        *,
        max_tokens: int | None = 256,
        n: int,
        stream: Literal[False] | None = False,
        parse_special: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> list[list[Completion]]: ...

    @functools.partial(check_keywords, options=GenerateOptions)
    def generate(
        self,
        prompt: Prompt | Iterable[Prompt],
        *,
        max_tokens: int | None = 256,
        n: int | None = None,
        stream: bool | None = False,
        parse_special: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion | list[Completion] | list[list[Completion]] | Iterator[Piece]:
        """Continues a text, or each of a list of texts.

        Args:
            prompt: A text; or the ids of its tokens, which are not changed; or a list of either. In
                a list, prompt i is sampled with seed + i.
            max_tokens: The largest number of new tokens; None for the rest of the context.
            n: The number of answers to return for each prompt, as a list. The prompt is computed
                once. Answers are sampled with successive seeds.
            stream: Whether to return an iterator of pieces of text instead, for one prompt.
            parse_special: Whether to read control tokens written in the prompt.
            options: The options of `AnswerOptions` and the fields of `SamplingParams` (temperature,
                top_k, top_p, seed, ...). None stands for the default.
        """
        parse_special, stream = flag("parse_special", parse_special), _streams(stream)
        prompts, is_one = as_prompts(prompt)
        if stream and not is_one:
            raise ValueError(f"stream=True takes one prompt, got a list of {len(prompts)}")
        ids = [self._encode(one, parse_special) if isinstance(one, str) else one for one in prompts]
        answers = self._complete(ids, max_tokens=max_tokens, stream=stream, n=n, **options)
        return answers[0] if isinstance(answers, list) and is_one else answers

    def _complete(
        self,
        prompts: list[list[int]],
        *,
        max_tokens: int | None,
        stream: bool,
        n: int | None = None,
        stop: str | Iterable[str] | None = None,
        params: SamplingParams | Iterable[SamplingParams] | None = None,
        logits_processor: Processor | Iterable[Processor] | None = None,
        best_of: int | None = None,
        top_logprobs: int | None = None,
        cache: PromptCache | None = None,
        progress: bool | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Any] | Iterator[Piece]:
        """Generates like `generate`, for prompts that are token ids.

        Returns:
            The completion of each prompt, or a list of completions if `n` is given. With `stream`,
            an iterator of the pieces of all answers.
        """
        wanted, drawn = counts(n, best_of, stream)
        stops, top = StopStrings(stop).stops, top_logprobs or 0
        generation = self.engine.generate(
            prompts,
            each_params(params, sampling, len(prompts), drawn),
            max_tokens=max_tokens,
            stop_ids=self.tokenizer.stop_ids,
            logits_processor=logits_processor,
            samples=drawn,
            top_logprobs=top,
            cache=cache,
        )
        answers = [
            Answer(self.tokenizer, prompt, stops, with_top=top > 0, index=index)
            for prompt in prompts
            for index in range(drawn)
        ]
        pieces = streamed(answers, generation)
        if stream:
            return pieces
        if len(answers) == 1 and progress is None:
            progress = False
        how: dict[str, Any] = dict(total=len(answers), unit="answer", desc="generate")
        with progress_bar(progress=progress, delay=0 if progress else 3, **how) as bar:
            for piece in pieces:
                bar.update(piece.finish_reason is not None)
        done = [answer.completion() for answer in answers]
        of_prompts = [done[i : i + drawn] for i in range(0, len(done), drawn)]
        if drawn > wanted:
            of_prompts = [best(completions)[:wanted] for completions in of_prompts]
        return [completions[0] for completions in of_prompts] if n is None else of_prompts

    @overload
    def chat(
        self,
        messages: Sequence[Any],
        *,
        template: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
        parse_special_in_messages: bool = False,
        max_tokens: int | None = 256,
        n: int | None = None,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Piece]: ...

    @overload
    def chat(
        self,
        messages: Sequence[Any],
        *,
        template: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
        parse_special_in_messages: bool = False,
        max_tokens: int | None = 256,
        n: None = None,
        stream: Literal[False] | None = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Any],
        *,
        template: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
        parse_special_in_messages: bool = False,
        max_tokens: int | None = 256,
        n: int,
        stream: Literal[False] | None = False,
        **options: Unpack[GenerateOptions],
    ) -> list[Completion]: ...

    @functools.partial(check_keywords, options=GenerateOptions, variables=_TEMPLATE_VARIABLES)
    def chat(
        self,
        messages: Sequence[Any],
        *,
        template: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
        parse_special_in_messages: bool = False,
        max_tokens: int | None = 256,
        n: int | None = None,
        stream: bool | None = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion | list[Completion] | Iterator[Piece]:
        """Answers a conversation [{"role": "user", "content": "..."}, ...].

        Args:
            messages: in the form of OpenAI's interface; `ChatTemplate.render` lists the supported
                contents.
            template: variables of the chat template, such as tools.
            continue_final_message: whether to continue the last message instead of answering it.
                The answer has only the new text. A string names the field to continue, such as
                "reasoning_content".
            parse_special_in_messages: whether to read control tokens written in messages. By
                default they are ordinary text, except in messages of the assistant.
            max_tokens: the largest number of new tokens; None for the rest of the context.
            n: the number of answers to return, as a list.
            stream: whether to return an iterator of pieces of text instead.
            options: as for `generate`.

        Raises:
            ChatTemplateError: the file has no template, or it fails.
        """
        prompt = self._chat_ids(
            messages,
            template,
            continue_final_message=continue_final_message,
            parse_special_in_messages=parse_special_in_messages,
        )
        stream = _streams(stream)
        answers = self._complete([prompt], max_tokens=max_tokens, stream=stream, n=n, **options)
        return answers[0] if isinstance(answers, list) else answers

    @functools.partial(check_keywords, variables=_TEMPLATE_VARIABLES)
    def fit_messages(
        self,
        messages: Sequence[Any],
        *,
        max_tokens: int | None = 256,
        template: Mapping[str, Any] | None = None,
        parse_special_in_messages: bool = False,
    ) -> list[Any]:
        """Drops the oldest turns of a conversation until an answer has room in the context.

        A turn is a message of the user with all messages that follow it. Messages before the first
        turn, such as the system message, are kept.

        Args:
            messages: the conversation.
            max_tokens: the longest answer. At most a quarter of the context is kept free for it.
            template: as in `chat`.
            parse_special_in_messages: as in `chat`.

        Returns:
            The messages that are kept. They always include the last turn, even if it leaves less
            room.

        Raises:
            ChatTemplateError: the file has no template, or it fails.
        """
        length = self.engine.context_length
        longest = length if max_tokens is None else integer("max_tokens", max_tokens, 1)
        room = max(1, min(length // 4, longest))
        kept = messages
        options = {"parse_special_in_messages": parse_special_in_messages}
        while len(self._chat_ids(kept, template, **options)) + room > length:
            shorter = without_oldest_turn(kept)
            if len(shorter) == len(kept):
                break
            kept = shorter
        return list(kept)

    def _chat_ids(self, messages, template: Mapping | None, **options) -> list[int]:
        self.engine.check_generates()
        variables = named_values("template", template)
        if "messages" in variables:
            raise TypeError("template cannot hold 'messages', which have an argument of their own")
        return self._begun(
            self.chat_template.encode(messages, self.tokenizer, variables=variables, **options)
        )

    def perplexity(
        self, text: str, *, window: int | None = None, progress: bool | None = None
    ) -> Perplexity:
        """Computes the perplexity of a text as llama.cpp does: see `generate.perplexity`.

        window: the number of tokens per window, default 512 or the context if it is shorter.
        """
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text, add_special=True)
        window = min(512, self.engine.context_length) if window is None else window
        return perplexity(
            self.engine,
            ids,
            window=window,
            bos_id=tokenizer.bos_id if tokenizer.add_bos else None,
            progress=progress,
        )

    @overload
    def embed(
        self,
        texts: Iterable[str],
        *,
        pooling: Literal["none"],
        normalize: bool | None = None,
        truncate: bool = False,
        parse_special: bool = False,
        progress: bool | None = None,
    ) -> list[np.ndarray]: ...

    @overload
    def embed(
        self,
        texts: str | Iterable[str],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        truncate: bool = False,
        parse_special: bool = False,
        progress: bool | None = None,
    ) -> np.ndarray: ...

    @check_keywords
    def embed(
        self,
        texts: str | Iterable[str],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        truncate: bool = False,
        parse_special: bool = False,
        progress: bool | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Computes an embedding of each text. Products of embeddings are the texts' similarities.

        Args:
            texts: a text, or a list of them. Each gets the tokens that begin and end a text.
            pooling: how the states of a text's tokens become one vector: "mean", "cls" for the
                first token, "last", "none" for a vector of each token, or "rank" for the scores of
                a reranker. Default: the pooling of the file.
            normalize: whether to scale vectors to length 1. Default: true, except for scores.
            truncate: whether to cut off the end of a text that is too long. The token that closes
                the text is kept. By default such a text is an error.
            parse_special: whether to read control tokens written in the texts.
            progress: whether to show a bar on stderr. Default: for long lists, on a terminal.

        Returns:
            float32 [texts, width], or [width] for one text. With "none", a list of arrays [tokens,
            width], or one array for one text.

        Raises:
            ValueError: the file names no pooling and none is given, or a text has no tokens or too
                many.
        """
        listed = _as_list(texts, "embed")
        kind = checked_pooling(self.model.config, pooling)
        normalize = kind != "rank" if normalize is None else flag("normalize", normalize)
        truncate, parse_special = flag("truncate", truncate), flag("parse_special", parse_special)
        ids = [self._whole_text(i, text, truncate, parse_special) for i, text in enumerate(listed)]
        how: dict[str, Any] = dict(pooling=kind, normalize=normalize, progress=progress)
        vectors = self.embedder.embed(ids, **how)
        if isinstance(texts, str):
            return vectors[0]
        if kind == "none":
            return vectors
        width = self.model.config.embedding_width
        return np.stack(vectors) if vectors else np.zeros((0, width), np.float32)

    def _whole_text(self, i: int, text: str, truncate: bool, parse_special: bool) -> list[int]:
        """Returns the token ids of a text to embed, with the tokens that begin and end it."""
        tokenizer, longest = self.tokenizer, self.embedder.longest
        ids = tokenizer.encode(text, add_special=True, parse_special=parse_special)
        if not ids:
            raise ValueError(f"text {i} has no tokens")
        if len(ids) <= longest:
            return ids
        if not truncate:
            raise ValueError(
                f"text {i} has {len(ids)} tokens, the model reads at most {longest}: shorten it, or"
                " give truncate=True to leave out its end"
            )
        end = ids[-1:] if tokenizer.add_eos or tokenizer.add_sep else []
        return ids[: longest - len(end)] + end

    def cache(self, prompt: Prompt, *, parse_special: bool = False) -> PromptCache:
        """Computes a prompt cache, for `cache=` of `generate` and `chat`. It can be saved.

        The cache holds all tokens except the last, so that any text that begins with the prompt
        can continue from it. Right after an answer, the states of the prompt and the answer are
        reused and not computed again.

        Args:
            prompt: A text or the ids of its tokens, at least two of them.
            parse_special: As in `generate`.
        """
        (one, *others), is_one = as_prompts(prompt)
        if not is_one:
            raise TypeError(f"cache takes one prompt, got a list of {1 + len(others)}")
        parse_special = flag("parse_special", parse_special)
        return self.engine.cache(self._encode(one, parse_special) if isinstance(one, str) else one)

    def load_cache(self, path: str | os.PathLike) -> PromptCache:
        """Reads a file that `PromptCache.save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged or belongs to another model: the configuration, the
                dtype or the weights differ.
        """
        return self.engine.load_cache(path)

    def warm_up(self, prompt_tokens: int = 16) -> None:
        """Compiles the programs for a prompt of this length, before the first answer needs them."""
        self.engine.warm_up(prompt_tokens)

    def prompt_ids(self, prompt: str, *, parse_special: bool = False) -> list[int]:
        """Returns the ids of a text as `generate` reads it, with the tokens that begin a text."""
        return self._encode(prompt, flag("parse_special", parse_special))

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        return self._begun(
            self.tokenizer.encode(text, add_special=True, parse_special=parse_special)
        )

    def _begun(self, ids: list[int]) -> list[int]:
        """Removes the eos token from the ids of a prompt, and adds the bos token if it is empty."""
        if ids and self.tokenizer.add_eos and ids[-1] == self.tokenizer.eos_id:
            ids.pop()
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        if not ids:
            raise ValueError(
                "the prompt has no token, and the tokenizer has none to begin a text with"
            )
        return ids


@check_keywords
def load(
    path: str | os.PathLike = "demo",
    *,
    dtype: DTypeLike | None = None,
    cache_dtype: DTypeLike | None = None,
    activations: str = "int16",
    backend: str | None = None,
    context_length: int | None = None,
    device: Any = None,
    mesh: Mesh | None = None,
    layers: int | None = None,
    dequantize: Patterns = None,
    revision: str | None = None,
    strict: bool = False,
    nextn: bool = False,
    progress: bool | None = None,
) -> LanguageModel:
    """Loads a GGUF model.

    Args:
        path: A GGUF file; or "demo", the small model of the package; or a name on the Hugging Face
            hub (needs the extra `hub`); or the address of a file's page there. Names are
            "owner/repository", "owner/repository:Q5_K_M" or "owner/repository/file.gguf". They may
            begin with "hf://" and have "@revision" after the repository. A text in the form of a
            path ("./a.gguf", "~/a.gguf", or in an existing folder) is never a name on the hub.
        dtype: The dtype of the computation: float32, bfloat16 or float16, as a name (also short,
            such as "bf16") or as a dtype of NumPy or JAX. Default: bfloat16 on GPUs and float32 on
            CPUs.
        cache_dtype: The dtype of keys and values in caches, in the same forms. Default: `dtype`.
        activations: The format of activations in products with packed weights, "int16", "int8" or
            "float": see `quant.matmul`.
        backend: "pallas", "cpp" or "xla" to use only that backend. "auto": the first backend that
            supports an operation. Default: ROCMFORGE_BACKEND, or "auto".
        context_length: The largest number of tokens of a text. Default: the context length of the
            training.
        device: The device of weights, caches and computation: a `jax.Device`, or its name, such as
            "cpu:1" or "cuda". Default: JAX's default device.
        mesh: Devices that share the model, instead of `device`: `jax.make_mesh((2, 4), ("data",
            "model"))` splits batches in two and weights, heads and caches in four. Either axis may
            be missing.
        layers: How many of the first layers to load. Default: all.
        dequantize: Patterns of the names of tensors, such as "*.ffn_*" or ["token_embd",
            "blk.0.*"], which become dense arrays of `dtype`; or True for all. Default: none.
        revision: A branch, a tag or a commit of the hub's repository. Default: its main branch.
        strict: Whether problems that normally cause a warning raise an error.
        nextn: Whether to load the blocks for multi-token prediction too, as `model.nextn`.
        progress: Whether to show a bar on stderr. Default: only if stderr is a terminal.

    Raises:
        TypeError: `path` is not a path.
        ValueError: An argument has an unsupported value. This is raised before anything is read.
        FileNotFoundError: There is no such file.
        GGUFError: The file is damaged or has no supported model.
        MemoryError: The model does not fit. The message has the sizes.
    """
    # All arguments are checked before anything is read.
    options = LoadOptions(
        dtype=dtype,
        cache_dtype=cache_dtype,
        activations=activations,
        backend=backend,
        context_length=check_context_length(context_length),
        device=device,
        mesh=mesh,
        layers=layers,
        dequantize=dequantize,
        strict=strict,
        nextn=nextn,
    )
    gguf = open_gguf(_found(path, "load", revision))
    with progress_bar(progress=progress, unit="B", unit_scale=True, desc=gguf.path.name) as bar:

        def check(config, weights):
            _check_room(gguf, config, options)
            plan = plan_memory(
                gguf,
                config,
                options.numerics.cache_dtype,
                context_length=options.context_length,
                weights=weights,
                device=options.first,
                mesh=options.mesh,
            )
            note(bar, f"{gguf.path.name}: {plan}")
            if options.numerics.backend == "auto" and (advice := cpp.advice()):
                note(bar, advice)
            if not bar.disable:
                _name_the_compilation_cache(bar)
            plan.check()

        model = decoder_of(gguf, options, before_reading=check, progress=updates(bar))
    return from_parts(model, gguf, context_length=options.context_length, strict=options.strict)


@check_keywords
def load_abstract(
    path: str | os.PathLike = "demo",
    *,
    dtype: DTypeLike | None = None,
    cache_dtype: DTypeLike | None = None,
    activations: str = "int16",
    backend: str | None = None,
    context_length: int | None = None,
    device: Any = None,
    mesh: Mesh | None = None,
    layers: int | None = None,
    dequantize: Patterns = None,
    revision: str | None = None,
    strict: bool = False,
    nextn: bool = False,
) -> Decoder:
    """Makes the decoder of a file with a `jax.ShapeDtypeStruct` in place of each array.

    It reads no weights. To restore a checkpoint of a loaded model with Orbax, pass the `nnx.state`
    of this decoder as the target.

    Args:
        path: As in `load`. The other arguments are the same too.
        dtype: The dtype of the computation.
        cache_dtype: The dtype of keys and values in caches.
        activations: The format of activations in products with packed weights.
        backend: The backend that computes.
        context_length: The largest number of tokens of a text.
        device: The device of the arrays.
        mesh: Devices that share the model. The arrays then have shardings.
        layers: How many of the first layers to make.
        dequantize: Patterns of the names of tensors that are dense.
        revision: A branch, a tag or a commit of the hub's repository.
        strict: Whether problems that normally cause a warning raise an error.
        nextn: Whether to make the blocks for multi-token prediction too.

    Raises:
        Exception: The same errors as `load`, except MemoryError.
    """
    options = LoadOptions(
        dtype=dtype,
        cache_dtype=cache_dtype,
        activations=activations,
        backend=backend,
        context_length=check_context_length(context_length),
        device=device,
        mesh=mesh,
        layers=layers,
        dequantize=dequantize,
        strict=strict,
        nextn=nextn,
    )
    return abstract_decoder(open_gguf(_found(path, "load_abstract", revision)), options)


def _found(path: str | os.PathLike, function: str, revision: str | None) -> Path:
    """Returns the file of a path or of a name on the hub; raises TypeError for other types."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"{function}() takes a text or an os.PathLike as path, got {shown(path)}")
    return resolve(path, revision)


def _check_room(gguf: GGUFFile, config: DecoderConfig, options: LoadOptions) -> None:
    """Raises GGUFError if the context is too short for a prompt and an answer."""
    if config.context_length < 2 and options.context_length is None:
        raise GGUFError(
            f"{gguf.path}: {config.architecture}.context_length is {config.context_length}: there"
            " is no room for a prompt and an answer. Give context_length"
        )


def _name_the_compilation_cache(bar):
    """Writes a note about the compilation cache once per process, unless the cache is enabled."""
    global _named_the_cache
    if not (_named_the_cache or compilation_cache.is_enabled()):
        note(
            bar,
            "What XLA compiles ends with this process; rf.enable_compilation_cache() keeps it for"
            " the next one",
        )
    _named_the_cache = True


_named_the_cache = False


def from_parts(
    model: Decoder, gguf: GGUFFile, *, context_length: int | None = None, strict: bool = False
) -> LanguageModel:
    """Makes a LanguageModel of a decoder, and of the tokenizer and chat template of a file.

    strict: see `load`.
    """
    with about_file(gguf.path):
        tokenizer = tokenizer_from_metadata(gguf.metadata, strict=strict)
        template = chat_template_from_metadata(gguf.metadata)
    lm = LanguageModel(model, tokenizer, template, context_length=context_length)
    lm.source = Source.of(gguf)
    return lm


def _streams(stream) -> bool:
    """Returns the flag `stream`; clients of OpenAI's interface send None for False."""
    return stream is not None and flag("stream", stream)


def _as_list(texts: Any, method: str) -> list[str]:
    """Returns a text or an iterable of texts as a list; raises TypeError for other types."""
    if isinstance(texts, str):
        return [texts]
    wanted = f"{method} takes a text or a list of texts"
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
        raise TypeError(f"{wanted}, got {type(texts).__name__}")
    listed = list(texts)
    if wrong := [type(text).__name__ for text in listed if not isinstance(text, str)]:
        raise TypeError(f"{wanted}, got a list with {wrong[0]}")
    return listed
