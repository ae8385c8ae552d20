"""Which algorithm runs: forcing one, listing what could, and the rules of "auto"."""

import threading

import pytest
import torch
import torch.nn.functional as F
from accuracy import integers

import cnnkernels
import cnnkernels.functional as ours
from cnnkernels.settings import settings

X = integers(2, 3, 9, 8, dtype=torch.float32)
W = integers(4, 3, 3, 3, dtype=torch.float32)
CONV = dict(input=X, weight=W)
CALLS = {
    "conv2d": CONV,
    "conv2d_relu": CONV,
    "conv2d_relu_max_pool2d": CONV | dict(pool_kernel_size=2),
    "conv2d_relu_avg_pool2d": CONV | dict(pool_kernel_size=2),
    "max_pool2d": dict(input=X, kernel_size=2),
    "avg_pool2d": dict(input=X, kernel_size=2),
    "adaptive_max_pool2d": dict(input=X, output_size=2),
    "adaptive_avg_pool2d": dict(input=X, output_size=2),
}
PASSES = {"conv": "fprop", "max": "max_forward", "avg": "avg_forward"}


def forward_pass(op):
    return next(name for kind, name in PASSES.items() if kind in op)


def kernels_of(function):
    """What the emulator launched meanwhile."""
    with cnnkernels.profile() as profile:
        function()
    return [kernel.kernel for kernel in profile.kernels]


@pytest.mark.parametrize("op", CALLS)
def test_what_is_listed_is_what_runs(op):
    with cnnkernels.emulate_cuda():
        candidates = cnnkernels.algorithms(op, **CALLS[op])
    (running,) = [c.algorithm for c in candidates if forward_pass(op) in c.runs]
    (kernel,) = kernels_of(lambda: getattr(ours, op)(**CALLS[op]))
    assert running in kernel
    with cnnkernels.emulate_cuda():
        assert f"{forward_pass(op)}: {running}" in cnnkernels.explain(op, **CALLS[op])


@pytest.mark.parametrize("op", CALLS)
def test_asking_computes_nothing(op):
    assert kernels_of(lambda: cnnkernels.algorithms(op, **CALLS[op])) == []
    assert settings.kernels is None
    assert isinstance(getattr(ours, op)(**CALLS[op]), torch.Tensor)  # the question is closed


def test_asking_raises_what_the_call_would():
    with pytest.raises(RuntimeError, match="non-positive stride"):
        cnnkernels.algorithms("conv2d", X, W, stride=0)
    with pytest.raises(TypeError, match="argument 'weight' must be Tensor"):
        cnnkernels.explain("conv2d", X, None)
    with pytest.raises(ValueError, match="no function 'conv3d'; there are conv2d, "):
        cnnkernels.algorithms("conv3d", X, W)
    ours.conv2d(X, W)


def test_integers_are_explained_as_torchs():
    x = X.int()
    assert cnnkernels.algorithms("max_pool2d", x, 2) == []
    assert cnnkernels.explain("max_pool2d", x, 2) == (
        "max_pool2d of torch.int32 [2, 3, 9, 8], cpu kernels: none for this dtype, torch's own "
        "function runs"
    )


def test_an_explanation_names_every_pass_and_every_reason():
    text = cnnkernels.explain("adaptive_avg_pool2d", X, 2)
    with cnnkernels.emulate_cuda():
        emulated = cnnkernels.explain("adaptive_avg_pool2d", X, 2)
    assert text.splitlines()[0] == (
        "adaptive_avg_pool2d of torch.float32 [2, 3, 9, 8], cpu kernels:"
    )
    assert "  avg_backward: " in text and "max" not in text
    assert "emulated CUDA kernels" in emulated and "  not block: " in emulated


def test_an_explanation_tells_what_is_not_fused(backend):
    x, w = X.to(backend.device), W.to(backend.device)
    fused = cnnkernels.explain("conv2d_relu_max_pool2d", x, w, pool_kernel_size=2)
    assert "one function after the other" not in fused
    assert f"  dgrad: {'implicit_gemm' if backend.name == 'native' else 'tiled'}" in fused
    apart = cnnkernels.explain("conv2d_relu_avg_pool2d", x, w, pool_kernel_size=6).splitlines()
    assert apart[0].endswith(" kernels, one function after the other; of the convolution:")
    assert apart[1:] == cnnkernels.explain("conv2d_relu", x, w).splitlines()[1:]


def test_a_forced_algorithm_runs_forward_and_backward():
    x = integers(1, 2, 40, 40, dtype=torch.float32).requires_grad_()

    def step():
        output = ours.adaptive_avg_pool2d(x, 1)
        return output, torch.autograd.grad(output.sum(), x)[0]

    def forced():
        with cnnkernels.algorithm("direct"):
            step()

    assert [name.split("<")[0] for name in kernels_of(step)] == [
        "avg_pool2d_block_forward",
        "avg_pool2d_direct_backward",
    ]
    assert [name.split("<")[0] for name in kernels_of(forced)] == [
        "avg_pool2d_direct_forward",
        "avg_pool2d_direct_backward",
    ]


def test_a_backward_pass_keeps_its_forwards_algorithm():
    x = X.clone().requires_grad_()
    with cnnkernels.emulate_cuda(), cnnkernels.algorithm("direct"):
        output = ours.conv2d(x, W)
    kernels = kernels_of(lambda: output.sum().backward())
    assert kernels and all("direct" in kernel for kernel in kernels)
    assert settings.kernels is None


