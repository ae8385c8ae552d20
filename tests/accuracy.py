"""How results are judged: against float64, and against torch's own error."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def relative_error(result: Tensor, reference: Tensor) -> float:
    """||result - reference|| / ||reference|| in float64; 0 where both are zero or empty."""
    difference = torch.linalg.vector_norm(result.double() - reference)
    if difference == 0:
        return 0.0
    return (difference / torch.linalg.vector_norm(reference)).item()


def error_bound(torchs: Tensor, reference: Tensor, eps: float | None = None) -> float:
    """What our error may be: twice torch's in the same dtype, or four units in the last place.

    `eps`: what such a unit is, where it is not the dtype's.
    """
    unit = torch.finfo(torchs.dtype).eps if eps is None else eps
    return max(2 * relative_error(torchs, reference), 4 * unit)


def assert_accurate(ours: Tensor, torchs: Tensor, reference: Tensor, what: str = "") -> None:
    """Our error is within its bound."""
    assert ours.shape == reference.shape, what
    assert ours.dtype == torchs.dtype, what
    assert relative_error(ours, reference) <= error_bound(torchs, reference), what


def integers(*shape: int, dtype: torch.dtype, device: str = "cpu", high: int = 4) -> Tensor:
    """Small whole numbers: their sums and products are exact in any order."""
    return torch.randint(-high, high + 1, shape).to(device, dtype)


def assert_same_bits(compute: Callable[[], Sequence[Tensor]]) -> None:
    """Threads share the blocks, or the parts, of the work: in another order each time."""
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            runs.append(compute())
    finally:
        torch.set_num_threads(threads)
    for number, run in enumerate(runs):
        for index, (first, other) in enumerate(zip(runs[0], run, strict=True)):
            assert torch.equal(first, other), f"result {index} of run {number}"
