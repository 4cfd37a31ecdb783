"""Logits processors: user functions that change logits before a token is sampled.

They run on the device, as part of the compiled step. The state of a processor has a row for each
sequence, which enters and leaves a slot with the sequence. The function is the same for all slots,
because it is compiled once.
"""

import collections.abc
import contextlib
import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.arguments import shown


@dataclasses.dataclass(frozen=True)
class LogitsProcessor:
    """A jittable function of logits, and the initial state of a sequence.

    The function is called before each token as `function(tokens_BL, lengths_B, logits_BV, state)`
    and returns (logits_BV, state). It is traced once for each shape, so pass the same function
    again, not a new lambda.

    - tokens_BL: int32, the tokens of prompt and answer so far, and -1 from lengths_B on. L grows
      with the cache.
    - lengths_B: int32, the number of tokens.
    - logits_BV: float32, the model's logits. The returned logits are float32 [B, V] too; -inf bans
      a token. Suppressed tokens, logit_bias, penalties and sampling are applied afterwards.
    - state: Like `state` below, with a leading axis B on every array.

    Rows are independent sequences, and some may be unused. `jax.vmap` converts a function of one
    sequence to this form.

    Attributes:
        function: The function.
        state: A pytree of arrays or numbers.
    """

    function: collections.abc.Callable[..., tuple[Any, Any]]
    state: Any = ()

    def __post_init__(self):
        if not callable(self.function):
            raise TypeError(
                f"a logits processor must be a function, got {type(self.function).__name__}"
                f" {shown(self.function)}"
            )


def each_processor(given: Any, count: int) -> list[LogitsProcessor | None]:
    """Returns the processor of each prompt, from one for all prompts or from a list.

    Raises:
        TypeError: An entry is neither a function nor a LogitsProcessor.
        ValueError: The list has another length, different functions, or states of different shapes.
    """
    if given is None or callable(given) or isinstance(given, LogitsProcessor):
        return [_processor(given)] * count
    if not isinstance(given, collections.abc.Iterable):
        raise TypeError(
            "logits_processor must be a function, a LogitsProcessor or a list of them, got"
            f" {shown(given)}"
        )
    each = list(map(_processor, given))
    if len(each) != count:
        raise ValueError(f"{count} prompts need as many logits processors, got {len(each)}")
    functions = {None if one is None else one.function for one in each}
    if len(functions) > 1:
        raise ValueError(
            f"the logits processors of {count} prompts have {len(functions)} functions: they are"
            " generated together and need the same one, with a state for each"
        )
    _check_states([one.state for one in each if one is not None])
    return each


