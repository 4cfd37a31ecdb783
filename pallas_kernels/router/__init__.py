"""The router of a mixture of experts, which chooses the experts of each token."""

from pallas_kernels.router.api import route
from pallas_kernels.router.routing import Routing

__all__ = ["Routing", "route"]
