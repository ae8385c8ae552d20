"""Convolution, ReLU and pool in one, against torch's three functions in a row."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, integers
from test_autograd import FORBIDDEN, Recorder

import cnnkernels
import cnnkernels.functional as ours

# N, C, H, W; K, R, S; the convolution's arguments; the pool's.
PROBLEMS = {
    "mnist_first": ((2, 1, 28, 28), (16, 5, 5), dict(padding=2), dict(kernel_size=2)),
    "vgg": ((1, 3, 15, 17), (9, 3, 3), dict(padding=1), dict(kernel_size=2, stride=2)),
    "overlapping": ((2, 3, 13, 11), (5, 3, 3), dict(padding=1), dict(kernel_size=3, stride=2)),
    "padded": ((1, 2, 9, 8), (4, 3, 3), {}, dict(kernel_size=3, stride=2, padding=1)),
    "ceil": ((2, 4, 10, 9), (3, 2, 2), {}, dict(kernel_size=(2, 3), stride=2, ceil_mode=True)),
    "gaps": ((1, 3, 16, 14), (4, 3, 3), dict(stride=2, padding=1), dict(kernel_size=2, stride=3)),
    "groups": ((2, 6, 9, 9), (4, 3, 3), dict(groups=2, dilation=2), dict(kernel_size=2, stride=1)),
    "one": ((1, 1, 1, 1), (1, 1, 1), {}, dict(kernel_size=1)),
    "five": ((1, 2, 12, 13), (3, 3, 3), dict(padding="same"), dict(kernel_size=5, stride=3)),
    "unbatched": ((3, 9, 8), (4, 3, 3), dict(padding=1), dict(kernel_size=2)),
    "two_parts": ((1, 18, 4, 5), (19, 5, 5), dict(padding=2), dict(kernel_size=2)),  # of 450
    "packs": ((1, 16, 5, 8), (24, 3, 3), dict(padding=1), dict(kernel_size=(1, 4))),
    "no_images": ((0, 3, 9, 8), (4, 3, 3), dict(padding=1), dict(kernel_size=2)),
}
MAX_ONLY = {
    "dilated": ((1, 2, 12, 11), (3, 3, 3), {}, dict(kernel_size=2, stride=2, dilation=3)),
    "wide": ((1, 2, 20, 40), (2, 1, 1), {}, dict(kernel_size=(15, 17), stride=3)),
}
DIVISORS = {
    "plain": {},
    "uncounted": dict(count_include_pad=False),
    "override": dict(divisor_override=3),
}
CASES = [
    *(pytest.param("max", p, {}, id=f"max-{name}") for name, p in (PROBLEMS | MAX_ONLY).items()),
    *(
        pytest.param("avg", problem, divisor, id=f"avg-{name}-{kind}")
        for name, problem in PROBLEMS.items()
        for kind, divisor in DIVISORS.items()
    ),
]
LAYOUTS = {
    "nchw": lambda t: t,
    "channels_last": lambda t: (
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
    ),
    "sliced": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def call_of(kind, conv, pool):
    """The function's name and its arguments beside the tensors."""
    names = {"kernel_size", "stride", "padding", "dilation"}
    kwargs = {f"pool_{n}" if n in names else n: value for n, value in pool.items()}
    return f"conv2d_relu_{kind}_pool2d", conv | kwargs


def fused(kind, conv, pool):
    name, kwargs = call_of(kind, conv, pool)
    return lambda *tensors: getattr(ours, name)(*tensors, **kwargs)


def sequence(kind, conv, pool, module=F):
    def function(*tensors):
        x = module.conv2d(*tensors, **conv)
        return getattr(module, f"{kind}_pool2d")(F.relu(x), **pool)

    return function


def operands(problem, dtype, device, random):
    shape, (K, R, S), conv, _ = problem
    C = shape[-3] // conv.get("groups", 1)
    sizes = (shape, (K, C, R, S), (K,))
    return [random(*size, dtype=dtype).to(device) for size in sizes]


