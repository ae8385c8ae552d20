"""The emulator's checker and profiler: by themselves, and on the real kernels."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from test_conv2d import PROBLEMS as CONVOLUTIONS

import cnnkernels
import cnnkernels.functional as ours
from build_support.library import INSTRUMENTED_FLAGS
from cnnkernels.profiling import GPU, GPUS, KernelProfile, Profile, Traffic

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "emulator" / "observed"
KERNELS = sorted(FOLDER.glob("*.cu"))
CASES = sorted(
    name
    for path in (FOLDER / "planted.cu", FOLDER / "test_observed.cpp")
    for name in re.findall(r'^ +\{"(\w+)",', path.read_text(), re.MULTILINE)
)


def run(command: list, timeout: int = 300) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program: the kernels instrumented, all else not, compiled by $CXX or g++."""
    folder = tmp_path_factory.mktemp("observed")
    compiler = os.environ.get("CXX", "g++").split()
    flags = ["-std=c++17", "-O2", "-pthread", "-Wall", "-Wno-unknown-pragmas"]
    objects, path = [folder / f"{kernels.stem}.o" for kernels in KERNELS], folder / "program"
    emulator = [
        *sorted((ROOT / "csrc" / "emulator").glob("*.cpp")),
        ROOT / "csrc" / "standalone" / "threads.cpp",
    ]
    steps = [
        [*flags, *INSTRUMENTED_FLAGS, "-c", "-x", "c++", source, "-o", target]
        for source, target in zip(KERNELS, objects, strict=True)
    ]
    program = [*emulator, FOLDER / "test_observed.cpp", *objects, "-ldl", "-o", path]
    for step in [*steps, [*flags, "-DCNN_TARGET=instrumented", *program]]:
        result = run([*compiler, *step])
        assert result.returncode == 0, result.stderr
    return path


def test_list_is_complete(program: Path) -> None:
    assert CASES
    assert run([program]).stdout.split() == CASES


@pytest.mark.parametrize("name", CASES)
def test_case(program: Path, name: str) -> None:
    """A planted bug is caught and its repaired twin passes; counters are what a hand counts."""
    result = run([program, name], timeout=60)
    assert result.returncode == 0, result.stderr


def test_unknown_case_fails(program: Path) -> None:
    assert run([program, "no_such_case"]).returncode != 0


def kernel(profile: Profile, name: str) -> KernelProfile:
    (found,) = (kernel for kernel in profile.kernels if kernel.kernel.startswith(name))
    return found


def test_profile_of_a_convolution_is_what_a_hand_counts() -> None:
    """3 filters of 5x3x3 on 5x8x8: 108 outputs, in warps of 32, 32, 32 and 12 threads."""
    with cnnkernels.profile() as p:
        ours.conv2d(torch.randn(1, 5, 8, 8), torch.randn(3, 5, 3, 3), torch.randn(3))
    fprop = kernel(p, "conv2d_direct_fprop<float>")
    assert (fprop.launches, fprop.blocks, fprop.threads, fprop.barriers) == (1, 1, 256, 0)

    # An output reads 45 pixels, 45 weights and a bias, 4 bytes each; it is written once.
    loads, stores = 45 + 45 + 1, 1
    assert fprop.global_load.bytes == 4 * 108 * loads == 39_312
    assert fprop.global_store.bytes == 4 * 108 * stores == 432
    assert fprop.global_load.requests == 4 * loads
    assert fprop.global_store.requests == 4 * stores
    # The warps' outputs are 128, 128, 128 and 48 bytes in a row: 4 + 4 + 4 + 2 sectors.
    assert fprop.global_store.units == 14
    # Each of the 320 pixels, 135 weights and 3 biases is needed, once.
    assert fprop.bytes_read == 4 * (320 + 135 + 3) == 1832
    assert fprop.bytes_written == 432
    assert fprop.fma == 108 * 45
    assert fprop.shared_load.requests == fprop.shared_store.requests == 0


def test_profile_of_max_pooling_is_what_a_hand_counts() -> None:
    """2x2 windows of 16x18 pixels: 72 outputs, in warps of 32, 32 and 8; rows of 72 bytes."""
    with cnnkernels.profile() as p:
        ours.max_pool2d(torch.randn(1, 1, 16, 18, requires_grad=True), 2)
    forward = kernel(p, "max_pool2d_direct_forward<float")

    assert forward.global_load.bytes == 4 * 72 * 4 == 1152
    # An output, and a byte for the place of its maximum.
    assert forward.global_store.bytes == 72 * (4 + 1) == 360
    assert (forward.bytes_read, forward.bytes_written) == (1152, 360)
    # A warp makes a request for each of the 4 taps.
    assert forward.global_load.requests == 3 * 4
    # Outputs of 128, 128 and 32 bytes, places of 32, 32 and 8: 4 + 4 + 1 and 1 + 1 + 1 sectors.
    assert forward.global_store.requests == 3 * 2
    assert forward.global_store.units == 9 + 3
    assert forward.minimal_bytes == 1512


