"""Fixtures shared by tests: where the kernels run."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ptx.build import build, find_tools
from ptx.gpu import Gpu

import cnnkernels


@dataclass(frozen=True)
class Backend:
    """A place to run kernels, entered as a context: ``with backend: ...``."""

    name: str

    @property
    def device(self) -> str:
        return "cuda" if self.name == "cuda" else "cpu"

    def context(self):
        return cnnkernels.emulate_cuda() if self.name == "emulated" else nullcontext()


BACKENDS = [
    "native",
    "emulated",
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Runs the test on the native CPU kernels, on the emulated CUDA kernels, and on a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("CNNKERNELS_REQUIRE_GPU") == "1":
            pytest.fail("no GPU, and CNNKERNELS_REQUIRE_GPU=1")
        pytest.skip("no GPU")
    chosen = Backend(request.param)
    with chosen.context():
        yield chosen


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder with the launchers of compiled PTX and the program of the emulator's cases."""
    try:
        tools = find_tools()
    except LookupError as reason:
        pytest.skip(str(reason))
    return build(*tools)


@pytest.fixture(scope="session")
def interpreted_gpu(built: Path) -> Gpu:
    return Gpu(built / "launchers.so")


@pytest.fixture
def gpu(interpreted_gpu: Gpu) -> Iterator[Gpu]:
    """The interpreter of compiled PTX; its memory is freed after each test."""
    yield interpreted_gpu
    interpreted_gpu.free()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