def with_gradients(function, tensors, dtype=None):
    leaves = [t.to(dtype or t.dtype).detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    weights = (torch.arange(output.numel(), device=output.device) % 5 - 2).view(output.shape)
    grads = torch.autograd.grad(output, leaves, weights.to(output.dtype))
    return [output.detach(), *grads]


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, layout) for layout in LAYOUTS] + [(dtype, "nchw") for dtype in DTYPES[1:]],
    ids=str,
)
@pytest.mark.parametrize(("kind", "problem", "divisor"), CASES)
def test_exact_on_whole_numbers(backend, kind, problem, divisor, dtype, layout):
    """Sums are exact in float32, so both sides round the same numbers at the same places."""
    *_, conv, pool = problem
    pool = pool | divisor
    tensors = operands(problem, dtype, backend.device, integers)
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    results = with_gradients(fused(kind, conv, pool), tensors)
    if dtype in (torch.float32, torch.float64) and kind == "max":
        expected = with_gradients(sequence(kind, conv, pool), tensors)
    else:  # averages round; so do torch's own sums in 16 bits
        expected = with_gradients(sequence(kind, conv, pool, module=ours), tensors)
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == reference.dtype
        # (Unbatched, torch's pool forgets the channels_last format that the weight gave.)
        if result.dim() == 4 and result.numel() > 0 and 1 not in result.shape:
            assert result.stride() == reference.stride()
        if kind == "max" or dtype == torch.float64:
            torch.testing.assert_close(result, reference, rtol=1e-13, atol=1e-13)
        else:
            torch.testing.assert_close(result, reference)


ALGORITHMS = {  # and a dtype that it runs
    "tiled": torch.float64,
    "tensor_core": torch.float16,
    "implicit_gemm": torch.float64,
    "direct": torch.float64,
}


def assert_equal_to_the_sequence(results, kind, tensors, conv, pool):
    # torch sums 16 bits in another way
    module = ours if tensors[0].dtype == torch.float16 else F
    expected = with_gradients(sequence(kind, conv, pool, module), tensors)
    tolerance = dict(rtol=1e-13, atol=1e-13)
    for result, reference in zip(results, expected, strict=True):
        rounds = kind == "avg" and result.dtype != torch.float64
        torch.testing.assert_close(result, reference, **({} if rounds else tolerance))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("kind", "problem", "divisor"), CASES)
def test_each_algorithm_is_exact(kind, problem, divisor, algorithm):
    *_, conv, pool = problem
    pool = pool | divisor
    tensors = operands(problem, ALGORITHMS[algorithm], "cpu", integers)
    function = fused(kind, conv, pool)
    name, kwargs = call_of(kind, conv, pool)
    with cnnkernels.emulate_cuda():
        candidates = cnnkernels.algorithms(name, *tensors, **kwargs)
    if next(c for c in candidates if c.algorithm == algorithm).unsupported:
        pytest.skip(f"not for {algorithm}")
    with cnnkernels.profile() as profile, cnnkernels.algorithm(algorithm):
        results = with_gradients(function, tensors)
    passes = {"fprop", "dgrad", "wgrad"} if tensors[0].numel() else set()
    names = {kernel.kernel for kernel in profile.kernels}
    assert all(any(f"{algorithm}_{one}" in name for name in names) for one in passes)
    assert_equal_to_the_sequence(results, kind, tensors, conv, pool)


# ---------------------------------------------------------------- the matrix products


GEMMS = ["tensor_core", "implicit_gemm"]
GEMM_DTYPES = [
    ("tensor_core", torch.float16),
    ("tensor_core", torch.bfloat16),
    ("tensor_core", torch.float32),
    ("implicit_gemm", torch.float32),
    ("implicit_gemm", torch.float64),
]
TILES = {
    "narrow": ((1, 16, 10, 11), (24, 3, 3), dict(padding=1)),
    "two_parts": ((1, 48, 6, 7), (40, 3, 3), dict(padding=1)),  # of 432
}
WINDOWS = {"squares": (2, 2), "lines": (1, 4), "columns": (4, 1)}


