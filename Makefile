# Every target makes its own virtual environment in $(VENV) the first time, and again when pyproject.toml changes.
PYTHON ?= python3
VENV ?= .venv
DEVICE ?= cpu
OUT ?= demo
JOBS ?= 2

BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two test processes with one thread each get more out of two cores than one process with two.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

.PHONY: demo
demo: $(READY)  ## Train a small non-local network, measure it, draw its attention (OUT=demo)
	$(BIN)/nlprobe demo --out $(OUT)

.PHONY: test
test: $(READY)  ## Run the fast tests (DEVICE=cpu|cuda|cuda:1|mps)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m 'not slow' --device $(DEVICE)

.PHONY: test-slow
test-slow: $(READY)  ## Run the slow tests only
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m slow --device $(DEVICE)

.PHONY: test-all
test-all: $(READY)  ## Run all tests, the slow ones too
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --device $(DEVICE)

.PHONY: lint
lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench
bench: $(READY)  ## Measure the speed table against peers; fails when a row falls short
	$(BIN)/python -m benchmarks

.PHONY: wheel
wheel: $(READY)  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist

.PHONY: clean
clean:  ## Remove what the build and the tests leave behind
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
