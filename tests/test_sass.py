"""What nvcc made of the kernels, as `make sass` reports it: registers, spills, hot loops."""

import itertools
import json
import os
import subprocess

import pytest

from build_support import sass

ARCHS = ["sm_80", "sm_90"]


@pytest.fixture(scope="module")
def report() -> list[dict]:
    """A row a kernel and architecture."""
    try:
        command = sass.command(os.environ, "--json", "--kernel", "conv2d_tiled")
    except LookupError as reason:
        pytest.skip(str(reason))
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0 and "not found" in result.stderr:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(params=ARCHS)
def rows(request: pytest.FixtureRequest, report: list[dict]) -> list[dict]:
    """The rows of an architecture."""
    chosen = [row for row in report if row["arch"] == request.param]
    if not chosen:
        pytest.skip(f"the library is not built for {request.param}")
    return chosen


def test_tiled_convolutions_stay_in_registers(rows):
    spilling = [
        row["mangled"] for row in rows if row["stack"] or row["stl_bytes"] or row["ldl_bytes"]
    ]
    assert not spilling


# 3x3 with stride 1 is VGG's first layer, 5x5 Model A's.
@pytest.mark.parametrize("output", ["StoredOutput", "PooledOutput"])
@pytest.mark.parametrize(("R", "stride"), [*itertools.product([3, 5, 7], [1, 2])])
def test_hot_loop_of_tiled_fprop(rows, R, stride, output):
    """Most of what is issued is arithmetic, and a quarter of an SM's warps find registers."""
    name = f"conv2d_tiled_fpropIfNS0_12{output}IfEELi{R}ELi{stride}E"
    (row,) = (row for row in rows if name in row["mangled"])
    assert row["hot"]["share"] >= 0.85
    assert row["occupancy"]["warps"] >= 16
    # A column of taps: R x 8 of them meet 8 pixels, each of which is loaded once.
    assert row["hot"]["mix"]["fp32"] == {"FFMA": R * 8 * 8}
    assert row["hot"]["mix"]["lds"] == {"32": 7 * stride + R, "128": R * 2}
