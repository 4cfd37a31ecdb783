"""The experts of a token: the router of a mixture."""

from pallas_kernels.router.api import route
from pallas_kernels.router.routing import Routing

__all__ = ["Routing", "route"]
