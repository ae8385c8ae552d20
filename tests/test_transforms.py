"""torch.func's transforms and forward mode: the same numbers as torch.nn.functional under them."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import cnnkernels
import cnnkernels.functional as ours


class Torch:
    """What torch calls ours."""

    conv2d, max_pool2d, avg_pool2d = F.conv2d, F.max_pool2d, F.avg_pool2d
    adaptive_max_pool2d, adaptive_avg_pool2d = F.adaptive_max_pool2d, F.adaptive_avg_pool2d

    @staticmethod
    def conv2d_relu(*args, **kwargs):
        return F.relu(F.conv2d(*args, **kwargs))


def tensors(backend, *shapes):
    """In float64, so that a comparison needs no tolerance for rounding beyond 1e-10."""
    return [torch.randn(*shape, dtype=torch.float64, device=backend.device) for shape in shapes]


def assert_equal(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def check(transformed, *args):
    """`transformed` makes a function of ours or of torch's functions."""
    assert_equal(transformed(ours)(*args), transformed(Torch)(*args))


BATCH = 3
CONVOLUTIONS = {
    "plain": ((2, 4, 6, 5), (6, 4, 3, 2), dict(padding=1)),
    "strided_groups": ((2, 4, 7, 6), (6, 2, 3, 3), dict(stride=(2, 1), groups=2)),
    "depthwise": ((1, 4, 6, 6), (8, 1, 3, 3), dict(groups=4, padding="same", dilation=2)),
    "unbatched": ((4, 6, 6), (2, 4, 3, 3), dict(padding=(1, 0))),
}
# Which of input, weight and bias have the dimension that vmap takes, and where it stands.
IN_DIMS = [
    dims for dims in itertools.product((0, None), repeat=3) if dims != (None, None, None)
] + [(1, -1, 1), (-2, None, None), (None, 2, 0)]


def operands(backend, problem, in_dims):
    input, weight, _ = CONVOLUTIONS[problem]
    shapes = [list(shape) for shape in (input, weight, weight[:1])]
    for shape, dim in zip(shapes, in_dims, strict=True):
        if dim is not None:
            shape.insert(dim % (len(shape) + 1), BATCH)
    return tensors(backend, *shapes)


@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
@pytest.mark.parametrize("problem", CONVOLUTIONS)
@pytest.mark.parametrize("name", ["conv2d", "conv2d_relu"])
def test_vmap_of_convolutions(backend, name, problem, in_dims):
    """Forward, both kinds of backward (under vmap, and of vmap) and double backward."""
    args = operands(backend, problem, in_dims)
    kwargs = CONVOLUTIONS[problem][2]

    def convolution(module):
        return lambda *args: getattr(module, name)(*args, **kwargs)

    def loss(module):
        return lambda *args: convolution(module)(*args).pow(3).sum()

    def inner_grad(module):
        return vmap(grad(loss(module), argnums=(0, 1, 2)), in_dims)

    def outer_grad(module):
        batch = vmap(convolution(module), in_dims)
        return grad(lambda *args: batch(*args).pow(3).sum(), argnums=(0, 1, 2))

    def second(module):
        first = inner_grad(module)
        return grad(lambda *args: sum(g.pow(2).sum() for g in first(*args)), argnums=(0, 1, 2))

    check(lambda module: vmap(convolution(module), in_dims), *args)
    check(inner_grad, *args)
    check(outer_grad, *args)
    check(second, *args)


POOLS = {
    "max": lambda m: lambda x: m.max_pool2d(x, 3, 2, 1),
    "max_dilated": lambda m: lambda x: m.max_pool2d(x, 2, 2, dilation=2, ceil_mode=True),
    "max_indices": lambda m: lambda x: m.max_pool2d(x, (2, 3), return_indices=True),
    "avg": lambda m: lambda x: m.avg_pool2d(x, 3, 2, 1),
    "avg_divisor": lambda m: (
        lambda x: m.avg_pool2d(x, (2, 3), 2, ceil_mode=True, divisor_override=5)
    ),
    "adaptive_max": lambda m: lambda x: m.adaptive_max_pool2d(x, (3, 2)),
    "adaptive_max_indices": lambda m: lambda x: m.adaptive_max_pool2d(x, 2, return_indices=True),
    "adaptive_avg": lambda m: lambda x: m.adaptive_avg_pool2d(x, (2, None)),
    "global_avg": lambda m: lambda x: m.adaptive_avg_pool2d(x, 1),
}


