"""No layout and no dtype is served by copying whole tensors: a call allocates its results.

Measured from outside: in a process of its own, how far the resident set rises above its start
while a call runs (VmHWM of /proc/self/status), which sees every allocation of every library.
Beside its results a call may use half of the input's size, for tiles and fibers' stacks.
"""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch, cnnkernels
import cnnkernels.functional as ours

emulate, op = sys.argv[1] == "emulated", sys.argv[2]
torch.manual_seed(0)

def layouts(x):
    yield "contiguous", x
    yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    yield "sliced", x[:, :, 1:, ::2]

def status(name):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024

def rise(function):
    "The function's result, and how far the resident set rose meanwhile."
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM
    before = status("VmRSS")
    result = function()
    return result, status("VmHWM") - before

def bytes_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)

functions = {
    "conv2d": lambda x: ours.conv2d(x, weight.to(x.dtype), padding=1),
    "max_pool2d": lambda x: ours.max_pool2d(x, 2),
    "avg_pool2d": lambda x: ours.avg_pool2d(x, 2),
    "adaptive_max_pool2d": lambda x: ours.adaptive_max_pool2d(x, (50, 61)),
    "adaptive_avg_pool2d": lambda x: ours.adaptive_avg_pool2d(x, (50, 61)),
    "global_avg_pool2d": lambda x: ours.adaptive_avg_pool2d(x, 1),
}

def run(x):
    leaf = x.detach().requires_grad_()
    output, forward = rise(lambda: functions[op](leaf))
    codes = [t for t in output.grad_fn.saved_tensors if t is not None and t.dtype == torch.uint8]
    grad_output = torch.ones_like(output)
    leaf.grad = None
    (grad,), backward = rise(lambda: torch.autograd.grad(output, leaf, grad_output))
    return forward - bytes_of(output, *codes), backward - bytes_of(grad)

weight = torch.randn(2, 64, 3, 3)
with cnnkernels.emulate_cuda() if emulate else torch.enable_grad():
    for dtype in (torch.float32, torch.float16):
        input = torch.randn(1 if emulate else 4, 64, 128, 128).to(dtype)
        for layout, x in layouts(input):
            run(x[:1, :, :48, :48])  # threads, fibers, pools and lazily loaded code
            print(dtype, layout, *run(x), bytes_of(x))
"""


OPS = ["conv2d", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"]


@pytest.mark.parametrize("op", [*OPS, "global_avg_pool2d"])
@pytest.mark.parametrize("place", ["native", "emulated"])
def test_a_call_allocates_its_results_alone(place, op):
    command = [sys.executable, "-c", PROGRAM, place, op]
    # Freed memory goes back at once, so that what a call takes is seen.
    environ = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    for line in lines:
        *_, forward, backward, size = line.split()
        assert max(int(forward), int(backward)) <= int(size) / 2, line
