"""Linear layers and stacks of experts with a low-rank adapter (LoRA)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax import quant
from rocmforge_jax.backends import Numerics
from rocmforge_jax.nn.fresh import filled


def refuse_flax_adapters(model: nnx.Module, what: str) -> None:
    """Raises ValueError for a model with adapters of Flax, such as `nnx.LoRA`.

    Args:
        model: The model.
        what: What works with adapters of `rocmforge_jax.lora` alone, for the message.
    """
    found = [
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.LoRA | nnx.LoRALinear)
    ]
    if found:
        raise ValueError(
            f"{len(found)} layers have an adapter of Flax, such as the nnx.LoRA {found[0]}: {what}"
            " works with adapters of rocmforge_jax.lora only"
        )


class Adapter(nnx.Module):
    """A layer and the two matrices of its adapter. The weight of the layer does not change.

    Attributes:
        base_module: The layer, with a kernel (in, out), or (E, in, out) for a stack of experts.
        lora_a: nnx.LoRAParam (in, rank) or (E, in, rank).
        lora_b: nnx.LoRAParam (rank, out) or (E, rank, out), zero in a fresh adapter.
        alpha: The scale of the adapter times its rank.
    """

    def __init__(
        self,
        base_module: Any,
        rank: int,
        *,
        alpha: float | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes an adapter whose product is zero.

        Args:
            base_module: The layer.
            rank: Columns of lora_a and rows of lora_b.
            alpha: The scale times the rank. Default: the rank, so that the scale is 1.
            dtype: The dtype of both matrices.
            rngs: Draws lora_a, uniformly from -1/sqrt(in) to 1/sqrt(in), as PEFT does.
        """
        *stack, n_in, n_out = base_module.kernel.shape
        bound = n_in**-0.5
        shape = (*stack, n_in, rank)
        drawn = jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
        self.base_module = base_module
        self.lora_a = nnx.LoRAParam(drawn.astype(dtype))
        self.lora_b = nnx.LoRAParam(filled((*stack, rank, n_out), 0, dtype))
        self.alpha = float(rank if alpha is None else alpha)

    @property
    def rank(self) -> int:
        """The number of columns of lora_a and of rows of lora_b."""
        return self.lora_a.shape[-1]

    @property
    def scale(self) -> float:
        """The factor of the adapter's product."""
        return self.alpha / self.rank

    @property
    def numerics(self) -> Numerics:
        """The numerical settings of the base layer."""
        return self.base_module.numerics

    def __nnx_repr__(self):
        first, *others = super().__nnx_repr__()
        count = self.lora_a.size + self.lora_b.size
        counts = f" # rank {self.rank}, alpha {self.alpha:g}, {count:,} parameters"
        yield dataclasses.replace(first, comment=counts)
        yield from others

    def _sum(self, y, change):
        """Returns y plus the scaled `change`, in y's dtype."""
        return (y.astype(jnp.float32) + jnp.float32(self.scale) * change).astype(y.dtype)


class LoRALinear(Adapter):
    """Computes base_module(x) + alpha / rank * (x @ lora_a) @ lora_b.

    `products` still fuses `base_module` with other layers, as it does without an adapter.
    """

    def __call__(self, x, dtype=None):
        """Maps [..., in] to [..., out] in `dtype`, default x's."""
        return self.added(self.base_module(x, dtype or x.dtype), x)

    def added(self, y, x):
        """Returns y [..., out] plus the adapter's result for x [..., in], in y's dtype."""
        low = quant.matmul(x, self.lora_a, dtype=jnp.float32)
        return self._sum(y, quant.matmul(low, self.lora_b, dtype=jnp.float32))


class LoRAExperts(Adapter):
    """A stack of experts with one adapter each. A mixture computes the experts one by one."""

    def __call__(self, x, expert):
        """Maps x [..., in] to [..., out] through one expert, an integer scalar."""
        low = quant.expert_matmul(x, self.lora_a, expert, dtype=jnp.float32)
        change = quant.expert_matmul(low, self.lora_b, expert, dtype=jnp.float32)
        return self._sum(self.base_module(x, expert), change)

    @property
    def kernel(self):
        """The weights of the base layer (E, in, out). A mixture reads their shape."""
        return self.base_module.kernel
