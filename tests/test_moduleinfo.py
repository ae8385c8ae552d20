"""Our modules on torch's own samples of their namesakes: torch.testing's module database."""

import copy
import pickle

import pytest
import torch
from accuracy import assert_accurate
from torch import nn

import cnnkernels.nn as ours

pytest.importorskip("expecttest", reason="torch's module database needs it")
from torch.testing._internal.common_modules import module_db  # noqa: E402

# Module: how many samples torch 2.13 has.
COUNTS = {
    "Conv2d": 4,
    "MaxPool2d": 3,
    "AvgPool2d": 7,
    "AdaptiveMaxPool2d": 4,
    "AdaptiveAvgPool2d": 5,
}
INFOS = {name: next(info for info in module_db if info.name == f"nn.{name}") for name in COUNTS}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def samples(name, device, dtype=torch.float64, training=True):
    """Of each sample torch's module, ours with the same state, and the input."""
    torch.manual_seed(0)
    inputs = INFOS[name].module_inputs_func(
        INFOS[name], device=device, dtype=dtype, requires_grad=True, training=training
    )
    for sample in inputs:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        pair = [getattr(module, name)(*args, **kwargs) for module in (nn, ours)]
        pair = [module.to(device, dtype).train(training) for module in pair]
        pair[1].load_state_dict(pair[0].state_dict())
        (input,) = sample.forward_input.args
        yield *pair, input


def values(result):
    return result[0] if isinstance(result, tuple) else result


def derivatives(module, input):
    """The outputs, and the gradients of input and parameters."""
    input = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    result = module(input)
    outputs = result if isinstance(result, tuple) else (result,)
    weights = torch.arange(outputs[0].numel(), device=input.device) % 5 - 2
    leaves = [input, *module.parameters()]
    grads = torch.autograd.grad(
        outputs[0], leaves, weights.to(outputs[0].dtype).view_as(outputs[0])
    )
    return [tensor.detach() for tensor in (*outputs, *grads)]


def assert_same(torchs, own, input):
    reference = copy.deepcopy(torchs).double()
    for result, expected, exact in zip(
        derivatives(own, input),
        derivatives(torchs, input),
        derivatives(reference, input.double()),
        strict=True,
    ):
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        assert result.stride() == expected.stride() or 1 in result.shape
        if result.is_floating_point():
            assert_accurate(result, expected, exact, repr(own))
        else:
            assert torch.equal(result, expected), repr(own)


def test_the_database_has_the_samples_that_are_counted_on():
    for name, count in COUNTS.items():
        assert len(list(samples(name, "cpu"))) == count, name


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", COUNTS)
def test_samples(backend, name, dtype, training):
    for torchs, own, input in samples(name, backend.device, dtype, training):
        assert_same(torchs, own, input)


@pytest.mark.parametrize("name", COUNTS)
def test_channels_last_samples(backend, name):
    for torchs, own, input in samples(name, backend.device, torch.float32):
        if input.dim() == 4:
            format = torch.channels_last
            assert_same(
                torchs.to(memory_format=format),
                own.to(memory_format=format),
                input.detach().to(memory_format=format),
            )


@pytest.mark.parametrize("name", COUNTS)
def test_first_and_second_derivatives(backend, name):
    for _, own, input in samples(name, backend.device):
        parameters = tuple(own.parameters())

        def function(input, *parameters, own=own):
            state = dict(zip(dict(own.named_parameters()), parameters, strict=True))
            return values(torch.func.functional_call(own, state, (input,)))

        assert torch.autograd.gradcheck(function, (input, *parameters))
        assert torch.autograd.gradgradcheck(function, (input, *parameters))


@pytest.mark.parametrize("name", COUNTS)
def test_copies_and_pickles(name):
    for torchs, own, input in samples(name, "cpu"):
        expected = values(own(input))
        for copied in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
            assert torch.equal(values(copied(input)), expected)
            assert repr(copied) == repr(torchs)


def test_error_inputs(backend):
    errors = INFOS["MaxPool2d"].module_error_inputs_func(
        INFOS["MaxPool2d"], "cpu", torch.float32, False, True
    )
    assert errors
    for error in errors:
        sample = error.module_error_input
        with pytest.raises(error.error_type, match=error.error_regex):
            module = ours.MaxPool2d(
                *sample.constructor_input.args, **sample.constructor_input.kwargs
            )
            module(*(argument.to(backend.device) for argument in sample.forward_input.args))
