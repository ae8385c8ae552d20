"""Checks an installed cnnkernels: every op, derivative, dtype and layout against torch.

Stands alone, so that it runs beside any torch, without the source tree: `python -I wheel_smoke.py`.
All operands are small integers, whose products and sums are exact in every dtype and in any
order: results must equal torch's in float64, bit for bit.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import cnnkernels
import cnnkernels.functional as ours

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Case:
    """A call of an op of ours, torch's twin, and the sizes of the tensors that it takes."""

    name: str
    ours: Callable
    torchs: Callable
    sizes: Sequence[tuple[int, ...]]
    arguments: dict


def torch_conv2d_relu(*tensors: Tensor, **arguments) -> Tensor:
    return F.relu(F.conv2d(*tensors, **arguments))


# So small that no sum passes 256, to which bfloat16 counts; divisors are powers of two.
POINTWISE = ((2, 5, 6, 7), (3, 5, 1, 1), (3,))
PLAIN = ((1, 3, 9, 8), (4, 3, 3, 3), (4,))
AWKWARD = ((2, 4, 11, 9), (6, 2, 3, 2), (6,))
AWKWARD_ARGUMENTS = dict(groups=2, stride=(2, 1), padding=(2, 1), dilation=(1, 2))
PLANES = ((2, 3, 9, 11),)
POOL_ARGUMENTS = dict(kernel_size=(2, 4), stride=(2, 3), padding=1, ceil_mode=True)

CASES = [
    *(
        Case(f"{name} {what}", function, twin, sizes, arguments)
        for name, function, twin in (
            ("conv2d", ours.conv2d, F.conv2d),
            ("conv2d_relu", ours.conv2d_relu, torch_conv2d_relu),
        )
        for what, sizes, arguments in (
            ("1x1", POINTWISE, {}),
            ("3x3", PLAIN, dict(padding=1)),
            ("strided, dilated, in groups", AWKWARD, AWKWARD_ARGUMENTS),
        )
    ),
    *(
        Case(f"{name} {what}", function, twin, PLANES, arguments)
        for what, arguments in (("2x2", dict(kernel_size=2)), ("overlapping", POOL_ARGUMENTS))
        for name, function, twin, arguments in (
            ("max_pool2d", ours.max_pool2d, F.max_pool2d, arguments),
            (
                "max_pool2d with indices",
                ours.max_pool2d,
                F.max_pool2d,
                {**arguments, "return_indices": True},
            ),
            ("avg_pool2d", ours.avg_pool2d, F.avg_pool2d, arguments),
        )
    ),
]


def integers(size: Sequence[int], seed: int) -> Tensor:
    """-1, 0 and 1: the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, tuple(size), generator=generator).double()


def derivatives(
    function: Callable, operands: Sequence[Tensor], arguments: dict
) -> dict[str, Sequence[Tensor]]:
    """What `function` gives, its gradients, and the gradients of those."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    outputs = function(*leaves, **arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)

    grad_output = integers(outputs[0].shape, seed=10).to(outputs[0]).requires_grad_()
    grads = torch.autograd.grad(outputs[0], leaves, grad_output, create_graph=True)
    directions = [integers(g.shape, seed=20 + i).to(g) for i, g in enumerate(grads)]
    grad_grads = torch.autograd.grad(
        grads, [grad_output, *leaves], directions, materialize_grads=True
    )
    return {"forward": outputs, "backward": grads, "double backward": grad_grads}


def mismatches(case: Case, device: str, dtype: torch.dtype, layout: torch.memory_format):
    """Which of the call's results, forward to double backward, differ from torch's."""
    doubles = [integers(size, seed) for seed, size in enumerate(case.sizes)]
    expected = derivatives(case.torchs, doubles, case.arguments)
    operands = [
        t.to(device, dtype, memory_format=layout if t.dim() == 4 else torch.preserve_format)
        for t in doubles
    ]
    results = derivatives(case.ours, operands, case.arguments)
    for order, references in expected.items():
        for result, reference in zip(results[order], references, strict=True):
            wanted = dtype if reference.is_floating_point() else reference.dtype
            if result.dtype != wanted or not torch.equal(result.cpu(), reference.to(wanted)):
                yield order
                break


def check_ops() -> tuple[int, list[str]]:
    """Runs everything; returns how many checks there were, and the failed ones."""
    places = {"native": ("cpu", nullcontext), "emulated": ("cpu", cnnkernels.emulate_cuda)}
    if torch.cuda.is_available():
        places["cuda"] = ("cuda", nullcontext)
    runs = list(itertools.product(CASES, places, DTYPES, LAYOUTS))
    failed = []
    for case, place, dtype, layout in runs:
        device, context = places[place]
        with context():
            for order in mismatches(case, device, dtype, layout):
                failed.append(f"{case.name}, {order}: {place}, {dtype}, {layout}")
    return 3 * len(runs), failed


def check_installation(info: dict) -> list[str]:
    """What is wrong with the installation itself."""
    if info["load_error"]:
        return [f"the library does not load: {info['load_error']}"]
    wrong = []
    if not Path(cnnkernels.__file__).is_relative_to(sys.prefix):
        wrong.append(f"{cnnkernels.__file__} is not the installed package")
    if info["build"]["cuda"]:
        kernels = info["algorithms"]["cuda"]
        wrong += [
            f"no CUDA kernel for {op}" for op, algorithms in kernels.items() if not algorithms
        ]
    return wrong


def main() -> None:
    info = cnnkernels.info()
    print(", ".join(f"{name} {version}" for name, version in info["versions"].items()))
    failed = check_installation(info)
    if not failed:
        print(", ".join(f"{name}: {value}" for name, value in info["build"].items()))
        count, failed = check_ops()
    if failed:
        sys.exit("\n".join(["FAILED", *failed]))
    print(f"{count} checks, all equal to torch's results")


if __name__ == "__main__":
    main()
