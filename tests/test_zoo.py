"""torchvision's classification networks on our kernels: results, and whose kernels did the work."""

import copy
import math

import pytest
import torch
from accuracy import assert_accurate, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnkernels import convert

try:
    from torchvision import models
except (ImportError, RuntimeError) as error:  # built for another torch, it fails to load its ops
    pytest.skip(f"torchvision cannot be imported: {error}", allow_module_level=True)

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

# In training mode the last layers must have more than a pixel, or the batch's variance is that of
# two values; in eval mode it is the least size that most networks take.
SIZES = {"training": 64, "eval": 32}
NETWORKS = {
    "alexnet": dict(eval=64),
    "vgg11": {},
    "vgg11_bn": {},
    "vgg16": dict(training=32),
    "resnet18": {},
    "resnext50_32x4d": {},
    "densenet121": {},
    "googlenet": {},
    "inception_v3": dict(training=128, eval=96),
    "squeezenet1_1": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x0_5": {},
    "efficientnet_b0": {},
    "convnext_tiny": {},
    "mnasnet0_5": {},
    "regnet_y_400mf": {},
}
SETTINGS = {
    "googlenet": dict(init_weights=True),
    "inception_v3": dict(init_weights=True, aux_logits=False),  # which take 299 pixels
}


def build(name):
    """The network with statistics as a trained one has, without what draws random numbers."""
    torch.manual_seed(0)  # here, since the wheel's check runs this file alone
    if name.startswith(("alexnet", "vgg")):
        model = without_linear_layers(name)
    else:
        model = getattr(models, name)(num_classes=10, **SETTINGS.get(name, {}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    return model


def without_linear_layers(name):
    """All but one, whose hundred million weights would take most of the time."""
    with torch.device("meta"):
        model = getattr(models, name)()
        model.classifier = nn.Linear(next(model.classifier.parameters()).shape[1], 10)
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
    return model


def outputs(model, images):
    """The logits, of a network with auxiliary ones all, as one vector."""
    result = model(images)
    found = [result] if isinstance(result, torch.Tensor) else result
    return torch.cat([logits for logits in found if logits is not None])


def gradients(model, images):
    """Of all parameters and the images, as one vector: it tells rounding from luck."""
    images = images.clone().requires_grad_()
    result = outputs(model, images)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    tensors = [images, *model.parameters()]
    grads = torch.autograd.grad(result, tensors, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


class Flop(TorchDispatchMode):
    """Counts the FLOP of forward passes of convolutions and pools, by whose kernels run them."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = {}, {}

    def shares(self):
        """Ours of the convolutions' and, where there are any, of the pools'."""
        counts = [counted for counted in (self.conv, self.pool) if counted]
        return [counted.get("cnnkernels", 0) / sum(counted.values()) for counted in counts]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        namespace, name = func._schema.name.split("::")
        output = result[0] if isinstance(result, tuple) else result
        if name.startswith(("conv", "_conv", "mkldnn_conv")) and "backward" not in name:
            pixels = output.shape[0] * math.prod(map(out_size, *geometry(namespace, name, args)))
            self._add(self.conv, namespace, 2 * pixels * args[1].numel())
            if "pool" in name:
                self._add(self.pool, namespace, output.numel() * args[12] * args[13])
        elif "pool2d" in name and "backward" not in name:
            self._add(self.pool, namespace, args[0].numel())
        return result

    def _add(self, counted, namespace, flop):
        counted[namespace] = counted.get(namespace, 0) + flop


def geometry(namespace, name, args):
    """Of a convolution, for height and width: input, filter, stride, padding, dilation."""
    sizes = args[0].shape[2:], args[1].shape[2:]
    if namespace == "cnnkernels":
        top, bottom, left, right = args[5:9]
        return *sizes, args[3:5], (top + bottom, left + right), args[9:11]
    stride, padding, dilation = args[3:6]
    return *sizes, stride, [2 * p for p in padding], dilation


def out_size(size, taps, stride, padding, dilation):
    return (size + padding - dilation * (taps - 1) - 1) // stride + 1


@pytest.mark.parametrize("mode", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, mode):
    """Outputs by the rule of accuracy.py; gradients in float64.

    In float32 rounding turns a ReLU or a maximum here and there, of ours and of torch's, and sends
    its gradient elsewhere: both are then off by up to a percent, on no merit of theirs.
    """
    theirs = build(name).train(mode == "training")
    size = NETWORKS[name].get(mode, SIZES[mode])
    images = torch.randn(2, 3, size, size)
    ours = convert(copy.deepcopy(theirs), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        exact = outputs(copy.deepcopy(theirs).double(), images.double())
        torchs = outputs(theirs, images)
        with Flop() as flop:
            mine = outputs(ours, images)
    assert_accurate(mine, torchs, exact)
    assert min(flop.shares()) >= 0.99

    theirs.load_state_dict(ours.state_dict())  # the statistics follow the images
    theirs, ours, images = theirs.double(), ours.double(), images.double()
    expected, results = gradients(theirs, images), gradients(ours, images)
    assert relative_error(results, expected) <= 1e-9
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], tensor)
