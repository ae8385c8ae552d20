"""What surrounds a call in a torch program: checkpoints, hooks, exports, processes, threads."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from accuracy import integers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import cnnkernels
import cnnkernels.functional as ours


class Calls(TorchDispatchMode):
    """Our ops that run, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.emulated = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "cnnkernels":
            self.counts[function.name().split("::")[1]] += 1
            self.emulated.add(args[-1] == "emulated:")
        return function(*args, **(kwargs or {}))


def torchs_network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()


def networks(device="cpu"):
    """Torch's and ours, of the same weights; unfused, so that every backend runs the same ops."""
    torch.manual_seed(1)
    theirs = torchs_network().to(device)
    return theirs, cnnkernels.convert(copy.deepcopy(theirs), fuse=False, strict=True)


def images(device="cpu", count=4):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 2, 12, 12, dtype=torch.float64, generator=generator).to(device)


def gradients(model, output):
    return torch.autograd.grad(output.pow(2).sum(), list(model.parameters()))


def assert_close(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------- autograd's habits


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(backend, use_reentrant):
    theirs, mine = networks(backend.device)
    input = images(backend.device).requires_grad_()
    with Calls() as calls:
        output = checkpoint_sequential(mine, 2, input, use_reentrant=use_reentrant)
        output.pow(2).sum().backward()
    expected = theirs(input)
    assert_close(output, expected)
    assert_close([p.grad for p in mine.parameters()], list(gradients(theirs, expected)))
    # A checkpoint's forward pass runs twice, also where emulate_cuda() was on.
    assert calls.counts["conv2d"] > 2
    assert calls.emulated == {backend.name == "emulated"}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_recomputes_where_backward_is_called(use_reentrant):
    """Not under the emulator any more; the gradients are right all the same."""
    theirs, mine = networks()
    input = images().requires_grad_()
    with cnnkernels.emulate_cuda():
        output = checkpoint(mine, input, use_reentrant=use_reentrant)
    with Calls() as calls:
        output.pow(2).sum().backward()
    assert calls.counts["conv2d"] == 2
    assert calls.counts["conv2d_backward"] == 2
    assert_close([p.grad for p in mine.parameters()], list(gradients(theirs, theirs(input))))


def test_hooks_of_modules_and_tensors(backend):
    def trace(model):
        seen = []

        def forward_hook(module, args, output):
            output.register_hook(lambda g: seen.append(("tensor", g)))
            seen.append(("forward", output))

        for module in (model[0], model[2], model[3], model[4]):
            module.register_forward_hook(forward_hook)
            module.register_full_backward_hook(
                lambda module, grad_input, grad_output: seen.append(("backward", *grad_output))
            )
        model(images(backend.device).requires_grad_()).pow(2).sum().backward()
        return seen

    theirs, _ = networks(backend.device)
    mine = cnnkernels.convert(copy.deepcopy(theirs), fuse=False, strict=True)
    result, expected = trace(mine), trace(theirs)
    assert [name for name, _ in result] == [name for name, _ in expected]
    assert Counter(name for name, _ in result) == {"tensor": 4, "forward": 4, "backward": 4}
    assert_close([t for _, t in result], [t for _, t in expected])


def test_a_hook_may_replace_a_gradient(backend):
    theirs, mine = networks(backend.device)

    def run(model):
        input = images(backend.device).requires_grad_()
        output = model[2](model[1](model[0](input)))
        output.register_hook(lambda g: g * 3)
        output.sum().backward()
        return input.grad

    assert_close(run(mine), run(theirs))


def test_retain_graph(backend):
    _, mine = networks(backend.device)
    output = mine(images(backend.device)).pow(2).sum()
    parameters = list(mine.parameters())
    first = torch.autograd.grad(output, parameters, retain_graph=True)
    second = torch.autograd.grad(output, parameters)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output, parameters)


def test_a_saved_tensor_changed_in_place_is_noticed(backend):
    input = images(backend.device).requires_grad_()
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, device=backend.device, requires_grad=True)
    output = ours.conv2d(input, weight)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_what_needs_no_gradient_costs_no_work(backend):
    """Frozen layers in front run no backward op; of a frozen operand no gradient is computed."""
    _, mine = networks(backend.device)
    mine[:3].requires_grad_(False)
    with Calls() as calls:
        mine(images(backend.device)).sum().backward()
    assert calls.counts == {
        "conv2d": 2,
        "max_pool2d": 1,
        "avg_pool2d": 1,
        "conv2d_backward": 1,
        "avg_pool2d_backward": 1,
    }


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(backend, mode):
    theirs, mine = networks(backend.device)
    with mode(), Calls() as calls:
        output = mine(images(backend.device))
    assert not output.requires_grad
    assert output.is_inference() == (mode is torch.inference_mode)
    assert calls.counts == {"conv2d": 2, "max_pool2d": 1, "avg_pool2d": 1}
    assert_close(output, theirs(images(backend.device)).detach())


# ---------------------------------------------------------------- graphs


def test_export(backend):
    theirs, mine = networks(backend.device)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(mine, (images(backend.device),), dynamic_shapes=({0: batch},))
    exported = program.module()
    for count in (4, 7):
        input = images(backend.device, count)
        assert_close(exported(input), theirs(input))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {name for name in names if name.startswith("cnnkernels.")} == {
        "cnnkernels.conv2d.default",
        "cnnkernels.max_pool2d_with_argmax.default",
        "cnnkernels.avg_pool2d.default",
    }


