"""The build: which compilers it finds, for which GPUs, and what it rebuilds."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from setuptools import Distribution

from build_support import backend, check_wheel, commands, cuda, library

CPU_TORCH = library.Torch(Path("/nowhere/torch"), "2.13.0")
TOOLKIT = cuda.Toolkit(Path("/toolkit/bin/nvcc"), "13.0", Path("/toolkit/libcudart_static.a"))

# Answers as nvcc does to the calls of probe_toolkit.
FAKE_NVCC = """\
#!/bin/sh
case "$1" in
  --dryrun)
    echo '#$ TOP={root}'
    echo '#$ LIBRARIES=  "-L{root}/lib/stubs" "-L{root}/lib"'
    echo '#$ gcc -D__CUDACC_VER_MAJOR__=12 -D__CUDACC_VER_MINOR__=9 -include "cuda_runtime.h"' ;;
  -E) test -e {root}/include/cuda_runtime.h || {{ echo 'no cuda_runtime.h' >&2; exit 1; }} ;;
esac
"""


@pytest.fixture
def toolkit_root(tmp_path: Path) -> Path:
    """A fake toolkit that works."""
    root = tmp_path / "toolkit"
    for folder in ("bin", "include", "lib"):
        (root / folder).mkdir(parents=True)
    (root / "include/cuda_runtime.h").touch()
    (root / "lib/libcudart_static.a").touch()
    write_script(root / "bin/nvcc", FAKE_NVCC.format(root=root))
    return root


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the nvcc that this machine may have."""
    monkeypatch.setattr(cuda, "USUAL_NVCC", "/nowhere/bin/nvcc")


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# ---- Architectures ----


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("8.0", ["8.0"]),
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"]),
        ("9.0a 8.0", ["9.0a", "8.0"]),
        (" 7.5; 8.6, 12.0f;", ["7.5", "8.6", "12.0f"]),
        ("Ampere", ["8.0", "8.6+PTX"]),
        ("8.6 Ampere 8.0", ["8.6+PTX", "8.0"]),
        ("9.0;9.0+PTX;9.0", ["9.0+PTX"]),
    ],
)
def test_arch_list(text, archs):
    assert cuda.parse_arch_list(text) == archs


@pytest.mark.parametrize("text", ["80", "8.0+ptx", "ampere", "8.0;;sm_90", "9.0b", "8", ";"])
def test_bad_arch_list(text):
    with pytest.raises(ValueError, match="TORCH_CUDA_ARCH_LIST.*'8.0;9.0\\+PTX'.*Ampere"):
        cuda.parse_arch_list(text)


