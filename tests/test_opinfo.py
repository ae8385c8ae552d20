"""Torch's own samples of these functions: torch.testing's operator database.

All samples run forward and backward on native kernels in float32 and float64; the emulator runs
all of them forward, and every seventh backward as well. float16 and bfloat16 take every sample of
the convolution and of average pooling, and every fifth of max pooling. How many samples were
compared is printed at the end of the module.
"""

from collections import Counter
from functools import lru_cache

import pytest
import torch
from accuracy import assert_accurate

import cnnkernels.functional as ours

pytest.importorskip("expecttest", reason="torch's operator database needs it")
from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

# Function: how many samples and how many error inputs torch 2.13 has.
COUNTS = {"conv2d": (30, 10), "max_pool2d": (1440, 7), "avg_pool2d": (7, 5)}
OPS = {name: next(op for op in op_db if op.name == f"nn.functional.{name}") for name in COUNTS}

CHUNK = 240
CHUNKS = [
    pytest.param(name, begin, id=f"{name}-{begin}")
    for name, (count, _) in COUNTS.items()
    for begin in range(0, count, CHUNK)
]
DTYPES = [torch.float32, torch.float64]
DTYPES_16 = [torch.float16, torch.bfloat16]

compared: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def summary(request):
    yield
    manager = request.config.pluginmanager.getplugin("capturemanager")
    with manager.global_and_fixture_disabled():
        print("\n\nSamples of torch's operator database compared:")
        for what, count in sorted(compared.items()):
            print(f"{count:6d}  {what}")


@lru_cache(maxsize=4)
def samples(name, dtype, device):
    torch.manual_seed(0)
    return list(OPS[name].sample_inputs(device, dtype))


def chunk(name, begin, dtype, device):
    """Number and sample: the chunk's samples."""
    return list(enumerate(samples(name, dtype, device)))[begin : begin + CHUNK]


def rounded(sample):
    """Whole numbers, whose sums and products are exact in float32 and float64."""
    return sample.transform(lambda value: value.round() if is_floating(value) else value)


def is_floating(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def run(function, sample, gradients=True, dtype=None):
    """Outputs and, for a gradient of one in every other place, those of all tensors."""
    leaves = []

    def leaf(value):
        if not is_floating(value):
            return value
        leaves.append((value if dtype is None else value.to(dtype)).detach())
        return leaves[-1].requires_grad_(gradients)

    sample = sample.transform(leaf)
    outputs = function(sample.input, *sample.args, **sample.kwargs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    if not gradients:
        return outputs
    grad_output = torch.ones_like(outputs[0]).flatten()
    grad_output[1::2] = -2
    grads = torch.autograd.grad(outputs[0], leaves, grad_output.view(outputs[0].shape))
    return [output.detach() for output in outputs] + list(grads)


def assert_same(results, expected, what):
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == reference.dtype, what
        assert torch.equal(result, reference), what


def assert_all_accurate(results, torchs, references, what):
    for result, own, reference in zip(results, torchs, references, strict=True):
        if is_floating(reference):
            assert_accurate(result, own, reference, what)
        else:
            assert torch.equal(result, reference), what


def compare(name, sample, gradients=True):
    """Ours against torch's: equal for max pooling and whole numbers, else the accuracy rule."""
    function, torchs = getattr(ours, name), OPS[name].op
    what = f"{sample.input.shape} {sample.args} {sample.kwargs}"
    results, expected = run(function, sample, gradients), run(torchs, sample, gradients)
    if name == "max_pool2d":
        return assert_same(results, expected, what)
    references = run(torchs, sample, gradients, torch.float64)
    assert_all_accurate(results, expected, references, what)
    if name == "conv2d":
        sample = rounded(sample)
        assert_same(run(function, sample, gradients), run(torchs, sample, gradients), what)


def test_the_database_has_the_samples_that_are_counted_on():
    for name, counts in COUNTS.items():
        errors = list(OPS[name].error_inputs("cpu"))
        assert (len(samples(name, torch.float32, "cpu")), len(errors)) == counts, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "begin"), CHUNKS)
def test_samples(backend, name, begin, dtype):
    for number, sample in chunk(name, begin, dtype, backend.device):
        gradients = backend.name != "emulated" or number % 7 == 0
        compare(name, sample, gradients)
        compared[f"{name} {backend.name} {dtype}, forward"] += 1
        compared[f"{name} {backend.name} {dtype}, forward and backward"] += gradients


@pytest.mark.parametrize(("name", "begin"), CHUNKS)
def test_noncontiguous_samples(backend, name, begin):
    for number, sample in chunk(name, begin, torch.float32, backend.device):
        if backend.name == "emulated" and number % 7 != 0:
            continue
        compare(name, sample.noncontiguous())
        compared[f"{name} {backend.name} torch.float32, noncontiguous"] += 1


@pytest.mark.parametrize("dtype", DTYPES_16, ids=str)
@pytest.mark.parametrize(("name", "begin"), CHUNKS)
def test_16_bit_samples_accumulate_in_float32_and_round_once(backend, name, begin, dtype):
    function, torchs = getattr(ours, name), OPS[name].op
    for number, sample in chunk(name, begin, dtype, backend.device):
        if name == "max_pool2d" and number % 5 != 0:
            continue
        what = f"{number}: {sample.input.shape} {sample.args} {sample.kwargs}"
        results, expected = run(function, sample), run(torchs, sample)
        assert_all_accurate(results, expected, run(torchs, sample, dtype=torch.float64), what)

        sample = rounded(sample)
        wide = run(torchs, sample, dtype=torch.float32)
        once = [value.to(dtype) if is_floating(value) else value for value in wide]
        assert_same(run(function, sample), once, what)
        compared[f"{name} {backend.name} {dtype}"] += 1


# Torch asks for a 3-D input there, which would not help.
OWN_MESSAGES = {"Expected 3-dimensional input for 3-dimensional weight": "expected 4D weight"}


@pytest.mark.parametrize("name", COUNTS)
def test_error_inputs(backend, name):
    for error in OPS[name].error_inputs(backend.device):
        sample = error.sample_input
        message = OWN_MESSAGES.get(error.error_regex, error.error_regex)
        with pytest.raises(error.error_type, match=message):
            getattr(ours, name)(sample.input, *sample.args, **sample.kwargs)
        compared[f"{name} {backend.name}, error inputs"] += 1
