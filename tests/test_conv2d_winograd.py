"""Winograd on the CPU: what it runs, how exact it is, and when it is chosen."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, assert_same_bits, integers, relative_error

import cnnkernels
import cnnkernels.functional as ours

# N, C, H, W; K; padding. Odd sizes leave patches that reach beyond the output.
PROBLEMS = {
    "one": ((1, 1, 3, 3), 1, 0),
    "odd": ((2, 5, 7, 9), 7, 1),
    "even": ((2, 32, 14, 12), 33, 1),
    "row": ((1, 3, 1, 40), 4, 1),
    "wide_padding": ((1, 4, 5, 6), 9, (4, 3)),
    "channel_blocks": ((1, 131, 9, 8), 70, 1),
    "several_tiles": ((3, 17, 37, 45), 19, 1),
    "long_rows": ((1, 3, 5, 301), 5, 1),
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
    shape, K, _ = PROBLEMS[problem]
    return [random(*size, dtype=dtype) for size in (shape, (K, shape[1], 3, 3), (K,))]


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
def test_exact_on_whole_numbers(algorithm, problem, layout):
    padding = PROBLEMS[problem][2]
    tensors = exact_operands(problem, algorithm)
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    with cnnkernels.algorithm(algorithm):
        results = with_gradients(lambda *t: ours.conv2d_relu(*t, padding=padding), tensors)
    expected = with_gradients(lambda *t: F.relu(F.conv2d(*t, padding=padding)), tensors)
    for result, reference in zip(results, expected, strict=True):
        assert torch.equal(result, reference)


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
def test_errors_are_within_those_documented(algorithm, problem):
    padding = PROBLEMS[problem][2]

    def conv2d(module):
        return lambda *tensors: module.conv2d(*tensors, padding=padding)

    tensors = operands(problem)
    with cnnkernels.algorithm(algorithm):
        results = with_gradients(conv2d(ours), tensors)
    torchs = with_gradients(conv2d(F), tensors)
    references = with_gradients(conv2d(F), [t.double() for t in tensors])
    for result, own, reference in zip(results, torchs, references, strict=True):
        unit = torch.finfo(torch.float32).eps
        assert relative_error(result, reference) <= max(
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
def test_a_nan_stays_with_its_neighbours(algorithm, rows, columns):
    """Of the patches that read it, and of no other."""
    x, w, b = operands("several_tiles")
    x[1, 4, 20, 21] = torch.nan
    with cnnkernels.algorithm(algorithm):
        wrong = ours.conv2d(x, w, b, padding=1).isnan()
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


def test_what_it_cannot_run_is_an_error_that_says_why():
    with (
        cnnkernels.algorithm("winograd"),
        pytest.raises(RuntimeError, match="for 3x3 filters alone"),
    ):
        ours.conv2d(torch.zeros(1, 2, 8, 8), torch.zeros(3, 2, 5, 5))
