"""What nvcc made of the kernels, as `make sass` reports it: registers, spills, hot loops."""

import itertools
import os

import pytest

from build_support import sass

ARCHS = ["sm_80", "sm_90"]


@pytest.fixture(scope="module")
def report() -> list[dict]:
    """A row a kernel and architecture."""
    try:
        return sass.report(os.environ, "conv2d_(pool_)?(tiled|implicit_gemm|tensor_core|winograd)")
    except LookupError as reason:
        pytest.skip(str(reason))


@pytest.fixture(params=ARCHS)
def rows(request: pytest.FixtureRequest, report: list[dict]) -> list[dict]:
    """The rows of an architecture."""
    chosen = [row for row in report if row["arch"] == request.param]
    if not chosen:
        pytest.skip(f"the library is not built for {request.param}")
    return chosen


# Here ptxas for sm_90 is 6 registers short, of the 128 that let two blocks run side by side.
SPILLING = {"sm_90": {sass.implicit_gemm("wgrad", "Masked", (128, 128), packs=False)}}


def test_convolutions_stay_in_registers(rows):
    spilling = {
        row["mangled"] for row in rows if row["stack"] or row["stl_bytes"] or row["ldl_bytes"]
    }
    known = SPILLING.get(rows[0]["arch"], set())
    assert not [name for name in spilling if not any(part in name for part in known)]


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


# The share of multiply-adds in what the loop issues, at least: contiguous tensors, and
# channels_last, whose channels are loaded 4 at once. VGG's conv3_2 runs by the largest tile, Model
# A's second layer by the narrow one.
GEMM_SHARES = {(128, 128): (0.85, 0.88), (64, 64): (0.79, 0.86), (128, 32): (0.75, 0.84)}


@pytest.mark.parametrize("packs", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("tile", GEMM_SHARES, ids=str)
@pytest.mark.parametrize("name", ["fprop", "dgrad", "wgrad"])
def test_hot_loop_of_implicit_gemm(rows, name, tile, packs):
    (row,) = (
        row for row in rows if sass.implicit_gemm(name, "Plain", tile, packs) in row["mangled"]
    )
    assert row["hot"]["share"] >= GEMM_SHARES[tile][packs]
    # Two stages of 8 depths, of 64 sums a thread.
    assert row["hot"]["mix"]["fp32"] == {"FFMA": 2 * 8 * 64}
    assert row["hot"]["mix"]["lds"]["128"] >= 2 * 8 * 4
    assert row["occupancy"]["warps"] >= 12
    if name != "wgrad" and not packs:
        assert row["regs"] <= 128


# Of 2 channels 8 patches by 8 filters a lane; of one, 3 times 8 by 4.
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize(
    ("transform", "sums", "packs", "warps"),
    [("Winograd2x2", 128, 8, 20), ("Winograd4x4", 96, 9, 16)],
)
def test_hot_loop_of_winograd(rows, transform, sums, packs, warps, masked):
    (row,) = (row for row in rows if sass.winograd(transform, masked) in row["mangled"])
    assert row["hot"]["mix"]["fp32"] == {"FFMA": sums}
    assert row["hot"]["mix"]["lds"] == {"128": packs}
    assert row["hot"]["share"] >= 0.85
    assert row["occupancy"]["warps"] >= warps
    assert row["regs"] <= 128


# The share of mma in what the loop issues, at least: of the large tile, loaded by packs. Rounding
# to tf32 takes two instructions for an mma, and moves where nothing transposes float32.
TENSOR_CORE_SHARES = {
    "fprop": {"tf32": 0.22, "float16": 0.44, "bfloat16": 0.44},
    "dgrad": {"tf32": 0.16, "float16": 0.38, "bfloat16": 0.38},
    "wgrad": {"tf32": 0.16, "float16": 0.38, "bfloat16": 0.38},
}


@pytest.mark.parametrize("dtype", sass.MANGLED)
@pytest.mark.parametrize("name", TENSOR_CORE_SHARES)
def test_hot_loop_of_tensor_core(rows, name, dtype):
    """VGG's conv3_2 in channels_last: a stage is 2 steps of 4 x 8 mma, of operands in 8 packs."""
    (row,) = (
        row for row in rows if sass.tensor_core(name, dtype, "Plain", True, True) in row["mangled"]
    )
    mix = row["hot"]["mix"]
    assert sum(mix["tensor"].values()) == 64
    assert row["hot"]["share"] >= TENSOR_CORE_SHARES[name][dtype]
    if row["arch"] == "sm_80":
        assert row["hot"]["ceiling"] >= 0.98
    assert row["occupancy"]["warps"] >= 8
    assert sum(count for kind, count in mix["lds"].items() if "LDSM" in kind) <= 64 / 4
    assert "32" not in mix["lds"]


def test_the_table_of_gates_has_every_instance(rows):
    lines = sass.table(rows).splitlines()
    assert len(lines) == 2 + len(sass.GATES)


def row_of(gate: sass.Gate, **changes) -> dict:
    """A report's row that all gates hold for."""
    mix = {"lds": {"LDSM.128": 16}, "tensor": {"HMMA": 64}}
    row = {
        "mangled": gate.kernel,
        "arch": "sm_80",
        "regs": 128,
        "stack": 0,
        "stl_bytes": 0,
        "ldl_bytes": 0,
        "occupancy": {"warps": 8},
        "hot": {"share": 0.9, "ceiling": 1.0, "mix": mix},
    }
    return row | changes


def hot(share=0.9, ceiling=1.0, **lds) -> dict:
    return dict(share=share, ceiling=ceiling, mix={"lds": lds, "tensor": {"HMMA": 64}})


@pytest.mark.parametrize(
    ("kernel", "changes", "missed"),
    [
        ("implicit_gemm fprop", {}, "hold"),
        ("implicit_gemm fprop", dict(hot=hot(share=0.78)), "share"),
        ("implicit_gemm fprop", dict(regs=129), "registers"),
        ("implicit_gemm wgrad", dict(regs=129), "hold"),
        ("implicit_gemm wgrad", dict(stl_bytes=4, stack=8), "stack, spills"),
        ("tensor_core tf32 dgrad", dict(hot=hot(ceiling=0.97)), "ceiling"),
        ("tensor_core tf32 dgrad", dict(hot=hot(LDSM=17)), "LDSM/mma"),
        ("tensor_core float16 wgrad", dict(hot=hot(LDSM=17, **{"32": 1})), "32-bit loads"),
        ("tensor_core float16 wgrad", dict(occupancy=dict(warps=4)), "warps"),
    ],
)
def test_gates_can_be_missed(kernel, changes, missed):
    gate = next(gate for gate in sass.GATES if gate.name == kernel)
    (line,) = sass.table([row_of(gate, **changes)]).splitlines()[2:]
    assert line.endswith(f"| {missed} |")
