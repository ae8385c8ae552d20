"""The counters of the compiled kernels, against counts by hand."""

import itertools
import math
from collections import Counter

import pytest
from ptx import counters
from ptx.counters import CASES, Launch, launches
from ptx.gpu import PROBLEMS, Gpu
from ptx.passes import CHANNELS_LAST, NCHW, random_conv2d, random_conv2d_pool, random_pools

from cnnkernels.profiling import GPUS


def launches_of(gpu: Gpu, kernel: str, passes) -> list[Launch]:
    return [launch for launch in launches(gpu, passes) if launch.kernel == kernel]


POOL_PASSES = [*itertools.product(["max", "avg"], ["forward", "backward"])]


@pytest.mark.parametrize("layout", [NCHW, CHANNELS_LAST], ids=str)
@pytest.mark.parametrize(("kind", "way"), POOL_PASSES, ids="_".join)
def test_vector_pools_move_each_byte_once_in_whole_sectors(gpu, kind, way, layout):
    passes = random_pools(gpu, (2, 16, 16, 32), layout=layout, kernel_size=2)
    (launch,) = launches_of(gpu, f"{kind}_pool2d_vector_{way}", passes)
    assert launch.traffic == 1
    # The larger side goes by 16 bytes a thread, 512 a warp.
    side = "global_load" if way == "forward" else "global_store"
    assert launch.per_request(side, "sectors") == 16
    assert launch.counters[f"{side}_bytes"] == 2 * 16 * 16 * 32 * 4
    assert launch.roofline_share(GPUS["A100"]) == 1  # nothing takes longer than memory


# 10 x 20 outputs an image: two tiles of 8 x 32, each of 4 warps with 8 filters.
N, C, K = 2, 3, 32
WARPS = N * 2 * 4


@pytest.fixture(params=[3, 5, 7])
def tiled_fprop(request, gpu) -> tuple[int, Launch]:
    """Of R x R filters, whose columns of R taps meet 8 rows of outputs."""
    R = request.param
    passes = random_conv2d(gpu, (N, C, 9 + R, 19 + R), (K, R, R))
    (launch,) = launches_of(gpu, "conv2d_tiled_fprop", passes)
    return R, launch


def test_tiled_fprop_counts_by_hand(tiled_fprop):
    """A column and 8 filters: 8 + R - 1 pixels, 2 * R times 4 taps."""
    R, launch = tiled_fprop
    columns = WARPS * C * R
    assert launch.warp_instructions("fma") == columns * R * 8 * 8
    assert launch.counters["shared_load_requests"] == columns * (7 + R + 2 * R)
    assert launch.counters["global_store_bytes"] == N * K * 10 * 20 * 4
    assert launch.barriers == 2 * C


def test_tiled_fprop_is_free_of_bank_conflicts(tiled_fprop):
    R, launch = tiled_fprop
    columns = WARPS * C * R
    # 16 bytes a thread take a pass a quarter of a warp, even where all read the same.
    assert launch.counters["shared_load_wavefronts"] == columns * (7 + R + 2 * R * 4)
    assert launch.per_request("shared_store", "wavefronts") == 1


def test_tiled_fprop_issues_little_but_multiply_adds(tiled_fprop):
    """Of a thread: beside 64 * R multiply-adds a column takes 7 + 3 * R loads and up to 8
    instructions around them; a value that it stores in the tile, or a tap, up to 50; a result 10.
    """
    R, launch = tiled_fprop
    stored = 2 * math.ceil((7 + R) / 4) + 2 * math.ceil(R * R / 8)
    others = C * (R * (7 + 3 * R + 8) + 50 * stored) + 10 * 64
    assert launch.instructions_per_fma <= 1 + others / (C * R * R * 64)


def test_direct_fprop_multiplies_pixels_alone(gpu):
    passes = random_conv2d(gpu, (1, 4, 7, 9), (2, 3, 3), padding=2, groups=2, stride=2)
    (launch,) = launches_of(gpu, "conv2d_direct_fprop", passes)
    assert launch.multiply_adds == 1


def test_each_algorithm_has_a_row(gpu):
    """Those that are added later, too: else the table lacks a problem that they take."""
    takers = Counter()
    with gpu.options(CHECKS="none"):
        for case in CASES.values():
            for which in case(gpu):
                takes = f"{which.op.removeprefix('adaptive_')}_takes"
                for number, algorithm in enumerate(gpu.algorithms(which.op)):
                    takers[which.op, algorithm] += gpu.run(
                        takes, number, which.problem, which.dtype
                    )
            gpu.free()
    registered = {(op, algorithm) for op in PROBLEMS for algorithm in gpu.algorithms(op)}
    assert {taker for taker, times in takers.items() if times} == registered


@pytest.mark.parametrize("layout", [NCHW, CHANNELS_LAST], ids=str)
@pytest.mark.parametrize("algorithm", ["implicit_gemm", "tensor_core"])
def test_the_pooled_product_is_the_plain_one_but_for_what_it_stores(gpu, algorithm, layout):
    shape, filters, conv = (1, 32, 16, 16), (64, 3, 3), dict(padding=1)
    pool = dict(kernel_size=2)
    plain = random_conv2d(gpu, shape, filters, layout=layout, **conv)
    pooled = random_conv2d_pool(gpu, "max", shape, filters, conv, pool, layout=layout)
    (plain,) = launches_of(gpu, f"conv2d_{algorithm}_fprop", plain)
    (pooled,) = launches_of(gpu, f"conv2d_pool_{algorithm}_fprop", pooled)
    for kind in ("fma", "mma"):
        assert pooled.warp_instructions(kind) == plain.warp_instructions(kind)
    assert plain.counters["global_store_bytes"] == 64 * 16 * 16 * 4
    assert pooled.counters["global_store_bytes"] == 64 * 8 * 8 * (4 + 1)
    biases = 64 * (16 * 16 - 8 * 8) * 4  # one a window, not one an output
    assert pooled.counters["global_load_bytes"] == plain.counters["global_load_bytes"] - biases
    assert pooled.counters["warp_instructions"] <= 1.1 * plain.counters["warp_instructions"]


def test_the_table_is_printed(gpu, monkeypatch, capsys):
    def case(gpu):
        return random_pools(gpu, (1, 4, 4, 4), kernel_size=2)

    monkeypatch.setattr(counters, "CASES", {"a small pool": case})
    counters.main()
    heading, _, title, *rows = capsys.readouterr().out.splitlines()
    assert title == "a small pool"
    (row,) = (row for row in rows if row.startswith("avg_pool2d_vector_forward"))
    # Rows of 16 bytes: each of two loads takes every other one, half of 8 sectors; 16 averages
    # are 2 sectors. 18 * 32 bytes for 80 floats.
    *cells, a100, h100 = row.split()
    assert cells == ["avg_pool2d_vector_forward", "vector", *"- - 8 2 1.8 - - -".split()]
    assert 0 < float(a100) < 1 and 0 < float(h100) < 1  # so few bytes take less time than a warp
    assert len(row) == len(heading)


def test_without_ptxsim_the_table_is_skipped_with_a_reason(monkeypatch, capsys):
    monkeypatch.setenv("CNNKERNELS_PTXSIM", "/nonexistent")
    counters.main()
    assert capsys.readouterr().out.startswith("skipped: no ptxsim at /nonexistent")
