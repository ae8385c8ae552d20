"""Builds the C++ and CUDA library; all else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_support.commands import BuildLibrary, PlatformWheel  # noqa: E402

setup(
    # Named only so that setuptools knows that the wheel has compiled code.
    ext_modules=[Extension("cnnkernels.libcnnkernels", sources=[])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
