"""Our modules against their namesakes in torch.nn: same results, same state, same habits."""

import copy
import pickle

import pytest
import torch
from accuracy import integers
from torch import nn

import cnnkernels.nn as ours

# Inputs and parameters are small whole numbers, so that results are exact in any order of
# summation, and must be equal.

SHAPE = (2, 4, 9, 8)

CONVOLUTIONS = {
    "plain": ((4, 6, 3), {}),
    "no_bias": ((4, 6, 3), dict(bias=False)),
    "pairs": ((4, 6, (3, 2)), dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))),
    "groups": ((4, 6, 3), dict(groups=2, padding=1)),
    "depthwise": ((4, 4, 3), dict(groups=4)),
    "positional": ((4, 6, 3, 2, 1, 1, 2, False), {}),
    "same": ((4, 6, (4, 3)), dict(padding="same", dilation=(1, 2))),
    "valid": ((4, 6, 3), dict(padding="valid")),
    "float64": ((4, 6, 3), dict(dtype=torch.float64)),
    **{
        f"{mode}_{padding}": ((4, 6, (4, 3)), dict(padding_mode=mode, padding=padding))
        for mode in ("zeros", "reflect", "replicate", "circular")
        for padding in (2, (0, 3), "same")
    },
}

POOLS = {
    "plain": ((2,), {}),
    "overlapping": ((3, 1), {}),
    "pairs": (((3, 2), (2, 3), (1, 0)), {}),
    "ceil": ((3,), dict(stride=2, ceil_mode=True)),
}

MAX_POOLS = POOLS | {
    "dilated": ((2,), dict(dilation=(2, 3))),
    "positional": ((3, 2, 1, 2, False, True), {}),  # return_indices before ceil_mode
    "indices": ((3, 2, 1), dict(return_indices=True)),
}

# Windows of 2, 4 or 8 elements: their averages of whole numbers are exact.
AVG_POOLS = {
    "plain": ((2,), {}),
    "pairs": (((4, 2), (2, 3), (1, 0)), {}),
    "positional": ((4, 2, 1, True, True, None), {}),
    "ceil": ((2,), dict(stride=3, ceil_mode=True)),
    "exclude_pad": ((2,), dict(padding=1, count_include_pad=False)),
    "divisor": ((3,), dict(divisor_override=-2)),
}

ADAPTIVE_MAX_POOLS = {
    "plain": ((2,), {}),
    "pairs": (((4, 3),), {}),
    "none": (((None, 5),), {}),
    "indices": (((4, 3),), dict(return_indices=True)),
    "larger": (((18, 20),), {}),
}

ADAPTIVE_AVG_POOLS = {  # as above, windows of 2, 4 or 8 elements
    "pairs": (((9, 4),), {}),
    "overlapping": (((8, 7),), {}),
    "none": (((None, 2),), {}),
    "larger": (((18, 8),), {}),
}


class TorchConvReLU2d(nn.Conv2d):
    def forward(self, input):
        return torch.relu(super().forward(input))


class TorchConvReLUPool2d(TorchConvReLU2d):
    def __init__(self, *args, pool, **kwargs):
        super().__init__(*args, **kwargs)
        self.pool = pool

    def forward(self, input):
        return self.pool(super().forward(input))


CONV_POOLS = {
    "pairs": ((4, 6, 3), dict(padding=(1, 2), pool=nn.MaxPool2d((3, 2), (2, 3), (1, 0)))),
    "max": ((4, 6, 3), dict(bias=False, pool=nn.MaxPool2d(2, dilation=2, ceil_mode=True))),
    "avg": ((4, 6, 3), dict(pool=nn.AvgPool2d(2, 1, 1, count_include_pad=False))),
    "avg_divisor": ((4, 6, 3), dict(padding_mode="reflect", pool=nn.AvgPool2d(2, None, 0, True))),
}

PAIRS = {
    "Conv2d": (ours.Conv2d, nn.Conv2d, CONVOLUTIONS),
    "ConvReLU2d": (ours.ConvReLU2d, TorchConvReLU2d, CONVOLUTIONS),
    "ConvReLUPool2d": (ours.ConvReLUPool2d, TorchConvReLUPool2d, CONV_POOLS),
    "MaxPool2d": (ours.MaxPool2d, nn.MaxPool2d, MAX_POOLS),
    "AvgPool2d": (ours.AvgPool2d, nn.AvgPool2d, AVG_POOLS),
    "AdaptiveMaxPool2d": (ours.AdaptiveMaxPool2d, nn.AdaptiveMaxPool2d, ADAPTIVE_MAX_POOLS),
    "AdaptiveAvgPool2d": (ours.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d, ADAPTIVE_AVG_POOLS),
}
CASES = [
    pytest.param(mine, theirs, *case, id=f"{name}-{label}")
    for name, (mine, theirs, cases) in PAIRS.items()
    for label, case in cases.items()
]
ONE_CASE_EACH = [
    pytest.param(mine, theirs, *cases["pairs"], id=name)
    for name, (mine, theirs, cases) in PAIRS.items()
]
UNBATCHED = ONE_CASE_EACH + [
    pytest.param(ours.Conv2d, nn.Conv2d, *CONVOLUTIONS[f"{mode}_same"], id=f"Conv2d-{mode}")
    for mode in ("reflect", "replicate", "circular")
]


