"""Compiles the C++ library into wheels, where there is a compiler.

Everything else about the package is in pyproject.toml. A wheel without the library is complete as
well: plain XLA computes then, or `rocmforge-jax build-native` compiles the library later. An
editable install gets none, since its sources change.
"""

import os
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
#: "none" for a wheel without the library, "required" for no wheel where it cannot be compiled.
CHOICE = os.environ.get("ROCMFORGE_WHEEL_CPP", "if possible")


class BuildWithLibrary(build_py):
    """Copies the Python files, then compiles the library beside them."""

    def run(self):
        """Builds, and says on failure what the wheel will lack."""
        super().run()
        if self.editable_mode or CHOICE == "none":
            return
        sys.path.insert(0, str(HERE))
        from rocmforge_jax.cpp import packaged
        from rocmforge_jax.cpp.commands import BuildError

        print("compiling the C++ library, which takes up to a minute ...", flush=True)
        try:
            packaged.make(Path(self.build_lib))
        except (BuildError, ImportError) as error:
            if CHOICE == "required":
                raise
            print(f"made without the C++ library, so plain XLA computes on CPUs: {error}")


class TaggedWheel(bdist_wheel):
    """Names the platform of a wheel with the library. Any Python 3 of the platform runs it."""

    def get_tag(self):
        """Returns the tags of Python, its ABI and the platform."""
        platform = super().get_tag()[2]
        self.root_is_pure = not list(Path(self.bdist_dir).rglob("*.so"))
        return ("py3", "none", "any" if self.root_is_pure else platform)


class PerhapsWithLibrary(Distribution):
    """Lays files out as for one platform: whether there will be a library is not known yet."""

    def has_ext_modules(self):
        """Returns that there may be compiled code."""
        return True


setup(
    distclass=PerhapsWithLibrary,
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": TaggedWheel},
)
