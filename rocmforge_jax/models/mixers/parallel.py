"""Several mixers in one layer, whose results are added."""

import dataclasses
import operator
from collections.abc import Mapping

from flax import nnx

from rocmforge_jax.models.make import Make
from rocmforge_jax.models.parts import Mixer, Tokens
from rocmforge_jax.nn import ParallelState, RopeConfig, products


@dataclasses.dataclass(frozen=True)
class ParallelMixers:
    """Mixers that read the same residual stream, for example attention and a state space.

    The result is the sum of their output projections.

    Attributes:
        mixers: The mixers. Each must have an output projection and its own state.
    """

    mixers: tuple[Mixer, ...]
    output = None
    source = None

    def __post_init__(self):
        if not self.mixers:
            raise ValueError("parallel mixers must be at least 1, got 0")
        for mixer in self.mixers:
            if mixer.output is None or mixer.source is not None:
                raise ValueError(
                    f"{type(mixer).__name__} cannot be one of several mixers of a layer: that needs"
                    " a projection and a state of its own"
                )

    @property
    def rope(self) -> RopeConfig | None:
        """The rotary embedding of the first mixer that has one, or None."""
        return next((mixer.rope for mixer in self.mixers if mixer.rope is not None), None)

    def modules(self, make: Make) -> Mapping[str, nnx.Module | nnx.Param]:
        """Makes the submodules of all mixers; raises ValueError if two have the same name."""
        made: dict[str, nnx.Module | nnx.Param] = {}
        for mixer in self.mixers:
            new = mixer.modules(make)
            if both := sorted(made.keys() & new.keys()):
                raise ValueError(f"two mixers of a layer have {', '.join(both)}")
            made |= new
        return made

    def init_state(self, batch: int, length: int, dtype) -> ParallelState:
        """Makes the empty state of each mixer."""
        return ParallelState(tuple(mixer.init_state(batch, length, dtype) for mixer in self.mixers))

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: ParallelState | None):
        """Computes the sum of the projections [B, T, D], and the new states."""
        total, new = None, []
        old = [None] * len(self.mixers) if state is None else state.parts
        for mixer, part in zip(self.mixers, old):
            table = tokens.rope if mixer.rope == self.rope else None
            of_mixer = dataclasses.replace(tokens, rope=table)
            y, part = mixer(layer, x_BTD, norm, of_mixer, part)
            assert mixer.output is not None  # see __post_init__
            projection = operator.attrgetter(mixer.output)(layer)
            (total,) = products(y, [projection], residual=total)
            new.append(part)
        return total, None if state is None else ParallelState(tuple(new))

    def workspace(self, tokens: int, slots: int) -> int:
        """Returns the maximum over the mixers, which are computed one after another."""
        return max(mixer.workspace(tokens, slots) for mixer in self.mixers)
