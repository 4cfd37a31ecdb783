"""Feed-forwards, which compute each token separately: dense, gated, and mixtures of experts."""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make, check_sizes
from rocmforge_jax.nn import (
    SILU,
    XIELU,
    Activated,
    ActivationFunction,
    Bias,
    Gate,
    Routing,
    ScalarGate,
    choose_experts,
    gated,
    mixture,
    products,
    scaled_norm,
)

#: The submodule of the router's norm.
ROUTER_NORM = "ffn_gate_inp_norm"


@dataclasses.dataclass(frozen=True)
class Gated:
    """A feed-forward of `hidden` units, with or without a gate.

    Attributes:
        hidden: The number of hidden units, F.
        activation: The activation function of the gate, or of the units if there is no gate.
        gated: Whether a gate multiplies the units.
        fused: Whether one tensor, ffn_up, contains the gate and then the up projection.
        cutoff: A threshold for sparse gates, in standard deviations above the mean of a token's
            gates. It is subtracted from the gates, and negative results become 0. None: no cutoff.
        sub_norm: Whether the hidden units are normalised before ffn_down (ffn_sub_norm).
    """

    hidden: int
    activation: ActivationFunction | XIELU = SILU
    gated: bool = True
    fused: bool = False
    cutoff: float | None = None
    sub_norm: bool = False
    output = "ffn_down"

    def __post_init__(self):
        check_sizes(hidden=self.hidden)
        if self.cutoff is not None and (self.fused or not self.gated):
            raise ValueError("a cutoff needs a gate of its own, ffn_gate")
        if self.gated and isinstance(self.activation, XIELU):
            raise ValueError("xIELU is an activation function of units without a gate")

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the projections."""
        sizes = {"ffn_up": self.hidden * (2 if self.gated and self.fused else 1)}
        if self.gated and not self.fused:
            sizes["ffn_gate"] = self.hidden
        made: dict[str, nnx.Module] = {
            name: make.linear(name, make.width, units) for name, units in sizes.items()
        }
        if self.sub_norm:
            made["ffn_sub_norm"] = make.norm("ffn_sub_norm", self.hidden)
        return made | {"ffn_down": make.linear("ffn_down", self.hidden, make.width)}

    def __call__(self, layer, x_BTD, norm):
        """Computes the hidden units [B, T, F]."""
        units = self._units(layer, x_BTD, norm)
        return layer.ffn_sub_norm(units) if self.sub_norm else units

    def _units(self, layer, x_BTD, norm):
        if isinstance(self.activation, XIELU):
            (units,) = products(x_BTD, [layer.ffn_up], norm=norm)
            return self.activation(units)
        if self.cutoff is not None:
            gate, up = products(x_BTD, [layer.ffn_gate, layer.ffn_up], norm=norm)
            return gated(_above(gate, self.cutoff), up, self.activation)
        fused = self.gated and self.fused
        gate = layer.ffn_gate if self.gated and not fused else None
        return _hidden_units(x_BTD, norm, self.activation, layer.ffn_up, gate, fused=fused)

    def workspace(self, tokens: int) -> int:
        """Counts the float32 numbers of the hidden units."""
        return tokens * self.hidden


def _hidden_units(x, norm, activation: ActivationFunction, up, gate=None, *, fused: bool):
    """Computes hidden units. `gate` is None without a gate, and with one that is part of `up`."""
    if fused:
        (both,) = products(x, [up], norm=norm)
        gate_part, up_part = jnp.split(both, 2, axis=-1)
        return gated(gate_part, up_part, activation)
    module = Activated(up, activation) if gate is None else Gate(gate, up, activation)
    return products(x, [module], norm=norm)[0]


def _above(gate_BTF, cutoff: float):
    """Subtracts each token's mean and `cutoff` standard deviations, then clips at 0 from below."""
    gate = gate_BTF.astype(jnp.float32)
    mean, deviation = (part(gate, axis=-1, keepdims=True) for part in (jnp.mean, _deviation))
    return jnp.maximum(gate - (mean + cutoff * deviation), 0).astype(gate_BTF.dtype)


