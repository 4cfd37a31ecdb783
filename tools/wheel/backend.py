"""Builds as setuptools does, and asks for the headers of JAX where a library is compiled."""

import os

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

#: The oldest JAX that the package supports: newer ones keep its interface for C++.
HEADERS = "jaxlib==0.10.2"


def get_requires_for_build_wheel(config_settings=None):
    """Lists what an empty environment needs to build a wheel."""
    needed = build_meta.get_requires_for_build_wheel(config_settings)
    return needed if os.environ.get("ROCMFORGE_WHEEL_CPP") == "none" else [*needed, HEADERS]
