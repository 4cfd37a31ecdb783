"""Feed-forwards: what each token goes through by itself."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.config import Make, check_sizes
from rocmforge_jax.nn import (
    Gate,
    Routing,
    ScalarGate,
    choose_experts,
    gated,
    mixture,
    products,
)


@dataclasses.dataclass(frozen=True)
class Gated:
    """A gated feed-forward of `hidden` units.

    fused: Whether gate and up are one tensor, ffn_up, that holds the gate first.
    """

    hidden: int
    fused: bool = False
    output = "ffn_down"

    def __post_init__(self):
        check_sizes(hidden=self.hidden)

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the projections."""
        names = ("ffn_up",) if self.fused else ("ffn_gate", "ffn_up")
        units = self.hidden * 2 // len(names)
        made = {name: make.linear(name, make.width, units) for name in names}
        return made | {"ffn_down": make.linear("ffn_down", self.hidden, make.width)}

    def __call__(self, layer, x_BTD, norm):
        """Computes the hidden units [B, T, F]."""
        if self.fused:
            (fused,) = products(x_BTD, [layer.ffn_up], norm=norm)
            return gated(*jnp.split(fused, 2, axis=-1))
        return products(x_BTD, [Gate(layer.ffn_gate, layer.ffn_up)], norm=norm)[0]

    def workspace(self, tokens: int) -> int:
        """Counts the hidden units."""
        return tokens * self.hidden


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of `experts`, `used` of them for each token, `hidden` units each.

    shared_hidden: Units of an expert that every token goes through as well, 0 for none.
    renormalize: See `nn.route`.
    """

    experts: int
    used: int
    hidden: int
    shared_hidden: int = 0
    renormalize: bool = True
    output = None

    def __post_init__(self):
        check_sizes(hidden=self.hidden)
        if not 1 <= self.used <= self.experts:
            raise ValueError(
                f"each token uses {self.used} of {self.experts} experts: it must be at least 1 and"
                " at most all"
            )

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the router, the stacks of experts and the shared expert."""
        width, hidden, shared = make.width, self.hidden, self.shared_hidden
        made: dict[str, nnx.Module] = {
            "ffn_gate_inp": make.linear("ffn_gate_inp", width, self.experts)
        }
        for name in ("ffn_gate_exps", "ffn_up_exps"):
            made[name] = make.experts(name, self.experts, width, hidden)
        made["ffn_down_exps"] = make.experts("ffn_down_exps", self.experts, hidden, width)
        if shared:
            made["ffn_gate_inp_shexp"] = ScalarGate(width, rngs=make.rngs)
            for name in ("ffn_gate_shexp", "ffn_up_shexp"):
                made[name] = make.linear(name, width, shared)
            made["ffn_down_shexp"] = make.linear("ffn_down_shexp", shared, width)
        return made

    def __call__(self, layer, x_BTD, norm):
        """Computes the sum of the chosen experts [B, T, D]."""
        x_TD = x_BTD.reshape(-1, x_BTD.shape[-1])
        weights, experts = choose_experts(
            x_TD, layer.ffn_gate_inp, Routing(self.used, "softmax", self.renormalize), norm=norm
        )
        stacks = layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps
        out_TD = mixture(x_TD, weights, experts, *stacks, norm=norm)
        if self.shared_hidden:
            out_TD = out_TD + self._shared(layer, x_TD, norm)
        return out_TD.reshape(x_BTD.shape)

    def _shared(self, layer, x_TD, norm):
        (hidden,) = products(x_TD, [Gate(layer.ffn_gate_shexp, layer.ffn_up_shexp)], norm=norm)
        (shared_TD,) = products(hidden, [layer.ffn_down_shexp])
        return layer.ffn_gate_inp_shexp(norm(x_TD)) * shared_TD

    def workspace(self, tokens: int) -> int:
        """Counts the hidden units of the chosen experts."""
        return tokens * (self.used * self.hidden + self.shared_hidden)
