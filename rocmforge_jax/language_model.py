"""Language models: a decoder with its tokenizer and chat template, for texts and embeddings."""

import copy
import functools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

import numpy as np

from rocmforge_jax.arguments import check_keywords, flag, integer, named_values
from rocmforge_jax.completion import Answer, Completion, Piece, streamed
from rocmforge_jax.generate import (
    Embedder,
    Engine,
    GenerateOptions,
    Perplexity,
    PromptCache,
    SamplingOptions,
    SamplingParams,
    perplexity,
)
from rocmforge_jax.generate.options import Processor
from rocmforge_jax.html import element, escape, joined
from rocmforge_jax.models import Decoder, Source, checked_pooling, param_count
from rocmforge_jax.models.overview import decoder_html
from rocmforge_jax.progress import progress_bar
from rocmforge_jax.requested import Prompt, as_prompts, best, counts, each_params
from rocmforge_jax.text import ChatTemplate, StopStrings, Tokenizer, without_oldest_turn

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
        self.chat_template = ChatTemplate(None) if chat_template is None else chat_template
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
    def chat_template(self) -> ChatTemplate:
        """The chat template. Assign another one, or its text, to chat with it."""
        return self._chat_template

    @chat_template.setter
    def chat_template(self, template: ChatTemplate | str):
        made = ChatTemplate(template) if isinstance(template, str) else template
        if not isinstance(made, ChatTemplate):
            raise TypeError(
                f"chat_template must be a ChatTemplate or its text, got {type(made).__name__}"
            )
        self._chat_template = made

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

    def __copy__(self) -> "LanguageModel":
        return self._with_model(self.model)

    def __deepcopy__(self, memo) -> "LanguageModel":
        return self._with_model(copy.deepcopy(self.model, memo))

    def _with_model(self, model: Decoder) -> "LanguageModel":
        """Makes a LanguageModel of another decoder, with an engine of its own."""
        made = LanguageModel(
            model, self.tokenizer, self.chat_template, context_length=self._context_length
        )
        made.source = self.source
        return made

    def __reduce__(self):
        raise TypeError("a LanguageModel cannot be pickled: write it with rf.save, and load that")

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
                a list, prompt i is sampled with seed + i, or with `n`, from seed + i * n on.
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
        stops = StopStrings(stop).stops
        progress = None if progress is None else flag("progress", progress)
        vocabulary = self.engine.config.vocabulary
        top = 0 if top_logprobs is None else integer("top_logprobs", top_logprobs, 0, vocabulary)
        if not prompts:
            return []
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
        delay, tokens = 0 if progress else 3, 0
        how: dict[str, Any] = dict(total=len(answers), unit="answer", desc="generate", delay=delay)
        with progress_bar(progress=progress, **how) as bar:
            shown = time.monotonic() + delay
            for piece in pieces:
                tokens += len(piece.ids)
                if time.monotonic() >= shown:
                    bar.set_postfix_str(f"{tokens:,} tokens")
                    shown = time.monotonic() + 0.5
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
        prompts, is_one = as_prompts(prompt, "cache")
        if not is_one:
            raise TypeError(f"cache takes one prompt, got a list of {len(prompts)}")
        (one,), parse_special = prompts, flag("parse_special", parse_special)
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