def values(output):
    """Without the indices, which have no derivative."""
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (3, 7, 8)], ids=["batched", "unbatched"])
@pytest.mark.parametrize("in_dim", [0, 1, -1])
@pytest.mark.parametrize("pool", POOLS)
def test_vmap_of_pools(backend, pool, in_dim, shape):
    shape = list(shape)
    shape.insert(in_dim % (len(shape) + 1), BATCH)
    (input,) = tensors(backend, shape)

    def loss(module):
        return lambda x: values(POOLS[pool](module)(x)).pow(3).sum()

    def second(module):
        first = vmap(grad(loss(module)), in_dim)
        return grad(lambda x: first(x).pow(2).sum())

    check(lambda module: vmap(POOLS[pool](module), in_dim, out_dims=1), input)
    check(lambda module: vmap(grad(loss(module)), in_dim), input)
    check(lambda module: grad(lambda x: vmap(loss(module), in_dim)(x).sum()), input)
    check(second, input)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_nested_vmap(backend, layout):
    input, weight, bias = tensors(backend, (6, 4, 8, 8), (5 * 4, 4, 3, 3), (4, 4))
    input = input.contiguous(memory_format=layout).unflatten(0, (3, 2))
    weight = weight.contiguous(memory_format=layout).unflatten(0, (5, 4))

    def network(module):
        def one(x, w, b):
            return module.avg_pool2d(module.max_pool2d(module.conv2d_relu(x, w, b), 2), 2)

        return vmap(vmap(one, (0, None, 0)), (None, 0, None))  # filters by images, over biases

    bias = bias[:3]
    check(lambda m: vmap(vmap(m.conv2d, (0, None, 0)), (None, 0, None)), input, weight, bias)
    check(network, input, weight, bias)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, groups=2),
            nn.AvgPool2d(2),
        )
        self.classify = nn.Linear(24, 3)

    def forward(self, x):
        return self.classify(self.features(x).flatten(1))


def test_gradients_per_sample_of_a_converted_model(backend):
    theirs = Network().double().to(backend.device)
    mine = Network().double().to(backend.device)
    mine.load_state_dict(theirs.state_dict())
    cnnkernels.convert(mine, strict=True)
    (images,) = tensors(backend, (5, 2, 12, 12))
    labels = torch.arange(5, device=backend.device) % 3

    def per_sample(model):
        def loss(parameters, image, label):
            output = functional_call(model, parameters, (image.unsqueeze(0),))
            return F.cross_entropy(output, label.unsqueeze(0))

        parameters = {name: p.detach() for name, p in model.named_parameters()}
        return vmap(grad(loss), (None, 0, 0))(parameters, images, labels)

    result = per_sample(mine)
    assert_equal(result, per_sample(theirs))
    # They add up to the gradient of the whole batch, which says that they are per sample at all.
    F.cross_entropy(mine(images), labels, reduction="sum").backward()
    for name, parameter in mine.named_parameters():
        assert_equal(result[name].sum(0), parameter.grad)


