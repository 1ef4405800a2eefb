# Chiplet: `make serve` and `make test` do all the set-up; both can be run again.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# The first interpreter that runs and is new enough, unless PYTHON names one.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$candidate" && break; done)
# Address of an index with CPU builds of PyTorch; empty takes pip's own.
TORCH_INDEX ?=
MODEL ?= smollm2-135m
PORT ?= 8000
# More flags for `chiplet serve`, for pytest and for `make conformance-cpu` (--quick, or some sets).
SERVE_FLAGS ?=
PYTEST_FLAGS ?=
CONFORMANCE_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/done
PIP := $(BIN)/python -m pip --disable-pip-version-check
WITHOUT_HARDWARE := not device and not multi_device
# What no run of `make check` may need: a model download, or patience.
QUICK := $(WITHOUT_HARDWARE) and not model and not slow

# Two workers, a file to each in turn, one thread each: threads of two would fight over the cores.
# In the order of pyproject.toml: by themselves, files of many tests would come first, not long ones.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

say = @printf '\n==> %s\n' $(1)

.PHONY: help serve test check format docs supported install model test-device test-tpu test-xla \
	test-ipex conformance-cpu bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17
	@echo
	@echo "Variables: PYTHON, TORCH_INDEX, MODEL, PORT, SERVE_FLAGS, PYTEST_FLAGS, CONFORMANCE_FLAGS"

serve: model ## Install, fetch the demo model, and serve it on 127.0.0.1:8000
	$(call say,"Starting the server; stop it with Ctrl-C")
	@exec $(BIN)/chiplet serve "$(MODEL)" --port "$(PORT)" $(SERVE_FLAGS)

test: $(DONE)/dev model ## Run all tests that need no accelerator
	$(call say,"Tests")
	@$(PYTEST) -m "$(WITHOUT_HARDWARE)" $(PYTEST_FLAGS)

check: $(DONE)/dev ## Format, lint, types, import contracts; and the quick tests, unless test is made too
	$(call say,"Format and lint")
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	$(call say,"Types")
	@$(BIN)/pyright --pythonpath $(BIN)/python
	$(call say,"Import contracts")
	@$(BIN)/lint-imports
ifeq ($(filter test,$(MAKECMDGOALS)),)
	$(call say,"Quick tests: no hardware and no model")
	@$(PYTEST) -m "$(QUICK)" $(PYTEST_FLAGS)
endif

format: $(DONE)/dev ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(DONE)/dev ## Write the generated pages of docs/ anew
	@$(BIN)/python docs/generate.py

conformance-cpu: $(DONE)/dev ## Hold the CPU plugin's kernels against the reference on every instruction set here
	@$(BIN)/python -m tests.conformance.every_set $(CONFORMANCE_FLAGS)

supported: $(DONE)/dev ## Write anew what the CPU plugin's providers serve
	@$(BIN)/python -m tests.conformance.supported

test-device: $(DONE)/dev model ## Run the tests that need an accelerator
	$(call say,"Tests on the device")
	@$(BIN)/python -m pytest -m "device or multi_device" $(PYTEST_FLAGS) \
		|| { test $$? -eq 5 && echo "No test needs an accelerator yet."; }

test-tpu: $(VENV)-tpu/done model ## Test the TPU plugin on XLA's CPU backend, and compile for TPUs that are not there
	$(call say,"TPU plugin")
	@$(VENV)-tpu/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder \
		tests/tpu plugins/tpu/tests $(PYTEST_FLAGS)

test-xla: $(VENV)-xla/done model ## Test the TPU plugin with torch_xla on its CPU backend
	$(call say,"TPU plugin with torch_xla")
	@$(VENV)-xla/bin/python -m pytest tests/tpu/test_torch_xla.py $(PYTEST_FLAGS)

test-ipex: $(VENV)-ipex/done ## Test the CPU plugin's provider by Intel Extension for PyTorch, with torch 2.8
	$(call say,"Intel Extension for PyTorch")
	@OMP_NUM_THREADS=1 $(VENV)-ipex/bin/python -m pytest -n 2 plugins/cpu/tests/test_cpu_ipex.py \
		plugins/cpu/tests/test_cpu_ipex_results.py $(PYTEST_FLAGS)

bench: $(DONE)/dev model ## Measure start-up, latency, throughput and prefix sharing
	@mkdir -p benchmarks/results
	$(call say,"Start-up")
	@$(BIN)/chiplet bench startup --json benchmarks/results/startup.json
	$(call say,"Latency")
	@$(BIN)/chiplet bench latency --dtype bfloat16 --against transformers \
		--json benchmarks/results/latency.json
	$(call say,"Throughput")
	@$(BIN)/chiplet bench throughput --dtype bfloat16 --against transformers \
		--json benchmarks/results/throughput.json
	$(call say,"Shared prefix")
	@$(BIN)/chiplet bench prefix --dtype bfloat16 --json benchmarks/results/prefix.json

install: $(DONE)/chiplet ## Install core and the CPU plugin into .venv