def by_gemm(algorithm, function, tensors):
    with cnnkernels.emulate_cuda(tf32=True), cnnkernels.algorithm(algorithm):
        with cnnkernels.profile() as profile:
            results = with_gradients(function, tensors)
    return results, [kernel.kernel for kernel in profile.kernels]


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("algorithm", "dtype"), GEMM_DTYPES, ids=str)
def test_whole_windows_are_pooled_by_the_product(algorithm, dtype, tile, layout, kind):
    conv, pool = TILES[tile][2], dict(kernel_size=2)
    tensors = operands((*TILES[tile], pool), dtype, "cpu", partial(integers, high=2))
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    results, kernels = by_gemm(algorithm, fused(kind, conv, pool), tensors)
    names = [kernel.partition("<")[0].removeprefix("conv2d_") for kernel in kernels]
    passes = f"pool_{algorithm}_fprop", "pool_spread", f"{algorithm}_dgrad", f"{algorithm}_wgrad"
    assert tuple(names[:4]) == passes
    expected = with_gradients(sequence(kind, conv, pool, ours), tensors)
    for result, reference in zip(results, expected, strict=True):
        assert result.stride() == reference.stride() or 1 in result.shape
        torch.testing.assert_close(result, reference, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("algorithm", "dtype"), GEMM_DTYPES[:-1], ids=str)
def test_the_large_tile_pools(algorithm, dtype, layout):
    """Many groups are many blocks, which want it."""
    conv, pool = dict(groups=192), dict(kernel_size=2)
    problem = ((1, 192 * 8, 2, 5), (192 * 72, 1, 1), conv, pool)
    tensors = operands(problem, dtype, "cpu", partial(integers, high=2))
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    with cnnkernels.emulate_cuda(tf32=True), cnnkernels.algorithm(algorithm):
        with cnnkernels.profile() as profile:
            result = fused("max", conv, pool)(*tensors)
    (kernel,) = profile.kernels
    size = "true" if algorithm == "tensor_core" else "128, 128"
    assert f", {size}, {str(layout == 'channels_last').lower()}>" in kernel.kernel
    assert torch.equal(result, sequence("max", conv, pool, ours)(*tensors))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("algorithm", GEMMS)
def test_windows_of_four_of_any_shape(algorithm, window):
    pool = dict(kernel_size=WINDOWS[window])
    problem = ((2, 8, 9, 11), (16, 3, 3), dict(padding=1), pool)
    tensors = operands(problem, torch.float16, "cpu", integers)
    if algorithm == "implicit_gemm":
        tensors = [t.float() for t in tensors]
    results, kernels = by_gemm(algorithm, fused("max", *problem[2:]), tensors)
    assert kernels[0].startswith(f"conv2d_pool_{algorithm}_fprop")
    assert_equal_to_the_sequence(results, "max", tensors, *problem[2:])


@pytest.mark.parametrize("pool", ["overlapping", "padded", "ceil", "gaps"])
@pytest.mark.parametrize("algorithm", GEMMS)
def test_other_windows_are_pooled_behind_the_product(algorithm, pool):
    pool = PROBLEMS[pool][3]
    problem = ((1, 8, 9, 11), (16, 3, 3), dict(padding=1), pool)
    tensors = operands(problem, torch.float16, "cpu", integers)
    if algorithm == "implicit_gemm":
        tensors = [t.float() for t in tensors]
    results, kernels = by_gemm(algorithm, fused("max", *problem[2:]), tensors)
    assert kernels[0].startswith(f"conv2d_{algorithm}_fprop")
    assert kernels[1].startswith("conv2d_pool_outputs")
    assert_equal_to_the_sequence(results, "max", tensors, *problem[2:])


def test_deep_convolutions_are_for_the_products():
    x, w = torch.zeros(2, 32, 8, 8), torch.zeros(16, 32, 3, 3)

    def chosen(**tf32):
        with cnnkernels.emulate_cuda(**tf32):
            candidates = cnnkernels.algorithms(
                "conv2d_relu_max_pool2d", x, w, padding=1, pool_kernel_size=2
            )
        return [c.algorithm for c in candidates if "fprop" in c.runs]

    assert chosen(tf32=True) == ["tensor_core"]
    assert chosen() == ["implicit_gemm"]


