# `make` lists the targets. Variables, for example `make test TEST_ARGS="-k pool"`:
#   PYTHON     the Python that .venv is made with; for `make gpu` the one that runs the tests
#   TORCH      what pip installs as torch, with its options
#   WHEEL_TORCHES   the versions of torch that wheel-check tries, each with the Python of PYTHON
#   DEMO_ARGS, TEST_ARGS   arguments for the demo and for pytest
#   GPU_REPORTS   the folder that `make gpu` writes its times to
#   CNNKERNELS_PTXSIM   the folder of the interpreter that `make ptx` runs
#   CNNKERNELS_SASS_REPORT   the tool that `make sass` runs; SASS_ARGS its arguments
#   CNNKERNELS_CUDA=auto|on|off, TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, MAX_JOBS   the build

PYTHON ?= python3
TORCH ?= torch==2.13.0
WHEEL_TORCHES ?= torch==2.13.0 torch==2.14.1
GPU_REPORTS ?= docs/gpu

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
CPP_FILES = $(shell find csrc examples tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help demo test sanitize ptx sass gpu lint format build wheel wheel-check clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

demo: $(VENV)/demo.stamp build ## Train and explore a network with these kernels
	$(RUN) -m cnnkernels demo $(DEMO_ARGS)

test: $(VENV)/dev.stamp build ## Run the tests
	$(RUN) -m pytest $(TEST_ARGS)

sanitize: $(VENV)/dev.stamp ## Run all kernels under ASan and UBSan, and under TSan
	@$(RUN) -m build_support.sanitize
	$(RUN) -m pytest -q tests/test_sanitize.py

ptx: $(VENV)/dev.stamp ## Run the compiled PTX of the CUDA kernels in an interpreter, if it is there
	$(RUN) -m pytest tests/test_ptx.py tests/test_counters.py $(TEST_ARGS)
	@PYTHONPATH=tests $(RUN) -m ptx.counters

sass: build ## Hold the matrix products' hot loops to their gates, if the tool is there
	@$(RUN) -m build_support.sass $(SASS_ARGS)

gpu: ## Build, test and measure on this machine's GPU, with the packages that PYTHON has
	@$(PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	  "make gpu: the torch of $(PYTHON) sees no CUDA GPU")'
	CNNKERNELS_CUDA=on $(PYTHON) setup.py --quiet build_ext --inplace
	CNNKERNELS_REQUIRE_GPU=1 $(PYTHON) -m pytest tests -m gpu $(TEST_ARGS)
	PYTHONPATH=tests $(PYTHON) -m benchmarks.gpu --json $(GPU_REPORTS)/times.json \
	  --markdown $(GPU_REPORTS)/README.md --plot $(GPU_REPORTS)/speed.svg

lint: $(VENV)/dev.stamp ## Check style: ruff, clang-format, and which file may know the compiler
	$(VENV)/bin/ruff check --quiet
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES)
	@! grep -rnE '__CUDACC__|__NVCC__' csrc --exclude-dir=emulator | grep -v '^csrc/cuda/device\.h:' \
	  || { echo 'only csrc/cuda/device.h may ask which compiler is at work'; exit 1; }
	@! grep -rn '<<<' csrc || { echo 'kernels start through launch(), not <<<>>>'; exit 1; }

format: $(VENV)/dev.stamp ## Rewrite the files in the project's style
	$(VENV)/bin/ruff format --quiet
	$(VENV)/bin/ruff check --quiet --fix
	$(VENV)/bin/clang-format -i $(CPP_FILES)

build: $(VENV)/torch.stamp ## Compile what changed
	@$(RUN) setup.py --quiet build_ext --inplace

# From Turing on; the PTX of the last one serves later GPUs. One list for all targets spares
# rebuilding: set TORCH_CUDA_ARCH_LIST for `make build` too. build/lib* hold files of an earlier
# wheel, which would go into this one.
wheel: export TORCH_CUDA_ARCH_LIST ?= 7.5;8.0;8.6;9.0+PTX
wheel: build ## Make dist/*.whl, for any Python 3, and the source distribution
	@rm -rf dist build/lib*
	@$(RUN) setup.py --quiet sdist
	@$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls -sh dist

wheel-check: wheel ## Try the wheel in fresh environments (needs 15 GB, downloads torch's CUDA build)
	@$(PYTHON) -m build_support.check_wheel dist/*.whl $(WHEEL_TORCHES)

clean: ## Remove .venv and all that was built
	rm -rf $(VENV) build dist *.egg-info cnnkernels/libcnnkernels.so

# The project is installed once, in editable mode; after that only `build` is needed. Nothing is
# built in isolation, so torch is downloaded once.
$(VENV)/torch.stamp: Makefile
	@echo 'Setting up $(VENV) with $(TORCH)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH) 'setuptools>=77' ninja
	@$(RUN) -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' > $(VENV)/torch.txt
	@touch $@

# What is installed later, such as torchvision, keeps to the torch that is there.
$(VENV)/demo.stamp: EXTRAS = train,viz
$(VENV)/dev.stamp: EXTRAS = dev
$(VENV)/demo.stamp $(VENV)/dev.stamp: pyproject.toml $(VENV)/torch.stamp | build
	@echo 'Installing cnnkernels[$(EXTRAS)] into $(VENV)'
	@$(PIP) --constraint $(VENV)/torch.txt --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@
