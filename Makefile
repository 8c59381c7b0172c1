# Everything here works on a machine with Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests that run side by side: many of them mostly wait for processes to die.
JOBS ?= 3
SOURCES := meshforge_trio chaos tests scenarios benchmarks examples

.PHONY: help install demo test coverage check gate soak bench bench-chaos bench-recovery bench-fairness format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(BIN)/.installed  ## make .venv with everything in it

demo: install  ## the order flow, killed four times
	$(BIN)/python scenarios/order_flow.py

# What is left over when the others are through is shared out again: single tests take minutes.
PYTEST := -m pytest -n $(JOBS) --dist worksteal

test: install  ## the whole test suite
	$(BIN)/python $(PYTEST) $(ARGS)

coverage: install  ## the same, with branch coverage of the packages; takes twice as long
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run $(PYTEST) $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --fail-under=95

check: install  ## lint, types, and the shape of the code
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/tidy

gate: install  ## kill at every point, run every scenario, catch every planted bug: the profile for pull requests
	$(BIN)/meshforge-chaos gate --profile pr --report build/gate $(ARGS)

soak: install  ## an hour of mixed load and random faults from a printed seed: ARGS='--minutes 3'
	$(BIN)/python -m benchmarks.soak $(ARGS)

bench: install  ## throughput, latency, recovery, memory
	$(BIN)/python -m benchmarks.throughput $(ARGS)

bench-chaos: install  ## kills per second, the gate's duration, how often a reported plan reproduces
	$(BIN)/python -m benchmarks.chaos $(ARGS)

bench-recovery: install  ## how long it takes to be back after the death of a worker, of the server, and at the start
	$(BIN)/python -m benchmarks.recovery $(ARGS)

bench-fairness: install  ## what a flood of one tenant does to the latency of another in the same process
	$(BIN)/python -m benchmarks.fairness $(ARGS)

format: install  ## format the code
	$(BIN)/ruff check --fix --select I $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:  ## remove what the above made
	rm -rf $(VENV) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