@pytest.mark.parametrize("channels", [8, 48])
def test_the_products_store_pooled_outputs_codes_and_waiting_parts_alone(channels):
    x, w = torch.randn(2, channels, 8, 8), torch.randn(40, channels, 3, 3)
    with cnnkernels.profile() as profile, cnnkernels.algorithm("implicit_gemm"):
        ours.conv2d_relu_max_pool2d(x, w.requires_grad_(), padding=1, pool_kernel_size=2)
    (kernel,) = profile.kernels
    outputs = 2 * 40 * 8 * 8
    parts = 4 * outputs if channels * 9 > 384 else 0
    assert kernel.global_store.bytes == outputs // 4 * (4 + 1) + parts


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("algorithm", GEMMS)
def test_nothing_is_out_of_bounds_or_raced_for_in_the_products(algorithm, layout):
    problem = ((2, 48, 5, 7), (40, 3, 3), dict(padding=1), dict(kernel_size=2))
    tensors = operands(problem, torch.float32, "cpu", partial(integers, high=2))
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    with cnnkernels.emulate_cuda(check=True, tf32=True), cnnkernels.algorithm(algorithm):
        checked = with_gradients(fused("max", *problem[2:]), tensors)
    assert_equal_to_the_sequence(checked, "max", tensors, *problem[2:])


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(("kind", "problem", "divisor"), CASES)
def test_float32_follows_the_accuracy_rule(backend, kind, problem, divisor):
    *_, conv, pool = problem
    pool = pool | divisor
    tensors = operands(problem, torch.float32, backend.device, torch.randn)
    function, torchs = fused(kind, conv, pool), sequence(kind, conv, pool)
    for result, expected, reference in zip(
        with_gradients(function, tensors),
        with_gradients(torchs, tensors),
        with_gradients(torchs, tensors, torch.float64),
        strict=True,
    ):
        assert_accurate(result, expected, reference)


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_nan_and_infinity_pass_as_in_the_sequence(backend, kind):
    input = integers(1, 2, 8, 8, dtype=torch.float64)
    input[0, 0, 2, 3], input[0, 1, 6, 6], input[0, 1, 0, 1] = torch.nan, torch.inf, -torch.inf
    weight, bias = torch.ones(3, 2, 1, 1).double(), torch.tensor([0.0, -1.0, 2.0]).double()
    tensors = [t.to(backend.device) for t in (input, weight, bias)]
    pool = dict(kernel_size=2)
    results = with_gradients(fused(kind, {}, pool), tensors)
    expected = with_gradients(sequence(kind, {}, pool), tensors)
    torch.testing.assert_close(results, expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_gradcheck_and_gradgradcheck(backend, kind):
    problem = ((2, 2, 7, 6), (3, 3, 3), dict(padding=1), dict(kernel_size=3, stride=2))
    tensors = operands(problem, torch.float64, backend.device, torch.randn)
    tensors = [t.requires_grad_() for t in tensors]
    function = fused(kind, *problem[2:])
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)
    frozen = [tensors[0].detach(), *tensors[1:]]
    assert torch.autograd.gradcheck(partial(function, frozen[0]), frozen[1:])


@pytest.mark.parametrize(("kind", "problem", "divisor"), CASES)
def test_codes_are_those_of_every_backend(kind, problem, divisor):
    """So that a step may go backward elsewhere than it went forward."""
    *_, conv, pool = problem
    tensors = [t.requires_grad_() for t in operands(problem, torch.float32, "cpu", integers)]

    def code():
        node = fused(kind, conv, pool | divisor)(*tensors).grad_fn
        while "Conv2dReluPool2d" not in type(node).__name__:
            node = node.next_functions[0][0]
        return node.saved_tensors[0]

    native = code()
    with cnnkernels.emulate_cuda():
        assert torch.equal(native, code())