model: $(DONE)/chiplet ## Fetch the model of the catalogue into the cache folder
	$(call say,"Model $(MODEL)")
	@case "$(MODEL)" in */*|*.gguf) ;; *) $(BIN)/chiplet pull "$(MODEL)" ;; esac

clean: ## Remove .venv and what tools left behind
	rm -rf $(VENV) $(VENV)-tpu $(VENV)-xla $(VENV)-ipex .pytest_cache .ruff_cache .hypothesis .import_linter_cache

KERNELS := plugins/cpu/CMakeLists.txt $(wildcard plugins/cpu/src/chiplet_cpu/kernels/*)

# jax and libtpu take 2 GB, which nobody else needs: an environment of their own.
$(VENV)-tpu/done: plugins/tpu/pyproject.toml core/pyproject.toml constraints.txt $(KERNELS) \
		| $(DONE)/venv
	$(call say,"jax and libtpu in $(VENV)-tpu")
	@$(PYTHON) -m venv $(VENV)-tpu
	@$(VENV)-tpu/bin/python -m pip --disable-pip-version-check install \
		$(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") -r constraints.txt
	@$(VENV)-tpu/bin/python -m pip --disable-pip-version-check install -c constraints.txt \
		-e ./core -e ./plugins/cpu -e "./plugins/tpu[tpu]" $(TEST_TOOLS)
	@touch $@

TEST_TOOLS := "pytest>=8.3,<10" "pytest-asyncio>=1.0,<2" "pytest-timeout>=2.3,<3" \
	"pytest-xdist>=3.7,<4"

# torch 2.9 has GPU builds only, most of whose 4 GB no test touches: tests/tpu/stub_libraries.py
# puts empty libraries in their place. pip would still fetch what torch asks for, so it resolves
# nothing that asks for torch: of Chiplet's packages it is told the other requirements only.
$(VENV)-xla/done: plugins/tpu/pyproject.toml core/pyproject.toml tests/tpu/stub_libraries.py \
		tests/tpu/requirements.py $(KERNELS) | $(DONE)/venv
	$(call say,"torch_xla in $(VENV)-xla")
	@$(PYTHON) -m venv $(VENV)-xla
	@$(VENV)-xla/bin/python -m pip --disable-pip-version-check install --no-deps torch==2.9.0 \
		torch_xla==2.9.0 nvidia-cuda-runtime-cu12==12.8.90 nvidia-cuda-cupti-cu12==12.8.90
	@$(PYTHON) tests/tpu/requirements.py core plugins/cpu plugins/tpu > $(VENV)-xla/requirements.txt
	@$(VENV)-xla/bin/python -m pip --disable-pip-version-check install networkx sympy jinja2 \
		fsspec filelock "typing-extensions>=4.10" absl-py requests pyyaml $(TEST_TOOLS) \
		-r $(VENV)-xla/requirements.txt
	@$(VENV)-xla/bin/python tests/tpu/stub_libraries.py
	@$(VENV)-xla/bin/python -m pip --disable-pip-version-check install --no-deps \
		-e ./core -e ./plugins/cpu -e ./plugins/tpu
	@touch $@

# torch 2.8, the last that the extension goes with, has GPU builds only here too: see above.
$(VENV)-ipex/done: plugins/cpu/pyproject.toml core/pyproject.toml tests/tpu/stub_libraries.py \
		tests/tpu/requirements.py $(KERNELS) | $(DONE)/venv
	$(call say,"Intel Extension for PyTorch in $(VENV)-ipex")
	@$(PYTHON) -m venv $(VENV)-ipex
	@$(VENV)-ipex/bin/python -m pip --disable-pip-version-check install --no-deps torch==2.8.0 \
		intel-extension-for-pytorch==2.8.0 nvidia-cuda-runtime-cu12==12.8.90 \
		nvidia-cuda-cupti-cu12==12.8.90
	@$(PYTHON) tests/tpu/requirements.py core plugins/cpu > $(VENV)-ipex/requirements.txt
	@$(VENV)-ipex/bin/python -m pip --disable-pip-version-check install networkx sympy jinja2 \
		fsspec filelock packaging "typing-extensions>=4.10" "hypothesis>=6.100,<7" \
		$(TEST_TOOLS) -r $(VENV)-ipex/requirements.txt
	@$(VENV)-ipex/bin/python tests/tpu/stub_libraries.py
	@$(VENV)-ipex/bin/python -m pip --disable-pip-version-check install --no-deps \
		-e ./core -e ./plugins/cpu
	@touch $@

$(DONE)/venv:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer was found." >&2; \
		echo "       Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $(PYTHON) has no venv module." >&2; \
		echo "       On Debian: apt-get install python3-venv" >&2; exit 2; }
	$(call say,"Virtual environment in $(VENV)")
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(DONE) && touch $@

$(DONE)/torch: constraints.txt | $(DONE)/venv
	$(call say,"PyTorch")
	@$(PIP) install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") -r constraints.txt
	@touch $@

$(DONE)/chiplet: core/pyproject.toml plugins/cpu/pyproject.toml $(KERNELS) | $(DONE)/torch
	$(call say,"Chiplet and its CPU plugin")
	@$(PIP) install -c constraints.txt -e ./core -e ./plugins/cpu
	@touch $@

$(DONE)/dev: requirements-dev.txt $(DONE)/chiplet
	$(call say,"Tools of the tests")
	@$(PIP) install -c constraints.txt -r requirements-dev.txt
	@$(PIP) install --no-deps -e ./plugins/triton -e ./plugins/nvidia -e ./plugins/tpu
	@touch $@
