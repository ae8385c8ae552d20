"""Random calls: hostile ones end in torch's answer or an exception, sensible ones are right.

Seeded, so that every run makes the same calls.
"""

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accuracy import integers

import cnnkernels.functional as ours

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# ---------------------------------------------------------------- hostile arguments

CALLS = 2500
# torch raises IndexError where it looks for a dimension that an integer input lacks.
CLEAN = (TypeError, ValueError, RuntimeError, IndexError)
FUNCTIONS = [
    "conv2d",
    "conv2d_relu",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_avg_pool2d",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_avg_pool2d",
]

INTEGERS = [0, 1, 2, 3, -1, -(2**31), 2**31, 2**62, 2**63, True, None]
NOT_INTEGERS = [1.5, 2.0, float("nan"), float("inf"), "2", b"2", [], {}, object(), torch.tensor(2)]
SIZES = [*INTEGERS, *NOT_INTEGERS, (1, 2), [2, 1], (2,), (1, 2, 3), (0, 1), (2, -1), (1, None)]
SHAPES = [(1, 2, 5, 6), (2, 5, 6), (0, 2, 5, 6), (1, 0, 5, 6), (1, 2, 0, 6), (5, 6), (1,) * 5, ()]
WEIGHTS = [(2, 2, 3, 3), (4, 1, 2, 2), (2, 2, 1, 1), (0, 2, 3, 3), (2, 2, 0, 3), (2, 2, 3), (2,)]
OUR_DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
OTHER_DTYPES = [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
DTYPES = OUR_DTYPES[:1] * 3 + OUR_DTYPES + OTHER_DTYPES
NOT_TENSORS = [None, 1.0, "input", [[1.0]], object()]


def strange_layout(tensor, choose):
    """The same shape, in memory that is shared, skipped or walked in another order."""
    kind = choose(["plain"] * 8 + ["expanded", "overlapping", "strided", "last", "sparse", "meta"])
    if kind == "expanded" and tensor.dim():
        return tensor[:1].expand_as(tensor)
    if kind == "overlapping" and tensor.dim() == 4 and tensor.numel():
        return integers(64, dtype=tensor.dtype).as_strided(tensor.shape, (3, 2, 1, 2))
    if kind == "strided" and tensor.dim():
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    if kind == "last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if kind == "sparse" and tensor.dtype == torch.float32:
        return tensor.to_sparse()
    return tensor.to("meta") if kind == "meta" else tensor


def rarely(choose):
    return choose([True] + [False] * 15)


def hostile_tensor(shapes, dtype, choose):
    if rarely(choose):
        return choose(NOT_TENSORS)
    dtype = choose(DTYPES) if rarely(choose) else dtype
    tensor = integers(*choose(shapes[:1] * 2 * len(shapes) + shapes), dtype=dtype)
    return strange_layout(tensor, choose)


def mostly(default, others, choose):
    return choose([default] * 4 * len(others) + others)


def hostile_call(random_state):
    """A function's name, its arguments and keyword arguments."""
    choose = random_state.choice
    name = choose(FUNCTIONS)
    flags = [True, False, None, 2, "no"]
    dtype = choose(DTYPES)
    args = [hostile_tensor(SHAPES, dtype, choose)]
    if name.startswith("conv2d"):
        args.append(hostile_tensor(WEIGHTS, dtype, choose))
        args.append(choose([None, None, hostile_tensor([(2,), (4,), (), (2, 1)], dtype, choose)]))
        kwargs = {
            "stride": mostly(1, SIZES, choose),
            "padding": mostly(1, [*SIZES, "same", "valid", "SAME"], choose),
            "dilation": mostly(1, SIZES, choose),
            "groups": mostly(1, INTEGERS + NOT_INTEGERS, choose),
        }
        if "pool" in name:
            kwargs |= {
                "pool_kernel_size": mostly(2, SIZES, choose),
                "pool_stride": mostly(None, SIZES, choose),
                "pool_padding": mostly(0, SIZES, choose),
                "ceil_mode": mostly(False, flags, choose),
            }
        return name, args, kwargs
    args.append(mostly(2, SIZES, choose))
    if name.startswith("adaptive"):
        return name, args, {}
    kwargs = {
        "stride": mostly(None, SIZES, choose),
        "padding": mostly(0, SIZES, choose),
        "ceil_mode": mostly(False, flags, choose),
    }
    if name == "max_pool2d":
        return name, args, kwargs | {"dilation": mostly(1, SIZES, choose)}
    divisor = mostly(None, INTEGERS + NOT_INTEGERS, choose)
    flag = mostly(True, flags, choose)
    return name, args, kwargs | {"count_include_pad": flag, "divisor_override": divisor}


class Torch:
    """What torch calls our functions."""

    @staticmethod
    def conv2d_relu(*args, **kwargs):
        return F.relu(F.conv2d(*args, **kwargs))


def then_pool(pool, *args, **kwargs):
    window = {
        key: kwargs.pop(f"pool_{key}" if key != "ceil_mode" else key)
        for key in ("kernel_size", "stride", "padding", "ceil_mode")
    }
    return pool(F.relu(F.conv2d(*args, **kwargs)), **window)


for name in FUNCTIONS:
    if hasattr(F, name):
        setattr(Torch, name, staticmethod(getattr(F, name)))
for name in ("max_pool2d", "avg_pool2d"):
    setattr(Torch, f"conv2d_relu_{name}", staticmethod(partial(then_pool, getattr(F, name))))


def outcome(function, args, kwargs):
    try:
        return function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 (any is clean; a crash would end the process)
        return error


def test_hostile_arguments_give_torchs_answer_or_an_exception(backend):
    random_state = random.Random(0)
    answers = 0
    for index in range(CALLS):
        torch.manual_seed(index)
        name, args, kwargs = hostile_call(random_state)
        result = outcome(getattr(ours, name), args, kwargs)
        if isinstance(result, Exception):
            assert isinstance(result, CLEAN), (index, result)
            continue
        answers += 1
        expected = outcome(getattr(Torch, name), args, kwargs)
        what = f"call {index}: {name} {kwargs}, torch: {expected}"
        assert isinstance(expected, torch.Tensor), what
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype), what
        if result.device.type == "meta" or result.dtype not in OUR_DTYPES:
            continue  # torch's own function, which leaves some such outputs unwritten
        tolerance = 4 * torch.finfo(result.dtype).eps
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, msg=what)
    assert answers > CALLS / 8  # or this compares nothing