def _processor(given: Any) -> LogitsProcessor | None:
    if given is None or isinstance(given, LogitsProcessor):
        return given
    return LogitsProcessor(given)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Processing:
    """A logits processor with the state of B sequences.

    Attributes:
        tokens_BL: int32, the tokens so far; -1 after the last one.
        state: The state of the function, [B, ...] each.
        function: See `LogitsProcessor`.
    """

    tokens_BL: jax.Array
    state: Any
    function: collections.abc.Callable = dataclasses.field(metadata=dict(static=True))

    @classmethod
    def of(
        cls,
        processors: collections.abc.Sequence[LogitsProcessor | None],
        prompts: collections.abc.Sequence[list[int]],
        length: int,
    ) -> "Processing | None":
        """Returns the initial state for prompts, with room for `length` tokens each.

        Without processors it returns None.
        """
        if not processors or (first := processors[0]) is None:
            return None
        tokens = np.full((len(prompts), length), -1, np.int32)
        for row, prompt in zip(tokens, prompts):
            row[: len(prompt)] = prompt
        states = [one.state for one in processors if one is not None]
        state = jax.tree.map(lambda *rows: jnp.stack(list(map(_as_array, rows))), *states)
        return cls(jnp.asarray(tokens), state, first.function)

    def grown(self, length: int) -> "Processing":
        """Returns a copy with room for `length` tokens per sequence."""
        more = ((0, 0), (0, length - self.tokens_BL.shape[1]))
        tokens_BL = jnp.pad(self.tokens_BL, more, constant_values=-1)
        return dataclasses.replace(self, tokens_BL=tokens_BL)

    def with_tokens(self, tokens_B, at_B) -> "Processing":
        """Returns a copy with one more token per sequence, at the positions `at_B`."""
        rows_B = jnp.arange(len(self.tokens_BL), dtype=jnp.int32)
        tokens_BL = self.tokens_BL.at[rows_B, at_B].set(tokens_B, mode="drop")
        return dataclasses.replace(self, tokens_BL=tokens_BL)

    def __call__(self, logits_BV, lengths_B) -> tuple[jax.Array, "Processing"]:
        """Returns the changed logits, and a copy with the new state.

        Raises:
            ValueError: The function returns other shapes, dtypes or structures than it received.
        """
        returned = self.function(self.tokens_BL, lengths_B, logits_BV, self.state)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(
                f"a logits processor must return (logits, state), got {type(returned).__name__}"
            )
        changed_BV, state = returned
        _check_like("the logits of a logits processor", changed_BV, logits_BV)
        _check_like("the state of a logits processor", state, self.state)
        # Python numbers have no dtype and would change the type of the state.
        state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), state, self.state)
        return changed_BV, dataclasses.replace(self, state=state)


def check_processor(processor: LogitsProcessor, vocabulary: int) -> None:
    """Traces a processor for one sequence, so that errors are raised before any computation.

    Raises:
        TypeError: The function does not take four arguments.
        ValueError: See `Processing`.
    """
    with contextlib.suppress(ValueError):  # it has no signature
        signature = inspect.signature(processor.function)
        try:
            signature.bind(*range(4))
        except TypeError as error:
            raise TypeError(
                "a logits processor takes (tokens, lengths, logits, state), and this one is"
                f" {getattr(processor.function, '__name__', 'a function')}{signature}"
            ) from error
    processing = Processing.of([processor], [[0]], 16)
    assert processing is not None
    row = jax.ShapeDtypeStruct((1, vocabulary), jnp.float32)
    length = jax.ShapeDtypeStruct((1,), jnp.int32)
    jax.eval_shape(lambda p, logits, lengths: p(logits, lengths), processing, row, length)


def _check_states(states: list[Any]) -> None:
    structures = {jax.tree.structure(state) for state in states}
    shapes = {tuple(np.shape(leaf) for leaf in jax.tree.leaves(state)) for state in states}
    if len(structures) > 1 or len(shapes) > 1:
        raise ValueError(
            f"the states of {len(states)} logits processors must have the same structure and"
            f" shapes, got {len(structures)} structures and {len(shapes)} sets of shapes"
        )


def _as_array(leaf) -> jax.Array:
    """Converts a number to an array of JAX's default width."""
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if array.dtype.kind in "OSU":
        raise TypeError(f"the state of a logits processor holds numbers and arrays, got {leaf!r}")
    return jnp.asarray(array)


def _structure(tree: Any) -> str:
    """Writes a pytree with `array` in place of each leaf."""
    return str(jax.tree.structure(tree)).removeprefix("PyTreeDef(")[:-1].replace("*", "array")


def _check_like(name: str, got: Any, wanted: Any) -> None:
    if jax.tree.structure(got) != jax.tree.structure(wanted):
        expected, found = (_structure(tree) for tree in (wanted, got))
        raise ValueError(f"{name} must have the structure {expected}, got {found}")
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
        shape, dtype = jnp.shape(one), jnp.result_type(one)
        if shape != other.shape or dtype != other.dtype:
            raise ValueError(
                f"{name} must be {other.dtype} {list(other.shape)}, got {dtype} {list(shape)}"
            )
