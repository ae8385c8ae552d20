"""Tries a wheel beside several torches: ``python -m build_support.check_wheel WHEEL TORCH...``.

Each torch (a requirement such as torch==2.13.0) gets a fresh environment, in which
tests/wheel_smoke.py runs, and which is deleted again, also after a failure. Beside a torch that
TORCHVISIONS knows, tests/test_zoo.py runs, too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMOKE_TEST = ROOT / "tests/wheel_smoke.py"

ZOO_TEST = ROOT / "tests/test_zoo.py"

# The installed package is tested, not the sources, and without the fixtures that need their tools.
ZOO_OPTIONS = (
    *("-q", "--noconftest", "-p", "no:cacheprovider", "--override-ini", "pythonpath=tests"),
    *("--rootdir", ROOT, "-c", ROOT / "pyproject.toml"),
)

# Which torchvision was built for which torch.
TORCHVISIONS = {"torch==2.14.1": "torchvision==0.29.1"}

# A CUDA build of torch with its libraries: 3 GB downloaded, then 5.5 GB unpacked, and air.
NEEDED_BYTES = 15 * 10**9


def check(wheel: Path, torches: list[str], build: Path = ROOT / "build") -> None:
    """Installs `wheel` beside each of `torches` in a folder under `build` and tries it.

    Raises:
        SystemExit: too little space, or a step that failed; it has said why.
    """
    build.mkdir(exist_ok=True)
    free = shutil.disk_usage(build).free
    if free < NEEDED_BYTES:
        raise SystemExit(
            f"wheel-check: torch's CUDA build needs {NEEDED_BYTES / 1e9:.0f} GB of space, but "
            f"{build} has only {free / 1e9:.1f} GB"
        )
    for torch in torches:
        print(f"Trying {wheel.name} beside {torch}", flush=True)
        with tempfile.TemporaryDirectory(prefix="wheel-check-", dir=build) as folder:
            try:
                _try(wheel.resolve(), torch, Path(folder))
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"wheel-check: {wheel.name} fails beside {torch}") from error


def _try(wheel: Path, torch: str, folder: Path) -> None:
    # pip's temporary files, gigabytes of downloads, go into the folder too.
    environ = {**os.environ, "TMPDIR": str(folder)}
    python = folder / "venv/bin/python"

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, cwd=folder, env=environ)

    def install(*arguments: str | Path) -> None:
        options = ("--quiet", "--disable-pip-version-check", "--no-cache-dir")
        run(python, "-m", "pip", "install", *options, *arguments)

    run(sys.executable, "-m", "venv", folder / "venv")
    torchvision = TORCHVISIONS.get(torch)
    install(torch, *([torchvision, "pytest"] if torchvision else []))
    install("--no-deps", wheel)
    run(python, "-I", SMOKE_TEST)
    if torchvision:
        run(python, "-m", "pytest", *ZOO_OPTIONS, ZOO_TEST)


if __name__ == "__main__":
    # As an exception it unwinds, and so deletes the environment.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("wheel-check: terminated"))
    check(Path(sys.argv[1]), sys.argv[2:])