def test_profile_counts_nothing_else() -> None:
    input = torch.randn(1, 1, 8, 8)
    with cnnkernels.emulate_cuda():
        ours.max_pool2d(input, 2)
    with cnnkernels.profile() as p:
        ours.avg_pool2d(input, 2)
        ours.avg_pool2d(input, 2)
    ours.max_pool2d(input, 2)
    assert [(k.kernel, k.launches) for k in p.kernels] == [
        ("avg_pool2d_vector_forward<float, AlongColumns, Pool2dProblem>", 2)
    ]


def test_profile_prints_a_row_a_kernel() -> None:
    with cnnkernels.profile(gpu="H100") as p:
        ours.conv2d(torch.randn(1, 5, 8, 8), torch.randn(3, 5, 3, 3))
        ours.max_pool2d(torch.randn(1, 1, 16, 16), 2)
    text = str(p)
    headings, rule, conv, pool = text.splitlines()[:4]
    assert len(headings) == len(rule) == len(conv) == len(pool)
    assert conv.startswith("conv2d_direct_fprop<float> ") and "38.9k" in conv
    assert pool.startswith(
        "max_pool2d_vector_forward<float, AlongColumns, NoArgmax, Pool2dProblem>"
    )
    assert "H100" in text


def test_profile_refuses_an_unknown_gpu() -> None:
    with pytest.raises(ValueError, match="no GPU 'abacus'; there are A100, "):
        cnnkernels.profile(gpu="abacus").__enter__()


def test_bound_is_the_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Traffic(0, 0, 0, 0)
    counted = dict(launches=1, blocks=1, threads=1, barriers=0, bytes_read=600, bytes_written=400)
    traffic = dict.fromkeys(
        ("global_load", "global_store", "global_atomic", "shared_load", "shared_store"), none
    )
    monkeypatch.setitem(GPUS, "toy", GPU(bandwidth=100, float32=10, tensor=1000, issue=1))
    light = KernelProfile(kernel="k", fma=10, mma_flop=0, **counted, **traffic)
    heavy = KernelProfile(kernel="k", fma=100, mma_flop=5000, **counted, **traffic)
    assert light.bound("toy") == (10.0, "memory")
    assert light.intensity == 20 / 1000
    assert heavy.bound("toy") == (25.0, "FLOP")


CHECKED = ["mnist_first", "primes", "strided", "dilated", "groups", "padding_beyond_filter", "one"]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("problem", CHECKED)
def test_no_false_alarm_on_convolutions(problem, dtype, channels_last) -> None:
    (shape, (K, R, S), kwargs) = CONVOLUTIONS[problem]
    format = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.randn(shape, dtype=dtype).contiguous(memory_format=format).requires_grad_()
    weight = torch.randn(K, shape[1] // kwargs.get("groups", 1), R, S, dtype=dtype).requires_grad_()
    bias = torch.randn(K, dtype=dtype).requires_grad_()

    def results() -> list[torch.Tensor]:
        output = ours.conv2d_relu(input, weight, bias, **kwargs)
        leaves = (input, weight, bias)
        return [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    with cnnkernels.emulate_cuda():
        expected = results()
    with cnnkernels.emulate_cuda(check=True):
        checked = results()
    for ours_, theirs in zip(checked, expected, strict=True):
        torch.testing.assert_close(ours_, theirs)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_false_alarm_on_pools(dtype, channels_last) -> None:
    format = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.randn(2, 3, 13, 11, dtype=dtype).contiguous(memory_format=format)
    input.requires_grad_()
    with cnnkernels.emulate_cuda(check=True):
        for output in (
            ours.max_pool2d(input, 3, 2, 1),
            ours.max_pool2d(input, 3, 1, return_indices=True)[0],
            ours.avg_pool2d(input, (3, 2), 2, 1, ceil_mode=True),
            ours.adaptive_max_pool2d(input, (5, 4)),
            ours.adaptive_max_pool2d(input, 1, return_indices=True)[0],
            ours.adaptive_avg_pool2d(input, (5, 14)),
            ours.adaptive_avg_pool2d(input, (2, 1)),
            ours.adaptive_avg_pool2d(input.repeat(1, 1, 3, 3), 1),
        ):
            (gradient,) = torch.autograd.grad(output.sum(), input)
            assert gradient.isfinite().all()


def test_checks_end_with_their_block() -> None:
    """Others keep what they asked for."""
    from cnnkernels import _C

    asked = []
    observe = _C.observe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_C, "observe", lambda *what: (asked.append(what), observe(*what)))
        with cnnkernels.emulate_cuda(check=True):
            with cnnkernels.profile():
                pass
            with cnnkernels.emulate_cuda():
                pass
    assert asked == [(True, False), (True, True), (True, False), (False, False)]