_deviation = functools.partial(jnp.std, ddof=1)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of experts, in which a router chooses a few experts for each token.

    Attributes:
        experts: The number of experts, E.
        routing: How many experts a token uses, and how they are chosen and weighted.
        hidden: The hidden units of each expert.
        activation: The activation function of the experts.
        fused: Whether one stack, ffn_gate_up_exps, contains the gates and then the up projections.
        gated: Whether the experts have gates.
        selection_bias: Whether a bias is added to the scores for the selection only (exp_probs_b).
        weights_first: Whether a weight multiplies the input of its expert, not the output.
        shared_hidden: The hidden units of a shared expert that every token uses, 0 for none.
        shared_fused: Whether one tensor, ffn_up_shexp, contains the shared expert's gate and then
            its up projection.
        shared_gate: Whether a sigmoid gate multiplies the shared expert (ffn_gate_inp_shexp).
        shared_scale: A factor of the shared expert's output.
        latent: The width of the experts' inputs and outputs, if it differs from the residual
            stream's. ffn_latent_down projects to it, ffn_latent_up projects back. None: the same.
    """

    experts: int
    routing: Routing
    hidden: int
    activation: ActivationFunction = SILU
    fused: bool = False
    gated: bool = True
    selection_bias: bool = False
    weights_first: bool = False
    shared_hidden: int = 0
    shared_fused: bool = False
    shared_gate: bool = False
    shared_scale: float = 1.0
    latent: int | None = None
    output = None

    def __post_init__(self):
        check_sizes(hidden=self.hidden, latent=1 if self.latent is None else self.latent)
        self.routing.check(self.experts)

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the router, the stacks of experts and the shared expert."""
        made: dict[str, nnx.Module] = {
            "ffn_gate_inp": make.linear("ffn_gate_inp", make.width, self.experts)
        }
        if self.selection_bias:
            made["exp_probs_b"] = Bias(self.experts)
        if self.latent is not None:
            made["ffn_latent_down"] = make.linear("ffn_latent_down", make.width, self.latent)
            made["ffn_latent_up"] = make.linear("ffn_latent_up", self.latent, make.width)
        width = self.latent or make.width
        sizes = dict.fromkeys(self._first_stacks(), self.hidden * (2 if self.fused else 1))
        for name, units in sizes.items():
            made[name] = make.experts(name, self.experts, width, units)
        made["ffn_down_exps"] = make.experts("ffn_down_exps", self.experts, self.hidden, width)
        return made | self._shared_modules(make)

    def _first_stacks(self) -> tuple[str, ...]:
        if self.fused:
            return ("ffn_gate_up_exps",)
        return ("ffn_gate_exps", "ffn_up_exps") if self.gated else ("ffn_up_exps",)

    def _shared_modules(self, make) -> dict[str, nnx.Module]:
        made: dict[str, nnx.Module] = {}
        if not self.shared_hidden:
            return made
        if self.shared_gate:
            made["ffn_gate_inp_shexp"] = ScalarGate(make.width, rngs=make.rngs)
        both = self.gated and not self.shared_fused
        units = self.shared_hidden * (2 if self.gated and self.shared_fused else 1)
        for name in ("ffn_gate_shexp", "ffn_up_shexp") if both else ("ffn_up_shexp",):
            made[name] = make.linear(name, make.width, units)
        made["ffn_down_shexp"] = make.linear("ffn_down_shexp", self.shared_hidden, make.width)
        return made

    def __call__(self, layer, x_BTD, norm, router_norm=None):
        """Computes the weighted sum of the chosen experts, plus the shared expert.

        Args:
            layer: The layer with the submodules.
            x_BTD: The residual stream.
            norm: The norm before the experts, or None.
            router_norm: The norm before the router, default `norm`.

        Returns:
            [B, T, D].
        """
        x_TD = x_BTD.reshape(-1, x_BTD.shape[-1])
        bias = layer.exp_probs_b.bias.get_value() if self.selection_bias else None
        weights, experts = choose_experts(
            x_TD,
            layer.ffn_gate_inp,
            self.routing,
            selection_bias_E=bias,
            norm=router_norm or norm,
        )
        *gates, up = (getattr(layer, name) for name in self._first_stacks())
        read, norm_of_read = x_TD, norm
        if self.latent is not None:
            (read,) = products(x_TD, [layer.ffn_latent_down], norm=norm)
            norm_of_read = None
        out_TD = mixture(
            read,
            weights,
            experts,
            gates[0] if gates else None,
            up,
            layer.ffn_down_exps,
            norm=norm_of_read,
            activation=self.activation,
            weights_first=self.weights_first,
        )
        if self.latent is not None:
            (out_TD,) = products(out_TD, [layer.ffn_latent_up])
        if self.shared_hidden:
            shared_TD = self._shared(layer, x_TD, norm)
            if self.shared_scale != 1:
                shared_TD = self.shared_scale * shared_TD
            out_TD = out_TD + shared_TD
        return out_TD.reshape(x_BTD.shape)

    def _shared(self, layer, x_TD, norm):
        fused = self.gated and self.shared_fused
        gate = layer.ffn_gate_shexp if self.gated and not fused else None
        units = _hidden_units(x_TD, norm, self.activation, layer.ffn_up_shexp, gate, fused=fused)
        (shared_TD,) = products(units, [layer.ffn_down_shexp])
        if not self.shared_gate:
            return shared_TD
        return layer.ffn_gate_inp_shexp(x_TD if norm is None else norm(x_TD)) * shared_TD

    def workspace(self, tokens: int) -> int:
        """Counts the float32 numbers of the hidden units of the experts that the tokens use."""
        return tokens * (self.routing.used * self.hidden + self.shared_hidden)


@dataclasses.dataclass(frozen=True)
class GatedAndMixture:
    """The sum of a gated feed-forward and a mixture of experts, each with its own norms.

    The layer's norm before the feed-forward is applied to the input of `gated`, pre_ffw_norm_2 to
    the input of the experts. The router has its own norm; files call its scale ffn_gate_inp.scale.
    post_ffw_norm_1 follows `gated`, post_ffw_norm_2 follows the experts.

    Attributes:
        gated: The dense feed-forward.
        mixture: The mixture of experts.
    """

    gated: Gated
    mixture: Mixture
    output = None

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the submodules of both, and the norms."""
        names = ("post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2", ROUTER_NORM)
        norms = {name: make.norm(name, make.width) for name in names}
        return {**self.gated.modules(make), **self.mixture.modules(make), **norms}

    def __call__(self, layer, x_BTD, norm):
        """Computes the sum [B, T, D]."""
        (dense_BTD,) = products(self.gated(layer, x_BTD, norm), [layer.ffn_down])
        router_norm = scaled_norm(getattr(layer, ROUTER_NORM), x_BTD.shape[-1] ** -0.5)
        mixed_BTD = self.mixture(layer, x_BTD, layer.pre_ffw_norm_2, router_norm)
        return layer.post_ffw_norm_1(dense_BTD) + layer.post_ffw_norm_2(mixed_BTD)

    def workspace(self, tokens: int) -> int:
        """Counts the float32 numbers of the hidden units of both."""
        return self.gated.workspace(tokens) + self.mixture.workspace(tokens)