# ---------------------------------------------------------------- random problems

# The same examples in every run.
settings.register_profile(
    "fixed",
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fixed")

FORMATS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw):
    """Input, weight, bias and keyword arguments that fit each other."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, dilation, padding = draw(pairs(1, 4)), draw(pairs(1, 3)), draw(pairs(0, 3))
    extent = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    image = [max(size, 1) + more for size, more in zip(extent, draw(pairs(0, 6)), strict=True)]
    C, K = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    shapes = ((draw(st.integers(0, 3)), C, *image), (K, C // groups, *kernel))
    tensors = [
        FORMATS[draw(st.sampled_from(sorted(FORMATS)))](integers(*shape, dtype=torch.float64))
        for shape in shapes
    ]
    tensors.append(integers(K, dtype=torch.float64) if draw(st.booleans()) else None)
    stride = draw(pairs(1, 3))
    return tensors, dict(stride=stride, padding=padding, dilation=dilation, groups=groups)


@st.composite
def pools(draw):
    kernel, dilation = draw(pairs(1, 4)), draw(pairs(1, 2))
    image = [
        d * (k - 1) + 1 + more
        for d, k, more in zip(dilation, kernel, draw(pairs(0, 6)), strict=True)
    ]
    shape = (draw(st.integers(0, 3)), draw(st.integers(1, 4)), *image)
    input = FORMATS[draw(st.sampled_from(sorted(FORMATS)))](integers(*shape, dtype=torch.float64))
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    kwargs = dict(stride=draw(pairs(1, 4)), padding=padding, ceil_mode=draw(st.booleans()))
    return input, kernel, kwargs, dilation


def derivatives(function, *tensors):
    """Output and gradients."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    weights = torch.arange(output.numel(), dtype=output.dtype).view(output.shape) % 5 - 2
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [output, *torch.autograd.grad(output, wanted, weights.to(output.device))]


def assert_same(function, *tensors, exact=True):
    tolerance = dict(rtol=0, atol=0) if exact else dict(rtol=1e-12, atol=1e-12)
    result, expected = (derivatives(partial(function, module), *tensors) for module in (ours, F))
    torch.testing.assert_close(result, expected, **tolerance)


@given(problem=convolutions())
def test_random_convolutions(backend, problem):
    tensors, kwargs = problem
    tensors = [t if t is None else t.to(backend.device) for t in tensors]
    assert_same(lambda module, *args: module.conv2d(*args, **kwargs), *tensors)


@given(problem=pools())
def test_random_max_pools(backend, problem):
    input, kernel, kwargs, dilation = problem
    assert_same(
        lambda module, x: module.max_pool2d(x, kernel, dilation=dilation, **kwargs),
        input.to(backend.device),
    )


@given(problem=pools(), include=st.booleans(), divisor=st.sampled_from([None, 3, -2]))
def test_random_avg_pools(backend, problem, include, divisor):
    input, kernel, kwargs, _ = problem
    kwargs |= dict(count_include_pad=include, divisor_override=divisor)
    assert_same(
        lambda module, x: module.avg_pool2d(x, kernel, **kwargs),
        input.to(backend.device),
        exact=False,
    )


@st.composite
def adaptive_pools(draw):
    shape = (draw(st.integers(0, 3)), draw(st.integers(1, 4)), *draw(pairs(1, 13)))
    input = FORMATS[draw(st.sampled_from(sorted(FORMATS)))](integers(*shape, dtype=torch.float64))
    return input, draw(pairs(1, 15))


@given(problem=adaptive_pools(), name=st.sampled_from(["max", "avg"]))
def test_random_adaptive_pools(backend, problem, name):
    input, size = problem
    assert_same(
        lambda module, x: getattr(module, f"adaptive_{name}_pool2d")(x, size),
        input.to(backend.device),
        exact=name == "max",
    )
