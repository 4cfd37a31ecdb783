"""The router of a mixture of experts: chooses experts, and groups tokens by their experts."""

from pallas_kernels.router.api import route
from pallas_kernels.router.blocks import most_tokens
from pallas_kernels.router.routing import Routing
from pallas_kernels.router.tiles import Tiles, by_expert

__all__ = ["Routing", "Tiles", "by_expert", "most_tokens", "route"]