def test_an_ensemble_of_models(backend):
    models = [Network().double().to(backend.device) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    skeleton = cnnkernels.convert(Network().double().to(backend.device), strict=True)
    (images,) = tensors(backend, (4, 2, 12, 12))

    outputs = vmap(
        lambda p, b: functional_call(skeleton, (p, b), (images,)),
    )(parameters, buffers)
    assert_equal(outputs, torch.stack([model(images) for model in models]))


# ---------------------------------------------------------------- derivatives of all kinds


def network(module, pool):
    """Conv, ReLU, pool, conv, pool: a loss without kinks in its last stage."""

    def function(input, weight, bias):
        x = module.conv2d_relu(input, weight, bias, padding=1)
        x = values(POOLS[pool](module)(x))
        return module.conv2d(x, weight, bias, padding=1).sin()

    return function


@pytest.fixture
def network_operands(backend):
    return tensors(backend, (1, 2, 5, 4), (2, 2, 3, 2), (2,))


DERIVATIVES = {
    "grad": lambda f: grad(lambda *args: f(*args).sum(), argnums=(0, 1, 2)),
    "jacrev": lambda f: jacrev(f, argnums=(0, 1, 2)),
    "jacfwd": lambda f: jacfwd(f, argnums=(0, 1, 2)),
    "hessian": lambda f: hessian(lambda *args: f(*args).sum(), argnums=(0, 1, 2)),
    "jacrev_of_jacfwd": lambda f: jacrev(jacfwd(lambda *args: f(*args).sum(), argnums=1)),
    "jacfwd_of_jacfwd": lambda f: jacfwd(jacfwd(lambda *args: f(*args).sum(), argnums=1)),
    "jacrev_of_jacrev": lambda f: jacrev(jacrev(lambda *args: f(*args).sum(), argnums=1)),
    "third": lambda f: jacfwd(hessian(lambda *args: f(*args).sum()), argnums=2),
}


@pytest.mark.parametrize("pool", ["max", "max_indices", "avg"])
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives(backend, network_operands, derivative, pool):
    if derivative == "third":
        network_operands[0] = network_operands[0][:, :, :3, :3]
    check(lambda m: DERIVATIVES[derivative](network(m, pool)), *network_operands)


def test_vjp_outlives_its_transform(backend, network_operands):
    def pull_back(module):
        output, function = vjp(network(module, "max"), *network_operands)
        return function(torch.ones_like(output))

    assert_equal(pull_back(ours), pull_back(Torch))


# ---------------------------------------------------------------- forward mode

SOME_TANGENTS = [wrt for n in (1, 2, 3) for wrt in itertools.combinations(range(3), n)]


@pytest.mark.parametrize("argnums", SOME_TANGENTS, ids=str)
@pytest.mark.parametrize("name", ["conv2d", "conv2d_relu"])
def test_jvp_of_convolutions(backend, name, argnums):
    primals = tensors(backend, (2, 4, 6, 5), (6, 2, 3, 2), (6,))
    tangents = tensors(backend, *(primals[i].shape for i in argnums))

    def push_forward(module):
        def function(*some):
            args = list(primals)
            for i, value in zip(argnums, some, strict=True):
                args[i] = value
            return getattr(module, name)(*args, stride=2, padding=1, groups=2)

        return lambda: jvp(function, tuple(primals[i] for i in argnums), tuple(tangents))

    check(push_forward)


@pytest.mark.parametrize("pool", POOLS)
def test_jvp_of_pools(backend, pool):
    input, tangent = tensors(backend, (2, 3, 7, 8), (2, 3, 7, 8))
    check(lambda m: lambda: jvp(lambda x: values(POOLS[pool](m)(x)), (input,), (tangent,)))


def test_operands_without_a_tangent_are_not_multiplied_by_zero(backend):
    """Infinity times a tangent of zeros would be NaN."""
    input, weight, tangent = tensors(backend, (1, 2, 4, 4), (2, 2, 3, 3), (1, 2, 4, 4))
    weight[0, 0, 0, 0] = torch.inf
    tangent = tangent.abs()
    check(lambda m: lambda: jvp(lambda x: m.conv2d(x, weight), (input,), (tangent,)))
    assert_equal(
        jvp(lambda x: ours.conv2d(x, weight), (input,), (tangent,))[1][0, 0, 0, 0].item(), torch.inf
    )


@pytest.mark.parametrize("pool", ["max", "max_indices", "avg"])
def test_dual_tensors(backend, network_operands, pool):
    tangents = tensors(backend, *(t.shape for t in network_operands))

    def forward(module):
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, network_operands, tangents)
            return tuple(forward_ad.unpack_dual(network(module, pool)(*duals)))

    assert_equal(forward(ours), forward(Torch))


def test_reverse_mode_over_dual_tensors(backend, network_operands):
    tangents = tensors(backend, *(t.shape for t in network_operands))
    leaves = [t.requires_grad_() for t in network_operands]

    def gradients(module):
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, leaves, tangents)
            tangent = forward_ad.unpack_dual(network(module, "max")(*duals)).tangent
            return torch.autograd.grad(tangent.sum(), leaves)

    assert_equal(gradients(ours), gradients(Torch))


def test_a_dual_gradient_carries_its_tangent_through_backward(backend, network_operands):
    leaves = [t.requires_grad_() for t in network_operands]

    def tangents(module):
        output = network(module, "max")(*leaves)
        with forward_ad.dual_level():
            gradient = forward_ad.make_dual(torch.ones_like(output), torch.full_like(output, 2))
            grads = torch.autograd.grad(output, leaves, gradient)
            return [forward_ad.unpack_dual(g).tangent for g in grads]

    assert_equal(tangents(ours), tangents(Torch))


def test_linearize(backend, network_operands):
    tangents = tensors(backend, *(t.shape for t in network_operands))

    def linear(module):
        output, function = linearize(network(module, "avg"), *network_operands)
        return output, function(*tangents)

    assert_equal(linear(ours), linear(Torch))


# ---------------------------------------------------------------- compiled

COMPILED = {
    "vmap": lambda f: lambda x, w: vmap(f, (0, None))(torch.stack([x, -x]), w),
    "grad": lambda f: grad(lambda *args: f(*args).sum(), argnums=(0, 1)),
    "jvp": lambda f: lambda x, w: jvp(f, (x, w), (w[:1, :, :2, :2].sum() * x, w.cos())),
    "jacfwd": lambda f: jacfwd(f, argnums=1),
}


@pytest.mark.parametrize("transform", COMPILED)
def test_compiled_transforms_break_the_graph(backend, transform):
    """They are right, or with fullgraph=True an error, and lose no tangent."""
    args = tensors(backend, (1, 2, 6, 6), (3, 2, 3, 3))

    def transformed(module):
        return COMPILED[transform](lambda x, w: module.max_pool2d(module.conv2d(x, w), 2).sin())

    compiled = torch.compile(transformed(ours), backend="aot_eager")
    assert_equal(compiled(*args), transformed(Torch)(*args))
    torch._dynamo.reset()  # which has learnt to leave this function alone
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(transformed(ours), backend="aot_eager", fullgraph=True)(*args)
