"""What must exist: algorithm by pass by backend. A table here, so that a missing kernel fails."""

import pytest
import torch

import cnnkernels

CONV_PASSES = {"fprop", "dgrad", "wgrad", "bgrad"}
POOL_PASSES = {"max_forward", "max_backward", "max_gather", "avg_forward", "avg_backward"}
WINOGRAD = {name: {"fprop", "dgrad"} for name in ("winograd_4x4", "winograd")}
VECTOR_PASSES = POOL_PASSES - {"max_gather"}

REQUIRED = {
    "cpu": {
        "conv2d": WINOGRAD | {"depthwise": CONV_PASSES - {"bgrad"}, "implicit_gemm": CONV_PASSES},
        "conv2d_relu_pool2d": WINOGRAD | {"implicit_gemm": CONV_PASSES},
        "pool2d": {"direct": POOL_PASSES},
        "adaptive_pool2d": {"direct": POOL_PASSES},
    },
    "emulated": {
        "conv2d": WINOGRAD
        | {
            "depthwise": CONV_PASSES - {"bgrad"},
            "tiled": CONV_PASSES - {"bgrad"},
            "tensor_core": CONV_PASSES - {"bgrad"},
            "implicit_gemm": CONV_PASSES - {"bgrad"},
            "direct": CONV_PASSES,
        },
        "conv2d_relu_pool2d": {
            "tiled": CONV_PASSES - {"bgrad"},
            "tensor_core": CONV_PASSES - {"bgrad"},
            "implicit_gemm": CONV_PASSES - {"bgrad"},
            "direct": CONV_PASSES,
        },
        "pool2d": {"vector": VECTOR_PASSES, "direct": POOL_PASSES},
        "adaptive_pool2d": {
            "block": {"avg_forward"},
            "vector": VECTOR_PASSES,
            "direct": POOL_PASSES,
        },
    },
}
REQUIRED["cuda"] = REQUIRED["emulated"]


@pytest.mark.parametrize("backend", REQUIRED)
def test_required_kernels_exist(backend):
    info = cnnkernels.info()
    if backend == "cuda" and not info["build"]["cuda_archs"]:
        pytest.skip("built without nvcc")
    for op, algorithms in REQUIRED[backend].items():
        for algorithm, passes in algorithms.items():
            assert set(info["algorithms"][backend][op][algorithm]) == passes


def test_emulated_kernels_are_the_cuda_kernels():
    info = cnnkernels.info()
    if not info["build"]["cuda_archs"]:
        pytest.skip("built without nvcc")
    assert info["algorithms"]["cuda"] == info["algorithms"]["emulated"]


def test_the_library_loads_without_a_gpu():
    assert cnnkernels.info()["load_error"] is None
    assert hasattr(torch.ops.cnnkernels, "conv2d")
