"""convert: what is swapped, what is fused, and what is left alone and why."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from small import conv, images, run
from torch import nn
from torch.nn.utils import parametrizations, prune

import cnnkernels
from cnnkernels import convert, unconverted
from cnnkernels.nn import (
    AvgPool2d,
    Conv2d,
    MaxPool2d,
)

REPLACEMENTS = {
    "Conv2d": (lambda: nn.Conv2d(2, 2, 3, padding=1), Conv2d),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 1, 1), MaxPool2d),
    "AvgPool2d": (lambda: nn.AvgPool2d(2, 2), AvgPool2d),
}
each_type = pytest.mark.parametrize("make, ours", REPLACEMENTS.values(), ids=REPLACEMENTS)


def types(model):
    return [type(module) for module in model]


def snapshot(model):
    """Who stands where: equal before and after only if nothing was replaced."""
    return [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]


def reasons(model):
    return {name: reason for name, _, reason in unconverted(model)}


def assert_unchanged_by_convert(model, input=None):
    """Whole numbers are exact in any order of summation: results must be equal."""
    input = images() if input is None else input
    before = run(model, input)
    converted = convert(model)
    for new, old in zip(run(converted, input), before, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)
    return converted


class Residual(nn.Module):
    """A model of the kind people write: nested, a None child, conv called by hand."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.ModuleList([nn.ModuleDict({"left": conv(), "right": conv()})])
        self.register_module("downsample", None)
        self.pool = nn.AvgPool2d(2, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(block["left"](x)) - block["right"](x)
        return self.pool(x)


# ---------------------------------------------------------------- swapping


@each_type
def test_replaces_a_root(make, ours):
    model = make()

    converted = convert(model)

    assert type(converted) is ours
    assert type(model) is not ours
    assert repr(converted) == repr(model)


@each_type
@pytest.mark.parametrize(
    "wrap",
    [nn.Sequential, lambda m: nn.ModuleList([m]), lambda m: nn.ModuleDict({"0": m})],
    ids=["Sequential", "ModuleList", "ModuleDict"],
)
def test_replaces_at_depth_in_place(make, ours, wrap):
    inner = wrap(make())
    model = nn.ModuleDict({"a": nn.Sequential(inner)})

    assert convert(model) is model
    assert model["a"][0] is inner
    assert type(inner._modules["0"]) is ours


def test_custom_model_gives_equal_results(backend):
    model = Residual().to(backend.device)

    assert_unchanged_by_convert(model, images().to(backend.device))

    assert types(model.stem) == [Conv2d, nn.ReLU, MaxPool2d]
    assert types(model.blocks[0].values()) == [Conv2d, Conv2d]
    assert type(model.pool) is AvgPool2d
    assert model.downsample is None
    assert unconverted(model) == []


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
def test_parameters_are_the_same_objects(fuse):
    model = nn.Sequential(conv(), nn.ReLU(), nn.Sequential(conv()))
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = dict(model.named_parameters())

    convert(model, fuse=fuse)

    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert not model[0].bias.requires_grad
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))


def test_an_optimizer_made_before_trains_the_converted_model():
    model = nn.Sequential(conv(), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model[0].weight.detach().clone()

    convert(model)(images()).sum().backward()
    optimizer.step()

    assert not torch.equal(model[0].weight, before)


def test_state_dict_keys_and_values_stay():
    model = Residual()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    after = convert(model).state_dict()

    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    Residual().load_state_dict(after)


@pytest.mark.parametrize("training", [True, False])
def test_training_flags_stay(training):
    model = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), conv())
    for module in model:
        module.training = training

    convert(model)

    assert types(model) == [Conv2d, nn.ReLU, MaxPool2d, Conv2d]
    assert [module.training for module in model] == [training] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_stays(dtype):
    model = convert(nn.Sequential(conv().to(dtype)))

    assert type(model[0]) is Conv2d
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_meta_device_stays():
    model = convert(nn.Sequential(conv().to("meta")))

    assert type(model[0]) is Conv2d
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_attributes_set_by_the_user_stay():
    model = nn.Sequential(conv())
    model[0].note = "first"

    assert convert(model)[0].note == "first"


def test_submodules_of_a_replaced_module_are_converted_too():
    layer = conv()
    layer.probe = nn.MaxPool2d(2)

    assert type(convert(layer).probe) is MaxPool2d
    assert type(layer.probe) is nn.MaxPool2d


def test_the_replaced_module_does_not_see_what_is_registered_later():
    old = conv()
    new = convert(old)

    new.register_forward_hook(lambda *_: None)
    new.register_buffer("extra", torch.ones(1))
    new.bias = None

    assert not old._forward_hooks
    assert not hasattr(old, "extra")
    assert old.bias is not None


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
def test_converting_twice_changes_nothing(fuse):
    model = convert(Residual(), fuse=fuse)
    before = snapshot(model)

    assert convert(model, fuse=fuse) is model
    assert snapshot(model) == before


# ---------------------------------------------------------------- shared modules


@each_type
def test_a_shared_module_stays_one(make, ours):
    shared = make()
    model = nn.ModuleList([shared, nn.Sequential(shared, nn.Identity()), shared])

    convert(model)

    assert type(model[0]) is ours
    assert model[0] is model[1][0] is model[2]


# ---------------------------------------------------------------- what stays, and why


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_state_dict_post_hook",
    "register_state_dict_pre_hook",
    "register_load_state_dict_pre_hook",
    "register_load_state_dict_post_hook",
]


