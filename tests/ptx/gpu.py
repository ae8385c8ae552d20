"""The interpreted GPU: its memory, and calls of the launchers."""

import ctypes
import enum
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]  # as in problem.h
CONV_PASSES = ["fprop", "dgrad", "wgrad"]  # that may want scratch memory, as in registry.h
UNWRITTEN = 0xA5  # what ptxsim fills new memory with

DEVICE = "a100"  # whose limits hold: those of sm_80

# Warps in reverse order: a barrier that the threads behind an early exit never come to is told
# only where these have run first.
OPTIONS = {
    "CHECKS": "all,+ginit,+barexit,+shflsync",
    "STRICT": "1",
    "SCHED": "rev",
    "BLOCKS": "order",
    "STATS": "",
}


class Argmax(enum.IntEnum):  # as in problem.h
    none, uint8, int32, int64 = range(4)


class Status(enum.IntEnum):  # as in attempt.h
    ran, refused, failed = range(3)


class Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in "nchw"]


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Conv2dProblem(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_int, "N C H W K R S P Q stride_h stride_w pad_top pad_left"),
        *fields(ctypes.c_int, "dilation_h dilation_w groups"),
        *fields(Strides, "input weight output relu"),
        *fields(ctypes.c_bool, "tf32 fast_math"),
    ]


class Pool2dProblem(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_int, "N C H W R S P Q stride_h stride_w pad_h pad_w"),
        *fields(ctypes.c_int, "dilation_h dilation_w"),
        *fields(ctypes.c_bool, "count_include_pad"),
        *fields(ctypes.c_int64, "divisor_override"),
        *fields(Strides, "input output argmax"),
    ]


class Conv2dPoolProblem(ctypes.Structure):
    _fields_ = [
        ("conv", Conv2dProblem),
        ("pool", Pool2dProblem),
        ("average", ctypes.c_bool),
    ]


class AdaptivePool2dProblem(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_int, "N C H W R S P Q"),
        *fields(Strides, "input output argmax"),
    ]


PROBLEMS = {
    "conv2d": Conv2dProblem,
    "conv2d_relu_pool2d": Conv2dPoolProblem,
    "pool2d": Pool2dProblem,
    "adaptive_pool2d": AdaptivePool2dProblem,
}


class Fault(Exception):
    """A launch that the runtime refused, or in which a check of ptxsim's failed."""


