"""Builds passk_fast._native from csrc/; everything else is in pyproject.toml."""

import sys
from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup
from setuptools.errors import BaseError


class BuildNative(build_ext):
    """The extension, with a plain word for whoever has no compiler."""

    def build_extensions(self) -> None:
        """Exits with what is missing when the compiler fails or is not there."""
        try:
            super().build_extensions()
        except BaseError as error:
            sys.exit(
                f"passk_fast: building passk_fast._native failed: {error}\n"
                "A C++20 compiler and Python's headers are needed (g++ 11 or newer, clang++ 14 or "
                "newer; on Debian: apt install g++ python3-dev). CXX=... chooses the compiler."
            )


setup(
    ext_modules=[
        Pybind11Extension(
            "passk_fast._native",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.hpp")),
            cxx_std=20,
            extra_compile_args=["-O3", "-Wall", "-Wextra"],
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