@pytest.mark.parametrize("register", HOOKS)
@each_type
def test_a_module_with_hooks_stays(make, ours, register):
    model = nn.Sequential(make())
    getattr(model[0], register)(lambda *_: None)
    before = snapshot(model)

    convert(model)

    assert snapshot(model) == before
    assert reasons(model)["0"].startswith("has hooks")


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(layer):
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def with_forward(layer):
    layer.forward = lambda input: input
    return layer


def compiled(layer):
    layer.compile(backend="eager")
    return layer


class MyConv2d(nn.Conv2d):
    pass


class TensorSubclass(torch.Tensor):
    pass


def with_subclassed_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(TensorSubclass))
    return layer


STAYING = {
    "subclass": (lambda: MyConv2d(2, 2, 3), "a subclass of Conv2d"),
    "parametrize": (lambda: parametrized(conv()), "has parametrizations"),
    "weight_norm": (lambda: parametrizations.weight_norm(conv()), "has parametrizations"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(conv()), "has parametrizations"),
    "old_spectral_norm": (lambda: nn.utils.spectral_norm(conv()), "has hooks"),
    "pruned": (lambda: prune.l1_unstructured(conv(), "weight", amount=1), "has hooks"),
    "own_forward": (lambda: with_forward(conv()), "its forward is set on the instance"),
    "compiled": (lambda: compiled(conv()), "its _compiled_call_impl is set on the instance"),
    "lazy": (lambda: nn.LazyConv2d(2, 3), "not initialised yet"),
    "complex": (lambda: nn.Conv2d(2, 2, 3, dtype=torch.complex64), "torch.complex64 on cpu"),
    "tensor_subclass": (lambda: with_subclassed_weight(conv()), "weight is of type TensorSub"),
    "scripted": (lambda: torch.jit.script(conv()), "compiled by torch.jit"),
    "transposed": (lambda: nn.ConvTranspose2d(2, 2, 3), "no kernels for this type"),
    "conv1d": (lambda: nn.Conv1d(2, 2, 3), "no kernels for this type"),
    "conv3d": (lambda: nn.Conv3d(2, 2, 3), "no kernels for this type"),
    "max_unpool": (lambda: nn.MaxUnpool2d(2), "no kernels for this type"),
    "lp_pool": (lambda: nn.LPPool2d(2, 2), "no kernels for this type"),
    "fractional_max": (lambda: nn.FractionalMaxPool2d(2, 3), "no kernels for this type"),
    "adaptive_avg3d": (lambda: nn.AdaptiveAvgPool3d(2), "no kernels for this type"),
    "adaptive_max1d": (lambda: nn.AdaptiveMaxPool1d(2), "no kernels for this type"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make, reason", STAYING.values(), ids=STAYING)
def test_what_cannot_be_replaced_stays_and_is_listed(make, reason):
    model = nn.Sequential(make(), nn.ReLU())
    before = snapshot(model)

    convert(model)

    assert snapshot(model) == before
    ((name, listed, why),) = unconverted(model)
    assert (name, listed) == ("0", type(model[0]))
    assert reason in why


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_module_under_the_old_weight_norm_stays():
    model = nn.Sequential(nn.utils.weight_norm(conv()), nn.ReLU())

    assert_unchanged_by_convert(model)

    assert type(model[0]) is nn.Conv2d
    assert type(model[1]) is nn.ReLU


def test_a_module_on_an_unsupported_device_stays(monkeypatch):
    # A device for which there are no kernels: meta, taken out of the list.
    module = importlib.import_module("cnnkernels.convert")
    monkeypatch.setattr(module, "DEVICES", ("cpu", "cuda"))
    model = convert(nn.Sequential(conv().to("meta")))

    assert type(model[0]) is nn.Conv2d
    assert reasons(model) == {"0": "weight is torch.float32 on meta"}


def test_a_lazy_module_is_replaced_once_it_is_initialised():
    model = nn.Sequential(nn.LazyConv2d(2, 3), nn.ReLU())
    model(images())

    assert types(convert(model)) == [Conv2d, nn.ReLU]


def test_a_subclass_of_ours_is_ours():
    class Mine(Conv2d):
        pass

    model = nn.Sequential(Mine(2, 2, 3), nn.ReLU())
    before = snapshot(model)

    convert(model, strict=True)

    assert snapshot(model) == before
    assert unconverted(model) == []


def test_unconverted_changes_nothing_and_lists_what_convert_would_replace():
    shared = conv()
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Sequential(nn.AdaptiveAvgPool1d(1))})
    before = snapshot(model)

    listed = unconverted(model)

    assert snapshot(model) == before
    assert listed == [
        ("a", nn.Conv2d, "convert() was not called"),
        ("c.0", nn.AdaptiveAvgPool1d, "no kernels for this type"),
    ]
    assert listed[0].name == "a" and listed[0].type is nn.Conv2d


def test_unconverted_lists_a_root():
    assert reasons(nn.Conv1d(1, 1, 1)) == {"": "no kernels for this type"}


def test_strict_raises_with_the_list_before_anything_is_changed():
    model = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), MyConv2d(2, 2, 3), nn.Conv1d(1, 1, 1))
    before = snapshot(model)

    with pytest.raises(RuntimeError) as error:
        convert(model, strict=True)

    assert snapshot(model) == before
    assert str(error.value).splitlines()[1:] == [
        "  3: MyConv2d: a subclass of Conv2d, which may compute something else",
        "  4: Conv1d: no kernels for this type",
    ]


def test_strict_converts_what_can_be_converted():
    model = nn.Sequential(Residual(), nn.Linear(3, 3), nn.BatchNorm2d(2))

    assert convert(model, strict=True) is model
    assert convert(model, strict=True) is model
    assert type(model[0].pool) is AvgPool2d


def test_public_names():
    assert cnnkernels.convert is convert and cnnkernels.unconverted is unconverted