def fill_with_integers(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(integers(*parameter.shape, dtype=parameter.dtype))


def run(module, input):
    """Outputs and the gradients of input and parameters, for a gradient that varies."""
    input = input.clone().requires_grad_()
    outputs = module(input)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    weights = torch.arange(outputs[0].numel(), device=input.device).view_as(outputs[0]) % 5 - 2
    grads = torch.autograd.grad(
        outputs[0], [input, *module.parameters()], weights.to(outputs[0].dtype)
    )
    return [*outputs, *grads]


def assert_same(mine, theirs):
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def check_against_torch(backend, mine, theirs, args, kwargs, shape):
    theirs = theirs(*args, **kwargs).to(backend.device)
    fill_with_integers(theirs)
    mine = mine(*args, **kwargs).to(backend.device)
    mine.load_state_dict(theirs.state_dict())
    dtype = kwargs.get("dtype", torch.float32)
    input = integers(*shape, dtype=dtype, device=backend.device)

    assert_same(run(mine, input), run(theirs, input))


@pytest.mark.parametrize("mine, theirs, args, kwargs", CASES)
def test_results_and_gradients_equal_torchs(backend, mine, theirs, args, kwargs):
    check_against_torch(backend, mine, theirs, args, kwargs, SHAPE)


@pytest.mark.parametrize("mine, theirs, args, kwargs", UNBATCHED)
def test_unbatched_results_and_gradients_equal_torchs(backend, mine, theirs, args, kwargs):
    check_against_torch(backend, mine, theirs, args, kwargs, SHAPE[1:])


@pytest.mark.parametrize("mine, theirs, args, kwargs", CASES)
def test_is_a_torch_module_with_the_same_attributes(mine, theirs, args, kwargs):
    mine, theirs = mine(*args, **kwargs), theirs(*args, **kwargs)

    assert isinstance(mine, nn.Conv2d if isinstance(theirs, nn.Conv2d) else type(theirs))
    own = {"pool", "pool_settings", "_modules"} if "pool" in kwargs else set()  # torch has no such
    assert vars(mine).keys() - own == vars(theirs).keys() - own
    for name in vars(mine).keys() - {"_parameters"} - own:  # whose values are random
        assert getattr(mine, name) == getattr(theirs, name), name


@pytest.mark.parametrize("mine, theirs, args, kwargs", ONE_CASE_EACH)
def test_state_dicts_go_both_ways(mine, theirs, args, kwargs):
    mine, theirs = mine(*args, **kwargs), theirs(*args, **kwargs)
    mine.load_state_dict(theirs.state_dict())
    assert_same(list(mine.parameters()), list(theirs.parameters()))

    fill_with_integers(mine)
    theirs.load_state_dict(mine.state_dict())
    assert_same(list(mine.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("mine", [ours.Conv2d, ours.ConvReLU2d])
def test_starts_from_torchs_random_weights(mine):
    torch.manual_seed(3)
    expected = nn.Conv2d(4, 6, 3)
    torch.manual_seed(3)

    assert_same(list(mine(4, 6, 3).parameters()), list(expected.parameters()))


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("mine, theirs, args, kwargs", ONE_CASE_EACH)
def test_copies_compute_the_same_and_share_nothing(mine, theirs, args, kwargs, duplicate):
    original = mine(*args, **kwargs)
    twin = duplicate(original)

    assert type(twin) is mine
    assert repr(twin) == repr(original)
    input = integers(*SHAPE, dtype=torch.float32)
    assert_same(run(twin, input), run(original, input))
    assert not set(map(id, twin.parameters())) & set(map(id, original.parameters()))


def test_repr_names_module_and_arguments():
    assert repr(ours.Conv2d(1, 2, 3)) == repr(nn.Conv2d(1, 2, 3))
    assert repr(ours.MaxPool2d(2)) == repr(nn.MaxPool2d(2))
    assert repr(ours.AvgPool2d(2)) == repr(nn.AvgPool2d(2))
    assert repr(ours.AdaptiveMaxPool2d(2)) == repr(nn.AdaptiveMaxPool2d(2))
    assert repr(ours.AdaptiveAvgPool2d(2)) == repr(nn.AdaptiveAvgPool2d(2))
    assert repr(ours.ConvReLU2d(1, 2, 3)) == (
        "ConvReLU2d(1, 2, kernel_size=(3, 3), stride=(1, 1), relu=True)"
    )
    assert repr(ours.ConvReLUPool2d(1, 2, 3, pool=nn.AvgPool2d(2))) == (
        "ConvReLUPool2d(1, 2, kernel_size=(3, 3), stride=(1, 1), relu=True, pool=avg, "
        "count_include_pad=True, divisor_override=None, pool_kernel_size=2, pool_stride=2, "
        "pool_padding=0, ceil_mode=False)"
    )


def test_a_fused_pool_cannot_return_indices():
    with pytest.raises(ValueError, match="indices"):
        ours.ConvReLUPool2d(1, 2, 3, pool=nn.MaxPool2d(2, return_indices=True))


@pytest.mark.parametrize("mine, theirs, args, kwargs", ONE_CASE_EACH)
def test_computes_by_our_ops_alone(mine, theirs, args, kwargs):
    """A module that fell back on torch's kernels would pass every other test."""
    input = integers(*SHAPE, dtype=torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(mine(*args, **kwargs), input)

    calls = {event.name for event in profile.events()}
    assert [name for name in calls if name.startswith("cnnkernels::")]
    assert not [
        name for name in calls if name.startswith("aten::") and ("conv" in name or "pool" in name)
    ]


@pytest.mark.parametrize("mine", [ours.Conv2d, ours.ConvReLU2d])
def test_constructor_errors_are_torchs(mine):
    for kwargs in (
        dict(groups=3),
        dict(padding="full"),
        dict(padding_mode="mirror"),
        dict(padding="same", stride=2),
    ):
        with pytest.raises(ValueError) as theirs:
            nn.Conv2d(4, 6, 3, **kwargs)
        with pytest.raises(ValueError) as own:
            mine(4, 6, 3, **kwargs)
        assert str(own.value) == str(theirs.value)