def test_gencode_flags():
    assert cuda.gencode_flags(["8.0", "9.0a+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=[sm_90a,compute_90a]",
    ]


def test_archs_come_from_the_variable_then_the_gpus_then_the_default(monkeypatch):
    monkeypatch.setattr(cuda, "device_archs", lambda: ["8.6", "9.0"])
    assert cuda.choose_archs({"TORCH_CUDA_ARCH_LIST": "7.5"}) == ["7.5"]
    assert cuda.choose_archs({"TORCH_CUDA_ARCH_LIST": " "}) == ["8.6", "9.0+PTX"]
    monkeypatch.setattr(cuda, "device_archs", lambda: [])
    assert cuda.choose_archs({}) == ["8.0+PTX"]


# ---- nvcc ----


@pytest.mark.parametrize("name", ["CUDA_HOME", "CUDA_PATH"])
def test_nvcc_of_a_variable_comes_before_path(name, toolkit_root, tmp_path):
    write_script(tmp_path / "other/nvcc", "")
    environ = {name: str(toolkit_root), "PATH": str(tmp_path / "other")}
    assert cuda.find_nvcc(environ) == toolkit_root / "bin/nvcc"


def test_nvcc_of_path_comes_where_the_variable_has_none(tmp_path):
    nvcc = write_script(tmp_path / "path/nvcc", "")
    environ = {"CUDA_HOME": str(tmp_path), "PATH": str(nvcc.parent)}
    assert cuda.find_nvcc(environ) == nvcc


def test_wrapper_script_leads_to_its_toolkit(toolkit_root, tmp_path):
    wrapper = write_script(
        tmp_path / "path/nvcc", f'#!/bin/sh\nexec {toolkit_root}/bin/nvcc "$@"\n'
    )
    found = cuda.probe_toolkit(wrapper)
    assert found.version == "12.9"
    assert found.cudart == (toolkit_root / "lib/libcudart_static.a").resolve()


@pytest.mark.parametrize("missing", ["include/cuda_runtime.h", "lib/libcudart_static.a"])
def test_incomplete_toolkit(missing, toolkit_root):
    (toolkit_root / missing).unlink()
    environ = {"CUDA_HOME": str(toolkit_root), "CNNKERNELS_CUDA": "on"}
    with pytest.raises(cuda.ToolkitError, match=f"on, but .*{Path(missing).name}"):
        cuda.choose_toolkit(environ)
    toolkit, line = cuda.choose_toolkit({**environ, "CNNKERNELS_CUDA": "auto"})
    assert toolkit is None
    assert line.startswith("without CUDA: ")
    assert Path(missing).name in line
    assert "\n" not in line


def test_nvcc_that_does_not_run(tmp_path):
    nvcc = write_script(tmp_path / "bin/nvcc", "#!/nowhere/sh\n")
    with pytest.raises(cuda.ToolkitError, match="does not run"):
        cuda.probe_toolkit(nvcc)


@pytest.mark.parametrize("mode", ["", "auto", "on"])
def test_cuda_is_built_where_nvcc_works(mode, toolkit_root):
    toolkit, line = cuda.choose_toolkit(
        {"CNNKERNELS_CUDA": mode, "CUDA_HOME": str(toolkit_root), "PATH": os.environ["PATH"]}
    )
    assert toolkit is not None
    assert line == f"with CUDA 12.9: {toolkit_root}/bin/nvcc"


def test_cuda_off(toolkit_root):
    toolkit, line = cuda.choose_toolkit({"CNNKERNELS_CUDA": "off", "CUDA_HOME": str(toolkit_root)})
    assert toolkit is None
    assert "CNNKERNELS_CUDA=off" in line


def test_no_nvcc(no_nvcc):
    toolkit, line = cuda.choose_toolkit({"PATH": ""})
    assert toolkit is None
    assert "nvcc not found" in line
    with pytest.raises(cuda.ToolkitError, match="Install the CUDA toolkit"):
        cuda.choose_toolkit({"PATH": "", "CNNKERNELS_CUDA": "on"})


def test_unknown_cuda_mode():
    with pytest.raises(ValueError, match="'yes'; it must be auto, on or off"):
        cuda.choose_toolkit({"CNNKERNELS_CUDA": "yes"})


# ---- Jobs ----


@pytest.mark.parametrize(
    ("cores", "gigabytes", "jobs"), [(8, 64, 8), (8, 7, 3), (8, 1, 1), (1, 64, 1)]
)
def test_jobs_fit_cores_and_memory(cores, gigabytes, jobs):
    assert library.choose_jobs({}, cores, gigabytes * 2**30) == jobs


def test_max_jobs():
    assert library.choose_jobs({"MAX_JOBS": "5"}, cores=2, free_bytes=0) == 5
    for bad in ("0", "-1", "two"):
        with pytest.raises(ValueError, match="MAX_JOBS"):
            library.choose_jobs({"MAX_JOBS": bad}, cores=2, free_bytes=0)


def test_free_memory_is_plausible():
    assert 2**20 < library.free_memory() < 2**50


# ---- What is compiled how ----


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small source tree with a source of every kind."""
    sources = {
        "csrc/shared.h": "inline int one() { return 1; }\n",
        "csrc/ops.cpp": '#include "shared.h"\n',
        "csrc/cpu/registry.cpp": '#include "shared.h"\n',
        "csrc/cpu/pool.cpp": "namespace CNNKERNELS_ISA { int pool() { return 1; } }\n",
        "csrc/emulator/fiber.cpp": "int fiber() { return 1; }\n",
        "csrc/cuda/pool.cu": '#include "../shared.h"\nint launch() { return one(); }\n',
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def compiled(root: Path, config: library.Config) -> dict[str, list[str]]:
    return {g.name: [str(source) for source in g.sources] for g in library.groups(root, config)}


def test_groups_with_cuda_on_x86(tree):
    config = library.Config("g++", CPU_TORCH, TOOLKIT, ("8.0+PTX",), machine="x86_64")
    groups = compiled(tree, config)
    # The linker takes the first copy of an inline function: AVX objects must come last.
    assert list(groups)[-3:] == ["portable", "avx2", "avx512"]
    assert groups["torch"] == ["csrc/ops.cpp"]
    assert groups["cpu"] == ["csrc/cpu/registry.cpp"]
    assert groups["emulator"] == ["csrc/emulator/fiber.cpp"]
    assert groups["emulated"] == groups["instrumented"] == groups["cuda"] == ["csrc/cuda/pool.cu"]
    assert groups["portable"] == groups["avx2"] == groups["avx512"] == ["csrc/cpu/pool.cpp"]


def test_groups_without_cuda_elsewhere(tree):
    groups = compiled(tree, library.Config("g++", CPU_TORCH, machine="aarch64"))
    assert list(groups) == ["torch", "cpu", "emulator", "emulated", "instrumented", "portable"]


def test_only_bindings_see_torch(tree):
    config = library.Config("g++", CPU_TORCH, TOOLKIT, ("8.0",))
    sees_torch = [
        group.name for group in library.groups(tree, config) if "torch" in " ".join(group.flags)
    ]
    assert sees_torch == ["torch"]


def test_warnings_as_errors_reach_both_compilers(tree):
    config = library.Config("g++", CPU_TORCH, TOOLKIT, ("8.0",), warnings_are_errors=True)
    for group in library.groups(tree, config):
        wanted = "-Werror=all-warnings" if group.rule == "nvcc" else "-Werror"
        assert wanted in group.flags, group.name


def test_nvccs_pragmas_are_unknown_only_where_gcc_reads_its_sources(tree):
    config = library.Config("g++", CPU_TORCH, TOOLKIT, ("8.0",))
    lenient = [
        group.name
        for group in library.groups(tree, config)
        if "-Wno-unknown-pragmas" in group.flags
    ]
    assert lenient == ["emulated", "instrumented"]


def test_nvcc_uses_the_chosen_host_compiler():
    config = library.Config("ccache g++-12", CPU_TORCH, TOOLKIT, ("8.0",))
    assert "-ccbin=g++-12" in library.nvcc_flags(config)


# ---- What is rebuilt ----


def ninja(tree: Path, config: library.Config) -> set[str]:
    """Compiles all but the library itself; returns the objects that were out of date."""
    file = config.folder / "build.ninja"
    library.write_if_changed(tree / file, library.ninja_text(tree, config))
    objects = [
        str(config.folder / group.name / source.relative_to("csrc").with_suffix(".o"))
        for group in library.groups(tree, config)
        for source in group.sources
    ]
    done = subprocess.run(
        [library.find_ninja(), "-f", str(file), *objects],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return {name for name in objects if f"c++ {name}\n" in done.stdout}


def test_rebuilds_only_what_changed(tree):
    config = library.Config("g++", CPU_TORCH, machine="aarch64")
    folder = config.folder
    of_header = {
        f"{folder}/torch/ops.o",
        f"{folder}/cpu/cpu/registry.o",
        f"{folder}/emulated/cuda/pool.o",
        f"{folder}/instrumented/cuda/pool.o",
    }
    rest = {f"{folder}/portable/cpu/pool.o", f"{folder}/emulator/emulator/fiber.o"}
    assert ninja(tree, config) == of_header | rest
    assert ninja(tree, config) == set()

    (tree / "csrc/shared.h").write_text("inline int one() { return 2 - 1; }\n")
    assert ninja(tree, config) == of_header

    (tree / "csrc/cpu/new.cpp").touch()
    assert ninja(tree, config) == {f"{folder}/portable/cpu/new.o"}


def test_changed_flags_rebuild_everything(tree):
    config = library.Config("g++", CPU_TORCH, machine="aarch64")
    everything = ninja(tree, config)
    strict = library.Config("g++", CPU_TORCH, machine="aarch64", warnings_are_errors=True)
    assert ninja(tree, strict) == everything


def test_equal_text_leaves_the_file_alone(tmp_path):
    path = tmp_path / "new/file"
    library.write_if_changed(path, "text")
    os.utime(path, ns=(1, 1))
    library.write_if_changed(path, "text")
    assert path.stat().st_mtime_ns == 1
    library.write_if_changed(path, "other")
    assert path.read_text() == "other"


def test_a_library_in_use_is_replaced_not_overwritten(tmp_path):
    source, target = tmp_path / "source.so", tmp_path / "package/target.so"
    source.write_text("old")
    commands.replace_if_different(source, target)
    with target.open() as in_use:
        source.write_text("new")
        os.utime(source, ns=(1, 1))
        commands.replace_if_different(source, target)
        assert in_use.read() == "old"
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["target.so"]


# ---- Isolated builds ----


@pytest.mark.parametrize(
    ("version", "wanted"), [("2.13.0+cpu", []), ("2.9.1", ["torch>=2.10"]), (None, ["torch>=2.10"])]
)
def test_an_isolated_build_asks_for_torch_only_where_there_is_none(
    version, wanted, tmp_path, monkeypatch
):
    if version:
        facts = tmp_path / f"torch-{version}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(backend.build_meta, "get_requires_for_build_wheel", lambda settings: [])
    monkeypatch.setattr(backend.build_meta, "get_requires_for_build_editable", lambda settings: [])
    assert backend.get_requires_for_build_wheel() == wanted
    assert backend.get_requires_for_build_editable() == wanted


# ---- The wheel ----


def test_one_wheel_serves_every_python(monkeypatch):
    monkeypatch.setattr(
        commands.bdist_wheel, "get_tag", lambda self: ("cp311", "cp311", "linux_x86_64")
    )
    tag = commands.PlatformWheel(Distribution()).get_tag()
    assert tag == ("py3", "none", "linux_x86_64")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that checking a wheel would run; none is, and each writes a file."""
    ran = []

    def run(command, check, cwd, env):
        assert check
        Path(env["TMPDIR"], "download").touch()
        ran.append(tuple(map(str, command)))

    monkeypatch.setattr(check_wheel.subprocess, "run", run)
    return ran


def test_a_wheel_is_tried_beside_each_torch(steps, tmp_path):
    wheel = tmp_path / "cnnkernels.whl"
    check_wheel.check(wheel, ["torch==1", "torch==2"], tmp_path / "build")
    assert [step[-1] for step in steps if "install" in step] == [
        "torch==1",
        str(wheel),
        "torch==2",
        str(wheel),
    ]
    tried = [step for step in steps if step[-1].endswith("tests/wheel_smoke.py")]
    assert len(tried) == 2
    assert all(step[1] == "-I" for step in tried)
    assert list((tmp_path / "build").iterdir()) == []


def test_the_zoo_runs_beside_the_torch_of_a_torchvision(steps, tmp_path):
    torch, torchvision = next(iter(check_wheel.TORCHVISIONS.items()))
    check_wheel.check(tmp_path / "cnnkernels.whl", [torch], tmp_path / "build")
    (installed,) = [step for step in steps if torchvision in step]
    assert {torch, "pytest"} <= {*installed}
    assert steps[-1][1:3] == ("-m", "pytest") and steps[-1][-1].endswith("tests/test_zoo.py")


def test_a_wheel_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(check_wheel.subprocess, "run", fail)
    with pytest.raises(SystemExit, match="cnnkernels.whl fails beside torch==1"):
        check_wheel.check(Path("cnnkernels.whl"), ["torch==1"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_is_not_tried_without_space(steps, monkeypatch, tmp_path):
    monkeypatch.setattr(
        check_wheel.shutil, "disk_usage", lambda path: SimpleNamespace(free=14_900_000_000)
    )
    with pytest.raises(SystemExit, match=r"needs 15 GB .* has only 14\.9 GB"):
        check_wheel.check(Path("cnnkernels.whl"), ["torch==1"], tmp_path)
    assert steps == []