def test_an_exported_program_is_saved_and_loaded(tmp_path):
    _, mine = networks()
    program = torch.export.export(mine, (images(),))
    torch.export.save(program, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    torch.testing.assert_close(loaded(images()), mine(images()), rtol=0, atol=0)


@pytest.mark.gpu
def test_cuda_graph_capture():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    _, mine = networks("cuda")
    static = images("cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        mine(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = mine(static)
    static.copy_(images("cuda").flip(0))
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(output, mine(static), rtol=0, atol=0)


# ---------------------------------------------------------------- copies


def test_whole_models_are_pickled_copied_and_exchange_state(backend):
    theirs, mine = networks(backend.device)
    expected = theirs(images(backend.device))
    for twin in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert_close(twin(images(backend.device)), expected)

    other = torchs_network().to(backend.device)
    other.load_state_dict(mine.state_dict())
    assert_close(other(images(backend.device)), expected)
    fresh = cnnkernels.convert(torchs_network().to(backend.device))
    fresh.load_state_dict(theirs.state_dict())
    assert_close(fresh(images(backend.device)), expected)


# ---------------------------------------------------------------- threads and processes


def test_emulate_cuda_does_not_leak_into_other_threads():
    input, weight = integers(1, 2, 8, 8, dtype=torch.float32), torch.ones(2, 2, 3, 3)
    inside, done = threading.Event(), threading.Event()
    seen = {}

    def place(name):
        with Calls() as calls:
            ours.conv2d(input, weight)
        seen[name] = calls.emulated

    def emulating():
        with cnnkernels.emulate_cuda():
            inside.set()
            assert done.wait(30)
            place("emulating")
        place("emulating, after")

    thread = threading.Thread(target=emulating)
    thread.start()
    assert inside.wait(30)
    place("main")
    done.set()
    thread.join()
    assert seen == {"emulating": {True}, "emulating, after": {False}, "main": {False}}


def test_many_threads_call_at_once(backend):
    """Forward and backward, each thread's own input: all get their own results."""
    _, mine = networks(backend.device)
    inputs = [images(backend.device) * scale for scale in range(1, 5)]

    def step(input):
        with backend.context():  # settings are the thread's own
            output = mine(input)
            return [output.detach(), *gradients(mine, output)]

    results = {}

    def work(index):
        results[index] = [step(inputs[index]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, input in enumerate(inputs):
        expected = step(input)
        for result in results[index]:
            torch.testing.assert_close(result, expected, rtol=0, atol=0)


def native_and_emulated():
    """Outputs and gradients of our layers alone, whose bits no number of threads changes."""
    model = networks()[1][:5]
    results = []
    for context in (torch.enable_grad(), cnnkernels.emulate_cuda()):
        with context:
            output = model(images(count=16))
            results += [output.detach(), *gradients(model, output)]
    return [result.numpy() for result in results]


def child(queue):
    # As torch's DataLoader does in its workers: after a fork, OpenMP's threads are gone, and any
    # op of torch that wants several waits for them forever.
    torch.set_num_threads(1)
    queue.put(native_and_emulated())


PROCESSES = """
import sys
import test_systems as tests

def check(results, what):
    for result, reference in zip(results, tests.native_and_emulated(), strict=True):
        assert (result == reference).all(), what

if __name__ == "__main__":
    method, before = sys.argv[1:]
    tests.torch.set_num_threads(2)
    if before == "used":
        tests.native_and_emulated()
    context = tests.multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=tests.child, args=(queue,))
    process.start()
    check(queue.get(), "in the child")
    process.join()
    assert process.exitcode == 0
    check(tests.native_and_emulated(), "in the parent")
    print("the same")
"""


@pytest.mark.parametrize("before", ["used", "unused"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_a_process_compute_the_same(tmp_path, method, before):
    """Natively and emulated, whether or not the parent had computed (and had threads) before."""
    program = tmp_path / "program.py"
    program.write_text(PROCESSES)
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here)])
    result = subprocess.run(
        [sys.executable, program, method, before],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert result.stdout == "the same\n", result.stderr


# ---------------------------------------------------------------- data parallel


def test_data_parallel_without_gpus():
    theirs, mine = networks()
    if torch.cuda.is_available():
        mine = mine.cuda()
    wrapped = nn.DataParallel(mine)
    assert_close(wrapped(images()).cpu(), theirs(images()))


def distributed_step(rank, address, results):
    """A step on every second image, in one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    _, mine = networks()
    model = nn.parallel.DistributedDataParallel(mine)
    model(images()[rank::2]).pow(2).mean().backward()
    results.put((rank, [p.grad.numpy() for p in mine.parameters()]))
    dist.barrier()
    dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    """The gradients of two processes are those of one that sees all images."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    address = f"file://{tmp_path}/meeting"
    processes = [
        context.Process(target=distributed_step, args=(rank, address, results)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    received = dict(results.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0

    theirs, _ = networks()
    theirs(images()).pow(2).mean().backward()
    for rank in (0, 1):
        grads = [torch.from_numpy(grad) for grad in received[rank]]
        assert_close(grads, [p.grad for p in theirs.parameters()])
