"""A build backend: setuptools, plus JAX's headers as a requirement to compile the C++ library."""

import os

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

#: The oldest supported version; newer versions keep its C++ interface.
HEADERS = "jaxlib==0.10.2"


def get_requires_for_build_wheel(config_settings=None):
    """Returns the packages that an empty environment needs to build a wheel."""
    needed = build_meta.get_requires_for_build_wheel(config_settings)
    return needed if os.environ.get("ROCMFORGE_WHEEL_CPP") == "none" else [*needed, HEADERS]
