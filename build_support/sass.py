"""What nvcc made of the kernels: the report of a tool, sass_report.py, on the built library.

    python -m build_support.sass [arguments of the tool]

CNNKERNELS_SASS_REPORT tells where the tool is, which needs cuobjdump and nvdisasm.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from build_support.library import LIBRARY

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "cnnkernels" / LIBRARY
USUAL_TOOL = "../shared/tools/sass_report.py"


def command(environ: Mapping[str, str], *arguments: str) -> list[str]:
    """The command that reports on the built library.

    Raises:
        LookupError: the tool or the library is missing.
    """
    tool = ROOT / environ.get("CNNKERNELS_SASS_REPORT", USUAL_TOOL)
    if not tool.is_file():
        raise LookupError(f"no {tool}; CNNKERNELS_SASS_REPORT tells where sass_report.py is")
    if not BUILT.is_file():
        raise LookupError(f"no {BUILT}: make build")
    return [sys.executable, str(tool), str(BUILT), *arguments]


def main() -> None:
    """Prints the report, or why there is none."""
    try:
        sys.exit(subprocess.run(command(os.environ, *sys.argv[1:])).returncode)
    except LookupError as reason:
        print(f"skipped: {reason}")


if __name__ == "__main__":
    main()
