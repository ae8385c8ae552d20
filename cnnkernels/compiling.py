"""``torch.compile(model, backend="cnnkernels")``: our kernels in the graph, inductor for the rest.

Dynamo's graph calls torch's functions: convolutions and pools become ours, and a convolution with
what follows it one call, as :mod:`cnnkernels.fusion` has it. The entry point in pyproject.toml
tells torch of it, so that ``import cnnkernels`` imports nothing of torch.compile.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cnnkernels import functional, fusion
from cnnkernels.nn import pool_settings
from cnnkernels.override import FUNCTIONS


def backend(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile a graph of torch's functions, as torch.compile asks it of a backend.

    Args:
        module: The graph, as Dynamo captured it.
        inputs: Fake tensors of the sizes that it takes.

    Returns:
        The compiled graph: a function of such tensors.
    """
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(replace(module), inputs)


def replace(module: fx.GraphModule) -> fx.GraphModule:
    """Put our functions in the place of torch's, where there are kernels; changes the graph."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is F.conv2d and _has_kernels(node):
            _fuse(graph, node)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONS and _has_kernels(node):
            node.target = FUNCTIONS[node.target]
    module.recompile()
    return module


def _example(node: fx.Node) -> Tensor:
    return node.meta["example_value"]


def _has_kernels(node: fx.Node) -> bool:
    result = _example(node)
    tensor = result if isinstance(result, Tensor) else result[0]
    return tensor.dtype in functional.DTYPES and tensor.device.type in functional.DEVICES


def _fuse(graph: fx.Graph, conv: fx.Node) -> None:
    """One call for a convolution and its followers, in its place."""
    after = fusion.followers(conv, lambda node: _part(conv, node))
    if not after:
        return
    input, weight, bias, *geometry = _arguments(functional.conv2d, conv)
    name, settings = "conv2d", {}
    if "relu" in after:
        name = "conv2d_relu"
    if "pool" in after:
        kind, settings = pool_settings(fusion.step(after["pool"]))
        name = f"conv2d_relu_{kind}_pool2d"
    calls = [conv, *after.values()]
    with graph.inserting_before(calls[-1]):
        if "norm" in after:
            _, mean, var, gamma, beta, *_, eps = _arguments(F.batch_norm, after["norm"])
            pair = graph.call_function(fusion.folded, (weight, bias, mean, var, gamma, beta, eps))
            weight, bias = (graph.call_function(operator.getitem, (pair, i)) for i in (0, 1))
        args = (input, weight, bias, *geometry)
        new = graph.call_function(getattr(functional, name), args, settings)
    fusion.replace_calls(graph, calls, new)


def _part(conv: fx.Node, node: fx.Node) -> str | None:
    """What a call is in a convolution's row."""
    if node.target is F.batch_norm:
        return "norm" if _folds(conv, node) else None
    step = fusion.step(node)
    if isinstance(step, nn.ReLU):
        return "relu"
    return None if step is None else "pool"


def _arguments(function: Callable[..., Any], node: fx.Node) -> list[Any]:
    """All arguments of a call, in the order of the function's parameters."""
    call = inspect.signature(function).bind(*node.args, **node.kwargs)
    call.apply_defaults()
    return [*call.arguments.values()]


def _folds(conv: fx.Node, norm: fx.Node) -> bool:
    """Whether a normalisation by constants costs less in the weight than in the output."""
    _, _, var, _, _, training, _, _ = _arguments(F.batch_norm, norm)
    if training:
        return False
    output, weight = _example(conv), _example(_arguments(functional.conv2d, conv)[1])
    exact = output.dtype == weight.dtype == _example(var).dtype in (torch.float32, torch.float64)
    return exact and output.numel() >= weight.numel()
