"""The experts of a token: the router of a mixture."""

from pallas_kernels.router.api import route

__all__ = ["route"]
