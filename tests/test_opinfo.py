"""Torch's own samples of these functions: torch.testing's operator database.

Every sample runs forward and backward on every backend in all dtypes, and noncontiguous in two of
them. How many were compared is printed at the end of the module.
"""

from collections import Counter
from functools import lru_cache

import pytest
import torch
from accuracy import assert_accurate
from test_autograd import Recorder

import cnnkernels.functional as ours

pytest.importorskip("expecttest", reason="torch's operator database needs it")
from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

# Function: how many samples and how many error inputs torch 2.13 has.
COUNTS = {
    "conv2d": (30, 10),
    "max_pool2d": (1440, 7),
    "avg_pool2d": (7, 5),
    "adaptive_max_pool2d": (24, 3),
    "adaptive_avg_pool2d": (10, 3),
}
OPS = {name: next(op for op in op_db if op.name == f"nn.functional.{name}") for name in COUNTS}

CHUNK = 240
CHUNKS = [
    pytest.param(name, begin, id=f"{name}-{begin}")
    for name, (count, _) in COUNTS.items()
    for begin in range(0, count, CHUNK)
]
DTYPES_16 = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, torch.float64, *DTYPES_16]

compared: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def summary(request):
    yield
    manager = request.config.pluginmanager.getplugin("capturemanager")
    with manager.global_and_fixture_disabled():
        print("\n\nSamples of torch's operator database compared:")
        for what, count in sorted(compared.items()):
            print(f"{count:6d}  {what}")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Samples this small only make threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@lru_cache(maxsize=4)
def samples(name, dtype, device):
    torch.manual_seed(0)
    return list(OPS[name].sample_inputs(device, dtype))


def rounded(sample):
    """Whole numbers, whose sums and products are exact in float32 and float64."""
    return sample.transform(lambda value: value.round() if is_floating(value) else value)


def is_floating(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def run(function, sample, dtype=None):
    """Outputs, and the gradients of all tensors, on copies of that dtype."""
    leaves = []

    def leaf(value):
        if not is_floating(value):
            return value
        leaves.append((value if dtype is None else value.to(dtype)).detach().requires_grad_())
        return leaves[-1]

    sample = sample.transform(leaf)
    outputs = function(sample.input, *sample.args, **sample.kwargs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grad_output = torch.ones_like(outputs[0]).flatten()
    grad_output[1::2] = -2
    grads = torch.autograd.grad(outputs[0], leaves, grad_output.view(outputs[0].shape))
    return [result.detach() for result in outputs + grads]


def assert_same(results, expected, what):
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == reference.dtype, what
        assert torch.equal(result, reference), what


def compare(name, sample):
    """Ours against torch's, forward and backward."""
    function, torchs = getattr(ours, name), OPS[name].op
    what = f"{tuple(sample.input.shape)} {sample.args} {sample.kwargs}"
    results, expected = run(function, sample), run(torchs, sample)
    if "max_pool2d" in name:
        assert_same(results, expected, what)
    else:
        references = run(torchs, sample, torch.float64)
        for result, own, reference in zip(results, expected, references, strict=True):
            assert_accurate(result, own, reference.double(), what)

    # Whole numbers: exact before the one rounding at the end, to 16 bits from float32.
    sample, dtype = rounded(sample), sample.input.dtype
    wide = run(torchs, sample, torch.float32 if dtype in DTYPES_16 else dtype)
    once = [value.to(dtype) if is_floating(value) else value for value in wide]
    assert_same(run(function, sample), once, what)


def test_the_database_has_the_samples_that_are_counted_on():
    for name, counts in COUNTS.items():
        errors = list(OPS[name].error_inputs("cpu"))
        assert (len(samples(name, torch.float32, "cpu")), len(errors)) == counts, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "begin"), CHUNKS)
def test_samples(backend, name, begin, dtype):
    for sample in samples(name, dtype, backend.device)[begin : begin + CHUNK]:
        compare(name, sample)
        compared[f"{name} {backend.name} {dtype}"] += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "begin"), CHUNKS)
def test_noncontiguous_samples(backend, name, begin, dtype):
    for sample in samples(name, dtype, backend.device)[begin : begin + CHUNK]:
        compare(name, sample.noncontiguous())
        compared[f"{name} {backend.name} {dtype}, noncontiguous"] += 1


# Where torch asks for a 3-D input, which would not help, or tells of its insides.
OWN_MESSAGES = {
    "Expected 3-dimensional input for 3-dimensional weight": "expected 4D weight",
    "internal error": "output_size must be 2",
    "Trying to create tensor with negative dimension": "must be greater than or equal to 0",
}


@pytest.mark.parametrize("name", COUNTS)
def test_error_inputs(backend, name):
    for error in OPS[name].error_inputs(backend.device):
        sample = error.sample_input
        message = OWN_MESSAGES.get(error.error_regex, error.error_regex)
        with pytest.raises(error.error_type, match=message):
            getattr(ours, name)(sample.input, *sample.args, **sample.kwargs)
        compared[f"{name} {backend.name}, error inputs"] += 1


# Tracing the whole of autograd takes a third of a second, and so is for some of the samples.
CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")
TRACED = 12


@pytest.mark.parametrize("name", COUNTS)
def test_opcheck_of_all_samples(name):
    """Every op that a sample calls, forward and backward."""
    all_samples = samples(name, torch.float32, "cpu")
    step = max(1, len(all_samples) // TRACED)
    for index, sample in enumerate(all_samples):
        with Recorder() as recorder:
            run(getattr(ours, name), sample)
        calls = [call for call in recorder.calls if call[0].namespace == "cnnkernels"]
        assert len(calls) >= 2  # forward and backward
        for op, args in calls:
            torch.library.opcheck(op, args, test_utils=CHECKS)
            compared[f"opcheck of {op}"] += 1
        if index % step == 0:
            op, args = calls[0]
            leaves = [a.detach().requires_grad_() if is_floating(a) else a for a in args]
            torch.library.opcheck(op, tuple(leaves), test_utils="test_aot_dispatch_dynamic")
            compared[f"opcheck of {op}, traced with gradients"] += 1
