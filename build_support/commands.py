"""What setup.py hands to setuptools: a build_ext that makes the library, and the wheel's tag."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Command
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.errors import CompileError

from build_support.cuda import ToolkitError
from build_support.library import LIBRARY, build

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = Path("cnnkernels", LIBRARY)  # in the source tree and in a wheel


class BuildLibrary(Command):
    """Builds the library into build_lib, or with --inplace into the source tree."""

    description = "build the shared library with the kernels"
    user_options = [
        ("inplace", "i", "put the library into the source tree"),
        ("build-lib=", "b", "folder for the library"),
    ]
    boolean_options = ["inplace"]
    editable_mode = False

    def initialize_options(self) -> None:
        """Sets the defaults."""
        self.inplace = False
        self.build_lib = None

    def finalize_options(self) -> None:
        """Takes the build folder from the build command."""
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    @property
    def _target(self) -> Path:
        return ROOT / INSTALLED if self.inplace or self.editable_mode else self._wheel_target

    @property
    def _wheel_target(self) -> Path:
        return Path(self.build_lib, INSTALLED)

    def run(self) -> None:
        """Builds, then copies the library where Python looks for it."""
        try:
            library = build(ROOT)
        except subprocess.CalledProcessError as error:
            raise CompileError("the compiler's messages stand above") from error
        except (RuntimeError, ValueError, ToolkitError) as error:
            raise CompileError(str(error)) from error
        replace_if_different(library, self._target)

    def get_source_files(self) -> list[str]:
        """Sources for the sdist: MANIFEST.in lists them."""
        return []

    def get_outputs(self) -> list[str]:
        """What a wheel has from this command."""
        return [str(self._wheel_target)]

    def get_output_mapping(self) -> dict[str, str]:
        """Where an editable install finds what a wheel would contain."""
        if not self.editable_mode:
            return {}
        return {str(self._wheel_target): str(self._target)}


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3.

    The library is loaded by ctypes and torch and uses nothing of Python's ABI, so its tag names
    no version of Python, only the platform.
    """

    def get_tag(self) -> tuple[str, str, str]:
        """The wheel's tag, for example py3-none-linux_x86_64."""
        return "py3", "none", super().get_tag()[2]


def replace_if_different(source: Path, target: Path) -> None:
    """Copies a file in one step: a process that has the old one loaded keeps it."""
    if target.exists() and os.stat(target).st_mtime_ns == os.stat(source).st_mtime_ns:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    shutil.copy2(source, partial)
    os.replace(partial, target)