class Gpu:
    """Its memory is host memory that ptxsim owns, so that tensors there are like any other.

    Each allocation ends with its tensor's last element and has guard zones, and to read what
    nobody wrote is a fault.
    """

    def __init__(self, library: Path) -> None:
        os.environ["PTXSIM_DEVICE"] = DEVICE  # is read in the first call
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_LOCAL)
        self._addresses: list[int] = []
        self._options: dict[str, str] = {}
        self._library.ptxsim_malloc.restype = ctypes.c_void_p
        for name in ("last_message", *(f"{op}_name" for op in PROBLEMS)):
            self._function(name).restype = ctypes.c_char_p
        for op in ("conv2d", "conv2d_relu_pool2d"):
            self._function(f"{op}_workspace").restype = ctypes.c_int64
        for op, problem in PROBLEMS.items():
            assert self._function(f"{op}_problem_bytes")() == ctypes.sizeof(problem)
        self._set_options(OPTIONS)

    @contextmanager
    def options(self, **changed: str) -> Iterator[None]:
        """Has ptxsim run otherwise in a ``with`` block; its README names the options."""
        before = {name: self._options[name] for name in changed}
        self._set_options(changed)
        try:
            yield
        finally:
            self._set_options(before)

    @contextmanager
    def counting(self) -> Iterator[list[dict[str, Any]]]:
        """Gives a list that will hold the counters of the kernels launched in a ``with`` block."""
        counters: list[dict[str, Any]] = []
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            with self.options(STATS=file.name):
                yield counters
            counters += map(json.loads, file)

    def _set_options(self, options: dict[str, str]) -> None:
        for name, value in options.items():
            assert self._library.ptxsim_option(name.encode(), value.encode()) == 0, (name, value)
        self._options |= options

    def algorithms(self, op: str) -> list[str]:
        """Their names, in the order of the registry."""
        names = map(self._function(f"{op}_name"), map(ctypes.c_int64, itertools.count()))
        return [name.decode() for name in itertools.takewhile(bool, names)]

    def run(self, name: str, number: int, problem: ctypes.Structure, *arguments) -> bool:
        """Calls a function of algorithm `number` among those for such problems."""
        pools = Pool2dProblem, AdaptivePool2dProblem
        kind = [type(problem) is not Pool2dProblem] if isinstance(problem, pools) else []
        return self.call(name, *kind, number, problem, *arguments)

    def call(self, name: str, *arguments) -> bool:
        """Calls a function of this folder; False if an algorithm refuses the problem."""
        status = self._function(name)(*map(_as_c, arguments))
        if status == Status.failed:
            raise Fault(self._library.last_message().decode())
        return status == Status.ran

    def _function(self, name: str):
        return getattr(self._library, name)

    # ---- Memory ----

    def empty(self, like: Tensor, name: str) -> Tensor:
        """Memory for a tensor of that shape, strides and dtype; `name` is for messages."""
        if like.numel() == 0:
            return torch.empty_like(like)
        size = span(like).numel() * like.itemsize
        address = self._library.ptxsim_malloc(ctypes.c_uint64(size), name.encode())
        self._addresses.append(address)
        memory = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=like.dtype)
        return memory.as_strided(like.shape, like.stride())

    def workspace(self, op: str, number: int, problem, dtype: torch.dtype, name: str) -> Tensor:
        """The scratch memory that a pass of algorithm `number` works in."""
        arguments = map(_as_c, (number, problem, dtype, CONV_PASSES.index(name)))
        size = self._function(f"{op}_workspace")(*arguments)
        return self.empty(torch.empty(size, dtype=torch.uint8), "workspace")

    def put(self, tensor: Tensor, name: str) -> Tensor:
        """A copy, with the same strides; what lies between its elements stays unset."""
        copy = self.empty(tensor, name)
        places = element_places(tensor)
        span(copy)[places] = span(tensor)[places]
        # Runs of neighbours: where the place grows as fast as the index.
        _, lengths = torch.unique_consecutive(
            places - torch.arange(len(places)), return_counts=True
        )
        begins = places[lengths.cumsum(0) - lengths]
        for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
            address = copy.data_ptr() + begin * copy.itemsize
            self._library.ptxsim_mark_init(
                ctypes.c_uint64(address), ctypes.c_uint64(length * copy.itemsize)
            )
        return copy

    def read(self, tensor: Tensor) -> Tensor:
        """A copy in host memory, after a look whether anything between its elements was written."""
        between = torch.ones(span(tensor).numel(), dtype=torch.bool)
        between[element_places(tensor)] = False
        data = span(tensor).view(-1, 1).view(torch.uint8)
        assert (data[between] == UNWRITTEN).all(), "written between the elements"
        return tensor.clone()

    def free(self) -> None:
        """Gives all memory back."""
        for address in self._addresses:
            assert self._library.ptxsim_free(ctypes.c_uint64(address)) == 0
        self._addresses.clear()


def span(tensor: Tensor) -> Tensor:
    """All memory from its first element to its last."""
    if tensor.numel() == 0:
        return tensor.new_empty(0)
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((last + 1,), (1,))


def element_places(tensor: Tensor) -> Tensor:
    """Where in its span its elements lie, ascending."""
    return torch.arange(span(tensor).numel()).as_strided(tensor.shape, tensor.stride()).unique()


def strides(tensor: Tensor) -> Strides:
    return Strides(*tensor.stride())


def _as_c(value):
    """Whole numbers as int64_t, dtypes and enumerators as int."""
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, torch.dtype):
        return ctypes.c_int(DTYPES.index(value))
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    if isinstance(value, bool):
        return ctypes.c_bool(value)
    return ctypes.c_int(value) if isinstance(value, enum.Enum) else ctypes.c_int64(value)
