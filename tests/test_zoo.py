"""torchvision's classification networks on our kernels: results, and how much of the work is ours.

Each converted network's output and gradients are judged against float64 and torch's own error, and
the FLOP of its convolutions and pools are counted by where they ran.
"""

import copy
import math

import pytest
import torch
from accuracy import assert_accurate, error_bound, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnkernels import convert, unconverted

try:
    from torchvision import models
except (ImportError, RuntimeError) as error:  # built for another torch, it fails to load its ops
    pytest.skip(f"torchvision cannot be imported: {error}", allow_module_level=True)

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

# The least size that the network takes, where 64 is too small.
NETWORKS = {
    "alexnet": 64,
    "vgg11": 32,
    "vgg11_bn": 32,
    "vgg16": 32,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "densenet121": 64,
    "googlenet": 64,
    "inception_v3": 128,
    "squeezenet1_1": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x0_5": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "mnasnet0_5": 64,
    "regnet_y_400mf": 64,
}


def build(name):
    """The network with statistics as a trained one has, without what draws random numbers."""
    settings = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = getattr(models, name)(num_classes=10, **settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    return model


def outputs(model, images):
    """Logits; of a network with auxiliary ones, all."""
    result = model(images)
    return [result] if isinstance(result, torch.Tensor) else [r for r in result if r is not None]


def run(model, images):
    """Outputs, and the gradients of all parameters by name."""
    results = outputs(model, images)
    weights = [torch.linspace(-1, 1, r.numel(), dtype=r.dtype).view_as(r) for r in results]
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(results, [*parameters.values()], weights, allow_unused=True)
    return [r.detach() for r in results], dict(zip(parameters, grads, strict=True))


class Flop(TorchDispatchMode):
    """Counts the FLOP of convolutions and pools by whose kernels run them."""

    def __init__(self):
        super().__init__()
        self.ours = self.torchs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        namespace, name = func._schema.name.split("::")
        flop = _flop(name, args, result)
        if namespace == "cnnkernels":
            self.ours += flop
        else:
            self.torchs += flop
        return result


def _flop(name, args, result):
    """Two for each product of a convolution, one for each element of a pool's windows."""
    output = result[0] if isinstance(result, tuple) else result
    if "conv" in name and "backward" not in name:
        pixels = output.numel() // output.shape[1]
        if "pool" in name:  # before the pool, which is counted by its own rule below
            pixels *= args[12] * args[13]
        return 2 * pixels * args[1].numel()
    if "pool2d" in name:
        return args[0].numel()
    return 0
