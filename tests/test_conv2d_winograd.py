"""Winograd, the CPU's and CUDA's: what it runs, how exact it is, and when it is chosen."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, assert_same_bits, integers, relative_error

import cnnkernels
import cnnkernels.functional as ours
from cnnkernels.profiling import KernelProfile

# N, C, H, W; K; the other arguments. Odd sizes leave patches that reach beyond the output.
PROBLEMS = {
    "one": ((1, 1, 3, 3), 1, {}),
    "odd": ((2, 5, 7, 9), 7, dict(padding=1)),
    "even": ((2, 32, 14, 12), 33, dict(padding=1)),
    "row": ((1, 3, 1, 40), 4, dict(padding=1)),
    "padding_two": ((1, 4, 6, 7), 3, dict(padding=2)),
    "wide_padding": ((1, 4, 5, 6), 9, dict(padding=(4, 3))),
    "groups": ((2, 15, 6, 11), 21, dict(padding=1, groups=3)),
    "channel_blocks": ((1, 131, 9, 8), 70, dict(padding=1)),
    "several_tiles": ((3, 17, 37, 45), 19, dict(padding=1)),
    "long_rows": ((1, 3, 5, 301), 5, dict(padding=1)),
}
LAYOUTS = {
    "nchw": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
}
POOLS = {
    "max": dict(kernel_size=2),
    "avg": dict(kernel_size=2),
    "overlapping": dict(kernel_size=3, stride=2, padding=1),
}


# Their errors, at most, over that of torch's direct sum.
ERRORS = {"winograd": 3, "winograd_4x4": 12}


def operands(problem, random=torch.randn, dtype=torch.float32):
    shape, K, kwargs = PROBLEMS[problem]
    C = shape[1] // kwargs.get("groups", 1)
    return [random(*size, dtype=dtype) for size in (shape, (K, C, 3, 3), (K,))]


def exact_operands(problem, algorithm):
    """Whole numbers; 4x4's transform divides a filter's by 24 along both axes."""
    if algorithm == "winograd":
        return operands(problem, integers)
    x, w, b = operands(problem, partial(integers, high=1))
    return [x, 24**2 * w, 24**2 * b]


def with_gradients(function, tensors):
    """The output and the gradients of input and weight."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randint(-3, 4, output.shape, generator=generator).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("algorithm", ERRORS)
def test_exact_on_whole_numbers(backend, algorithm, problem, layout):
    kwargs = PROBLEMS[problem][2]
    tensors = exact_operands(problem, algorithm)
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    with cnnkernels.algorithm(algorithm):
        results = with_gradients(
            lambda *t: ours.conv2d_relu(*t, **kwargs), [t.to(backend.device) for t in tensors]
        )
    expected = with_gradients(lambda *t: F.relu(F.conv2d(*t, **kwargs)), tensors)
    for result, reference in zip(results, expected, strict=True):
        assert torch.equal(result.cpu(), reference)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("problem", ["odd", "even", "several_tiles"])
@pytest.mark.parametrize("algorithm", ERRORS)
def test_fused_exact_on_whole_numbers(algorithm, problem, pool, layout):
    kind = "avg" if pool == "avg" else "max"
    window = POOLS[pool]
    tensors = exact_operands(problem, algorithm)
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    kwargs = {f"pool_{name}": value for name, value in window.items()}

    def fused(*tensors):
        return getattr(ours, f"conv2d_relu_{kind}_pool2d")(*tensors, padding=1, **kwargs)

    def sequence(*tensors):
        return getattr(F, f"{kind}_pool2d")(F.relu(F.conv2d(*tensors, padding=1)), **window)

    with cnnkernels.algorithm(algorithm):
        results = with_gradients(fused, tensors)
    for result, reference in zip(results, with_gradients(sequence, tensors), strict=True):
        assert torch.equal(result, reference)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("algorithm", ERRORS)
def test_errors_are_within_those_documented(backend, algorithm, problem):
    kwargs = PROBLEMS[problem][2]

    def conv2d(module):
        return lambda *tensors: module.conv2d(*tensors, **kwargs)

    tensors = operands(problem)
    with cnnkernels.algorithm(algorithm):
        results = with_gradients(conv2d(ours), [t.to(backend.device) for t in tensors])
    torchs = with_gradients(conv2d(F), tensors)
    references = with_gradients(conv2d(F), [t.double() for t in tensors])
    for result, own, reference in zip(results, torchs, references, strict=True):
        unit = torch.finfo(torch.float32).eps
        assert relative_error(result.cpu(), reference) <= max(
            ERRORS[algorithm] * relative_error(own, reference), (ERRORS[algorithm] + 1) * unit
        )