def test_what_each_pass_stores():
    input = torch.randn(2, 3, 16, 16, requires_grad=True)
    weight = torch.randn(8, 3, 3, 3, requires_grad=True)

    def forward():
        return ours.conv2d_relu_max_pool2d(input, weight, padding=1, pool_kernel_size=2)

    with cnnkernels.profile() as training:
        output = forward()
    with cnnkernels.profile() as inference, torch.no_grad():
        forward()
    with cnnkernels.profile() as backward:
        output.sum().backward()
    (kernel,) = training.kernels
    pooled = 2 * 8 * 8 * 8
    assert kernel.global_store.bytes == pooled * (4 + 1)
    assert inference.kernels[0].global_store.bytes == pooled * 4
    stored = sum(kernel.global_store.bytes for kernel in backward.kernels)
    partial_sums = weight.numel()  # of the one chunk of outputs that there is
    spread = 2 * 4 * pooled  # the gradient of the convolution's output, for both passes
    assert stored == 4 * (input.numel() + weight.numel() + partial_sums + spread)


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_opcheck_of_the_fused_ops(kind):
    problem = ((2, 3, 9, 8), (4, 3, 3), dict(padding=1), dict(kernel_size=2))
    tensors = [t.requires_grad_() for t in operands(problem, torch.float32, "cpu", torch.randn)]
    with Recorder() as recorder, cnnkernels.emulate_cuda():
        fused(kind, *problem[2:])(*tensors).sum().backward()
    calls = [call for call in recorder.calls if call[0].namespace == "cnnkernels"]
    assert [op.name() for op, _ in calls] == [
        "cnnkernels::conv2d_relu_pool2d",
        "cnnkernels::conv2d_relu_pool2d_backward",
    ]
    atens = {op.name() for op, _ in recorder.calls if op.namespace == "aten"}
    assert not {name for name in atens if any(word in name for word in FORBIDDEN)}
    for op, args in calls:
        detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        torch.library.opcheck(op, tuple(detached))
    op, args = calls[0]
    torch.library.opcheck(op, (*tensors, *args[3:]))


def test_compiles_to_one_graph(backend):
    problem = ((2, 3, 9, 8), (4, 3, 3), dict(padding=1), dict(kernel_size=2))
    tensors = operands(problem, torch.float32, backend.device, torch.randn)
    for kind in ("max", "avg"):
        function = fused(kind, *problem[2:])
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        results, expected = with_gradients(compiled, tensors), with_gradients(function, tensors)
        torch.testing.assert_close(results, expected)


def test_under_transforms_and_forward_mode(backend):
    problem = ((2, 3, 9, 8), (4, 3, 3), dict(padding=1), dict(kernel_size=2))
    tensors = operands(problem, torch.float64, backend.device, torch.randn)
    for kind in ("max", "avg"):
        mine, theirs = fused(kind, *problem[2:]), sequence(kind, *problem[2:])
        tangents = [torch.randn_like(t) for t in tensors]
        result = torch.func.jvp(mine, tuple(tensors), tuple(tangents))
        torch.testing.assert_close(result, torch.func.jvp(theirs, tuple(tensors), tuple(tangents)))

        def per_sample(function):
            def loss(input, weight):
                return function(input.unsqueeze(0), weight, tensors[2]).pow(2).sum()

            return torch.func.vmap(torch.func.grad(loss, argnums=1), (0, None))(*tensors[:2])

        torch.testing.assert_close(per_sample(mine), per_sample(theirs))


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_nothing_is_out_of_bounds_or_raced_for(kind):
    problem = ((2, 3, 9, 8), (4, 3, 3), dict(padding=1), dict(kernel_size=3, stride=2, padding=1))
    tensors = operands(problem, torch.float32, "cpu", torch.randn)
    with cnnkernels.emulate_cuda(check=True):
        checked = with_gradients(fused(kind, *problem[2:]), tensors)
    torch.testing.assert_close(checked, with_gradients(sequence(kind, *problem[2:]), tensors))


def test_large_averages_run_one_after_the_other(backend):
    problem = ((1, 2, 9, 9), (2, 1, 1), {}, dict(kernel_size=6))
    tensors = operands(problem, torch.float64, backend.device, torch.randn)
    results = with_gradients(fused("avg", *problem[2:]), tensors)
    torch.testing.assert_close(results, with_gradients(sequence("avg", *problem[2:]), tensors))


BAD = {
    "window": dict(pool_kernel_size=99),
    "padding": dict(pool_kernel_size=2, pool_padding=2),
    "stride": dict(pool_kernel_size=2, pool_stride=0),
    "type": dict(pool_kernel_size="2"),
    "conv": dict(pool_kernel_size=2, groups=5),
}


@pytest.mark.parametrize("case", BAD)
def test_torchs_errors(backend, case):
    tensors = [torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3)]
    with pytest.raises((TypeError, RuntimeError)):
        ours.conv2d_relu_max_pool2d(*(t.to(backend.device) for t in tensors), **BAD[case])


def test_integers_are_torchs():
    x, w = torch.arange(64).view(1, 1, 8, 8), torch.ones(1, 1, 3, 3, dtype=torch.int64)
    result = ours.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2)
    assert torch.equal(result, F.max_pool2d(F.relu(F.conv2d(x, w)), 2))
