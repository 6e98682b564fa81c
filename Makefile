# Two commands do everything: `make run` and `make test`. Both set up .venv first, if it is not there or is out of date.
.DEFAULT_GOAL := help
.PHONY: help setup run test lint format bench docs clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
RUN_ARGS ?=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Make the environment in .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"muai_lab needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

run: setup ## Measure the embedded model; prints the result table and where the report is
	$(BIN)/python -m muai_lab run $(RUN_ARGS)

test: setup ## Run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup ## Format the code in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Run the benchmarks whose figures the documentation quotes (minutes)
	$(BIN)/python -m benchmarks

docs: setup ## Write the generated pages and the example file again
	$(BIN)/python -m muai_lab config example config/optimization.example.yaml
	$(BIN)/python -m muai_lab config reference docs/configuration.md

clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