def test_the_layers_of_vgg_16_keep_to_the_accuracy_rule():
    """Chosen by default, it need be no worse than any other."""
    x, w, b = torch.randn(2, 128, 28, 28), torch.randn(96, 128, 3, 3), torch.randn(96)
    assert runs(x, w, padding=1)["fprop"] == "winograd"
    functions = [lambda *t, f=f: f(*t, padding=1) for f in (ours.conv2d, F.conv2d)]
    doubles = [t.double() for t in (x, w, b)]
    for results in zip(
        with_gradients(functions[0], [x, w, b]),
        with_gradients(functions[1], [x, w, b]),
        with_gradients(functions[1], doubles),
        strict=True,
    ):
        assert_accurate(*results)


@pytest.mark.parametrize("algorithm", ERRORS)
def test_same_bits_whatever_the_number_of_threads(algorithm):
    tensors = operands("several_tiles")
    with cnnkernels.algorithm(algorithm):
        assert_same_bits(
            lambda: with_gradients(
                lambda *t: ours.conv2d_relu_max_pool2d(*t, pool_kernel_size=3, pool_stride=2),
                tensors,
            )
        )


@pytest.mark.parametrize(
    ("algorithm", "rows", "columns"),
    [("winograd", (18, 21), (20, 23)), ("winograd_4x4", (16, 23), (20, 23))],
)
def test_a_nan_stays_with_its_neighbours(backend, algorithm, rows, columns):
    """Of the patches that read it, and of no other."""
    x, w, b = operands("several_tiles")
    x[1, 4, 20, 21] = torch.nan
    with cnnkernels.algorithm(algorithm):
        moved = [t.to(backend.device) for t in (x, w, b)]
        wrong = ours.conv2d(*moved, padding=1).isnan().cpu()
    expected = F.conv2d(x, w, b, padding=1).isnan()
    assert wrong[expected].all()
    n, _, p, q = wrong.nonzero().unbind(1)
    assert n.unique().tolist() == [1]
    assert rows[0] <= p.min() and p.max() <= rows[1]
    assert columns[0] <= q.min() and q.max() <= columns[1]


def test_fast_math_allows_what_rounds_more():
    x, w = torch.zeros(1, 64, 28, 28, requires_grad=True), torch.zeros(64, 64, 3, 3)
    assert runs(x, w, padding=1)["fprop"] == "winograd"
    with cnnkernels.fast_math(winograd=True):
        allowed = runs(x, w, padding=1)
        assert allowed["fprop"] == allowed["dgrad"] == "winograd_4x4"
        assert runs(x[:, :, :6, :6].repeat(64, 1, 1, 1), w, padding=1)["fprop"] == "winograd"
        deep = torch.zeros(512, 512, 3, 3)
        assert runs(torch.zeros(1, 512, 28, 28), deep, padding=1)["fprop"] == "winograd"
        with cnnkernels.fast_math(winograd=False):
            assert runs(x, w, padding=1)["fprop"] == "winograd"
    assert runs(x, w, padding=1)["fprop"] == "winograd"


def test_a_backward_pass_keeps_fast_math():
    x, w = torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3)
    results = {}
    for allowed in (False, True):
        with cnnkernels.fast_math(winograd=allowed):
            leaf = x.clone().requires_grad_()
            output = ours.conv2d(leaf, w, padding=1)
        results[allowed] = torch.autograd.grad(output.sum(), leaf)[0]
    with cnnkernels.algorithm("winograd_4x4"):
        leaf = x.clone().requires_grad_()
        output = ours.conv2d(leaf, w, padding=1)
    assert torch.equal(results[True], torch.autograd.grad(output.sum(), leaf)[0])
    assert not torch.equal(results[True], results[False])


def runs(input, weight, **kwargs):
    candidates = cnnkernels.algorithms("conv2d", input, weight, **kwargs)
    return {name: c.algorithm for c in candidates for name in c.runs}