def test_a_forced_algorithm_that_cannot_run_says_why():
    image = torch.zeros(1).expand(1, 1, 2**16, 2**16)
    with cnnkernels.emulate_cuda(), cnnkernels.algorithm("block"):
        with pytest.raises(RuntimeError, match="'block' cannot run this call: more elements in a"):
            ours.adaptive_avg_pool2d(image, 1)
        assert torch.equal(ours.conv2d(X, W), F.conv2d(X, W))  # has no such algorithm: as ever


def test_a_forced_algorithm_runs_what_it_does_not_suit():
    def forced():
        with cnnkernels.algorithm("block"):
            torch.testing.assert_close(ours.adaptive_avg_pool2d(X, 2), F.adaptive_avg_pool2d(X, 2))

    with cnnkernels.emulate_cuda():
        candidates = cnnkernels.algorithms("adaptive_avg_pool2d", X, 2)
    block, direct = candidates[0], candidates[-1]
    assert (block.algorithm, block.unsupported, block.runs) == ("block", None, [])
    assert block.unsuited == "a window this small suits a thread"
    assert direct.runs == direct.passes
    assert "block" in kernels_of(forced)[0]


def test_algorithms_nest_and_belong_to_their_thread():
    with cnnkernels.algorithm("direct"):
        with cnnkernels.algorithm("auto"):
            assert settings.kernels is None
        with cnnkernels.emulate_cuda():
            assert settings.kernels == "emulated:direct"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(settings.kernels))
        thread.start()
        thread.join()
        assert (settings.kernels, seen) == (":direct", [None])
    assert settings.kernels is None


@pytest.mark.parametrize("kernels", ["direct", ":direct:tf", "cuda:direct"])
def test_unknown_names_are_refused(kernels):
    with pytest.raises(ValueError, match="no algorithm 'fastest'; there are auto, "):
        with cnnkernels.algorithm("fastest"):
            pass
    with pytest.raises(
        RuntimeError, match=r"kernels are \[emulated\]:\[algorithm\]\[:tf32\]\[:fast\], not "
    ):
        torch.ops.cnnkernels.adaptive_avg_pool2d(X, 2, 2, kernels)


def test_a_compiled_function_follows_the_forced_algorithm():
    compiled = torch.compile(ours.adaptive_avg_pool2d, backend="aot_eager", fullgraph=True)
    x = integers(1, 2, 40, 40, dtype=torch.float32)
    expected = compiled(x, 1)

    def forced():
        with cnnkernels.algorithm("direct"):
            torch.testing.assert_close(compiled(x, 1), expected)

    assert "avg_pool2d_block_forward" in kernels_of(lambda: compiled(x, 1))[0]
    assert "avg_pool2d_direct_forward" in kernels_of(forced)[0]


# Input, weight, arguments; and what "auto" runs on a GPU, in all passes that it has but bgrad.
NAMED_LAYERS = {
    "vgg_conv1_1": ((8, 3, 224, 224), (64, 3, 3, 3), dict(padding=1), "tiled"),
    "vgg_conv3_2": ((8, 256, 56, 56), (256, 256, 3, 3), dict(padding=1), "winograd"),
    "vgg_conv5_3": ((1, 512, 14, 14), (512, 512, 3, 3), dict(padding=1), "implicit_gemm"),
    "model_a_conv1": ((64, 1, 28, 28), (16, 1, 5, 5), dict(padding=2), "tiled"),
    "model_a_conv2": ((64, 16, 14, 14), (32, 16, 5, 5), dict(padding=2), "implicit_gemm"),
    "resnet_downsample": ((8, 64, 56, 56), (128, 64, 1, 1), dict(stride=2), "implicit_gemm"),
    "alexnet_conv1": ((8, 3, 227, 227), (96, 3, 11, 11), dict(stride=4), "implicit_gemm"),
    "resnext_grouped": ((8, 256, 28, 28), (256, 8, 3, 3), dict(groups=32), "implicit_gemm"),
    "depthwise": ((8, 128, 28, 28), (128, 1, 3, 3), dict(groups=128), "depthwise"),
    "depthwise_dilated": ((8, 128, 28, 28), (128, 1, 3, 3), dict(groups=128, dilation=2), "direct"),
    "classifier": ((8, 512, 1, 1), (10, 512, 1, 1), {}, "direct"),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("layer", NAMED_LAYERS)
def test_named_layers_run_by_the_algorithm_made_for_them(layer, layout):
    shape, filters, kwargs, expected = NAMED_LAYERS[layer]
    input, weight = (torch.empty(size).to(memory_format=layout) for size in (shape, filters))
    with cnnkernels.emulate_cuda():
        candidates = cnnkernels.algorithms("conv2d", input, weight, **kwargs)
    runs = {name: c.algorithm for c in candidates for name in c.runs}
    assert runs["fprop"] == runs["dgrad"] == expected
    assert runs["wgrad"] == ("implicit_gemm" if expected == "winograd" else expected)
    assert runs["bgrad"] == "direct"


# Where float32 takes the ordinary arithmetic units.
ORDINARY = ("implicit_gemm", "winograd")
ON_TENSOR_CORES = [name for name, layer in NAMED_LAYERS.items() if layer[-1] in ORDINARY]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", ON_TENSOR_CORES)
def test_named_layers_run_on_tensor_cores_where_their_dtype_can(layer, dtype):
    shape, filters, kwargs, _ = NAMED_LAYERS[layer]
    input, weight = (torch.empty(size, dtype=dtype) for size in (shape, filters))
    with cnnkernels.emulate_cuda(tf32=True):
        candidates = cnnkernels.algorithms("conv2d", input, weight, **kwargs)
    runs = {name: c.algorithm for c in candidates for name in c.runs}
    assert {runs[name] for name in ("fprop", "dgrad", "wgrad")} == {"tensor_core"}
