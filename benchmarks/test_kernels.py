"""Every native kernel beside torch's: same inputs, threads and dtype, outputs checked first.

    pytest benchmarks

Each pass of each case is one group of the report, with a row for each side. gpu.py does the same
for CUDA kernels.
"""

import pytest
import torch
from accuracy import assert_accurate

from benchmarks.passes import PASSES


@pytest.mark.parametrize("side", ["ours", "torchs"])
@pytest.mark.parametrize("which", PASSES, ids=lambda which: f"{which.case.name}-{which.name}")
def test_kernel(benchmark, which, side):
    calls = which.calls("cpu")
    references = which.calls("cpu", torch.float64).torchs()
    for result, torchs, reference in zip(calls.ours(), calls.torchs(), references, strict=True):
        assert_accurate(result, torchs, reference)

    benchmark.group = f"{which.case.name} {which.name}"
    (benchmark.extra_info["algorithm"],) = (
        c.algorithm for c in which.candidates("cpu") if which.kernel_pass in c.runs
    )
    benchmark(getattr(calls, side))