@pytest.mark.parametrize(
    ("shape", "filters", "kwargs", "expected"),
    [
        ((1, 64, 224, 224), (64, 64, 3, 3), {}, "winograd"),
        ((1, 256, 56, 56), (256, 256, 3, 3), {}, "winograd"),
        ((8, 512, 14, 14), (512, 512, 3, 3), {}, "winograd"),
        ((1, 512, 14, 14), (512, 512, 3, 3), {}, "implicit_gemm"),  # few pixels
        ((8, 3, 224, 224), (64, 3, 3, 3), {}, "implicit_gemm"),  # few channels
        ((8, 64, 56, 56), (128, 64, 3, 3), dict(stride=2), "implicit_gemm"),
        ((8, 64, 56, 56), (64, 64, 3, 3), dict(dilation=2), "implicit_gemm"),
        ((8, 64, 56, 56), (64, 64, 5, 5), {}, "implicit_gemm"),
        ((8, 64, 56, 56), (64, 2, 3, 3), dict(groups=32), "implicit_gemm"),
    ],
)
def test_it_runs_where_it_pays(shape, filters, kwargs, expected):
    input, weight = torch.empty(shape), torch.empty(filters)
    chosen = runs(input, weight, padding=1, **kwargs)
    assert chosen["fprop"] == chosen["dgrad"] == expected
    assert chosen["wgrad"] == chosen["bgrad"] == "implicit_gemm"
    if expected == "winograd":
        assert runs(input.double(), weight.double(), padding=1)["fprop"] == "implicit_gemm"


def test_what_it_cannot_run_is_an_error_that_says_why(backend):
    with (
        cnnkernels.algorithm("winograd"),
        pytest.raises(RuntimeError, match="for 3x3 filters alone"),
    ):
        ours.conv2d(
            *(torch.zeros(size, device=backend.device) for size in ((1, 2, 8, 8), (3, 2, 5, 5)))
        )


# ---------------------------------------------------------------- CUDA's

TILES = {"winograd": "Winograd2x2", "winograd_4x4": "Winograd4x4"}
# Of a block: what it multiplies for each channel.
MULTIPLY_ADDS = {"winograd": 16 * 32 * 64, "winograd_4x4": 36 * 32 * 32}


def emulated(algorithm: str, function: Callable, **emulation) -> Callable:
    """The function, its convolutions forced to that algorithm."""

    def forced(*args):
        with cnnkernels.emulate_cuda(**emulation), cnnkernels.algorithm(algorithm):
            return function(*args)

    return forced


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("problem", ["groups", "even"])
@pytest.mark.parametrize("algorithm", TILES)
def test_no_alarm(algorithm, problem, layout):
    """No race, no access out of bounds; no block reads or writes what another writes."""
    tensors = operands(problem)
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]

    def conv2d(*tensors):
        return ours.conv2d_relu(*tensors, **PROBLEMS[problem][2])

    plain = emulated(algorithm, with_gradients)(conv2d, tensors)
    checked = emulated(algorithm, with_gradients, check=True)(conv2d, tensors)
    for a, b in zip(plain, checked, strict=True):
        assert torch.equal(a, b)  # the twin adds in the same order


@pytest.mark.parametrize("algorithm", TILES)
def test_emulated_blocks_give_the_same_bits_in_any_order(algorithm):
    tensors = operands("several_tiles")
    function = emulated(algorithm, with_gradients)
    assert_same_bits(lambda: function(partial(ours.conv2d_relu, padding=1), tensors))


@pytest.mark.parametrize("algorithm", TILES)
def test_unaligned_and_expanded_tensors_are_exact(algorithm):
    x, w, b = exact_operands("odd", algorithm)
    unaligned = [torch.empty(t.numel() + 1)[1:].view_as(t).copy_(t) for t in (x, w)]
    for pair in (unaligned, (x[:1].expand_as(x), w[:1].expand_as(w))):
        result = emulated(algorithm, partial(ours.conv2d, padding=1))(*pair, b)
        assert torch.equal(result, F.conv2d(*pair, b, padding=1))


def test_an_empty_batch_has_gradients_too():
    leaves = [torch.zeros(0, 64, 9, 9, requires_grad=True), torch.randn(64, 64, 3, 3)]
    with cnnkernels.emulate_cuda():
        ours.conv2d(*leaves, padding=1).sum().backward()
    assert leaves[0].grad.shape == leaves[0].shape


