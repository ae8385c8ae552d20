"""Fusion: which calls become one kernel, when they do not, and what a fused model still can."""

import copy
import io
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from small import conv, images, norm, run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cnnkernels
from cnnkernels import convert
from cnnkernels.fusion import rows
from cnnkernels.nn import Conv2d, MaxPool2d


class _Ops(TorchDispatchMode):
    """The kernels that ran, of those that a row is made of."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name = func._schema.name.split("::")
        if namespace == "cnnkernels":
            relu = name == "conv2d" and args[12]
            self.names.append(f"{name}_relu" if relu else name)
        elif "batch_norm" in name or name in ("relu", "relu_"):
            self.names.append("norm" if "norm" in name else "relu")
        return func(*args, **(kwargs or {}))


def ops(model, input=None):
    with torch.no_grad(), _Ops() as found:
        model(images().to(next(model.parameters()).dtype) if input is None else input)
    return found.names


def names(module):
    return [row.names for row in rows(module)]


def assert_equal_to_torchs(model, input=None, is_exact=True):
    """Outputs and gradients in float64: of whole numbers exact, but for what is normalised.

    Gives the converted model.
    """
    model = model.double()
    input = (images() if input is None else input).double()
    expected = run(copy.deepcopy(model), input)
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    converted = convert(model)
    assert list(converted.state_dict()) == keys
    assert all(p is parameters[name] for name, p in converted.named_parameters())
    results = run(converted, input)
    with torch.no_grad():  # where a normalisation is folded
        results, expected = [*results, converted(input)], [*expected, expected[0]]
    is_exact &= not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    tolerance = 0 if is_exact else 1e-12
    for mine, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    return converted


ROW = ["conv2d_relu_pool2d"]

# ---------------------------------------------------------------- Sequentials


def test_a_sequential_keeps_its_modules():
    model = nn.Sequential(conv(), nn.ReLU(inplace=True), conv(), nn.ReLU(), nn.MaxPool2d(2))

    assert convert(model) is model

    assert [type(m) for m in model] == [Conv2d, nn.ReLU, Conv2d, nn.ReLU, MaxPool2d]
    assert names(model) == [("0", "1"), ("2", "3", "4")]
    assert ops(model) == ["conv2d_relu", *ROW]


def test_results_are_those_of_the_modules_one_after_the_other(backend):
    model = nn.Sequential(
        *(conv(), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(), nn.ReLU(), nn.AvgPool2d(2, 1)),
        *(conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.MaxPool2d(2), conv(), nn.ReLU()),
    ).to(backend.device)
    input = images().to(backend.device)
    expected = run(model, input)
    references = run(copy.deepcopy(model).double(), input.double())

    converted = convert(model)

    assert [len(row) for row in names(converted)] == [3, 3, 2, 2]
    for mine, theirs, reference in zip(run(converted, input), expected, references, strict=True):
        assert_accurate(mine, theirs, reference)


def test_fuse_false_only_replaces():
    model = convert(nn.Sequential(conv(), nn.ReLU()), fuse=False)

    assert type(model) is nn.Sequential
    assert ops(model) == ["conv2d", "relu"]
    assert ops(convert(model)) == ["conv2d_relu"]


class MyReLU(nn.ReLU):
    pass


@pytest.mark.parametrize(
    "followers",
    [
        (nn.ReLU6(),),
        (MyReLU(),),
        (nn.Identity(), nn.ReLU()),
        (nn.MaxPool2d(2), nn.ReLU()),
        (nn.Sequential(nn.ReLU()),),
        (),
    ],
    ids=lambda followers: "-".join(type(f).__name__ for f in followers) or "nothing",
)
def test_nothing_else_is_fused(followers):
    model = convert(nn.Sequential(conv(), *followers))

    assert rows(model) == []
    assert type(model) is nn.Sequential


def test_rows_do_not_reach_across_modules():
    model = convert(nn.Sequential(nn.Sequential(conv()), nn.ReLU()))

    assert rows(model) == rows(model[0]) == []


class Reversed(nn.Sequential):
    def forward(self, input):
        for module in reversed(list(self)):
            input = module(input)
        return input


class ReversedIteration(nn.Sequential):
    def __iter__(self):
        return reversed(list(self._modules.values()))


@pytest.mark.parametrize("cls", [Reversed, ReversedIteration])
def test_a_sequential_with_its_own_order_is_fused_in_that(cls):
    assert rows(assert_equal_to_torchs(cls(conv(), nn.ReLU()))) == []
    assert names(assert_equal_to_torchs(cls(nn.ReLU(), conv()))) == [("1", "0")]


def test_a_forward_set_on_the_instance_stays():
    model = nn.Sequential(conv(), nn.ReLU())
    model.forward = lambda input: model[1](input) + model[0](input)
    expected = model(images())

    assert torch.equal(convert(model)(images()), expected)
    assert rows(model) == []


def test_a_pool_that_returns_indices_is_not_in_a_row():
    model = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2, return_indices=True))
    expected = model(images()[:1])

    result = convert(model)(images()[:1])

    assert names(model) == [("0", "1")]
    assert len(result) == len(expected) == 2


def test_children_may_be_exchanged_and_added():
    model = convert(nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)))

    model[2] = nn.Flatten()
    assert names(model) == [("0", "1")]
    assert model(images()).shape == (2, 72)

    model.insert(1, nn.BatchNorm2d(2))
    assert names(model) == [("0", "1", "2")]
    assert names(model[:2]) == [("0", "1")]


def test_shared_modules_are_fused_at_each_place_as_it_is():
    shared, relu = conv(), nn.ReLU()
    model = nn.Sequential(shared, relu, shared, relu, nn.AvgPool2d(2), relu, shared)

    assert_equal_to_torchs(model)

    assert names(model) == [("0", "1"), ("0", "1", "4")]  # by their first names
    assert model[0] is model[2] is model[6] and model[1] is model[5]


# ---------------------------------------------------------------- functional code


class Functional(nn.Module):
    """Written by hand: a block with functions, a shared ReLU, a shortcut and a branch."""

    def __init__(self, relu=F.relu, pool=lambda x: F.max_pool2d(x, 2)):
        super().__init__()
        self.first, self.second, self.third = conv(), conv(), conv()
        self.bn1, self.bn2 = norm(), norm()
        self.relu = nn.ReLU(inplace=True)
        self.apply_relu, self.pool = relu, pool

    def forward(self, x):
        x = self.pool(self.apply_relu(self.first(x)))
        y = self.bn2(self.second(self.relu(self.bn1(self.third(x)))))
        return self.relu(y + x)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(
    "relu",
    [F.relu, torch.relu, lambda x: F.relu(x, inplace=True), lambda x: x.relu(), torch.relu_],
    ids=["F", "torch", "inplace", "method", "torch_"],
)
@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: torch.max_pool2d(x, kernel_size=3, stride=2, padding=1),
        lambda x: F.avg_pool2d(x, (2, 3), count_include_pad=False),
    ],
    ids=["max", "torch_max", "avg"],
)
def test_functions_are_fused_with_modules(relu, pool, training):
    model = Functional(relu, pool).train(training)
    input = torch.randn(2, 2, 12, 12)
    model = assert_equal_to_torchs(model, input)

    assert [len(row) for row in names(model)] == [3, 3, 2]
    assert names(model)[1:] == [("third", "bn1", "relu"), ("second", "bn2")]
    normed = ["conv2d", "norm", "relu", "conv2d", "norm"]
    folded = ["conv2d_relu", "conv2d"]
    assert ops(model, input.double()) == [*ROW, *(normed if training else folded), "relu"]


class Branch(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.bn, self.relu, self.run = conv(), norm(), nn.ReLU(), forward

    def forward(self, x):
        return self.run(self, x)


def used_twice(self, x):
    y = self.conv(x)
    return self.relu(y) + y


def returned(self, x):
    y = self.conv(x)
    return torch.cat([self.relu(y), y])


def changed_in_place(self, x):
    y = self.conv(x)
    z = self.relu(y)
    return z + y.mul_(2)


def normed_used(self, x):
    y = self.bn(self.conv(x))
    return self.relu(y) * y


@pytest.mark.parametrize("forward", [used_twice, returned, changed_in_place])
def test_a_value_that_is_used_elsewhere_stays(forward):
    model = Branch(forward).eval()
    with torch.no_grad():
        expected = model(images())
        torch.testing.assert_close(convert(model)(images()), expected, rtol=0, atol=0)
    assert rows(model) == []


def test_a_row_ends_where_a_value_is_used_elsewhere():
    model = assert_equal_to_torchs(Branch(normed_used).eval())

    assert names(model) == [("conv", "bn")]


def test_functions_alone_are_replaced():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 2, 3, 3))
            self.act = nn.SiLU()

        def forward(self, x):
            return F.adaptive_avg_pool2d(self.act(F.conv2d(x, self.weight, padding=1)), 1)

    model = assert_equal_to_torchs(Net(), is_exact=False)
    assert ops(model) == ["conv2d", "adaptive_avg_pool2d"]


def test_functions_of_dtypes_without_kernels_stay_torchs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = conv()

        def forward(self, x):
            return F.max_pool2d(x, 2)

    assert ops(convert(Net()), torch.ones(1, 2, 4, 4, dtype=torch.int32)) == []


# ---------------------------------------------------------------- what a trace rests on


class Switch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.negate, self.extra = conv(), False, None

    def forward(self, x):
        y = F.relu(self.layer(x))
        if self.training:
            y = y + 1
        if self.extra is not None:
            y = self.extra(y)
        return -y if self.negate else y


def test_a_changed_state_is_traced_anew():
    model = convert(Switch())
    base = model(images())

    model.eval()
    assert torch.equal(model(images()), base - 1)
    model.negate = True
    assert torch.equal(model(images()), 1 - base)
    model.extra = nn.Identity()
    assert torch.equal(model(images()), 1 - base)
    model.extra = nn.Threshold(1e9, 0.0)
    assert not model(images()).any()
    assert names(model) == [("layer", "relu")]


def chooses_by_values(self, x):
    return self.relu(self.conv(x)) if x.sum() > 0 else x


def enters_no_grad(self, x):
    with torch.no_grad():
        return self.relu(self.conv(x))


def enters_autocast(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return self.relu(self.conv(x))


def makes_tensors(self, x):
    return self.relu(self.conv(x)) * torch.rand(1)


def rolls_dice(self, x):
    return self.relu(self.conv(x)) * random.choice([1, 2])


def counts(self, x):
    self.calls = 1 + getattr(self, "calls", 0)
    return self.relu(self.conv(x))


def keeps_a_value(self, x):
    self.kept = self.relu(self.conv(x))
    return self.kept


@pytest.mark.parametrize(
    "forward, reason",
    [
        (chooses_by_values, "control flow"),
        (enters_no_grad, "set_grad_enabled"),
        (enters_autocast, "enters a mode"),
        (makes_tensors, "rand"),
        (rolls_dice, "random numbers"),
        (counts, "changes the module"),
        (keeps_a_value, "control flow"),
    ],
)
def test_what_a_trace_would_not_repeat_is_not_traced(forward, reason):
    model = convert(Branch(forward))

    assert rows(model) == []
    assert reason in cnnkernels.fusion.obstacle(model)
    assert type(model) is Branch
    assert not {"calls", "kept"} & vars(model).keys()
    assert ops(model) == ["conv2d", "relu"]


def test_a_forward_that_asks_for_tensors_gets_them():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = conv()

        def forward(self, x):
            y = self.layer(x if isinstance(x, torch.Tensor) else torch.cat(x, 1))
            return F.relu(y)

    model = convert(Net())
    assert ops(model) == ["conv2d_relu"]
    assert ops(model, [images()[:, :1], images()[:, 1:]]) == ["conv2d", "relu"]


def test_other_arguments_than_tensors_take_the_modules_own_forward():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = conv()

        def forward(self, x, scale=None):
            y = F.relu(self.layer(x))
            return y if scale is None else y * scale

    model = convert(Net())
    expected = model(images())
    assert torch.equal(model(images(), 2), 2 * expected)
    assert torch.equal(model(x=images(), scale=torch.tensor(2.0)), 2 * expected)


# ---------------------------------------------------------------- batch normalisation


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(3, 2)], ids=["max", "avg"])
def test_normalisation_is_folded(bias, affine, padding_mode, pool):
    layer = nn.Conv2d(4, 6, 3, padding=1, bias=bias, groups=2, padding_mode=padding_mode)
    bn = nn.BatchNorm2d(6, affine=affine)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    model = nn.Sequential(layer, bn, nn.ReLU(), pool).eval()

    input = torch.randn(2, 4, 9, 8, dtype=torch.float64)

    assert ops(assert_equal_to_torchs(model, input), input) == ROW


def test_a_fold_follows_every_change():
    """Also those that no version counter tells of."""
    torchs = nn.Sequential(conv(), norm(), nn.ReLU()).eval()
    mine = convert(copy.deepcopy(torchs))

    def change(model):
        model[0].weight.data.mul_(2)
        model[1].running_mean.add_(1)
        model[1].weight.data = model[1].weight.data + 1
        model[0].bias = nn.Parameter(torch.ones(2))

    with torch.no_grad():
        mine(images())
        change(mine)
        change(torchs)
        torch.testing.assert_close(mine(images()), torchs(images()))
        mine[1] = copy.deepcopy(torchs).append(nn.Identity())[1]
        torch.testing.assert_close(mine(images()), torchs(images()))
    mine.load_state_dict(torchs.state_dict())
    assert ops(mine) == ["conv2d_relu"]


def test_training_updates_the_statistics():
    torchs = nn.Sequential(conv(), norm(), nn.ReLU())
    mine = convert(copy.deepcopy(torchs))
    mine(images())
    torchs(images())

    for name, tensor in torchs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], tensor)
    assert ops(mine) == ["conv2d", "norm", "relu"]
    assert ops(mine.eval()) == ["conv2d_relu"]


UNFOLDED = {
    "batch statistics": lambda m: m.__setitem__(1, nn.BatchNorm2d(2, track_running_stats=False)),
    "half": lambda m: m.to(torch.bfloat16),
    "normalised in float32": lambda m: m[0].to(torch.bfloat16),
    "frozen in training": lambda m: m.train()[1].train(),
}


@pytest.mark.parametrize("change", UNFOLDED.values(), ids=UNFOLDED)
def test_what_cannot_be_folded_is_not(change):
    model = nn.Sequential(conv(), norm(), nn.ReLU()).eval()
    change(model)
    convert(model)

    assert ops(model, images().to(model[0].weight.dtype)) == ["conv2d", "norm", "relu"]


def test_frozen_normalisation_in_training_is_folded_without_gradients():
    model = convert(nn.Sequential(conv(), norm(), nn.ReLU()))
    model[1].eval()

    assert ops(model) == ["conv2d_relu"]


def test_with_gradients_nothing_is_folded():
    model = convert(nn.Sequential(conv(), norm(), nn.ReLU()).eval())
    with _Ops() as found:
        model(images())
    assert found.names == ["conv2d", "norm", "relu"]

    model.requires_grad_(False)
    with _Ops() as found:
        model(images())
    assert found.names == ["conv2d_relu"]


def test_under_autocast_nothing_is_folded():
    model = convert(nn.Sequential(conv(), norm(), nn.ReLU()).eval())
    with torch.autocast("cpu", torch.bfloat16):
        assert ops(model) == ["conv2d", "norm", "relu"]


def test_more_weights_than_outputs_are_not_folded():
    model = convert(nn.Sequential(nn.Conv2d(64, 8, 3), norm(8), nn.ReLU()).eval())

    assert ops(model, torch.randn(1, 64, 6, 6)) == ["conv2d", "norm", "relu"]
    assert ops(model, torch.randn(16, 64, 6, 6)) == ["conv2d_relu"]


# ---------------------------------------------------------------- hooks


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("register", HOOKS)
def test_a_hook_sees_what_it_would_without_fusion(register, position):
    torchs = nn.Sequential(conv(), norm(), nn.ReLU(), nn.MaxPool2d(2)).eval()
    mine = convert(copy.deepcopy(torchs))
    assert ops(mine) == ROW

    def watched(model):
        seen = []
        handle = getattr(model[position], register)(lambda _, *rest: seen.append(rest))
        results = run(model, images())
        handle.remove()
        return seen, results

    (seen, results), (expected, _) = watched(mine), watched(torchs)
    assert len(seen) == len(expected) == 1
    torch.testing.assert_close(seen, expected)
    for result, other in zip(results, run(torchs, images()), strict=True):
        torch.testing.assert_close(result, other)
    assert ops(mine) == ROW


def test_a_hook_on_all_modules_sees_all():
    model = convert(nn.Sequential(conv(), nn.ReLU()))
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        assert ops(model) == ["conv2d", "relu"]
    finally:
        handle.remove()
    assert seen == [Conv2d, nn.ReLU, type(model)]
    assert ops(model) == ["conv2d_relu"]


def test_a_method_set_on_a_module_of_a_row_is_called():
    model = convert(nn.Sequential(conv(), nn.ReLU()))
    model[1].forward = lambda input: -input

    assert torch.equal(model(images()), -model[0](images()))


def test_a_parametrization_is_computed():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model = convert(nn.Sequential(conv(), nn.ReLU()))
    model[0].bias.data.zero_()
    expected = 2 * model(images())
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())

    assert torch.equal(model(images()), expected)


# ---------------------------------------------------------------- what a fused model still can


def test_a_fused_module_is_of_its_class():
    model = Functional()
    text = repr(model)
    convert(model)

    assert isinstance(model, Functional) and isinstance(model, nn.Module)
    assert repr(model).replace("cnnkernels.", "") == text
    assert type(model).__name__ == "Functional"
    assert convert(model) is model and names(model)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
def test_a_copy_is_fused_and_its_own(copied):
    model = convert(Functional(relu=torch.relu, pool=nn.MaxPool2d(2)).eval())
    before = model(images())

    other = copied(model)

    assert torch.equal(other(images()), before)
    assert ops(other) == ops(model) == [*ROW, "conv2d_relu", "conv2d", "relu"]
    assert type(other) is type(model) and other.second is not model.second
    other.second.weight.data.zero_()
    assert not torch.equal(other(images()), before)
    assert torch.equal(model(images()), before)


def test_a_replica_has_its_own_weights():
    """As DataParallel makes it: a module with the attributes of another."""
    model = convert(nn.Sequential(conv(), nn.ReLU()))
    replica = model._replicate_for_data_parallel()
    replica._modules = {name: copy.deepcopy(module) for name, module in model._modules.items()}
    replica[0].weight.data.zero_()
    replica[0].bias.data.zero_()

    assert not replica(images()).any()
    assert model(images()).any()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_fused(backend):
    model = convert(Functional().eval())
    expected = model(images())
    found = []

    def compiler(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes if "cnnk" in str(node.target))
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    with torch.no_grad():
        compiled = torch.compile(model, backend=compiler, fullgraph=True)
        torch.testing.assert_close(compiled(images()), expected)

    row, first, second = found
    assert "conv2d_relu_pool2d" in row and "conv2d.default" in first and "conv2d.default" in second


def test_functional_call_takes_other_parameters():
    model = convert(nn.Sequential(conv(), nn.ReLU()))
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    assert not torch.func.functional_call(model, zeros, images()).any()
    grads = torch.func.grad(lambda p: torch.func.functional_call(model, p, images()).sum())(zeros)
    assert grads["0.bias"].shape == (2,)
