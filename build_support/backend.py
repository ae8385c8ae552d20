"""The PEP 517 build backend: setuptools', building against the torch that is already there.

pip builds in an environment of its own, where a plain `requires = ["torch"]` would install
another torch (gigabytes, and maybe another version) than the one the extension will run with.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  hooks that need no torch
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

OLDEST_TORCH = (2, 10)


def _torch_is_installed() -> bool:
    """Whether the environment that pip installs into has a torch that will do."""
    for found in importlib.metadata.distributions(
        name="torch", path=[sysconfig.get_path("platlib")]
    ):
        version = re.match(r"(\d+)\.(\d+)", found.version)
        return version is not None and tuple(map(int, version.groups())) >= OLDEST_TORCH
    return False


def _torch_requirement() -> list[str]:
    return [] if _torch_is_installed() else [f"torch>={'.'.join(map(str, OLDEST_TORCH))}"]


def _use_installed_torch() -> None:
    platlib = sysconfig.get_path("platlib")
    if _torch_is_installed() and platlib not in sys.path:
        sys.path.append(platlib)


def get_requires_for_build_wheel(config_settings=None):
    """See PEP 517."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings=None):
    """See PEP 660."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """See PEP 517."""
    _use_installed_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """See PEP 660."""
    _use_installed_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