def profiles(
    algorithm: str, C: int, K: int, layout: str = "nchw", relu: bool = False
) -> dict[str, KernelProfile]:
    """What fprop and dgrad of 33 patches run, by name."""
    side = 2 if algorithm == "winograd" else 4
    x, w = torch.randn(1, C, 3 * side, 11 * side), torch.randn(K, C, 3, 3)
    leaf, w = (LAYOUTS[layout](t) for t in (x.requires_grad_(), w))
    function = ours.conv2d_relu if relu else ours.conv2d
    with cnnkernels.profile() as profile, cnnkernels.algorithm(algorithm):
        torch.autograd.grad(function(leaf, w, padding=1).sum(), leaf)
    return {k.kernel.replace("cnnkernels::", ""): k for k in profile.kernels}


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("algorithm", TILES)
def test_the_weight_is_transformed_once_a_pass(algorithm, relu):
    tile = TILES[algorithm]
    launches = {name: k.launches for name, k in profiles(algorithm, 3, 4, relu=relu).items()}
    fprop, masked_dgrad = f"conv2d_winograd<{tile}, false>", f"conv2d_winograd<{tile}, true>"
    products = {fprop: 1, masked_dgrad: 1} if relu else {fprop: 2}
    assert launches == products | {f"conv2d_winograd_filters<{tile}>": 2}


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("algorithm", TILES)
def test_nothing_conflicts_in_shared_memory(algorithm, layout):
    kernel = profiles(algorithm, 8, 8, layout)[f"conv2d_winograd<{TILES[algorithm]}, false>"]
    for traffic in (kernel.shared_load, kernel.shared_store):
        assert traffic.units == traffic.ideal > 0


@pytest.mark.parametrize("algorithm", TILES)
def test_products_counted_by_hand(algorithm):
    """Two blocks. For each channel a warp reads packs of 8 patches and of 8 or 4 filters a lane."""
    name = f"conv2d_winograd<{TILES[algorithm]}, false>"
    more, less = (profiles(algorithm, C, 8)[name] for C in (16, 8))
    fma = 2 * 8 * MULTIPLY_ADDS[algorithm]
    assert more.fma - less.fma == fma
    packs, sums = (4, 64) if algorithm == "winograd" else (3, 32)
    assert more.shared_load.requests - less.shared_load.requests == fma / 32 * packs / sums


@pytest.mark.parametrize(
    ("shape", "filters", "kwargs", "expected"),
    [
        ((8, 64, 112, 112), (64, 64, 3, 3), {}, "winograd"),
        ((8, 512, 14, 14), (512, 512, 3, 3), {}, "winograd"),
        ((8, 256, 28, 28), (256, 64, 3, 3), dict(groups=4), "winograd"),
        ((1, 512, 14, 14), (512, 512, 3, 3), {}, "implicit_gemm"),  # few blocks
        ((1, 64, 14, 14), (4096, 64, 3, 3), {}, "implicit_gemm"),  # few pixels
        ((8, 16, 56, 56), (64, 16, 3, 3), {}, "implicit_gemm"),  # few channels
        ((8, 64, 56, 56), (128, 64, 3, 3), dict(stride=2), "implicit_gemm"),
        ((8, 64, 56, 56), (64, 64, 3, 3), dict(dilation=2), "implicit_gemm"),
    ],
)
def test_it_runs_on_a_gpu_where_it_pays(shape, filters, kwargs, expected):
    input, weight = torch.empty(shape), torch.empty(filters)
    with cnnkernels.emulate_cuda():
        chosen = runs(input, weight, padding=1, **kwargs)
        doubles = runs(input.double(), weight.double(), padding=1, **kwargs)
    assert chosen["fprop"] == chosen["dgrad"] == expected
    assert chosen["wgrad"] == doubles["fprop"] == "implicit_gemm"


def test_on_a_gpu_tf32_goes_first_and_fast_math_allows_4x4():
    x, w = torch.empty(8, 64, 56, 56), torch.empty(64, 64, 3, 3)
    narrow = x[..., :6, :6].repeat(32, 1, 1, 1)  # half of 4x4's patches lie beyond
    chosen = {}
    for tf32 in (False, True):
        for fast in (False, True):
            with cnnkernels.emulate_cuda(tf32=tf32), cnnkernels.fast_math(winograd=fast):
                chosen[tf32, fast] = [runs(t, w, padding=1)["dgrad"] for t in (x, narrow)]
    assert chosen[False, False] == ["winograd", "winograd"]
    assert chosen[False, True] == ["winograd_4x4", "winograd"]
    assert chosen[True, False] == chosen[True, True] == ["tensor_core", "tensor_core"]
